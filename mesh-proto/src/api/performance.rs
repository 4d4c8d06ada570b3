//! Why a node may be slow: `GET /v1/status?verbose=true`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Figures of the packet path, over one interval and since the start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Performance {
    /// Time between the two looks at the counters, which all figures are of that are not said to be of the start.
    pub interval_seconds: f64,
    /// Each packet thread.
    pub workers: Vec<WorkerPace>,
    /// Each network's TUN.
    pub tuns: Vec<TunOffloads>,
    /// The UDP socket.
    pub socket: SocketOffloads,
    /// Each peer whose tunnel is up.
    pub peers: Vec<PeerPace>,
    /// Where packets wait, and are dropped when it is full.
    pub queues: Vec<Queue>,
    /// What the figures tell, the most important first.
    pub advice: Vec<String>,
}

/// One packet thread.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerPace {
    /// Its name, that of the thread and the metrics.
    pub worker: String,
    /// Whose packets it carries; absent where it is all networks'.
    pub network: Option<String>,
    /// `outbound` (VM to mesh) or `inbound`.
    pub direction: String,
    /// In the interval.
    pub interval: Pace,
    /// Since the node started.
    pub since_start: Pace,
}

/// What a packet thread did in some time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Pace {
    /// Packets, as they would be on a wire.
    pub packets: u64,
    /// Share of the time that it worked, or waited for a full tunnel; 0 to 1.
    pub busy_share: f64,
    /// Share of the time that it waited for a full tunnel.
    pub waiting_share: f64,
    /// Packets handled in one go; absent where there were none, as is the next.
    pub packets_per_batch: Option<f64>,
    /// Packets in one read from the TUN (outbound), or joined to one write to it (inbound).
    pub packets_per_call: Option<f64>,
}

/// What the kernel does in larger pieces at one TUN.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TunOffloads {
    /// Its network.
    pub network: String,
    /// The device.
    pub tun: String,
    /// Unfinished checksums.
    pub csum: bool,
    /// TCP superpackets.
    pub tso: bool,
    /// UDP superpackets.
    pub uso: bool,
}

/// What the kernel does in larger pieces at the UDP socket.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SocketOffloads {
    /// Several datagrams a send (`UDP_SEGMENT`).
    pub gso: bool,
    /// Several datagrams a receive (`UDP_GRO`).
    pub gro: bool,
}

/// One peer's tunnel.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PeerPace {
    /// Its name.
    pub peer: String,
    /// How packets travel.
    pub transport: String,
    /// Round-trip time.
    pub rtt_seconds: Option<f64>,
    /// Largest inner packet.
    pub path_mtu_bytes: u32,
    /// UDP datagrams sent.
    pub datagrams: u64,
    /// Of them in one send; absent where none was sent.
    pub datagrams_per_send: Option<f64>,
    /// QUIC packets that the peer never acknowledged.
    pub lost_packets: u64,
    /// Bytes that wait to be encrypted and sent.
    pub send_buffer_bytes: u64,
}

/// A queue of the packet path; docs/queues.md has all of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Queue {
    /// Its name there; after a space, the device.
    pub queue: String,
    /// What waits at this moment, and what may; absent where only the drops are known.
    pub depth: Option<u64>,
    /// See there.
    pub limit: Option<u64>,
    /// `packets`, `superpackets`, `datagrams` or `batches`: what depth and limit count.
    pub unit: String,
    /// Packets dropped because it was full; superpackets at a device, datagrams at the socket.
    pub dropped: u64,
    /// The same since the node started; at a device since it was made.
    pub dropped_since_start: u64,
}
