//! `mesh-ctl trace` against the truth: the table first, then the real packet, caught on every device that the table names.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run in real time and fail by panic"
)]

use lab::world::{WEB4, WEB6, wait_until};
use lab::{Host, Lab, Net, Plan, Vm};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// One packet to trace and to send.
struct Case<'a> {
    /// The node that mesh-ctl asks.
    asked: &'a str,
    /// The VM that sends, and its host.
    vm: (&'a str, &'a str),
    from: &'a str,
    to: &'a str,
    /// What `from` and `to` are called on the command line, where not by themselves.
    told: Option<(&'a str, &'a str)>,
    /// TCP to port 80; else a ping.
    tcp: bool,
    /// Host, source, destination of each hop.
    table: &'a [(&'a str, &'a str, &'a str)],
}

const CASE: Case<'_> = Case {
    asked: "ph1",
    vm: ("vm1", "ph1"),
    from: "192.168.100.10",
    to: "",
    told: None,
    tcp: false,
    table: &[],
};

fn text<'a>(hop: &'a Value, key: &str) -> &'a str {
    hop[key].as_str().unwrap_or_default()
}

fn hops(trace: &Value) -> Vec<&Value> {
    trace["hops"].as_array().map(|hops| hops.iter().collect()).unwrap_or_default()
}

/// (source, destination, there rather than back) of a line of tcpdump.
fn packet(line: &str) -> Option<(String, String, bool)> {
    let mut words = line.split_whitespace().skip_while(|word| !word.starts_with("IP")).skip(1);
    let (source, _, destination) = (words.next()?, words.next()?, words.next()?.trim_end_matches(':'));
    if line.contains("ICMP") {
        return Some((source.into(), destination.into(), line.contains("echo request")));
    }
    let (source, _) = source.rsplit_once('.')?;
    let (destination, port) = destination.rsplit_once('.')?;
    Some((source.into(), destination.into(), port == "80"))
}

/// Devices by host, and what passed there: (source, destination, there rather than back).
type Seen = BTreeMap<(String, String), Vec<(String, String, bool)>>;

/// Sends the packet while each device that the table names is listened to.
fn send(lab: &mut Lab, case: &Case<'_>, trace: &Value) -> Seen {
    let mut places: Vec<(String, String)> = vec![(case.vm.0.to_owned(), "eth0".to_owned())];
    for hop in hops(trace) {
        let place = (text(hop, "node").to_owned(), text(hop, "device").to_owned());
        if !place.1.is_empty() && !places.contains(&place) {
            places.push(place);
        }
        // where the tunnel ends
        let far = (text(hop, "node").to_owned(), "mesh-default".to_owned());
        if !places.contains(&far) {
            places.push(far);
        }
    }
    let filter = "icmp or icmp6 or tcp port 80";
    let wires: Vec<_> = places.iter().map(|(ns, device)| lab.capture(ns, device, filter).unwrap()).collect();
    if case.tcp {
        let url = format!("http://{}/", case.to);
        lab.exec(case.vm.0, &["curl", "-sS", "--noproxy", "*", "-m", "3", "--interface", case.from, &url])
            .unwrap();
    } else {
        let ping = ["ping", "-n", "-c", "3", "-i", "0.2", "-W", "1", "-I", case.from, case.to];
        lab.exec(case.vm.0, &ping).unwrap();
    }
    let mut seen = Seen::new();
    for (place, wire) in places.into_iter().zip(wires) {
        seen.insert(place, wire.stop().unwrap().lines.iter().filter_map(|line| packet(line)).collect());
    }
    seen
}

fn passed(seen: &Seen, node: &str, device: &str, source: &str, destination: &str, forward: bool) -> bool {
    let of_device = seen.get(&(node.to_owned(), device.to_owned()));
    of_device.is_some_and(|all| all.iter().any(|(s, d, f)| s == source && d == destination && *f == forward))
}

/// Every hop that the packet passes is where the table says, with the addresses it says.
fn assert_seen(trace: &Value, seen: &Seen) {
    let hops = hops(trace);
    let mut proved = 0;
    for (i, hop) in hops.iter().enumerate().filter(|(_, hop)| text(hop, "state") == "passes") {
        let (node, device) = (text(hop, "node"), text(hop, "device"));
        let (source, destination) = (text(hop, "source"), text(hop, "destination"));
        let forward = text(hop, "direction") == "forward";
        let next = hops.get(i + 1).filter(|next| text(next, "direction") == text(hop, "direction"));
        proved += 1;
        match next {
            // Between two nodes the packet is encrypted. The source is mapped before and the destination after: what
            // goes in shows the destination, what comes out the source.
            Some(next) if text(next, "node") != node => {
                // an answer of the host itself has no line before
                let before = hops[..i].last().filter(|b| text(b, "direction") == text(hop, "direction"));
                let before = match before {
                    Some(before) => text(before, "source"),
                    None => text(hops[i - 1], "destination"),
                };
                assert!(
                    passed(seen, node, device, before, destination, forward),
                    "into the tunnel: {hop} in {seen:?}"
                );
                let far = "mesh-default";
                // SNAT comes after the TUN, and changes the source only
                let (there, out) = (text(next, "node"), text(next, "destination"));
                assert!(
                    passed(seen, there, far, source, out, forward),
                    "out of the tunnel: {hop} in {seen:?}"
                );
            }
            _ if device.is_empty() => {
                // at the host itself: it comes in by the TUN
                assert!(
                    passed(seen, node, "mesh-default", source, destination, forward),
                    "{hop} in {seen:?}"
                );
            }
            _ => assert!(passed(seen, node, device, source, destination, forward), "{hop} in {seen:?}"),
        }
    }
    assert!(proved > 0, "{trace}");
}

fn words<'a>(case: &Case<'a>) -> Vec<&'a str> {
    let (from, to) = case.told.unwrap_or((case.from, case.to));
    let mut words = vec!["trace", from, to];
    if case.tcp {
        words.extend(["-p", "tcp", "--dport", "80"]);
    }
    words
}

/// Traces there and back, checks the table, sends the packet, and compares every hop with what was caught.
fn check(lab: &mut Lab, case: &Case<'_>) {
    let mut line = words(case);
    line.push("--return");
    let table = lab.ctl(case.asked, &line).unwrap();
    assert_eq!(table.code, Some(0), "{line:?}: {}", table.text());
    assert!(
        table.stdout.lines().all(|l| l.chars().count() <= 100),
        "wider than 100 columns:\n{}",
        table.stdout
    );
    println!("{}\n{}", line.join(" "), table.stdout);
    line.insert(0, "--json");
    let trace = lab.ctl(case.asked, &line).unwrap().json();
    assert_eq!(text(&trace, "state"), "arrives", "{trace}");
    let found: Vec<_> = hops(&trace)
        .iter()
        .map(|hop| (text(hop, "host"), text(hop, "source"), text(hop, "destination")))
        .collect();
    assert_eq!(found, case.table, "{}", table.stdout);
    assert_eq!(table.stdout.lines().count(), found.len() + 1, "one line a hop:\n{}", table.stdout);
    let seen = send(lab, case, &trace);
    assert_seen(&trace, &seen);
    // The VM itself sends what the first line says, and gets what the last one says.
    let (first, last) = (found.first().unwrap(), found.last().unwrap());
    assert!(passed(&seen, case.vm.0, "eth0", first.1, first.2, true), "{seen:?}");
    assert!(passed(&seen, case.vm.0, "eth0", last.1, last.2, false), "{seen:?}");
}

/// The journey as a table.
fn table_is(lab: &Lab, words: &[&str], table: &[(&str, &str, &str)]) {
    let answer = lab.ctl("ph1", &[&["--json", "trace"], words].concat()).unwrap();
    let trace = answer.json();
    let found: Vec<_> = hops(&trace)
        .iter()
        .map(|hop| (text(hop, "host"), text(hop, "source"), text(hop, "destination")))
        .collect();
    assert_eq!((found, answer.code), (table.to_vec(), Some(0)), "{}", answer.text());
}

fn lab() -> Lab {
    lab_with(|host| host)
}

fn lab_with(change: impl Fn(Host) -> Host) -> Lab {
    let plan = Plan::standard("", 3).with("ph1", &change).with("ph2", &change).with("ph3", |mut host| {
        host.offers[0].snat = vec!["198.51.100.13".into(), "2001:db8:100::13".into()];
        change(host)
    });
    let lab = Lab::start(plan).unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"));
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", WEB4));
    lab
}

#[test]
fn every_hop_between_virtual_machines_is_where_the_table_says() {
    let mut lab = lab();
    lab.serve("vm2").unwrap();
    let four = [
        ("vm", "192.168.100.10", "10.77.2.10"),
        ("ph1", "10.77.1.10", "10.77.2.10"),
        ("ph2", "10.77.1.10", "192.168.100.10"),
        ("vm", "10.77.1.10", "192.168.100.10"),
        ("vm", "192.168.100.10", "10.77.1.10"),
        ("ph2", "10.77.2.10", "10.77.1.10"),
        ("ph1", "10.77.2.10", "192.168.100.10"),
        ("vm", "10.77.2.10", "192.168.100.10"),
    ];
    let mapped = Case { to: "10.77.2.10", table: &four, ..CASE };
    check(&mut lab, &mapped);
    check(&mut lab, &Case { tcp: true, ..mapped });
    check(
        &mut lab,
        &Case { asked: "ph3", told: Some(("ph1/192.168.100.10", "ph2/192.168.100.10")), ..mapped },
    );
    let six = [
        ("vm", "fd64::10", "fd00:77:2::10"),
        ("ph1", "fd00:77:1::10", "fd00:77:2::10"),
        ("ph2", "fd00:77:1::10", "fd64::10"),
        ("vm", "fd00:77:1::10", "fd64::10"),
        ("vm", "fd64::10", "fd00:77:1::10"),
        ("ph2", "fd00:77:2::10", "fd00:77:1::10"),
        ("ph1", "fd00:77:2::10", "fd64::10"),
        ("vm", "fd00:77:2::10", "fd64::10"),
    ];
    check(&mut lab, &Case { from: "fd64::10", to: "fd00:77:2::10", table: &six, ..CASE });
    let host_itself = [
        ("vm", "192.168.100.10", "10.77.2.1"),
        ("ph1", "10.77.1.10", "10.77.2.1"),
        ("ph2", "10.77.1.10", "192.168.100.1"),
        ("ph2", "10.77.2.1", "10.77.1.10"),
        ("ph1", "10.77.2.1", "192.168.100.10"),
        ("vm", "10.77.2.1", "192.168.100.10"),
    ];
    check(&mut lab, &Case { to: "10.77.2.1", table: &host_itself, ..CASE });
    let own_host = [
        ("vm", "192.168.100.10", "198.51.100.11"),
        ("ph1", "192.168.100.10", "198.51.100.11"),
        ("ph1", "198.51.100.11", "192.168.100.10"),
        ("vm", "198.51.100.11", "192.168.100.10"),
    ];
    table_is(&lab, &["192.168.100.10", "198.51.100.11", "--return"], &own_host);
    assert!(lab.ping("vm1", "198.51.100.11"));
    let from_the_host = [
        ("ph1", "10.77.1.1", "10.77.2.10"),
        ("ph2", "10.77.1.1", "192.168.100.10"),
        ("vm", "10.77.1.1", "192.168.100.10"),
        ("vm", "192.168.100.10", "10.77.1.1"),
        ("ph2", "10.77.2.10", "10.77.1.1"),
        ("ph1", "10.77.2.10", "192.168.100.1"),
    ];
    table_is(&lab, &["192.168.100.1", "10.77.2.10", "--return"], &from_the_host);
    assert!(lab.exec("ph1", &["ping", "-n", "-c", "1", "-W", "2", "10.77.2.10"]).unwrap().ok());
}

#[test]
fn every_hop_to_a_public_address_is_where_the_table_says() {
    let mut lab = lab();
    let other_host = [
        ("vm", "192.168.100.10", "203.0.113.12"),
        ("ph1", "10.77.1.10", "203.0.113.12"),
        ("ph2", "10.77.1.10", "203.0.113.12"),
        ("vm", "10.77.1.10", "203.0.113.12"),
        ("vm", "203.0.113.12", "10.77.1.10"),
        ("ph2", "203.0.113.12", "10.77.1.10"),
        ("ph1", "203.0.113.12", "192.168.100.10"),
        ("vm", "203.0.113.12", "192.168.100.10"),
    ];
    check(&mut lab, &Case { to: "203.0.113.12", table: &other_host, ..CASE });
    let same_host = [
        ("vm", "192.168.100.10", "203.0.113.11"),
        ("ph1", "10.77.1.10", "203.0.113.11"),
        ("vm", "10.77.1.10", "203.0.113.11"),
        ("vm", "203.0.113.11", "10.77.1.10"),
        ("ph1", "203.0.113.11", "192.168.100.10"),
        ("vm", "203.0.113.11", "192.168.100.10"),
    ];
    check(&mut lab, &Case { to: "203.0.113.11", table: &same_host, ..CASE });
    let own_uplink = [
        ("vm", "203.0.113.11", WEB4),
        ("ph1", "203.0.113.11", WEB4),
        ("internet", WEB4, "203.0.113.11"),
        ("ph1", WEB4, "203.0.113.11"),
        ("vm", WEB4, "203.0.113.11"),
    ];
    check(
        &mut lab,
        &Case { vm: ("pub1", "ph1"), from: "203.0.113.11", to: WEB4, table: &own_uplink, ..CASE },
    );
    let public_to_mapped = [
        ("vm", "203.0.113.11", "10.77.2.10"),
        ("ph1", "203.0.113.11", "10.77.2.10"),
        ("ph2", "203.0.113.11", "192.168.100.10"),
        ("vm", "203.0.113.11", "192.168.100.10"),
        ("vm", "192.168.100.10", "203.0.113.11"),
        ("ph2", "10.77.2.10", "203.0.113.11"),
        ("ph1", "10.77.2.10", "203.0.113.11"),
        ("vm", "10.77.2.10", "203.0.113.11"),
    ];
    check(
        &mut lab,
        &Case {
            vm: ("pub1", "ph1"),
            from: "203.0.113.11",
            to: "10.77.2.10",
            table: &public_to_mapped,
            ..CASE
        },
    );
}

#[test]
fn every_hop_to_the_internet_is_where_the_table_says() {
    let mut lab = lab();
    let by_egress = [
        ("vm", "192.168.100.10", WEB4),
        ("ph1", "10.77.1.10", WEB4),
        ("ph3", "198.51.100.13", WEB4),
        ("internet", WEB4, "198.51.100.13"),
        ("ph3", WEB4, "10.77.1.10"),
        ("ph1", WEB4, "192.168.100.10"),
        ("vm", WEB4, "192.168.100.10"),
    ];
    check(&mut lab, &Case { to: WEB4, table: &by_egress, ..CASE });
    check(&mut lab, &Case { to: WEB4, tcp: true, table: &by_egress, ..CASE });
    let six = [
        ("vm", "fd64::10", WEB6),
        ("ph1", "fd00:77:1::10", WEB6),
        ("ph3", "2001:db8:100::13", WEB6),
        ("internet", WEB6, "2001:db8:100::13"),
        ("ph3", WEB6, "fd00:77:1::10"),
        ("ph1", WEB6, "fd64::10"),
        ("vm", WEB6, "fd64::10"),
    ];
    check(&mut lab, &Case { from: "fd64::10", to: WEB6, table: &six, ..CASE });
    let from_the_egress_node = [
        ("vm", "192.168.100.10", WEB4),
        ("ph3", "10.77.3.10", WEB4),
        ("ph3", "198.51.100.13", WEB4),
        ("internet", WEB4, "198.51.100.13"),
        ("ph3", WEB4, "10.77.3.10"),
        ("ph3", WEB4, "192.168.100.10"),
        ("vm", WEB4, "192.168.100.10"),
    ];
    check(
        &mut lab,
        &Case { asked: "ph3", vm: ("vm3", "ph3"), to: WEB4, table: &from_the_egress_node, ..CASE },
    );
}

#[test]
fn every_hop_of_a_host_that_is_its_own_egress_is_where_the_table_says() {
    let plan = Plan::standard("", 2).each_net(|_, net| net.egress = vec!["local".into()]);
    let mut lab = Lab::start(plan).unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", WEB4));
    let masqueraded = [
        ("vm", "192.168.100.10", WEB4),
        ("ph1", "198.51.100.11", WEB4),
        ("internet", WEB4, "198.51.100.11"),
        ("ph1", WEB4, "192.168.100.10"),
        ("vm", WEB4, "192.168.100.10"),
    ];
    check(&mut lab, &Case { to: WEB4, table: &masqueraded, ..CASE });
    refused(&mut lab, &Case { to: "198.51.100.12", ..CASE }, "ph1", "forbidden_destination");
}

#[test]
fn every_hop_of_an_announced_address_that_leaves_by_the_egress_node_is_where_the_table_says() {
    let by_egress = |host: Host, address: &str| {
        let mut host = host;
        host.nets[0].announce =
            vec!["203.0.113.99/32".into(), format!("{{ prefix = \"{address}/32\", internet = \"egress\" }}")];
        host
    };
    let plan = Plan::standard("", 2)
        .with("ph1", |host| {
            let mut host = by_egress(host, "203.0.113.11");
            host.nets[0].announce.remove(0);
            host.nets[0].announce.push("203.0.113.98/32".into());
            host
        })
        .with("ph2", |host| by_egress(host, "203.0.113.12"));
    let mut lab = Lab::start(plan).unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", WEB4));
    let of_another_host = [
        ("vm", "203.0.113.11", WEB4),
        ("ph1", "203.0.113.11", WEB4),
        ("ph2", "198.51.100.12", WEB4),
        ("internet", WEB4, "198.51.100.12"),
        ("ph2", WEB4, "203.0.113.11"),
        ("ph1", WEB4, "203.0.113.11"),
        ("vm", WEB4, "203.0.113.11"),
    ];
    let case = Case { vm: ("pub1", "ph1"), from: "203.0.113.11", to: WEB4, table: &of_another_host, ..CASE };
    check(&mut lab, &case);
    // on the egress node itself it leaves at once, and its answers come in the same way
    let of_this_host = [
        ("vm", "203.0.113.12", WEB4),
        ("ph2", "198.51.100.12", WEB4),
        ("internet", WEB4, "198.51.100.12"),
        ("ph2", WEB4, "203.0.113.12"),
        ("vm", WEB4, "203.0.113.12"),
    ];
    let case = Case {
        asked: "ph2",
        vm: ("pub2", "ph2"),
        from: "203.0.113.12",
        to: WEB4,
        table: &of_this_host,
        ..CASE
    };
    check(&mut lab, &case);
}

#[test]
fn every_hop_of_a_network_that_is_not_translated_is_where_the_table_says() {
    let mut plan = Plan::new("");
    for i in 1..=2 {
        let (host, four) = (format!("ph{i}"), format!("10.50.{i}"));
        let net = Net::new("default", "vmnet1")
            .subnet(&format!("{four}.1/24"), &format!("{four}.0/24"), &format!("{four}.0/24"))
            .egress(&["ph2"]);
        let mut host = Host::new(&host).net(net);
        if i == 2 {
            host = host.offer("default", &["masquerade"], 100);
        }
        plan = plan.host(host).vm(Vm::new(
            &format!("vm{i}"),
            &format!("ph{i}"),
            "vmnet1",
            &format!("{four}.10/24"),
        ));
    }
    let mut lab = Lab::start(plan).unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.50.2.10"));
    let (one, two) = ("10.50.1.10", "10.50.2.10");
    let inside = [
        ("vm", one, two),
        ("ph1", one, two),
        ("ph2", one, two),
        ("vm", one, two),
        ("vm", two, one),
        ("ph2", two, one),
        ("ph1", two, one),
        ("vm", two, one),
    ];
    check(&mut lab, &Case { from: one, to: two, table: &inside, ..CASE });
    let masqueraded = "198.51.100.12";
    let by_egress = [
        ("vm", one, WEB4),
        ("ph1", one, WEB4),
        ("ph2", masqueraded, WEB4),
        ("internet", WEB4, masqueraded),
        ("ph2", WEB4, one),
        ("ph1", WEB4, one),
        ("vm", WEB4, one),
    ];
    check(&mut lab, &Case { from: one, to: WEB4, table: &by_egress, ..CASE });
    // a VM of the egress node
    let at_once = [
        ("vm", two, WEB4),
        ("ph2", masqueraded, WEB4),
        ("internet", WEB4, masqueraded),
        ("ph2", WEB4, two),
        ("vm", WEB4, two),
    ];
    let case = Case { asked: "ph2", vm: ("vm2", "ph2"), from: two, to: WEB4, table: &at_once, ..CASE };
    check(&mut lab, &case);
}

/// An operator's firewall that lets the mesh pass and drops all else, by state.
const FIREWALL: &str = "table inet operator {\n chain forward {\n  type filter hook forward priority filter; \
    policy drop;\n  ct state established,related accept\n  ct state invalid drop\n  iifname vmnet1 accept\n  \
    iifname \"mesh-*\" ip saddr 10.77.0.0/16 accept\n }\n}\n";

#[test]
fn strict_filters_and_a_firewall_that_lets_the_mesh_pass_do_not_mislead_the_table() {
    let mut lab = lab_with(|host| host.rp_filter(1).ruleset(FIREWALL));
    let own = ["203.0.113.11", WEB4, "--return"];
    for line in [["192.168.100.10", "10.77.2.10", "--return"], ["192.168.100.10", WEB4, "--return"], own] {
        let answer = lab.ctl("ph1", &[&["trace"], &line[..]].concat()).unwrap();
        assert!(answer.ok(), "{line:?}: {}", answer.text());
    }
    assert!(lab.ping("vm1", "10.77.2.10") && lab.ping("vm1", WEB4) && lab.ping("pub1", WEB4));
    // from a public address into the mesh: the firewall does not know that it is the mesh's
    assert!(!lab.exec("pub1", &["ping", "-n", "-c", "1", "-W", "1", "10.77.2.10"]).unwrap().ok());
    let case = Case { vm: ("pub1", "ph1"), from: "203.0.113.11", to: "10.77.2.10", ..CASE };
    refused(&mut lab, &case, "ph2", "chain forward of table inet operator drops it (mesh-default to vmnet1)");
}

/// A trace that is refused on a node for a reason; the real packet comes as far and no further.
fn refused(lab: &mut Lab, case: &Case<'_>, place: &str, reason: &str) {
    let table = lab.ctl(case.asked, &words(case)).unwrap();
    println!("{}\n{}", words(case).join(" "), table.stdout);
    assert_eq!(table.code, Some(1), "{}", table.text());
    assert!(
        table.stdout.lines().all(|l| l.chars().count() <= 100),
        "wider than 100 columns:\n{}",
        table.stdout
    );
    let mut line = words(case);
    line.insert(0, "--json");
    let trace = lab.ctl(case.asked, &line).unwrap().json();
    assert_eq!(text(&trace, "state"), "refused", "{trace}");
    let why = text(&trace, "reason");
    assert!(why.starts_with(&format!("{place}: ")) && why.contains(reason), "{why}");
    let last = *hops(&trace).last().unwrap();
    assert_eq!((text(last, "host"), text(last, "state")), (place, "refused"), "{trace}");
    let seen = send(lab, case, &trace);
    let passed_before: Vec<_> = hops(&trace).into_iter().filter(|h| text(h, "state") == "passes").collect();
    for hop in passed_before.iter().filter(|h| text(h, "host") == "vm") {
        let (source, destination) = (text(hop, "source"), text(hop, "destination"));
        assert!(passed(&seen, text(hop, "node"), text(hop, "device"), source, destination, true), "{seen:?}");
    }
    let answered =
        seen[&(case.vm.0.to_owned(), "eth0".to_owned())].iter().any(|(s, _, f)| s == case.to && !f);
    assert!(!answered, "it was answered: {seen:?}");
}

#[test]
fn refused_packets_are_told_with_place_and_reason() {
    let mut lab = lab();
    lab.serve("vm2").unwrap();
    let vm2 = Case { to: "10.77.2.10", ..CASE };
    refused(&mut lab, &Case { to: "10.99.0.1", ..CASE }, "ph3", "forbidden_destination");
    refused(&mut lab, &Case { to: "10.77.2.1", tcp: true, ..CASE }, "ph2", "add \"tcp/80\" to `expose`");
    refused(&mut lab, &Case { to: "10.77.2.255", ..CASE }, "ph2", "not_routable");

    // somebody's firewall on the far host, of one port: the ping is not concerned
    let firewall = "add table inet operator; add chain inet operator fw { type filter hook forward priority 0; }; \
                    add rule inet operator fw tcp dport 80 ip daddr 192.168.100.0/24 drop";
    lab.exec("ph2", &["nft", firewall]).unwrap();
    refused(&mut lab, &Case { tcp: true, ..vm2 }, "ph2", "chain fw of table inet operator drops it");
    assert_eq!(lab.ctl("ph1", &words(&vm2)).unwrap().code, Some(0), "a ping passes");
    assert!(lab.ping("vm1", "10.77.2.10"));
    lab.exec("ph2", &["nft", "add rule inet operator fw iifname mesh-default drop"]).unwrap();
    refused(&mut lab, &vm2, "ph2", "to let it pass: nft 'insert rule inet operator fw");
    lab.exec("ph2", &["nft", "delete table inet operator"]).unwrap();

    // a rule of the operator's that sends what the segment sends elsewhere
    lab.sh(
        "ph1",
        "ip route add default via 198.51.100.1 table 100; ip rule add iif vmnet1 lookup 100 pref 100",
    )
    .unwrap();
    refused(&mut lab, &vm2, "ph1", "sends it by eth0 (table 100)");
    lab.exec("ph1", &["ip", "rule", "del", "pref", "100"]).unwrap();
    assert_eq!(lab.ctl("ph1", &words(&vm2)).unwrap().code, Some(0), "the rule has gone");

    // on the way back only: the far host's rule for what its segment sends
    lab.sh("ph2", "ip rule add iif vmnet1 to 10.77.1.0/24 prohibit pref 100").unwrap();
    let line = ["--json", "trace", "192.168.100.10", "10.77.2.10"];
    assert_eq!(lab.ctl("ph1", &line).unwrap().code, Some(0));
    let back = lab.ctl("ph1", &[&line[..], &["--return"]].concat()).unwrap();
    let trace = back.json();
    assert_eq!(back.code, Some(1), "{}", back.text());
    assert!(
        text(&trace, "reason").starts_with("on the way back: ph2: the kernel refuses it (prohibited)"),
        "{trace}"
    );
    assert!(!lab.ping("vm1", "10.77.2.10"));
    lab.exec("ph2", &["ip", "rule", "del", "pref", "100"]).unwrap();

    // a silent node, then a lost egress node
    lab.freeze("ph2").unwrap();
    let start = Instant::now();
    let silent = lab.ctl("ph1", &["--json", "trace", "192.168.100.10", "10.77.2.10"]).unwrap();
    lab.thaw("ph2").unwrap();
    assert_eq!((silent.code, text(&silent.json(), "state")), (Some(1), "unknown"), "{}", silent.text());
    assert!(text(&silent.json(), "reason").contains("ph2"), "{}", silent.text());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    lab.kill_node("ph3").unwrap();
    let down = wait_until(Duration::from_secs(10), || {
        lab.ctl("ph1", &["trace", "192.168.100.10", WEB4]).is_ok_and(|o| o.stdout.contains("no egress node"))
    });
    assert!(down, "{}", lab.ctl("ph1", &["trace", "192.168.100.10", WEB4]).unwrap().text());
    refused(&mut lab, &Case { to: WEB4, ..CASE }, "ph1", "no egress node that carries it is up");
    refused(&mut lab, &Case { to: "10.77.3.10", ..CASE }, "ph1", "no tunnel to ph3");
}

#[test]
fn a_network_without_egress_and_questions_without_sense_are_told_as_such() {
    let plan = Plan::standard("", 2).each_net(|_, net| net.egress = vec!["none".into()]);
    let mut lab = Lab::start(plan).unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"));
    refused(&mut lab, &Case { to: WEB4, ..CASE }, "ph1", "network default has no egress");
    for (line, code, words) in [
        (&["trace", "10.9.9.9", "10.77.2.10"][..], 1, "10.9.9.9 is no address behind ph1"),
        (&["trace", "ph2/10.9.9.9", "10.77.1.10"], 1, "10.9.9.9 is no address behind ph2"),
        (&["trace", "ph7/192.168.100.10", "10.77.2.10"], 1, "no node ph7"),
        (&["trace", "192.168.100.10", "10.77.2.10", "--network", "blue"], 1, "no network blue"),
        (&["trace", "192.168.100.10", "fd00:77:2::10"], 2, "two families"),
        (&["trace", "192.168.100.10", "10.77.2.10", "-p", "tcp"], 2, "--dport"),
    ] {
        let answer = lab.ctl("ph1", line).unwrap();
        assert_eq!(answer.code, Some(code), "{line:?}: {}", answer.text());
        assert!(answer.stderr.contains(words), "{line:?}: {}", answer.text());
    }
    lab.sh(
        "ph1",
        "ip route add default via 198.51.100.1 table 100; ip rule add iif vmnet1 lookup 100 pref 100",
    )
    .unwrap();
    let leak = lab.ctl("ph1", &["trace", "192.168.100.10", WEB4]).unwrap();
    assert!(!leak.ok() && leak.stdout.replace("\n  ", " ").contains("so that it leaks"), "{}", leak.text());
    let neighbour = lab.ctl("ph1", &["trace", "192.168.100.10", "192.168.100.14", "--return"]).unwrap();
    assert!(neighbour.ok() && neighbour.stdout.contains("a neighbour on vmnet1"), "{}", neighbour.text());
}
