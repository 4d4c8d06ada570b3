//! Packets between VMs of overlapping ranges: they arrive, whole, at the right size, unread by others.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run in real time and fail by panic"
)]

use lab::{Host, Lab, Net, Plan, Vm, wait_until};
use std::time::Duration;

const MESH: [&str; 3] = ["10.77.1", "10.77.2", "10.77.3"];

#[test]
fn virtual_machines_with_the_same_addresses_reach_each_other_in_every_direction() {
    let lab = Lab::start(Plan::standard("", 3)).unwrap();
    for (from, _) in MESH.iter().enumerate() {
        for (to, prefix) in MESH.iter().enumerate().filter(|(to, _)| *to != from) {
            let vm = format!("vm{}", from + 1);
            assert!(
                lab.ping_within(Duration::from_secs(5), &vm, &format!("{prefix}.10")),
                "{vm} to {prefix}.10"
            );
            let six = format!("fd00:77:{}::10", to + 1);
            assert!(lab.ping_within(Duration::from_secs(5), &vm, &six), "{vm} to {six}");
        }
    }
}

#[test]
fn bytes_arrive_unchanged_by_tcp_udp_and_icmp() {
    let mut lab = Lab::start(Plan::standard("", 2)).unwrap();
    lab.serve("vm2").unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"));
    for (to, bytes) in [("10.77.2.10", 100_000_000), ("fd00:77:2::10", 20_000_000)] {
        let sent = lab.transfer("vm1", to, bytes).unwrap();
        assert!(sent.ok(), "TCP to {to}: {}", sent.text());
    }
    let tool = lab::node::tool().unwrap();
    for to in ["10.77.2.10", "fd00:77:2::10"] {
        for size in ["1", "1000", "1400", "4000"] {
            let sent = lab.exec("vm1", &[&tool.to_string_lossy(), "udp", to, "100", size]).unwrap();
            assert!(sent.ok(), "UDP to {to} with {size} bytes: {}", sent.text());
        }
    }
    // The server sees the mesh address, not the local one.
    assert_eq!(lab.web("vm1", "10.77.2.10", None).as_deref(), Some("10.77.1.10"));
}

#[test]
fn traceroute_shows_own_gateway_remote_host_and_remote_machine() {
    let lab = Lab::start(Plan::standard("", 2)).unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"));
    for (to, hops) in [
        ("10.77.2.10", ["192.168.100.1", "10.77.2.1", "10.77.2.10"]),
        ("fd00:77:2::10", ["fd64::1", "fd00:77:2::1", "fd00:77:2::10"]),
    ] {
        let trace = lab.exec("vm1", &["traceroute", "-n", "-q", "1", "-w", "2", "-m", "5", to]).unwrap();
        let lines = trace.stdout.lines().skip(1);
        let seen: Vec<&str> = lines.filter_map(|line| line.split_whitespace().nth(1)).collect();
        assert_eq!(seen, hops, "{}", trace.text());
    }
}

/// The number after "mtu" in what ping says.
fn told_mtu(text: &str) -> Option<u32> {
    let rest = text.split_once("mtu")?.1.trim_start_matches([' ', '=', ':']);
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[test]
fn too_large_a_packet_gets_the_right_mtu_and_fragments_pass() {
    let lab = Lab::start(Plan::standard("", 2)).unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"));
    // Path MTU discovery of the underlay may still be raising it.
    std::thread::sleep(Duration::from_secs(3));
    for (to, headers) in [("10.77.2.10", 28), ("fd00:77:2::10", 48)] {
        let ping = |size: u32, df: &str| {
            let size = size.to_string();
            lab.exec("vm1", &["ping", "-n", "-c", "2", "-i", "0.2", "-W", "2", "-M", df, "-s", &size, to])
                .unwrap()
        };
        let refused = ping(1500 - headers, "do");
        assert!(!refused.ok(), "1500 bytes cannot fit: {}", refused.text());
        let mtu = told_mtu(&refused.text());
        let mtu = mtu.unwrap_or_else(|| panic!("no MTU told: {}", refused.text()));
        assert!((1280..1500).contains(&mtu), "MTU {mtu} for {to}");
        let fits = ping(mtu - headers, "do");
        assert!(fits.ok(), "the told MTU {mtu} to {to} works: {}", fits.text());
        let over = ping(mtu - headers + 1, "do");
        assert!(!over.ok(), "one more than {mtu} to {to} does not: {}", over.text());
        let fragments = ping(3000, "dont");
        assert!(fragments.ok(), "fragments to {to}: {}", fragments.text());
        let whole = ping(3000, "do");
        assert!(!whole.ok() && told_mtu(&whole.text()).is_some(), "{}", whole.text());
    }
}

#[test]
fn a_path_that_swallows_more_than_1280_bytes_without_a_word_carries_tcp() {
    let mut lab = Lab::build(Plan::standard("", 2)).unwrap();
    lab.underlay_mtu("ph1", 1280).unwrap();
    lab.start_node("ph1").unwrap();
    lab.start_node("ph2").unwrap();
    lab.wait_connected(Duration::from_secs(20)).unwrap();
    lab.serve("vm2").unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"));
    let sent = lab.transfer("vm1", "10.77.2.10", 1 << 20).unwrap();
    assert!(sent.ok(), "narrow from the start: {}", sent.text());

    lab.underlay_mtu("ph1", 1500).unwrap();
    lab.stop_node("ph1").unwrap();
    lab.start_node("ph1").unwrap();
    lab.wait_connected(Duration::from_secs(10)).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    lab.underlay_mtu("ph1", 1280).unwrap();
    let done = wait_until(Duration::from_secs(60), || {
        lab.transfer("vm1", "10.77.2.10", 1 << 20).is_ok_and(|sent| sent.ok())
    });
    assert!(done, "narrow while it runs");
}

#[test]
fn a_dual_stack_listener_meets_peers_over_ipv4() {
    let mut lab = Lab::build(Plan::standard("", 2)).unwrap();
    for host in ["ph1", "ph2"] {
        let file = lab.file(host, "node.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let dual = text.replace("\"0.0.0.0:4650\"", "\"[::]:4650\"");
        assert_ne!(text, dual, "{text}");
        std::fs::write(&file, dual).unwrap();
        lab.start_node(host).unwrap();
    }
    lab.wait_connected(Duration::from_secs(10)).unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"));
    let peers = lab.ctl("ph1", &["peers"]).unwrap().stdout;
    assert!(peers.contains("198.51.100.12:4650"), "{peers}");
}

#[test]
fn a_long_way_between_hosts_is_only_a_long_way() {
    let mut lab = Lab::build(Plan::standard("", 2)).unwrap();
    lab.delay("ph1", Duration::from_millis(40)).unwrap();
    lab.start_node("ph1").unwrap();
    lab.start_node("ph2").unwrap();
    lab.wait_connected(Duration::from_secs(10)).unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"));
    lab.serve("vm2").unwrap();
    let sent = lab.transfer("vm1", "10.77.2.10", 5_000_000).unwrap();
    assert!(sent.ok(), "{}", sent.text());
    let peers = lab.ctl("ph1", &["--json", "peers"]).unwrap().stdout;
    let peers: serde_json::Value = serde_json::from_str(&peers).unwrap();
    let rtt = peers["peers"][0]["rtt_seconds"].as_f64().unwrap();
    assert!((0.07..0.5).contains(&rtt), "two times 40 ms: {rtt}");
}

#[test]
fn loss_on_the_underlay_slows_tcp_but_does_not_break_it() {
    let mut lab = Lab::start(Plan::standard("", 2)).unwrap();
    lab.serve("vm2").unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"));
    lab.loss("ph2", 2).unwrap();
    let sent = lab.transfer("vm1", "10.77.2.10", 5_000_000).unwrap();
    assert!(sent.ok(), "{}", sent.text());
}

#[test]
fn peers_meet_over_an_ipv6_underlay() {
    let lab = Lab::start(Plan::standard("", 2).underlay6()).unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"));
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "fd00:77:2::10"));
}

#[test]
fn a_network_whose_prefix_equals_its_subnet_is_routed_untranslated() {
    let mut plan = Plan::new("");
    for i in 1..=2 {
        let (four, six) = (format!("10.50.{i}"), format!("fd50:{i}:"));
        let net = Net::new("default", "vmnet1")
            .subnet(&format!("{four}.1/24"), &format!("{four}.0/24"), &format!("{four}.0/24"))
            .subnet(&format!("{six}:1/64"), &format!("{six}:/64"), &format!("{six}:/64"));
        let vm = Vm::new(&format!("vm{i}"), &format!("ph{i}"), "vmnet1", &format!("{four}.10/24"));
        plan = plan.host(Host::new(&format!("ph{i}")).net(net)).vm(vm.address(&format!("{six}:10/64")));
    }
    let mut lab = Lab::start(plan).unwrap();
    lab.serve("vm2").unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.50.2.10"));
    assert_eq!(lab.web("vm1", "10.50.2.10", None).as_deref(), Some("10.50.1.10"));
    assert_eq!(lab.web("vm1", "fd50:2::10", None).as_deref(), Some("fd50:1::10"));
}

#[test]
fn two_networks_on_the_same_hosts_do_not_see_each_other() {
    let mut plan = Plan::new("");
    for i in 1..=2 {
        let host = format!("ph{i}");
        let blue = Net::new("blue", "vmnet1").subnet(
            "192.168.100.1/24",
            "192.168.100.0/24",
            &format!("10.77.{i}.0/24"),
        );
        let red = Net::new("red", "vmnet2").subnet(
            "192.168.200.1/24",
            "192.168.200.0/24",
            &format!("10.88.{i}.0/24"),
        );
        plan = plan
            .host(Host::new(&host).net(blue).net(red))
            .vm(Vm::new(&format!("blue{i}"), &host, "vmnet1", "192.168.100.10/24"))
            .vm(Vm::new(&format!("red{i}"), &host, "vmnet2", "192.168.200.10/24"));
    }
    let mut lab = Lab::start(plan).unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "blue1", "10.77.2.10"));
    assert!(lab.ping_within(Duration::from_secs(5), "red1", "10.88.2.10"));
    let red = [lab.capture("red1", "eth0", "icmp").unwrap(), lab.capture("red2", "eth0", "icmp").unwrap()];
    for to in ["10.88.2.10", "10.88.1.10", "192.168.200.10"] {
        assert!(!lab.ping("blue1", to), "blue1 reaches {to}");
    }
    for wire in red {
        let seen = wire.stop().unwrap();
        assert!(seen.lines.is_empty(), "red heard blue: {:?}", seen.lines);
    }
}

#[test]
fn nothing_of_a_machines_traffic_is_readable_on_the_underlay() {
    let mut lab = Lab::start(Plan::standard("", 2)).unwrap();
    lab.serve("vm2").unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"));
    let wire = lab.capture("gw", "p-ph1", "").unwrap();
    let inside = lab.capture("vm2", "eth0", "").unwrap();
    lab.exec("vm1", &["ping", "-c", "5", "-i", "0.2", "-s", "200", "-p", "6d61726b65722121", "10.77.2.10"])
        .unwrap();
    lab.exec("vm1", &["curl", "-sS", "--noproxy", "*", "-m", "5", "http://10.77.2.10/marker-in-a-request"])
        .unwrap();
    let (outside, inside) = (wire.stop().unwrap(), inside.stop().unwrap());
    for marker in [b"marker!!".as_slice(), b"marker-in-a-request", b"HTTP/1.1"] {
        assert!(inside.contains(marker), "the capture would have found it");
        assert!(!outside.contains(marker), "readable: {}", String::from_utf8_lossy(marker));
    }
    assert!(!outside.lines.is_empty());
    let foreign = outside.lines.iter().find(|line| line.contains("10.77.") || line.contains("192.168.100."));
    assert_eq!(foreign, None);
}
