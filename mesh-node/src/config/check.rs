//! What the values must be to one another, and to the interfaces.

use std::net::IpAddr;

use mesh_proto::{Prefix, limits};

use super::walk::Walk;
use super::{Config, NetworkConfig, ResolvedNetwork};

pub(super) fn check(c: &Config, w: &mut Walk<'_>) {
    if let Some(n) = c.networks.get(limits::MAX_NETWORKS) {
        w.error(
            n.line,
            format!("network = {}: more than {} networks; remove some", n.name, limits::MAX_NETWORKS),
        );
    }
    for (i, p) in c.peers.iter().enumerate() {
        if c.peers[..i].iter().any(|q| q.endpoint == p.endpoint) {
            w.error(p.line, format!("endpoint = {}: given twice; remove one [[peer]]", p.endpoint));
        }
    }
    for (i, n) in c.networks.iter().enumerate() {
        if let Err(all) = n.pairs(&n.subnets)
            && !n.subnets.is_empty()
        {
            all.into_iter().for_each(|e| w.error(n.line, e));
        }
        let own = n.announced();
        for (k, p) in own.iter().enumerate() {
            if own[..k].iter().any(|q| q.overlaps(p)) {
                w.error(n.line, format!("prefix = {p}: overlaps another of network {}; remove one", n.name));
            }
        }
        for m in &c.networks[..i] {
            if m.name == n.name {
                w.error(
                    n.line,
                    format!("name = {}: given twice, first in line {}; rename one", n.name, m.line),
                );
            }
            if m.interface == n.interface {
                w.error(
                    n.line,
                    format!("interface = {}: already of network {}; give another", n.interface, m.name),
                );
            }
            overlap(w, n, m, "subnet", &n.subnets, &m.subnets);
            overlap(w, n, m, "prefix", &own, &m.announced());
        }
    }
    for (i, e) in c.egress.iter().enumerate() {
        for (k, name) in e.networks.iter().enumerate() {
            if !c.networks.iter().any(|n| n.name == *name) {
                w.error(e.line, format!("network = {name}: no such [[network]]; add it or correct the name"));
            }
            if e.networks[..k].contains(name) || c.egress[..i].iter().any(|o| o.networks.contains(name)) {
                w.error(e.line, format!("network = {name}: has two [[egress]]; keep one"));
            }
        }
    }
}

fn overlap(
    w: &mut Walk<'_>,
    n: &NetworkConfig,
    m: &NetworkConfig,
    key: &str,
    mine: &[Prefix],
    other: &[Prefix],
) {
    for p in mine {
        if let Some(q) = other.iter().find(|q| q.overlaps(p)) {
            w.error(n.line, format!("{key} = {p}: overlaps {q} of network {}; give another", m.name));
        }
    }
}

impl NetworkConfig {
    fn announced(&self) -> Vec<Prefix> {
        let main = if self.prefixes.is_empty() { &self.subnets } else { &self.prefixes };
        main.iter().copied().chain(self.announce.iter().map(|a| a.prefix)).collect()
    }

    fn pairs(&self, subnets: &[Prefix]) -> Result<Vec<(Prefix, Prefix)>, Vec<String>> {
        if self.prefixes.is_empty() {
            return Ok(subnets.iter().map(|s| (*s, *s)).collect());
        }
        let mut errors = Vec::new();
        let mut pairs = Vec::new();
        for v4 in [true, false] {
            let family = |all: &[Prefix]| all.iter().copied().filter(|p| p.is_v4() == v4).collect::<Vec<_>>();
            let (s, p) = (family(subnets), family(&self.prefixes));
            if s.len() != p.len() {
                let what = if v4 { "IPv4" } else { "IPv6" };
                errors.push(format!(
                    "prefix: network {} has {} {what} prefixes for {} subnets; give one for each",
                    self.name,
                    p.len(),
                    s.len()
                ));
            }
            for (s, p) in s.into_iter().zip(p) {
                if s.len() != p.len() {
                    errors.push(format!("prefix = {p}: length differs from subnet {s}; give a /{}", s.len()));
                }
                pairs.push((s, p));
            }
        }
        if errors.is_empty() { Ok(pairs) } else { Err(errors) }
    }

    /// Fills in what the interface's addresses say.
    pub fn resolve(&self, interface_addresses: &[(IpAddr, u8)]) -> Result<ResolvedNetwork, Vec<String>> {
        let usable: Vec<_> = interface_addresses
            .iter()
            .filter(|(a, _)| match a {
                IpAddr::V4(_) => true,
                IpAddr::V6(a) => !a.is_unicast_link_local(),
            })
            .collect();
        let mut subnets = self.subnets.clone();
        if subnets.is_empty() {
            for (a, len) in &usable {
                let p = Prefix::covering(*a, *len).map_err(|e| vec![e.to_string()])?;
                // an IPv4 network stays one when its bridge has an IPv6 address as well
                let wanted = self.prefixes.is_empty() || self.prefixes.iter().any(|x| x.same_family(&p));
                if wanted && !subnets.contains(&p) {
                    subnets.push(p);
                }
            }
        }
        let mut errors = Vec::new();
        if subnets.is_empty() {
            errors.push(format!(
                "interface = {0}: has no address; ip addr add ADDRESS/LEN dev {0}",
                self.interface
            ));
        }
        let mut gateways = Vec::new();
        for s in &subnets {
            match usable.iter().find(|(a, _)| s.contains(*a)) {
                Some((a, _)) => gateways.push((*s, *a)),
                None => errors.push(format!(
                    "interface = {0}: has no address in {s}; ip addr add ADDRESS/{1} dev {0}",
                    self.interface,
                    s.len()
                )),
            }
        }
        match self.pairs(&subnets) {
            Ok(maps) if errors.is_empty() => Ok(ResolvedNetwork { maps, subnets_with_gateway: gateways }),
            Ok(_) => Err(errors),
            Err(more) => Err(errors.into_iter().chain(more).collect()),
        }
    }
}
