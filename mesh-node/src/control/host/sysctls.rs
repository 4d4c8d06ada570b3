//! The sysctls forwarding needs: per device, never the global switches, which overwrite every device's value.

use std::collections::BTreeSet;

use super::HostState;

/// A sysctl by the parts of its path: an interface name may hold a dot, so that a dotted key would be ambiguous.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Sysctl {
    /// Parts of the path below `/proc/sys`.
    pub path: Vec<String>,
    /// The value it should have.
    pub value: String,
}

impl Sysctl {
    fn device(family: &str, device: &str, key: &str) -> Self {
        let path = ["net", family, "conf", device, key].map(str::to_owned).to_vec();
        Self { path, value: "1".to_owned() }
    }

    /// Whether a present value stays as it is although another is asked for: a device that takes no router advertisements
    /// is not made to.
    pub fn yields_to(&self, present: &str) -> bool {
        present == "0" && self.path.last().is_some_and(|key| key == "accept_ra")
    }

    /// Whether this one opens forwarding: written last at start, restored first at a stop.
    pub fn forwards(&self) -> bool {
        self.path.last().is_some_and(|key| key == "forwarding" || key == "force_forwarding")
    }
}

/// The switch of a device: IPv6 forwards by `forwarding` of a device only from `all`, so it has another.
pub fn forwarding(v4: bool, device: &str) -> Sysctl {
    match v4 {
        true => Sysctl::device("ipv4", device, "forwarding"),
        false => Sysctl::device("ipv6", device, "force_forwarding"),
    }
}

/// All sysctls of the state.
pub fn sysctls(state: &HostState) -> BTreeSet<Sysctl> {
    let mut found = BTreeSet::new();
    for v4 in [true, false] {
        for network in state.networks.iter().filter(|network| network.uses_family(v4)) {
            found.insert(forwarding(v4, &network.tun));
            found.insert(forwarding(v4, &network.segment));
        }
        found.extend(state.forwarding_uplinks(v4).iter().map(|uplink| forwarding(v4, uplink)));
    }
    let valid_mark = |device: &str| Sysctl::device("ipv4", device, "src_valid_mark");
    for network in state.networks.iter().filter(|network| network.uses_family(true)) {
        found.insert(valid_mark(&network.tun));
        for egress in network.egresses() {
            match &egress.interface {
                Some(interface) => drop(found.insert(valid_mark(interface))),
                None => found.extend(state.uplinks.iter().map(|uplink| valid_mark(uplink))),
            }
        }
        if network.leaves_past_tun() {
            found.insert(valid_mark(&network.segment));
        }
    }
    let answering = state.proxy_neighbours();
    for (uplink, _) in answering.iter().filter(|(_, address)| address.is_ipv6()) {
        // The kernel answers neighbour solicitations for others only on a device with both; `force_forwarding` does not
        // count there. And `forwarding` drops default routes learned by router advertisement, on every device that
        // does not insist on them.
        found.insert(Sysctl::device("ipv6", uplink, "proxy_ndp"));
        found.insert(Sysctl::device("ipv6", uplink, "forwarding"));
        for device in &state.uplinks {
            found.insert(Sysctl { value: "2".to_owned(), ..Sysctl::device("ipv6", device, "accept_ra") });
        }
    }
    found
}
