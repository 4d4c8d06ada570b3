//! What the metrics ask of `Control`: numbers and labels, without the words that `status` has. A scrape comes every few
//! seconds, whatever the size of the mesh, so nothing here looks anything up by going through all of something else.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::{NodeId, Prefix};
use rustls_pki_types::UnixTime;

use super::event::LocalNetwork;
use super::members::Peer;
use super::status::{Live, Traffic};
use super::{Control, rib};
use crate::config::EgressChoice;
use crate::forward::counters::LaneCount;
use crate::forward::fib::PeerIx;

/// States a peer can be in.
pub const PEER_STATES: [&str; 6] = ["up", "dialing", "down", "idle", "left", "refused"];

/// States a route can be in.
pub const ROUTE_STATES: [&str; 3] = ["local", "installed", "unreachable"];

/// States a destination of egress can be in: by the first of the candidates, by another, by this host instead, or by nobody.
pub const EGRESS_STATES: [&str; 4] = ["active", "standby", "fallback", "none"];

/// A peer's numbers.
#[derive(Debug, Clone)]
pub struct PeerGauge<'a> {
    /// Its name.
    pub node: &'a NodeId,
    /// Its tunnel is up.
    pub up: bool,
    /// Round-trip time, if up.
    pub rtt_seconds: Option<f64>,
    /// Largest inner packet, if up.
    pub path_mtu_bytes: Option<u32>,
    /// Packets and bytes over all its tunnels.
    pub traffic: Traffic,
    /// What lanes saw of the underlay, over all its tunnels.
    pub underlay: LaneCount,
}

/// A candidate for a network's egress.
#[derive(Debug, Clone)]
pub struct EgressGauge<'a> {
    /// Its name.
    pub node: &'a NodeId,
    /// Its place among the peers; `None`: this node.
    pub peer: Option<PeerIx>,
    /// It is the one in use, for some destination.
    pub active: bool,
}

impl Control {
    /// Peers that have not been removed.
    pub fn peer_gauges(&self, live: &dyn Live) -> Vec<PeerGauge<'_>> {
        let known = self.members.peers.iter().filter(|(node, _)| !self.members.removed.contains(*node));
        known
            .map(|(node, peer)| {
                let figures = peer.tunnel.as_ref().and_then(|t| live.figures(t.conn));
                PeerGauge {
                    node,
                    up: peer.tunnel.is_some(),
                    rtt_seconds: figures.map(|f| f.rtt.as_secs_f64()),
                    path_mtu_bytes: peer.tunnel.as_ref().map(|t| t.mtu),
                    traffic: live.traffic(peer.ix),
                    underlay: live.underlay(peer.ix),
                }
            })
            .collect()
    }

    /// How many peers are in each state: what `mesh-ctl peers` lists, counted.
    pub fn peers_by_state(&self) -> [(&'static str, u64); PEER_STATES.len()] {
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for (node, peer) in &self.members.peers {
            if !self.members.removed.contains(node) {
                *counts.entry(state(peer, self.members.wants_tunnel(node))).or_default() += 1;
            }
        }
        for seed in self.members.seeds.values().filter(|s| !s.is_known(&self.members.peers)) {
            *counts.entry(if seed.dialer.dialing { "dialing" } else { "down" }).or_default() += 1;
        }
        *counts.entry("refused").or_default() += self.members.strangers.len() as u64;
        PEER_STATES.map(|state| (state, counts.get(state).copied().unwrap_or(0)))
    }

    /// How many of a network's routes are in each state.
    pub fn routes_by_state(&self, network: &LocalNetwork) -> [(&'static str, u64); ROUTE_STATES.len()] {
        let kernel = self.published.2.networks.iter().find(|n| n.slot == network.ix.0);
        let installed: BTreeSet<Prefix> =
            kernel.iter().flat_map(|n| &n.routes).filter(|r| r.mtu.is_some()).map(|r| r.prefix).collect();
        let (mut local, mut there, mut unreachable) = (0, 0, 0);
        for route in rib::routes(network, &self.members) {
            match route.node {
                None => local += 1,
                Some(_) if installed.contains(&route.prefix) => there += 1,
                Some(_) => unreachable += 1,
            }
        }
        [(ROUTE_STATES[0], local), (ROUTE_STATES[1], there), (ROUTE_STATES[2], unreachable)]
    }

    /// The candidates for a network's egress, over all destinations.
    pub fn egress_gauges(&self, network: &LocalNetwork) -> Vec<EgressGauge<'_>> {
        let mut active: BTreeMap<&NodeId, bool> = BTreeMap::new();
        for election in self.roles.elections(&network.name) {
            for candidate in &election.candidates {
                let used = election.elected.contains(&candidate.node);
                *active.entry(&candidate.node).or_insert(false) |= used;
            }
        }
        let peer = |node: &NodeId| self.members.peers.get(node).map(|p| p.ix);
        active.into_iter().map(|(node, active)| EgressGauge { node, peer: peer(node), active }).collect()
    }

    /// How many of a network's egress destinations are in each state.
    pub fn egress_by_state(&self, network: &LocalNetwork) -> [(&'static str, u64); EGRESS_STATES.len()] {
        let mut counts = EGRESS_STATES.map(|state| (state, 0));
        let elections = self.roles.elections(&network.name);
        if elections.is_empty() && matches!(network.egress, EgressChoice::Nodes(_) | EgressChoice::Auto) {
            // nobody is known to offer anything: to the VMs that is the Internet
            let place = if self.roles.has_fallen_back(&network.name) { 2 } else { 3 };
            counts[place].1 = 1;
        }
        for election in elections {
            let state = self.egress_state(network, election);
            counts.iter_mut().filter(|(name, _)| *name == state).for_each(|(_, count)| *count += 1);
        }
        counts
    }

    /// This node's networks.
    pub fn local_networks(&self) -> &[LocalNetwork] {
        &self.local.networks
    }

    /// Role and end, in seconds since 1970, of the certificates this node lives by: its own, and the CA's that vouches for
    /// it. Another CA, kept while CAs are rotated, may end without harm.
    pub fn certificate_expiry(&self) -> Vec<(&'static str, i64)> {
        let own = &self.local.identity;
        let valid = UnixTime::since_unix_epoch(std::time::Duration::from_secs(own.not_before.max(0) as u64));
        let ca = self.trust.roots.vouching_until(&self.trust.chain, valid);
        std::iter::once(("node", own.not_after)).chain(ca.map(|end| ("ca", end))).collect()
    }
}

/// `wanted`: a tunnel to it should stand, unless it has left.
pub(super) fn state(peer: &Peer, wanted: bool) -> &'static str {
    match peer {
        Peer { tunnel: Some(_), .. } => "up",
        Peer { left: true, .. } => "left",
        // beyond a full mesh a tunnel is made when traffic wants it
        _ if !wanted => "idle",
        Peer { dialer, .. } if dialer.dialing && dialer.failures == 0 => "dialing",
        _ => "down",
    }
}
