//! Why an address is, or is not, reached through the mesh: announced by whom, authorised by which certificate, installed
//! where; or what stops it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_proto::identity::{Identity, rfc3339};
use mesh_proto::trace::Protocol;
use mesh_proto::{NetworkName, NodeId, Prefix, api};

use super::Control;
use super::event::LocalNetwork;
use super::host::foreign::Flow;
use super::host::routes::mesh_table;
use super::rib::{self, Route};
use super::status::moment;
use super::trace::kernel::{Expect, Incoming, Lookup};

const YES: &str = "yes";
const NO: &str = "no";

impl Control {
    /// The longest match of an address in each network, and each step that led to it.
    pub fn route_get(&self, address: IpAddr) -> api::RouteGet {
        let mut best: Vec<api::Route> = Vec::new();
        for route in self.all_routes().into_iter().filter(|r| r.prefix.contains(address)) {
            match best.iter_mut().find(|b| b.network == route.network) {
                Some(known) if known.prefix.len() >= route.prefix.len() => {}
                Some(known) => *known = route,
                None => best.push(route),
            }
        }
        let reason = best.is_empty().then(|| {
            let local = self.local.networks.iter().find(|n| n.maps.iter().any(|(s, _)| s.contains(address)));
            match local {
                Some(n) => format!("{address} is a local address of network {}: VMs of other nodes reach it by its mesh address", n.name),
                None => format!("nobody announces {address}: it leaves by egress (`mesh-ctl egress`)"),
            }
        });
        let checks = self.local.networks.iter().flat_map(|network| self.checks(network, address, &best));
        api::RouteGet { schema: api::SCHEMA, address, checks: checks.collect(), routes: best, reason }
    }

    /// What to ask the kernel about the routes found: whether a VM's packet goes into the mesh. One that is not installed is
    /// explained by that.
    pub fn route_lookups(&self, found: &api::RouteGet) -> Vec<(NetworkName, Lookup)> {
        let address = found.address;
        let lookup = |route: &api::Route| {
            let network = self.local.networks.iter().find(|n| n.name.as_str() == route.network)?;
            let (subnet, gateway) = network.gateways.iter().find(|(s, _)| s.is_v4() == address.is_ipv4())?;
            let lookup = Lookup {
                incoming: Incoming::Device(network.interface.clone()),
                flow: Flow {
                    source: neighbour(*subnet, *gateway)?,
                    destination: address,
                    protocol: Protocol::Icmp,
                    reply: false,
                },
                mark: 0,
                expect: Expect::Device(network.tun.clone()),
                ours: network.tun.clone(),
                local_is_fine: false,
                masquerade: false,
            };
            Some((network.name.clone(), lookup))
        };
        found.routes.iter().filter(|route| route.state == "installed").filter_map(lookup).collect()
    }

    fn checks(&self, network: &LocalNetwork, address: IpAddr, best: &[api::Route]) -> Vec<api::RouteCheck> {
        let check = |step: &str, state: &str, text: String| api::RouteCheck {
            network: network.name.to_string(),
            step: step.into(),
            state: state.into(),
            text,
        };
        let known = rib::routes(network, &self.members);
        let route = known.iter().filter(|r| r.prefix.contains(address)).max_by_key(|r| r.prefix.len());
        let Some(route) = route else {
            return self
                .not_announced(network, address)
                .into_iter()
                .map(|t| check("announced", NO, t))
                .collect();
        };
        let mut checks = vec![check("announced", YES, self.announcement(route))];
        for rival in &route.rivals {
            let text =
                format!("{rival} announces {} as well and loses: let one of them give it up", route.prefix);
            checks.push(check("announced", NO, text));
        }
        let (state, text) = self.authority(network, route);
        checks.push(check("authorised", state, text));
        let shown = best.iter().find(|b| b.network == network.name.as_str());
        let (state, text) = match (shown.and_then(|s| s.reason.clone()), &self.host.error) {
            (_, Some(error)) => (NO, format!("the kernel is not as it should be: {error}")),
            (Some(reason), None) => (NO, reason),
            (None, None) => (YES, self.way(network, route)),
        };
        checks.push(check("installed", state, text));
        checks
    }

    fn announcement(&self, route: &Route) -> String {
        let prefix = route.prefix;
        let Some(node) = &route.node else { return format!("{prefix} by this node's configuration") };
        let record = self.members.peers.get(node).and_then(|p| p.record.as_ref());
        match record.map(|r| r.record.version) {
            // a version is the moment of its signature, unless clocks went back
            Some(version) => format!("{prefix} by {node}, record of {}", moment(version)),
            None => format!("{prefix} by {node}"),
        }
    }

    fn identity(&self, node: Option<&NodeId>) -> Option<&Identity> {
        match node {
            None => Some(&self.local.identity),
            Some(node) => Some(&self.members.peers.get(node)?.record.as_ref()?.identity),
        }
    }

    fn authority(&self, network: &LocalNetwork, route: &Route) -> (&'static str, String) {
        let node = route.node.as_ref().unwrap_or(&self.local.identity.node);
        let granted = self.identity(route.node.as_ref()).and_then(|identity| {
            let grant = identity.grants.granting(&network.name, &route.prefix)?;
            let until = rfc3339(identity.not_after);
            Some(format!(
                "certificate of {node} until {until}: network={} prefix={} le {}",
                network.name, grant.prefix, grant.le
            ))
        });
        match granted {
            Some(text) => (YES, text),
            None => (NO, format!("the certificate of {node} is not at hand any more")),
        }
    }

    fn way(&self, network: &LocalNetwork, route: &Route) -> String {
        let table = mesh_table(network.ix.0);
        match &route.node {
            None => format!("this host, through {}", network.interface),
            Some(node) => format!("table {table}: by {}, tunnel to {node}", network.tun),
        }
    }

    /// What stands against an address that no accepted record has.
    fn not_announced(&self, network: &LocalNetwork, address: IpAddr) -> Vec<String> {
        let name = &network.name;
        let mut found: Vec<String> = Vec::new();
        let has = |prefixes: &[(NetworkName, Prefix)]| {
            prefixes.iter().any(|(n, prefix)| n == name && prefix.contains(address))
        };
        let refused = self.members.refused_records.iter().filter(|(_, refused)| has(&refused.claims));
        found.extend(refused.map(|(node, refused)| {
            format!("the record of {node} that has it is refused: {}; issue {node} another certificate with `mesh-ctl ca issue`, or take the prefix out of its configuration", refused.error)
        }));
        let left = self.members.peers.iter().filter(|(node, peer)| {
            let record = peer.record.as_ref().map(|r| &r.record);
            let gone = peer.left || self.members.removed.contains(*node);
            gone && record
                .is_some_and(|r| r.claims().any(|(n, prefix)| n == name && prefix.contains(address)))
        });
        found.extend(left.map(|(node, peer)| {
            let why = if peer.left {
                "has left the mesh: start it"
            } else {
                "was removed here: `mesh-ctl peer add` its endpoint"
            };
            format!("{node}, which announced it last, {why}")
        }));
        let host = Prefix::host(address);
        if found.is_empty() {
            let text = match self.local.identity.grants.allows(name, &host) {
                true => format!(
                    "no record has it; this node's certificate allows it in {name}: add it to `announce` and `mesh-ctl reload`"
                ),
                false => format!("no record of any node has it in network {name}"),
            };
            found.push(text);
        }
        found
    }
}

/// An address of a subnet that a VM may have: the one after, or before, the host's own.
fn neighbour(subnet: Prefix, gateway: IpAddr) -> Option<IpAddr> {
    let step = |up: bool| -> Option<IpAddr> {
        Some(match gateway {
            IpAddr::V4(a) => {
                let bits = a.to_bits();
                Ipv4Addr::from_bits(if up { bits.checked_add(1) } else { bits.checked_sub(1) }?).into()
            }
            IpAddr::V6(a) => {
                let bits = a.to_bits();
                Ipv6Addr::from_bits(if up { bits.checked_add(1) } else { bits.checked_sub(1) }?).into()
            }
        })
    };
    [step(true), step(false)].into_iter().flatten().find(|address| subnet.contains(*address))
}
