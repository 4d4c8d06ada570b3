//! `mesh-ctl ping`: round trips, paths, sizes.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run in real time and fail by panic"
)]

use lab::world::wait_until;
use lab::{Lab, Plan};
use serde_json::Value;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(5);

fn ping(lab: &Lab, args: &[&str]) -> (Option<i32>, Value) {
    let answer = lab.ctl("ph1", &[&["--json", "ping"], args].concat()).unwrap();
    (answer.code, answer.json())
}

#[test]
fn a_peer_answers_over_its_tunnel_with_the_delay_of_the_path() {
    let mut lab = Lab::start(Plan::standard("", 2)).unwrap();
    lab.delay("ph1", Duration::from_millis(20)).unwrap();
    let (code, answer) = ping(&lab, &["ph2", "-c", "2"]);
    assert_eq!((code, &answer["state"]), (Some(0), &Value::from("answered")), "{answer}");
    assert_eq!(answer["endpoint"], "198.51.100.12:4650");
    for rtt in answer["rtts_seconds"].as_array().unwrap() {
        assert!((0.020..0.200).contains(&rtt.as_f64().unwrap()), "{answer}");
    }
    let shown = lab.ctl("ph1", &["ping", "ph2", "-c", "1"]).unwrap().stdout;
    for words in ["ph2, by ph2 at 198.51.100.12:4650", "path MTU", "echo 1: ", "1 of 1 answered"] {
        assert!(shown.contains(words), "{words} in {shown}");
    }
    assert_eq!(lab.ctl("ph1", &["ping", "ph9"]).unwrap().code, Some(1));
}

#[test]
fn addresses_are_pinged_through_the_mesh_and_at_home() {
    let lab = Lab::start(Plan::standard("", 2)).unwrap();
    assert!(lab.ping_within(SOON, "vm1", "10.77.2.10"));
    for (address, node) in
        [("10.77.2.10", "ph2"), ("fd00:77:2::10", "ph2"), ("203.0.113.12", "ph2"), ("203.0.113.11", "ph1")]
    {
        let (code, answer) = ping(&lab, &[address, "-c", "1"]);
        assert_eq!((code, &answer["node"]), (Some(0), &Value::from(node)), "{address}: {answer}");
    }
    let (code, answer) = ping(&lab, &["10.77.2.99", "-c", "1"]);
    assert_eq!((code, &answer["state"]), (Some(1), &Value::from("lost")), "no such machine: {answer}");
    let (code, answer) = ping(&lab, &["192.0.2.1", "-c", "1"]);
    assert_eq!((code, &answer["state"]), (Some(1), &Value::from("no route")), "{answer}");
    assert!(answer["reason"].as_str().unwrap().contains("nobody announces"), "{answer}");
}

#[test]
fn a_sweep_finds_the_size_that_the_path_carries() {
    let lab = Lab::start(Plan::standard("", 2)).unwrap();
    let mtu = |lab: &Lab| {
        let peer = lab.ctl("ph1", &["--json", "peer", "show", "ph2"]).unwrap().json();
        peer["peer"]["path_mtu_bytes"].as_u64().unwrap_or(0)
    };
    assert!(wait_until(SOON, || mtu(&lab) > 1380), "found within the first second: {}", mtu(&lab));
    for target in ["ph2", "10.77.2.10", "fd00:77:2::10"] {
        let (code, answer) = ping(&lab, &[target, "-c", "1", "--sweep"]);
        // the search for the last few bytes may go on meanwhile: the answer is compared with its own figure
        let (largest, believed) = (answer["largest_bytes"].as_u64(), answer["path_mtu_bytes"].as_u64());
        assert!(code == Some(0) && largest >= believed && largest > Some(1380), "{target}: {answer}");
    }
    let (code, answer) = ping(&lab, &["ph2", "-c", "1", "--size", "9000"]);
    assert_eq!((code, &answer["state"]), (Some(1), &Value::from("too big")), "{answer}");
    // a path that has become narrower without a word: the tunnel does not know yet, the sweep does
    lab.underlay_mtu("ph1", 1280).unwrap();
    let (_, answer) = ping(&lab, &["ph2", "-c", "1", "--sweep"]);
    let largest = answer["largest_bytes"].as_u64().unwrap();
    assert!((1100..1280).contains(&largest), "{answer}");
}
