//! From what is known of the mesh to the kernel state this host should have.

use mesh_proto::record::Condition;
use mesh_proto::{NetworkName, NodeId, Prefix};

use super::egress::Roles;
use super::egress::election::Election;
use super::event::{LocalNetwork, LocalNode};
use super::host::lease::Term;
use super::host::{HostAnnounced, HostEgress, HostNetwork, HostOut, HostState, MeshRoute, OwnEgress};
use super::members::{FULL_MESH, Members};
use super::offers::Offers;
use super::rib;
use crate::config::{EgressChoice, EgressFallback};

/// Largest inner packet towards ourselves, and the TUN's device MTU: what the underlay carries, since no peer's packet is
/// larger, and no less than Ethernet's, for VMs that talk to each other.
fn tun_mtu(local: &LocalNode) -> u32 {
    // beyond jumbo frames nothing is sent to a peer either
    local.underlay_mtu.clamp(1500, 9216)
}

/// Inner packets of this size pass every path that carries QUIC: used towards peers whose tunnel is made on demand.
const ON_DEMAND_MTU: u32 = 1160;

/// The whole of it.
pub fn host_state(local: &LocalNode, members: &Members, roles: &Roles, offers: &Offers) -> HostState {
    let network = |network: &LocalNetwork| {
        let elected = roles.elections(&network.name);
        HostNetwork {
            slot: network.ix.0,
            name: network.name.clone(),
            tun: network.tun.clone(),
            segment: network.interface.clone(),
            subnets: network.gateways.clone(),
            announced: network
                .announce
                .iter()
                .map(|a| HostAnnounced { prefix: a.prefix, via: a.via, internet_own: a.internet_own })
                .collect(),
            routes: routes(local, network, members),
            out: out(local, network, members, roles),
            fallback: (network.egress_rules.fallback == EgressFallback::Local)
                .then(|| by_this_host(local, &network.name)),
            offer: own_egress(local, &network.name).filter(|_| local.identity.grants.egress),
            own: own(local, network, elected, offers),
            expose: local.expose.clone(),
        }
    };
    HostState {
        networks: local.networks.iter().map(network).collect(),
        uplinks: local.uplinks.clone(),
        connected: local.links.clone(),
        foreign_chains: local.foreign_chains,
        lease_term: Term::new(local.probe),
        tun_mtu: tun_mtu(local),
    }
}

fn routes(local: &LocalNode, network: &LocalNetwork, members: &Members) -> Vec<MeshRoute> {
    rib::routes(network, members)
        .into_iter()
        .map(|route| {
            let mtu = match &route.node {
                None => Some(tun_mtu(local)),
                Some(node) => mtu_to(local, members, node),
            };
            MeshRoute { prefix: route.prefix, mtu, mesh: route.mesh }
        })
        .collect()
}

/// Largest inner packet to a node; `None` while it cannot be reached.
fn mtu_to(local: &LocalNode, members: &Members, node: &NodeId) -> Option<u32> {
    if *node == local.identity.node {
        return Some(tun_mtu(local));
    }
    let peer = members.peers.get(node)?;
    let mtu = match &peer.tunnel {
        Some(tunnel) => tunnel.mtu,
        None if members.peers.len() > FULL_MESH && peer.dialer.failures == 0 && !peer.left => ON_DEMAND_MTU,
        None => return None,
    };
    Some(mtu.min(local.mtu.unwrap_or(u32::MAX)).min(tun_mtu(local)))
}

fn out(local: &LocalNode, network: &LocalNetwork, members: &Members, roles: &Roles) -> HostOut {
    // what goes on by one that was elected before has the same route
    let mtu = |election: &Election| {
        let elected = election.elected.iter().filter_map(|node| mtu_to(local, members, node)).min()?;
        let former = election.candidates.iter().filter(|c| c.may_hold_flows);
        let former = former.filter_map(|c| mtu_to(local, members, &c.node)).min();
        Some(former.map_or(elected, |former| former.min(elected)))
    };
    let by_this_host = || HostOut::Local(by_this_host(local, &network.name));
    match network.egress {
        EgressChoice::None => HostOut::None,
        EgressChoice::Local => by_this_host(),
        _ if roles.has_fallen_back(&network.name) => by_this_host(),
        EgressChoice::Nodes(_) | EgressChoice::Auto => {
            let elections = roles.elections(&network.name).iter();
            HostOut::Tunnel { destinations: elections.map(|e| (e.destination, mtu(e))).collect() }
        }
    }
}

fn own(local: &LocalNode, network: &LocalNetwork, elections: &[Election], offers: &Offers) -> OwnEgress {
    let by: Vec<(Prefix, bool)> =
        elections.iter().map(|e| (e.destination, e.elected.contains(&local.identity.node))).collect();
    let offered = rib::offer_rules(local, &network.name);
    // also where another node is elected: what left by this one before goes on
    if offered.is_empty() || by.is_empty() {
        return OwnEgress::default();
    }
    let longest = |rules: &[(Prefix, bool)], of: &Prefix| {
        let matches = rules.iter().filter(|(prefix, _)| prefix.covers(of));
        matches.max_by_key(|(prefix, _)| prefix.len()).is_some_and(|(_, yes)| *yes)
    };
    let mut prefixes: Vec<Prefix> = by.iter().chain(&offered).map(|(prefix, _)| *prefix).collect();
    prefixes.sort();
    prefixes.dedup();
    let leaves = |prefix: Prefix| (prefix, longest(&by, &prefix) && longest(&offered, &prefix));
    OwnEgress {
        sources: unmapped(network),
        destinations: prefixes.into_iter().map(leaves).collect(),
        ended: offers.drain.condition() == Condition::Drained,
    }
}

/// Sources of this host's own VMs that need no TUN to leave by it: it would change nothing of their addresses.
pub(super) fn unmapped(network: &LocalNetwork) -> Vec<Prefix> {
    let unmapped = network.maps.iter().filter(|(subnet, prefix)| subnet == prefix).map(|(subnet, _)| *subnet);
    let announced = network.announce.iter().filter(|a| !a.internet_own).map(|a| a.prefix);
    unmapped.chain(announced).collect()
}

fn by_this_host(local: &LocalNode, network: &NetworkName) -> HostEgress {
    let masquerade = HostEgress { interface: None, snat: Vec::new() };
    own_egress(local, network).unwrap_or(masquerade)
}

fn own_egress(local: &LocalNode, network: &NetworkName) -> Option<HostEgress> {
    let offer = local.egress.iter().find(|e| e.networks.contains(network))?;
    Some(HostEgress { interface: Some(offer.interface.clone()), snat: offer.snat.clone() })
}
