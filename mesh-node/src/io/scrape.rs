//! Gathers what the metrics endpoint shows: a question to the control loop, and the packet loops' counters.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use super::metrics::{self, Durations, MetricsInput, NetworkMetrics, PeerMetrics};
use super::query::{Query, View};
use crate::control::{Control, HANDSHAKE_BUCKETS};
use crate::forward::counters::{Counters, Direction};

/// States a peer can be in: each exists at 0.
const PEER_STATES: [&str; 6] = ["up", "dialing", "down", "idle", "left", "refused"];

/// States a route can be in.
const ROUTE_STATES: [&str; 3] = ["local", "installed", "unreachable"];

/// Reasons that exist at 0 from the start.
const HANDSHAKE_REASONS: [&str; 11] = [
    "timeout",
    "unknown_ca",
    "certificate_expired",
    "certificate_missing",
    "bad_certificate",
    "name_mismatch",
    "other_mesh",
    "prefix_not_allowed",
    "version",
    "protocol",
    "removed",
];

/// Renders the exposition at each call.
pub fn renderer(
    queries: mpsc::Sender<Query>,
    counters: Arc<Counters>,
) -> impl Fn() -> BoxFuture<'static, String> + Send + Sync + Clone + 'static {
    move || {
        let (queries, counters) = (queries.clone(), counters.clone());
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            let ask = Query::Ask(Box::new(move |control, view| {
                let _ = reply.send(input(control, view, &counters));
            }));
            if queries.send(ask).await.is_err() {
                return String::new();
            }
            answer.await.map_or_else(|_| String::new(), |input| metrics::exposition(&input))
        })
    }
}

fn input(control: &mut Control, view: &View<'_>, counters: &Counters) -> MetricsInput {
    let (node, not_after) = control.own_name();
    let peers = control.peers(view.now, view.live).peers;
    let states = PEER_STATES.map(|state| (state, peers.iter().filter(|p| p.state == state).count() as u64));
    let counts = counters.snapshot();
    let mut handshake: BTreeMap<&str, u64> = HANDSHAKE_REASONS.map(|r| (r, 0)).into();
    handshake.extend(control.counts().handshake_failures.iter().map(|(r, n)| (*r, *n)));
    let mut drops = Vec::new();
    for direction in [Direction::Outbound, Direction::Inbound] {
        let counts = counts.direction(direction);
        drops.extend(counts.dropped.iter().map(|(reason, n)| (direction.as_str(), reason.as_str(), *n)));
    }
    let names: Vec<_> = control.peer_names();
    let peers = names.iter().filter_map(|(ix, name, up)| {
        let shown = peers.iter().find(|p| p.name == name.as_str())?;
        let traffic = view.live.traffic(*ix);
        Some(PeerMetrics {
            peer: name.to_string(),
            up: *up,
            rtt_seconds: shown.rtt_seconds,
            path_mtu_bytes: shown.path_mtu_bytes,
            receive_bytes: traffic.receive_bytes,
            receive_packets: traffic.receive_packets,
            transmit_bytes: traffic.transmit_bytes,
            transmit_packets: traffic.transmit_packets,
        })
    });
    let peers = peers.collect();
    let routes = control.routes().routes;
    let active = control.egress_active();
    let network = |(name, ix): &(mesh_proto::NetworkName, crate::forward::fib::NetworkIx)| {
        let slot = usize::from(ix.0);
        let of = |direction| counts.direction(direction).networks.get(slot).copied().unwrap_or_default();
        let (out, inb) = (of(Direction::Outbound), of(Direction::Inbound));
        let here = routes.iter().filter(|r| r.network == name.as_str());
        NetworkMetrics {
            network: name.to_string(),
            receive_bytes: inb.traffic.bytes,
            receive_packets: inb.traffic.packets,
            transmit_bytes: out.traffic.bytes,
            transmit_packets: out.traffic.packets,
            mapped_outbound: out.mapped,
            mapped_inbound: inb.mapped,
            routes_by_state: ROUTE_STATES
                .map(|s| (s.to_owned(), here.clone().filter(|r| r.state == s).count() as u64))
                .to_vec(),
            egress_active: active
                .iter()
                .filter(|(n, ..)| n == name)
                .map(|(_, node, used)| (node.to_string(), *used))
                .collect(),
            egress_failovers: control.counts().egress_failovers.get(name).copied().unwrap_or(0),
        }
    };
    let networks = control.network_names().iter().map(network).collect();
    let handshakes = &control.counts().handshakes;
    let handshakes = Durations {
        buckets: HANDSHAKE_BUCKETS.into_iter().zip(handshakes.within).collect(),
        sum_seconds: handshakes.seconds,
        count: handshakes.count,
    };
    MetricsInput {
        reload_successful: !control.counts().reload_failed,
        handshakes,
        probes: Vec::new(),
        version: env!("CARGO_PKG_VERSION").into(),
        revision: option_env!("MESH_REVISION").unwrap_or("unknown").into(),
        node: node.to_string(),
        peers_by_state: states.to_vec(),
        peers,
        networks,
        drops,
        handshake_failures: handshake.into_iter().map(|(r, n)| (r.to_owned(), n)).collect(),
        certificate_expiry: vec![("node", not_after)],
        revocations: 0,
    }
}
