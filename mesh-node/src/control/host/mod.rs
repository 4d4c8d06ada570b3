//! The kernel state this host should have: plain data in (`HostState`, written by `control`), rules, routes, nftables text
//! and sysctls out. `io::host` applies the difference.

use std::collections::BTreeSet;
use std::net::IpAddr;

use mesh_proto::{NetworkName, Prefix};

use crate::config::ForeignChains;

pub mod foreign;
pub mod lease;
pub mod routes;
pub mod rules;
pub mod ruleset;
pub mod sysctls;
#[cfg(test)]
mod tests;
pub mod ways;

/// Route and rule protocol number of everything of ours (rtnetlink `RTPROT_*`; 171 is not assigned).
pub const PROTOCOL: u8 = 171;
/// First rule priority (`B` of the recipe).
pub const BASE_PRIORITY: u32 = 5500;
/// First routing table. ISO has this number; network slot i has MESH, IN, OUT at BASE_TABLE + 1 + 3 i and following.
pub const BASE_TABLE: u32 = 5500;
/// Bits of the packet mark that are ours.
pub const MARK_MASK: u32 = 0xff00_0000;
/// Mark of underlay sockets (SO_MARK).
pub const UNDERLAY_MARK: u32 = 0xf500_0000;

/// Connection mark of what own VMs send to the Internet through the TUN, by another node, where this one is an egress node
/// too: it goes on that way when this node is elected.
pub const AWAY_MARK: u32 = 0x4f00_0000;

/// The egress mark of a network slot.
pub fn egress_mark(slot: u8) -> u32 {
    (0x50 + u32::from(slot)) << 24
}

/// All that this host should have in its kernel. Whole, not a change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostState {
    /// One per configured network, in order of their slots.
    pub networks: Vec<HostNetwork>,
    /// Devices on which the user's traffic enters or leaves the host to the outside (uplinks), found from the main table.
    pub uplinks: Vec<String>,
    /// Connected networks of the host by device, segments excepted. `out = "local"` leaves them alone; an announced
    /// address inside an uplink's one is answered for there.
    pub connected: Vec<(String, Prefix)>,
    /// What to do about others' chains that drop our traffic.
    pub foreign_chains: ForeignChains,
    /// For how long the kernel carries for others without a sign of life of this daemon.
    pub lease_term: lease::Term,
    /// Device MTU of every TUN.
    pub tun_mtu: u32,
}

impl HostState {
    /// Whether anything of ours concerns this family on this host.
    pub fn uses_family(&self, v4: bool) -> bool {
        self.networks.iter().any(|network| network.uses_family(v4))
    }

    /// Uplinks through which packets of this family have to be forwarded: for announced addresses on the host's own
    /// routing, and for egress offered or taken here.
    pub fn forwarding_uplinks(&self, v4: bool) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for network in self.networks.iter().filter(|network| network.uses_family(v4)) {
            if network.announced.iter().any(|a| a.internet_own && a.prefix.is_v4() == v4) {
                found.extend(self.uplinks.iter().cloned());
            }
            for egress in network.egresses() {
                match &egress.interface {
                    Some(interface) => drop(found.insert(interface.clone())),
                    None => found.extend(self.uplinks.iter().cloned()),
                }
            }
        }
        found
    }

    /// The roles that end by themselves when nobody renews them.
    pub fn lease(&self) -> lease::Lease {
        let offering = self.networks.iter().filter(|network| network.offer.is_some());
        lease::Lease { marks: offering.map(|n| egress_mark(n.slot)).collect(), term: self.lease_term }
    }

    /// Every device the outside is reached by: uplinks, and interfaces named for an egress.
    pub fn outside(&self) -> BTreeSet<String> {
        let named = self.networks.iter().flat_map(HostNetwork::egresses).filter_map(|e| e.interface.clone());
        self.uplinks.iter().cloned().chain(named).collect()
    }

    /// Announced addresses that neighbours on an uplink look for on the link itself: (uplink, address).
    pub fn proxy_neighbours(&self) -> BTreeSet<(String, IpAddr)> {
        let mut found = BTreeSet::new();
        for announced in self.networks.iter().flat_map(|network| &network.announced) {
            for (device, subnet) in &self.connected {
                if announced.internet_own
                    && announced.prefix.is_host()
                    && self.uplinks.contains(device)
                    && subnet.covers(&announced.prefix)
                {
                    found.insert((device.clone(), announced.prefix.address()));
                }
            }
        }
        found
    }
}

/// A mesh or announced prefix of anyone in the network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MeshRoute {
    /// The prefix.
    pub prefix: Prefix,
    /// Largest inner packet on the way there; `None` while the owner is not reachable: then only the unreachable shadow stands.
    pub mtu: Option<u32>,
    /// Whether it is a mesh prefix (member of the spoof guard set) rather than an announced one.
    pub mesh: bool,
}

/// An announced prefix behind our own segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAnnounced {
    /// The prefix.
    pub prefix: Prefix,
    /// Routed through this VM; `None`: on link.
    pub via: Option<IpAddr>,
    /// `internet = "own"`: its Internet traffic takes the host's own routing (rule B+31). False: by egress like the subnet's.
    pub internet_own: bool,
}

/// SNAT of an egress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostEgress {
    /// The uplink device; `None`: whatever the main table's route says (masquerade).
    pub interface: Option<String>,
    /// Source addresses, at most one a family; a family without one is masqueraded.
    pub snat: Vec<IpAddr>,
}

/// How traffic of the segment leaves to the Internet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostOut {
    /// Refused: `unreachable default`.
    None,
    /// Into the TUN, where an egress node is elected: by destination the route's MTU (`None`: nobody is, it is refused). A default
    /// route that is not among them is refused.
    Tunnel {
        /// No destination twice.
        destinations: Vec<(Prefix, Option<u32>)>,
    },
    /// SNAT on this host, without the TUN.
    Local(HostEgress),
}

/// What this host's own VMs send to the Internet with sources that the mesh leaves as they are, where this node is the egress
/// node in use. It is routed at once, past the TUN: through it, it would come out as the very flow that went in, and
/// conntrack decides on NAT once a flow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnEgress {
    /// Whose.
    pub sources: Vec<Prefix>,
    /// Whether it leaves here, by longest match of the destination.
    pub destinations: Vec<(Prefix, bool)>,
    /// This host is drained: what is still in progress has outlived it.
    pub ended: bool,
}

impl OwnEgress {
    /// Those of a family.
    pub fn sources_of(&self, v4: bool) -> Vec<Prefix> {
        self.sources.iter().copied().filter(|prefix| prefix.is_v4() == v4).collect()
    }

    /// Whether a packet is of this kind.
    pub fn has(&self, source: IpAddr, destination: IpAddr) -> bool {
        let matches = self.destinations.iter().filter(|(prefix, _)| prefix.contains(destination));
        self.sources.iter().any(|prefix| prefix.contains(source))
            && matches.max_by_key(|(prefix, _)| prefix.len()).is_some_and(|(_, leaves)| *leaves)
    }
}

/// The kernel side of one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNetwork {
    /// Stable small number: decides tables, mark.
    pub slot: u8,
    /// Its name.
    pub name: NetworkName,
    /// TUN device name.
    pub tun: String,
    /// Segment interface.
    pub segment: String,
    /// Local subnets with the host's own address on the segment (GW), one per family at most... or several.
    pub subnets: Vec<(Prefix, IpAddr)>,
    /// Our own announced prefixes.
    pub announced: Vec<HostAnnounced>,
    /// Every mesh and announced prefix of anyone in this network, own ones included (own: mtu always Some).
    pub routes: Vec<MeshRoute>,
    /// How the segment's own traffic leaves.
    pub out: HostOut,
    /// How it leaves by this host when nobody else carries, where it may. Flows that began so go on after others carry again.
    pub fallback: Option<HostEgress>,
    /// Whether this node offers egress for the network, and how.
    pub offer: Option<HostEgress>,
    /// What needs no TUN on its way out.
    pub own: OwnEgress,
    /// What of the host the mesh may reach.
    pub expose: Vec<crate::forward::fib::Expose>,
}

impl HostNetwork {
    /// Whether the network has anything of this family on this host. A family of peers only is none: our VMs could not
    /// use it.
    pub fn uses_family(&self, v4: bool) -> bool {
        self.subnets.iter().any(|(subnet, _)| subnet.is_v4() == v4)
            || self.announced.iter().any(|announced| announced.prefix.is_v4() == v4)
    }

    /// The host's own address on the segment.
    pub fn gateway(&self, v4: bool) -> Option<IpAddr> {
        self.subnets.iter().map(|(_, gateway)| *gateway).find(|gateway| gateway.is_ipv4() == v4)
    }

    /// The destinations of a family that are decided on, and the MTU of their way into the TUN (`None`: refused), the longest
    /// prefix first. The last one is the default route; none where the segment leaves by this host.
    pub fn destinations(&self, v4: bool) -> Vec<(Prefix, Option<u32>)> {
        let elected = match &self.out {
            HostOut::Local(_) => return Vec::new(),
            HostOut::None => &[],
            HostOut::Tunnel { destinations } => destinations.as_slice(),
        };
        let mut all: Vec<_> = elected.iter().filter(|(to, _)| to.is_v4() == v4).copied().collect();
        if !all.iter().any(|(to, _)| to.len() == 0) {
            all.push((Prefix::default_route(v4), None));
        }
        all.sort_by_key(|(to, _)| (std::cmp::Reverse(to.len()), *to));
        all
    }

    /// How the segment itself leaves by this host, if it does or may.
    pub fn local(&self) -> Option<&HostEgress> {
        match &self.out {
            HostOut::Local(egress) => Some(egress),
            HostOut::None | HostOut::Tunnel { .. } => self.fallback.as_ref(),
        }
    }

    /// Own VMs may leave past the TUN.
    pub fn leaves_past_tun(&self) -> bool {
        self.local().is_some() || !self.own.sources.is_empty()
    }

    /// What leaves to the Internet by this host: for others, and for its own segment.
    pub fn egresses(&self) -> impl Iterator<Item = &HostEgress> {
        self.offer.iter().chain(self.local())
    }
}
