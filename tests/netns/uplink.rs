//! An egress node knows whether its uplink carries, whatever its tunnels do.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run in real time and fail by panic"
)]

use lab::command::{line, must};
use lab::world::{WEB4, wait_until};
use lab::{Lab, Plan};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(5);

/// Three probes of 200 ms, and as much for a busy machine.
const DETECTED: Duration = Duration::from_secs(3);

/// Hosts that meet on eth0; ph2 offers egress by a second card, `up0`, whose other end is `w0` at the gateway.
fn lab(plan: Plan, probe: &str) -> Lab {
    let plan = plan.with("ph2", |mut host| {
        let offer = host.offers.first_mut().unwrap();
        offer.snat = vec!["100.64.0.2".into()];
        offer.extra = format!("probe = {probe}\nprobe_interval = \"200ms\"\nprobe_count = 3\n");
        host
    });
    let mut lab = Lab::build(plan).unwrap();
    let text = lab.config("ph2").unwrap().replace("interface = \"eth0\"", "interface = \"up0\"");
    std::fs::write(lab.file("ph2", "node.toml"), text).unwrap();
    let (host, gw) = (lab.ns("ph2"), lab.ns("gw"));
    for text in [
        format!("ip -n {gw} link add w0 type veth peer name up0 netns {host}"),
        format!("ip -n {gw} addr add 100.64.0.1/24 dev w0"),
        format!("ip -n {gw} link set w0 up"),
        format!("ip -n {host} addr add 100.64.0.9/24 dev up0"),
        format!("ip -n {host} addr add 100.64.0.2/24 dev up0"),
        format!("ip -n {host} link set up0 up"),
        format!("ip -n {host} route replace {WEB4}/32 via 100.64.0.1 dev up0"),
    ] {
        line(None, &text).unwrap();
    }
    for name in lab.host_names() {
        lab.start_node(&name).unwrap();
    }
    lab.wait_connected(Duration::from_secs(20)).unwrap();
    assert!(wait_until(SOON, || said(&lab).is_none()), "{:?}", said(&lab));
    lab
}

/// What the status of ph2 says of its uplink.
fn said(lab: &Lab) -> Option<String> {
    let status = lab.ctl("ph2", &["--json", "status"]).unwrap().json();
    let reasons = status["reasons"].as_array().cloned().unwrap_or_default();
    reasons.iter().filter_map(|r| r.as_str()).find(|r| r.starts_with("uplink up0")).map(str::to_owned)
}

fn seen_within(lab: &Lab, limit: Duration, word: &str) {
    let began = Instant::now();
    let seen = wait_until(limit, || said(lab).is_some_and(|text| text.contains(word)));
    assert!(seen, "{word} within {limit:?}: {:?}\n{}", said(lab), lab.log("ph2"));
    println!("{word}: {} ms", began.elapsed().as_millis());
    assert_eq!(lab.ctl("ph2", &["status"]).unwrap().code, Some(1), "degraded");
    assert_eq!(lab.peers_up("ph1"), ["ph2"], "the tunnel is alive all the while");
}

#[test]
fn a_cut_cable_of_the_uplink_is_known_at_once_and_its_return_when_the_targets_answer() {
    let lab = lab(Plan::standard("", 2), "\"100.64.0.1\"");
    assert_eq!(lab.metric("ph2", "mesh_egress_probe_success", "100.64.0.1"), 1.0);
    let gw = lab.ns("gw");
    line(None, &format!("ip -n {gw} link set w0 down")).unwrap();
    seen_within(&lab, Duration::from_secs(1), "without carrier");
    line(None, &format!("ip -n {gw} link set w0 up")).unwrap();
    assert!(wait_until(SOON, || said(&lab).is_none()), "{:?}", said(&lab));
    assert!(lab.log("ph2").contains("uplink_down") && lab.log("ph2").contains("uplink_up"));
    line(None, &format!("ip -n {} link del up0", lab.ns("ph2"))).unwrap();
    seen_within(&lab, Duration::from_secs(1), "missing");
}

#[test]
fn a_dead_target_behind_a_live_link_is_known_after_so_many_probes_which_leave_by_the_snat_address() {
    let mut lab = lab(Plan::standard("", 2), &format!("[\"100.64.0.1\", \"tcp://{WEB4}:80\"]"));
    let capture = lab.capture("gw", "w0", "icmp[0] == 8 or tcp[tcpflags] & tcp-syn != 0").unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let seen = capture.stop().unwrap();
    let ours = seen.matching("100.64.0.2");
    assert!(ours.len() >= 4, "{ours:?}");
    assert!(seen.matching("100.64.0.9").is_empty(), "none by the interface's first address");
    let gw = lab.ns("gw");
    for (rule, word) in
        [("icmp type echo-request", "100.64.0.1 does not answer"), ("tcp dport 80", "tcp://192.0.2.80:80")]
    {
        let table = format!(
            "table ip deaf {{ chain pre {{ type filter hook prerouting priority 0; iifname w0 {rule} drop; }}; }}"
        );
        must(Some(&gw), &["nft", &table]).unwrap();
        seen_within(&lab, DETECTED, word);
        line(Some(&gw), "nft delete table ip deaf").unwrap();
        assert!(wait_until(SOON, || said(&lab).is_none()), "{:?}", said(&lab));
    }
}

#[test]
fn those_who_use_an_egress_node_leave_it_when_its_uplink_dies_behind_a_live_tunnel_and_do_not_return() {
    for how in ["cable", "target"] {
        let plan = Plan::standard("", 3)
            .each_net(|_, net| net.egress = vec!["ph2".into(), "ph3".into()])
            .with("ph2", |host| host.offer("default", &["100.64.0.2"], 100));
        let lab = lab(plan, "\"100.64.0.1\"");
        let sees = |address: &str| lab.web("vm1", WEB4, None).as_deref() == Some(address);
        assert!(wait_until(SOON, || sees("100.64.0.2")), "{}", lab.ctl("ph1", &["egress"]).unwrap().text());
        let gw = lab.ns("gw");
        let began = Instant::now();
        match how {
            "cable" => line(None, &format!("ip -n {gw} link set w0 down")).unwrap(),
            _ => {
                let deaf = "table ip deaf { chain pre { type filter hook prerouting priority 0; iifname w0 drop; }; }";
                must(Some(&gw), &["nft", deaf]).unwrap()
            }
        };
        assert!(
            wait_until(DETECTED, || sees("198.51.100.13")),
            "{}",
            lab.ctl("ph1", &["egress"]).unwrap().text()
        );
        println!("{how}: elsewhere after at most {} ms", began.elapsed().as_millis());
        assert!(lab.peers_up("ph1").contains(&"ph2".to_owned()), "its tunnel is alive");
        let shown = lab.ctl("ph1", &["egress"]).unwrap().text();
        assert!(shown.contains("uplink"), "{shown}");
        let failovers = lab.metric("ph1", "mesh_egress_failovers_total", "uplink");
        assert!(failovers >= 1.0, "counted by its cause: {failovers}");
        match how {
            "cable" => line(None, &format!("ip -n {gw} link set w0 up")).unwrap(),
            _ => line(Some(&gw), "nft delete table ip deaf").unwrap(),
        };
        assert!(wait_until(SOON, || said(&lab).is_none()), "{:?}", said(&lab));
        std::thread::sleep(Duration::from_secs(1));
        assert!(sees("198.51.100.13"), "{how}: it has been moved once: enough");
    }
}

#[test]
fn the_egress_node_s_own_unmapped_vms_leave_by_another_when_its_uplink_dies() {
    let mut lab = lab(Plan::unmapped(), "\"100.64.0.1\"");
    let sees = |lab: &Lab, address: &str| lab.web("vm2", WEB4, None).as_deref() == Some(address);
    assert!(wait_until(SOON, || sees(&lab, "100.64.0.2")), "{}", lab.ctl("ph2", &["egress"]).unwrap().text());
    lab.tool("vm2", "echo", &format!("echo {WEB4} 8"));
    std::thread::sleep(Duration::from_secs(1));
    line(None, &format!("ip -n {} link set w0 down", lab.ns("gw"))).unwrap();
    assert!(wait_until(SOON, || sees(&lab, "198.51.100.11")), "{}", lab.log("ph2"));
    // one flow, from the same port all the time
    assert!(wait_until(Duration::from_secs(15), || lab.longest_gap("echo").is_some()));
    assert!(lab.longest_gap("echo").is_some_and(|gap| gap < 2000.0), "{}", lab.output("echo"));
}
