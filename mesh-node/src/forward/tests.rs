use proptest::prelude::*;

use super::fib::{Egress, EgressVia, NetworkSpec};
use super::packets::{checksums_hold, icmp_error, ip, ping, readdressed, tcp, udp};
use super::*;

const PEER: PeerIx = PeerIx(2);
const OTHER: PeerIx = PeerIx(3);

/// We are ph1: 192.168.100.0/24 is 10.77.1.0/24 to the mesh. `PEER` has 10.77.2.0/24 and is an egress.
fn spec() -> NetworkSpec {
    let p = |text: &str| text.parse().unwrap();
    NetworkSpec {
        name: "default".parse().unwrap(),
        maps: vec![(p("192.168.100.0/24"), p("10.77.1.0/24")), (p("fd64::/64"), p("fd77:1::/64"))],
        announced: vec![p("203.0.113.14/32")],
        gateways: vec![ip("192.168.100.1"), ip("fd64::1")],
        routes: vec![
            (p("10.77.2.0/24"), PEER),
            (p("fd77:2::/64"), PEER),
            (p("10.77.3.0/24"), OTHER),
            (p("203.0.113.15/32"), OTHER),
        ],
        egress: vec![(p("0.0.0.0/0"), vec![EgressVia { egress: Egress::Peer(PEER), key: 1 }])],
        egress_holds: Vec::new(),
        egress_drained: Vec::new(),
        egress_peers: vec![PEER],
        offer: vec![],
        expose: vec![Expose::Icmp, Expose::Tcp(22)],
    }
}

/// The same node as an egress for its network.
fn egress_spec() -> NetworkSpec {
    let p = |text: &str| text.parse().unwrap();
    NetworkSpec {
        egress: vec![(p("0.0.0.0/0"), vec![EgressVia { egress: Egress::Own, key: 1 }])],
        egress_peers: vec![],
        offer: vec![(p("0.0.0.0/0"), true), (p("10.0.0.0/8"), false), (p("10.9.0.0/16"), true)],
        ..spec()
    }
}

fn net() -> NetworkFib {
    NetworkFib::new(spec())
}

fn egress_net() -> NetworkFib {
    NetworkFib::new(egress_spec())
}

/// Sends a UDP packet and demands these addresses and right checksums afterwards.
fn check_outbound(net: &NetworkFib, from: [&str; 2], verdict: Verdict, to: [&str; 2]) {
    let mut bytes = udp(ip(from[0]), ip(from[1]), 53, b"hello", false);
    let expected = readdressed(&bytes, ip(to[0]), ip(to[1]), false);
    assert_eq!(outbound(net, &mut bytes, false), verdict, "{from:?}");
    assert_eq!(bytes, expected, "{from:?}");
    let decision = decide_outbound(net, ip(from[0]), ip(from[1]));
    assert_eq!(decision, Decision { verdict, source: ip(to[0]), destination: ip(to[1]) }, "{from:?}");
}

fn check_inbound(net: &NetworkFib, peer: PeerIx, from: [&str; 2], verdict: Verdict, to: [&str; 2]) {
    let mut bytes = udp(ip(from[0]), ip(from[1]), 53, b"hello", false);
    let expected = readdressed(&bytes, ip(to[0]), ip(to[1]), false);
    assert_eq!(inbound(net, peer, &mut bytes, false), verdict, "{from:?}");
    assert_eq!(bytes, expected, "{from:?}");
    let decision = decide_inbound(net, peer, ip(from[0]), ip(from[1]), L4::Udp { port: 53 });
    assert_eq!(decision, Decision { verdict, source: ip(to[0]), destination: ip(to[1]) }, "{from:?}");
}

fn dropped(net: &NetworkFib, from: [&str; 2], reason: DropReason) {
    check_outbound(net, from, Verdict::Drop(reason), from);
}

fn refused(net: &NetworkFib, peer: PeerIx, from: [&str; 2], reason: DropReason) {
    check_inbound(net, peer, from, Verdict::Drop(reason), from);
}

#[test]
fn a_vm_reaches_the_owner_of_the_destination_under_its_mesh_address() {
    let to_peer = Verdict::Tunnel(PEER);
    check_outbound(&net(), ["192.168.100.5", "10.77.2.9"], to_peer, ["10.77.1.5", "10.77.2.9"]);
    check_outbound(&net(), ["fd64::5", "fd77:2::9"], to_peer, ["fd77:1::5", "fd77:2::9"]);
    let to_other = Verdict::Tunnel(OTHER);
    check_outbound(&net(), ["192.168.100.5", "203.0.113.15"], to_other, ["10.77.1.5", "203.0.113.15"]);
}

#[test]
fn an_announced_source_is_not_mapped() {
    let from = ["203.0.113.14", "10.77.2.9"];
    check_outbound(&net(), from, Verdict::Tunnel(PEER), from);
}

#[test]
fn own_mesh_addresses_turn_back_mapped_on_both_sides() {
    let hairpin = Verdict::Hairpin;
    check_outbound(&net(), ["192.168.100.5", "10.77.1.6"], hairpin, ["10.77.1.5", "192.168.100.6"]);
    check_outbound(&net(), ["192.168.100.5", "203.0.113.14"], hairpin, ["10.77.1.5", "203.0.113.14"]);
}

#[test]
fn internet_traffic_goes_to_the_chosen_egress() {
    check_outbound(
        &net(),
        ["192.168.100.5", "198.51.100.7"],
        Verdict::Tunnel(PEER),
        ["10.77.1.5", "198.51.100.7"],
    );
    check_outbound(
        &egress_net(),
        ["192.168.100.5", "198.51.100.7"],
        Verdict::Hairpin,
        ["10.77.1.5", "198.51.100.7"],
    );
}

#[test]
fn what_own_egress_would_send_out_as_it_came_in_begins_anew() {
    let out = ["203.0.113.14", "198.51.100.7"];
    dropped(&egress_net(), out, DropReason::FlowMoved);
    let mut spec = egress_spec();
    spec.maps[0].1 = spec.maps[0].0;
    dropped(&NetworkFib::new(spec), ["192.168.100.5", "198.51.100.7"], DropReason::FlowMoved);
    check_outbound(&net(), out, Verdict::Tunnel(PEER), out);
}

#[test]
fn own_egress_refuses_what_it_does_not_offer() {
    dropped(&egress_net(), ["192.168.100.5", "10.8.0.1"], DropReason::ForbiddenDestination);
    let open = ["192.168.100.5", "10.9.0.1"];
    check_outbound(&egress_net(), open, Verdict::Hairpin, ["10.77.1.5", "10.9.0.1"]);
}

#[test]
fn without_route_or_egress_a_packet_is_dropped() {
    dropped(&net(), ["fd64::5", "2001:db8::1"], DropReason::NoRoute);
    // The segment itself is not sent to an egress node.
    dropped(&net(), ["192.168.100.5", "192.168.100.6"], DropReason::NoRoute);
}

#[test]
fn a_source_that_does_not_live_on_the_segment_is_dropped() {
    for source in ["198.51.100.7", "10.77.2.9", "10.77.1.5", "203.0.113.15", "0.0.0.0", "127.0.0.1"] {
        dropped(&net(), [source, "10.77.2.8"], DropReason::BadSource);
    }
    // An egress node takes Internet sources, but only towards the mesh, and none that the mesh has.
    for from in [["10.77.3.1", "10.77.2.8"], ["198.51.100.7", "198.51.100.8"]] {
        dropped(&egress_net(), from, DropReason::BadSource);
    }
}

#[test]
fn replies_from_the_internet_find_their_vm() {
    let to_peer = ["198.51.100.7", "10.77.2.8"];
    check_outbound(&egress_net(), to_peer, Verdict::Tunnel(PEER), to_peer);
    let own = ["198.51.100.7", "10.77.1.8"];
    check_outbound(&egress_net(), own, Verdict::Hairpin, ["198.51.100.7", "192.168.100.8"]);
}

#[test]
fn destinations_that_no_router_forwards_to_are_dropped() {
    for to in ["224.0.0.1", "255.255.255.255", "169.254.1.1", "127.0.0.1", "0.0.0.0"] {
        dropped(&net(), ["192.168.100.5", to], DropReason::NotRoutable);
        refused(&net(), PEER, ["10.77.2.9", to], DropReason::NotRoutable);
    }
    for to in ["ff02::1", "fe80::1", "::1"] {
        dropped(&net(), ["fd64::5", to], DropReason::NotRoutable);
    }
    // Directed broadcast of the subnet.
    dropped(&net(), ["192.168.100.5", "10.77.1.255"], DropReason::NotRoutable);
    refused(&net(), PEER, ["10.77.2.9", "10.77.1.255"], DropReason::NotRoutable);
    refused(&net(), PEER, ["10.77.2.9", "10.77.1.0"], DropReason::NotRoutable);
}

#[test]
fn a_packet_from_a_peer_arrives_at_the_local_address() {
    let deliver = Verdict::Deliver;
    check_inbound(&net(), PEER, ["10.77.2.9", "10.77.1.5"], deliver, ["10.77.2.9", "192.168.100.5"]);
    check_inbound(&net(), PEER, ["fd77:2::9", "fd77:1::5"], deliver, ["fd77:2::9", "fd64::5"]);
    check_inbound(&net(), PEER, ["10.77.2.9", "203.0.113.14"], deliver, ["10.77.2.9", "203.0.113.14"]);
    // The egress node sends the Internet's replies.
    check_inbound(&net(), PEER, ["198.51.100.7", "10.77.1.5"], deliver, ["198.51.100.7", "192.168.100.5"]);
}

#[test]
fn a_source_owned_by_another_is_dropped() {
    let owned = DropReason::SourceNotOwned;
    refused(&net(), OTHER, ["10.77.2.9", "10.77.1.5"], owned);
    // Not even an egress node may speak as us, as another node, or as a neighbour on our segment.
    for source in ["10.77.3.9", "10.77.1.9", "203.0.113.14", "192.168.100.9", "127.0.0.1"] {
        refused(&net(), PEER, [source, "10.77.1.5"], owned);
    }
    // Only an egress node may bring the Internet.
    refused(&net(), OTHER, ["198.51.100.7", "10.77.1.5"], owned);
}

#[test]
fn a_peer_uses_our_egress_only_as_offered() {
    let inet = ["10.77.2.9", "198.51.100.7"];
    check_inbound(&egress_net(), PEER, inet, Verdict::Deliver, inet);
    let forbidden = DropReason::ForbiddenDestination;
    refused(&net(), PEER, inet, forbidden);
    refused(&egress_net(), PEER, ["10.77.2.9", "10.8.0.1"], forbidden);
    refused(&egress_net(), PEER, ["10.77.2.9", "192.168.100.5"], forbidden);
    // Not through us to a third node.
    refused(&egress_net(), PEER, ["10.77.2.9", "10.77.3.9"], forbidden);
}

#[test]
fn internet_sources_do_not_pass_from_egress_to_egress() {
    let mut spec = egress_spec();
    spec.egress_peers = vec![PEER];
    let net = NetworkFib::new(spec);
    refused(&net, PEER, ["198.51.100.7", "198.51.100.8"], DropReason::ForbiddenDestination);
}

#[test]
fn the_host_itself_is_closed_but_for_what_is_exposed() {
    let to_host = |l4| decide_inbound(&net(), PEER, ip("10.77.2.9"), ip("10.77.1.1"), l4).verdict;
    let closed = Verdict::Drop(DropReason::NotExposed);
    assert_eq!(to_host(L4::Icmp { request: true }), Verdict::Deliver);
    assert_eq!(to_host(L4::Tcp { port: 22, opens: true }), Verdict::Deliver);
    assert_eq!(to_host(L4::Tcp { port: 80, opens: true }), closed);
    assert_eq!(to_host(L4::Tcp { port: 80, opens: false }), Verdict::Deliver);
    assert_eq!(to_host(L4::Udp { port: 53 }), Verdict::Deliver);
    assert_eq!(to_host(L4::Other), closed);
    assert_eq!(to_host(L4::Fragment), Verdict::Deliver);
    // From bytes, and without ICMP.
    let bare = NetworkFib::new(NetworkSpec { expose: vec![], ..spec() });
    for mut bytes in [
        ping(ip("10.77.2.9"), ip("10.77.1.1")),
        ping(ip("fd77:2::9"), ip("fd77:1::1")),
        tcp(ip("10.77.2.9"), ip("10.77.1.1"), 22, 1, 0x02, b"", false),
    ] {
        assert_eq!(inbound(&bare, PEER, &mut bytes.clone(), false), closed);
        assert_eq!(inbound(&net(), PEER, &mut bytes, false), Verdict::Deliver);
    }
    let all = NetworkFib::new(NetworkSpec { expose: vec![Expose::All], ..spec() });
    let mut bytes = tcp(ip("10.77.2.9"), ip("10.77.1.1"), 80, 1, 0x02, b"", false);
    assert_eq!(inbound(&all, PEER, &mut bytes, false), Verdict::Deliver);
}

#[test]
fn bytes_that_are_no_packet_are_dropped() {
    let malformed = Verdict::Drop(DropReason::Malformed);
    assert_eq!(outbound(&net(), &mut [], false), malformed);
    assert_eq!(inbound(&net(), PEER, &mut [0x45; 12], false), malformed);
    // Partial, but there is no checksum to complete.
    let mut bytes = ping(ip("192.168.100.5"), ip("10.77.2.9"));
    assert_eq!(outbound(&net(), &mut bytes, true), malformed);
}

#[test]
fn a_partial_checksum_from_a_peer_is_never_trusted() {
    let mut bytes = tcp(ip("10.77.2.9"), ip("10.77.1.5"), 80, 1, 0x10, b"data", true);
    bytes[36..38].copy_from_slice(&[0xba, 0xad]);
    assert_eq!(inbound(&net(), PEER, &mut bytes, true), Verdict::Deliver);
    assert_eq!(bytes, tcp(ip("10.77.2.9"), ip("192.168.100.5"), 80, 1, 0x10, b"data", true));
}

#[test]
fn errors_come_back_speaking_of_addresses_the_receiver_knows() {
    // Our VM refuses what a peer's VM sent to its mesh address.
    let quoted = udp(ip("10.77.2.9"), ip("192.168.100.5"), 53, b"x", false);
    let mut bytes = icmp_error(ip("192.168.100.5"), ip("10.77.2.9"), &quoted);
    let outcome = translate_outbound(&net(), &mut bytes, false);
    assert_eq!((outcome.verdict, outcome.mapped), (Verdict::Tunnel(PEER), true));
    let quoted = udp(ip("10.77.2.9"), ip("10.77.1.5"), 53, b"x", false);
    assert_eq!(bytes, icmp_error(ip("10.77.1.5"), ip("10.77.2.9"), &quoted));
    // A router on the Internet refuses what our VM sent through the egress.
    let quoted = udp(ip("10.77.1.5"), ip("198.51.100.7"), 53, b"x", false);
    let mut bytes = icmp_error(ip("198.51.100.1"), ip("10.77.1.5"), &quoted);
    assert_eq!(inbound(&net(), PEER, &mut bytes, false), Verdict::Deliver);
    let quoted = udp(ip("192.168.100.5"), ip("198.51.100.7"), 53, b"x", false);
    assert_eq!(bytes, icmp_error(ip("198.51.100.1"), ip("192.168.100.5"), &quoted));
    // Between two VMs of one segment, both by mesh address.
    let quoted = udp(ip("10.77.1.5"), ip("192.168.100.6"), 53, b"x", false);
    let mut bytes = icmp_error(ip("192.168.100.6"), ip("10.77.1.5"), &quoted);
    assert_eq!(outbound(&net(), &mut bytes, false), Verdict::Hairpin);
    let quoted = udp(ip("192.168.100.5"), ip("10.77.1.6"), 53, b"x", false);
    assert_eq!(bytes, icmp_error(ip("10.77.1.6"), ip("192.168.100.5"), &quoted));
    assert!(checksums_hold(&bytes));
}

#[test]
fn an_end_on_the_internet_is_told_on_each_of_the_four_ways() {
    let outbound = |net: &NetworkFib, from, to| {
        translate_outbound(net, &mut udp(ip(from), ip(to), 53, b"x", false), false)
    };
    let inbound = |net: &NetworkFib, peer, from, to| {
        translate_inbound(net, peer, &mut udp(ip(from), ip(to), 53, b"x", false), false)
    };
    let (net, egress) = (net(), egress_net());
    for (outcome, verdict, internet) in [
        (outbound(&net, "192.168.100.5", "198.51.100.7"), Verdict::Tunnel(PEER), Internet::To),
        (inbound(&net, PEER, "198.51.100.7", "10.77.1.5"), Verdict::Deliver, Internet::From),
        (inbound(&egress, PEER, "10.77.2.9", "198.51.100.7"), Verdict::Deliver, Internet::To),
        (outbound(&egress, "198.51.100.7", "10.77.2.9"), Verdict::Tunnel(PEER), Internet::From),
        (outbound(&egress, "192.168.100.5", "198.51.100.7"), Verdict::Hairpin, Internet::To),
        (outbound(&egress, "198.51.100.7", "10.77.1.5"), Verdict::Hairpin, Internet::From),
        (outbound(&net, "192.168.100.5", "10.77.2.9"), Verdict::Tunnel(PEER), Internet::No),
        (outbound(&net, "192.168.100.5", "10.77.1.6"), Verdict::Hairpin, Internet::No),
        (inbound(&net, PEER, "10.77.2.9", "10.77.1.5"), Verdict::Deliver, Internet::No),
    ] {
        assert_eq!((outcome.verdict, outcome.internet), (verdict, internet));
    }
}

#[test]
fn a_network_without_translation_passes_packets_untouched() {
    let p = |text: &str| text.parse().unwrap();
    let maps = vec![(p("192.168.100.0/24"), p("192.168.100.0/24"))];
    let net = NetworkFib::new(NetworkSpec { maps, ..spec() });
    let mut bytes = ping(ip("192.168.100.5"), ip("10.77.2.9"));
    let before = bytes.clone();
    let outcome = translate_outbound(&net, &mut bytes, false);
    assert_eq!((outcome.verdict, outcome.mapped), (Verdict::Tunnel(PEER), false));
    assert_eq!(bytes, before);
}

/// Addresses from all the ranges that matter, so that random pairs meet every rule.
fn any_address() -> impl Strategy<Value = IpAddr> {
    (0usize..8, 0u8..6).prop_map(|(range, host)| {
        let range =
            ["192.168.100", "10.77.1", "10.77.2", "10.77.3", "203.0.113", "198.51.100", "10.8.0", "224.0.0"]
                [range];
        let host = if range == "203.0.113" { 12 + host } else { host };
        ip(&format!("{range}.{host}"))
    })
}

proptest! {
    #[test]
    fn what_leaves_one_node_is_never_refused_for_its_source_by_the_next(
        source in any_address(),
        destination in any_address(),
    ) {
        // The peer's view: it has 10.77.2.0/24, and we are node 1 to it.
        let us = PeerIx(1);
        let p = |text: &str| text.parse().unwrap();
        let peer = NetworkFib::new(NetworkSpec {
            maps: vec![(p("192.168.100.0/24"), p("10.77.2.0/24"))],
            announced: vec![],
            routes: vec![(p("10.77.1.0/24"), us), (p("203.0.113.14/32"), us), (p("10.77.3.0/24"), OTHER)],
            egress_holds: vec![],
            egress_drained: vec![],
            egress_peers: vec![],
            offer: vec![(p("0.0.0.0/0"), true)],
            ..spec()
        });
        let sent = decide_outbound(&net(), source, destination);
        if sent.verdict == Verdict::Tunnel(PEER) {
            let l4 = L4::Udp { port: 1 };
            let got = decide_inbound(&peer, us, sent.source, sent.destination, l4);
            prop_assert_ne!(got.verdict, Verdict::Drop(DropReason::SourceNotOwned));
            prop_assert_eq!(got.source, sent.source);
        }
    }

    #[test]
    fn no_bytes_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..120),
        v4: bool,
        next in prop_oneof![Just(1u8), Just(6), Just(17), Just(58), Just(44), any::<u8>()],
        partial: bool,
    ) {
        if bytes.len() >= 40 {
            let len = bytes.len() as u16;
            if v4 {
                bytes[..4].copy_from_slice(&[0x45, 0, (len >> 8) as u8, len as u8]);
                bytes[9] = next;
                bytes[12..20].copy_from_slice(&[192, 168, 100, 5, 10, 77, 2, 9]);
            } else {
                bytes[0] = 0x60;
                bytes[4..6].copy_from_slice(&(len - 40).to_be_bytes());
                bytes[6] = next;
                bytes[8..16].copy_from_slice(&[0xfd, 0x64, 0, 0, 0, 0, 0, 0]);
                bytes[24..32].copy_from_slice(&[0xfd, 0x77, 0, 2, 0, 0, 0, 0]);
            }
        }
        let _ = outbound(&net(), &mut bytes.clone(), partial);
        let _ = inbound(&net(), PEER, &mut bytes, partial);
    }
}
