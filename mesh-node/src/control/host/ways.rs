//! The ways by which a network's packets leave this host to the Internet, and whose flows end when one of them is lost: what is
//! tracked of others and of this host's own VMs has the same mark.

use std::net::IpAddr;

use mesh_proto::Prefix;

use super::{HostEgress, HostNetwork};

/// Of one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ways {
    /// Of those for whom this host is the egress node.
    offer: Option<HostEgress>,
    /// Of its own VMs, which leave "local" or have fallen back to that.
    local: Option<HostEgress>,
    /// Where its own VMs are.
    own: Vec<Prefix>,
}

/// Whose flows cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// Nobody's.
    Nothing,
    /// Those of this host's own VMs.
    Own,
    /// All but those.
    Others,
    /// All.
    All,
}

impl Ways {
    /// Those of a network; `None`: it has none.
    pub fn of(network: &HostNetwork) -> Option<Self> {
        let local = network.local().cloned();
        if network.offer.is_none() && local.is_none() {
            return None;
        }
        let subnets = network.subnets.iter().map(|(subnet, _)| *subnet);
        let own = subnets.chain(network.announced.iter().map(|announced| announced.prefix)).collect();
        Some(Self { offer: network.offer.clone(), local, own })
    }

    /// What is lost when these become others. A way that is only added ends nothing; without a local way, own VMs may have
    /// left by the offer.
    pub fn lost(&self, now: Option<&Self>) -> Lost {
        let offer = self.offer.is_some() && self.offer.as_ref() != now.and_then(|ways| ways.offer.as_ref());
        let local = self.local.is_some() && self.local.as_ref() != now.and_then(|ways| ways.local.as_ref());
        match (offer, local) {
            (false, false) => Lost::Nothing,
            (false, true) if self.offer.is_some() => Lost::Own,
            (true, false) if self.local.is_some() => Lost::Others,
            _ => Lost::All,
        }
    }

    /// Whether a flow that began at this address is one of this host's own VMs.
    pub fn is_own(&self, source: IpAddr) -> bool {
        self.own.iter().any(|prefix| prefix.contains(source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(snat: &str) -> Option<HostEgress> {
        Some(HostEgress { interface: Some("wan0".into()), snat: vec![snat.parse().unwrap()] })
    }

    #[test]
    fn flows_end_where_their_way_is_lost_and_not_where_one_is_added() {
        let ways = |offer: &Option<HostEgress>, local: &Option<HostEgress>| {
            let own = vec!["192.168.100.0/24".parse().unwrap()];
            (offer.is_some() || local.is_some()).then(|| Ways {
                offer: offer.clone(),
                local: local.clone(),
                own,
            })
        };
        let (one, other, no) = (way("198.51.100.11"), way("198.51.100.12"), None);
        for (before, now, lost) in [
            ((&one, &no), (&one, &no), Lost::Nothing),
            // an egress node falls back to itself, and stops to
            ((&one, &no), (&one, &one), Lost::Nothing),
            ((&one, &one), (&one, &no), Lost::Own),
            // another address; the role is lost, while its own VMs leave by it as before
            ((&one, &no), (&other, &no), Lost::All),
            ((&one, &one), (&no, &one), Lost::Others),
            ((&one, &one), (&other, &one), Lost::Others),
            ((&one, &one), (&other, &other), Lost::All),
            ((&no, &one), (&no, &no), Lost::All),
            ((&no, &one), (&one, &no), Lost::All),
        ] {
            let (before, now) = (ways(before.0, before.1).unwrap(), ways(now.0, now.1));
            assert_eq!(before.lost(now.as_ref()), lost, "{before:?} {now:?}");
            assert!(before.is_own("192.168.100.10".parse().unwrap()));
            assert!(!before.is_own("10.77.2.10".parse().unwrap()));
        }
    }
}
