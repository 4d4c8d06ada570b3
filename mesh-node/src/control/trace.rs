//! Follows a packet through the mesh without sending it.
//!
//! ```text
//!  journey   whom to ask next, until the packet has arrived, left or been refused     (the node that is asked by mesh-ctl)
//!     │ question                 ▲ answer
//!     ▼                          │
//!  plan      what the forwarding functions say, and what the kernel has to do for it  (each node on the way, about itself)
//!     │ look-ups                 ▲
//!     ▼                          │
//!  kernel    whether the kernel does it: routes, rules, others' firewall chains
//! ```
//! Here: which questions are under way to and from peers. `io::trace` carries questions and look-ups out.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mesh_proto::NodeId;
use mesh_proto::hello::Message;
use mesh_proto::trace::{Packet, TraceEnd, TraceReply, TraceRequest};

use super::Control;
use super::event::{ConnId, Now, Output};

pub mod journey;
pub mod kernel;
mod network;
pub mod plan;
mod words;

/// Questions that wait for another node.
const MAX_PENDING: usize = 64;

/// Questions of one peer that are answered at once: each takes some netlink messages and a look at the firewall.
const MAX_ANSWERING: usize = 4;

/// Questions of one peer in a second: each may start nft, and a member that never stops asking must not take a core.
const MAX_A_SECOND: u32 = 20;

/// Questions on their way.
#[derive(Debug, Default)]
pub struct Traces {
    /// Ours: whom it was asked.
    pending: BTreeMap<u64, (ConnId, NodeId)>,
    /// Peers'.
    answering: BTreeMap<ConnId, Answering>,
}

/// Questions of one peer.
#[derive(Debug, Default)]
struct Answering {
    /// Being answered.
    running: usize,
    /// When the current second began.
    since: Option<Instant>,
    /// Taken in it.
    taken: u32,
}

impl Answering {
    /// Whether one more is taken.
    fn take(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1)) {
            (self.since, self.taken) = (Some(now), 0);
        }
        let free = self.running < MAX_ANSWERING && self.taken < MAX_A_SECOND;
        if free {
            self.running += 1;
            self.taken += 1;
        }
        free
    }
}

/// An answer without hops.
pub fn without_hops(request: &TraceRequest, end: TraceEnd) -> TraceReply {
    TraceReply { id: request.id, network: request.network.clone(), hops: Vec::new(), end }
}

impl Control {
    /// Asks another node. `Output::Traced` follows, unless it stays silent.
    pub(super) fn trace_ask(&mut self, node: &NodeId, request: TraceRequest) {
        let Some(tunnel) = self.members.peers.get(node).and_then(|p| p.tunnel.as_ref()) else {
            let own = &self.local.identity.node;
            let text = if node == own || !self.members.peers.contains_key(node) {
                format!("{own} knows no node {node}: `mesh-ctl peers` lists them")
            } else {
                format!("{own} has no tunnel to {node}: `mesh-ctl peer show {node}` says why")
            };
            self.outputs.push_back(Output::Traced { id: request.id, answer: Err(text) });
            return;
        };
        let conn = tunnel.conn;
        while self.traces.pending.len() >= MAX_PENDING {
            self.traces.pending.pop_first();
        }
        self.traces.pending.insert(request.id, (conn, node.clone()));
        self.outputs.push_back(Output::Send { conn, message: Message::TraceRequest(request) });
    }

    /// A peer's answer.
    pub(super) fn trace_replied(&mut self, conn: ConnId, reply: TraceReply, now: Now) {
        if !reply.is_bounded() {
            return self.breach(conn, "an answer to a trace is too long".into(), now);
        }
        // from the node that was asked, not from anyone who guesses a number
        if self.traces.pending.get(&reply.id).is_none_or(|(asked, _)| *asked != conn) {
            return;
        }
        self.traces.pending.remove(&reply.id);
        self.outputs.push_back(Output::Traced { id: reply.id, answer: Ok(reply) });
    }

    /// A peer's question.
    pub(super) fn trace_requested(&mut self, conn: ConnId, request: TraceRequest, now: Now) {
        if !self.traces.answering.entry(conn).or_default().take(now.mono) {
            let text = format!("{} is busy with other traces: try again", self.local.identity.node);
            let reply = without_hops(&request, TraceEnd::Unanswerable(text));
            self.outputs.push_back(Output::Send { conn, message: Message::TraceReply(reply) });
            return;
        }
        self.outputs.push_back(Output::TraceWanted { conn, request });
    }

    /// The answer to a peer's question is there.
    pub fn trace_answer(&mut self, conn: ConnId, reply: TraceReply) {
        if let Some(answering) = self.traces.answering.get_mut(&conn) {
            answering.running = answering.running.saturating_sub(1);
        }
        if self.members.conns.contains_key(&conn) {
            self.outputs.push_back(Output::Send { conn, message: Message::TraceReply(reply.clipped()) });
        }
    }

    /// Who asked has gone, or who was asked.
    pub(super) fn trace_closed(&mut self, conn: ConnId) {
        self.traces.answering.remove(&conn);
        let lost: Vec<u64> =
            self.traces.pending.iter().filter(|(_, (asked, _))| *asked == conn).map(|(id, _)| *id).collect();
        for id in lost {
            let Some((_, node)) = self.traces.pending.remove(&id) else { continue };
            let answer = Err(format!("the tunnel to {node} has gone: `mesh-ctl peer show {node}` says why"));
            self.outputs.push_back(Output::Traced { id, answer });
        }
    }
}

/// The packet that answers this one, as it leaves who received it.
pub fn answer_to(packet: &Packet) -> Packet {
    Packet { source: packet.destination, destination: packet.source, reply: true, ..*packet }
}
