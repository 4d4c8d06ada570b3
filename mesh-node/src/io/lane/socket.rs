//! The UDP socket that QUIC and lanes share: all is received by it, QUIC sends by it, lanes by an outlet for each peer. None of them
//! blocks by itself: quinn's tasks must not wait in it, packet threads wait beside it.

use std::fs::File;
use std::io::{self, IoSlice, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::UdpGroSegment;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt};
use quinn::udp::{Transmit, UdpSocketState};

use super::outlet;
use super::received::Received;
use crate::config::offloads::{Offload, Offloads};
use crate::control::slowness::SOCKET;
use crate::io::notices::tell;
use crate::io::tun::sys::eventfd;
use crate::notice::Notice;
use crate::tunnel::lane::train::{Taken, Train};

/// Bytes the kernel may hold for us to send: for QUIC, and for lanes without outlets.
pub const SEND_BUFFER: usize = 1 << 20;
/// The same received: measured, less costs throughput and more adds delay.
pub const RECEIVE_BUFFER: usize = 768 << 10;

/// How long one batch may wait for room, in all.
const LONGEST: Duration = Duration::from_millis(20);
/// The same while there are packets for other peers: long enough for a gigabit device to send half of an outlet's buffer.
const BESIDE_OTHERS: Duration = Duration::from_millis(5);

/// One socket, and how to wake who waits for it.
#[derive(Debug)]
pub struct LaneSocket {
    socket: UdpSocket,
    state: UdpSocketState,
    /// The kernel cuts trains, and may.
    segments: bool,
    /// Destinations whose device does not.
    uncut: Arc<AtomicUsize>,
    /// Datagrams are joined on receipt.
    joins: bool,
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
    /// Its own socket to send by, if it can have one.
    outlet: OnceLock<Option<UdpSocket>>,
    /// A batch has waited for room in vain.
    stuck: AtomicBool,
}

impl Destination {
    /// Where.
    pub fn address(&self) -> SocketAddr {
        self.to
    }

    fn cut_no_more(&self) {
        if self.segments.swap(false, Relaxed) {
            self.uncut.fetch_add(1, Relaxed);
            let text = format!("{}; the device towards {} refuses it", Offload::Gso.cost(), self.to);
            tell(Notice::OffloadMissing { device: SOCKET.into(), offload: Offload::Gso.as_str(), text });
        }
    }
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

/// How a train went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handed {
    /// What became of it.
    pub taken: Taken,
    /// Its datagrams that the socket has.
    pub datagrams: u64,
    /// Calls it took to hand them over.
    pub calls: u64,
    /// The kernel takes its datagrams, but not as a train.
    pub uncut: bool,
}

/// Hands a train over with one `call`, or, where trains are not cut, with one a datagram.
fn hand_over(train: Train<'_>, mut cut: bool, mut call: impl FnMut(&[u8]) -> Result<(), Errno>) -> Handed {
    let mut handed = Handed { taken: Taken::Yes, datagrams: 0, calls: 0, uncut: false };
    let datagram = train.datagram.max(1);
    let mut rest = train.bytes;
    while !rest.is_empty() {
        let alone = rest.len().min(datagram);
        let mut len = if cut { rest.len() } else { alone };
        let mut taken = call(&rest[..len]);
        if len > datagram && matches!(taken, Err(Errno::EINVAL | Errno::EIO)) {
            // before Linux 6.14 it says so of datagrams that are too large as well: one alone tells
            len = alone;
            taken = call(&rest[..len]);
            cut = taken.is_err();
            handed.uncut = taken.is_ok();
        }
        handed.taken = match taken {
            Ok(()) => Taken::Yes,
            Err(Errno::EAGAIN | Errno::ENOBUFS) => Taken::Full,
            Err(Errno::EMSGSIZE) => Taken::TooBig,
            Err(_) => Taken::Gone,
        };
        if taken.is_err() {
            break;
        }
        handed.datagrams += len.div_ceil(datagram) as u64;
        handed.calls += 1;
        rest = &rest[len..];
    }
    handed
}

impl LaneSocket {
    /// Takes a bound socket and turns on what makes it fast, as far as it is wanted.
    pub fn new(socket: UdpSocket, offloads: Offloads) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        let joins = offloads.has(Offload::Gro);
        if !joins {
            // it is on wherever there is one
            setsockopt(&socket, UdpGroSegment, &false).map_err(io::Error::from)?;
        }
        socket.set_nonblocking(true)?;
        let segments = offloads.has(Offload::Gso) && state.max_gso_segments() > 1;
        Ok(Self { socket, state, segments, uncut: Arc::default(), joins, wake: eventfd()? })
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
        Destination {
            to,
            from,
            segments: AtomicBool::new(true),
            uncut: self.uncut.clone(),
            outlet: OnceLock::new(),
            stuck: AtomicBool::new(false),
        }
    }

    /// For how long a batch to there may wait for room, in all. `None`: what is there has to leave first. `others`: a wait would stop
    /// what goes to them.
    pub fn patience(&self, to: &Destination, others: bool) -> Option<Duration> {
        match (others, to.stuck.load(Relaxed)) {
            (false, _) => Some(LONGEST),
            (true, false) => Some(BESIDE_OTHERS),
            (true, true) => has_room(self.outlet(to)).then_some(Duration::ZERO),
        }
    }

    /// Whether a batch has waited for room in vain. It is waited for again once a batch leaves room behind it.
    pub fn note_full(&self, to: &Destination, full: bool) {
        if full {
            to.stuck.store(true, Relaxed);
        } else if to.stuck.load(Relaxed) && has_room(self.outlet(to)) {
            to.stuck.store(false, Relaxed);
        }
    }

    /// What trains to there are sent by: nobody else's packets, and not QUIC's, wait there.
    fn outlet<'a>(&'a self, to: &'a Destination) -> &'a UdpSocket {
        let made = to.outlet.get_or_init(|| {
            let made = outlet::of(&self.socket, self.joins);
            made.inspect_err(|error| tracing::debug!(to = %to.to, %error, "no send buffer of its own")).ok()
        });
        made.as_ref().unwrap_or(&self.socket)
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
    pub fn send(&self, train: Train<'_>, to: &Destination, patience: &mut Duration) -> Handed {
        self.send_by(self.outlet(to), train, to, patience)
    }

    /// Sends one datagram past all trains, or not.
    pub fn send_past(&self, datagram: &[u8], to: &Destination) -> Handed {
        let train = Train { bytes: datagram, datagram: datagram.len() };
        self.send_by(&self.socket, train, to, &mut Duration::default())
    }

    fn send_by(&self, by: &UdpSocket, train: Train<'_>, to: &Destination, patience: &mut Duration) -> Handed {
        let handed = hand_over(train, self.cuts(to), |part| call(by, part, train.datagram, to, patience));
        if handed.uncut {
            to.cut_no_more();
        }
        handed
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

    /// Receives what is there, at most so many messages and as far as there is room; nothing is `WouldBlock`. Says how many it was.
    pub fn receive(&self, received: &mut Received, most: usize) -> io::Result<usize> {
        received.fill(most, |slices, meta| self.state.recv((&self.socket).into(), slices, meta))
    }
}

/// One call, again while there may be room in time.
fn call(
    by: &UdpSocket,
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
    let fd = by.as_raw_fd();
    loop {
        match sendmsg(fd, &[IoSlice::new(bytes)], messages, MsgFlags::empty(), Some(&address)) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if wait_for_room(by, patience) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether half of a send buffer is free.
fn has_room(socket: &UdpSocket) -> bool {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0))
}

/// `false`: the patience is over. At its end there may be room, though too little to be told of: that takes half the buffer.
fn wait_for_room(socket: &UdpSocket, patience: &mut Duration) -> bool {
    if patience.is_zero() {
        return false;
    }
    let start = Instant::now();
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    let limit = PollTimeout::try_from(*patience).unwrap_or(PollTimeout::MAX);
    let _ = poll(&mut fds, limit);
    *patience = patience.saturating_sub(start.elapsed());
    true
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Socket, Type};

    use super::*;

    fn received(by: &UdpSocket) -> Vec<Vec<u8>> {
        by.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut buffer = [0; 65_536];
        std::iter::from_fn(|| by.recv(&mut buffer).ok().map(|len| buffer[..len].to_vec())).collect()
    }

    fn open(address: &str) -> LaneSocket {
        let address: SocketAddr = address.parse().unwrap();
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None).unwrap();
        LaneSocket::new(outlet::bind(socket, address).unwrap(), Offloads::ALL).unwrap()
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
            assert_eq!(ours.send(train, &to, &mut Duration::default()).taken, Taken::Yes);
            assert!(matches!(to.outlet.get(), Some(Some(_))), "by a socket of its own");
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
            assert_eq!(ours.send(train, &to, &mut Duration::default()).taken, Taken::Yes);
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
    fn a_peer_whose_buffer_was_full_is_not_waited_for_beside_others_until_half_of_it_has_left() {
        let (ours, peer) = (open("127.0.0.1:0"), UdpSocket::bind("127.0.0.1:0").unwrap());
        let to = ours.destination(peer.local_addr().unwrap(), None);
        // a pair of connected sockets, of which one does not read
        let (full, far) = std::os::unix::net::UnixDatagram::pair().unwrap();
        full.set_nonblocking(true).unwrap();
        while full.send(&[0; 4096]).is_ok() {}
        to.outlet.set(Some(std::os::fd::OwnedFd::from(full).into())).unwrap();
        assert_eq!(ours.patience(&to, true), Some(BESIDE_OTHERS));
        ours.note_full(&to, true);
        assert_eq!(ours.patience(&to, true), None);
        assert_eq!(ours.patience(&to, false), Some(LONGEST), "alone it stops nobody");
        ours.note_full(&to, false);
        assert_eq!(ours.patience(&to, true), None, "the last batch fitted, and nothing has left");
        while far.set_nonblocking(true).is_ok() && far.recv(&mut [0; 4096]).is_ok() {}
        assert_eq!(ours.patience(&to, true), Some(Duration::ZERO));
        ours.note_full(&to, false);
        assert_eq!(ours.patience(&to, true), Some(BESIDE_OTHERS));
        let other = ours.destination(peer.local_addr().unwrap(), None);
        assert_eq!(ours.patience(&other, true), Some(BESIDE_OTHERS));
    }

    #[test]
    fn what_the_kernel_says_of_a_train_is_told_apart_by_one_datagram_alone() {
        use Errno::{EAGAIN, EINVAL, EIO, EMSGSIZE};
        let yes = Handed { taken: Taken::Yes, datagrams: 3, calls: 1, uncut: false };
        let none = |taken| Handed { taken, datagrams: 0, calls: 0, uncut: false };
        let one_by_one = Handed { calls: 3, uncut: true, ..yes };
        for (of_train, of_one, expected) in [
            (Ok(()), Ok(()), yes),
            (Err(EIO), Ok(()), one_by_one),
            (Err(EINVAL), Ok(()), one_by_one),
            (Err(EINVAL), Err(EMSGSIZE), none(Taken::TooBig)),
            (Err(EMSGSIZE), Ok(()), none(Taken::TooBig)),
            // the address it was to leave by is gone
            (Err(EINVAL), Err(EINVAL), none(Taken::Gone)),
            (Err(EINVAL), Err(EAGAIN), none(Taken::Full)),
            (Err(EAGAIN), Ok(()), none(Taken::Full)),
        ] {
            let train = Train { bytes: &[0; 25], datagram: 10 };
            let handed = hand_over(train, true, |part| if part.len() > 10 { of_train } else { of_one });
            assert_eq!(handed, expected, "{of_train:?}, then {of_one:?}");
        }
        let mut left = 2;
        let handed = hand_over(Train { bytes: &[0; 25], datagram: 10 }, false, |_| {
            left -= 1;
            if left < 0 { Err(EAGAIN) } else { Ok(()) }
        });
        assert_eq!(handed, Handed { taken: Taken::Full, datagrams: 2, calls: 2, uncut: false });
    }
}
