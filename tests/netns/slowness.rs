//! Offloads left out one by one: nothing but speed is lost, and `status --verbose` says what is missing.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run in real time and fail by panic"
)]

use std::time::Duration;

use lab::world::wait_until;
use lab::{Lab, Plan};
use serde_json::Value;

const ALL: [&str; 5] = ["csum", "tso", "uso", "gso", "gro"];

/// Two hosts; the first uses these offloads only.
fn lab(used: &[&str]) -> Lab {
    let line = format!("offloads = {used:?}");
    let mut lab = Lab::start(Plan::standard("", 2).with("ph1", |host| host.extra(&line))).unwrap();
    lab.serve("vm1").unwrap();
    lab.serve("vm2").unwrap();
    assert!(lab.ping_within(Duration::from_secs(10), "vm1", "10.77.2.10"), "{}", lab.log("ph1"));
    lab
}

fn verbose(lab: &Lab) -> Value {
    lab.ctl("ph1", &["--json", "status", "--verbose"]).unwrap().json()
}

fn whole(lab: &Lab) {
    let tool = lab::node::tool().unwrap().to_string_lossy().into_owned();
    for (from, four, six) in [("vm1", "10.77.2.10", "fd00:77:2::10"), ("vm2", "10.77.1.10", "fd00:77:1::10")]
    {
        for to in [four, six] {
            let sent = lab.transfer(from, to, 10_000_000).unwrap();
            assert!(sent.ok(), "TCP {from} to {to}: {}", sent.text());
            let sent = lab.exec(from, &[&tool, "trains", to, "50", "1200"]).unwrap();
            assert!(sent.ok(), "UDP {from} to {to}: {}", sent.text());
        }
    }
}

/// What a first host's answer says of each offload.
fn in_use(status: &Value) -> Vec<(&'static str, bool)> {
    let (tun, socket) = (&status["performance"]["tuns"][0], &status["performance"]["socket"]);
    let there = |name: &str| tun.get(name).or(socket.get(name)).and_then(Value::as_bool).unwrap();
    ALL.map(|name| (name, there(name))).to_vec()
}

#[test]
fn without_any_one_offload_bytes_arrive_whole_both_ways_and_the_status_says_so() {
    for out in ALL {
        // neither kind of superpacket goes without checksums left to the receiver
        let gone: &[&str] = if out == "csum" { &["csum", "tso", "uso"] } else { &[out] };
        let used: Vec<&str> = ALL.into_iter().filter(|name| !gone.contains(name)).collect();
        let lab = lab(&used);
        whole(&lab);
        let status = verbose(&lab);
        for (name, there) in in_use(&status) {
            assert_eq!(there, !gone.contains(&name), "without {out}, {name}: {status:#}");
        }
        let notes = status["notes"].to_string();
        for name in gone {
            let device = if ["gso", "gro"].contains(name) { "the UDP socket" } else { "mesh-default" };
            assert!(notes.contains(&format!("no {name} at {device}")), "{notes}");
            let line = format!("\"offload\":\"{name}\"");
            let log = lab.log("ph1");
            assert!(log.lines().any(|l| l.contains("offload_missing") && l.contains(&line)), "{log}");
        }
        let text = lab.ctl("ph1", &["status", "--verbose"]).unwrap();
        assert!(text.ok(), "no reason to call it degraded: {}", text.text());
        for name in gone {
            assert!(text.stdout.contains(&format!("no {name}")), "{}", text.text());
        }
    }
}

#[test]
fn figures_of_a_transfer_are_of_that_transfer() {
    let mut lab = lab(&ALL);
    // the kernel has a few words to say on a new link
    let idle = || verbose(&lab)["performance"]["advice"].to_string().contains("ask again");
    assert!(wait_until(Duration::from_secs(20), idle), "{:#}", verbose(&lab));
    let notes = verbose(&lab)["notes"].to_string();
    assert!(ALL.iter().all(|name| !notes.contains(&format!("no {name} at"))), "{notes}");
    assert_eq!(lab.ctl("ph1", &["--json", "status"]).unwrap().json().get("performance"), None);

    let tool = lab::node::tool().unwrap().to_string_lossy().into_owned();
    lab.spawn("vm1", &["timeout", "10", &tool, "send", "10.77.2.10", "4000000000"]).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let status = verbose(&lab);
    let found = &status["performance"];
    let seconds = found["interval_seconds"].as_f64().unwrap();
    assert!((0.9..5.0).contains(&seconds), "{seconds}");
    let outbound = &found["workers"][0]["interval"];
    let figure = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{status:#}"));
    assert!(figure(&outbound["packets"]) > 1000.0, "{status:#}");
    assert!((0.01..=1.0).contains(&figure(&outbound["busy_share"])), "{status:#}");
    // TCP of a VM comes in superpackets, and leaves in trains
    assert!(figure(&outbound["packets_per_call"]) > 4.0, "{status:#}");
    assert!(figure(&outbound["packets_per_batch"]) >= figure(&outbound["packets_per_call"]), "{status:#}");
    let peer = &found["peers"][0];
    assert_eq!((&peer["peer"], &peer["transport"]), (&"ph2".into(), &lab.transport().into()));
    assert!(figure(&peer["datagrams"]) > 1000.0 && figure(&peer["datagrams_per_send"]) > 2.0, "{status:#}");
    assert!(figure(&peer["rtt_seconds"]) > 0.0 && figure(&peer["path_mtu_bytes"]) > 1000.0, "{status:#}");
    let names: Vec<&str> =
        found["queues"].as_array().unwrap().iter().filter_map(|q| q["queue"].as_str()).collect();
    assert_eq!(
        names,
        [
            "tun_read mesh-default",
            "tun_write mesh-default",
            "send_buffer",
            "udp_send",
            "udp_waiting",
            "udp_receive",
            "receive_buffer",
            "backlog",
            "inbound"
        ]
    );
    let text = lab.ctl("ph1", &["status", "--verbose"]).unwrap();
    assert!(text.stdout.lines().all(|line| line.chars().count() <= 100), "{}", text.stdout);
    println!("{}", text.stdout);
}
