//! The routing rules: who looks into which table, in which order. One class of rules has one priority for all networks.
//!
//! The kernel answers reverse-path checks by the same rules: it looks up the source as if it came in by the device the
//! packet leaves by (`lo` for local delivery). Each rule is therefore also the answer to such a lookup.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_proto::Prefix;

use super::routes::{ISO_TABLE, in_table, mesh_table, out_table};
use super::{BASE_PRIORITY, HostNetwork, HostState, UNDERLAY_MARK, egress_mark};

/// The kernel's main table (`RT_TABLE_MAIN`).
pub const MAIN_TABLE: u32 = 254;
const LOOPBACK: &str = "lo";

/// What a matching lookup does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Goes on here; the target of a `Goto`.
    Nop,
    /// Refused with an ICMP error.
    Prohibit,
    /// Dropped in silence.
    Blackhole,
    /// Refused with ICMP net unreachable (IPv6: no route).
    Unreachable,
    /// Looks into this table.
    Table(u32),
    /// Continues at this priority.
    Goto(u32),
}

/// What a lookup must be like for a rule to apply, and where the rule stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector {
    /// Lower is asked first.
    pub priority: u32,
    /// IPv4, else IPv6.
    pub v4: bool,
    /// Incoming interface; `lo` for what the host itself sends.
    pub iif: Option<String>,
    /// Mark, compared under `MARK_MASK`.
    pub mark: Option<u32>,
    /// Source.
    pub from: Option<Prefix>,
    /// Destination.
    pub to: Option<Prefix>,
}

/// A routing rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// When it applies.
    pub selector: Selector,
    /// What it does.
    pub action: Action,
}

/// All rules of the state. Where several have the same selector they are asked in this order. `closed` are the uplinks
/// (family IPv4 or not, name) whose forwarding is ours: nothing but what the earlier rules know may come in there.
pub fn rules(state: &HostState, closed: &BTreeSet<(bool, String)>) -> Vec<Rule> {
    let mut list = Vec::new();
    for v4 in [true, false].into_iter().filter(|v4| state.uses_family(*v4)) {
        let mut family = Family { v4, list: &mut list };
        family.host();
        for network in &state.networks {
            family.tunnel(network);
            if network.uses_family(v4) {
                family.marked(network);
                family.segment(network);
                family.host_sockets(network);
            }
        }
        for (_, uplink) in closed.iter().filter(|(of_v4, _)| *of_v4 == v4) {
            family.add(59, Match::iif(uplink), Action::Blackhole);
        }
    }
    list.sort_by_key(|rule| rule.selector.priority);
    list
}

/// The selectors of a rule without place and family.
#[derive(Default, Clone)]
struct Match {
    iif: Option<String>,
    mark: Option<u32>,
    from: Option<Prefix>,
    to: Option<Prefix>,
}

impl Match {
    fn iif(name: &str) -> Self {
        Self { iif: Some(name.to_owned()), ..Self::default() }
    }

    fn mark(mark: u32) -> Self {
        Self { mark: Some(mark), ..Self::default() }
    }

    fn marked(self, mark: u32) -> Self {
        Self { mark: Some(mark), ..self }
    }

    fn from(self, from: Prefix) -> Self {
        Self { from: Some(from), ..self }
    }
}

struct Family<'a> {
    v4: bool,
    list: &'a mut Vec<Rule>,
}

impl Family<'_> {
    fn add(&mut self, class: u32, m: Match, action: Action) {
        let Match { iif, mark, from, to } = m;
        let selector = Selector { priority: BASE_PRIORITY + class, v4: self.v4, iif, mark, from, to };
        self.list.push(Rule { selector, action });
    }

    /// By an egress node, or nowhere.
    fn out(&mut self, class: u32, m: Match, slot: u8) {
        self.add(class, m.clone(), Action::Table(out_table(slot)));
        self.add(class, m, Action::Unreachable);
    }

    /// Rules that no network owns.
    fn host(&mut self) {
        // Underlay sockets never follow the overlay.
        self.add(0, Match::mark(UNDERLAY_MARK), Action::Table(MAIN_TABLE));
        self.add(40, Match::default(), Action::Nop);
        if !self.v4 {
            // A rule with a source never matches an IPv6 lookup without one: "has a source" is one half or the other.
            let halves = [Ipv6Addr::UNSPECIFIED, Ipv6Addr::new(0x8000, 0, 0, 0, 0, 0, 0, 0)];
            for half in halves.into_iter().filter_map(|half| Prefix::covering(IpAddr::V6(half), 1).ok()) {
                self.add(51, Match::iif(LOOPBACK).from(half), Action::Goto(BASE_PRIORITY + 60));
            }
            self.add(60, Match::default(), Action::Nop);
        }
    }

    /// What comes out of the tunnel.
    fn tunnel(&mut self, network: &HostNetwork) {
        let tun = Match::iif(&network.tun);
        if network.offer.is_some() {
            self.add(10, tun.clone().marked(egress_mark(network.slot)), Action::Table(MAIN_TABLE));
        }
        self.add(11, tun, Action::Table(in_table(network.slot)));
    }

    /// Egress flows and their replies.
    fn marked(&mut self, network: &HostNetwork) {
        let mark = egress_mark(network.slot);
        if network.leaves_past_tun() {
            self.add(20, Match::iif(&network.segment).marked(mark), Action::Table(MAIN_TABLE));
        }
        let v4 = self.v4;
        for announced in network.announced.iter().filter(|a| !a.internet_own && a.prefix.is_v4() == v4) {
            // an answer: not into the TUN, where it would be a flow of its own
            let answer = Match { to: Some(announced.prefix), ..Match::mark(mark) };
            self.add(20, answer, Action::Table(in_table(network.slot)));
        }
        self.add(21, Match::mark(mark), Action::Table(mesh_table(network.slot)));
        // For lookups of nft's `fib` alone, which come as the host's own.
        self.add(22, Match::iif(LOOPBACK).marked(mark), Action::Table(MAIN_TABLE));
        self.add(23, Match::mark(mark), Action::Table(in_table(network.slot)));
    }

    /// What comes from the segment, and what goes to its announced prefixes.
    fn segment(&mut self, network: &HostNetwork) {
        let (slot, v4) = (network.slot, self.v4);
        let seg = Match::iif(&network.segment);
        for (subnet, _) in network.subnets.iter().filter(|(subnet, _)| subnet.is_v4() == v4) {
            self.add(30, seg.clone().from(*subnet), Action::Table(mesh_table(slot)));
            self.out(32, seg.clone().from(*subnet), slot);
        }
        for announced in network.announced.iter().filter(|a| a.prefix.is_v4() == v4) {
            let from = seg.clone().from(announced.prefix);
            self.add(30, from.clone(), Action::Table(mesh_table(slot)));
            if announced.internet_own {
                self.add(31, from.clone(), Action::Table(ISO_TABLE));
                self.add(31, from, Action::Table(MAIN_TABLE));
            } else {
                self.out(32, from, slot);
            }
            let to = Match { to: Some(announced.prefix), ..Match::default() };
            self.add(40, to, Action::Table(in_table(slot)));
        }
        // Any other source is forged.
        self.add(33, seg, Action::Prohibit);
    }

    /// The host's own sockets, and lookups that look like theirs.
    fn host_sockets(&mut self, network: &HostNetwork) {
        let v4 = self.v4;
        let mesh = Action::Table(mesh_table(network.slot));
        let own = Match::iif(LOOPBACK);
        for (subnet, gateway) in network.subnets.iter().filter(|(subnet, _)| subnet.is_v4() == v4) {
            self.add(38, own.clone().from(Prefix::host(*gateway)), Action::Goto(BASE_PRIORITY + 40));
            self.add(39, own.clone().from(*subnet), mesh);
            self.out(39, own.clone().from(*subnet), network.slot);
            self.add(50, own.clone().from(*subnet), mesh);
        }
        for announced in network.announced.iter().filter(|a| a.prefix.is_v4() == v4) {
            self.add(39, own.clone().from(announced.prefix), mesh);
        }
        // Unbound sockets. IPv4: this source is exactly "none yet".
        let unbound = if self.v4 { own.from(Prefix::host(IpAddr::V4(Ipv4Addr::UNSPECIFIED))) } else { own };
        self.add(52, unbound, mesh);
    }
}

/// What to remove and then to add, so that `actual` (in the kernel's order) becomes `desired`. Rules of one selector have
/// an order, and the kernel appends: where that does not do, all of that selector are renewed; else those that stay are left
/// alone, since packets go by them. Additions come targets of a jump first, then refusals that stand alone, then the rest by
/// priority.
pub fn rule_changes(desired: &[Rule], actual: &[Rule]) -> (Vec<Rule>, Vec<Rule>) {
    let (wanted, present) = (by_selector(desired), by_selector(actual));
    let (mut remove, mut add) = (Vec::new(), Vec::new());
    let none = Vec::new();
    for selector in present.keys().chain(wanted.keys()).collect::<BTreeSet<_>>() {
        let there = present.get(*selector).unwrap_or(&none);
        let desired = wanted.get(*selector).unwrap_or(&none);
        let mut stay: Vec<Action> = there.iter().copied().filter(|action| desired.contains(action)).collect();
        if !desired.starts_with(&stay) {
            stay.clear();
        }
        let rule = |action: &Action| Rule { selector: (**selector).clone(), action: *action };
        remove.extend(there.iter().filter(|action| !stay.contains(action)).map(rule));
        add.extend(desired.iter().filter(|action| !stay.contains(action)).map(rule));
    }
    // by the first action of a selector, so that its others stay behind it
    add.sort_by_key(|rule| match wanted[&rule.selector][0] {
        Action::Nop => 0,
        Action::Prohibit | Action::Blackhole | Action::Unreachable => 1,
        Action::Table(_) | Action::Goto(_) => 2,
    });
    (remove, add)
}

fn by_selector(rules: &[Rule]) -> BTreeMap<&Selector, Vec<Action>> {
    let mut map: BTreeMap<&Selector, Vec<Action>> = BTreeMap::new();
    for rule in rules {
        let actions = map.entry(&rule.selector).or_default();
        // Two networks may ask for the same rule; the kernel holds it once.
        if !actions.contains(&rule.action) {
            actions.push(rule.action);
        }
    }
    map
}
