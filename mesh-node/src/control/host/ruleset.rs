//! The nftables table of ours, as text for `nft -f -`: replaced whole, in one transaction.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use mesh_proto::Prefix;

use super::lease;
use super::routes::MIN_MTU_V6;
use super::{AWAY_MARK, HostEgress, HostNetwork, HostOut, HostState, MARK_MASK, egress_mark};
use crate::forward::fib::Expose;

/// Family and name of our table.
pub const TABLE: &str = "inet mesh";

/// Destinations that are nobody's Internet: RFC 6890 (this network, private, shared, loopback, link local), multicast
/// and above.
const PRIVATE_V4: [&str; 8] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "224.0.0.0/3",
];
/// The same for IPv6: loopback and unspecified, mapped IPv4, unique local, link local, multicast. RFC 6890.
const PRIVATE_V6: [&str; 5] = ["::/127", "::ffff:0.0.0.0/96", "fc00::/7", "fe80::/10", "ff00::/8"];

/// The text that makes our table what the state asks for, whatever it was.
pub fn ruleset(state: &HostState) -> String {
    let mut text = String::new();
    write_table(&mut text, state).expect("writing to a string does not fail");
    text
}

/// The text that removes our table, whether it is there or not.
pub fn removal() -> String {
    format!("add table {TABLE}\ndelete table {TABLE}\n")
}

/// Whether egress "local" carries packets to this destination: what chain `pre` marks.
pub fn leaves_locally(state: &HostState, destination: IpAddr) -> bool {
    let private = PRIVATE_V4.iter().chain(&PRIVATE_V6).filter_map(|text| text.parse::<Prefix>().ok());
    let connected = state.connected.iter().map(|(_, prefix)| *prefix);
    let mesh = state.networks.iter().flat_map(|n| &n.routes).map(|route| route.prefix);
    !private.chain(connected).chain(mesh).any(|prefix| prefix.contains(destination))
}

fn write_table(out: &mut String, state: &HostState) -> std::fmt::Result {
    out.push_str(&removal());
    writeln!(out, "table {TABLE} {{")?;
    for name in ["refused", "spoofed", "redirects", "no_egress", "no_lease"] {
        writeln!(out, "\tcounter {name} {{ }}")?;
    }
    for v4 in [true, false] {
        let number = if v4 { 4 } else { 6 };
        let all = state.networks.iter().flat_map(|network| &network.routes);
        let all: Vec<_> = all.filter(|route| route.prefix.is_v4() == v4).collect();
        let mesh = all.iter().filter(|route| route.mesh).map(|route| route.prefix).collect();
        write_set(out, &format!("mesh{number}"), v4, mesh)?;
        let announced = state.networks.iter().flat_map(|n| &n.announced).map(|a| a.prefix);
        let announced = announced.filter(|prefix| prefix.is_v4() == v4);
        write_set(out, &format!("all{number}"), v4, all.iter().map(|r| r.prefix).chain(announced).collect())?;
    }
    let held = state.lease();
    if !held.marks.is_empty() {
        lease::write_set(out, &held)?;
        chain(out, "renew", "filter hook output priority raw - 5", |lines| lease::renew_lines(lines, &held))?;
    }
    for network in state.networks.iter().filter(|network| !network.own.sources.is_empty()) {
        own_chain(out, network)?;
    }
    for network in state.networks.iter().filter(|network| refuses(network, true) || refuses(network, false)) {
        closed_chain(out, network)?;
    }
    chain(out, "pre", "filter hook prerouting priority mangle", |lines| {
        state.networks.iter().for_each(|network| mark_lines(lines, state, network));
    })?;
    chain(out, "reply", "route hook output priority mangle", |lines| {
        lines.extend(state.networks.iter().map(reply_line));
    })?;
    chain(out, "forward", "filter hook forward priority filter - 5", |lines| forward_lines(lines, state))?;
    chain(out, "input", "filter hook input priority filter - 5", |lines| {
        state.networks.iter().for_each(|network| expose_lines(lines, network));
    })?;
    chain(out, "output", "filter hook output priority filter - 5", |lines| {
        for network in &state.networks {
            let seg = quoted(&network.segment);
            for kind in ["icmp type redirect", "icmpv6 type nd-redirect"] {
                lines.push(format!("oifname {seg} {kind} counter name redirects drop"));
            }
        }
    })?;
    chain(out, "post", "nat hook postrouting priority srcnat - 5", |lines| nat_lines(lines, state))?;
    chain(out, "unmapped", "filter hook postrouting priority srcnat + 5", |lines| {
        unmapped_lines(lines, state)
    })?;
    writeln!(out, "}}")
}

fn write_set(out: &mut String, name: &str, v4: bool, prefixes: Vec<Prefix>) -> std::fmt::Result {
    let kind = if v4 { "ipv4_addr" } else { "ipv6_addr" };
    write!(out, "\tset {name} {{ type {kind}; flags interval; auto-merge;")?;
    if !prefixes.is_empty() {
        write!(out, " elements = {};", braced(prefixes))?;
    }
    writeln!(out, " }}")
}

fn chain(out: &mut String, name: &str, hook: &str, fill: impl FnOnce(&mut Vec<String>)) -> std::fmt::Result {
    let mut lines = Vec::new();
    fill(&mut lines);
    writeln!(out, "\tchain {name} {{\n\t\ttype {hook}; policy accept;")?;
    for line in lines {
        writeln!(out, "\t\t{line}")?;
    }
    writeln!(out, "\t}}")
}

/// Chain `pre`: what belongs to an egress flow, or to one of the host's own with its VM, carries the network's mark.
fn mark_lines(lines: &mut Vec<String>, state: &HostState, network: &HostNetwork) {
    let (tun, seg) = (quoted(&network.tun), quoted(&network.segment));
    let mark = mark_statement(network);
    lines.push(reply_line(network));
    for v4 in [true, false].into_iter().filter(|v4| network.uses_family(*v4)) {
        let (ip, number) = if v4 { ("ip", 4) } else { ("ip6", 6) };
        let of_family = |prefix: &Prefix| prefix.is_v4() == v4;
        let subnets: Vec<Prefix> =
            network.subnets.iter().map(|(subnet, _)| *subnet).filter(of_family).collect();
        for (_, gateway) in network.subnets.iter().filter(|(subnet, _)| subnet.is_v4() == v4) {
            lines.push(format!("iifname {tun} ct direction original {ip} daddr {gateway} {mark}"));
        }
        if network.offer.is_some() {
            let announced = network.announced.iter().map(|announced| announced.prefix).filter(of_family);
            let behind = braced(subnets.iter().copied().chain(announced).collect());
            lines.push(format!("iifname {tun} ct direction original {ip} daddr != {behind} {mark}"));
        }
        if refuses(network, v4) && !subnets.is_empty() {
            // not what is in progress past the TUN. The refusal itself is a rule's: it answers with ICMP, and stands without this
            // table; and with br_netfilter this chain sees what goes from VM to VM as well
            lines.push(format!(
                "iifname {seg} ct direction original ct mark & {MARK_MASK:#010x} != {mark:#010x} {ip} saddr {from} \
                 {ip} daddr != @all{number} fib daddr type != {{ local, broadcast, multicast }} jump closed{slot}",
                mark = egress_mark(network.slot),
                from = braced(subnets.clone()),
                slot = network.slot,
            ));
        }
        let own = network.own.sources_of(v4);
        let mut past: Vec<Prefix> = own.clone();
        past.extend(subnets.iter().filter(|_| network.fallback.is_some()));
        if !past.is_empty() {
            // left past the TUN before another node was elected: what is in progress stays
            let keep = !MARK_MASK;
            lines.push(format!(
                "iifname {seg} ct direction original ct mark & {MARK_MASK:#010x} == {mark:#010x} {ip} saddr {from} meta mark \
                 set meta mark & {keep:#010x} | {mark:#010x}",
                mark = egress_mark(network.slot),
                from = braced(past),
            ));
        }
        if !own.is_empty() {
            // not what left through the TUN before this node was elected: it has another node's address
            lines.push(format!(
                "iifname {seg} ct direction original ct mark & {MARK_MASK:#010x} != {AWAY_MARK:#010x} {ip} saddr {from} \
                 {ip} daddr != @all{number} jump own{slot}",
                from = braced(own),
                slot = network.slot,
            ));
        }
        if matches!(network.out, HostOut::Local(_)) && !subnets.is_empty() {
            let private = if v4 { PRIVATE_V4.as_slice() } else { PRIVATE_V6.as_slice() };
            let private = private.iter().filter_map(|text| text.parse().ok());
            let connected = state.connected.iter().map(|(_, prefix)| *prefix).filter(of_family);
            let closed = braced(private.chain(connected).collect());
            lines.push(format!(
                "iifname {seg} ct direction original {ip} saddr {from} {ip} daddr != {closed} {ip} daddr != \
                 @all{number} {mark}",
                from = braced(subnets),
            ));
        }
    }
}

/// Marks the packet and its flow as of a network's egress.
fn mark_statement(network: &HostNetwork) -> String {
    format!(
        "meta mark set meta mark & {keep:#010x} | {mark:#010x} ct mark set ct mark & {keep:#010x} | {mark:#010x}",
        keep = !MARK_MASK,
        mark = egress_mark(network.slot),
    )
}

/// What of the own VMs' traffic leaves at once.
fn own_chain(out: &mut String, network: &HostNetwork) -> std::fmt::Result {
    let mark = mark_statement(network);
    let of = |(to, leaves): &(Prefix, bool)| (*to, if *leaves { mark.as_str() } else { "" });
    destination_chain(out, &format!("own{}", network.slot), network.own.destinations.iter().map(of).collect())
}

/// Counts what is refused.
fn closed_chain(out: &mut String, network: &HostNetwork) -> std::fmt::Result {
    let families = [true, false].into_iter().filter(|v4| refuses(network, *v4));
    let of =
        |(to, mtu): (Prefix, Option<u32>)| (to, if mtu.is_none() { "counter name no_egress" } else { "" });
    let all = families.flat_map(|v4| network.destinations(v4)).map(of).collect();
    destination_chain(out, &format!("closed{}", network.slot), all)
}

/// A chain to jump to, with a statement for each destination. The longest prefix decides, so it stands first.
fn destination_chain(out: &mut String, name: &str, mut all: Vec<(Prefix, &str)>) -> std::fmt::Result {
    all.sort_by_key(|(to, _)| std::cmp::Reverse(to.len()));
    writeln!(out, "\tchain {name} {{")?;
    for (to, statement) in all {
        let ip = if to.is_v4() { "ip" } else { "ip6" };
        let gap = if statement.is_empty() { "" } else { " " };
        writeln!(out, "\t\t{ip} daddr {to} {statement}{gap}return")?;
    }
    writeln!(out, "\t}}")
}

/// Whether anything of a family that would leave is refused for want of an egress node.
fn refuses(network: &HostNetwork, v4: bool) -> bool {
    network.uses_family(v4) && network.destinations(v4).iter().any(|(_, mtu)| mtu.is_none())
}

/// Replies of a marked flow carry its mark back; so do the ICMP errors about it.
fn reply_line(network: &HostNetwork) -> String {
    let mark = egress_mark(network.slot);
    let keep = !MARK_MASK;
    format!(
        "ct direction reply ct mark & {MARK_MASK:#010x} == {mark:#010x} meta mark set meta mark & {keep:#010x} | \
         {mark:#010x}"
    )
}

fn forward_lines(lines: &mut Vec<String>, state: &HostState) {
    for network in &state.networks {
        let tun = quoted(&network.tun);
        lease::forward_lines(lines, network, &tun);
        ended_lines(lines, network);
        away_lines(lines, network);
        // `rt mtu` takes the smaller of both directions' routes: one rule each way clamps SYN and SYN-ACK.
        for side in ["oifname", "iifname"] {
            lines.push(format!("{side} {tun} tcp flags syn tcp option maxseg size set rt mtu"));
        }
        narrow_lines(lines, network);
    }
    for uplink in state.outside() {
        for (ip, number) in [("ip", 4), ("ip6", 6)] {
            let up = quoted(&uplink);
            lines.push(format!("iifname {up} {ip} saddr @mesh{number} counter name spoofed drop"));
        }
    }
}

/// TCP of own VMs that has outlived a drain, and that no other node saw, ends with its next packet. What the server sends still
/// gets through: the VM answers, and hears of it. Its own RST is for the server, and a SYN begins something new.
fn ended_lines(lines: &mut Vec<String>, network: &HostNetwork) {
    let (seg, mark) = (quoted(&network.segment), egress_mark(network.slot));
    for (v4, ip) in [(true, "ip"), (false, "ip6")] {
        let own = network.own.sources_of(v4);
        if network.own.ended && !own.is_empty() {
            lines.push(format!(
                "iifname {seg} {ip} saddr {from} ct direction original ct mark & {MARK_MASK:#010x} == {mark:#010x} \
                 tcp flags & (syn | rst) == 0x0 reject with tcp reset",
                from = braced(own),
            ));
        }
    }
}

/// What of own VMs leaves through the TUN is marked, so that it stays there.
fn away_lines(lines: &mut Vec<String>, network: &HostNetwork) {
    let (seg, tun, keep) = (quoted(&network.segment), quoted(&network.tun), !MARK_MASK);
    for (v4, ip, number) in [(true, "ip", 4), (false, "ip6", 6)] {
        let own = network.own.sources_of(v4);
        if !own.is_empty() {
            lines.push(format!(
                "iifname {seg} oifname {tun} ct direction original ct mark & {MARK_MASK:#010x} == 0x0 {ip} saddr {from} \
                 {ip} daddr != @all{number} ct mark set ct mark & {keep:#010x} | {AWAY_MARK:#010x}",
                from = braced(own),
            ));
        }
    }
}

/// The kernel takes no IPv6 route's MTU for less than 1,280 (RFC 8200 section 5), so that `rt mtu` is too much where the
/// underlay itself carries no more than about that. TCP gets through by a segment size in numbers.
fn narrow_lines(lines: &mut Vec<String>, network: &HostNetwork) {
    const HEADERS: u32 = 60;
    let tun = quoted(&network.tun);
    let mut clamp = |prefixes: &str, mtu: u32| {
        for (side, address) in [("oifname", "daddr"), ("iifname", "saddr")] {
            lines.push(format!(
                "{side} {tun} ip6 {address} {prefixes} tcp flags syn tcp option maxseg size set {}",
                mtu.saturating_sub(HEADERS)
            ));
        }
    };
    let mut narrow: BTreeMap<u32, Vec<Prefix>> = BTreeMap::new();
    for route in network.routes.iter().filter(|route| !route.prefix.is_v4()) {
        if let Some(mtu) = route.mtu.filter(|mtu| *mtu < MIN_MTU_V6) {
            narrow.entry(mtu).or_default().push(route.prefix);
        }
    }
    for (mtu, prefixes) in narrow {
        clamp(&braced(prefixes), mtu);
    }
    for (to, mtu) in network.destinations(false).into_iter().rev() {
        if let Some(mtu) = mtu.filter(|mtu| *mtu < MIN_MTU_V6) {
            // the default route comes first, and what is narrower changes it
            clamp(&if to.len() == 0 { "!= @all6".to_owned() } else { to.to_string() }, mtu);
        }
    }
}

fn expose_lines(lines: &mut Vec<String>, network: &HostNetwork) {
    let tun = quoted(&network.tun);
    if network.expose.contains(&Expose::All) {
        lines.push(format!("iifname {tun} accept"));
        return;
    }
    lines.push(format!("iifname {tun} ct state established,related accept"));
    for expose in &network.expose {
        let what = match expose {
            Expose::Icmp => "meta l4proto { icmp, ipv6-icmp }".to_owned(),
            Expose::Tcp(port) => format!("tcp dport {port}"),
            Expose::Udp(port) => format!("udp dport {port}"),
            Expose::All => continue,
        };
        lines.push(format!("iifname {tun} {what} accept"));
    }
    lines.push(format!("iifname {tun} counter name refused drop"));
}

fn nat_lines(lines: &mut Vec<String>, state: &HostState) {
    let inside: Vec<String> =
        state.networks.iter().flat_map(|n| [quoted(&n.tun), quoted(&n.segment)]).collect();
    for network in &state.networks {
        for egress in network.egresses() {
            for v4 in [true, false].into_iter().filter(|v4| network.uses_family(*v4)) {
                lines.push(egress_line(network, egress, v4, &inside));
            }
        }
    }
    for network in &state.networks {
        let tun = quoted(&network.tun);
        // The first NAT decision of a flow is final: this one keeps others' masquerading away from the mesh.
        lines.push(format!("oifname {tun} meta nfproto ipv4 snat ip to ip saddr"));
        lines.push(format!("oifname {tun} meta nfproto ipv6 snat ip6 to ip6 saddr"));
    }
}

/// A flow that began while a tunnel took it was not mapped, and NAT is decided once a flow: when the network comes to leave by
/// this host, its packets must not go out with a private source. `io` has such flows forgotten; this is for the moment before.
fn unmapped_lines(lines: &mut Vec<String>, state: &HostState) {
    for network in state.networks.iter().filter(|network| matches!(network.out, HostOut::Local(_))) {
        let mark = egress_mark(network.slot);
        for v4 in [true, false].into_iter().filter(|v4| network.uses_family(*v4)) {
            let of_family = |prefix: &Prefix| prefix.is_v4() == v4;
            let subnets =
                network.subnets.iter().map(|(subnet, _)| *subnet).filter(of_family).collect::<Vec<_>>();
            if !subnets.is_empty() {
                let (ip, from) = (if v4 { "ip" } else { "ip6" }, braced(subnets));
                lines.push(format!(
                    "ct direction original meta mark & {MARK_MASK:#010x} == {mark:#010x} {ip} saddr {from} counter name \
                     no_egress drop"
                ));
            }
        }
    }
}

fn egress_line(network: &HostNetwork, egress: &HostEgress, v4: bool, inside: &[String]) -> String {
    let (proto, ip) = if v4 { ("ipv4", "ip") } else { ("ipv6", "ip6") };
    let to = match &egress.interface {
        Some(interface) => quoted(interface),
        None => format!("!= {{ {} }}", inside.join(", ")),
    };
    let translate = match egress.snat.iter().find(|address| address.is_ipv4() == v4) {
        Some(address) => format!("snat {ip} to {address}"),
        None => "masquerade".to_owned(),
    };
    let mark = egress_mark(network.slot);
    format!("oifname {to} meta nfproto {proto} meta mark & {MARK_MASK:#010x} == {mark:#010x} {translate}")
}

/// Interface names go in quotes: they may be anything but a slash or white space. A quote would end the string; the
/// kernel accepts one in a name, so it is left out (and the rule matches nothing).
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace(['"', '\n', '\\'], ""))
}

/// A set's elements: sorted, without prefixes that lie within another (nft refuses overlaps in an anonymous set).
fn braced(mut prefixes: Vec<Prefix>) -> String {
    prefixes.sort();
    let mut outer: Vec<Prefix> = Vec::with_capacity(prefixes.len());
    for prefix in prefixes {
        // By address, then length: what covers a prefix comes before it, and nothing lies between that it does not cover.
        if !outer.last().is_some_and(|last| last.covers(&prefix)) {
            outer.push(prefix);
        }
    }
    let texts: Vec<String> = outer.iter().map(Prefix::to_string).collect();
    format!("{{ {} }}", texts.join(", "))
}
