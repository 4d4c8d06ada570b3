//! The UDP socket that QUIC and lanes share. It never blocks by itself: quinn's tasks must not wait in it, packet threads wait
//! beside it.

use std::fs::File;
use std::io::{self, IoSliceMut, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGroSegment;
use quinn::udp::{RecvMeta, Transmit, UdpSocketState};

use crate::config::offloads::{Offload, Offloads};
use crate::io::tun::sys::eventfd;
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
    /// Trains go as one call each.
    segments: bool,
    wake: File,
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
        Ok(Self { socket, state, segments: offloads.has(Offload::Gso), wake: eventfd()? })
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

    /// Sends now or says `WouldBlock`.
    pub fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.state.try_send((&self.socket).into(), transmit)
    }

    /// Sends a train. Waits for room while `patience` lasts, which is what keeps a full socket from being fed.
    pub fn send(
        &self,
        train: Train<'_>,
        to: SocketAddr,
        from: Option<IpAddr>,
        patience: &mut Duration,
    ) -> Taken {
        // one: a driver without segmentation, found out by an error of an earlier call
        let at_once = if self.segments && self.state.max_gso_segments() > 1 {
            train.bytes.len()
        } else {
            train.datagram
        };
        for part in train.bytes.chunks(at_once.max(1)) {
            let segment_size = (part.len() > train.datagram).then_some(train.datagram);
            let transmit =
                Transmit { destination: to, ecn: None, contents: part, segment_size, src_ip: from };
            while let Err(error) = self.try_send(&transmit) {
                match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EAGAIN) if self.wait_for_room(patience) => {}
                    Some(Errno::EAGAIN | Errno::ENOBUFS) => return Taken::Full,
                    Some(Errno::EMSGSIZE) => return Taken::TooBig,
                    Some(Errno::EINVAL | Errno::EIO) if segment_size.is_some() => {
                        // the state remembers that: one datagram a call from now on
                        return self.send(Train { bytes: part, ..train }, to, from, patience);
                    }
                    _ => return Taken::Gone,
                }
            }
        }
        Taken::Yes
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
