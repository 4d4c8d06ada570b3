//! Every prefix that anyone announces, and the owner of each; what egress this node offers. Builds what `forward` looks packets up in.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::record::{EgressOffer, NetworkRecord};
use mesh_proto::{NetworkName, NodeId, Prefix};

use super::egress::election::Election;
use super::egress::standing::Standing;
use super::event::{LocalNetwork, LocalNode};
use super::members::{Members, Peer};
use super::offers::Offers;
use crate::config::EgressChoice;
use crate::forward::fib::{Egress, EgressVia, NetworkSpec};

/// Private, shared and special ranges that egress refuses unless a `destination` opens them.
/// RFC 1918, 6598, 3927, 1122, 5771, 4193, 4291.
const PRIVATE: [&str; 12] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "169.254.0.0/16",
    "127.0.0.0/8",
    "0.0.0.0/8",
    "224.0.0.0/3",
    "fc00::/7",
    "fe80::/10",
    "ff00::/8",
    "::/127",
];

/// A prefix of a network, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The prefix.
    pub prefix: Prefix,
    /// The owner; `None`: this node.
    pub node: Option<NodeId>,
    /// A mesh prefix, not an announced one.
    pub mesh: bool,
    /// Others who claim the very same prefix and lose.
    pub rivals: Vec<NodeId>,
}

/// A node's part of a network.
pub(super) fn part<'a>(peer: &'a Peer, network: &NetworkName) -> Option<&'a NetworkRecord> {
    let record = &peer.record.as_ref()?.record;
    record.networks.iter().find(|n| n.name == *network)
}

/// Every prefix of a network. A prefix claimed twice is this node's if it is one of the two, else the smaller name's.
pub fn routes(network: &LocalNetwork, members: &Members) -> Vec<Route> {
    let mut table: BTreeMap<Prefix, Route> = BTreeMap::new();
    for (_, prefix) in &network.maps {
        table.insert(*prefix, Route { prefix: *prefix, node: None, mesh: true, rivals: Vec::new() });
    }
    for announced in &network.announce {
        let prefix = announced.prefix;
        table.insert(prefix, Route { prefix, node: None, mesh: false, rivals: Vec::new() });
    }
    for (node, peer) in members.present() {
        let Some(part) = part(peer, &network.name) else { continue };
        let claims = part.prefixes.iter().map(|p| (p, true)).chain(part.announced.iter().map(|p| (p, false)));
        for (prefix, mesh) in claims {
            let new = Route { prefix: *prefix, node: Some(node.clone()), mesh, rivals: Vec::new() };
            // nodes come in order of their names: who is there first stays
            let holder = table.entry(*prefix).or_insert_with(|| new);
            if holder.node.as_ref() != Some(node) {
                holder.rivals.push(node.clone());
            }
        }
    }
    table.into_values().collect()
}

/// What this node's own offer for a network carries to: destinations told to others. Without the right to egress an
/// `[[egress]]` serves this host's own "local" alone.
fn offered(local: &LocalNode, network: &NetworkName) -> Vec<Prefix> {
    let mut destinations: Vec<Prefix> = Vec::new();
    if !local.identity.grants.egress {
        return destinations;
    }
    for offer in local.egress.iter().filter(|e| e.networks.contains(network)) {
        if offer.destination.is_empty() {
            let families = local.networks.iter().filter(|n| n.name == *network).flat_map(|n| &n.maps);
            destinations.extend(families.map(|(_, p)| Prefix::default_route(p.is_v4())));
        }
        destinations.extend(&offer.destination);
    }
    destinations.sort();
    destinations.dedup();
    destinations
}

/// This node's own offer for a network, as others are told of it.
pub fn own_offer(local: &LocalNode, network: &NetworkName, offers: &Offers) -> Option<EgressOffer> {
    let destinations = offered(local, network);
    let configured = || local.egress.iter().filter(|e| e.networks.contains(network));
    let priority = configured().map(|e| e.priority).min().filter(|_| !destinations.is_empty())?;
    let condition = configured().map(|e| offers.condition(e)).max().unwrap_or_default();
    Some(EgressOffer { destinations, priority, condition })
}

/// Per destination prefix whether it may leave here (longest match): private ranges, this host and its connected networks
/// may not, unless a `destination` names them.
pub fn offer_rules(local: &LocalNode, network: &NetworkName) -> Vec<(Prefix, bool)> {
    let opened = offered(local, network);
    if opened.is_empty() {
        return Vec::new();
    }
    let mut rules: BTreeMap<Prefix, bool> = BTreeMap::new();
    for text in PRIVATE {
        rules.insert(text.parse().expect("constant prefixes parse"), false);
    }
    rules.extend(local.connected.iter().map(|p| (*p, false)));
    // named by the operator: wins over the ranges above, but single addresses of this host stay closed by their length
    rules.extend(opened.iter().map(|p| (*p, true)));
    rules.into_iter().collect()
}

/// Nodes from which an Internet source is accepted.
fn egress_peers<'a>(network: &LocalNetwork, members: &'a Members) -> Vec<&'a Peer> {
    members
        .peers
        .iter()
        .filter(|(node, peer)| match &network.egress {
            EgressChoice::Nodes(names) => names.contains(node),
            EgressChoice::Auto => true,
            EgressChoice::None | EgressChoice::Local => false,
        } && part(peer, &network.name).is_some_and(|p| p.egress.is_some()))
        .map(|(_, peer)| peer)
        .collect()
}

/// All that forwarding needs to know of a network.
pub fn network_spec(
    local: &LocalNode,
    network: &LocalNetwork,
    members: &Members,
    elections: &[Election],
) -> NetworkSpec {
    let ix = |node: &NodeId| members.peers.get(node).map(|p| p.ix);
    let via = |node: &NodeId| match *node == local.identity.node {
        true => Some(Egress::Own),
        false => ix(node).map(Egress::Peer),
    };
    let spread = |node: &NodeId| Some(EgressVia { egress: via(node)?, key: rendezvous_key(node) });
    let holds = |election: &Election| {
        let carry = election.candidates.iter().filter(|c| c.standing.carries());
        let carry = carry.filter_map(|c| Some((election.destination, via(&c.node)?)));
        carry.collect::<Vec<(Prefix, Egress)>>()
    };
    let candidates = elections.iter().flat_map(|e| &e.candidates);
    let drained: BTreeSet<&NodeId> =
        candidates.filter(|c| c.standing == Standing::Drained).map(|c| &c.node).collect();
    NetworkSpec {
        name: network.name.clone(),
        maps: network.maps.clone(),
        announced: network.announce.iter().map(|a| a.prefix).collect(),
        gateways: network.gateways.iter().map(|(_, gw)| *gw).collect(),
        routes: routes(network, members)
            .iter()
            .filter_map(|r| Some((r.prefix, ix(r.node.as_ref()?)?)))
            .collect(),
        egress: elections
            .iter()
            .map(|e| (e.destination, e.elected.iter().filter_map(spread).collect::<Vec<EgressVia>>()))
            .collect(),
        egress_holds: elections.iter().flat_map(holds).collect(),
        egress_drained: drained.into_iter().filter_map(via).collect(),
        egress_peers: egress_peers(network, members).iter().map(|p| p.ix).collect(),
        offer: offer_rules(local, &network.name),
        expose: local.expose.clone(),
    }
}

/// A node's key for rendezvous hashing (FNV-1a): of its name alone, so that it stays over restarts.
fn rendezvous_key(node: &NodeId) -> u64 {
    node.as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
