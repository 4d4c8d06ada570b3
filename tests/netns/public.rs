//! Public addresses of VMs: reached on the same host, on another host and from the Internet, address
//! unchanged; behind a stateful firewall and strict reverse path filters.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run in real time and fail by panic"
)]

use lab::world::{WEB4, wait_until};
use lab::{Lab, Plan};
use std::time::Duration;

/// A usual operator's firewall: packets that belong to no connection are dropped.
const FIREWALL: &str = "table inet operator {\n chain forward {\n  type filter hook forward priority filter; policy accept;\n  ct state invalid drop\n }\n}\n";

fn lab(change: impl Fn(lab::Host) -> lab::Host) -> Lab {
    let plan = Plan::standard("", 3).with("ph1", &change).with("ph2", &change).with("ph3", &change);
    let mut lab = Lab::start(plan).unwrap();
    for vm in ["pub1", "pub2", "vm2"] {
        lab.serve(vm).unwrap();
    }
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"));
    lab
}

/// All cases of a public address; `how` names the surroundings in failures.
fn check(mut lab: Lab, how: &str) {
    let ask = |lab: &Lab, from: &str, to: &str| lab.web(from, to, None).unwrap_or_default();
    // Same host: through the mesh and back, so that both directions pass the host.
    assert_eq!(ask(&lab, "vm1", "203.0.113.11"), "10.77.1.10", "{how}: same host");
    // Another host, not by the gateway.
    let wire =
        lab.capture("gw", "br0", "net 203.0.113.0/24 or net 10.77.0.0/16 or net 192.168.0.0/16").unwrap();
    assert_eq!(ask(&lab, "vm1", "203.0.113.12"), "10.77.1.10", "{how}: other host");
    assert_eq!(ask(&lab, "pub1", "203.0.113.12"), "203.0.113.11", "{how}: public to public");
    assert_eq!(ask(&lab, "pub1", "10.77.2.10"), "203.0.113.11", "{how}: public to private");
    let sent = lab.transfer("vm1", "203.0.113.12", 5_000_000).unwrap();
    assert!(sent.ok(), "{how}: {}", sent.text());
    let seen = wire.stop().unwrap();
    assert!(seen.lines.is_empty(), "{how}: by the gateway: {:?}", seen.lines.first());
    // The Internet, both ways.
    assert_eq!(ask(&lab, "pub1", WEB4), "203.0.113.11", "{how}: to the Internet");
    assert_eq!(ask(&lab, "inet", "203.0.113.11"), "192.0.2.80", "{how}: from the Internet");
    assert_eq!(ask(&lab, "inet", "203.0.113.12"), "192.0.2.80", "{how}: from the Internet to another");
    assert!(lab.ping("inet", "203.0.113.11"), "{how}: ping from the Internet");
    let sent = lab.transfer("inet", "203.0.113.11", 5_000_000).unwrap();
    assert!(sent.ok(), "{how}: {}", sent.text());
}

#[test]
fn public_addresses_work_from_every_side() {
    check(lab(|host| host), "plain");
}

#[test]
fn public_addresses_work_behind_a_firewall_that_drops_invalid_packets() {
    check(lab(|host| host.ruleset(FIREWALL)), "firewall");
}

#[test]
fn public_addresses_work_with_strict_reverse_path_filters() {
    check(lab(|host| host.rp_filter(1)), "rp_filter 1");
}

#[test]
fn public_addresses_work_with_loose_filters_and_a_firewall() {
    check(lab(|host| host.rp_filter(2).ruleset(FIREWALL)), "rp_filter 2 and firewall");
}

#[test]
fn a_public_address_that_moves_to_another_host_is_followed() {
    let plan = Plan::standard("", 3);
    let mut lab = Lab::start(plan).unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "203.0.113.12"));
    // The machine moves from ph2 to ph3: configuration changed, nodes restarted, address moved.
    let mut moved = lab.plan.clone().with("ph2", |mut host| {
        host.nets[0].announce.clear();
        host
    });
    moved = moved.with("ph3", |mut host| {
        host.nets[0].announce.push("203.0.113.12/32".into());
        host
    });
    lab.plan = moved;
    lab.exec("pub2", &["ip", "addr", "del", "203.0.113.12/32", "dev", "eth0"]).unwrap();
    lab.exec("pub3", &["ip", "addr", "add", "203.0.113.12/32", "dev", "eth0"]).unwrap();
    for host in ["ph2", "ph3"] {
        lab.write_config(host).unwrap();
        lab.stop_node(host).unwrap();
        lab.start_node(host).unwrap();
    }
    let wire = lab.capture("pub3", "eth0", "icmp and host 203.0.113.12").unwrap();
    let found = wait_until(Duration::from_secs(5), || lab.ping("vm1", "203.0.113.12"));
    assert!(found && !wire.stop().unwrap().lines.is_empty());
}
