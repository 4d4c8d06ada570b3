//! What operators and other programs do to a node by mistake.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run in real time and fail by panic"
)]

use lab::world::wait_until;
use lab::{Lab, Plan};
use std::io::Write as _;
use std::time::{Duration, Instant};

#[test]
fn a_second_node_on_a_host_is_refused_and_does_the_first_no_harm() {
    let lab = Lab::start(Plan::standard("", 2)).unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"));
    let kernel = |lab: &Lab| lab.sh("ph1", "nft list table inet mesh; ip rule; ip -6 rule").unwrap().stdout;
    // what is written while the path's MTU is searched for comes and goes by itself
    let settled = || {
        let first = kernel(&lab);
        std::thread::sleep(Duration::from_secs(1));
        first == kernel(&lab)
    };
    assert!(wait_until(Duration::from_secs(10), settled), "{}", kernel(&lab));
    let before = kernel(&lab);
    // Another state, socket and port, so that nothing else is in its way.
    let config = std::fs::read_to_string(lab.file("ph1", "node.toml")).unwrap();
    let other = config
        .replace("/state\"", "/state2\"")
        .replace("node.sock", "second.sock")
        .replace(":4650\"\nmetrics", ":4651\"\nmetrics");
    let file = lab.file("ph1", "second.toml");
    std::fs::write(&file, other).unwrap();
    let program = lab::node::binary("mesh-node").unwrap().to_string_lossy().into_owned();
    let command = ["timeout", "10", &program, "run", "--config", &file.to_string_lossy()];
    let refused = lab.exec("ph1", &command).unwrap();
    assert_eq!(refused.code, Some(1), "{}", refused.text());
    assert!(refused.text().contains("another mesh-node runs on this host"), "{}", refused.text());
    assert_eq!(kernel(&lab), before);
    assert!(lab.ping("vm1", "10.77.2.10"));
}

#[test]
fn a_deleted_tun_device_comes_back_and_is_told() {
    let lab = Lab::start(Plan::standard("", 2)).unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"));
    for round in 0..2 {
        lab.exec("ph1", &["ip", "link", "del", "mesh-default"]).unwrap();
        let back = lab.ping_within(Duration::from_secs(8), "vm1", "10.77.2.10");
        assert!(back, "round {round}: {}", lab.log("ph1"));
        assert!(lab.ping_within(Duration::from_secs(2), "vm2", "10.77.1.10"));
    }
    let status = lab.ctl("ph1", &["--json", "status"]).unwrap();
    assert!(status.stdout.contains("TUN device mesh-default had been removed"), "{}", status.text());
    assert_eq!(status.code, Some(0), "{}", status.text());
}

#[test]
fn a_bridge_that_vanishes_and_returns_is_served_again() {
    let lab = Lab::start(Plan::standard("", 2)).unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"));
    let name = bridge_of(&lab);
    let ports = lab.sh("ph1", &format!("ls /sys/class/net/{name}/brif")).unwrap().stdout;
    let addresses = lab.sh("ph1", &format!("ip -o addr show dev {name} scope global | awk '{{print $4}}'"));
    let addresses = addresses.unwrap().stdout;
    lab.exec("ph1", &["ip", "link", "del", &name]).unwrap();
    std::thread::sleep(Duration::from_secs(4));
    let log = lab.log("ph1");
    assert!(!log.contains("panicked"), "{log}");
    let mut script = format!("ip link add {name} type bridge; ip link set {name} up;");
    for port in ports.split_whitespace() {
        script += &format!("ip link set {port} master {name};");
    }
    for address in addresses.split_whitespace() {
        script += &format!("ip addr add {address} dev {name} nodad;");
    }
    let made = lab.sh("ph1", &script).unwrap();
    assert!(made.ok(), "{}", made.text());
    assert!(lab.ping_within(Duration::from_secs(10), "vm1", "10.77.2.10"), "{}", lab.log("ph1"));
    assert!(lab.ping_within(Duration::from_secs(5), "vm2", "10.77.1.10"));
    let healthy = wait_until(Duration::from_secs(10), || lab.ctl("ph1", &["status"]).unwrap().ok());
    assert!(healthy, "{}", lab.ctl("ph1", &["status"]).unwrap().text());
}

fn bridge_of(lab: &Lab) -> String {
    let config = std::fs::read_to_string(lab.file("ph1", "node.toml")).unwrap();
    let network = config.split("[[network]]").nth(1).unwrap();
    let line = network.lines().find(|l| l.trim_start().starts_with("interface")).unwrap();
    line.split('"').nth(1).unwrap().to_owned()
}

#[test]
fn a_stop_does_not_wait_for_a_client_that_keeps_its_connection_open() {
    let mut lab = Lab::start(Plan::standard("", 2)).unwrap();
    let socket = lab.file("ph1", "node.sock");
    let mut idle = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    idle.write_all(b"GET /v1/status HTTP/1.1\r\nhost: mesh\r\n").unwrap();
    let took = lab.stop_node("ph1").unwrap();
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(!socket.exists());
    assert!(!lab.sh("ph1", "nft list ruleset; ip rule").unwrap().stdout.contains("mesh"));
}

#[test]
fn a_signal_during_the_start_leaves_nothing_behind() {
    let mut lab = Lab::build(Plan::standard("", 2)).unwrap();
    lab.start_node("ph2").unwrap();
    let state =
        |lab: &Lab| lab.sh("ph1", "nft list ruleset; ip rule; ip -6 rule; ip -o link").unwrap().stdout;
    let before = state(&lab);
    let program = lab::node::binary("mesh-node").unwrap();
    let config = lab.file("ph1", "node.toml");
    for wait in ["0.02", "0.05", "0.1", "0.2", "0.4"] {
        let script = format!(
            "{} run --config {} & pid=$!; sleep {wait}; kill -TERM $pid; wait $pid",
            program.display(),
            config.display()
        );
        let start = Instant::now();
        lab.sh("ph1", &script).unwrap();
        assert!(start.elapsed() < Duration::from_secs(10));
        assert_eq!(state(&lab), before, "after {wait} s");
    }
}
