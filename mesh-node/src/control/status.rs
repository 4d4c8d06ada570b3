//! Read-only answers for the API and the metrics: what `Control` knows, in the operator's words.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_proto::api;
use mesh_proto::identity::rfc3339;
use mesh_proto::{NodeId, Prefix};

use super::Control;
use super::event::{ConnId, LocalNetwork, Now};
use super::members::Peer;
use super::{gauges, rib};
use crate::config::EgressChoice;
use crate::forward::counters::LaneCount;
use crate::forward::fib::{NetworkIx, PeerIx};
use crate::forward::flows::Pinned;

/// A certificate that ends within this time is worth a line.
const EXPIRY_WARNING: i64 = 14 * 86_400;

/// IPv6 needs this much. RFC 8200 section 5.
const IPV6_MIN_MTU: u32 = 1280;

/// Live figures of a tunnel, which `io` knows.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// Round-trip time.
    pub rtt: Duration,
    /// The lane that packets to the peer travel on; `None`: they travel as DATAGRAM frames of the connection.
    pub lane: Option<LaneFigures>,
}

/// Live figures of a lane.
#[derive(Debug, Clone)]
pub struct LaneFigures {
    /// Name of what protects it.
    pub cipher: &'static str,
    /// From 0, of this connection.
    pub number: u32,
    /// When it was taken into use.
    pub since: Instant,
    /// Packets that it may still carry.
    pub packets_left: u64,
    /// UDP ports, ours and the peer's, between which the packets of our further workers do not get through.
    pub unheard: Vec<(u16, u16)>,
}

/// Counts of a connection's path since it began, and what waits now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathFigures {
    /// UDP datagrams sent.
    pub datagrams: u64,
    /// Sends that took them.
    pub sends: u64,
    /// Packets that were not acknowledged.
    pub lost_packets: u64,
    /// Bytes of frames that wait.
    pub send_buffer_bytes: u64,
}

/// Packets and bytes of a peer, over all its tunnels.
#[derive(Debug, Clone, Copy, Default)]
pub struct Traffic {
    /// Inner packets from it.
    pub receive_packets: u64,
    /// Bytes of them.
    pub receive_bytes: u64,
    /// Inner packets to it.
    pub transmit_packets: u64,
    /// Bytes of them.
    pub transmit_bytes: u64,
}

/// What `io` adds to an answer.
pub trait Live {
    /// Of a connection.
    fn figures(&self, conn: ConnId) -> Option<Figures>;
    /// Of its path; takes the connection's lock, so it is asked for rarely.
    fn path(&self, _conn: ConnId) -> Option<PathFigures> {
        None
    }
    /// Of a peer.
    fn traffic(&self, peer: PeerIx) -> Traffic;
    /// What lanes saw of the underlay to a peer.
    fn underlay(&self, _peer: PeerIx) -> LaneCount {
        LaneCount::default()
    }
    /// Of a network to and from the Internet, with the peer as egress node.
    fn egress(&self, _peer: PeerIx, _network: NetworkIx) -> Traffic {
        Traffic::default()
    }
    /// Flows of a network's VMs in progress that stay with an egress node, elected or not, as long as it carries them.
    fn pinned_flows(&self, _network: NetworkIx) -> Arc<Vec<Pinned>> {
        Arc::default()
    }
}

pub(super) fn moment(unix_ms: u64) -> String {
    rfc3339((unix_ms / 1000) as i64)
}

impl Control {
    /// The verdict, then the reasons in order of importance.
    pub fn status(&self, now: Now) -> api::Status {
        let mut reasons = Vec::new();
        let mut notes = Vec::new();
        if let Some(error) = &self.host.error {
            reasons.push(format!("kernel state is not as it should be: {error}"));
        }
        self.egress_status(&mut reasons, &mut notes);
        reasons.extend(self.uplink_reasons());
        for (chain, command) in &self.host.foreign {
            reasons.push(format!("{chain} drops mesh traffic; to let it pass: {command}"));
        }
        let mut down = self.peers_without_figures(now);
        down.retain(|peer| matches!(peer.state.as_str(), "down" | "dialing"));
        for peer in &down {
            let why = peer.detail.as_deref().or(peer.reason.as_deref()).unwrap_or("not yet reached");
            reasons.push(format!("peer {} is down since {}: {why}", peer.name, peer.since));
        }
        let expires = self.local.identity.not_after;
        let left = expires - (now.unix_ms / 1000) as i64;
        if left < EXPIRY_WARNING {
            let text = format!(
                "this node's certificate ends {}: issue a new one with `mesh-ctl ca issue`",
                rfc3339(expires)
            );
            if left < 0 { reasons.insert(0, text) } else { notes.push(text) }
        }
        notes.extend(self.drain_note());
        self.add_notes(&mut notes);
        let up = self.members.peers.values().filter(|p| p.tunnel.is_some()).count();
        api::Status {
            schema: api::SCHEMA,
            node: self.local.identity.node.to_string(),
            mesh: self.local.identity.mesh.to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
            state: if reasons.is_empty() { "ok" } else { "degraded" }.into(),
            reasons,
            notes,
            certificate_expires: rfc3339(expires),
            peers_up: up,
            peers_down: down.len(),
            performance: None,
        }
    }

    fn add_notes(&self, notes: &mut Vec<String>) {
        if self.own_name_elsewhere > 1 {
            notes.push(format!(
                "another node uses the name {}: issue a certificate of its own for each node",
                self.local.identity.node
            ));
        }
        let doubled = self.members.peers.iter().filter(|(_, p)| p.doubled);
        notes.extend(doubled.map(|(node, _)| {
            format!("two nodes use the name {node}: issue a certificate of its own for each node")
        }));
        let v6 = self.local.networks.iter().any(|n| n.maps.iter().any(|(p, _)| !p.is_v4()));
        for (node, peer) in &self.members.peers {
            if let Some(tunnel) = &peer.tunnel
                && v6
                && tunnel.mtu < IPV6_MIN_MTU
            {
                notes.push(format!(
                    "the path to {node} carries packets of {} bytes, less than IPv6's {IPV6_MIN_MTU}: larger IPv6 packets are dropped (too_big)",
                    tunnel.mtu
                ));
            }
        }
        for network in &self.local.networks {
            for route in rib::routes(network, &self.members).iter().filter(|r| !r.rivals.is_empty()) {
                let rivals: Vec<&str> = route.rivals.iter().map(NodeId::as_str).collect();
                let holder = route.node.as_ref().map_or(self.local.identity.node.as_str(), NodeId::as_str);
                notes.push(format!(
                    "prefix {} of network {} is claimed by {holder}, and also by {}: packets go to {holder}",
                    route.prefix,
                    network.name,
                    rivals.join(", ")
                ));
            }
        }
        notes.extend(self.host.repaired.iter().map(|what| format!("repaired: {what}")));
    }

    /// All peers, refused strangers included.
    pub fn peers(&self, now: Now, live: &dyn Live) -> api::Peers {
        let mut peers = self.peers_without_figures(now);
        for answer in &mut peers {
            let Some(peer) = answer.name.parse::<NodeId>().ok().and_then(|n| self.members.peers.get(&n))
            else {
                continue;
            };
            let figures = peer.tunnel.as_ref().and_then(|t| live.figures(t.conn));
            answer.rtt_seconds = figures.as_ref().map(|f| f.rtt.as_secs_f64());
            if let Some(lane) = figures.and_then(|f| f.lane) {
                answer.transport = Some("lanes".into());
                let seen = live.underlay(peer.ix);
                answer.lane = Some(api::Lane {
                    cipher: lane.cipher.into(),
                    number: lane.number,
                    age_seconds: now.mono.saturating_duration_since(lane.since).as_secs_f64(),
                    packets_left: lane.packets_left,
                    lost_packets: seen.lost,
                    reordered_packets: seen.reordered,
                    unheard_ports: lane.unheard.iter().map(|(from, to)| format!("{from} -> {to}")).collect(),
                    refused_packets: seen.duplicate + seen.replayed + seen.forged,
                });
            }
            let traffic = live.traffic(peer.ix);
            answer.receive_packets = traffic.receive_packets;
            answer.receive_bytes = traffic.receive_bytes;
            answer.transmit_packets = traffic.transmit_packets;
            answer.transmit_bytes = traffic.transmit_bytes;
        }
        api::Peers { schema: api::SCHEMA, peers }
    }

    fn peers_without_figures(&self, now: Now) -> Vec<api::Peer> {
        let blank = |name: String, state: &str| api::Peer {
            name,
            state: state.into(),
            reason: None,
            detail: None,
            endpoint: None,
            endpoints: Vec::new(),
            origin: "learned".into(),
            since: moment(now.unix_ms),
            rtt_seconds: None,
            path_mtu_bytes: None,
            transport: None,
            lane: None,
            certificate_expires: None,
            receive_packets: 0,
            receive_bytes: 0,
            transmit_packets: 0,
            transmit_bytes: 0,
            networks: Vec::new(),
        };
        let mut all = Vec::new();
        for (node, peer) in &self.members.peers {
            if self.members.removed.contains(node) {
                continue;
            }
            let mut answer = blank(node.to_string(), self.state_of(node, peer));
            if let Some(reason) = peer.reason.as_ref().filter(|_| peer.tunnel.is_none()) {
                answer.reason = Some(reason.label.into());
                answer.detail = Some(reason.text.clone());
            }
            answer.endpoints = self.members.endpoints(node);
            answer.endpoint = match &peer.tunnel {
                Some(tunnel) => Some(tunnel.endpoint.to_string()),
                None => answer.endpoints.first().cloned(),
            };
            answer.origin = self.origin(node).into();
            answer.since = moment(peer.tunnel.as_ref().map_or(peer.since_unix_ms, |t| t.since_unix_ms));
            answer.path_mtu_bytes = peer.tunnel.as_ref().map(|t| t.mtu);
            answer.transport = peer.tunnel.as_ref().map(|_| "datagram".into());
            let identity =
                peer.tunnel.as_ref().map(|t| &t.identity).or(peer.record.as_ref().map(|r| &r.identity));
            answer.certificate_expires = identity.map(|i| rfc3339(i.not_after));
            if let Some(record) = &peer.record {
                let networks = record.record.networks.iter().map(|n| {
                    let prefixes: Vec<String> =
                        n.prefixes.iter().chain(&n.announced).map(ToString::to_string).collect();
                    format!("{}: {}", n.name, prefixes.join(" "))
                });
                answer.networks = networks.collect();
            }
            all.push(answer);
        }
        for (endpoint, seed) in &self.members.seeds {
            if seed.is_known(&self.members.peers) {
                continue;
            }
            let mut answer = blank(endpoint.clone(), if seed.dialer.dialing { "dialing" } else { "down" });
            answer.reason = seed.reason.as_ref().map(|r| r.label.into());
            answer.detail = seed.reason.as_ref().map(|r| r.text.clone());
            answer.endpoint = Some(endpoint.clone());
            answer.origin = if seed.runtime { "runtime" } else { "file" }.into();
            all.push(answer);
        }
        for (address, stranger) in &self.members.strangers {
            let name = stranger.node.as_ref().map_or_else(|| address.ip().to_string(), NodeId::to_string);
            let mut answer = blank(name, "refused");
            answer.reason = Some(stranger.reason.label.into());
            answer.detail = Some(stranger.reason.text.clone());
            answer.endpoint = Some(address.ip().to_string());
            answer.origin = "stranger".into();
            answer.since = moment(stranger.unix_ms);
            all.push(answer);
        }
        all
    }

    fn state_of(&self, node: &NodeId, peer: &Peer) -> &'static str {
        gauges::state(peer, self.members.wants_tunnel(node))
    }

    fn origin(&self, node: &NodeId) -> &'static str {
        let mut seeds = self.members.seeds.values().filter(|s| s.node.as_ref() == Some(node));
        match seeds.next() {
            Some(seed) if seed.runtime => "runtime",
            Some(_) => "file",
            None => "learned",
        }
    }

    /// This node's networks.
    pub fn networks(&self) -> api::Networks {
        let answer = |n: &LocalNetwork| api::Network {
            name: n.name.to_string(),
            interface: n.interface.clone(),
            tun: n.tun.clone(),
            subnets: n.maps.iter().map(|(subnet, _)| *subnet).collect(),
            prefixes: n.maps.iter().map(|(_, prefix)| *prefix).collect(),
            announced: n.announce.iter().map(|a| a.prefix).collect(),
            egress: match &n.egress {
                EgressChoice::None => "none".into(),
                EgressChoice::Local => "local".into(),
                EgressChoice::Auto => "auto".into(),
                EgressChoice::Nodes(nodes) => nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", "),
            },
            nodes: self
                .members
                .peers
                .values()
                .filter(|p| {
                    let record = p.record.as_ref().filter(|_| !p.left);
                    record.is_some_and(|r| r.record.networks.iter().any(|x| x.name == n.name))
                })
                .count(),
        };
        api::Networks { schema: api::SCHEMA, networks: self.local.networks.iter().map(answer).collect() }
    }

    /// Every prefix known.
    pub fn routes(&self) -> api::Routes {
        api::Routes { schema: api::SCHEMA, routes: self.all_routes() }
    }

    pub(super) fn all_routes(&self) -> Vec<api::Route> {
        let mut all = Vec::new();
        for network in &self.local.networks {
            let kernel = self.published.2.networks.iter().find(|n| n.slot == network.ix.0);
            let installed: BTreeMap<Prefix, Option<u32>> =
                kernel.iter().flat_map(|n| &n.routes).map(|r| (r.prefix, r.mtu)).collect();
            for route in rib::routes(network, &self.members) {
                let mtu = installed.get(&route.prefix).copied().flatten();
                let (state, reason) = match (&route.node, mtu) {
                    (None, _) => ("local", None),
                    (Some(_), Some(_)) => ("installed", None),
                    (Some(node), None) => {
                        let peer = self.members.peers.get(node).and_then(|p| p.reason.as_ref());
                        let why = peer.map_or_else(|| "not yet reached".to_owned(), |r| r.text.clone());
                        ("unreachable", Some(format!("no tunnel to {node}: {why}")))
                    }
                };
                all.push(api::Route {
                    network: network.name.to_string(),
                    prefix: route.prefix,
                    node: route.node.as_ref().unwrap_or(&self.local.identity.node).to_string(),
                    kind: if route.mesh { "mesh" } else { "announced" }.into(),
                    state: state.into(),
                    reason,
                    mtu: mtu.filter(|_| route.node.is_some()),
                });
            }
        }
        all
    }

    /// Name and certificate's end of this node.
    pub fn own_name(&self) -> (NodeId, i64) {
        (self.local.identity.node.clone(), self.local.identity.not_after)
    }
}
