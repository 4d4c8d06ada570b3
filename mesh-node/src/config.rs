//! The configuration file. The document is walked, not deserialized: a deserializer stops at its first error, and an
//! operator wants all of them at once, each with line, key, value and remedy.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use mesh_proto::limits::MAX_WORKERS;
use mesh_proto::{NetworkName, NodeId, Prefix};

use crate::forward::fib::Expose;

mod check;
pub mod document;
pub mod offloads;
pub mod reference;
mod rules;
pub mod uplink;
mod walk;

use offloads::{Offload, Offloads};
pub use rules::{EgressFallback, EgressRules};
use uplink::{DEFAULT_COUNT, DEFAULT_INTERVAL, MAX_COUNT, UplinkConfig};
use walk::{Section, Walk};

/// A whole configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file it came from.
    pub path: PathBuf,
    /// `[node]`.
    pub node: NodeConfig,
    /// Each `[[peer]]`.
    pub peers: Vec<PeerConfig>,
    /// Each `[[network]]`.
    pub networks: Vec<NetworkConfig>,
    /// Each `[[egress]]`.
    pub egress: Vec<EgressConfig>,
}

/// `[node]`; `metrics` is none when off, `mtu` when automatic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// UDP address of the underlay.
    pub listen: SocketAddr,
    /// Where Prometheus scrapes; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Certificates of the mesh's CAs.
    pub ca: PathBuf,
    /// This node's certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// What is kept over restarts.
    pub state_dir: PathBuf,
    /// Where `mesh-ctl` asks.
    pub control_socket: PathBuf,
    /// Endpoints told to others; empty: found by ourselves.
    pub advertise: Vec<SocketAddr>,
    /// A dead peer is seen within three of these.
    pub keepalive: Duration,
    /// How egress nodes are probed.
    pub probe: ProbeParams,
    /// Largest inner packet; `None`: what the path carries.
    pub mtu: Option<u32>,
    /// What of this host the mesh may reach.
    pub expose: Vec<Expose>,
    /// What becomes of routes at a polite stop.
    pub on_stop: OnStop,
    /// What to do about others' chains that drop our traffic.
    pub foreign_chains: ForeignChains,
    /// How packets travel.
    pub transport: Transport,
    /// Packets after which the next lane takes over.
    pub lane_packets: u32,
    /// Packet workers: 1 to `MAX_WORKERS`, without lanes one. That of number `w` listens on the port of `listen` and `w`.
    pub workers: u8,
    /// What the kernel may do in larger pieces.
    pub offloads: Offloads,
}

/// How packets travel to peers that can do the same; to all others they travel as datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// DATAGRAM frames of QUIC connections (RFC 9221).
    Datagram,
    /// Packets of QUIC's shape with keys of their own.
    Lanes,
}

/// Half of what AES-GCM may protect with one key (RFC 9001 section 6.6).
pub const LANE_PACKETS: u32 = 1 << 22;

/// How an egress node is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeParams {
    /// Between two probes.
    pub interval: Duration,
    /// So many may be missing.
    pub multiplier: u8,
}

impl ProbeParams {
    /// Dead after 150 ms: late enough for a busy host to be scheduled, early enough for nobody to notice.
    pub const DEFAULT: Self = Self { interval: Duration::from_millis(50), multiplier: 3 };
}

/// What becomes of the routes at a polite stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnStop {
    /// They go.
    Remove,
    /// What refuses stays until the next start.
    Block,
}

/// What to do about a user's forward chain that drops mesh traffic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ForeignChains {
    /// Name it in the status.
    #[default]
    Report,
    /// Put two accept rules there.
    Insert,
}

/// `[[peer]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// `host:port`.
    pub endpoint: String,
    /// Who must answer.
    pub name: Option<NodeId>,
    /// How it is probed as an egress node; `None`: as `[node]` says.
    pub probe: Option<ProbeParams>,
    /// Where it stands.
    pub line: usize,
}

/// `[[network]]`; no subnets: read from the interface; no prefixes: equal to the subnets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Its name.
    pub name: NetworkName,
    /// The host-only interface.
    pub interface: String,
    /// Local subnets; empty: the interface's.
    pub subnets: Vec<Prefix>,
    /// Mesh prefixes; empty: equal to the subnets.
    pub prefixes: Vec<Prefix>,
    /// Further prefixes behind the interface.
    pub announce: Vec<AnnounceConfig>,
    /// How it leaves the mesh.
    pub egress: EgressChoice,
    /// How one of several is elected.
    pub egress_rules: EgressRules,
    /// Where it stands.
    pub line: usize,
}

/// One item of `announce`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnounceConfig {
    /// The prefix.
    pub prefix: Prefix,
    /// The VM that routes it; `None`: on link.
    pub via: Option<IpAddr>,
    /// Its Internet traffic takes the host's own uplink, not the egress node.
    pub internet_own: bool,
}

/// Which nodes a network leaves the mesh by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EgressChoice {
    /// It does not.
    None,
    /// This host.
    Local,
    /// Any that offers, by priority.
    Auto,
    /// These, in order.
    Nodes(Vec<NodeId>),
}

/// `[[egress]]`; no `snat`: masquerade; no `destination`: the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressConfig {
    /// For which networks.
    pub networks: Vec<NetworkName>,
    /// The uplink.
    pub interface: String,
    /// Source addresses, at most one a family; a family without one is masqueraded.
    pub snat: Vec<IpAddr>,
    /// What it carries to; empty: everything but private ranges and this host.
    pub destination: Vec<Prefix>,
    /// Lower is preferred by `egress = "auto"`.
    pub priority: u32,
    /// What shows whether the uplink carries.
    pub uplink: UplinkConfig,
    /// Where it stands.
    pub line: usize,
}

/// A network with what its interface says filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedNetwork {
    /// Subnet and mesh prefix.
    pub maps: Vec<(Prefix, Prefix)>,
    /// Subnet and the interface's own address within.
    pub subnets_with_gateway: Vec<(Prefix, IpAddr)>,
}

/// One thing wrong with the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// From 1.
    pub line: usize,
    /// Key, value, what is wrong, remedy.
    pub text: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.text)
    }
}

/// All that is wrong with the file, by line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl NodeConfig {
    /// Takes over from the running node what counts at the next start only; see `document`.
    pub fn keep(&mut self, running: &Self) {
        self.listen = running.listen;
        self.state_dir.clone_from(&running.state_dir);
        self.control_socket.clone_from(&running.control_socket);
        self.keepalive = running.keepalive;
        self.workers = running.workers;
        self.offloads = running.offloads;
        self.transport = running.transport;
        self.lane_packets = running.lane_packets;
    }
}

impl Config {
    /// Reads and checks the text of a file; `path` is for the messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigErrors> {
        let (config, errors) = Self::read(text, path);
        if errors.0.is_empty() { Ok(config) } else { Err(errors) }
    }

    /// What could be read, and all that is wrong: so that whoever looks at interfaces and certificates as well can tell
    /// everything at once.
    pub fn read(text: &str, path: &Path) -> (Self, ConfigErrors) {
        let mut w = Walk::new(text, path);
        let config = w.document(path);
        let walked = w.errors.len();
        check::check(&config, &mut w);
        for error in w.errors.iter_mut().skip(walked) {
            error.line = key_line(text, error.line, &error.text);
        }
        w.errors.sort_by_key(|e| e.line);
        (config, ConfigErrors(w.errors))
    }
}

/// Line of the key that an error begins with, in the table whose header stands in line `table`; the header's own if the
/// key is not written there.
pub(crate) fn key_line(text: &str, table: usize, error: &str) -> usize {
    let key = error.split([' ', ':']).next().unwrap_or_default();
    let lines = text.lines().enumerate().skip(table);
    let here = lines.take_while(|(_, line)| !line.trim_start().starts_with('['));
    let mut found = here.filter(|(_, line)| line.split_once('=').is_some_and(|(left, _)| left.trim() == key));
    found.next().map_or(table, |(i, _)| i + 1)
}

fn node(w: &mut Walk<'_>, s: &Section<'_>) -> NodeConfig {
    w.keys(s, "node", &[]);
    let path = |w: &mut Walk<'_>, key, default: &str| {
        PathBuf::from(w.text(s, key).unwrap_or_else(|| default.into()))
    };
    let listen = w.one(s, "listen", |t| match address(t) {
        Ok(a) if a.port() == 0 => Err("port 0 cannot be found by peers; give one, such as 4650".into()),
        other => other,
    });
    let metrics = w.one(s, "metrics", |t| if t == "off" { Ok(None) } else { address(t).map(Some) });
    let transport = w.one(s, "transport", |t| match t {
        "datagram" => Ok(Transport::Datagram),
        "lanes" => Ok(Transport::Lanes),
        _ => Err("is no transport; write \"datagram\" or \"lanes\"".into()),
    });
    let listen = listen.unwrap_or(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 4650)));
    let workers = w.number(s, "workers", 1, MAX_WORKERS.into()).map_or(1, |n| n as u8);
    // without lanes one thread has all that comes, and the kernel would give all answers to its queue
    let workers = if transport == Some(Transport::Datagram) { 1 } else { workers };
    if listen.port().checked_add(u16::from(workers - 1)).is_none() {
        w.at(
            s,
            "workers",
            "each has a port, from that of listen on, and 65535 is the last; lower workers or listen",
        );
    }
    let offloads = match s.has("offloads") {
        true => w.many(s, "offloads", offloads::parse).into_iter().collect(),
        false => Offloads::ALL,
    };
    if !offloads.has(Offload::Csum) && (offloads.has(Offload::Tso) || offloads.has(Offload::Uso)) {
        w.at(s, "offloads", "\"tso\" and \"uso\" need \"csum\"; add it, or remove them");
    }
    let mtu = if w.is_text(s, "mtu", "auto") { None } else { w.number(s, "mtu", 576, 65000) };
    NodeConfig {
        listen,
        metrics: metrics.unwrap_or(Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9650)))),
        ca: path(w, "ca", "/etc/mesh/ca.pem"),
        certificate: path(w, "certificate", "/etc/mesh/node.pem"),
        key: path(w, "key", "/etc/mesh/node.key"),
        state_dir: path(w, "state_dir", "/var/lib/mesh"),
        control_socket: path(w, "control_socket", "/run/mesh/node.sock"),
        advertise: w.many(s, "advertise", address),
        keepalive: w.one(s, "keepalive", duration).unwrap_or(Duration::from_secs(1)),
        probe: w.probe(s).unwrap_or(ProbeParams::DEFAULT),
        mtu,
        // The default of `expose` is icmp; an empty list closes the host altogether.
        expose: if s.has("expose") { w.many(s, "expose", expose) } else { vec![Expose::Icmp] },
        on_stop: w
            .one(s, "on_stop", |t| match t {
                "remove" => Ok(OnStop::Remove),
                "block" => Ok(OnStop::Block),
                _ => Err("write \"remove\" or \"block\"".into()),
            })
            .unwrap_or(OnStop::Remove),
        foreign_chains: w
            .one(s, "foreign_chains", |t| match t {
                "report" => Ok(ForeignChains::Report),
                "insert" => Ok(ForeignChains::Insert),
                _ => Err("write \"report\" or \"insert\"".into()),
            })
            .unwrap_or(ForeignChains::Report),
        transport: transport.unwrap_or(Transport::Lanes),
        lane_packets: w.number(s, "lane_packets", 1000, LANE_PACKETS).unwrap_or(LANE_PACKETS),
        workers,
        offloads,
    }
}

fn peer(w: &mut Walk<'_>, s: &Section<'_>) -> Option<PeerConfig> {
    w.keys(s, "peer", &[]);
    w.need(s, "endpoint");
    let endpoint = w.one(s, "endpoint", |t| endpoint(t).map(str::to_owned));
    let name = w.one(s, "name", parsed);
    let probe = w.probe(s);
    Some(PeerConfig { endpoint: endpoint?, name, probe, line: s.line })
}

fn network(w: &mut Walk<'_>, s: &Section<'_>) -> Option<NetworkConfig> {
    w.keys(s, "network", &["probe"]);
    w.need(s, "name");
    w.need(s, "interface");
    let name = w.one(s, "name", parsed);
    let interface = w.one(s, "interface", interface);
    let subnets = w.many(s, "subnet", parsed);
    let prefixes = w.many(s, "prefix", parsed);
    let announce = w.announce(s);
    let egress = if w.is_text(s, "egress", "none") {
        EgressChoice::None
    } else if w.is_text(s, "egress", "local") {
        EgressChoice::Local
    } else if w.is_text(s, "egress", "auto") {
        EgressChoice::Auto
    } else {
        let nodes = w.many(s, "egress", |t| match t {
            "none" | "local" | "auto" => Err("stands alone; write it as a string, not within a list".into()),
            _ => parsed(t),
        });
        if nodes.is_empty() { EgressChoice::None } else { EgressChoice::Nodes(nodes) }
    };
    let egress_rules = EgressRules::read(w, s);
    Some(NetworkConfig {
        name: name?,
        interface: interface?,
        subnets,
        prefixes,
        announce,
        egress,
        egress_rules,
        line: s.line,
    })
}

fn egress(w: &mut Walk<'_>, s: &Section<'_>) -> Option<EgressConfig> {
    w.keys(s, "egress", &["shared"]);
    w.need(s, "network");
    w.need(s, "interface");
    let networks = w.many(s, "network", parsed);
    if w.is_empty_list(s, "network") {
        w.at(s, "network", "names no network; name one, or remove this [[egress]]");
    }
    let interface = w.one(s, "interface", interface);
    let snat: Vec<IpAddr> =
        if w.is_text(s, "snat", "masquerade") { Vec::new() } else { w.many(s, "snat", parsed) };
    if snat.iter().filter(|a| a.is_ipv4()).count() > 1 || snat.iter().filter(|a| a.is_ipv6()).count() > 1 {
        w.at(s, "snat", "has two addresses of one family; keep one a family");
    }
    let destination = w.many(s, "destination", parsed);
    let priority = w.number(s, "priority", 0, u32::MAX).unwrap_or(100);
    let probe = w.many(s, "probe", parsed);
    let probe_interval = w.one(s, "probe_interval", duration).unwrap_or(DEFAULT_INTERVAL);
    let probe_count = w.number(s, "probe_count", 1, MAX_COUNT).unwrap_or(DEFAULT_COUNT);
    let interface = interface?;
    let uplink =
        UplinkConfig { interface: interface.clone(), snat: snat.clone(), probe, probe_interval, probe_count };
    Some(EgressConfig { networks, interface, snat, destination, priority, uplink, line: s.line })
}

/// `HOST:PORT`, as a peer is written in the file and added at run time: an IPv6 host stands in brackets, a link-local one
/// with the number of its interface.
pub(crate) fn endpoint(text: &str) -> Result<&str, String> {
    let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
    let named = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let ok = text.parse::<SocketAddr>().is_ok() || named;
    if ok && port.parse::<u16>().is_ok_and(|p| p > 0) {
        return Ok(text);
    }
    Err("is not HOST:PORT; write it as 198.51.100.12:4650, [2001:db8::1]:4650 or ph2.example:4650".into())
}

fn parsed<T: FromStr<Err: fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|e: T::Err| format!("{e}; correct it"))
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "is not ADDRESS:PORT; write it as 192.0.2.1:4650 or [2001:db8::1]:4650".into())
}

fn interface(text: &str) -> Result<String, String> {
    let ok = (1..=15).contains(&text.len())
        && !text.contains(['/', ':'])
        && !text.contains(char::is_whitespace)
        && text != "."
        && text != "..";
    if ok {
        Ok(text.to_owned())
    } else {
        Err("is no interface name; give 1 to 15 bytes without space, / and :".into())
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let number = |t: &str| t.parse::<u64>().ok();
    let given = match text.strip_suffix("ms") {
        Some(t) => number(t).map(Duration::from_millis),
        None => text.strip_suffix('s').and_then(number).map(Duration::from_secs),
    };
    match given {
        Some(d) if (Duration::from_millis(100)..=Duration::from_secs(60)).contains(&d) => Ok(d),
        Some(_) => Err("is out of range; give 100ms to 60s".into()),
        None => Err("is not a duration; write it as \"1s\" or \"500ms\"".into()),
    }
}

/// Of probes: shorter than a `duration` may be.
fn probe_interval(text: &str) -> Result<Duration, String> {
    let ms = text.strip_suffix("ms").and_then(|t| t.parse::<u64>().ok());
    let given = ms.or_else(|| text.strip_suffix('s')?.parse::<u64>().ok()?.checked_mul(1000));
    match given {
        Some(ms @ 10..=10_000) => Ok(Duration::from_millis(ms)),
        Some(_) => Err("is out of range; give 10ms to 10s".into()),
        None => Err("is not a duration; write it as \"50ms\" or \"1s\"".into()),
    }
}

fn expose(text: &str) -> Result<Expose, String> {
    let port = |t: &str| t.parse::<u16>().ok().filter(|p| *p > 0);
    match text.split_once('/') {
        None if text == "icmp" => Some(Expose::Icmp),
        None if text == "all" => Some(Expose::All),
        Some(("tcp", t)) => port(t).map(Expose::Tcp),
        Some(("udp", t)) => port(t).map(Expose::Udp),
        _ => None,
    }
    .ok_or_else(|| "is unknown; write \"icmp\", \"tcp/22\", \"udp/53\" or \"all\"".into())
}

#[cfg(test)]
mod tests;
