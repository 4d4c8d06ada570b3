//! Answers of the control socket, which are also what `mesh-ctl --json` prints. Versioned by `schema`; fields are added, never
//! renamed. Times are RFC 3339, sizes bytes, durations seconds; a state that is not the good one has a `reason`.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Prefix;

mod events;
mod performance;

pub use self::events::{Event, FieldValue, LogLevel, LogLevelSet};
pub use self::performance::{Pace, PeerPace, Performance, Queue, SocketOffloads, TunOffloads, WorkerPace};

/// Version of all answers.
pub const SCHEMA: u32 = 1;

/// `GET /v1/status`, or `GET /v1/status?verbose=true`, which takes a second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// `SCHEMA`.
    pub schema: u32,
    /// This node.
    pub node: String,
    /// Its mesh.
    pub mesh: String,
    /// Of the daemon.
    pub version: String,
    /// `ok` or `degraded`.
    pub state: String,
    /// Why it is degraded, the most important first.
    pub reasons: Vec<String>,
    /// Worth knowing, but no degradation: repairs, notes on paths and offloads.
    pub notes: Vec<String>,
    /// When the certificate ends.
    pub certificate_expires: String,
    /// Peers by state.
    pub peers_up: usize,
    /// Configured or learned, did not leave politely, and not up.
    pub peers_down: usize,
    /// Why it may be slow; only where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub performance: Option<Performance>,
}

/// `GET /v1/peers`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Peers {
    /// `SCHEMA`.
    pub schema: u32,
    /// All of them.
    pub peers: Vec<Peer>,
}

/// A peer; `GET /v1/peers/NAME` wraps one in `PeerAnswer`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Peer {
    /// Its name; for an endpoint where no node is known, the endpoint; for a refused stranger, its address.
    pub name: String,
    /// `up`, `dialing`, `down`, `left`, `refused`.
    pub state: String,
    /// Metric label of why it is not up.
    pub reason: Option<String>,
    /// The same in words.
    pub detail: Option<String>,
    /// Where it is, or is looked for.
    pub endpoint: Option<String>,
    /// Endpoints known.
    pub endpoints: Vec<String>,
    /// `file`, `runtime` or `learned`.
    pub origin: String,
    /// Since when it is in this state.
    pub since: String,
    /// Round-trip time.
    pub rtt_seconds: Option<f64>,
    /// Largest inner packet.
    pub path_mtu_bytes: Option<u32>,
    /// How packets to it travel: `lanes`, or `datagram`, the standard mode.
    pub transport: Option<String>,
    /// The lane they travel on.
    pub lane: Option<Lane>,
    /// When its certificate ends.
    pub certificate_expires: Option<String>,
    /// Inner packets and bytes.
    pub receive_packets: u64,
    /// See there.
    pub receive_bytes: u64,
    /// See there.
    pub transmit_packets: u64,
    /// See there.
    pub transmit_bytes: u64,
    /// Networks it carries, as `name: prefixes`.
    pub networks: Vec<String>,
}

/// Packets' own keys beside the connection of a tunnel, and what was seen of the underlay on the way from the peer. Counts are
/// in packets of lanes, each of which may hold several inner packets, over all lanes from this peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Lane {
    /// What protects it.
    pub cipher: String,
    /// From 0, of this connection.
    pub number: u32,
    /// How long it has been in use.
    pub age_seconds: f64,
    /// Packets that it may still carry; the next lane takes over at half of them.
    pub packets_left: u64,
    /// Sent by the peer and missing here.
    pub lost_packets: u64,
    /// Came after a later one.
    pub reordered_packets: u64,
    /// Not authentic, or not for the first time.
    pub refused_packets: u64,
    /// UDP ports, ours -> the peer's, between which packets of our further packet workers do not get through: they take the first one's.
    #[serde(default)]
    pub unheard_ports: Vec<String>,
}

/// `GET /v1/peers/NAME`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PeerAnswer {
    /// `SCHEMA`.
    pub schema: u32,
    /// The peer.
    pub peer: Peer,
}

/// `POST /v1/peers`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PeerAdd {
    /// `host:port`.
    pub endpoint: String,
}

/// An answer to a change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Done {
    /// `SCHEMA`.
    pub schema: u32,
    /// What was done.
    pub done: String,
}

/// `GET /v1/networks`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Networks {
    /// `SCHEMA`.
    pub schema: u32,
    /// All of them.
    pub networks: Vec<Network>,
}

/// A network of this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Segment interface.
    pub interface: String,
    /// TUN device.
    pub tun: String,
    /// Local subnets.
    pub subnets: Vec<Prefix>,
    /// Mesh prefixes, in the order of the subnets.
    pub prefixes: Vec<Prefix>,
    /// Announced prefixes.
    pub announced: Vec<Prefix>,
    /// As configured.
    pub egress: String,
    /// Nodes that carry it, besides this one.
    pub nodes: usize,
}

/// `GET /v1/routes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Routes {
    /// `SCHEMA`.
    pub schema: u32,
    /// All of them.
    pub routes: Vec<Route>,
}

/// A prefix and its owner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Route {
    /// The network.
    pub network: String,
    /// The prefix.
    pub prefix: Prefix,
    /// The owner.
    pub node: String,
    /// `mesh` or `announced`.
    pub kind: String,
    /// `local`, `installed`, `unreachable` or `conflict`.
    pub state: String,
    /// Why it is not installed.
    pub reason: Option<String>,
    /// Largest packet on it.
    pub mtu: Option<u32>,
}

/// `GET /v1/routes/get?address=A`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RouteGet {
    /// `SCHEMA`.
    pub schema: u32,
    /// Asked for.
    pub address: IpAddr,
    /// The longest match of each network.
    pub routes: Vec<Route>,
    /// Why there is none.
    pub reason: Option<String>,
    /// Network by network, step by step, what led there or what stands against it.
    pub checks: Vec<RouteCheck>,
}

/// A step from an announcement to a route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RouteCheck {
    /// The network.
    pub network: String,
    /// `announced`, `authorised`, `installed`, `kernel`.
    pub step: String,
    /// `yes` or `no`.
    pub state: String,
    /// By which record, certificate or rule; or what stops it, and the remedy.
    pub text: String,
}

/// `GET /v1/egress`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EgressAnswer {
    /// `SCHEMA`.
    pub schema: u32,
    /// Per network and destination.
    pub egress: Vec<Egress>,
}

/// Who carries a destination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Egress {
    /// The network.
    pub network: String,
    /// The destination.
    pub destination: Prefix,
    /// `active`, `standby` (not the preferred one), `none`, `fallback` (none, and this host carries), `local`, `refused`.
    pub state: String,
    /// Why it is not `active`.
    pub reason: Option<String>,
    /// The node in use; the first of them, where flows are spread.
    pub elected: Option<String>,
    /// All nodes in use: more than one where flows are spread.
    #[serde(default)]
    pub elected_nodes: Vec<String>,
    /// The node that an operator has named.
    #[serde(default)]
    pub forced: Option<String>,
    /// In order of preference.
    pub candidates: Vec<Candidate>,
    /// The last time that the role went to another node, or to none.
    #[serde(default)]
    pub last_failover: Option<Failover>,
}

/// A change of who carries a destination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Failover {
    /// When.
    pub at: String,
    /// Why: `tunnel`, `liveness`, `uplink`, `drain`, `left`, `preferred`, `preempt`, `operator`, `hold_down` as to who carried
    /// before; `returned` where nobody did.
    pub cause: String,
    /// Who carried before.
    pub from: Option<String>,
    /// Who carries since.
    pub to: Option<String>,
    /// From the last proof that the one before carried; none while nobody does.
    pub duration_seconds: Option<f64>,
}

/// A candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Candidate {
    /// Who.
    pub node: String,
    /// `alive`; `held_down`: it fails again and again; `draining`; `drained`; `uplink_down`; `silent`: its tunnel is up, and probes
    /// are not answered; `down`.
    pub state: String,
    /// Why it is not `alive`.
    #[serde(default)]
    pub reason: Option<String>,
    /// Since when it is in this state.
    #[serde(default)]
    pub since: String,
    /// When its hold-down ends.
    #[serde(default)]
    pub held_down_until: Option<String>,
    /// Flows in progress that stay with it.
    #[serde(default)]
    pub flows: u64,
}

/// `POST /v1/egress/use`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EgressUse {
    /// The egress node; none: by the order again.
    pub node: Option<String>,
    /// Of this network alone.
    pub network: Option<String>,
}

/// `POST /v1/egress/drain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EgressDrainAsk {
    /// How long flows in progress may stay.
    pub deadline_seconds: u64,
}

/// Its answer, and that of `GET /v1/egress/drain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EgressDrain {
    /// `SCHEMA`.
    pub schema: u32,
    /// Of this node's own egress: `in use`, `draining` (flows in progress stay) or `drained`.
    pub state: String,
    /// Why it is not in use.
    pub reason: Option<String>,
    /// When flows in progress are cut.
    pub until: Option<String>,
    /// Flows in progress; none while they have not been counted.
    pub flows: Option<u64>,
    /// What this breaks.
    pub warnings: Vec<String>,
}

/// `POST /v1/trace`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TraceAsk {
    /// The network, where more than one would fit.
    pub network: Option<String>,
    /// A VM's address, as the VM sees it.
    pub from: IpAddr,
    /// The node the VM is on; none: the one asked.
    #[serde(default)]
    pub from_node: Option<String>,
    /// Where to.
    pub to: IpAddr,
    /// Where given, `to` is an address as a VM of this node has it.
    #[serde(default)]
    pub to_node: Option<String>,
    /// `icmp`, `tcp` or `udp`; none: `icmp`.
    #[serde(default)]
    pub protocol: Option<String>,
    /// Destination port, of TCP and UDP.
    #[serde(default)]
    pub dport: Option<u16>,
    /// Follow the answer as well.
    #[serde(default, rename = "return")]
    pub back: bool,
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Trace {
    /// `SCHEMA`.
    pub schema: u32,
    /// `arrives`, `refused`, or `unknown` where a node on the way did not answer.
    pub state: String,
    /// Why it does not arrive.
    pub reason: Option<String>,
    /// The network it is in.
    #[serde(default)]
    pub network: Option<String>,
    /// In order.
    pub hops: Vec<Hop>,
}

/// A line of a packet's journey.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Hop {
    /// From 1.
    pub hop: usize,
    /// Node, `vm`, or `internet`.
    pub host: String,
    /// As the packet leaves this hop.
    pub source: IpAddr,
    /// As the packet leaves this hop.
    pub destination: IpAddr,
    /// What was done.
    pub action: String,
    /// The node it is on, or whose VM or uplink it is.
    #[serde(default)]
    pub node: String,
    /// Device of that node on which the packet can be seen.
    #[serde(default)]
    pub device: Option<String>,
    /// `forward`, or `return` for the answer.
    #[serde(default)]
    pub direction: String,
    /// `passes` or `refused`.
    #[serde(default)]
    pub state: String,
}

/// What `mesh-ctl ping` found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ping {
    /// `SCHEMA`.
    pub schema: u32,
    /// As asked: a peer's name, or an address.
    pub target: String,
    /// `answered`; `narrow`: but not packets as large as the path MTU; `partly`: some were lost; `lost`; `too big`; `no route`.
    pub state: String,
    /// Why it is not `answered`.
    pub reason: Option<String>,
    /// The node that has the target.
    pub node: Option<String>,
    /// Where the node is, unless it is this one.
    pub endpoint: Option<String>,
    /// How packets travel there.
    pub transport: Option<String>,
    /// The network, of an address.
    pub network: Option<String>,
    /// Largest inner packet on the path.
    pub path_mtu_bytes: Option<u32>,
    /// Bytes of the inner packets sent.
    pub size_bytes: u32,
    /// Round trips in order; none for an echo that was lost.
    pub rtts_seconds: Vec<Option<f64>>,
    /// Largest inner packet that was answered, where sizes were tried.
    pub largest_bytes: Option<u32>,
}

/// `POST /v1/ping`: one echo over a peer's tunnel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EchoAsk {
    /// The peer's name.
    pub peer: String,
    /// Bytes of the inner packet that the echo stands for.
    pub size: u32,
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EchoAnswer {
    /// `SCHEMA`.
    pub schema: u32,
    /// `answered`, `lost` or `too big`.
    pub state: String,
    /// Why it is not `answered`.
    pub reason: Option<String>,
    /// Round trip.
    pub rtt_seconds: Option<f64>,
}

/// `POST /v1/reload`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reload {
    /// `SCHEMA`.
    pub schema: u32,
    /// `applied` (also when nothing differs), `needs restart` (for some of it), or `rejected`: nothing was applied.
    pub state: String,
    /// Why it is not `applied`: every error, a line each.
    pub reason: Option<String>,
    /// What differs from the configuration in effect.
    pub changes: Vec<ReloadChange>,
}

/// A difference that a reload found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReloadChange {
    /// `SECTION: KEY`, or a whole section.
    pub key: String,
    /// Value in effect before, as TOML.
    pub before: Option<String>,
    /// Value in the file.
    pub after: Option<String>,
    /// `applied`, `needs restart` or `rejected`.
    pub state: String,
}

/// Any refusal: `application/problem+json` (RFC 9457).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// What, and the remedy.
    pub title: String,
}
