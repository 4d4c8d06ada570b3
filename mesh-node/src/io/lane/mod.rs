//! Lanes' way to and from the wire: one UDP socket for QUIC and lanes together, and one more for the lanes of each further worker.
//!
//! ```text
//!  outbound threads -> Carrier ----> LaneSocket ----> packet_loop's lanes thread -> lanes in the Table -> TUN
//!                      quinn -> Port ---^  |                  `-- everything else -> Port -> quinn
//!
//!  of worker 1 --------> Way of 1 -> LaneSocket ----> lanes thread of 1 --------------^     (the next port; nothing of quinn's)
//! ```
//!
//! A LaneSocket sends by an `outlet` for each peer: a socket at the same port that only sends, with a buffer of its own.
//!
//! What a lane's packet is, `tunnel::lane` knows; who has lanes and when they change, the control loop.

pub mod carrier;
pub mod outlet;
pub mod port;
pub mod received;
pub mod socket;
pub mod table;
mod way;

use std::io;
use std::net::UdpSocket;
use std::sync::Arc;

use crate::config::offloads::Offloads;
use crate::io::liveness::beside::Receivers;
use crate::io::quic::hearing::Hearing;
use port::Port;
use socket::LaneSocket;
use table::LaneTable;

/// A node's one way to and from the wire, where it has lanes.
#[derive(Debug, Clone)]
pub struct LaneWire {
    /// Shared by all.
    pub socket: Arc<LaneSocket>,
    /// Of the workers after the first, for lanes alone.
    pub more: Vec<Arc<LaneSocket>>,
    /// quinn's side.
    pub port: Arc<Port>,
    /// Lanes that can be received.
    pub table: Arc<LaneTable>,
    /// Take probes out of what is read.
    pub probes: Arc<Receivers>,
    /// How the socket is read.
    pub hearing: Arc<Hearing>,
    /// How quinn reads what is passed on to it.
    pub passed_on: Arc<Hearing>,
}

impl LaneWire {
    /// On a bound socket, which may use these offloads.
    pub fn new(socket: UdpSocket, offloads: Offloads) -> io::Result<Self> {
        Self::of_workers(socket, Vec::new(), offloads)
    }

    /// The same, with a socket for each further worker: on the ports after the first one's.
    pub fn of_workers(socket: UdpSocket, more: Vec<UdpSocket>, offloads: Offloads) -> io::Result<Self> {
        let socket = Arc::new(LaneSocket::new(socket, offloads)?);
        let port = Arc::new(Port::new(socket.clone()));
        let passed_on = Arc::new(Hearing::new(None, None));
        let hearing = Arc::new(Hearing::new(Some(socket.duplicate()?), Some(passed_on.clone())));
        let more = more.into_iter().map(|socket| LaneSocket::new(socket, offloads).map(Arc::new));
        let more = more.collect::<io::Result<_>>()?;
        Ok(Self { socket, more, port, table: Arc::default(), probes: Arc::default(), hearing, passed_on })
    }

    /// The workers' sockets.
    pub fn sockets(&self) -> impl Iterator<Item = &Arc<LaneSocket>> {
        std::iter::once(&self.socket).chain(&self.more)
    }

    /// How many there are.
    pub fn workers(&self) -> u8 {
        u8::try_from(1 + self.more.len()).unwrap_or(u8::MAX)
    }
}
