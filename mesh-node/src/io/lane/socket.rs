//! The UDP socket that QUIC and lanes share. It never blocks by itself: quinn's tasks must not wait in it, packet threads wait
//! beside it.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::UdpGroSegment;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt};
use quinn::udp::{RecvMeta, Transmit, UdpSocketState};

use crate::config::offloads::{Offload, Offloads};
use crate::control::slowness::SOCKET;
use crate::io::notices::tell;
use crate::io::tun::sys::eventfd;
use crate::notice::Notice;
use crate::tunnel::lane::train::{Taken, Train};

/// Bytes the kernel may hold for us: measured, less costs throughput in one direction and more adds delay in the other.
pub const SEND_BUFFER: usize = 1 << 20;
/// See there.
pub const RECEIVE_BUFFER: usize = 768 << 10;

/// Messages taken with one call, each of which GRO may have made of many datagrams.
pub const MESSAGES: usize = 4;
/// Room for the largest of them.
const MESSAGE: usize = 65_536;

/// One socket, and how to wake who waits for it.
#[derive(Debug)]
pub struct LaneSocket {
    socket: UdpSocket,
    state: UdpSocketState,
    /// The kernel cuts trains, and may.
    segments: bool,
    /// Destinations whose device does not.
    uncut: Arc<AtomicUsize>,
    wake: File,
}

/// Where a peer's trains go.
#[derive(Debug)]
pub struct Destination {
    to: SocketAddr,
    from: Option<Source>,
    /// Its device cuts trains, as far as is known.
    segments: AtomicBool,
    uncut: Arc<AtomicUsize>,
}

impl Drop for Destination {
    fn drop(&mut self) {
        if !*self.segments.get_mut() {
            self.uncut.fetch_sub(1, Relaxed);
        }
    }
}

/// The address of ours that packets bear, as the kernel takes it.
#[derive(Debug, Clone, Copy)]
enum Source {
    V4(libc::in_pktinfo),
    V6(libc::in6_pktinfo),
}

impl Source {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(a) => Self::V4(libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from(a).to_be() },
                ipi_addr: libc::in_addr { s_addr: 0 },
            }),
            IpAddr::V6(a) => Self::V6(libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: a.octets() },
                ipi6_ifindex: 0,
            }),
        }
    }
}

/// What one call received.
#[derive(Debug)]
pub struct Received {
    /// The messages' bytes, from their beginning.
    pub buffers: Vec<Vec<u8>>,
    /// Of each, in the same order.
    pub meta: [RecvMeta; MESSAGES],
    /// How many there are.
    pub count: usize,
}

impl Default for Received {
    fn default() -> Self {
        let buffers = (0..MESSAGES).map(|_| vec![0; MESSAGE]).collect();
        Self { buffers, meta: [RecvMeta::default(); MESSAGES], count: 0 }
    }
}

impl LaneSocket {
    /// Takes a bound socket and turns on what makes it fast, as far as it is wanted.
    pub fn new(socket: UdpSocket, offloads: Offloads) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        if !offloads.has(Offload::Gro) {
            // it is on wherever there is one
            setsockopt(&socket, UdpGroSegment, &false).map_err(io::Error::from)?;
        }
        socket.set_nonblocking(true)?;
        let segments = offloads.has(Offload::Gso) && state.max_gso_segments() > 1;
        Ok(Self { socket, state, segments, uncut: Arc::default(), wake: eventfd()? })
    }

    /// The address it is bound to.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Another descriptor of the same socket.
    pub fn duplicate(&self) -> io::Result<UdpSocket> {
        self.socket.try_clone()
    }

    /// Offloads and options as quinn knows them.
    pub fn state(&self) -> &UdpSocketState {
        &self.state
    }

    /// Whether trains leave with one call each, to everybody.
    pub fn segments(&self) -> bool {
        self.segments && self.uncut.load(Relaxed) == 0
    }

    /// For trains to a peer's address, from one of ours.
    pub fn destination(&self, to: SocketAddr, from: Option<IpAddr>) -> Destination {
        let from = from.map(Source::of);
        Destination { to, from, segments: AtomicBool::new(true), uncut: self.uncut.clone() }
    }

    /// Sends now or says `WouldBlock`.
    pub fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.state.try_send((&self.socket).into(), transmit)
    }

    /// Whether a train to there leaves with one call.
    pub fn cuts(&self, to: &Destination) -> bool {
        self.segments && to.segments.load(Relaxed)
    }

    /// Sends a train. Waits for room while `patience` lasts, which is what keeps a full socket from being fed.
    pub fn send(&self, train: Train<'_>, to: &Destination, patience: &mut Duration) -> Taken {
        let mut rest = train.bytes;
        while !rest.is_empty() {
            let part = if self.cuts(to) { rest } else { &rest[..rest.len().min(train.datagram)] };
            let mut sent = part.len();
            let mut taken = self.send_part(part, train.datagram, to, patience);
            if part.len() > train.datagram && matches!(taken, Err(Errno::EINVAL | Errno::EIO)) {
                // so the kernel refuses datagrams that are too large as well as a device that cannot cut: one alone tells
                sent = train.datagram;
                taken = self.send_part(&part[..sent], sent, to, patience);
                if taken.is_ok() {
                    self.cut_no_more(to);
                }
            }
            match taken {
                Ok(()) => rest = &rest[sent..],
                Err(Errno::EAGAIN | Errno::ENOBUFS) => return Taken::Full,
                Err(Errno::EMSGSIZE) => return Taken::TooBig,
                Err(_) => return Taken::Gone,
            }
        }
        Taken::Yes
    }

    /// One call, again while there may be room in time.
    fn send_part(
        &self,
        bytes: &[u8],
        datagram: usize,
        to: &Destination,
        patience: &mut Duration,
    ) -> Result<(), Errno> {
        let size = datagram as u16;
        let mut messages = [ControlMessage::UdpGsoSegments(&size); 2];
        let mut count = usize::from(bytes.len() > datagram);
        if let Some(from) = &to.from {
            messages[count] = match from {
                Source::V4(info) => ControlMessage::Ipv4PacketInfo(info),
                Source::V6(info) => ControlMessage::Ipv6PacketInfo(info),
            };
            count += 1;
        }
        let messages = &messages[..count];
        let address = SockaddrStorage::from(to.to);
        let fd = self.socket.as_raw_fd();
        loop {
            match sendmsg(fd, &[IoSlice::new(bytes)], messages, MsgFlags::empty(), Some(&address)) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if self.wait_for_room(patience) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn cut_no_more(&self, to: &Destination) {
        if to.segments.swap(false, Relaxed) {
            self.uncut.fetch_add(1, Relaxed);
            let text = format!("{}; the device towards {} refuses it", Offload::Gso.cost(), to.to);
            tell(Notice::OffloadMissing { device: SOCKET.into(), offload: Offload::Gso.as_str(), text });
        }
    }

    /// `false`: the patience is over. At its end there may be room, though too little to be told of: that takes half the buffer.
    fn wait_for_room(&self, patience: &mut Duration) -> bool {
        if patience.is_zero() {
            return false;
        }
        let start = Instant::now();
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
        let limit = PollTimeout::try_from(*patience).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut fds, limit);
        *patience = patience.saturating_sub(start.elapsed());
        true
    }

    /// Waits until something can be received, or until [`Self::wake`].
    pub fn wait(&self) -> io::Result<()> {
        let mut fds = [
            PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends the wait of whoever waits, now and later.
    pub fn wake(&self) {
        let _ = (&self.wake).write(&1u64.to_ne_bytes());
    }

    /// Receives what is there; nothing is `WouldBlock`.
    pub fn receive(&self, received: &mut Received) -> io::Result<()> {
        received.count = 0;
        let mut buffers = received.buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer));
        let mut slices: [IoSliceMut<'_>; MESSAGES] =
            std::array::from_fn(|_| buffers.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
        received.count = self.state.recv((&self.socket).into(), &mut slices, &mut received.meta)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(by: &UdpSocket) -> Vec<Vec<u8>> {
        by.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut buffer = [0; 65_536];
        std::iter::from_fn(|| by.recv(&mut buffer).ok().map(|len| buffer[..len].to_vec())).collect()
    }

    fn open(address: &str) -> LaneSocket {
        LaneSocket::new(UdpSocket::bind(address).unwrap(), Offloads::ALL).unwrap()
    }

    #[test]
    fn a_train_arrives_as_datagrams_from_the_address_it_was_to_leave_by() {
        let ours = open("[::]:0");
        for (peer, to, from) in [
            ("127.0.0.1:0", "[::ffff:127.0.0.1]", "127.0.0.2"),
            ("127.0.0.1:0", "[::ffff:127.0.0.1]", "::ffff:127.0.0.2"),
            ("[::1]:0", "[::1]", "::1"),
        ] {
            let peer = UdpSocket::bind(peer).unwrap();
            let to = format!("{to}:{}", peer.local_addr().unwrap().port()).parse().unwrap();
            let from: IpAddr = from.parse().unwrap();
            let to = ours.destination(to, Some(from));
            let bytes = [7; 2500];
            let train = Train { bytes: &bytes, datagram: 1000 };
            assert_eq!(ours.send(train, &to, &mut Duration::default()), Taken::Yes);
            peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let (len, source) = peer.recv_from(&mut [0; 65_536]).unwrap();
            assert_eq!((len, source.ip()), (1000, from.to_canonical()));
            assert_eq!(received(&peer).iter().map(Vec::len).collect::<Vec<_>>(), [1000, 500]);
            assert!(ours.segments());
        }
    }

    #[test]
    fn a_train_that_the_kernel_does_not_cut_leaves_one_by_one_and_so_do_later_ones_to_that_peer_alone() {
        let (ours, peer) = (open("127.0.0.1:0"), UdpSocket::bind("127.0.0.1:0").unwrap());
        let to = ours.destination(peer.local_addr().unwrap(), None);
        // more than it cuts at once: the answer of a device that cannot is the same
        let bytes: Vec<u8> = (0..200u8).flat_map(|number| [number; 10]).collect();
        let train = Train { bytes: &bytes, datagram: 10 };
        for _ in 0..2 {
            assert_eq!(ours.send(train, &to, &mut Duration::default()), Taken::Yes);
            assert_eq!(received(&peer).concat(), bytes);
            assert!(!ours.segments());
        }
        let other = ours.destination(peer.local_addr().unwrap(), None);
        assert!(ours.cuts(&other) && !ours.cuts(&to));
        drop(other);
        assert!(!ours.segments());
        drop(to);
        assert!(ours.segments(), "with the connection ends what was known of its path");
    }

    #[test]
    fn a_datagram_that_no_path_carries_is_too_big_and_says_nothing_of_trains() {
        let (ours, peer) = (open("127.0.0.1:0"), UdpSocket::bind("127.0.0.1:0").unwrap());
        let to = ours.destination(peer.local_addr().unwrap(), None);
        let bytes = vec![0; 65_535];
        let train = Train { bytes: &bytes, datagram: 65_520 };
        assert_eq!(ours.send(train, &to, &mut Duration::default()), Taken::TooBig);
        assert!(ours.segments() && received(&peer).is_empty());
    }
}
