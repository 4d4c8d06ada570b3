//! Whom this node knows: nodes with their records and tunnels, endpoints that were configured, nodes that were removed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Instant;

use mesh_proto::hello::Hello;
use mesh_proto::identity::Identity;
use mesh_proto::record::VerifiedRecord;
use mesh_proto::{NetworkName, NodeId, Prefix};

use super::event::{ConnId, Reason};
use super::sessions::{Claim, Dialer};
use crate::forward::fib::PeerIx;

/// Up to this many known nodes every node holds a tunnel to every other; beyond, only where traffic wants one.
pub const FULL_MESH: usize = 64;

/// Nodes whose refused record is remembered for `mesh-ctl route get`.
const MAX_REFUSED_RECORDS: usize = 64;

/// Refused strangers remembered for `mesh-ctl peers`.
const MAX_STRANGERS: usize = 64;

/// A tunnel that is up.
#[derive(Debug, Clone)]
pub struct Tunnel {
    /// Its connection.
    pub conn: ConnId,
    /// Where the peer is.
    pub endpoint: SocketAddr,
    /// From the certificate shown on it.
    pub identity: Identity,
    /// What the peer said.
    pub hello: Hello,
    /// What decides against a second connection.
    pub claim: Claim,
    /// When it came up, milliseconds since 1970.
    pub since_unix_ms: u64,
    /// Largest inner packet.
    pub mtu: u32,
    /// Probes say that its other end is silent: it carries no egress. Since when nothing came.
    pub silent: Option<Instant>,
}

/// Another node.
#[derive(Debug)]
pub struct Peer {
    /// Its place in snapshots.
    pub ix: PeerIx,
    /// What it says of itself.
    pub record: Option<VerifiedRecord>,
    /// The tunnel to it.
    pub tunnel: Option<Tunnel>,
    /// When to dial it.
    pub dialer: Dialer,
    /// Endpoint of the last dial, to take the next one in turn.
    pub attempt: usize,
    /// Why it is not up.
    pub reason: Option<Reason>,
    /// When the tunnel went, or the node was first heard of, milliseconds since 1970.
    pub since_unix_ms: u64,
    /// It stopped politely.
    pub left: bool,
    /// A packet wanted to go there.
    pub wanted: bool,
    /// Two nodes use this name: two records of one version were seen.
    pub doubled: bool,
}

/// A configured endpoint.
#[derive(Debug)]
pub struct Seed {
    /// Who must answer, or who did.
    pub node: Option<NodeId>,
    /// The name is insisted on.
    pub pinned: bool,
    /// Added at run time; otherwise in the file.
    pub runtime: bool,
    /// When to dial it, while no node is known behind it.
    pub dialer: Dialer,
    /// Why nobody is known there.
    pub reason: Option<Reason>,
}

impl Seed {
    /// Whether the node behind the endpoint is a peer by now, which is then dialled as such.
    pub fn is_known(&self, peers: &BTreeMap<NodeId, Peer>) -> bool {
        self.node.as_ref().is_some_and(|node| peers.contains_key(node))
    }
}

/// Somebody who was refused and is not known otherwise.
#[derive(Debug, Clone)]
pub struct Stranger {
    /// Name in its certificate.
    pub node: Option<NodeId>,
    /// Why.
    pub reason: Reason,
    /// When last, milliseconds since 1970.
    pub unix_ms: u64,
}

/// A record that was not accepted, to explain what is missing.
#[derive(Debug)]
pub struct RefusedRecord {
    /// Why.
    pub error: String,
    /// What it claims.
    pub claims: Vec<(NetworkName, Prefix)>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Members {
    /// By name.
    pub peers: BTreeMap<NodeId, Peer>,
    /// By `host:port`.
    pub seeds: BTreeMap<String, Seed>,
    /// Removed by the operator.
    pub removed: BTreeSet<NodeId>,
    /// Those who may carry this node's networks to the Internet: no packet goes to them before one is elected, and none is before
    /// its tunnel stands.
    pub carriers: BTreeSet<NodeId>,
    /// Who is behind a connection.
    pub conns: BTreeMap<ConnId, NodeId>,
    /// The last one of each node, until a good one arrives.
    pub refused_records: BTreeMap<NodeId, RefusedRecord>,
    /// By address: refused, unknown.
    pub strangers: BTreeMap<SocketAddr, Stranger>,
    /// Names by `PeerIx`; only grows.
    names: Vec<NodeId>,
}

impl Peer {
    /// By its last record it was about to stop.
    pub fn said_goodbye(&self) -> bool {
        self.record.as_ref().is_some_and(|known| known.record.leaving)
    }
}

impl Members {
    /// The peer of this name, made if it is new.
    pub fn peer(&mut self, node: &NodeId, now: Instant, unix_ms: u64) -> &mut Peer {
        if !self.peers.contains_key(node) {
            let ix = match self.names.iter().position(|n| n == node) {
                Some(known) => PeerIx(known as u32),
                None => {
                    self.names.push(node.clone());
                    PeerIx(self.names.len() as u32 - 1)
                }
            };
            let peer = Peer {
                ix,
                record: None,
                tunnel: None,
                dialer: Dialer::new(now),
                attempt: 0,
                reason: None,
                since_unix_ms: unix_ms,
                left: false,
                wanted: false,
                doubled: false,
            };
            self.peers.insert(node.clone(), peer);
        }
        self.peers.get_mut(node).expect("inserted above")
    }

    /// Name of a peer index.
    pub fn name(&self, ix: PeerIx) -> Option<&NodeId> {
        self.names.get(ix.0 as usize)
    }

    /// Endpoints at which a node may be found: its record's, then those configured for it.
    pub fn endpoints(&self, node: &NodeId) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        if let Some(record) = self.peers.get(node).and_then(|p| p.record.as_ref()) {
            found.extend(record.record.endpoints.iter().map(SocketAddr::to_string));
        }
        for (endpoint, seed) in &self.seeds {
            if seed.node.as_ref() == Some(node) && !found.contains(endpoint) {
                found.push(endpoint.clone());
            }
        }
        found
    }

    /// A node that has dialled us, or is told of by others, may be the one behind a configured endpoint. Returns endpoints
    /// that are still being dialled although there is a tunnel.
    pub fn recognise_seeds(&mut self) -> Vec<String> {
        let mut superfluous = Vec::new();
        for (endpoint, seed) in self.seeds.iter_mut().filter(|(_, s)| s.node.is_none()) {
            let Ok(address) = endpoint.parse::<SocketAddr>() else { continue };
            let is_it = |peer: &Peer| {
                peer.tunnel.as_ref().is_some_and(|t| t.endpoint == address)
                    || peer.record.as_ref().is_some_and(|r| r.record.endpoints.contains(&address))
            };
            // a removed node comes back by a dial to the endpoint that the operator has named again, not by hearsay
            let mut candidates = self.peers.iter().filter(|(node, _)| !self.removed.contains(*node));
            if let Some((node, peer)) = candidates.find(|(_, peer)| is_it(peer)) {
                seed.node = Some(node.clone());
                seed.reason = None;
                if seed.dialer.dialing && peer.tunnel.is_some() {
                    seed.dialer.up();
                    superfluous.push(endpoint.clone());
                }
            }
        }
        superfluous
    }

    /// Peers that count at present: neither stopped politely nor removed.
    pub fn present(&self) -> impl Iterator<Item = (&NodeId, &Peer)> {
        self.peers.iter().filter(|(node, peer)| !peer.left && !self.removed.contains(*node))
    }

    /// Whether a tunnel to this node should stand.
    pub fn wants_tunnel(&self, node: &NodeId) -> bool {
        let Some(peer) = self.peers.get(node) else { return false };
        let configured = self.seeds.values().any(|s| s.node.as_ref() == Some(node));
        !peer.left
            && !self.removed.contains(node)
            && (configured || peer.wanted || self.carriers.contains(node) || self.peers.len() <= FULL_MESH)
    }

    /// Remembers a record that was refused; of a bounded number of nodes.
    pub fn refused_record(&mut self, node: NodeId, refused: RefusedRecord) {
        if self.refused_records.len() < MAX_REFUSED_RECORDS || self.refused_records.contains_key(&node) {
            self.refused_records.insert(node, refused);
        }
    }

    /// Remembers a refused stranger, the oldest forgotten first.
    pub fn refused(&mut self, endpoint: SocketAddr, stranger: Stranger) {
        // a dialer's port changes with each attempt: one line an address
        let key = SocketAddr::new(endpoint.ip(), 0);
        self.strangers.insert(key, stranger);
        while self.strangers.len() > MAX_STRANGERS {
            let oldest = self.strangers.iter().min_by_key(|(_, s)| s.unix_ms).map(|(e, _)| *e);
            let Some(oldest) = oldest else { break };
            self.strangers.remove(&oldest);
        }
    }
}
