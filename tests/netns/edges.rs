//! Edges of forwarding: aliases, routed prefixes, errors inside errors, segment sizes, refusals that are counted and told.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run in real time and fail by panic"
)]

use lab::world::wait_until;
use lab::{Lab, Plan};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(5);

#[test]
fn aliases_routed_prefixes_and_ipv6_addresses_behind_one_machine_are_reached() {
    let plan = Plan::standard("", 2).with("ph2", |mut host| {
        let routed = "{ prefix = \"203.0.113.64/29\", via = \"192.168.100.14\" }";
        for prefix in ["203.0.113.42/32", "2001:db8:203::42/128", routed] {
            host.nets[0].announce.push(prefix.into());
        }
        host
    });
    let mut lab = Lab::start(plan).unwrap();
    for alias in ["203.0.113.42/32", "203.0.113.66/32", "2001:db8:203::42/128"] {
        let device = if alias.contains("66") { "lo" } else { "eth0" };
        lab.exec("pub2", &["ip", "addr", "add", alias, "dev", device]).unwrap();
    }
    let wire = lab.capture("gw", "br0", "net 203.0.113.0/24 or net 10.77.0.0/16").unwrap();
    for to in ["203.0.113.12", "203.0.113.42", "203.0.113.66", "2001:db8:203::42"] {
        assert!(lab.ping_within(SOON, "vm1", to), "from another host to {to}");
        assert!(lab.ping_within(SOON, "vm2", to), "from the same host to {to}");
    }
    assert!(wire.stop().unwrap().lines.is_empty());
}

#[test]
fn an_error_about_a_mapped_packet_reaches_the_machine_that_sent_it() {
    let lab = Lab::start(Plan::standard("", 2)).unwrap();
    assert!(lab.ping_within(SOON, "vm1", "10.77.2.10"));
    // Nobody listens there: the port-unreachable of vm2 has vm1's packet inside, which vm1's socket has to recognise.
    for (to, v) in [("10.77.2.10", "4"), ("fd00:77:2::10", "6")] {
        let trace = lab
            .exec("vm1", &["traceroute", &format!("-{v}"), "-n", "-U", "-p", "9", "-q", "1", "-w", "2", to]);
        let trace = trace.unwrap().stdout;
        let last = trace.lines().last().unwrap_or_default().to_owned();
        assert!(last.contains(to), "{trace}");
    }
}

#[test]
fn segment_sizes_are_clamped_in_both_directions() {
    let mut lab = Lab::start(Plan::standard("", 2)).unwrap();
    lab.serve("vm2").unwrap();
    assert!(lab.ping_within(SOON, "vm1", "10.77.2.10"));
    for (at, flags) in [
        ("vm2", "tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn"),
        ("vm1", "tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn|tcp-ack"),
    ] {
        let wire = lab.capture(at, "eth0", flags).unwrap();
        assert!(lab.web("vm1", "10.77.2.10", None).is_some());
        let seen = wire.stop().unwrap();
        let mss = seen
            .lines
            .iter()
            .find_map(|l| l.split("mss ").nth(1)?.split([',', ']']).next()?.parse::<u32>().ok());
        let mss = mss.unwrap_or_else(|| panic!("no MSS at {at}: {:?}", seen.lines));
        assert!((1000..1460).contains(&mss), "MSS {mss} at {at}");
    }
}

#[test]
fn what_an_egress_node_refuses_is_counted_there() {
    let lab = Lab::start(Plan::standard("", 3)).unwrap();
    assert!(lab.ping_within(SOON, "vm1", "10.77.3.10"));
    let count =
        |lab: &Lab| lab.metric("ph3", "mesh_dropped_packets_total", "reason=\"forbidden_destination\"");
    let before = count(&lab);
    assert!(!lab.ping("vm1", "198.51.100.12"));
    assert!(wait_until(SOON, || count(&lab) > before), "{before}");
    let trace = lab.ctl("ph1", &["trace", "192.168.100.10", "198.51.100.12"]).unwrap();
    assert_eq!(trace.code, Some(1));
    assert!(trace.text().contains("forbidden_destination"), "{}", trace.text());
}

#[test]
fn a_foreign_chain_that_drops_mesh_traffic_is_named_with_the_command_that_mends_it() {
    let rules = "table inet fortress {\n chain forward {\n  type filter hook forward priority filter; policy drop;\n }\n}\n";
    let lab = Lab::start(Plan::standard("", 2).with("ph1", |host| host.ruleset(rules))).unwrap();
    assert!(!lab.ping("vm1", "10.77.2.10"), "the operator's firewall has the last word");
    let told = wait_until(Duration::from_secs(10), || {
        lab.ctl("ph1", &["status"]).is_ok_and(|s| s.code == Some(1) && s.text().contains("fortress"))
    });
    let status = lab.ctl("ph1", &["--json", "status"]).unwrap().stdout;
    assert!(told, "{status}");
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let reasons: Vec<&str> =
        status["reasons"].as_array().unwrap().iter().filter_map(|r| r.as_str()).collect();
    let command = reasons.iter().find_map(|r| r.split("to let it pass: ").nth(1)).unwrap();
    lab.sh("ph1", command).unwrap();
    assert!(lab.ping_within(SOON, "vm1", "10.77.2.10"), "after {command}");
    let fine = wait_until(Duration::from_secs(15), || lab.ctl("ph1", &["status"]).is_ok_and(|s| s.ok()));
    assert!(fine, "{}", lab.ctl("ph1", &["status"]).unwrap().text());
}
