//! Leaving the mesh: by the chosen node, by this host, or not at all; and what happens when a node dies.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run in real time and fail by panic"
)]

use lab::world::{WEB4, WEB6, wait_until};
use lab::{Host, Lab, Net, Plan, Vm};
use std::time::{Duration, Instant};

fn sees(lab: &Lab, vm: &str) -> String {
    lab.web(vm, WEB4, None).unwrap_or_default()
}

fn sees_within(lab: &Lab, vm: &str, address: &str, limit: Duration) -> bool {
    wait_until(limit, || {
        let args = ["curl", "-sS", "--noproxy", "*", "-m", "1", &format!("http://{WEB4}/")];
        lab.exec(vm, &args).is_ok_and(|o| o.stdout.trim() == address)
    })
}

#[test]
fn private_machines_leave_by_the_egress_nodes_address() {
    let mut lab = Lab::start(Plan::standard("", 3)).unwrap();
    let wire = lab.capture("gw", "br0", "src net 192.168.0.0/16 or src net 10.0.0.0/8").unwrap();
    for vm in ["vm1", "vm2", "vm3"] {
        assert!(sees_within(&lab, vm, "198.51.100.13", Duration::from_secs(5)), "{vm}: {}", sees(&lab, vm));
    }
    assert!(lab.transfer("vm1", WEB4, 10_000_000).unwrap().ok());
    let down =
        lab.sh("vm1", &format!("curl -sS --noproxy '*' -m 20 http://{WEB4}/bytes/5000000 | wc -c")).unwrap();
    assert_eq!(down.stdout.trim(), "5000000");
    let seen = wire.stop().unwrap();
    assert!(seen.lines.is_empty(), "private sources at the gateway: {:?}", seen.lines.first());
    let table = lab.ctl("ph1", &["trace", "192.168.100.10", WEB4]).unwrap();
    assert!(table.ok() && table.stdout.contains("198.51.100.13"), "{}", table.text());
}

#[test]
fn egress_works_with_strict_reverse_path_filters_and_by_ipv6() {
    let strict = |host: Host| host.rp_filter(1);
    let plan = Plan::standard("", 3).with("ph1", strict).with("ph2", strict).with("ph3", |mut host| {
        host.offers[0].snat = vec!["198.51.100.13".into(), "2001:db8:100::13".into()];
        host.rp_filter(1)
    });
    let lab = Lab::start(plan).unwrap();
    assert!(sees_within(&lab, "vm1", "198.51.100.13", Duration::from_secs(5)), "{}", sees(&lab, "vm1"));
    assert_eq!(lab.web("vm1", WEB6, None).as_deref(), Some("2001:db8:100::13"));
}

#[test]
fn local_egress_uses_the_hosts_own_address_and_none_is_refused_with_icmp() {
    let plan = Plan::standard("", 2).each_net(|host, net| {
        net.egress = vec![if host == "ph1" { "local" } else { "none" }.into()];
    });
    let lab = Lab::start(plan).unwrap();
    assert!(sees_within(&lab, "vm1", "198.51.100.11", Duration::from_secs(5)), "{}", sees(&lab, "vm1"));
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"), "the mesh is not affected");
    let refused = lab.exec("vm2", &["ping", "-n", "-c", "2", "-W", "2", WEB4]).unwrap();
    assert!(!refused.ok());
    assert!(refused.stdout.contains("From 192.168.100.1"), "told so at once: {}", refused.text());
    let counter = lab.exec("ph2", &["nft", "list", "counter", "inet", "mesh", "no_egress"]).unwrap().stdout;
    assert!(counter.contains("packets ") && !counter.contains("packets 0 "), "counted: {counter}");
}

#[test]
fn an_egress_node_is_no_relay_into_its_own_lan() {
    let mut lab = Lab::start(Plan::standard("", 3)).unwrap();
    assert!(sees_within(&lab, "vm1", "198.51.100.13", Duration::from_secs(5)));
    let wire = lab.capture("gw", "br0", "icmp").unwrap();
    assert!(!lab.ping("vm1", "198.51.100.12"), "a LAN neighbour of the egress node");
    assert!(!lab.ping("vm1", "10.200.0.1"), "a private range");
    let seen = wire.stop().unwrap();
    assert!(seen.lines.is_empty(), "{:?}", seen.lines.first());
}

/// Two egress nodes; the first is lost in some way; how long until the second carries?
fn fail_over(how: &str, lose: impl Fn(&mut Lab)) {
    let plan = Plan::standard("", 3)
        .each_net(|_, net| net.egress = vec!["ph3".into(), "ph2".into()])
        .with("ph2", |host| host.offer("default", &["198.51.100.12"], 200));
    let mut lab = Lab::start(plan).unwrap();
    assert!(
        sees_within(&lab, "vm1", "198.51.100.13", Duration::from_secs(5)),
        "{how}: {}",
        sees(&lab, "vm1")
    );
    let start = Instant::now();
    lose(&mut lab);
    assert!(
        sees_within(&lab, "vm1", "198.51.100.12", Duration::from_secs(6)),
        "{how}: {}",
        sees(&lab, "vm1")
    );
    println!("{how}: standby carries after at most {:.1} s", start.elapsed().as_secs_f64());
    let status = lab.ctl("ph1", &["status"]).unwrap();
    assert_eq!(status.code, Some(1), "{how}: on a standby is degraded: {}", status.text());
}

#[test]
fn the_standby_takes_over_from_a_killed_egress_node() {
    fail_over("killed", |lab| lab.kill_node("ph3").unwrap());
}

#[test]
fn the_standby_takes_over_from_a_frozen_egress_node() {
    fail_over("frozen", |lab| lab.freeze("ph3").unwrap());
}

#[test]
fn the_standby_takes_over_when_the_power_fails() {
    fail_over("power cut", |lab| lab.power_cut("ph3").unwrap());
}

#[test]
fn the_standby_takes_over_from_a_node_that_leaves_politely() {
    let plan = Plan::standard("", 3)
        .each_net(|_, net| net.egress = vec!["ph3".into(), "ph2".into()])
        .with("ph2", |host| host.offer("default", &["198.51.100.12"], 200));
    let mut lab = Lab::start(plan).unwrap();
    assert!(sees_within(&lab, "vm1", "198.51.100.13", Duration::from_secs(5)));
    lab.stop_node("ph3").unwrap();
    assert!(sees_within(&lab, "vm1", "198.51.100.12", Duration::from_secs(3)), "{}", sees(&lab, "vm1"));
    let status = lab.ctl("ph1", &["status"]).unwrap();
    assert_eq!(status.code, Some(1), "on a standby is degraded: {}", status.text());
}

#[test]
fn the_egress_node_s_own_vms_leave_by_it_also_where_nothing_is_mapped() {
    // unique subnets on every host, and a firewall that takes tracked connections seriously
    let firewall = "table inet office {\n chain forward {\n  type filter hook forward priority filter; policy drop;\n  \
                    ct state invalid drop\n  ct state established,related accept\n  iifname \"vmnet1\" accept\n  \
                    iifname \"mesh-default\" accept\n }\n}\n";
    let mut plan = Plan::new("");
    for i in 1..=2 {
        let (host, four, six) = (format!("ph{i}"), format!("10.50.{i}"), format!("fd00:50:{i}:"));
        let net = Net::new("default", "vmnet1")
            .subnet(&format!("{four}.1/24"), &format!("{four}.0/24"), &format!("{four}.0/24"))
            .subnet(&format!("{six}:1/64"), &format!("{six}:/64"), &format!("{six}:/64"))
            .egress(&["ph2"]);
        let mut host = Host::new(&host).net(net).ruleset(firewall);
        if i == 2 {
            host = host.offer("default", &["198.51.100.12"], 100);
        }
        let vm = Vm::new(&format!("vm{i}"), &format!("ph{i}"), "vmnet1", &format!("{four}.10/24"));
        plan = plan.host(host).vm(vm.address(&format!("{six}:10/64")));
    }
    let mut lab = Lab::start(plan).unwrap();
    let wire = lab.capture("gw", "br0", "net 10.50.0.0/16 or net fd00:50::/32").unwrap();
    for vm in ["vm1", "vm2"] {
        assert!(sees_within(&lab, vm, "198.51.100.12", Duration::from_secs(5)), "{vm}: {}", sees(&lab, vm));
        assert!(lab.web(vm, WEB6, None).is_some(), "{vm} by IPv6");
        assert!(lab.ping(vm, WEB4), "{vm}");
    }
    assert!(lab.ping_within(Duration::from_secs(5), "vm2", "10.50.1.10"), "the mesh is not the Internet");
    assert!(!lab.ping("vm2", "198.51.100.11"), "connected networks stay closed");
    let seen = wire.stop().unwrap();
    assert!(seen.lines.is_empty(), "private sources outside: {:?}", seen.lines.first());
}

#[test]
fn an_egress_node_that_the_operator_names_carries_until_it_is_undone_also_after_a_restart() {
    let plan = Plan::standard("", 3)
        .each_net(|_, net| net.egress = vec!["ph3".into(), "ph2".into()])
        .with("ph2", |host| host.offer("default", &["198.51.100.12"], 200));
    let mut lab = Lab::start(plan).unwrap();
    assert!(sees_within(&lab, "vm1", "198.51.100.13", Duration::from_secs(5)));
    let done = lab.ctl("ph1", &["egress", "use", "ph2"]).unwrap();
    assert!(done.ok(), "{}", done.text());
    assert!(sees_within(&lab, "vm1", "198.51.100.12", Duration::from_secs(2)), "{}", sees(&lab, "vm1"));
    assert_eq!(sees(&lab, "vm2"), "198.51.100.13", "a word on ph1 is for ph1");
    let status = lab.ctl("ph1", &["status"]).unwrap().stdout;
    assert!(status.contains("an operator said so"), "{status}");
    lab.kill_node("ph1").unwrap();
    lab.start_node("ph1").unwrap();
    assert!(sees_within(&lab, "vm1", "198.51.100.12", Duration::from_secs(5)), "{}", sees(&lab, "vm1"));
    assert!(lab.ctl("ph1", &["egress", "use", "auto"]).unwrap().ok());
    assert!(sees_within(&lab, "vm1", "198.51.100.13", Duration::from_secs(2)), "{}", sees(&lab, "vm1"));
    assert_eq!(lab.ctl("ph1", &["egress", "use", "ph9"]).unwrap().code, Some(1));
}
