//! Carries the questions of a trace: to the control loop, to this host's kernel, to other nodes. What to ask, and what the
//! answers mean, is decided in `control::trace`.

use std::time::Duration;

use mesh_proto::api::TraceAsk;
use mesh_proto::trace::{Protocol, TraceEnd, TraceReply, TraceRequest};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::host::lookup::Lookups;
use super::query::{Query, ask};
use crate::control::event::ConnId;
use crate::control::trace::journey::{Journey, Wish};
use crate::control::trace::{kernel, without_hops};

/// Longest time for another node to answer: a path of seconds, or none.
const PATIENCE: Duration = Duration::from_secs(3);

/// Longest time for this host's kernel and firewall, so that a node that is slow still answers before it is given up.
pub(super) const KERNEL_PATIENCE: Duration = Duration::from_secs(2);

/// Follows packets. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tracer {
    queries: mpsc::Sender<Query>,
}

impl Tracer {
    /// By questions to the control loop.
    pub fn new(queries: mpsc::Sender<Query>) -> Self {
        Self { queries }
    }

    /// A whole journey. `None`: the node stops.
    pub async fn follow(&self, wish: Wish) -> Option<Result<mesh_proto::api::Trace, String>> {
        let own = ask(&self.queries, |control, _| control.node().clone()).await?;
        let mut journey = Journey::new(wish, own.clone());
        while let Some(question) = journey.question().cloned() {
            let answer = if question.node == own {
                Ok(self.here(None, question.request).await?)
            } else {
                let (reply, answer) = oneshot::channel();
                let (node, request) = (question.node.clone(), question.request);
                self.queries.send(Query::Trace { node, request, reply }).await.ok()?;
                match timeout(PATIENCE, answer).await {
                    Ok(answer) => answer.ok()?,
                    Err(_) => Err(format!(
                        "{node} has not answered within {} s: `mesh-ctl peer show {node}` tells whether it is well",
                        PATIENCE.as_secs(),
                        node = question.node
                    )),
                }
            };
            journey.handle_answer(answer);
        }
        Some(journey.into_trace())
    }

    /// What a peer wants to know of this node.
    pub async fn answer(self, conn: ConnId, request: TraceRequest) {
        if let Some(reply) = self.here(Some(conn), request).await {
            ask(&self.queries, move |control, _| control.trace_answer(conn, reply)).await;
        }
    }

    async fn here(&self, asker: Option<ConnId>, request: TraceRequest) -> Option<TraceReply> {
        let asked = request.clone();
        let plan = ask(&self.queries, move |control, _| control.trace_plan(asker, &asked)).await?;
        let wanted = plan.legs.iter().map(|leg| leg.lookups.as_slice()).collect::<Vec<_>>();
        let looked_up = match timeout(KERNEL_PATIENCE, Lookups::carry_out(&wanted)).await {
            Ok(looked_up) => looked_up.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", KERNEL_PATIENCE.as_secs())),
        };
        let looked_up = match looked_up {
            Ok(looked_up) => looked_up,
            Err(why) => {
                let end = TraceEnd::Unanswerable(format!("{}: the kernel cannot be asked: {why}", plan.node));
                return Some(without_hops(&request, end));
            }
        };
        Some(kernel::settle(plan, request.id, &looked_up.answers, looked_up.firewall.as_ref()))
    }
}

/// What the API was asked, in the node's terms.
pub fn wish(ask: &TraceAsk) -> Result<Wish, String> {
    let protocol = match (ask.protocol.as_deref(), ask.dport) {
        (None | Some("icmp"), None) => Protocol::Icmp,
        (Some("tcp"), Some(port)) => Protocol::Tcp(port),
        (Some("udp"), Some(port)) => Protocol::Udp(port),
        (Some("tcp" | "udp"), None) => return Err("a port is missing: add --dport".into()),
        (None | Some("icmp"), Some(_)) => return Err("icmp has no ports: add -p tcp or -p udp".into()),
        (Some(other), _) => return Err(format!("protocol {other:?} is none of icmp, tcp and udp")),
    };
    if ask.from.is_ipv4() != ask.to.is_ipv4() {
        return Err(format!("{} and {} are of two families", ask.from, ask.to));
    }
    let node = |name: &Option<String>| {
        name.as_deref().map(str::parse).transpose().map_err(|error| format!("node {error}"))
    };
    Ok(Wish {
        network: ask
            .network
            .as_deref()
            .map(str::parse)
            .transpose()
            .map_err(|error| format!("network {error}"))?,
        from_node: node(&ask.from_node)?,
        from: ask.from,
        to_node: node(&ask.to_node)?,
        to: ask.to,
        protocol,
        back: ask.back,
    })
}
