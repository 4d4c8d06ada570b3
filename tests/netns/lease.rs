//! A frozen egress node loses its role in its own kernel as well; and what is the operator's in that kernel stays as it is.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run in real time and fail by panic"
)]

use lab::world::{WEB4, wait_until};
use lab::{Lab, Plan};
use std::time::Duration;

/// Enough for a machine that builds something else at the same time.
const SOON: Duration = Duration::from_secs(15);

/// An operator's own router and firewall: a NAT for a network of his own, a filter that takes tracked connections seriously.
const OFFICE: &str = "table inet office {\n set trusted { type ipv4_addr; flags interval; elements = { 198.51.100.0/24 }; }\n \
                      chain forward {\n  type filter hook forward priority filter; policy drop;\n  ct state invalid drop\n  \
                      ct state established,related accept\n  iifname { \"vmnet1\", \"mesh-default\" } accept\n }\n}\n\
                      table ip office-nat {\n chain post {\n  type nat hook postrouting priority srcnat;\n  \
                      ip saddr 172.20.0.0/16 oifname \"eth0\" masquerade\n }\n chain pre {\n  \
                      type nat hook prerouting priority dstnat;\n  tcp dport 8443 dnat to 172.20.0.2:443\n }\n}\n";

/// Three hosts; ph3 carries for ph1 and ph2, ph2 stands by; ph3's own VMs leave past the mesh.
fn plan() -> Plan {
    Plan::standard("", 3)
        .each_net(|host, net| {
            net.egress = match host {
                "ph3" => vec!["local".into()],
                _ => vec!["ph3".into(), "ph2".into()],
            }
        })
        .with("ph2", |host| host.offer("default", &["198.51.100.12"], 200))
        .with("ph3", |host| host.ruleset(OFFICE))
}

fn ready(lab: &Lab) {
    assert!(wait_until(SOON, || lab.web("vm1", WEB4, None).as_deref() == Some("198.51.100.13")));
    assert!(wait_until(SOON, || lab.candidates("ph1").contains("ph2 alive")), "{}", lab.candidates("ph1"));
}

/// Packets that an egress node's kernel dropped because its daemon did not run.
fn fenced(lab: &Lab, host: &str) -> u64 {
    let text = lab.exec(host, &["nft", "list", "counter", "inet", "mesh", "no_lease"]).unwrap().stdout;
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "packets").unwrap();
    words[at + 1].parse().unwrap()
}

fn leased(lab: &Lab, host: &str) -> bool {
    let text = lab.exec(host, &["nft", "list", "set", "inet", "mesh", "lease"]).unwrap().stdout;
    text.contains("expires")
}

#[test]
fn the_kernel_of_a_frozen_egress_node_gives_its_role_up_and_takes_it_again() {
    let mut lab = Lab::start(plan()).unwrap();
    ready(&lab);
    assert!(leased(&lab, "ph3") && leased(&lab, "ph2"));
    assert!(wait_until(SOON, || lab.web("vm3", WEB4, None).is_some()), "the host's own VM leaves by itself");
    // a download, and datagrams, in progress; the server goes on to send to the address that it knows
    let fetch = format!(
        "timeout 20 curl -sS --noproxy '*' -m 20 --limit-rate 200k http://{WEB4}/bytes/50000000 >/dev/null"
    );
    lab.spawn("vm1", &["sh", "-c", &fetch]).unwrap();
    let stream = format!(
        "timeout 20 sh -c 'while :; do echo x; sleep 0.02; done' | timeout 20 nc -u {WEB4} 5002 >/dev/null"
    );
    lab.spawn("vm2", &["sh", "-c", &stream]).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(fenced(&lab, "ph3"), 0, "a node that runs carries all");
    lab.freeze("ph3").unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert!(!leased(&lab, "ph3"), "the lease has run out");
    let wire = lab.capture("gw", "inet0", "src host 198.51.100.13").unwrap();
    assert!(wait_until(SOON, || fenced(&lab, "ph3") > 0), "answers are not taken for others any more");
    assert_eq!(lab.web("vm1", WEB4, None).as_deref(), Some("198.51.100.12"), "the standby carries");
    let seen = wire.stop().unwrap();
    assert!(seen.lines.is_empty(), "the frozen node's kernel speaks for others: {:?}", seen.lines.first());
    assert_eq!(lab.web("vm3", WEB4, None).as_deref(), Some("198.51.100.13"), "its own VM is not concerned");

    lab.thaw("ph3").unwrap();
    assert!(wait_until(SOON, || lab.notices("ph3", "lease_lost") == 1), "{}", lab.log("ph3"));
    assert!(leased(&lab, "ph3"));
    assert!((lab.metric("ph3", "mesh_egress_lease_lost_total", "") - 1.0).abs() < 0.1);
    assert!(wait_until(SOON, || lab.candidates("ph1").contains("ph3 alive")), "{}", lab.candidates("ph1"));
    assert!(lab.ctl("ph1", &["egress", "use", "ph3"]).unwrap().ok());
    assert!(wait_until(SOON, || lab.web("vm1", WEB4, None).as_deref() == Some("198.51.100.13")));
}

#[test]
fn a_lease_comes_and_goes_without_looking_like_somebody_s_change_and_a_flushed_one_is_back_at_once() {
    let lab = Lab::start(plan()).unwrap();
    ready(&lab);
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(lab.notices("ph3", "kernel_repaired"), 0, "{}", lab.log("ph3"));
    lab.sh("ph3", "nft flush set inet mesh lease").unwrap();
    assert!(wait_until(SOON, || leased(&lab, "ph3")));
    assert_eq!(lab.notices("ph3", "lease_lost"), 0, "the node has run all the time");
    lab.sh("ph3", "nft flush ruleset").unwrap();
    assert!(wait_until(SOON, || lab.notices("ph3", "kernel_repaired") > 0), "{}", lab.log("ph3"));
    assert!(leased(&lab, "ph3"), "a new table begins with a lease");
    // a hypervisor's rules are listed by its operator, at any time
    for _ in 0..20 {
        assert!(lab.exec("ph3", &["timeout", "5", "nft", "-j", "list", "ruleset"]).unwrap().ok());
    }
}

#[test]
fn a_node_that_cannot_renew_its_lease_says_so_to_those_who_would_use_it() {
    let lab = Lab::start(plan()).unwrap();
    ready(&lab);
    lab.sh("ph3", "ip link set lo down").unwrap();
    assert!(wait_until(SOON, || lab.web("vm1", WEB4, None).as_deref() == Some("198.51.100.12")));
    assert!(lab.candidates("ph1").contains("ph3 uplink_down"), "{}", lab.candidates("ph1"));
    assert_eq!(lab.notices("ph3", "lease_not_renewed"), 1, "{}", lab.log("ph3"));
    let status = lab.ctl("ph3", &["status"]).unwrap();
    assert!(!status.ok() && status.text().contains("is the device lo up?"), "{}", status.text());
    lab.sh("ph3", "ip link set lo up").unwrap();
    assert!(wait_until(SOON, || lab.candidates("ph1").contains("ph3 alive")), "{}", lab.candidates("ph1"));
    assert_eq!(lab.web("vm1", WEB4, None).as_deref(), Some("198.51.100.12"), "a return moves nobody");
}

#[test]
fn a_busy_egress_node_keeps_its_lease() {
    let mut lab = Lab::start(plan()).unwrap();
    ready(&lab);
    for _ in 0..2 {
        lab.spawn("gw", &["timeout", "15", "sh", "-c", "while :; do :; done"]).unwrap();
    }
    lab.spawn("inet", &["timeout", "25", "iperf3", "-s", "-1"]).unwrap();
    let bulk = || lab.exec("vm1", &["timeout", "15", "iperf3", "-c", WEB4, "-P", "4", "-t", "10"]);
    assert!(wait_until(SOON, || bulk().is_ok_and(|o| o.ok())), "the load was there");
    for host in ["ph2", "ph3"] {
        assert_eq!(lab.notices(host, "lease_lost"), 0, "{host}: {}", lab.log(host));
        assert_eq!(fenced(&lab, host), 0, "{host}");
    }
}

/// All that is the operator's in a host's kernel: every nftables table, rule and route that is not ours, and settings that
/// decide what the host forwards.
fn operators(lab: &Lab, host: &str) -> String {
    let script = "for t in $(nft list tables | grep -v 'inet mesh$' | sed 's/^table //; s/ /:/'); do \
                  nft -s list table ${t%%:*} ${t##*:}; done; \
                  for f in -4 -6; do ip -d $f rule | grep -v 'proto 171'; ip -d $f route show table main | grep -v 'proto 171'; \
                  done";
    lab.sh(host, script).unwrap().stdout
}

#[test]
fn the_operator_s_own_nat_firewall_rules_and_routes_stay_byte_for_byte() {
    let mut lab = Lab::build(plan()).unwrap();
    lab.sh(
        "ph3",
        "ip rule add from 172.20.0.0/16 lookup 200 priority 1000; ip route add 172.20.0.0/16 dev lo",
    )
    .unwrap();
    let before = operators(&lab, "ph3");
    assert!(before.contains("172.20.0.2:443") && before.contains("lookup 200"), "{before}");
    for host in ["ph1", "ph2", "ph3"] {
        lab.start_node(host).unwrap();
    }
    lab.wait_connected(Duration::from_secs(20)).unwrap();
    ready(&lab);
    let same = |lab: &Lab, when: &str| assert_eq!(operators(lab, "ph3"), before, "{when}");
    same(&lab, "while it carries");
    lab.freeze("ph3").unwrap();
    assert!(wait_until(SOON, || lab.web("vm1", WEB4, None).as_deref() == Some("198.51.100.12")));
    same(&lab, "while it is frozen");
    lab.thaw("ph3").unwrap();
    assert!(wait_until(SOON, || lab.candidates("ph1").contains("ph3 alive")));
    same(&lab, "after a freeze");
    lab.kill_node("ph3").unwrap();
    same(&lab, "after a kill");
    lab.start_node("ph3").unwrap();
    // it is held down: after two failures for 10 s, after a third, such as a start that keeps its loop busy, for 20
    assert!(wait_until(Duration::from_secs(45), || lab.candidates("ph1").contains("ph3 alive")));
    same(&lab, "after a new start");
    assert!(lab.ctl("ph3", &["egress", "drain"]).unwrap().ok());
    same(&lab, "while it drains");
    assert!(lab.ctl("ph3", &["egress", "resume"]).unwrap().ok());
    same(&lab, "after it has drained");
    lab.sh("ph3", "nft delete table inet mesh").unwrap();
    assert!(wait_until(SOON, || lab.notices("ph3", "kernel_repaired") > 0));
    same(&lab, "after a repair");
    lab.stop_node("ph3").unwrap();
    same(&lab, "after a stop");
}
