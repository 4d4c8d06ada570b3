//! Several packet workers: a TUN queue, a UDP port and a pair of threads each.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run in real time and fail by panic"
)]

use std::time::{Duration, Instant};

use lab::{Lab, Plan, wait_until};

const SOON: Duration = Duration::from_secs(5);
const VM1: &str = "10.77.1.10";
const VM2: &str = "10.77.2.10";

/// Two hosts with so many workers each.
fn lab(workers: [u8; 2]) -> Lab {
    let [one, two] = workers.map(|workers| format!("workers = {workers}\nlane_packets = 20000"));
    let plan =
        Plan::standard("", 2).with("ph1", |host| host.extra(&one)).with("ph2", |host| host.extra(&two));
    let mut lab = Lab::start(plan).unwrap();
    assert!(lab.ping_within(SOON, "vm1", VM2));
    lab.serve("vm1").unwrap();
    lab.serve("vm2").unwrap();
    lab
}

/// Packets that a worker has received.
fn came(lab: &Lab, host: &str, worker: &str) -> f64 {
    let metrics = lab.metrics(host);
    let name = format!("mesh_worker_receive_packets_total{{worker=\"{worker}\"");
    let line = metrics.lines().find(|line| line.starts_with(&name));
    line.and_then(|line| line.split_whitespace().last()?.parse().ok()).unwrap_or_default()
}

/// Many flows at once, both ways; each checked by its sha256.
fn flows(lab: &Lab) {
    std::thread::scope(|s| {
        let all: Vec<_> = (0..4)
            .flat_map(|_| [("vm1", VM2), ("vm2", VM1), ("vm1", "fd00:77:2::10"), ("vm2", "fd00:77:1::10")])
            .map(|(from, to)| s.spawn(move || (to, lab.transfer(from, to, 20_000_000).unwrap())))
            .collect();
        for flow in all {
            let (to, sent) = flow.join().unwrap();
            assert!(sent.ok(), "TCP to {to}: {}", sent.text());
        }
    });
}

fn refused(lab: &Lab) -> f64 {
    ["ph1", "ph2"].map(|host| lab.metric(host, "mesh_peer_lane_refused_packets_total", "")).iter().sum()
}

#[test]
fn two_workers_share_the_flows_and_nothing_is_lost() {
    let lab = lab([2, 2]);
    flows(&lab);
    for host in ["ph1", "ph2"] {
        for worker in ["mesh-out-0", "mesh-out-0.1", "mesh-lanes", "mesh-lanes.1"] {
            assert!(came(&lab, host, worker) > 1000.0, "{worker} of {host}:\n{}", lab.metrics(host));
        }
    }
    assert_eq!(refused(&lab), 0.0);
    let shown = lab.ctl("ph1", &["--json", "peer", "show", "ph2"]).unwrap().json()["peer"].clone();
    assert_eq!(shown["transport"], "lanes");
    assert_eq!(shown["lane"]["unheard_ports"], serde_json::json!([]));
    let verbose = lab.ctl("ph1", &["status", "--verbose"]).unwrap().stdout;
    assert!(verbose.contains("mesh-out-0.1") && verbose.contains("mesh-lanes.1"), "{verbose}");
}

#[test]
fn two_workers_and_one_work_together() {
    let mut lab = lab([2, 1]);
    let wire = lab.capture("ph2", "eth0", "udp portrange 4651-4660").unwrap();
    flows(&lab);
    let seen = wire.stop().unwrap();
    assert_eq!(seen.lines, Vec::<String>::new(), "ports that not both have");
    for (host, worker) in
        [("ph1", "mesh-out-0"), ("ph1", "mesh-lanes"), ("ph2", "mesh-out-0"), ("ph2", "mesh-lanes")]
    {
        assert!(came(&lab, host, worker) > 1000.0, "{worker} of {host}:\n{}", lab.metrics(host));
    }
    assert_eq!(refused(&lab), 0.0);
    assert_eq!(lab.notices("ph1", "worker_unheard"), 0, "{}", lab.log("ph1"));
}

#[test]
fn behind_a_firewall_that_has_the_first_port_open_only_all_packets_get_through_by_that() {
    let lab = lab([2, 2]);
    flows(&lab);
    let unheard = || {
        let shown = lab.ctl("ph1", &["--json", "peer", "show", "ph2"]).unwrap().json();
        shown["peer"]["lane"]["unheard_ports"].clone()
    };
    let closed =
        "table inet user { chain in { type filter hook input priority 0; udp dport 4651 counter drop; }; }";
    assert!(lab.exec("ph2", &["nft", closed]).unwrap().ok());
    let dropped = || {
        let listed = lab.exec("ph2", &["nft", "list", "table", "inet", "user"]).unwrap().stdout;
        let count = listed.split_once("packets ").and_then(|(_, rest)| rest.split_once(' '));
        count.and_then(|(count, _)| count.parse::<u64>().ok()).unwrap()
    };
    let told = wait_until(Duration::from_secs(30), || {
        short_flows(&lab);
        unheard() == serde_json::json!(["4651 -> 4651"])
    });
    assert!(told, "{}\n{}", unheard(), lab.log("ph1"));
    let (before, begun) = (dropped(), Instant::now());
    flows(&lab);
    // the questions alone
    let asked = dropped() - before;
    assert!(asked <= begun.elapsed().as_secs() + 2, "{asked} in {:?}", begun.elapsed());
    assert!(lab.notices("ph1", "worker_unheard") >= 1);
    let text = lab.ctl("ph1", &["peer", "show", "ph2"]).unwrap().stdout;
    assert!(text.contains("does not hear us on UDP 4651 -> 4651"), "{text}");
    // and open again
    let before = came(&lab, "ph2", "mesh-lanes.1");
    assert!(lab.exec("ph2", &["nft", "delete", "table", "inet", "user"]).unwrap().ok());
    let open = wait_until(Duration::from_secs(30), || {
        short_flows(&lab);
        unheard() == serde_json::json!([])
    });
    assert!(open, "{}", unheard());
    flows(&lab);
    assert!(came(&lab, "ph2", "mesh-lanes.1") > before + 1000.0);
}

/// Some short flows, so that either worker has something to send; none of them has to get through.
fn short_flows(lab: &Lab) {
    let tool = lab::node::tool().unwrap();
    for _ in 0..8 {
        let _ = lab.exec("vm1", &[&tool.to_string_lossy(), "udp", VM2, "5", "100"]);
    }
}
