//! Every metric: its name, its help, its labels. `docs/metrics.md` repeats them, and a test compares.

use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use super::input::{Durations, EgressMetrics, MetricsInput, NetworkMetrics, PeerMetrics, WorkerMetrics};
use crate::forward::counters::LaneCount;

/// Labels of one series, and its value.
type Sample<'a> = (Vec<(&'static str, &'a str)>, f64);

/// All of them, in the order of the document. A name without series, as of peers where there are none, is left out.
pub(super) fn all(input: &MetricsInput) -> Vec<MetricFamily> {
    let mut families = node(input);
    families.extend(peers(&input.peers));
    families.extend(networks(&input.networks));
    families.extend(egress(input));
    families.extend(workers(&input.workers));
    families.extend(super::process::families());
    families.retain(|family| !family.get_metric().is_empty());
    families
}

fn node(input: &MetricsInput) -> Vec<MetricFamily> {
    let build = vec![("version", input.version.as_str()), ("revision", input.revision.as_str())];
    let peers = input.peers_by_state.iter().map(|&(state, n)| (vec![("state", state)], n as f64));
    let drops = input
        .drops
        .iter()
        .map(|&(direction, reason, n)| (vec![("direction", direction), ("reason", reason)], n as f64));
    let failures =
        input.handshake_failures.iter().map(|(reason, n)| (vec![("reason", reason.as_str())], *n as f64));
    let expiry = input.certificate_expiry.iter().map(|&(role, at)| (vec![("role", role)], at as f64));
    vec![
        gauge("mesh_build_info", "Version and revision of the daemon; always 1.", [(build, 1.0)]),
        gauge("mesh_node_info", "Name of this node; always 1.", [(vec![("node", input.node.as_str())], 1.0)]),
        gauge(
            "mesh_config_last_reload_successful",
            "Whether the configuration was accepted when last read.",
            alone(truth(input.reload_successful)),
        ),
        gauge("mesh_peers", "Peers by state.", peers),
        counter(
            "mesh_dropped_packets_total",
            "Packets dropped by this node, by direction and reason; a superpacket counts as its segments.",
            drops,
        ),
        counter(
            "mesh_socket_dropped_datagrams_total",
            "Datagrams from other nodes that the kernel dropped because the buffer of this node's UDP socket was full, or this node because QUIC's queue behind it was. How many packets were in them is not known.",
            alone(input.socket_dropped as f64),
        ),
        counter(
            "mesh_unknown_lane_datagrams_total",
            "Datagrams that name a lane that this node does not have: of a run before this one, or forged; and all else that comes to the port of a worker after the first. They are not answered.",
            alone(input.unknown_lane as f64),
        ),
        counter("mesh_handshake_failures_total", "Handshakes that failed, by reason.", failures),
        durations(
            "mesh_handshake_duration_seconds",
            "How long handshakes that succeeded took.",
            [(Vec::new(), &input.handshakes)],
        ),
        counter(
            "mesh_records_refused_total",
            "Records of nodes that were passed on to this node and not accepted.",
            alone(input.records_refused as f64),
        ),
        gauge(
            "mesh_certificate_expiry_timestamp_seconds",
            "When a certificate that this node lives by ends: its own, and the one of the CA that vouches for it.",
            expiry,
        ),
        counter(
            "mesh_stray_probes_total",
            "Probes of peers for another session than the one there is, dropped: forged, or late. Malformed ones are dropped packets with reason bad_frame.",
            alone(input.stray_probes as f64),
        ),
        gauge("mesh_revocations", "Revoked certificates known.", alone(input.revocations as f64)),
    ]
}

fn peers(peers: &[PeerMetrics]) -> Vec<MetricFamily> {
    let each = |value: fn(&PeerMetrics) -> Option<f64>| {
        peers.iter().filter_map(move |p| Some((vec![("peer", p.peer.as_str())], value(p)?)))
    };
    let refused = peers.iter().flat_map(|p| {
        let LaneCount { duplicate, replayed, forged, .. } = p.lane;
        [("duplicate", duplicate), ("replayed", replayed), ("not_authentic", forged)]
            .map(|(reason, packets)| (vec![("peer", p.peer.as_str()), ("reason", reason)], packets as f64))
    });
    vec![
        gauge("mesh_peer_up", "Whether the tunnel to a peer is up.", each(|p| Some(truth(p.up)))),
        gauge(
            "mesh_peer_rtt_seconds",
            "Round-trip time to a peer, smoothed; only while its tunnel is up.",
            each(|p| p.rtt_seconds),
        ),
        gauge(
            "mesh_peer_path_mtu_bytes",
            "Largest inner packet on the path to a peer; only while its tunnel is up.",
            each(|p| p.path_mtu_bytes.map(f64::from)),
        ),
        counter(
            "mesh_peer_receive_bytes_total",
            "Bytes of inner packets from a peer.",
            each(|p| Some(p.receive.bytes as f64)),
        ),
        counter(
            "mesh_peer_receive_packets_total",
            "Inner packets from a peer, whatever became of them here.",
            each(|p| Some(p.receive.packets as f64)),
        ),
        counter(
            "mesh_peer_transmit_bytes_total",
            "Bytes of inner packets that the tunnel to a peer took.",
            each(|p| Some(p.transmit.bytes as f64)),
        ),
        counter(
            "mesh_peer_transmit_packets_total",
            "Inner packets that the tunnel to a peer took.",
            each(|p| Some(p.transmit.packets as f64)),
        ),
        counter(
            "mesh_peer_underlay_lost_packets_total",
            "Packets of lanes that a peer sent and that did not arrive: gaps in their numbers. Each may hold several inner packets.",
            each(|p| Some(p.lane.lost as f64)),
        ),
        counter(
            "mesh_peer_underlay_reordered_packets_total",
            "Packets of lanes from a peer that arrived after a later one.",
            each(|p| Some(p.lane.reordered as f64)),
        ),
        counter(
            "mesh_peer_lane_refused_packets_total",
            "Packets of lanes from a peer that were refused: a duplicate, one older than the replay window, or one that is not authentic.",
            refused,
        ),
    ]
}

fn networks(networks: &[NetworkMetrics]) -> Vec<MetricFamily> {
    let each = |value: fn(&NetworkMetrics) -> u64| {
        networks.iter().map(move |n| (vec![("network", n.network.as_str())], value(n) as f64))
    };
    let both = |value: fn(&NetworkMetrics) -> [u64; 2]| {
        networks.iter().flat_map(move |n| {
            ["outbound", "inbound"].into_iter().zip(value(n)).map(|(direction, packets)| {
                (vec![("network", n.network.as_str()), ("direction", direction)], packets as f64)
            })
        })
    };
    let routes = networks.iter().flat_map(|n| {
        n.routes_by_state
            .iter()
            .map(|&(state, count)| (vec![("network", n.network.as_str()), ("state", state)], count as f64))
    });
    vec![
        counter(
            "mesh_network_receive_bytes_total",
            "Bytes that a network received from the mesh.",
            each(|n| n.receive.bytes),
        ),
        counter(
            "mesh_network_receive_packets_total",
            "Packets that a network received from the mesh: its TUN device took them.",
            each(|n| n.receive.packets),
        ),
        counter(
            "mesh_network_transmit_bytes_total",
            "Bytes that a network sent to the mesh.",
            each(|n| n.transmit.bytes),
        ),
        counter(
            "mesh_network_transmit_packets_total",
            "Packets that a network sent to the mesh: a tunnel took them.",
            each(|n| n.transmit.packets),
        ),
        counter(
            "mesh_network_hairpin_bytes_total",
            "Bytes of packets that went back into the TUN device they came from.",
            each(|n| n.hairpin.bytes),
        ),
        counter(
            "mesh_network_hairpin_packets_total",
            "Packets that went back into the TUN device they came from: between VMs of this host by mesh address, and by this node as their egress.",
            each(|n| n.hairpin.packets),
        ),
        counter(
            "mesh_mapped_packets_total",
            "Packets whose addresses were mapped, by direction.",
            both(|n| [n.mapped_outbound, n.mapped_inbound]),
        ),
        counter(
            "mesh_tun_dropped_packets_total",
            "Packets that the kernel dropped at the TUN device, as the device counts: outbound, because its queue was full. They never came to this node, so mesh_dropped_packets_total does not have them.",
            both(|n| [n.tun_dropped_outbound, n.tun_dropped_inbound]),
        ),
        gauge("mesh_routes", "Routes of a network by state.", routes),
    ]
}

fn egress(input: &MetricsInput) -> Vec<MetricFamily> {
    let networks = &input.networks;
    let each = |value: fn(&EgressMetrics) -> f64| {
        networks.iter().flat_map(move |n| {
            n.egress
                .iter()
                .map(move |e| (vec![("network", n.network.as_str()), ("node", e.node.as_str())], value(e)))
        })
    };
    let carried = |value: fn(&NetworkMetrics) -> u64| {
        networks.iter().map(move |n| (vec![("network", n.network.as_str())], value(n) as f64))
    };
    let destinations = networks.iter().flat_map(|n| {
        n.egress_by_state
            .iter()
            .map(|&(state, count)| (vec![("network", n.network.as_str()), ("state", state)], count as f64))
    });
    let failovers = networks.iter().flat_map(|n| {
        n.egress_failovers
            .iter()
            .map(|&(cause, count)| (vec![("network", n.network.as_str()), ("cause", cause)], count as f64))
    });
    let probes = input.probes.iter().map(|(target, ok)| (vec![("target", target.as_str())], truth(*ok)));
    vec![
        gauge(
            "mesh_egress_active",
            "Whether an egress node is the one that this node's VMs leave by.",
            each(|e| truth(e.active)),
        ),
        gauge(
            "mesh_egress_pinned_flows",
            "Flows of this node's VMs in progress that stay with an egress node as long as it carries, elected or not.",
            each(|e| e.pinned_flows as f64),
        ),
        counter(
            "mesh_egress_flow_table_overflows_total",
            "Flows to the Internet that found no room in the table of flows, or lost it: they go to whichever egress node is elected.",
            carried(|n| n.flow_overflows),
        ),
        gauge(
            "mesh_egress_destinations",
            "Destinations of egress by state: active (by the first of the egress nodes), standby (by another), fallback (by this host instead), none.",
            destinations,
        ),
        counter(
            "mesh_egress_failovers_total",
            "Times another egress node took over, by cause; fallback and none: nobody was left to; returned: nobody had carried.",
            failovers,
        ),
        durations(
            "mesh_egress_failover_duration_seconds",
            "How long nobody carried, each time another egress node took over: from the last proof that the one before carried.",
            networks.iter().map(|n| (vec![("network", n.network.as_str())], &n.egress_outages)),
        ),
        counter(
            "mesh_egress_transmit_bytes_total",
            "Bytes of this node's VMs to the Internet, by egress node.",
            each(|e| e.transmit.bytes as f64),
        ),
        counter(
            "mesh_egress_transmit_packets_total",
            "Packets of this node's VMs to the Internet, by egress node; counted when given to its tunnel.",
            each(|e| e.transmit.packets as f64),
        ),
        counter(
            "mesh_egress_receive_bytes_total",
            "Bytes from the Internet to this node's VMs, by egress node.",
            each(|e| e.receive.bytes as f64),
        ),
        counter(
            "mesh_egress_receive_packets_total",
            "Packets from the Internet to this node's VMs, by egress node.",
            each(|e| e.receive.packets as f64),
        ),
        counter(
            "mesh_egress_carried_transmit_bytes_total",
            "Bytes that this node, as egress node, passed to the Internet for other nodes.",
            carried(|n| n.carried_transmit.bytes),
        ),
        counter(
            "mesh_egress_carried_transmit_packets_total",
            "Packets that this node, as egress node, passed to the Internet for other nodes.",
            carried(|n| n.carried_transmit.packets),
        ),
        counter(
            "mesh_egress_carried_receive_bytes_total",
            "Bytes that this node, as egress node, passed back from the Internet to other nodes.",
            carried(|n| n.carried_receive.bytes),
        ),
        counter(
            "mesh_egress_carried_receive_packets_total",
            "Packets that this node, as egress node, passed back from the Internet to other nodes.",
            carried(|n| n.carried_receive.packets),
        ),
        counter(
            "mesh_egress_lease_lost_total",
            "Times that this node did not run for so long that its kernel stopped to carry for other nodes.",
            alone(input.leases_lost as f64),
        ),
        gauge(
            "mesh_egress_probe_success",
            "Whether a probe target of an egress answers, as it is told to the mesh.",
            probes,
        ),
    ]
}

fn workers(workers: &[WorkerMetrics]) -> Vec<MetricFamily> {
    let each = |value: fn(&WorkerMetrics) -> f64| {
        workers
            .iter()
            .map(move |w| (vec![("worker", w.worker.as_str()), ("direction", w.direction)], value(w)))
    };
    vec![
        counter(
            "mesh_worker_receive_packets_total",
            "Packets that came to a packet thread: from its TUN device (outbound), or from all tunnels (inbound), with those that it came too late for. A superpacket counts as its segments.",
            each(|w| w.packets as f64),
        ),
        counter(
            "mesh_worker_superpackets_total",
            "Reads from a TUN device (outbound) or writes to one (inbound) that a packet thread made, of a packet or a superpacket each.",
            each(|w| w.superpackets as f64),
        ),
        counter(
            "mesh_worker_batches_total",
            "Batches that a packet thread handled.",
            each(|w| w.batches as f64),
        ),
        counter(
            "mesh_worker_busy_seconds_total",
            "Time that a packet thread spent on batches, waiting for a full tunnel included.",
            each(|w| w.busy_seconds),
        ),
    ]
}

fn durations<'a>(
    name: &str,
    help: &str,
    all: impl IntoIterator<Item = (Vec<(&'static str, &'a str)>, &'a Durations)>,
) -> MetricFamily {
    let series = all.into_iter().map(|(labels, observed)| histogram(labels, observed));
    named(name, help, MetricType::HISTOGRAM, series.collect())
}

fn histogram(labels: Vec<(&'static str, &str)>, observed: &Durations) -> Metric {
    let buckets = observed.buckets.iter().map(|&(bound, count)| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(bound);
        bucket.set_cumulative_count(count);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_sum(observed.sum_seconds);
    histogram.set_sample_count(observed.count);
    let mut metric = Metric::from_label(labels.into_iter().map(label).collect());
    metric.set_histogram(histogram);
    metric
}

/// One name with all its series.
fn family<'a>(
    name: &str,
    help: &str,
    kind: MetricType,
    samples: impl IntoIterator<Item = Sample<'a>>,
) -> MetricFamily {
    let metrics = samples.into_iter().map(|(labels, value)| {
        let mut metric = Metric::from_label(labels.into_iter().map(label).collect());
        if kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        metric
    });
    named(name, help, kind, metrics.collect())
}

fn named(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn label((name, value): (&str, &str)) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

pub(super) fn gauge<'a>(
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = Sample<'a>>,
) -> MetricFamily {
    family(name, help, MetricType::GAUGE, samples)
}

pub(super) fn counter<'a>(
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = Sample<'a>>,
) -> MetricFamily {
    family(name, help, MetricType::COUNTER, samples)
}

pub(super) fn alone(value: f64) -> [Sample<'static>; 1] {
    [(Vec::new(), value)]
}

fn truth(value: bool) -> f64 {
    f64::from(u8::from(value))
}
