//! A node's configuration changes while it carries traffic.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run in real time and fail by panic"
)]

use lab::command::signal;
use lab::world::{WEB4, wait_until};
use lab::{Lab, Net, Plan, Vm};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(5);

/// Two hosts with network "default" in their files, and a bridge, machines and certificates for "red" as well.
fn plan() -> Plan {
    let mut plan = Plan::standard("", 2);
    for i in 1..=2 {
        let host = format!("ph{i}");
        let red = Net::new("red", "vmnet2").subnet(
            "192.168.200.1/24",
            "192.168.200.0/24",
            &format!("10.88.{i}.0/24"),
        );
        plan = plan.with(&host, |host| host.net(red)).vm(Vm::new(
            &format!("red{i}"),
            &host,
            "vmnet2",
            "192.168.200.10/24",
        ));
    }
    plan
}

/// The host's file as the plan has it.
fn whole(lab: &Lab, host: &str) -> String {
    lab.config(host).unwrap()
}

/// The same without the section of "red".
fn without_red(lab: &Lab, host: &str) -> String {
    let text = whole(lab, host);
    let start = text.find("\n[[network]]\nname = \"red\"").unwrap();
    let end = text[start + 1..].find("\n[[egress]]").map_or(text.len(), |at| start + 1 + at);
    format!("{}{}", &text[..start], &text[end..])
}

fn write(lab: &Lab, host: &str, text: &str) {
    std::fs::write(lab.file(host, "node.toml"), text).unwrap();
}

/// Writes and reloads; gives the report.
fn reload(lab: &Lab, host: &str, text: &str) -> serde_json::Value {
    write(lab, host, text);
    lab.ctl(host, &["--json", "reload"]).unwrap().json()
}

/// (key, state) of each change of a report.
fn changes(report: &serde_json::Value) -> Vec<(String, String)> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let list = report["changes"].as_array().unwrap();
    list.iter().map(|change| (text(&change["key"]), text(&change["state"]))).collect()
}

fn applied(key: &str) -> (String, String) {
    (key.into(), "applied".into())
}

#[test]
fn networks_addresses_and_egress_come_and_go_without_touching_a_transfer() {
    let mut lab = Lab::build(plan()).unwrap();
    for host in ["ph1", "ph2"] {
        write(&lab, host, &without_red(&lab, host));
        lab.start_node(host).unwrap();
    }
    lab.wait_connected(Duration::from_secs(10)).unwrap();
    lab.serve("vm2").unwrap();
    assert!(lab.ping_within(SOON, "vm1", "10.77.2.10"));
    assert!(lab.exec("ph1", &["ip", "link", "show", "mesh-red"]).is_ok_and(|o| !o.ok()));
    let lab = &lab;
    let since =
        || lab.ctl("ph1", &["--json", "peer", "show", "ph2"]).unwrap().json()["peer"]["since"].clone();
    let up_since = since();
    let busy = || {
        let flows = lab.exec("vm1", &["ss", "-Htn", "state", "established"]).unwrap().stdout;
        flows.lines().any(|line| line.contains("10.77.2.10"))
    };
    std::thread::scope(|scope| {
        // slow enough to last through what follows
        lab.rate("ph1", "200mbit").unwrap();
        let transfer = scope.spawn(|| lab.transfer("vm1", "10.77.2.10", 250_000_000).unwrap());
        assert!(wait_until(SOON, busy));

        assert_eq!(changes(&reload(lab, "ph1", &whole(lab, "ph1"))), [applied("network red")]);
        assert_eq!(changes(&reload(lab, "ph2", &whole(lab, "ph2"))), [applied("network red")]);
        assert!(lab.ping_within(SOON, "red1", "10.88.2.10"), "a network that came later");

        let more =
            whole(lab, "ph2").replace("\"203.0.113.12/32\"", "\"203.0.113.12/32\", \"203.0.113.42/32\"");
        lab.exec("pub2", &["ip", "addr", "add", "203.0.113.42/32", "dev", "eth0"]).unwrap();
        assert!(!lab.ping("vm1", "203.0.113.42"));
        assert_eq!(changes(&reload(lab, "ph2", &more)), [applied("network default: announce")]);
        assert!(lab.ping_within(SOON, "vm1", "203.0.113.42"), "an address that came later");

        reload(lab, "ph2", &without_red(lab, "ph2"));
        let gone = || lab.exec("ph2", &["ip", "link", "show", "mesh-red"]).is_ok_and(|o| !o.ok());
        assert!(wait_until(SOON, gone), "the device goes with its network");
        assert!(!lab.ping("red1", "10.88.2.10"));
        assert!(!lab.ping("vm1", "203.0.113.42"), "the address has gone with its line");
        let rules = |lab: &Lab| lab.exec("ph2", &["ip", "rule"]).unwrap().stdout;
        assert!(wait_until(SOON, || !rules(lab).contains("vmnet2")), "{}", rules(lab));
        reload(lab, "ph2", &whole(lab, "ph2"));
        assert!(lab.ping_within(SOON, "red1", "10.88.2.10"), "and comes back");

        assert_eq!(lab.web("vm1", WEB4, None).as_deref(), Some("198.51.100.12"));
        let local = whole(lab, "ph1").replace("egress = [\"ph2\"]", "egress = \"local\"");
        assert_eq!(changes(&reload(lab, "ph1", &local)), [applied("network default: egress")]);
        let own = || lab.web("vm1", WEB4, None).as_deref() == Some("198.51.100.11");
        assert!(wait_until(SOON, own), "new connections leave the new way");

        assert!(busy(), "the transfer went on all the while");
        let sent = transfer.join().unwrap();
        assert!(sent.ok(), "every byte in order: {}", sent.text());
    });
    assert_eq!(since(), up_since, "the tunnel has not been made anew");
}

#[test]
fn a_rejected_configuration_applies_nothing_and_names_every_error() {
    let mut lab = Lab::start(Plan::standard("", 2)).unwrap();
    assert!(lab.ping_within(SOON, "vm1", "10.77.2.10"));
    let good = whole(&lab, "ph1");
    let last = |lab: &Lab| lab.metric("ph1", "mesh_config_last_reload_successful", "");
    assert_eq!(last(&lab), 1.0);
    // one good change beside two errors
    let bad = good
        .replace("203.0.113.11/32", "203.0.113.99/32")
        .replace("10.77.1.0/24", "10.99.1.0/24")
        .replace("metrics =", "metricks =");
    write(&lab, "ph1", &bad);
    let told = lab.ctl("ph1", &["reload"]).unwrap();
    assert_eq!(told.code, Some(1), "{}", told.text());
    for words in ["rejected: nothing was applied", "metricks", "did you mean metrics", "10.99.1.0/24"] {
        let text = told.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains(words), "{words} in {text}");
    }
    assert_eq!(last(&lab), 0.0);
    let routes = lab.ctl("ph1", &["routes"]).unwrap().stdout;
    assert!(routes.contains("203.0.113.11/32") && !routes.contains("203.0.113.99"), "{routes}");
    assert!(lab.ping("vm1", "10.77.2.10"));
    // the signal does the same, and its report is in the log
    write(&lab, "ph1", &good.replace("[node]", "[node]\nmtu = 1300"));
    signal(lab.pid("ph1").unwrap(), "HUP").unwrap();
    assert!(wait_until(SOON, || last(&lab) == 1.0));
    assert!(wait_until(SOON, || lab.log("ph1").contains("node: mtu")), "{}", lab.log("ph1"));
    let mtu = || lab.sh("ph1", "ip route get 10.77.2.10 from 192.168.100.10 iif vmnet1").unwrap().stdout;
    assert!(wait_until(SOON, || mtu().contains("mtu 1300")), "{}", mtu());
    assert!(lab.runs("ph1"));
}

#[test]
fn what_needs_a_restart_is_named_until_then_and_a_renewed_certificate_counts_at_once() {
    let mut lab = Lab::start(Plan::standard("", 2)).unwrap();
    let other_port = whole(&lab, "ph1").replace("0.0.0.0:4650", "0.0.0.0:4651");
    for _ in 0..2 {
        write(&lab, "ph1", &other_port);
        let told = lab.ctl("ph1", &["--json", "reload"]).unwrap();
        assert_eq!(told.code, Some(1));
        assert_eq!(changes(&told.json()), [("node: listen".to_owned(), "needs restart".to_owned())]);
        assert!(told.json()["reason"].as_str().unwrap().contains("restart the node"));
    }
    assert_eq!(changes(&reload(&lab, "ph1", &whole(&lab, "ph1"))), []);

    // an address that the certificate does not allow, then one that does
    let more = whole(&lab, "ph2").replace("\"203.0.113.12/32\"", "\"203.0.113.12/32\", \"192.0.2.42/32\"");
    let report = reload(&lab, "ph2", &more);
    assert_eq!(report["state"], "rejected");
    assert!(report["reason"].as_str().unwrap().contains("192.0.2.42/32"), "{report}");
    let ca = lab.dir().join("ca").to_string_lossy().into_owned();
    let ctl = lab::node::binary("mesh-ctl").unwrap().to_string_lossy().into_owned();
    let issue = format!(
        "{ctl} ca issue ph2 --prefix 10.77.2.0/24 fd00:77:2::/64 --announce 203.0.113.0/24 192.0.2.42 --egress --dir {ca} --days 9 &&
         cp {ca}/ph2.pem {} && cp {ca}/ph2.key {}",
        lab.file("ph2", "node.pem").display(),
        lab.file("ph2", "node.key").display(),
    );
    std::fs::remove_file(format!("{ca}/ph2.pem")).unwrap();
    std::fs::remove_file(format!("{ca}/ph2.key")).unwrap();
    let issued = lab.sh("ph2", &issue).unwrap();
    assert!(issued.ok(), "{}", issued.text());
    let report = reload(&lab, "ph2", &more);
    assert_eq!(report["state"], "applied", "{report}");
    let keys = changes(&report);
    assert!(keys.contains(&applied("node: certificate")), "{keys:?}");
    lab.exec("pub2", &["ip", "addr", "add", "192.0.2.42/32", "dev", "eth0"]).unwrap();
    assert!(lab.ping_within(SOON, "vm1", "192.0.2.42"), "the others accept what it now may announce");
    // and a peer that starts now is shown the new certificate
    lab.stop_node("ph1").unwrap();
    lab.start_node("ph1").unwrap();
    lab.wait_connected(Duration::from_secs(10)).unwrap();
    let expires = lab.ctl("ph1", &["--json", "peer", "show", "ph2"]).unwrap().json();
    let own = lab.ctl("ph2", &["--json", "status"]).unwrap().json();
    assert_eq!(expires["peer"]["certificate_expires"], own["certificate_expires"]);
}

#[test]
fn a_network_that_comes_and_goes_many_times_leaves_nothing_and_nobody_is_alarmed() {
    let lab = Lab::start(plan()).unwrap();
    lab.wait_connected(Duration::from_secs(10)).unwrap();
    let pid = lab.pid("ph1").unwrap();
    let held = || {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count();
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        (threads, files)
    };
    let (with, without) = (whole(&lab, "ph1"), without_red(&lab, "ph1"));
    let names = |lab: &Lab| lab.ctl("ph1", &["--json", "networks"]).unwrap().stdout;
    reload(&lab, "ph1", &without);
    reload(&lab, "ph1", &with);
    let before = held();
    for _ in 0..20 {
        reload(&lab, "ph1", &without);
        assert!(!names(&lab).contains("\"red\""), "applied means that it is in effect");
        let rules = lab.exec("ph1", &["ip", "rule"]).unwrap().stdout;
        assert!(!rules.contains("vmnet2"), "{rules}");
        reload(&lab, "ph1", &with);
        assert!(names(&lab).contains("\"red\""));
    }
    let after = held();
    assert!(after.0 <= before.0 + 8 && after.1 <= before.1 + 4, "{before:?} {after:?}");
    assert!(lab.ping_within(SOON, "red1", "10.88.2.10"));
    let log = lab.log("ph1");
    for alarm in ["kernel_failed", "kernel_repaired", "flows_stay", "device_lost"] {
        let told: Vec<_> = log.lines().filter(|line| line.contains(alarm)).collect();
        assert!(told.is_empty(), "{told:#?}");
    }
}

#[test]
fn flows_that_are_under_way_take_a_new_egress_address_as_well() {
    let mut lab = Lab::start(Plan::standard("", 2)).unwrap();
    assert!(lab.ping_within(SOON, "vm1", WEB4));
    lab.exec("ph2", &["ip", "addr", "add", "198.51.100.112/24", "dev", "eth0"]).unwrap();
    // one flow for conntrack, as long as it goes on
    lab.spawn("vm1", &["ping", "-n", "-i", "0.1", WEB4]).unwrap();
    let seen_from = |lab: &mut Lab, address: &str| {
        let wire = lab.capture("gw", "br0", &format!("icmp and src {address}")).unwrap();
        std::thread::sleep(Duration::from_secs(1));
        wire.stop().unwrap().lines.len()
    };
    assert!(seen_from(&mut lab, "198.51.100.12") > 3);
    let moved = whole(&lab, "ph2").replace("snat = \"198.51.100.12\"", "snat = \"198.51.100.112\"");
    let report = reload(&lab, "ph2", &moved);
    assert_eq!(changes(&report), [applied("egress default eth0: snat")], "{report}");
    assert!(seen_from(&mut lab, "198.51.100.112") > 3, "the flow goes on from the new address");
    assert_eq!(seen_from(&mut lab, "198.51.100.12"), 0);
}
