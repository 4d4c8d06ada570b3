//! Gathers what the metrics endpoint shows: a question to the control loop, the packet loops' counters, and the devices'.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use super::metrics;
use super::metrics::input::{
    Durations, EgressMetrics, MetricsInput, NetworkMetrics, PeerMetrics, WorkerMetrics,
};
use super::query::{Query, View};
use super::quic::udp_sockets::udp_sockets;
use super::tun::drops::{DeviceDrops, device_drops};
use crate::control::Control;
use crate::control::egress::failover::{FailoverCause, OUTAGE_BUCKETS};
use crate::control::event::LocalNetwork;
use crate::control::gauges::EgressGauge;
use crate::control::observed::Observed;
use crate::control::status::Traffic;
use crate::forward::counters::{Counters, Direction, Flow, Snapshot, TrafficCount, Worker};
use crate::forward::fib::Egress;

/// Reasons that exist at 0 from the start: all there are.
const HANDSHAKE_REASONS: [&str; 27] = [
    "abandoned",
    "access_denied",
    "bad_certificate",
    "certificate_expired",
    "certificate_missing",
    "certificate_revoked",
    "closed",
    "connect",
    "leaving",
    "local",
    "name_mismatch",
    "no_application_protocol",
    "no_route",
    "other",
    "other_mesh",
    "prefix_not_allowed",
    "protocol",
    "removed",
    "reset",
    "resolve",
    "superseded",
    "timeout",
    "tls",
    "transport",
    "unknown_ca",
    "unsupported_certificate",
    "version",
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
            let kernel = KernelDrops { devices: device_drops(), socket: udp_sockets().dropped };
            let ask = Query::Ask(Box::new(move |control, view| {
                let _ = reply.send(input(control, view, &counters, &kernel));
            }));
            if queries.send(ask).await.is_err() {
                return String::new();
            }
            answer.await.map_or_else(|_| String::new(), |input| metrics::exposition(&input))
        })
    }
}

/// What the kernel dropped before, or after, this node could count it.
#[derive(Debug, Default)]
pub struct KernelDrops {
    /// At network devices, by name.
    pub devices: BTreeMap<String, DeviceDrops>,
    /// At the UDP socket.
    pub socket: u64,
}

/// All that a scrape tells.
pub fn input(control: &Control, view: &View<'_>, counters: &Counters, kernel: &KernelDrops) -> MetricsInput {
    let (node, _) = control.own_name();
    let counts = counters.snapshot();
    let mut failures: BTreeMap<&str, u64> = HANDSHAKE_REASONS.map(|r| (r, 0)).into();
    failures.extend(control.counts().handshake_failures.iter().map(|(r, n)| (*r, *n)));
    let drops = Direction::ALL.iter().flat_map(|&direction| {
        let dropped = &counts.direction(direction).dropped;
        dropped.iter().map(move |(reason, n)| (direction.as_str(), reason.as_str(), *n))
    });
    let networks = control.local_networks();
    let outbound = networks.iter().flat_map(|n| counts.outbound_workers(n.ix));
    let workers = outbound.chain(counts.inbound_workers());
    MetricsInput {
        reload_successful: !control.counts().reload_failed,
        handshakes: durations(&control.counts().handshakes),
        probes: control.probe_gauges(),
        version: env!("CARGO_PKG_VERSION").into(),
        revision: option_env!("MESH_REVISION").unwrap_or("unknown").into(),
        node: node.to_string(),
        peers_by_state: control.peers_by_state().to_vec(),
        peers: peers(control, view),
        networks: networks.iter().map(|n| network(n, control, view, &counts, &kernel.devices)).collect(),
        workers: workers.map(|w| worker(w, &counts)).collect(),
        drops: drops.collect(),
        handshake_failures: failures.into_iter().map(|(r, n)| (r.to_owned(), n)).collect(),
        socket_dropped: kernel.socket + counts.port_dropped,
        unknown_lane: counts.unknown_lane,
        records_refused: control.counts().records_refused,
        stray_probes: super::liveness::stray_probes(),
        leases_lost: control.counts().leases_lost,
        certificate_expiry: control.certificate_expiry(),
        revocations: 0,
    }
}

fn peers(control: &Control, view: &View<'_>) -> Vec<PeerMetrics> {
    let peer = |gauge: crate::control::gauges::PeerGauge<'_>| {
        let (receive, transmit) = split(gauge.traffic);
        PeerMetrics {
            peer: gauge.node.to_string(),
            up: gauge.up,
            rtt_seconds: gauge.rtt_seconds,
            path_mtu_bytes: gauge.path_mtu_bytes,
            receive,
            transmit,
            lane: gauge.underlay,
        }
    };
    control.peer_gauges(view.live).into_iter().map(peer).collect()
}

fn network(
    network: &LocalNetwork,
    control: &Control,
    view: &View<'_>,
    counts: &Snapshot,
    devices: &BTreeMap<String, DeviceDrops>,
) -> NetworkMetrics {
    let count = counts.network(network.ix);
    let device = devices.get(&network.tun).copied().unwrap_or_default();
    let pinned = view.live.pinned_flows(network.ix);
    let egress = |gauge: EgressGauge<'_>| {
        let (receive, transmit) = match gauge.peer {
            Some(peer) => split(view.live.egress(peer, network.ix)),
            None => (count.flow(Flow::OwnEgressReceive), count.flow(Flow::OwnEgressTransmit)),
        };
        let place = gauge.peer.map_or(Egress::Own, Egress::Peer);
        let pinned_flows = pinned.iter().filter(|p| p.egress == place).map(|p| p.flows).sum();
        EgressMetrics { node: gauge.node.to_string(), active: gauge.active, pinned_flows, receive, transmit }
    };
    NetworkMetrics {
        network: network.name.to_string(),
        receive: count.flow(Flow::Receive),
        transmit: count.flow(Flow::Transmit),
        hairpin: count.flow(Flow::Hairpin),
        mapped_outbound: count.mapped(Direction::Outbound),
        mapped_inbound: count.mapped(Direction::Inbound),
        tun_dropped_outbound: device.outbound,
        tun_dropped_inbound: device.inbound,
        routes_by_state: control.routes_by_state(network).to_vec(),
        egress_by_state: control.egress_by_state(network).to_vec(),
        egress: control.egress_gauges(network).into_iter().map(egress).collect(),
        flow_overflows: count.flow_overflows,
        carried_receive: count.flow(Flow::CarriedReceive),
        carried_transmit: count.flow(Flow::CarriedTransmit),
        egress_failovers: FailoverCause::ALL
            .map(|cause| {
                let key = (network.name.clone(), cause);
                (cause.as_str(), control.counts().egress_failovers.get(&key).copied().unwrap_or(0))
            })
            .to_vec(),
        egress_outages: match control.counts().egress_outages.get(&network.name) {
            Some(observed) => durations(observed),
            None => durations(&Observed::new(OUTAGE_BUCKETS)),
        },
    }
}

fn durations<const N: usize>(observed: &Observed<N>) -> Durations {
    Durations {
        buckets: observed.bounds.into_iter().zip(observed.within).collect(),
        sum_seconds: observed.seconds,
        count: observed.count,
    }
}

fn worker(worker: Worker, counts: &Snapshot) -> WorkerMetrics {
    let count = counts.worker(worker);
    WorkerMetrics {
        worker: worker.name(),
        direction: worker.direction().as_str(),
        packets: count.packets,
        superpackets: count.superpackets,
        batches: count.batches,
        busy_seconds: count.busy.as_secs_f64(),
    }
}

/// What was received, and what was sent.
fn split(traffic: Traffic) -> (TrafficCount, TrafficCount) {
    (
        TrafficCount { packets: traffic.receive_packets, bytes: traffic.receive_bytes },
        TrafficCount { packets: traffic.transmit_packets, bytes: traffic.transmit_bytes },
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use mesh_proto::hello::CloseCode;
    use quinn::ConnectionError;

    use super::*;
    use crate::io::quic::connection;

    #[test]
    fn every_reason_of_a_failed_handshake_exists_from_the_start() {
        let known: BTreeSet<&str> = HANDSHAKE_REASONS.into();
        assert_eq!(known.len(), HANDSHAKE_REASONS.len());
        let codes = (0..1000).filter_map(CloseCode::from_wire).map(CloseCode::reason);
        let alerts = (0..0x300).map(connection::alert_label);
        for reason in codes.chain(alerts) {
            assert!(known.contains(reason), "{reason}");
        }
        for error in [ConnectionError::TimedOut, ConnectionError::Reset, ConnectionError::LocallyClosed] {
            assert!(known.contains(connection::reason_of(&error).label), "{error}");
        }
        // the others are written where they are met
        let written = include_str!("quic/connection.rs").split("label: \"").skip(1);
        let written: Vec<&str> = written.filter_map(|rest| Some(rest.split_once('"')?.0)).collect();
        assert!(written.len() > 3);
        for reason in written {
            assert!(known.contains(reason), "{reason}");
        }
    }
}
