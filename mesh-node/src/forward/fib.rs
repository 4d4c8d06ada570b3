//! Longest-prefix lookup of one immutable snapshot: which network, which peer, which egress.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_proto::{NetworkName, Prefix};
use prefix_trie::PrefixMap;

use super::prefix_map::Mapping;

/// A peer's place in the snapshot. Control gives each node it hears of one index, stable while the process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerIx(pub u32);

/// A network's place in the snapshot; also the handle by which peers address it in frames. Stable while the process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkIx(pub u8);

/// Where egress traffic for a destination prefix leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Egress {
    /// Through this peer.
    Peer(PeerIx),
    /// Through this node itself: the packet returns into the TUN, mapped, and the kernel does the SNAT.
    Own,
}

/// One of the egress nodes among which a destination's flows are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EgressVia {
    /// Which.
    pub egress: Egress,
    /// Of the node's name, for rendezvous hashing: who has which flow depends on names alone.
    pub key: u64,
}

/// What of the host itself the mesh may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Expose {
    /// ICMP and ICMPv6.
    Icmp,
    /// One TCP port.
    Tcp(u16),
    /// One UDP port.
    Udp(u16),
    /// Everything.
    All,
}

/// All that forwarding needs to know of one network; `control` writes it, `NetworkFib` compiles it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSpec {
    /// Its name.
    pub name: NetworkName,
    /// (local subnet, mesh prefix), equal lengths and families; equal prefixes mean no translation.
    pub maps: Vec<(Prefix, Prefix)>,
    /// Announced prefixes behind our own segment; never translated.
    pub announced: Vec<Prefix>,
    /// The host's own addresses on the segment, as the VMs see them.
    pub gateways: Vec<IpAddr>,
    /// Mesh prefixes and announced prefixes of other nodes: the owner of each.
    pub routes: Vec<(Prefix, PeerIx)>,
    /// Elected egress per destination prefix (longest match): where new flows go. An empty list: nobody carries it, it is
    /// refused. More than one where flows are spread.
    pub egress: Vec<(Prefix, Vec<EgressVia>)>,
    /// Egress whose flows to a destination prefix stay where they are while in progress, elected or not: it carries there.
    pub egress_holds: Vec<(Prefix, Egress)>,
    /// Egress that is drained: flows that are still there have outlived it.
    pub egress_drained: Vec<Egress>,
    /// Peers from which a packet with an Internet source is accepted (the egress nodes this network lists).
    pub egress_peers: Vec<PeerIx>,
    /// On a node that offers egress for this network: per destination prefix, whether it may leave (longest match).
    pub offer: Vec<(Prefix, bool)>,
    /// What of this host the mesh may reach.
    pub expose: Vec<Expose>,
}

/// The whole table: networks by `NetworkIx`. Empty places are networks that went away.
#[derive(Debug, Clone, Default)]
pub struct Fib {
    /// By index.
    pub networks: Vec<Option<Arc<NetworkFib>>>,
}

impl Fib {
    /// Compiles all networks.
    pub fn new(specs: impl IntoIterator<Item = Option<NetworkSpec>>) -> Self {
        let compile = |spec: Option<NetworkSpec>| spec.map(|spec| Arc::new(NetworkFib::new(spec)));
        Self { networks: specs.into_iter().map(compile).collect() }
    }

    /// The network of this index.
    pub fn network(&self, network: NetworkIx) -> Option<&NetworkFib> {
        self.networks.get(usize::from(network.0))?.as_deref()
    }
}

/// Who has an address of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// We, as one of our mesh prefixes.
    Mesh,
    /// We, as an announced prefix.
    Announced,
    /// A peer.
    Peer(PeerIx),
}

/// One network, compiled from its [`NetworkSpec`]. Immutable.
#[derive(Debug, Clone)]
pub struct NetworkFib {
    spec: NetworkSpec,
    /// Local subnet to mesh prefix, and back.
    to_mesh: Vec<Mapping>,
    to_local: Vec<Mapping>,
    owners: Lpm<Owner>,
    /// Places in the specification's list.
    egress: Lpm<u32>,
    offer: Lpm<bool>,
}

impl NetworkFib {
    /// Compiles. Pairs of prefixes that do not fit each other are left out: the configuration refuses them before.
    pub fn new(spec: NetworkSpec) -> Self {
        let mut owners = Lpm::default();
        for &(prefix, peer) in &spec.routes {
            owners.insert(prefix, Owner::Peer(peer));
        }
        // Ours last: no peer takes a prefix from us by announcing the same.
        for &prefix in &spec.announced {
            owners.insert(prefix, Owner::Announced);
        }
        for &(_, mesh) in &spec.maps {
            owners.insert(mesh, Owner::Mesh);
        }
        let to_mesh = spec.maps.iter().filter_map(|&(local, mesh)| Mapping::new(local, mesh)).collect();
        let to_local = spec.maps.iter().filter_map(|&(local, mesh)| Mapping::new(mesh, local)).collect();
        let mut egress = Lpm::default();
        // also those for which nobody is elected: their packets do not leave by who carries a shorter prefix
        for (place, (prefix, _)) in spec.egress.iter().enumerate() {
            egress.insert(*prefix, place as u32);
        }
        let offer = Lpm::of(&spec.offer);
        Self { spec, to_mesh, to_local, owners, egress, offer }
    }

    /// What it was compiled from.
    pub fn spec(&self) -> &NetworkSpec {
        &self.spec
    }

    /// Who has this address: longest match over mesh and announced prefixes, ours and others'.
    pub fn owner(&self, address: IpAddr) -> Option<Owner> {
        self.owners.lookup(address)
    }

    /// Where new flows to an address outside the mesh leave: by one of these; empty: nowhere.
    pub fn egress(&self, address: IpAddr) -> &[EgressVia] {
        self.elected(address).map_or(&[], |(_, via)| via)
    }

    /// For which destinations together with this address egress nodes are elected.
    pub fn egress_prefix(&self, address: IpAddr) -> Prefix {
        self.elected(address).map_or(Prefix::default_route(address.is_ipv4()), |(prefix, _)| *prefix)
    }

    fn elected(&self, address: IpAddr) -> Option<&(Prefix, Vec<EgressVia>)> {
        self.spec.egress.get(self.egress.lookup(address)? as usize)
    }

    /// Whether flows in progress to the address may stay with this egress, elected or not.
    pub fn holds(&self, egress: Egress, address: IpAddr) -> bool {
        self.spec.egress_holds.iter().any(|(prefix, held)| *held == egress && prefix.contains(address))
    }

    /// Whether what this node offers as egress includes the address.
    pub fn offers(&self, address: IpAddr) -> bool {
        self.offer.lookup(address) == Some(true)
    }

    /// Whether this node is an egress of the network.
    pub fn is_egress(&self) -> bool {
        !self.spec.offer.is_empty()
    }

    /// Our local subnets to their mesh prefixes.
    pub fn to_mesh(&self) -> &[Mapping] {
        &self.to_mesh
    }

    /// Our mesh prefixes to their local subnets.
    pub fn to_local(&self) -> &[Mapping] {
        &self.to_local
    }

    /// Whether the address lies in one of our local subnets.
    pub fn is_local(&self, address: IpAddr) -> bool {
        holding(&self.to_mesh, address).is_some()
    }
}

/// The mapping whose prefix holds the address.
pub(super) fn holding(maps: &[Mapping], address: IpAddr) -> Option<&Mapping> {
    maps.iter().find(|mapping| mapping.from().contains(address))
}

/// Longest-prefix match for both families.
#[derive(Debug, Clone)]
struct Lpm<T> {
    v4: PrefixMap<(u32, u8), T>,
    v6: PrefixMap<(u128, u8), T>,
}

impl<T> Default for Lpm<T> {
    fn default() -> Self {
        Self { v4: PrefixMap::new(), v6: PrefixMap::new() }
    }
}

impl<T: Copy> Lpm<T> {
    fn of(entries: &[(Prefix, T)]) -> Self {
        let mut lpm = Self::default();
        for &(prefix, value) in entries {
            lpm.insert(prefix, value);
        }
        lpm
    }

    fn insert(&mut self, prefix: Prefix, value: T) {
        match prefix.address() {
            IpAddr::V4(a) => self.v4.insert((a.to_bits(), prefix.len()), value),
            IpAddr::V6(a) => self.v6.insert((a.to_bits(), prefix.len()), value),
        };
    }

    fn lookup(&self, address: IpAddr) -> Option<T> {
        match address {
            IpAddr::V4(a) => self.v4.get_lpm(&(a.to_bits(), 32)).map(|(_, value)| *value),
            IpAddr::V6(a) => self.v6.get_lpm(&(a.to_bits(), 128)).map(|(_, value)| *value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Few distinct prefixes near each other, so that they nest often.
    fn prefix() -> impl Strategy<Value = Prefix> {
        (any::<bool>(), 0u32..4096, 0u8..=32).prop_map(|(v4, bits, len)| {
            if v4 {
                let address = std::net::Ipv4Addr::from_bits(bits << 20);
                Prefix::covering(address.into(), len).unwrap()
            } else {
                let address = std::net::Ipv6Addr::from_bits(u128::from(bits) << 116);
                Prefix::covering(address.into(), len).unwrap()
            }
        })
    }

    proptest! {
        #[test]
        fn lookups_agree_with_a_naive_model(
            routes in proptest::collection::vec((prefix(), 0u32..9), 0..40),
            queries in proptest::collection::vec(prefix(), 1..20),
        ) {
            let lpm = Lpm::of(&routes);
            for query in queries {
                let address = query.address();
                // Of equal prefixes the last one counts.
                let naive = routes
                    .iter()
                    .enumerate()
                    .filter(|(_, (prefix, _))| prefix.contains(address))
                    .max_by_key(|(place, (prefix, _))| (prefix.len(), *place))
                    .map(|(_, (_, value))| *value);
                prop_assert_eq!(lpm.lookup(address), naive);
            }
        }
    }

    #[test]
    fn the_default_route_and_a_single_address_are_found() {
        let p = |text: &str| text.parse::<Prefix>().unwrap();
        let lpm = Lpm::of(&[(p("0.0.0.0/0"), 1), (p("10.0.0.1/32"), 2), (p("fd00::1/128"), 3)]);
        assert_eq!(lpm.lookup("10.0.0.1".parse().unwrap()), Some(2));
        assert_eq!(lpm.lookup("255.255.255.255".parse().unwrap()), Some(1));
        assert_eq!(lpm.lookup("fd00::1".parse().unwrap()), Some(3));
        assert_eq!(lpm.lookup("fd00::2".parse().unwrap()), None);
    }
}
