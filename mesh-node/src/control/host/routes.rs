//! The routes of every table: where a packet may go, and beneath each a refusal that stays when the device goes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_proto::Prefix;

use super::{BASE_TABLE, HostNetwork, HostState};

/// Metric of every refusal, by itself or by a rule that follows: the largest that leaves room, so that any real route wins.
pub const REFUSAL_METRIC: u32 = 4_278_198_272;
/// Metric of every other route of ours. Given explicitly: the families have different defaults (0 and 1024).
pub const ROUTE_METRIC: u32 = 1024;
/// An IPv6 route MTU below this is treated as this by the kernel. RFC 8200 section 5.
pub(super) const MIN_MTU_V6: u32 = 1280;

/// One per host: other networks' segments, refused to announced addresses on the host's own routing.
pub const ISO_TABLE: u32 = BASE_TABLE;

/// Table MESH of a slot: all of the mesh, and the segment.
pub fn mesh_table(slot: u8) -> u32 {
    BASE_TABLE + 1 + 3 * u32::from(slot)
}

/// Table IN of a slot: the segment and its announced prefixes, nothing else.
pub fn in_table(slot: u8) -> u32 {
    mesh_table(slot) + 1
}

/// Table OUT of a slot: the Internet by an egress node, or nothing: the rule behind it refuses.
pub fn out_table(slot: u8) -> u32 {
    mesh_table(slot) + 2
}

/// What is done with a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Answered with ICMP host unreachable (IPv6: address unreachable).
    Unreachable,
    /// Nobody here: the look-up goes on with the next rule, which answers with ICMP net unreachable (IPv6: no route). A
    /// route cannot say so.
    Throw,
    /// Sent.
    Unicast {
        /// By this device.
        dev: String,
        /// To this neighbour; `None`: on link.
        via: Option<IpAddr>,
        /// Source address of what the host itself sends.
        src: Option<IpAddr>,
        /// Largest packet.
        mtu: Option<u32>,
    },
}

impl RouteKind {
    /// It is what is left when the way is gone.
    pub fn is_fallback(&self) -> bool {
        matches!(self, Self::Unreachable | Self::Throw)
    }
}

/// A route. The kernel keys it by table, prefix and metric; the metric follows from the kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Routing table.
    pub table: u32,
    /// Destination.
    pub prefix: Prefix,
    /// What is done.
    pub kind: RouteKind,
}

/// What the kernel tells routes apart by.
pub type RouteKey = (u32, Prefix, u32);

impl Route {
    /// The metric it is installed with.
    pub fn metric(&self) -> u32 {
        if self.kind.is_fallback() { REFUSAL_METRIC } else { ROUTE_METRIC }
    }

    /// What the kernel knows it by.
    pub fn key(&self) -> RouteKey {
        (self.table, self.prefix, self.metric())
    }
}

/// All routes of the state, in order of their keys; one a key.
pub fn routes(state: &HostState) -> Vec<Route> {
    let mut table = Table::default();
    let families: Vec<bool> = [true, false].into_iter().filter(|v4| state.uses_family(*v4)).collect();
    for network in &state.networks {
        let (mesh, inner, out) = (mesh_table(network.slot), in_table(network.slot), out_table(network.slot));
        for v4 in &families {
            table.refuse(inner, Prefix::default_route(*v4));
            table.throw(out, Prefix::default_route(*v4));
        }
        for route in &network.routes {
            table.refuse(mesh, route.prefix);
            if let Some(mtu) = route.mtu {
                let mtu = if route.prefix.is_v4() { mtu } else { mtu.max(MIN_MTU_V6) };
                table.send(mesh, route.prefix, &network.tun, None, network, Some(mtu));
            }
        }
        for (subnet, _) in &network.subnets {
            table.refuse(ISO_TABLE, *subnet);
            // After the mesh prefixes: where one is the subnet itself (no translation), the segment wins.
            table.send(mesh, *subnet, &network.segment, None, network, None);
            table.send(inner, *subnet, &network.segment, None, network, None);
        }
        for announced in &network.announced {
            table.send(inner, announced.prefix, &network.segment, announced.via, network, None);
        }
        for v4 in families.iter().filter(|v4| network.uses_family(**v4)) {
            for (to, mtu) in network.destinations(*v4) {
                match mtu {
                    Some(mtu) => {
                        let mtu = if to.is_v4() { mtu } else { mtu.max(MIN_MTU_V6) };
                        table.send(out, to, &network.tun, None, network, Some(mtu));
                    }
                    None => table.throw(out, to),
                }
            }
        }
    }
    table.0.into_values().collect()
}

/// Routes by key; a later one replaces an earlier one, as in the kernel.
#[derive(Default)]
struct Table(BTreeMap<RouteKey, Route>);

impl Table {
    fn refuse(&mut self, table: u32, prefix: Prefix) {
        self.insert(Route { table, prefix, kind: RouteKind::Unreachable });
    }

    fn throw(&mut self, table: u32, prefix: Prefix) {
        self.insert(Route { table, prefix, kind: RouteKind::Throw });
    }

    fn send(
        &mut self,
        table: u32,
        prefix: Prefix,
        dev: &str,
        via: Option<IpAddr>,
        network: &HostNetwork,
        mtu: Option<u32>,
    ) {
        let src = network.gateway(prefix.is_v4());
        self.insert(Route { table, prefix, kind: RouteKind::Unicast { dev: dev.to_owned(), via, src, mtu } });
    }

    fn insert(&mut self, route: Route) {
        self.0.insert(route.key(), route);
    }
}

/// What to install (replacing what has the same key) and what to remove, so that `actual` becomes `desired`.
pub fn route_changes(desired: &[Route], actual: &[Route]) -> (Vec<Route>, Vec<Route>) {
    let by_key = |routes: &[Route]| -> BTreeMap<RouteKey, Route> {
        routes.iter().map(|route| (route.key(), route.clone())).collect()
    };
    let (wanted, present) = (by_key(desired), by_key(actual));
    let install = desired.iter().filter(|route| present.get(&route.key()) != Some(*route)).cloned().collect();
    let remove = actual.iter().filter(|route| !wanted.contains_key(&route.key())).cloned().collect();
    (install, remove)
}
