//! All that a scrape tells, as plain data: gathered by `io::scrape`, rendered by `families`.

use crate::forward::counters::{LaneCount, TrafficCount};

/// All that is told.
#[derive(Debug, Clone, Default)]
pub struct MetricsInput {
    /// Of the daemon.
    pub version: String,
    /// Of its sources.
    pub revision: String,
    /// This node.
    pub node: String,
    /// Whether the configuration was accepted when last read.
    pub reload_successful: bool,
    /// Number of peers in each state; all states, so that none is missing.
    pub peers_by_state: Vec<(&'static str, u64)>,
    /// Each peer.
    pub peers: Vec<PeerMetrics>,
    /// Each network.
    pub networks: Vec<NetworkMetrics>,
    /// Each packet thread.
    pub workers: Vec<WorkerMetrics>,
    /// Direction, reason, packets; all pairs from the start.
    pub drops: Vec<(&'static str, &'static str, u64)>,
    /// Reason, count; all reasons from the start.
    pub handshake_failures: Vec<(String, u64)>,
    /// How long handshakes that succeeded took.
    pub handshakes: Durations,
    /// Records of nodes that were not accepted.
    pub records_refused: u64,
    /// Probes of peers for another session.
    pub stray_probes: u64,
    /// Times that the lease of own egress roles ran out.
    pub leases_lost: u64,
    /// Datagrams that the kernel dropped at the UDP socket, or this node behind it.
    pub socket_dropped: u64,
    /// Datagrams that name a lane that this node does not have.
    pub unknown_lane: u64,
    /// Target of a probe, and whether the last one was answered.
    pub probes: Vec<(String, bool)>,
    /// Role (`node`, `ca`), seconds since 1970.
    pub certificate_expiry: Vec<(&'static str, i64)>,
    /// Revoked certificates known.
    pub revocations: u64,
}

/// A peer's numbers: inner packets, as this node sees them.
#[derive(Debug, Clone, Default)]
pub struct PeerMetrics {
    /// Its name.
    pub peer: String,
    /// Whether its tunnel is up.
    pub up: bool,
    /// Round-trip time, if up.
    pub rtt_seconds: Option<f64>,
    /// Largest inner packet, if up.
    pub path_mtu_bytes: Option<u32>,
    /// From the peer.
    pub receive: TrafficCount,
    /// To the peer.
    pub transmit: TrafficCount,
    /// What its lanes saw of the underlay.
    pub lane: LaneCount,
}

/// A network's numbers.
#[derive(Debug, Clone, Default)]
pub struct NetworkMetrics {
    /// Its name.
    pub network: String,
    /// From the mesh.
    pub receive: TrafficCount,
    /// To the mesh.
    pub transmit: TrafficCount,
    /// Back into the TUN.
    pub hairpin: TrafficCount,
    /// Packets whose addresses were mapped, from VM to mesh.
    pub mapped_outbound: u64,
    /// The same, from mesh to VM.
    pub mapped_inbound: u64,
    /// Packets that the kernel dropped at the TUN device, from VM to mesh.
    pub tun_dropped_outbound: u64,
    /// The same, from mesh to VM.
    pub tun_dropped_inbound: u64,
    /// Number of routes in each state.
    pub routes_by_state: Vec<(&'static str, u64)>,
    /// Number of egress destinations in each state.
    pub egress_by_state: Vec<(&'static str, u64)>,
    /// Candidates for egress.
    pub egress: Vec<EgressMetrics>,
    /// Flows that found no room in the table of flows.
    pub flow_overflows: u64,
    /// For other nodes, from the Internet.
    pub carried_receive: TrafficCount,
    /// For other nodes, to the Internet.
    pub carried_transmit: TrafficCount,
    /// Times that another egress node took over, by cause; all causes.
    pub egress_failovers: Vec<(&'static str, u64)>,
    /// How long nobody carried, each time that another egress node took over.
    pub egress_outages: Durations,
}

/// An egress node's numbers, as seen from where the traffic comes from.
#[derive(Debug, Clone, Default)]
pub struct EgressMetrics {
    /// Its name.
    pub node: String,
    /// Whether it is the one in use.
    pub active: bool,
    /// Flows in progress that stay with it.
    pub pinned_flows: u64,
    /// From the Internet.
    pub receive: TrafficCount,
    /// To the Internet.
    pub transmit: TrafficCount,
}

/// A packet thread's numbers.
#[derive(Debug, Clone, Default)]
pub struct WorkerMetrics {
    /// Its name.
    pub worker: String,
    /// Which way its packets go.
    pub direction: &'static str,
    /// Packets that came to it.
    pub packets: u64,
    /// Reads from a TUN, or writes to one.
    pub superpackets: u64,
    /// Batches.
    pub batches: u64,
    /// Time spent on them.
    pub busy_seconds: f64,
}

/// Observed durations.
#[derive(Debug, Clone, Default)]
pub struct Durations {
    /// Upper bound in seconds, and how many took at most that long.
    pub buckets: Vec<(f64, u64)>,
    /// Sum of all.
    pub sum_seconds: f64,
    /// Number of all.
    pub count: u64,
}
