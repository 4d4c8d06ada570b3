use std::net::Ipv4Addr;

use mesh_proto::ip::transport::flag;
use proptest::prelude::*;

use super::*;
use crate::forward::fib::{NetworkSpec, PeerIx};

const ONE: Egress = Egress::Peer(PeerIx(1));
const TWO: Egress = Egress::Peer(PeerIx(2));

fn via(members: &[Egress]) -> Vec<EgressVia> {
    let key = |egress: &Egress| match egress {
        Egress::Own => 7,
        Egress::Peer(ix) => u64::from(ix.0).wrapping_mul(0x0100_0000_01b3),
    };
    members.iter().map(|egress| EgressVia { egress: *egress, key: key(egress) }).collect()
}

fn net(elected: &[Egress], holds: &[Egress], drained: &[Egress]) -> NetworkFib {
    let everywhere = "0.0.0.0/0".parse().unwrap();
    NetworkFib::new(NetworkSpec {
        name: "default".parse().unwrap(),
        maps: vec![],
        announced: vec![],
        gateways: vec![],
        routes: vec![],
        egress: vec![(everywhere, via(elected))],
        egress_holds: holds.iter().map(|egress| (everywhere, *egress)).collect(),
        egress_drained: drained.to_vec(),
        egress_peers: vec![],
        offer: vec![],
        expose: vec![],
    })
}

fn v4(protocol: u8, from: u32, to: u32, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0];
    bytes[6..8].copy_from_slice(&fragment.to_be_bytes());
    bytes.extend_from_slice(&Ipv4Addr::from_bits(from).octets());
    bytes.extend_from_slice(&Ipv4Addr::from_bits(to).octets());
    bytes.extend_from_slice(payload);
    let len = bytes.len() as u16;
    bytes[2..4].copy_from_slice(&len.to_be_bytes());
    bytes
}

fn tcp(port: u16, flags: u8, sequence: u32, acknowledged: u32, data: usize) -> Vec<u8> {
    let mut header = vec![0; 20 + data];
    header[..2].copy_from_slice(&port.to_be_bytes());
    header[2..4].copy_from_slice(&443u16.to_be_bytes());
    header[4..8].copy_from_slice(&sequence.to_be_bytes());
    header[8..12].copy_from_slice(&acknowledged.to_be_bytes());
    header[12] = 0x50;
    header[13] = flags;
    v4(transport::TCP, VM, SERVER, 0, &header)
}

fn udp(port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    v4(transport::UDP, VM, SERVER, 0, &[high, low, 0, 53, 0, 8, 0, 0])
}

const VM: u32 = 0xc0a8_640a;
const SERVER: u32 = 0xc000_0250;

/// The table, and the network as it is at present.
struct World {
    flows: Flows,
    net: NetworkFib,
    now: Seconds,
}

impl World {
    fn new() -> Self {
        Self { flows: Flows::new(5), net: net(&[ONE], &[ONE, TWO], &[]), now: 100 }
    }

    fn way(&mut self, packet: &[u8]) -> Option<Way> {
        let layout = Layout::of(packet).unwrap();
        self.flows.way(
            &self.net,
            packet,
            &layout,
            self.net.egress(Ipv4Addr::from_bits(SERVER).into()),
            self.now,
        )
    }

    fn count(&self, egress: Egress) -> u64 {
        self.flows.counts().iter().filter(|p| p.egress == egress).map(|p| p.flows).sum()
    }
}

fn by(egress: Egress) -> Option<Way> {
    Some(Way::Egress(egress))
}

#[test]
fn a_flow_stays_while_its_egress_carries_and_a_new_one_goes_to_the_elected() {
    let mut world = World::new();
    assert_eq!(world.way(&udp(1)), by(ONE));
    world.net = net(&[TWO], &[ONE, TWO], &[]);
    assert_eq!((world.way(&udp(1)), world.way(&udp(2))), (by(ONE), by(TWO)));
    assert_eq!((world.count(ONE), world.count(TWO)), (1, 1));
    // dead, or its uplink is
    world.net = net(&[TWO], &[TWO], &[]);
    assert_eq!(world.way(&udp(1)), by(TWO));
    // the return of the first moves nothing
    world.net = net(&[ONE], &[ONE, TWO], &[]);
    assert_eq!((world.way(&udp(1)), world.way(&udp(3))), (by(TWO), by(ONE)));
    assert_eq!((world.count(ONE), world.count(TWO)), (1, 2));
}

#[test]
fn the_answer_to_an_icmp_error_s_flow_has_its_way() {
    let mut world = World::new();
    world.way(&udp(1));
    world.net = net(&[TWO], &[ONE, TWO], &[]);
    let quoted = v4(transport::UDP, SERVER, VM, 0, &[0, 53, 0, 1, 0, 8, 0, 0]);
    let error =
        |quoted: &[u8]| v4(transport::ICMP, VM, SERVER, 0, &[&[3, 3, 0, 0, 0, 0, 0, 0], quoted].concat());
    assert_eq!(world.way(&error(&quoted)), by(ONE));
    let other = v4(transport::UDP, SERVER, VM, 0, &[0, 53, 0, 9, 0, 8, 0, 0]);
    assert_eq!(world.way(&error(&other)), by(TWO));
    assert_eq!(world.count(TWO), 0, "an error opens no flow");
}

#[test]
fn echoes_are_told_apart_by_their_identifier() {
    let mut world = World::new();
    let echo = |id: u8, sequence: u8| v4(transport::ICMP, VM, SERVER, 0, &[8, 0, 0, 0, 0, id, 0, sequence]);
    assert_eq!(world.way(&echo(1, 1)), by(ONE));
    world.net = net(&[TWO], &[ONE, TWO], &[]);
    assert_eq!((world.way(&echo(1, 2)), world.way(&echo(2, 1))), (by(ONE), by(TWO)));
}

#[test]
fn the_fragments_of_a_datagram_go_the_way_of_its_first() {
    let mut world = World::new();
    world.way(&udp(1));
    world.net = net(&[TWO], &[ONE, TWO], &[]);
    let later = v4(transport::UDP, VM, SERVER, 185, &[7; 16]);
    let first = v4(transport::UDP, VM, SERVER, 0x2000, &[0, 1, 0, 53, 0, 99, 0, 0]);
    assert_eq!(world.way(&later), by(TWO));
    assert_eq!((world.way(&first), world.way(&later)), (by(ONE), by(ONE)));
}

#[test]
fn a_flow_that_has_ended_or_was_idle_for_too_long_is_elected_anew() {
    let mut world = World::new();
    let (syn, ack) = (flag::SYN, flag::ACK);
    world.way(&tcp(1, syn, 10, 0, 0));
    world.way(&tcp(1, ack, 11, 50, 100));
    world.way(&udp(1));
    world.net = net(&[TWO], &[ONE, TWO], &[]);
    world.now += 301;
    assert_eq!((world.way(&tcp(1, ack, 111, 60, 0)), world.way(&udp(1))), (by(ONE), by(TWO)));
    world.now += TCP_IDLE;
    assert_eq!(world.way(&tcp(1, ack | flag::FIN, 111, 60, 0)), by(ONE), "just in time");
    assert_eq!(world.count(ONE), 0, "closing is not in progress");
    assert_eq!(world.way(&tcp(1, ack, 112, 99, 0)), by(ONE), "half closed: a download may go on");
    assert_eq!(world.way(&tcp(1, syn, 900, 0, 0)), by(TWO), "the same ports, another connection");
    world.way(&tcp(1, ack | flag::RST, 901, 0, 0));
    assert_eq!(world.count(TWO), 1, "the UDP flow alone");
}

#[test]
fn idle_flows_are_swept_without_traffic() {
    let mut world = World::new();
    for port in 1..=200 {
        world.way(&udp(port));
    }
    assert_eq!(world.count(ONE), 200);
    world.now += UDP_SINGLE + 1;
    for _ in 0..16 {
        assert!(world.flows.tick(world.now));
        assert!(!world.flows.tick(world.now), "once a second");
        world.now += 1;
    }
    assert!(world.flows.is_empty());
}

#[test]
fn tcp_flows_of_a_drained_egress_are_reset_with_the_numbers_expected_and_all_else_moves() {
    let mut world = World::new();
    world.way(&tcp(1, flag::SYN, 10, 0, 0));
    world.way(&tcp(1, flag::ACK, 11, 5000, 100));
    // a retransmission takes nothing back
    world.way(&tcp(1, flag::ACK, 11, 6000, 50));
    world.way(&udp(1));
    world.way(&tcp(2, flag::SYN, 10, 0, 0));
    world.net = net(&[TWO], &[TWO], &[ONE]);
    let mut resets = Vec::new();
    assert!(world.flows.evacuate(&[ONE], world.now, 100, &mut resets));
    assert_eq!(resets.len(), 1);
    let (vm, server) = (resets[0].to_vm(), resets[0].to_server());
    for (packet, from, sequence, acknowledged) in [(&vm, SERVER, 6000, 111), (&server, VM, 111, 6000)] {
        let view = mesh_proto::ip::Packet::parse(&packet[..]).unwrap();
        assert_eq!(view.source(), IpAddr::from(Ipv4Addr::from_bits(from)));
        let word = |at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
        assert_eq!((word(24), word(28), packet[33]), (sequence, acknowledged, flag::RST | flag::ACK));
        assert_eq!(mesh_proto::ip::checksum::checksum(&packet[..20]), 0);
        let pseudo = view.pseudo_header().to_be_bytes();
        assert_eq!(mesh_proto::ip::checksum::checksum(&[&pseudo, &packet[20..]].concat()), 0);
    }
    assert_eq!((world.count(ONE), world.count(TWO)), (0, 0));
    // a number that has moved on meanwhile: the VM asks, and is told again
    let ask = tcp(1, flag::ACK, 111, 7000, 0);
    assert_eq!(world.way(&ask), Some(Way::Reset));
    assert_eq!(Reset::of_packet(&ask).unwrap().to_vm()[24..28], 7000u32.to_be_bytes());
    assert_eq!(world.way(&tcp(1, flag::RST, 111, 0, 0)), by(ONE), "its own RST is for the server");
    assert_eq!(world.way(&udp(1)), by(TWO));
    assert_eq!(world.way(&tcp(1, flag::SYN, 900, 0, 0)), by(TWO), "and a new connection may come at once");
}

#[test]
fn a_packet_that_comes_before_the_drained_egress_is_evacuated_is_answered() {
    let mut world = World::new();
    world.way(&tcp(1, flag::SYN, 10, 0, 0));
    world.way(&tcp(1, flag::ACK, 11, 5000, 100));
    world.net = net(&[], &[], &[ONE]);
    assert_eq!(world.way(&tcp(1, flag::ACK, 111, 5000, 0)), Some(Way::Reset), "also where nobody carries");
    assert_eq!(world.way(&udp(1)), None);
}

#[test]
fn many_flows_are_evacuated_a_part_at_a_time() {
    let mut world = World::new();
    for port in 0..1000 {
        world.way(&tcp(port, flag::SYN, 1, 0, 0));
        world.way(&tcp(port, flag::ACK, 2, 1, 0));
    }
    let mut all = 0;
    let mut resets = Vec::new();
    while !world.flows.evacuate(&[ONE], world.now, 64, &mut resets) {
        assert!((64..64 + WAYS).contains(&resets.len()));
        all += resets.len();
        resets.clear();
    }
    assert_eq!((all + resets.len(), world.count(ONE)), (1000, 0));
}

#[test]
fn a_flood_of_flows_takes_no_place_of_one_in_use() {
    let mut world = World::new();
    let precious: Vec<Vec<u8>> = (0..500).map(|port| tcp(port, flag::ACK, 2, 1, 0)).collect();
    for port in 0..500 {
        world.way(&tcp(port, flag::SYN, 1, 0, 0));
    }
    for packet in &precious {
        world.way(packet);
    }
    world.net = net(&[TWO], &[ONE, TWO], &[]);
    let mut source = 0x0a00_0000;
    for second in 0..20 {
        for _ in 0..20_000 {
            source += 1;
            world.way(&v4(transport::UDP, source, SERVER, 0, &[0, 1, 0, 53, 0, 8, 0, 0]));
        }
        world.now += 1;
        world.flows.tick(world.now);
        let moved = precious.iter().filter(|packet| world.way(packet) != by(ONE)).count();
        assert_eq!(moved, 0, "in second {second}");
    }
    assert!(world.flows.take_overflows() > 100_000);
    assert_eq!(world.flows.take_overflows(), 0);
}

#[test]
fn a_lost_member_moves_only_its_own_flows_and_each_has_its_share() {
    let three = via(&[ONE, TWO, Egress::Own]);
    let mut shares = [0; 3];
    for n in 0..6000 {
        let addresses = || (Ipv4Addr::from_bits(VM + n % 3).into(), Ipv4Addr::from_bits(SERVER + n).into());
        let before = rendezvous(&three, addresses).unwrap();
        let place = three.iter().position(|member| member.egress == before).unwrap();
        shares[place] += 1;
        if before != TWO {
            assert_eq!(rendezvous(&via(&[Egress::Own, ONE]), addresses), Some(before));
        }
    }
    assert!(shares.iter().all(|share| (1800..2200).contains(share)), "{shares:?}");
}

#[derive(Debug, Clone)]
enum Event {
    Udp(u8),
    /// With these flags; a flow begins without FIN.
    Tcp(u8, u8),
    /// The second is elected; whether each still carries.
    Election(bool, bool, bool),
    /// The one that is not elected is drained: it has carried for long enough.
    Drained,
    Wait(u8),
}

fn event() -> impl Strategy<Value = Event> {
    let flags = prop_oneof![3 => Just(flag::ACK), 1 => Just(flag::ACK | flag::FIN)];
    prop_oneof![
        4 => (0u8..6).prop_map(Event::Udp),
        4 => (0u8..6, flags).prop_map(|(port, flags)| Event::Tcp(port, flags)),
        2 => any::<(bool, bool, bool)>().prop_map(|(a, b, c)| Event::Election(a, b, c)),
        1 => Just(Event::Drained),
        1 => (0u8..20).prop_map(Event::Wait),
    ]
}

proptest! {
    /// A flow in use moves only when its egress no longer carries, and TCP is reset only where it is drained; what is counted is what
    /// is there.
    #[test]
    fn a_flow_never_moves_while_its_egress_works(events in proptest::collection::vec(event(), 1..120)) {
        let mut world = World::new();
        let mut places: std::collections::BTreeMap<(bool, u8), (Egress, Seconds)> = Default::default();
        let (mut elected, mut drained) = (ONE, false);
        for event in events {
            let sent = match event {
                Event::Wait(seconds) => {
                    world.now += Seconds::from(seconds);
                    world.flows.tick(world.now);
                    // long forgotten
                    places.retain(|_, (_, at)| world.now - *at < TCP_TRANSITORY);
                    continue;
                }
                Event::Election(second, one_holds, two_holds) => {
                    elected = if second { TWO } else { ONE };
                    let holds: Vec<Egress> = [(ONE, one_holds), (TWO, two_holds)]
                        .into_iter().filter(|(e, holds)| *holds || *e == elected).map(|(e, _)| e).collect();
                    world.net = net(&[elected], &holds, &[]);
                    places.retain(|_, (egress, _)| holds.contains(egress));
                    continue;
                }
                Event::Drained => {
                    let gone = if elected == ONE { TWO } else { ONE };
                    world.net = net(&[elected], &[elected], &[gone]);
                    while !world.flows.evacuate(&[gone], world.now, 1, &mut Vec::new()) {}
                    places.retain(|_, (egress, _)| *egress == elected);
                    drained = true;
                    continue;
                }
                Event::Tcp(port, flags) => {
                    let opens = !places.contains_key(&(true, port)) && flags & flag::FIN != 0;
                    ((true, port), tcp(u16::from(port), if opens { flag::ACK } else { flags }, 1, 1, 0))
                }
                Event::Udp(port) => ((false, port), udp(u16::from(port))),
            };
            let (key, packet) = sent;
            match world.way(&packet) {
                Some(Way::Egress(egress)) => {
                    if let Some((before, at)) = places.get(&key) && world.now - at < UDP_SINGLE {
                        prop_assert_eq!(egress, *before);
                    }
                    places.insert(key, (egress, world.now));
                }
                Some(Way::Reset) => {
                    prop_assert!(key.0 && drained, "{key:?} is reset");
                    prop_assert!(!places.contains_key(&key), "{key:?} is reset, and its egress works");
                }
                None => panic!("one is elected"),
            }
        }
        let there = (0..SETS * WAYS).filter(|place| !world.flows.flows.is_empty() && world.flows.is_taken(*place));
        let there = there.filter(|place| world.flows.flows[*place].counts()).count() as u64;
        prop_assert_eq!(there, world.count(ONE) + world.count(TWO));
    }
}

#[test]
fn both_sides_are_told_of_a_reset_that_a_packet_began() {
    let mut world = World::new();
    world.way(&tcp(1, flag::SYN, 10, 0, 0));
    world.way(&tcp(1, flag::ACK, 11, 5000, 100));
    world.net = net(&[TWO], &[TWO], &[ONE]);
    assert_eq!(world.way(&tcp(1, flag::ACK, 111, 6000, 0)), Some(Way::Reset));
    assert!(world.flows.has_resets());
    let mut resets = Vec::new();
    assert!(world.flows.evacuate(&[ONE], world.now, 100, &mut resets));
    assert_eq!(resets.len(), 1, "the server has not been told");
    assert_eq!((resets[0].egress, resets[0].in_progress), (ONE, true));
    assert_eq!(resets[0].to_server()[24..28], 111u32.to_be_bytes());
    assert!(!world.flows.has_resets());
}

#[test]
fn a_half_closed_flow_is_reset_and_told_of_where_it_has_gone_on_since() {
    let told = |after: u32, waited: Seconds| {
        let mut world = World::new();
        world.way(&tcp(1, flag::SYN, 10, 0, 0));
        world.way(&tcp(1, flag::ACK, 11, 5000, 100));
        world.way(&tcp(1, flag::ACK | flag::FIN, 111, 5000, 0));
        for n in 0..after {
            world.way(&tcp(1, flag::ACK, 112, 5000 + n, 0));
        }
        world.now += waited;
        let mut resets = Vec::new();
        assert!(world.flows.evacuate(&[ONE], world.now, 100, &mut resets));
        resets.iter().map(|reset| reset.in_progress).collect::<Vec<_>>()
    };
    // both sides have closed; a download goes on; it has ended
    assert_eq!((told(2, 0), told(100, 0), told(100, 30)), (vec![false], vec![true], vec![false]));
}

#[test]
fn a_half_closed_flow_that_waits_for_its_answer_is_reset_once_and_not_told_of() {
    let mut world = World::new();
    world.way(&tcp(1, flag::SYN, 10, 0, 0));
    world.way(&tcp(1, flag::ACK, 11, 5000, 100));
    world.way(&tcp(1, flag::ACK | flag::FIN, 111, 5000, 0));
    world.now += 30;
    for again in [false, true] {
        let mut resets = Vec::new();
        assert!(world.flows.evacuate(&[ONE], world.now, 100, &mut resets));
        assert_eq!(
            resets.iter().map(|reset| reset.in_progress).collect::<Vec<_>>(),
            [false; 1][usize::from(again)..]
        );
    }
}

#[test]
fn flows_are_counted_where_their_destination_was_elected_for() {
    let mut world = World::new();
    world.way(&udp(1));
    let (all, some) = ("0.0.0.0/0".parse().unwrap(), "192.0.2.0/24".parse().unwrap());
    let mut spec = net(&[ONE], &[ONE, TWO], &[]).spec().clone();
    spec.egress.push((some, vec![EgressVia { egress: TWO, key: 2 }]));
    world.net = NetworkFib::new(spec);
    assert_eq!(world.way(&udp(1)), by(ONE), "it stays, and is counted where it was");
    assert_eq!((world.way(&udp(2)), world.way(&udp(3))), (by(TWO), by(TWO)));
    let pinned = |to, egress, flows| Pinned { to, egress, flows };
    assert_eq!(world.flows.counts(), [pinned(all, ONE, 1), pinned(some, TWO, 2)]);
    world.now += UDP_SINGLE + 1;
    world.flows.swept = 0;
    for second in 0..16 {
        world.flows.tick(world.now + second);
    }
    world.way(&udp(4));
    assert_eq!(world.flows.counts().len(), 2, "a place without flows is taken again");
    assert_eq!(world.count(TWO), 1);
}

#[test]
fn a_download_after_the_vm_s_fin_is_not_given_up_for_new_flows() {
    let mut world = World::new();
    world.way(&tcp(1, flag::SYN, 10, 0, 0));
    world.way(&tcp(1, flag::ACK, 11, 5000, 100));
    world.way(&tcp(1, flag::ACK | flag::FIN, 111, 5000, 0));
    for n in 1..10 {
        world.way(&tcp(1, flag::ACK, 112, 5000 + n, 0));
    }
    // as many as find no room
    for port in 2..=u16::MAX {
        for _ in 0..2 {
            world.way(&tcp(port, flag::ACK, 1, 1, 1));
        }
    }
    world.net = net(&[TWO], &[ONE, TWO], &[]);
    assert_eq!(world.way(&tcp(1, flag::ACK, 112, 6000, 0)), by(ONE));
}

#[test]
fn a_flow_leaves_an_egress_that_carries_but_not_to_its_destination() {
    let mut world = World::new();
    world.way(&udp(1));
    let elsewhere = "198.51.100.0/24".parse().unwrap();
    let mut spec = net(&[TWO], &[TWO], &[]).spec().clone();
    spec.egress_holds.push((elsewhere, ONE));
    world.net = NetworkFib::new(spec.clone());
    assert_eq!(world.way(&udp(1)), by(TWO), "its offer has become narrower: there it would be dropped");
    spec.egress_holds.push(("192.0.2.0/24".parse().unwrap(), ONE));
    spec.egress = vec![];
    world.net = net(&[ONE], &[ONE], &[]);
    world.way(&udp(2));
    world.net = NetworkFib::new(spec);
    assert_eq!(world.way(&udp(2)), by(ONE), "as long as a prefix of it holds");
}

#[test]
fn a_queue_tells_flows_apart_by_their_headers_and_keeps_fragments_together() {
    let packet = |port: u8, fragment| v4(transport::UDP, 0x0a00_0001, 0x0a00_0002, fragment, &[port; 40]);
    let of = |packet: &[u8]| hash(packet, 7);
    let whole = packet(1, 0);
    assert_eq!(of(&whole), of(&whole[..28]), "of a superpacket the headers are known");
    assert_ne!(of(&whole), of(&packet(2, 0)));
    assert_ne!(of(&whole), hash(&whole, 8), "by chance");
    let (more, later) = (0x2000, 5);
    assert_eq!(
        of(&packet(1, more)),
        of(&packet(9, later)),
        "whatever its bytes, it belongs to the first one"
    );
    assert_eq!(of(&[0x45]), of(&[]));
}
