//! The same path over lanes: the same packets in give the same packets out as in standard mode, and what is not the peer's own,
//! or not for the first time, is refused, counted, and answered by nothing.

use std::net::UdpSocket;
use std::sync::Mutex;

use mesh_node::config::offloads::Offloads;
use mesh_node::forward::counters::LaneCount;
use mesh_node::io::lane::LaneWire;
use mesh_node::io::lane::carrier::LaneCarrier;
use mesh_node::io::lane::table::LaneEnd;
use mesh_node::tunnel::lane::keys::{Cipher, Lane, Ratchet, Side};
use mesh_node::tunnel::lane::seal::Sealer;
use mesh_node::tunnel::lane::{HEADER, TAG};
use proptest::prelude::*;

use super::*;

/// A pair with lanes, and the next lane's ends for a test to use by itself.
struct OnLanes {
    pair: Pair,
    wires: [LaneWire; 2],
    carrier_a: Arc<LaneCarrier>,
    /// Lanes of A that were told to be half used.
    asked: Arc<Mutex<Vec<u32>>>,
    /// Sends to B as A does, on a lane of its own.
    next_of_a: Sealer,
}

impl OnLanes {
    fn new(limit: u64) -> Self {
        let mut ratchets =
            [Side::Client, Side::Server].map(|side| Ratchet::new(&[3; 32], b"", Cipher::Aes128Gcm, side));
        let [lane_a, lane_b] = ratchets.each_mut().map(Ratchet::next_lane);
        let [next_a, next_b] = ratchets.each_mut().map(Ratchet::next_lane);
        let wires =
            [(); 2].map(|()| LaneWire::new(UdpSocket::bind("127.0.0.1:0").unwrap(), Offloads::ALL).unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let mut carriers = Vec::new();

        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (endpoints, connections) = runtime.block_on(connect());
        let own = [(NETWORK_A, spec(1, 2), NETWORK_B), (NETWORK_B, spec(2, 1), NETWORK_A)];
        let mut nodes = Vec::new();
        for (at, (connection, (network, spec, theirs))) in connections.into_iter().zip(own).enumerate() {
            let to = wires[1 - at].socket.local_addr().unwrap();
            let asked = asked.clone();
            let half_used = Box::new(move |lane| {
                asked.lock().unwrap().push(lane);
                true
            });
            let socket = wires[at].socket.clone();
            let carrier =
                Arc::new(LaneCarrier::new(socket, to, None, connection.clone(), Arc::default(), half_used));
            carriers.push(carrier.clone());
            nodes.push(Node::new(&runtime, connection, (network, spec), theirs, |_| carrier));
        }
        let (mut b, mut a) = (nodes.pop().unwrap(), nodes.pop().unwrap());
        let receive = |node: &mut Node, wire: &LaneWire, lane: Lane, carrier: Option<&LaneCarrier>| {
            let Lane { number, sealer, opener, id } = lane;
            let end = LaneEnd::new(node.tunnel.clone(), Arc::default(), opener);
            assert!(wire.table.add(id, end).is_some());
            match carrier {
                Some(carrier) => carrier.change(number, sealer.limited(limit)),
                None => return Some(sealer),
            }
            None
        };
        receive(&mut a, &wires[0], lane_a, Some(&carriers[0]));
        receive(&mut b, &wires[1], lane_b, Some(&carriers[1]));
        let next_of_a = receive(&mut a, &wires[0], next_a, None).unwrap();
        receive(&mut b, &wires[1], next_b, None);
        a.loops.receive_lanes(wires[0].clone()).unwrap();
        b.loops.receive_lanes(wires[1].clone()).unwrap();
        let carrier_a = carriers.swap_remove(0);
        let pair = Pair { a, b, _endpoints: endpoints, runtime };
        Self { pair, wires, carrier_a, asked, next_of_a }
    }

    fn sealed(&mut self, payload: &[u8]) -> Vec<u8> {
        let mut datagram = [&[0; HEADER][..], payload, &[0; TAG]].concat();
        self.next_of_a.seal(&mut datagram).unwrap();
        datagram
    }
}

fn soon(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !condition() {
        if std::time::Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// One packet from A's VM, of UDP or TCP, or a superpacket of it, cut into segments of some size.
#[derive(Debug, Clone)]
enum Sent {
    Udp { v6: bool, len: usize },
    Tcp { v6: bool, len: usize, size: u16 },
}

fn any_sent() -> impl Strategy<Value = Sent> {
    prop_oneof![
        (any::<bool>(), 1usize..1000).prop_map(|(v6, len)| Sent::Udp { v6, len }),
        (any::<bool>(), 2000usize..30_000, 200u16..1000).prop_map(|(v6, len, size)| Sent::Tcp {
            v6,
            len,
            size
        }),
    ]
}

/// Datagrams of UDP, with their headers; of TCP the bytes in order, however they were cut, by family.
type Arrived = (Vec<(bool, Vec<u8>)>, [Vec<u8>; 2]);

fn through(pair: &Pair, packets: &[Sent]) -> Arrived {
    let (mut datagrams, mut streams) = (Vec::new(), [Vec::new(), Vec::new()]);
    let addresses = |v6: bool| match v6 {
        false => ["192.168.100.10", "10.77.1.10", "10.77.2.20", "192.168.100.20"].map(address),
        true => ["fd64::10", "fd77:1::10", "fd77:2::20", "fd64::20"].map(address),
    };
    for (number, sent) in packets.iter().enumerate() {
        let byte = |at: usize| (at * 7 + number) as u8;
        match *sent {
            Sent::Udp { v6, len } => {
                let [vm, _, to, _] = addresses(v6);
                pair.a.send(&udp(vm, to, &(0..len).map(byte).collect::<Vec<_>>()));
            }
            Sent::Tcp { v6, len, size } => {
                let [vm, _, to, _] = addresses(v6);
                let (header, packet) = tcp_superpacket(vm, to, &(0..len).map(byte).collect::<Vec<_>>(), size);
                pair.a.send_with(header, &packet);
            }
        }
        let (v6, len, tcp) = match *sent {
            Sent::Udp { v6, len } => (v6, len, false),
            Sent::Tcp { v6, len, .. } => (v6, len, true),
        };
        let [_, from, _, vm] = addresses(v6);
        let mut got = 0;
        while got < len {
            let segment = check(&pair.b.receive(), from, vm);
            if tcp {
                let sequence = u32::from_be_bytes(segment[4..8].try_into().unwrap());
                assert_eq!(sequence as usize, 100 + got, "in order");
                streams[usize::from(v6)].extend_from_slice(&segment[20..]);
                got += segment.len() - 20;
            } else {
                datagrams.push((v6, segment.clone()));
                got += segment.len() - 8;
            }
        }
    }
    (datagrams, streams)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn the_same_packets_come_out_as_in_standard_mode(packets in prop::collection::vec(any_sent(), 1..40)) {
        let (lanes, standard) = (OnLanes::new(u64::MAX), Pair::new());
        prop_assert_eq!(through(&lanes.pair, &packets), through(&standard, &packets));
        prop_assert_eq!(lanes.pair.a.connection.stats().frame_tx.datagram, 0, "all of them on the lane");
        prop_assert_eq!(lanes.pair.b.peer.read_lane(), LaneCount::default());
    }
}

#[test]
fn a_lane_that_is_spent_gives_way_to_standard_mode_and_no_packet_is_lost() {
    let lanes = OnLanes::new(10);
    let asked = lanes.asked.clone();
    for number in 0..40u8 {
        lanes.pair.a.send(&udp(address("192.168.100.10"), address("10.77.2.20"), &[number]));
        let segment = check(&lanes.pair.b.receive(), address("10.77.1.10"), address("192.168.100.20"));
        assert_eq!(segment[8..], [number]);
    }
    assert_eq!(*asked.lock().unwrap(), [0], "the next one was asked for, once");
    assert_eq!(lanes.carrier_a.left(), None);
    let sent = lanes.pair.a.connection.stats().frame_tx.datagram;
    assert!((30..=32).contains(&sent), "{sent} went in standard mode");
}

#[test]
fn what_is_forged_copied_or_of_no_lane_is_counted_and_answered_by_nothing() {
    let mut lanes = OnLanes::new(u64::MAX);
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let to = lanes.wires[1].socket.local_addr().unwrap();
    let good = udp(address("10.77.1.10"), address("10.77.2.20"), b"x");
    let genuine = lanes.sealed(&[&[0x30][..], &frame(NETWORK_B, 0, &good)].concat());
    // genuine, and from an address that is not A's: it counts, and moves nothing
    stranger.send_to(&genuine, to).unwrap();
    check(&lanes.pair.b.receive(), address("10.77.1.10"), address("192.168.100.20"));
    stranger.send_to(&genuine, to).unwrap();
    let mut forged = genuine.clone();
    forged[HEADER + 3] ^= 1;
    stranger.send_to(&forged, to).unwrap();
    stranger.send_to(&genuine[..HEADER + 2], to).unwrap();
    let mut unknown = genuine.clone();
    unknown[5] ^= 1;
    for _ in 0..200 {
        stranger.send_to(&unknown, to).unwrap();
    }
    let expected = LaneCount { duplicate: 1, forged: 2, ..LaneCount::default() };
    let b = &lanes.pair.b;
    assert!(soon(|| b.peer.read_lane() == expected), "{:?}", b.peer.read_lane());
    assert!(soon(|| b.counters.snapshot().unknown_lane == 200), "{}", b.counters.snapshot().unknown_lane);
    assert_eq!(stranger.recv(&mut [0; 2000]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    // what B sends still goes to A
    b.send(&udp(address("192.168.100.20"), address("10.77.1.10"), b"answer"));
    check(&lanes.pair.a.receive(), address("10.77.2.20"), address("192.168.100.10"));
    assert_eq!(stranger.recv(&mut [0; 2000]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn a_hostile_member_s_packets_are_dropped_for_the_right_reason() {
    let good = udp(address("10.77.1.10"), address("10.77.2.20"), b"x");
    let whole = |frame: Bytes| [&[0x30][..], &frame].concat();
    let stolen = udp(address("10.77.3.10"), address("10.77.2.20"), b"x");
    for (payload, reason) in [
        (whole(frame(NETWORK_A, 0, &good)), DropReason::UnknownNetwork),
        (whole(frame(NetworkIx(200), 0, &good)), DropReason::UnknownNetwork),
        (whole(frame(NETWORK_B, 4, &good)), DropReason::BadFrame),
        (whole(frame(NETWORK_B, 0, &stolen)), DropReason::SourceNotOwned),
        (whole(frame(NETWORK_B, 0, &good[..10])), DropReason::Malformed),
        (whole(Bytes::new()), DropReason::BadFrame),
        // a length beyond the packet's end, and a frame that lanes do not have
        ([&[0x31, 0x7f, 0xff][..], &frame(NETWORK_B, 0, &good)].concat(), DropReason::BadFrame),
        (vec![0x02, 0, 0, 0, 0], DropReason::BadFrame),
    ] {
        let mut lanes = OnLanes::new(u64::MAX);
        let packet = lanes.sealed(&payload);
        let to = lanes.wires[1].socket.local_addr().unwrap();
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&packet, to).unwrap();
        lanes.pair.b.dropped_one(Direction::Inbound, reason);
        // the way is open after it
        lanes.pair.a.send(&udp(address("192.168.100.10"), address("10.77.2.20"), b"y"));
        check(&lanes.pair.b.receive(), address("10.77.1.10"), address("192.168.100.20"));
    }
}
