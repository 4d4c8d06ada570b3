//! What the control socket and the metrics ask. A question is carried to the control loop, which answers it with `Control` in
//! hand: so `Control` has one owner, and what asks needs no channel back but its own.

use std::time::Duration;

use mesh_proto::hello::TraceReply;
use mesh_proto::{NetworkName, NodeId};
use tokio::sync::oneshot;

use crate::control::Control;
use crate::control::event::Now;
use crate::control::status::Live;
use crate::io::quic::echo::Unanswered;

/// What comes with an answer besides `Control`.
pub struct View<'a> {
    /// The moment of the question.
    pub now: Now,
    /// Figures of connections.
    pub live: &'a dyn Live,
}

/// Asked inside the loop, with what it owns.
pub type Question = Box<dyn FnOnce(&mut Control, &View<'_>) + Send>;

/// A question that needs `Control`.
pub enum Query {
    /// Anything that is answered at once.
    Ask(Question),
    /// An echo over a peer's tunnel.
    Ping {
        /// The peer.
        peer: NodeId,
        /// Bytes of the inner packet it stands for.
        size: usize,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<Duration, Unanswered>>,
    },
    /// A trace, answered when the other nodes have.
    Trace {
        /// The network, if told.
        network: Option<NetworkName>,
        /// From.
        source: std::net::IpAddr,
        /// To.
        destination: std::net::IpAddr,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<TraceReply, String>>,
    },
}
