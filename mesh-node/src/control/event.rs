//! `Input` and `Output`: the whole vocabulary of `Control`, as plain data.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_proto::hello::{CloseCode, Hello, Message};
use mesh_proto::identity::Identity;
use mesh_proto::record::SignedRecord;
use mesh_proto::trace::{TraceReply, TraceRequest};
use mesh_proto::{NetworkName, NodeId, Prefix};
use serde::{Deserialize, Serialize};

use super::Trust;
use super::drain::{FlowCount, FlowWatch, Forget};
use super::host::HostState;
use super::liveness::{Change, ProbeParams};
use super::uplink::Report;
use crate::config::uplink::UplinkConfig;
use crate::config::{AnnounceConfig, EgressChoice, EgressConfig, EgressRules, ForeignChains};
use crate::forward::fib::{Expose, NetworkIx, NetworkSpec, PeerIx};
use crate::notice::Notice;

/// A moment, by both clocks: timers run on `mono`, records and certificates on `unix_ms`.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Monotonic.
    pub mono: Instant,
    /// Milliseconds since 1970.
    pub unix_ms: u64,
}

/// One QUIC connection, numbered by `io`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// Why a tunnel ended, or never came to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Metric label.
    pub label: &'static str,
    /// For people: what happened, with the values.
    pub text: String,
}

/// Whom to dial.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A configured endpoint (`host:port`) of which no node is known yet.
    Seed(String),
    /// A node.
    Node(NodeId),
}

/// One network of this node, with its interface looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalNetwork {
    /// Its number here.
    pub ix: NetworkIx,
    /// Its name.
    pub name: NetworkName,
    /// Segment interface.
    pub interface: String,
    /// TUN device.
    pub tun: String,
    /// (local subnet, mesh prefix).
    pub maps: Vec<(Prefix, Prefix)>,
    /// (local subnet, the host's address in it).
    pub gateways: Vec<(Prefix, IpAddr)>,
    /// Announced prefixes.
    pub announce: Vec<AnnounceConfig>,
    /// Preferred egress.
    pub egress: EgressChoice,
    /// How one of several is elected.
    pub egress_rules: EgressRules,
}

/// All that this node is told of itself.
#[derive(Debug, Clone)]
pub struct LocalNode {
    /// From the certificate.
    pub identity: Identity,
    /// Rises at each start.
    pub generation: u64,
    /// Endpoints told to others.
    pub endpoints: Vec<SocketAddr>,
    /// Networks carried.
    pub networks: Vec<LocalNetwork>,
    /// Egress configured: offered to others if the certificate allows, and how "local" leaves.
    pub egress: Vec<EgressConfig>,
    /// What egress refuses unless opened by name: this host's addresses and connected networks.
    pub connected: Vec<Prefix>,
    /// Connected networks by device, segments excepted.
    pub links: Vec<(String, Prefix)>,
    /// What of the host the mesh may reach.
    pub expose: Vec<Expose>,
    /// Peers from the file.
    pub seeds: Vec<(String, Option<NodeId>)>,
    /// Uplink devices, by the main routing table.
    pub uplinks: Vec<String>,
    /// The largest packet that an interface with one of our endpoints carries.
    pub underlay_mtu: u32,
    /// Limit of inner packets, if configured.
    pub mtu: Option<u32>,
    /// What to do about others' chains that drop our traffic.
    pub foreign_chains: ForeignChains,
    /// How egress nodes are probed.
    pub probe: ProbeParams,
    /// The same for the node behind an endpoint of the file, where that says so.
    pub probes: BTreeMap<String, ProbeParams>,
}

/// State kept on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    /// Endpoints of peers added at run time.
    pub peers: Vec<String>,
    /// Nodes removed by the operator: not dialled, not let in until added again.
    pub removed: Vec<NodeId>,
    /// Egress nodes that the operator has forced.
    pub egress_used: BTreeMap<NetworkName, NodeId>,
    /// The operator has taken this node's egress out of use.
    pub egress_drained: bool,
    /// Who carries this node's own traffic.
    pub egress_elected: Vec<SavedPost>,
    /// Records, own included.
    pub records: Vec<SignedRecord>,
}

/// Who carries a destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedPost {
    /// Of this network.
    pub network: NetworkName,
    /// The destination.
    pub destination: Prefix,
    /// Those in use.
    pub elected: Vec<NodeId>,
    /// Those that have failed.
    pub failed: Vec<NodeId>,
}

/// What a reload puts in place of what was.
#[derive(Debug)]
pub struct Reloaded {
    /// Of the node; its generation and name do not change.
    pub local: LocalNode,
    /// Certificate, key and CAs, read anew.
    pub trust: Trust,
}

/// What happens to `Control`.
#[derive(Debug)]
pub enum Input {
    /// A tunnel's hello has arrived.
    TunnelUp {
        /// The connection.
        conn: ConnId,
        /// From its certificate.
        identity: Identity,
        /// Where the peer is.
        endpoint: SocketAddr,
        /// What we had dialled, if we did.
        dialed: Option<Target>,
        /// What it said.
        hello: Hello,
        /// How long handshake and hello took.
        took: Duration,
    },
    /// A tunnel that was up has ended.
    TunnelClosed {
        /// The connection.
        conn: ConnId,
        /// Why.
        reason: Reason,
    },
    /// A dial came to nothing.
    DialFailed {
        /// What was dialled.
        target: Target,
        /// Where.
        endpoint: String,
        /// Why.
        reason: Reason,
    },
    /// Somebody dialled us and was refused, or gave up.
    AcceptFailed {
        /// From where.
        endpoint: SocketAddr,
        /// Name in its certificate, as far as one was read.
        node: Option<NodeId>,
        /// Why.
        reason: Reason,
    },
    /// A control message.
    Message {
        /// From.
        conn: ConnId,
        /// What.
        message: Message,
    },
    /// Largest inner packet of a tunnel has changed.
    TunnelMtu {
        /// The tunnel.
        conn: ConnId,
        /// Bytes.
        mtu: u32,
    },
    /// Probes of a tunnel say something new of its other end.
    Liveness {
        /// The tunnel.
        conn: ConnId,
        /// What.
        change: Change,
    },
    /// This node did not run for so long: meanwhile its kernel carried nothing for others.
    LeaseLost(Duration),
    /// The lease of this node's egress roles can be renewed, or not and why; told when that has changed.
    LeaseRenewed(Result<(), String>),
    /// A packet wanted to go to a peer without a tunnel.
    Wanted(PeerIx),
    /// Addresses of the host have changed.
    Endpoints(Vec<SocketAddr>),
    /// The kernel is as it should be; what had to be repaired.
    HostSynced(Vec<String>),
    /// Something else of ours was gone and has been put back.
    Repaired(String),
    /// An authenticated peer broke the protocol, or takes no messages: its connection has been closed with these words.
    Breach {
        /// The connection.
        conn: ConnId,
        /// How.
        text: String,
    },
    /// The kernel could not be brought there.
    HostFailed(String),
    /// Foreign chains that drop our traffic: what, and the command that mends it.
    ForeignChains(Vec<(String, String)>),
    /// Ask another node about a packet.
    TraceAsk {
        /// Whom.
        node: NodeId,
        /// What.
        request: TraceRequest,
    },
    /// The configuration was read anew: accepted, or rejected and without effect.
    Reload(Result<Box<Reloaded>, ()>),
    /// An own uplink carries, or does not any more.
    Uplink {
        /// Which.
        uplink: UplinkConfig,
        /// How it is.
        report: Report,
    },
    /// Tracked connections of this node's egress were counted, or why they cannot be.
    FlowsCounted(Result<FlowCount, String>),
    /// The node is to stop: hand flows over, then `Output::Gone`.
    Stop,
    /// The node stops: say goodbye.
    Leave,
}

/// A tunnel as packets see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelSpec {
    /// Peer.
    pub peer: PeerIx,
    /// Connection.
    pub conn: ConnId,
    /// Our network -> the peer's handle for it.
    pub handles: Vec<Option<u8>>,
}

/// What `Control` wants done.
#[derive(Debug)]
pub enum Output {
    /// Swap what packets see. Always before the host state that sends packets there.
    Publish {
        /// Networks by index.
        networks: Vec<Option<NetworkSpec>>,
        /// Tunnels that are up.
        tunnels: Vec<TunnelSpec>,
    },
    /// Bring the kernel there.
    SyncHost(Arc<HostState>),
    /// Open a connection.
    Dial {
        /// For whom.
        target: Target,
        /// Where: `host:port`.
        endpoint: String,
        /// Who must answer.
        expect: Option<NodeId>,
    },
    /// Give up a dial that has not got through: the tunnel has come another way.
    CancelDial(Target),
    /// End a connection.
    Close {
        /// Which.
        conn: ConnId,
        /// Code.
        code: CloseCode,
        /// Words for the other side's log.
        text: String,
    },
    /// Say something.
    Send {
        /// To whom.
        conn: ConnId,
        /// What.
        message: Message,
    },
    /// All tunnels to be probed, and how.
    Probe(BTreeMap<ConnId, ProbeParams>),
    /// Count tracked connections, time and again; none: no longer.
    CountFlows(Option<FlowWatch>),
    /// Delete tracked connections with these marks.
    ForgetFlows(Vec<Forget>),
    /// Nothing keeps the node from stopping, after this time.
    Gone {
        /// In which packets still pass.
        after: Duration,
    },
    /// What new connections say first.
    Hello(Hello),
    /// Put on disk.
    Save(Saved),
    /// Let the operator know.
    Tell(Notice),
    /// The answer to `Input::TraceAsk`.
    Traced {
        /// Of the request.
        id: u64,
        /// The answer, or why there is none.
        answer: Result<TraceReply, String>,
    },
    /// A peer asks about a packet; `Control::trace_answer` takes the answer.
    TraceWanted {
        /// Whose question.
        conn: ConnId,
        /// What.
        request: TraceRequest,
    },
}
