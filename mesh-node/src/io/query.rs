//! What the control socket and the metrics ask. A question is carried to the control loop, which answers it with `Control` in
//! hand: so `Control` has one owner, and what asks needs no channel back but its own.

use std::time::Duration;

use mesh_proto::NodeId;
use mesh_proto::trace::{TraceReply, TraceRequest};
use tokio::sync::{mpsc, oneshot};

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
    /// A question to another node about a packet, answered when it has.
    Trace {
        /// Whom.
        node: NodeId,
        /// What; its number is the loop's to choose.
        request: TraceRequest,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<TraceReply, String>>,
    },
}

/// Asks the loop, and waits for what it says; `None`: it has ended.
pub async fn ask<T: Send + 'static>(
    queries: &mpsc::Sender<Query>,
    question: impl FnOnce(&mut Control, &View<'_>) -> T + Send + 'static,
) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    let ask = Query::Ask(Box::new(move |control, view| {
        let _ = reply.send(question(control, view));
    }));
    queries.send(ask).await.ok()?;
    answer.await.ok()
}
