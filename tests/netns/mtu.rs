//! What a path carries, at rest and in motion: jumbo underlays, paths that become narrower and wider, black holes.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run in real time and fail by panic"
)]

use lab::command::line;
use lab::world::wait_until;
use lab::{Host, Lab, Plan};
use std::time::{Duration, Instant};

/// Sizes of inner packets: what is left of 9,000 and of 1,500 by the underlay's headers, QUIC's and ours.
const JUMBO: std::ops::RangeInclusive<u64> = 8900..=8960;
const ETHERNET: std::ops::RangeInclusive<u64> = 1380..=1460;

/// The standard world with cables, bridges and VMs for 9,000 bytes.
fn jumbo_world(hosts: usize) -> Lab {
    jumbo(Plan::standard("", hosts))
}

fn jumbo(plan: Plan) -> Lab {
    let lab = Lab::build(plan).unwrap();
    let gw = lab.ns("gw");
    for host in lab.host_names() {
        set_mtu(&lab.ns(&host), "eth0", 9000);
        set_mtu(&gw, &format!("p-{host}"), 9000);
    }
    set_mtu(&gw, "br0", 9000);
    for vm in lab.plan.vms.clone() {
        set_mtu(&lab.ns(&vm.name), "eth0", 9000);
        set_mtu(&lab.ns(&vm.host), &format!("v-{}", vm.name), 9000);
        set_mtu(&lab.ns(&vm.host), &vm.bridge, 9000);
    }
    lab
}

fn set_mtu(ns: &str, dev: &str, mtu: u32) {
    line(None, &format!("ip -n {ns} link set {dev} mtu {mtu}")).unwrap();
}

fn start(lab: &mut Lab) {
    for host in lab.host_names() {
        lab.start_node(&host).unwrap();
    }
    lab.wait_connected(Duration::from_secs(20)).unwrap();
}

fn path_mtu(lab: &Lab, from: &str, to: &str) -> u64 {
    let peer = lab.ctl(from, &["--json", "peer", "show", to]).unwrap().json();
    peer["peer"]["path_mtu_bytes"].as_u64().unwrap_or(0)
}

/// Waits for a path MTU in both directions; tells how long it took.
fn settles(lab: &Lab, limit: u64, wanted: &std::ops::RangeInclusive<u64>) -> Duration {
    let start = Instant::now();
    let both = || [path_mtu(lab, "ph1", "ph2"), path_mtu(lab, "ph2", "ph1")];
    let reached = wait_until(Duration::from_secs(limit), || both().iter().all(|mtu| wanted.contains(mtu)));
    assert!(reached, "{:?} is not within {wanted:?} after {limit} s", both());
    start.elapsed()
}

/// One packet of exactly this size, which nobody may cut.
fn whole(lab: &Lab, from: &str, to: &str, size: u64) -> bool {
    let headers = if to.contains(':') { 48 } else { 28 };
    let size = (size - headers).to_string();
    lab.exec(from, &["ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "-M", "do", "-s", &size, to])
        .unwrap()
        .ok()
}

fn sweep(lab: &Lab, target: &str) -> u64 {
    let answer = lab.ctl("ph1", &["--json", "ping", target, "-c", "1", "--sweep"]).unwrap().json();
    answer["largest_bytes"].as_u64().unwrap_or_else(|| panic!("{answer}"))
}

/// Pings of 4,000 bytes that the host may cut, every 20 ms, while `change` happens after a second: how many were not
/// answered, as the time they stand for.
fn outage(lab: &Lab, seconds: u64, change: impl FnOnce() + Send) -> Duration {
    let count = (seconds * 50).to_string();
    let args =
        ["ping", "-n", "-q", "-i", "0.02", "-W", "1", "-M", "dont", "-s", "4000", "-c", &count, "10.77.2.10"];
    let text = std::thread::scope(|scope| {
        let pinging = scope.spawn(|| lab.exec("vm1", &args).unwrap().text());
        std::thread::sleep(Duration::from_secs(1));
        change();
        pinging.join().unwrap()
    });
    let words: Vec<&str> = text.split_whitespace().collect();
    let received = words.iter().position(|word| word.starts_with("received")).expect("ping's summary");
    let received: u64 = words[received - 1].parse().unwrap();
    Duration::from_millis((seconds * 50 - received) * 20)
}

#[test]
fn jumbo_packets_pass_whole_in_both_directions_and_families() {
    let mut lab = jumbo_world(2);
    start(&mut lab);
    println!("found within {:?}", settles(&lab, 5, &JUMBO));
    let mtu = path_mtu(&lab, "ph1", "ph2");
    for (from, to) in [("vm1", "10.77.2.10"), ("vm2", "10.77.1.10"), ("vm1", "fd00:77:2::10")] {
        assert!(whole(&lab, from, to, mtu), "{mtu} bytes from {from} to {to}");
        assert!(!whole(&lab, from, to, mtu + 1), "one more than {mtu} bytes from {from} to {to}");
    }
    assert_eq!([sweep(&lab, "ph2"), sweep(&lab, "10.77.2.10")], [mtu; 2]);
    // to itself, by its mesh address: not less than to others
    assert!(whole(&lab, "vm1", "10.77.1.14", 9000));
    lab.serve("vm1").unwrap();
    lab.serve("vm2").unwrap();
    for (from, to) in [("vm1", "10.77.2.10"), ("vm2", "10.77.1.10"), ("vm1", "fd00:77:2::10")] {
        let sent = lab.transfer(from, to, 64 << 20).unwrap();
        assert!(sent.ok(), "{from} to {to}: {}", sent.text());
        println!("{from} to {to}: {}", sent.stdout.trim());
    }
}

#[test]
fn a_path_that_shrinks_while_idle_is_known_before_the_first_packet_and_grows_again() {
    let mut lab = jumbo_world(2);
    start(&mut lab);
    settles(&lab, 5, &JUMBO);
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"));
    lab.underlay_mtu("ph1", 1500).unwrap();
    println!("idle, shrunk without a word: known after {:?}", settles(&lab, 10, &ETHERNET));
    let mtu = path_mtu(&lab, "ph1", "ph2");
    assert!(whole(&lab, "vm1", "10.77.2.10", mtu));
    assert_eq!(sweep(&lab, "ph2"), mtu);
    lab.underlay_mtu("ph1", 9000).unwrap();
    println!("grown: known after {:?}", settles(&lab, 60, &JUMBO));
    let mtu = path_mtu(&lab, "ph1", "ph2");
    assert_eq!(sweep(&lab, "ph2"), mtu);
}

#[test]
fn a_path_that_shrinks_under_load_loses_packets_for_a_moment_only() {
    let mut lab = jumbo_world(2);
    start(&mut lab);
    settles(&lab, 5, &JUMBO);
    lab.serve("vm2").unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"));
    let lost = outage(&lab, 6, || lab.underlay_mtu("ph1", 1500).unwrap());
    println!("black hole under 50 packets a second: {lost:?} of them lost");
    assert!(lost < Duration::from_secs(3), "{lost:?}");
    settles(&lab, 5, &ETHERNET);

    lab.underlay_mtu("ph1", 9000).unwrap();
    settles(&lab, 60, &JUMBO);
    let took = std::thread::scope(|scope| {
        let start = Instant::now();
        let sending = scope.spawn(|| lab.transfer("vm1", "10.77.2.10", 512 << 20).unwrap());
        std::thread::sleep(Duration::from_millis(500));
        lab.underlay_mtu("ph1", 1500).unwrap();
        let sent = sending.join().unwrap();
        assert!(sent.ok(), "{}", sent.text());
        start.elapsed()
    });
    println!("512 MiB of TCP with a black hole after half a second: {took:?}");
    settles(&lab, 5, &ETHERNET);
}

#[test]
fn an_interface_that_shrinks_is_followed() {
    let mut lab = jumbo_world(2);
    start(&mut lab);
    settles(&lab, 5, &JUMBO);
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"));
    let host = lab.ns("ph1");
    let lost = outage(&lab, 6, || set_mtu(&host, "eth0", 1500));
    println!("own interface set to 1,500: {lost:?} lost");
    assert!(lost < Duration::from_secs(3), "{lost:?}");
    assert!(ETHERNET.contains(&path_mtu(&lab, "ph1", "ph2")));
}

#[test]
fn an_interface_that_shrinks_under_load_keeps_its_trains() {
    let lanes = |host: Host| host.extra("transport = \"lanes\"");
    let mut lab = jumbo(Plan::standard("", 2).with("ph1", lanes).with("ph2", lanes));
    start(&mut lab);
    settles(&lab, 5, &JUMBO);
    lab.serve("vm2").unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"));
    let host = lab.ns("ph1");
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| lab.transfer("vm1", "10.77.2.10", 512 << 20).unwrap());
        std::thread::sleep(Duration::from_millis(300));
        set_mtu(&host, "eth0", 1500);
        println!("known after {:?}", settles(&lab, 5, &ETHERNET));
        let sent = sending.join().unwrap();
        assert!(sent.ok(), "{}", sent.text());
    });
    // too large is not the same as not cut
    let notes = lab.ctl("ph1", &["--json", "status"]).unwrap().json()["notes"].to_string();
    assert!(!notes.contains("no gso"), "{notes}");
}

#[test]
fn each_peer_has_its_own_path_mtu() {
    let mut lab = jumbo_world(3);
    let (third, gw) = (lab.ns("ph3"), lab.ns("gw"));
    set_mtu(&third, "eth0", 1500);
    set_mtu(&gw, "p-ph3", 1500);
    set_mtu(&gw, "br0", 9000);
    start(&mut lab);
    settles(&lab, 5, &JUMBO);
    assert!(wait_until(Duration::from_secs(5), || ETHERNET.contains(&path_mtu(&lab, "ph1", "ph3"))));
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.3.10"));
    let [wide, narrow] = [path_mtu(&lab, "ph1", "ph2"), path_mtu(&lab, "ph1", "ph3")];
    assert!(whole(&lab, "vm1", "10.77.2.10", wide));
    assert!(whole(&lab, "vm1", "10.77.3.10", narrow) && !whole(&lab, "vm1", "10.77.3.10", narrow + 1));
    let routes = lab.sh("ph1", "ip route show table all").unwrap().stdout;
    for (prefix, mtu) in [("10.77.2.0/24", wide), ("10.77.3.0/24", narrow)] {
        let route = routes.lines().find(|l| l.starts_with(prefix) && l.contains("dev mesh-"));
        let route = route.unwrap_or_else(|| panic!("{prefix} in {routes}"));
        assert!(route.contains(&format!("mtu {mtu}")), "{route}");
    }
    for vm in ["vm2", "vm3"] {
        lab.serve(vm).unwrap();
    }
    for to in ["10.77.2.10", "10.77.3.10"] {
        let syn = lab
            .capture(if to.contains(".2.") { "vm2" } else { "vm3" }, "eth0", "tcp[tcpflags] & tcp-syn != 0")
            .unwrap();
        let sent = lab.transfer("vm1", to, 16 << 20).unwrap();
        assert!(sent.ok(), "{to}: {}", sent.text());
        let seen = syn.stop().unwrap();
        let mss = if to.contains(".2.") { wide } else { narrow } - 40;
        assert!(!seen.matching(&format!("mss {mss}")).is_empty(), "mss {mss} in {:?}", seen.lines);
    }
}

#[test]
fn ipv6_moves_a_mebibyte_over_an_underlay_of_1280_bytes_without_icmp() {
    let mut lab = Lab::build(Plan::standard("", 2)).unwrap();
    lab.underlay_mtu("ph1", 1280).unwrap();
    start(&mut lab);
    lab.serve("vm2").unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "fd00:77:2::10"));
    let sent = lab.transfer("vm1", "fd00:77:2::10", 1 << 20).unwrap();
    assert!(sent.ok(), "{}", sent.text());
}
