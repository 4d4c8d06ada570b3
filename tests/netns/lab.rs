//! The lab itself does what its knobs say; no daemon involved. If these fail, look here first.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run in real time and fail by panic"
)]

use lab::{Lab, Plan};
use std::time::Instant;

fn wires() -> Lab {
    Lab::wires(Plan::standard("", 2)).expect("a lab")
}

#[test]
fn hosts_reach_the_internet_and_virtual_machines_only_their_host() {
    let lab = wires();
    assert!(lab.ping("ph1", "198.51.100.12"));
    assert_eq!(lab.web("ph1", lab::world::WEB4, None).as_deref(), Some("198.51.100.11"));
    assert_eq!(lab.web("ph1", lab::world::WEB6, None).as_deref(), Some("2001:db8:100::11"));
    assert!(lab.ping("vm1", "192.168.100.1"));
    assert!(lab.ping("vm1", "fd64::1"));
    assert!(lab.ping("vm1", "192.168.100.14"));
    assert!(!lab.ping("vm1", "198.51.100.1"), "a host does not forward by itself");
}

#[test]
fn knobs_for_damage_do_damage_and_can_be_undone() {
    let mut lab = wires();
    let big = ["ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", "1300", "198.51.100.12"];
    assert!(lab.exec("ph1", &big).unwrap().ok());
    lab.underlay_mtu("ph1", 1280).unwrap();
    let answer = lab.exec("ph1", &big).unwrap();
    assert!(!answer.ok() && !answer.text().contains("Frag"), "swallowed without a word: {}", answer.text());
    assert!(lab.ping("ph1", "198.51.100.12"));
    lab.underlay_mtu("ph1", 1500).unwrap();

    lab.loss("ph2", 100).unwrap();
    assert!(!lab.ping("ph1", "198.51.100.12"));
    lab.loss("ph2", 0).unwrap();
    assert!(lab.ping("ph1", "198.51.100.12"));

    lab.cut_cable("ph2").unwrap();
    assert!(!lab.ping("ph1", "198.51.100.12"));
    lab.mend_cable("ph2").unwrap();
    assert!(lab.ping("ph1", "198.51.100.12"));

    let wire = lab.capture("gw", "p-ph1", "icmp").unwrap();
    lab.exec("ph1", &["ping", "-c", "1", "-p", "6d61726b", "198.51.100.12"]).unwrap();
    let seen = wire.stop().unwrap();
    assert_eq!(seen.matching("ICMP echo").len(), 2);
    assert!(seen.contains(b"markmark"));

    let start = Instant::now();
    lab.rate("ph1", "40mbit").unwrap();
    assert!(lab.transfer("ph1", lab::world::WEB4, 5_000_000).unwrap().ok());
    assert!(start.elapsed().as_secs_f64() > 0.8, "5 MB at 40 Mbit/s take a second");
}

#[test]
fn nothing_is_left_behind() {
    let lab = wires();
    let (prefix, dir) = (lab.plan.prefix.clone(), lab.dir().to_owned());
    drop(lab);
    let list = lab::command::must(None, &["ip", "netns", "list"]).unwrap();
    assert!(!list.contains(&prefix), "{list}");
    assert!(!dir.exists());
}
