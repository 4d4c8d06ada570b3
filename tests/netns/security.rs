//! Who is not let in: forged sources, foreign certificates, a node's own services.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run in real time and fail by panic"
)]

use lab::{Lab, Plan};
use std::time::Duration;

#[test]
fn a_machine_cannot_send_from_an_address_that_is_not_its_own_segments() {
    let mut lab = Lab::start(Plan::standard("", 3)).unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"));
    // Another node's mesh address, another host's public one, one of the Internet, one of nobody.
    let forged = ["10.77.3.10", "203.0.113.13", "192.0.2.99", "10.99.9.9"];
    for source in forged {
        lab.exec("vm1", &["ip", "addr", "add", &format!("{source}/32"), "dev", "eth0"]).unwrap();
    }
    let far = lab.capture("vm2", "eth0", "icmp").unwrap();
    let gateway = lab.capture("gw", "br0", "icmp or net 10.0.0.0/8").unwrap();
    for source in forged {
        for to in ["10.77.2.10", "192.0.2.80"] {
            let args = ["ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "-I", source, to];
            assert!(!lab.exec("vm1", &args).unwrap().ok(), "{source} to {to}");
        }
    }
    let (far, gateway) = (far.stop().unwrap(), gateway.stop().unwrap());
    assert!(far.lines.is_empty(), "arrived: {:?}", far.lines.first());
    let out: Vec<_> =
        gateway.lines.iter().filter(|l| forged.iter().any(|f| l.contains(&format!("{f} >")))).collect();
    assert!(out.is_empty(), "left by the gateway: {:?}", out.first());
    assert!(lab.ping("vm1", "10.77.2.10"), "its own address still works");
}

#[test]
fn a_node_with_a_certificate_of_another_authority_is_refused_visibly() {
    let mut lab = Lab::build(Plan::standard("", 3)).unwrap();
    let ctl = lab::node::binary("mesh-ctl").unwrap().to_string_lossy().into_owned();
    let other = lab.dir().join("other-ca").to_string_lossy().into_owned();
    lab::command::must(None, &[&ctl, "ca", "init", "--name", "lab", "--dir", &other]).unwrap();
    let ours = std::fs::read_to_string(lab.file("ph3", "ca.pem")).unwrap();
    lab.issue("ph3", &other).unwrap();
    // ph3 trusts both, so it starts and would let us in; we must not let it in.
    let theirs = std::fs::read_to_string(lab.file("ph3", "ca.pem")).unwrap();
    std::fs::write(lab.file("ph3", "ca.pem"), format!("{theirs}{ours}")).unwrap();
    lab.start_node("ph1").unwrap();
    lab.start_node("ph2").unwrap();
    lab.wait_connected(Duration::from_secs(20)).unwrap();
    lab.start_node("ph3").unwrap();
    std::thread::sleep(Duration::from_secs(4));
    for host in ["ph1", "ph2"] {
        assert!(!lab.peers_up(host).contains(&"ph3".to_owned()), "{host} let it in");
    }
    assert!(lab.peers_up("ph3").is_empty());
    assert!(!lab.ping("vm3", "10.77.1.10"));
    let failures = lab.metric("ph1", "mesh_handshake_failures_total", "");
    assert!(failures > 0.0, "counted at ph1: {failures}");
    let log = lab.log("ph1").to_lowercase();
    assert!(log.contains("certificate") && log.contains("198.51.100.13"), "log of ph1: {}", lab.log("ph1"));
    let peers = lab.ctl("ph3", &["peers"]).unwrap();
    assert!(peers.text().contains("198.51.100.11"), "ph3 shows whom it cannot reach: {}", peers.text());
}

#[test]
fn the_mesh_reaches_of_a_host_only_what_is_exposed() {
    let mut lab = Lab::start(Plan::standard("", 2)).unwrap();
    lab.serve("ph2").unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.1"), "icmp is exposed by default");
    assert_eq!(lab.web("vm1", "10.77.2.1", None), None, "its web server is not");
}

#[test]
fn garbage_at_the_port_does_not_disturb_the_mesh() {
    let lab = Lab::start(Plan::standard("", 2)).unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"));
    // A burst of noise from a stranger: every length class, then check that all is well.
    let noise = "for n in 1 20 100 1200 1400; do for i in 1 2 3 4 5 6 7 8 9 10; do \
                 head -c $n /dev/urandom >/dev/udp/198.51.100.11/4650; done; done";
    lab.exec("inet", &["bash", "-c", noise]).unwrap();
    assert!(lab.ping("vm1", "10.77.2.10"));
    assert_eq!(lab.peers_up("ph1"), ["ph2"]);
}
