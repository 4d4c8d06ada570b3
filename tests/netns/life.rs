//! A node's life: killed, restarted, without its seed, stopped; and what it leaves in the kernel.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run in real time and fail by panic"
)]

use lab::world::{WEB4, wait_until};
use lab::{Lab, Plan};
use std::time::Duration;

/// An operator's own rules, beside which the node has to live.
const OPERATOR: &str = "table ip operator {\n set s { type ipv4_addr; elements = { 192.0.2.1 } }\n chain post {\n  type nat hook postrouting priority srcnat; policy accept;\n  ip saddr 192.168.100.0/24 oifname \"eth0\" masquerade\n }\n}\n";

#[test]
fn a_killed_node_is_back_with_all_peers_within_three_seconds_of_its_start() {
    let mut lab = Lab::start(Plan::standard("", 3)).unwrap();
    for host in lab.host_names() {
        lab.kill_node(&host).unwrap();
        lab.start_node(&host).unwrap();
        lab.wait_connected(Duration::from_secs(3)).unwrap();
        for (from, to) in [("vm1", "10.77.2.10"), ("vm2", "10.77.3.10"), ("vm3", "10.77.1.10")] {
            assert!(lab.ping_within(Duration::from_secs(3), from, to), "{host} restarted: {from} to {to}");
        }
    }
}

#[test]
fn a_node_whose_only_seed_is_gone_finds_the_others_from_its_state() {
    let plan = Plan::standard("", 3);
    let plan = plan.with("ph2", |h| h.seeds(&["ph1"])).with("ph3", |h| h.seeds(&["ph1"]));
    let plan = plan.with("ph1", |h| h.seeds(&[]));
    let mut lab = Lab::start(plan).unwrap();
    // What is learned at run time is on disk within a second.
    std::thread::sleep(Duration::from_millis(1500));
    lab.kill_node("ph1").unwrap();
    lab.kill_node("ph3").unwrap();
    lab.start_node("ph3").unwrap();
    lab.wait_connected(Duration::from_secs(10)).unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm3", "10.77.2.10"));
    let status = lab.ctl("ph3", &["status"]).unwrap();
    assert_eq!(status.code, Some(1), "a peer that did not leave politely is down: {}", status.text());
}

#[test]
fn a_peer_that_comes_back_with_another_address_is_found() {
    let plan = Plan::standard("", 3).with("ph1", |h| h.seeds(&[])).with("ph2", |h| h.seeds(&["ph1"]));
    let mut lab = Lab::start(plan).unwrap();
    lab.kill_node("ph2").unwrap();
    lab.exec("ph2", &["ip", "addr", "del", "198.51.100.12/24", "dev", "eth0"]).unwrap();
    lab.exec("ph2", &["ip", "addr", "add", "198.51.100.22/24", "dev", "eth0"]).unwrap();
    lab.exec("ph2", &["ip", "route", "add", "default", "via", "198.51.100.1"]).unwrap();
    lab.start_node("ph2").unwrap();
    lab.wait_connected(Duration::from_secs(5)).unwrap();
    assert!(lab.ping_within(Duration::from_secs(3), "vm1", "10.77.2.10"));
    let peer = lab.ctl("ph3", &["peer", "show", "ph2"]).unwrap();
    assert!(peer.stdout.contains("198.51.100.22:4650"), "{}", peer.text());
    // and while it runs: the one that moves is heard of through the one it dials
    lab.exec("ph2", &["ip", "addr", "del", "198.51.100.22/24", "dev", "eth0"]).unwrap();
    lab.exec("ph2", &["ip", "addr", "add", "198.51.100.32/24", "dev", "eth0"]).unwrap();
    lab.exec("ph2", &["ip", "route", "replace", "default", "via", "198.51.100.1"]).unwrap();
    let moved = wait_until(Duration::from_secs(10), || {
        let shown =
            lab.ctl("ph3", &["peer", "show", "ph2"]).is_ok_and(|o| o.stdout.contains("198.51.100.32:4650"));
        shown && lab.ping("vm1", "10.77.2.10") && lab.ping("vm3", "10.77.2.10")
    });
    assert!(moved, "{}", lab.ctl("ph3", &["peer", "show", "ph2"]).unwrap().text());
}

#[test]
fn a_peer_added_at_run_time_survives_a_restart() {
    let plan = Plan::standard("", 2).with("ph1", |h| h.seeds(&[])).with("ph2", |h| h.seeds(&[]));
    let mut lab = Lab::build(plan).unwrap();
    lab.start_node("ph1").unwrap();
    lab.start_node("ph2").unwrap();
    assert!(lab.peers_up("ph1").is_empty());
    let added = lab.ctl("ph1", &["peer", "add", "198.51.100.12:4650"]).unwrap();
    assert!(added.ok(), "{}", added.text());
    lab.wait_connected(Duration::from_secs(5)).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    lab.kill_node("ph1").unwrap();
    lab.kill_node("ph2").unwrap();
    // ph2 forgets, so that only ph1 can know.
    std::fs::remove_dir_all(lab.file("ph2", "state")).unwrap();
    lab.start_node("ph2").unwrap();
    lab.start_node("ph1").unwrap();
    lab.wait_connected(Duration::from_secs(5)).unwrap();
}

/// What an operator would see of a host's kernel, without what changes by itself.
fn kernel(lab: &Lab, host: &str) -> String {
    let script = "nft list ruleset; ip rule; ip -6 rule; ip route show table all; \
                  ip -6 route show table all | sed 's/ expires [0-9]*sec//'; ip -o addr show; \
                  sysctl -a 2>/dev/null | grep -E '^net\\.ipv[46]\\.(conf|ip_forward)'";
    lab.sh(host, script).unwrap().stdout
}

/// `kernel` once it no longer changes: a bridge gets its link-local address a moment after its first port.
fn settled(lab: &Lab, host: &str) -> String {
    let mut last = String::new();
    wait_until(Duration::from_secs(10), || {
        std::thread::sleep(Duration::from_millis(700));
        let now = kernel(lab, host);
        std::mem::replace(&mut last, now.clone()) == now
    });
    last
}

/// The lines that only one of the two has.
fn difference(before: &str, after: &str) -> Vec<String> {
    let only = |a: &str, b: &str, sign: &str| {
        let b: Vec<&str> = b.lines().collect();
        a.lines().filter(|line| !b.contains(line)).map(|line| format!("{sign}{line}")).collect::<Vec<_>>()
    };
    [only(before, after, "-"), only(after, before, "+")].concat()
}

#[test]
fn a_polite_stop_leaves_the_kernel_as_it_was() {
    let plan = Plan::standard("", 3)
        .with("ph1", |h| h.ruleset(OPERATOR).rp_filter(2))
        .with("ph3", |h| h.ruleset(OPERATOR));
    let mut lab = Lab::build(plan).unwrap();
    for host in ["ph1", "ph3"] {
        lab.exec(host, &["ip", "rule", "add", "from", "198.18.0.0/15", "lookup", "77", "pref", "31000"])
            .unwrap();
        lab.exec(host, &["ip", "route", "add", "blackhole", "198.18.0.0/15", "table", "77"]).unwrap();
    }
    let before: Vec<String> = lab.host_names().iter().map(|host| settled(&lab, host)).collect();
    for host in lab.host_names() {
        lab.start_node(&host).unwrap();
    }
    lab.wait_connected(Duration::from_secs(20)).unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"));
    assert!(lab.web("vm1", WEB4, None).is_some());
    assert_ne!(kernel(&lab, "ph1"), before[0], "the check would see something");
    for host in lab.host_names() {
        let took = lab.stop_node(&host).unwrap();
        assert!(took < Duration::from_secs(10), "{host} took {took:?}");
    }
    for (host, before) in lab.host_names().iter().zip(&before) {
        let after = kernel(&lab, host);
        assert_eq!(difference(before, &after), Vec::<String>::new(), "{host}");
        assert_eq!(before, &after, "{host}: same lines in another order");
    }
}

#[test]
fn a_node_killed_and_started_again_still_restores_what_was_there_first() {
    let mut lab = Lab::build(Plan::standard("", 2)).unwrap();
    let before = settled(&lab, "ph1");
    lab.start_node("ph1").unwrap();
    lab.kill_node("ph1").unwrap();
    lab.start_node("ph1").unwrap();
    lab.stop_node("ph1").unwrap();
    assert_eq!(difference(&before, &kernel(&lab, "ph1")), Vec::<String>::new());
}

#[test]
fn flushed_rules_and_routes_are_repaired_within_five_seconds() {
    let mut lab = Lab::start(Plan::standard("", 3)).unwrap();
    let works = |lab: &Lab| {
        lab.ping("vm1", "10.77.2.10") && lab.web("vm1", WEB4, None).as_deref() == Some("198.51.100.13")
    };
    assert!(wait_until(Duration::from_secs(5), || works(&lab)));
    let wire = lab.capture("gw", "br0", "net 192.168.0.0/16 or net 10.77.0.0/16 or net fd00::/8").unwrap();
    let has_table =
        |lab: &Lab| lab.exec("ph3", &["nft", "list", "ruleset"]).unwrap().stdout.contains("table inet mesh");
    assert!(has_table(&lab));
    lab.exec("ph3", &["nft", "flush", "ruleset"]).unwrap();
    assert!(wait_until(Duration::from_secs(5), || has_table(&lab)), "nft table");
    assert!(wait_until(Duration::from_secs(5), || works(&lab)), "after nft flush ruleset");

    let tables = "for f in -4 -6; do for t in $(ip $f rule | sed -n 's/.* lookup \\([0-9a-z_-]*\\).*/\\1/p' | sort -u); do \
                  case $t in local|main|default) ;; *) ip $f route flush table $t;; esac; done; done";
    lab.sh("ph1", tables).unwrap();
    assert!(wait_until(Duration::from_secs(5), || works(&lab)), "after flushing our tables");
    let seen = wire.stop().unwrap();
    assert!(seen.lines.is_empty(), "leaked meanwhile: {:?}", seen.lines.first());
}

/// Traffic of a private VM to the mesh and the Internet all the while; nothing of it may pass the gateway.
fn never_leaks(mut lab: Lab, event: impl Fn(&mut Lab)) {
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"));
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", WEB4));
    let wire = lab.capture("gw", "br0", "net 192.168.0.0/16 or net 10.77.0.0/16 or net fd00::/8").unwrap();
    for to in ["10.77.2.10", "203.0.113.12", WEB4, "fd00:77:2::10", "2001:db8:80::80"] {
        lab.spawn("vm1", &["ping", "-n", "-i", "0.02", to]).unwrap();
    }
    lab.spawn("pub1", &["ping", "-n", "-i", "0.02", "10.77.2.10"]).unwrap();
    event(&mut lab);
    let seen = wire.stop().unwrap();
    assert!(seen.lines.is_empty(), "{} packets leaked, first {:?}", seen.lines.len(), seen.lines.first());
}

#[test]
fn a_kill_followed_by_a_flushed_ruleset_leaks_nothing_at_either_end() {
    never_leaks(Lab::start(Plan::standard("", 3)).unwrap(), |lab| {
        for host in ["ph3", "ph1"] {
            lab.kill_node(host).unwrap();
            lab.exec(host, &["nft", "flush", "ruleset"]).unwrap();
            std::thread::sleep(Duration::from_secs(2));
        }
        for host in ["ph1", "ph3"] {
            lab.start_node(host).unwrap();
        }
        std::thread::sleep(Duration::from_secs(2));
    });
}

#[test]
fn after_a_kill_private_traffic_does_not_leak_to_the_gateway() {
    never_leaks(Lab::start(Plan::standard("", 3)).unwrap(), |lab| {
        lab.kill_node("ph1").unwrap();
        std::thread::sleep(Duration::from_secs(3));
        lab.start_node("ph1").unwrap();
        std::thread::sleep(Duration::from_secs(2));
        lab.kill_node("ph3").unwrap();
        std::thread::sleep(Duration::from_secs(3));
    });
}

#[test]
fn a_polite_stop_under_traffic_leaks_nothing() {
    never_leaks(Lab::start(Plan::standard("", 3)).unwrap(), |lab| {
        lab.stop_node("ph1").unwrap();
        std::thread::sleep(Duration::from_secs(1));
        lab.start_node("ph1").unwrap();
        std::thread::sleep(Duration::from_secs(1));
    });
}

#[test]
fn a_pulled_cable_heals_by_itself() {
    let lab = Lab::start(Plan::standard("", 3)).unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"));
    lab.cut_cable("ph1").unwrap();
    let down = wait_until(Duration::from_secs(10), || {
        lab.peers_up("ph1").is_empty() && lab.peers_up("ph2") == ["ph3"]
    });
    assert!(down, "both sides see it");
    lab.mend_cable("ph1").unwrap();
    lab.wait_connected(Duration::from_secs(10)).unwrap();
    assert!(lab.ping_within(Duration::from_secs(3), "vm1", "10.77.2.10"));
}

#[test]
fn impossible_configurations_are_refused_naming_file_line_and_key() {
    let lab = Lab::build(Plan::standard("", 2)).unwrap();
    let file = lab.file("ph1", "node.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    let program = lab::node::binary("mesh-node").unwrap().to_string_lossy().into_owned();
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        lab.exec("ph1", &[&program, "check", "--config", &file.to_string_lossy()]).unwrap()
    };
    let fine = check(&good);
    assert!(fine.ok(), "{}", fine.text());
    // Two errors at once: an unknown key, and a prefix the certificate does not allow.
    let bad = good.replace("metrics =", "metricks =").replace("10.77.1.0/24", "10.78.1.0/24");
    let refused = check(&bad);
    assert!(!refused.ok());
    for word in ["node.toml", "metricks", "10.78.1.0/24"] {
        assert!(refused.text().contains(word), "{word} is named: {}", refused.text());
    }
}
