//! Lanes between real daemons: packets, large transfers, changes of lanes under load, losses, restarts, and peers that have none.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run in real time and fail by panic"
)]

use std::time::Duration;

use lab::{Lab, Plan, wait_until};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(5);
const VM2: &str = "10.77.2.10";

/// Two hosts; `extra` goes to [node] of each.
fn lab(extra: [&str; 2]) -> Lab {
    let plan = Plan::standard("", 2)
        .with("ph1", |host| host.extra(extra[0]))
        .with("ph2", |host| host.extra(extra[1]));
    let lab = Lab::start(plan).unwrap();
    assert!(lab.ping_within(SOON, "vm1", VM2));
    lab
}

fn lanes() -> Lab {
    let lab = lab(["transport = \"lanes\""; 2]);
    on_lanes(&lab);
    lab
}

fn on_lanes(lab: &Lab) {
    let up = wait_until(SOON, || {
        transport(lab, "ph1", "ph2") == "lanes" && transport(lab, "ph2", "ph1") == "lanes"
    });
    assert!(up, "{}\n{}", peer(lab, "ph1", "ph2"), lab.log("ph1"));
}

fn peer(lab: &Lab, host: &str, of: &str) -> Value {
    lab.ctl(host, &["--json", "peer", "show", of]).unwrap().json()["peer"].clone()
}

fn transport(lab: &Lab, host: &str, of: &str) -> String {
    peer(lab, host, of)["transport"].as_str().unwrap_or_default().to_owned()
}

fn lane(lab: &Lab, host: &str, of: &str, what: &str) -> u64 {
    peer(lab, host, of)["lane"][what].as_u64().unwrap_or_default()
}

#[test]
fn packets_of_every_kind_and_size_travel_on_lanes() {
    let mut lab = lanes();
    lab.serve("vm2").unwrap();
    let before = lane(&lab, "ph1", "ph2", "packets_left");
    for (to, bytes) in [(VM2, 300_000_000), ("fd00:77:2::10", 20_000_000)] {
        let sent = lab.transfer("vm1", to, bytes).unwrap();
        assert!(sent.ok(), "TCP to {to}: {}", sent.text());
    }
    let tool = lab::node::tool().unwrap();
    for to in [VM2, "fd00:77:2::10"] {
        for size in ["1", "1000", "1400", "4000"] {
            let sent = lab.exec("vm1", &[&tool.to_string_lossy(), "udp", to, "100", size]).unwrap();
            assert!(sent.ok(), "UDP to {to} with {size} bytes: {}", sent.text());
        }
    }
    // they were the lane's: 320 MB are more than 200,000 packets
    assert!(before - lane(&lab, "ph1", "ph2", "packets_left") > 200_000);
    assert!(lab.metric("ph2", "mesh_worker_receive_packets_total", "mesh-lanes") > 200_000.0);
    let refused = lab.metric("ph2", "mesh_peer_lane_refused_packets_total", "");
    assert_eq!(refused, 0.0, "{}", lab.metrics("ph2"));
    let shown = lab.ctl("ph1", &["peer", "show", "ph2"]).unwrap().stdout;
    assert!(shown.contains("lanes (") && shown.contains("packets left"), "{shown}");
}

#[test]
fn nodes_of_different_settings_work_together_in_standard_mode() {
    let mut lab = lab(["transport = \"lanes\"", "transport = \"datagram\""]);
    lab.serve("vm2").unwrap();
    lab.serve("vm1").unwrap();
    assert!(lab.transfer("vm1", VM2, 30_000_000).unwrap().ok());
    assert!(lab.transfer("vm2", "10.77.1.10", 30_000_000).unwrap().ok());
    assert_eq!([transport(&lab, "ph1", "ph2"), transport(&lab, "ph2", "ph1")], ["datagram"; 2]);
    // a restart into the other setting
    lab.stop_node("ph2").unwrap();
    let other = lab.config("ph2").unwrap().replace("\"datagram\"", "\"lanes\"");
    std::fs::write(lab.file("ph2", "node.toml"), other).unwrap();
    lab.start_node("ph2").unwrap();
    on_lanes(&lab);
    assert!(lab.transfer("vm1", VM2, 30_000_000).unwrap().ok());
}

#[test]
fn lanes_change_under_load_and_nothing_is_lost() {
    let extra = "transport = \"lanes\"\nlane_packets = 20000";
    let mut lab = lab([extra; 2]);
    on_lanes(&lab);
    lab.serve("vm2").unwrap();
    // checked by its sha256 at the other end
    let sent = lab.transfer("vm1", VM2, 1_000_000_000).unwrap();
    assert!(sent.ok(), "{}", sent.text());
    let (number, left) = (lane(&lab, "ph1", "ph2", "number"), lane(&lab, "ph1", "ph2", "packets_left"));
    assert!(number >= 20, "lane {number}");
    assert!(left <= 40_000, "{left}");
    assert_eq!(transport(&lab, "ph1", "ph2"), "lanes", "no lane was spent before the next one was there");
    let seen = peer(&lab, "ph2", "ph1")["lane"].clone();
    assert_eq!(seen["refused_packets"], 0, "{seen}");
    assert_eq!(lab.metric("ph2", "mesh_unknown_lane_datagrams_total", ""), 0.0);
}

#[test]
fn losses_of_the_underlay_are_counted_where_they_are_seen() {
    let lab = lanes();
    let lost = |host: &str| lab.metric(host, "mesh_peer_underlay_lost_packets_total", "");
    let flood = |packets: &str| {
        lab.exec("vm1", &["ping", "-q", "-n", "-f", "-c", packets, "-W", "1", VM2]).unwrap();
    };
    flood("2000");
    assert_eq!((lost("ph1"), lost("ph2")), (0.0, 0.0));
    lab.loss("ph1", 10).unwrap();
    flood("3000");
    let seen = [lost("ph1"), lost("ph2")];
    assert!(seen.iter().sum::<f64>() > 50.0, "{seen:?}");
    assert!(seen.iter().sum::<f64>() < 1500.0, "{seen:?}");
    let status = peer(&lab, "ph2", "ph1")["lane"].clone();
    assert_eq!(status["lost_packets"].as_f64().unwrap(), lost("ph2"), "{status}");
}

#[test]
fn a_peer_that_is_killed_and_started_again_is_back_on_lanes() {
    let mut lab = lanes();
    lab.serve("vm2").unwrap();
    for polite in [false, true] {
        if polite {
            lab.stop_node("ph2").unwrap();
        } else {
            lab.kill_node("ph2").unwrap();
        }
        lab.start_node("ph2").unwrap();
        assert!(lab.ping_within(SOON, "vm1", VM2), "{}", lab.log("ph1"));
        on_lanes(&lab);
        assert!(lab.transfer("vm1", VM2, 50_000_000).unwrap().ok());
    }
}

#[test]
fn a_tunnel_whose_lanes_alone_are_busy_stays_up_and_is_answered() {
    let mut lab = lanes();
    let since = peer(&lab, "ph1", "ph2")["since"].clone();
    lab.spawn("vm2", &["timeout", "30", "iperf3", "-s", "-1"]).unwrap();
    let load = || lab.exec("vm1", &["timeout", "20", "iperf3", "-c", VM2, "-t", "8"]);
    assert!(wait_until(SOON, || load().is_ok_and(|o| o.ok())));
    // eight idle timeouts of a connection that hears nothing
    assert_eq!(peer(&lab, "ph1", "ph2")["since"], since, "{}", lab.log("ph1"));
    assert!(lab.ctl("ph1", &["ping", "ph2"]).unwrap().ok());
}

#[test]
fn a_path_that_becomes_narrow_without_a_word_is_followed() {
    let mut lab = lanes();
    lab.serve("vm2").unwrap();
    let mtu = || peer(&lab, "ph1", "ph2")["path_mtu_bytes"].as_u64().unwrap_or_default();
    assert!(wait_until(Duration::from_secs(10), || mtu() > 1400), "{}", mtu());
    lab.underlay_mtu("ph1", 1280).unwrap();
    let narrowed = std::time::Instant::now();
    // somebody goes on sending large packets
    lab.exec("vm1", &["ping", "-q", "-n", "-i", "0.05", "-c", "200", "-W", "1", "-s", "1300", VM2]).unwrap();
    assert!(mtu() < 1280, "{} after {:?}", mtu(), narrowed.elapsed());
    assert!(lab.transfer("vm1", VM2, 1 << 20).unwrap().ok());
}

/// Answers, and their average time in milliseconds, as ping sums them up.
fn figures(ping: &str) -> Option<(u32, f64)> {
    let came = ping.split_once(" packets transmitted, ")?.1.split(' ').next()?.parse().ok()?;
    let average = ping.split_once("min/avg/max/mdev = ")?.1.split('/').nth(1)?.parse().ok()?;
    Some((came, average))
}

#[test]
fn a_peer_behind_a_slow_device_does_not_stop_what_goes_to_others() {
    let mut lab = Lab::start(Plan::standard("", 3)).unwrap();
    assert!(lab.ping_within(SOON, "vm1", VM2) && lab.ping_within(SOON, "vm1", "10.77.3.10"));
    on_lanes(&lab);
    // to ph3 by a queue of its own, which lets so little through that the packets of seconds wait in it, in the kernel
    for line in [
        "qdisc add dev eth0 root handle 1: htb default 10",
        "class add dev eth0 parent 1: classid 1:10 htb rate 10gbit quantum 60000",
        "class add dev eth0 parent 1: classid 1:30 htb rate 4mbit quantum 60000",
        "filter add dev eth0 parent 1: protocol ip u32 match ip dst 198.51.100.13 flowid 1:30",
    ] {
        let tc = lab.sh("ph1", &format!("tc {line}")).unwrap();
        assert!(tc.ok(), "{}", tc.text());
    }
    let dropped = |lab: &Lab| lab.metric("ph1", "mesh_dropped_packets_total", "reason=\"queue_full\"");
    let before = dropped(&lab);
    // both dial at the start, and one connection is closed again
    let downs = |lab: &Lab| ["ph1", "ph3"].map(|host| lab.notices(host, "tunnel_down"));
    let before_downs = downs(&lab);
    lab.spawn("vm3", &["timeout", "30", "iperf3", "-s", "-1"]).unwrap();
    let listens = || lab.sh("vm3", "ss -Hltn sport = :5201").is_ok_and(|ss| ss.stdout.contains("5201"));
    assert!(wait_until(SOON, listens));
    let flood = ["timeout", "20", "iperf3", "-u", "-c", "10.77.3.10", "-b", "100M", "-l", "1200", "-t", "8"];
    let ping = ["ping", "-n", "-i", "0.02", "-c", "200", VM2];
    std::thread::scope(|s| {
        let flood = s.spawn(|| lab.exec("vm1", &flood));
        // until the buffer was full once
        assert!(wait_until(SOON, || dropped(&lab) > before), "nothing is dropped");
        let pinged = lab.exec("vm1", &ping).unwrap();
        let (came, average) = figures(&pinged.stdout).unwrap();
        // a wait for the slow one takes 20 ms
        assert!(came >= 198 && average < 5.0, "{}\n{}", pinged.text(), lab.metrics("ph1"));
        let _ = flood.join();
    });
    assert_eq!(downs(&lab), before_downs, "{}", lab.log("ph1"));
    // once its device is fast again so is the peer
    lab.sh("ph1", "tc qdisc del dev eth0 root").unwrap();
    lab.serve("vm3").unwrap();
    assert!(lab.transfer("vm1", "10.77.3.10", 20_000_000).unwrap().ok());
}
