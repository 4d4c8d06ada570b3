//! Lanes' way to and from the wire: one UDP socket for QUIC and lanes together.
//!
//! ```text
//!  outbound threads -> Carrier ----> LaneSocket ----> packet_loop's lanes thread -> lanes in the Table -> TUN
//!                      quinn -> Port ---^  |                  `-- everything else -> Port -> quinn
//! ```
//!
//! What a lane's packet is, `tunnel::lane` knows; who has lanes and when they change, the control loop.

pub mod carrier;
pub mod port;
pub mod socket;
pub mod table;

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
    pub fn new(socket: std::net::UdpSocket, offloads: Offloads) -> std::io::Result<Self> {
        let socket = Arc::new(LaneSocket::new(socket, offloads)?);
        let port = Arc::new(Port::new(socket.clone()));
        let passed_on = Arc::new(Hearing::new(None, None));
        let hearing = Arc::new(Hearing::new(Some(socket.duplicate()?), Some(passed_on.clone())));
        Ok(Self { socket, port, table: Arc::default(), probes: Arc::default(), hearing, passed_on })
    }
}

/// Whether the processor has instructions for AES, without which ChaCha20 is faster.
pub fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = std::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let has = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has = false;
    has
}
