//! The same path over lanes: what is not the peer's own, or not for the first time, is refused, counted, and answered by nothing,
//! and a lane that is spent protects nothing more.

use std::net::UdpSocket;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::underlay::Underlay;
use super::*;
use mesh_node::forward::counters::LaneCount;
use mesh_node::io::lane::LaneWire;
use mesh_node::io::lane::carrier::LaneCarrier;
use mesh_node::io::lane::table::LaneEnd;
use mesh_node::tunnel::lane::cipher::Cipher;
use mesh_node::tunnel::lane::keys::{Lane, Ratchet, Side};
use mesh_node::tunnel::lane::seal::Sealer;
use mesh_node::tunnel::lane::{HEADER, LaneId, TAG};

/// What both have in common, and nobody else.
pub(super) const SECRET: [u8; 32] = [3; 32];

/// A pair with lanes, and the next lane's ends for a test to use by itself.
pub(super) struct OnLanes {
    pub(super) pair: Pair,
    pub(super) wires: [LaneWire; 2],
    carrier_a: Arc<LaneCarrier>,
    asked: Arc<Asked>,
    /// Sends to B as A does, on a lane of its own.
    next_of_a: Sealer,
}

/// Who is told that a lane is half used.
#[derive(Default)]
struct Asked {
    lanes: Mutex<Vec<u32>>,
    /// It has no room for that, and is to be asked again.
    busy: AtomicBool,
}

impl OnLanes {
    pub(super) fn new(limit: u64) -> Self {
        Self::by(limit, |b| b)
    }

    /// Of so many packets a lane; `way`: where A sends what is for B's address.
    pub(super) fn by(limit: u64, way: impl FnOnce(SocketAddr) -> SocketAddr) -> Self {
        let mut ratchets =
            [Side::Client, Side::Server].map(|side| Ratchet::new(&SECRET, b"", 0, Cipher::Aes128Gcm, side));
        let [lane_a, lane_b] = ratchets.each_mut().map(Ratchet::next_lane);
        let [next_a, next_b] = ratchets.each_mut().map(Ratchet::next_lane);
        let wires =
            [(); 2].map(|()| LaneWire::new(UdpSocket::bind("127.0.0.1:0").unwrap(), Offloads::ALL).unwrap());
        let asked = Arc::<Asked>::default();
        let [to_a, to_b] = wires.each_ref().map(|wire| wire.socket.local_addr().unwrap());
        let to = [way(to_b), to_a];
        let mut carriers = Vec::new();

        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (endpoints, connections) = runtime.block_on(connect(|b| b));
        let own = [(NETWORK_A, spec(1, 2), NETWORK_B), (NETWORK_B, spec(2, 1), NETWORK_A)];
        let mut nodes = Vec::new();
        for (at, (connection, (network, spec, theirs))) in connections.into_iter().zip(own).enumerate() {
            let asked = asked.clone();
            let half_used = Arc::new(move |_, lane| {
                asked.lanes.lock().unwrap().push(lane);
                !asked.busy.load(Relaxed)
            });
            let (wire, to, beside) = (&wires[at], to[at], Arc::default());
            let carrier = Arc::new(LaneCarrier::new(wire, to, None, connection.clone(), beside, half_used));
            carriers.push(carrier.clone());
            nodes.push(Node::new(&runtime, connection, (network, spec), theirs, |_| carrier));
        }
        let (mut b, mut a) = (nodes.pop().unwrap(), nodes.pop().unwrap());
        let receive = |node: &mut Node, wire: &LaneWire, lane: Lane, carrier: Option<&LaneCarrier>| {
            let Lane { number, sealer, opener, id } = lane;
            let end = LaneEnd::new(node.tunnel.clone(), Arc::default(), opener);
            assert!(wire.table.add(id, end).is_some());
            match carrier {
                Some(carrier) => carrier.change(0, number, sealer.limited(limit)),
                None => return Some(sealer),
            }
            None
        };
        receive(&mut a, &wires[0], lane_a, Some(&carriers[0]));
        receive(&mut b, &wires[1], lane_b, Some(&carriers[1]));
        let next_of_a = receive(&mut a, &wires[0], next_a, None).unwrap();
        receive(&mut b, &wires[1], next_b, None);
        a.loops.receive_lanes(&wires[0]).unwrap();
        b.loops.receive_lanes(&wires[1]).unwrap();
        let carrier_a = carriers.swap_remove(0);
        let pair = Pair { a, b, _endpoints: endpoints, runtime };
        Self { pair, wires, carrier_a, asked, next_of_a }
    }

    pub(super) fn sealed(&mut self, payload: &[u8]) -> Vec<u8> {
        let mut datagram = [&[0; HEADER][..], payload, &[0; TAG]].concat();
        self.next_of_a.seal(&mut datagram).unwrap();
        datagram
    }
}

pub(super) fn soon(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !condition() {
        if std::time::Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

#[test]
fn a_lane_that_is_spent_gives_way_to_standard_mode_and_no_packet_is_lost() {
    let lanes = OnLanes::new(10);
    for number in 0..40u8 {
        lanes.pair.a.send(&udp(address("192.168.100.10"), address("10.77.2.20"), &[number]));
        let segment = check(&lanes.pair.b.receive(), address("10.77.1.10"), address("192.168.100.20"));
        assert_eq!(segment[8..], [number]);
    }
    assert_eq!(*lanes.asked.lanes.lock().unwrap(), [0], "the next one was asked for, once");
    assert_eq!(lanes.carrier_a.left(), None);
    let sent = lanes.pair.a.connection.stats().frame_tx.datagram;
    assert!((30..=32).contains(&sent), "{sent} went in standard mode");
}

#[test]
fn a_lane_that_is_spent_seals_nothing_more_and_none_of_its_packets_was_readable() {
    const LIMIT: u64 = 10;
    let marked = [0x5a; 200];
    // with somebody who makes the next lane, and with one who has no time to hear that it is needed
    for busy in [false, true] {
        let underlay = Underlay::new();
        let lanes = OnLanes::by(LIMIT, |b| underlay.before(b));
        lanes.asked.busy.store(busy, Relaxed);
        let mut before = 0;
        let mut through = |count: usize| {
            for _ in 0..count {
                lanes.pair.a.send(&udp(address("192.168.100.10"), address("10.77.2.20"), &marked));
                let segment =
                    check(&lanes.pair.b.receive(), address("10.77.1.10"), address("192.168.100.20"));
                assert_eq!(segment[8..], marked);
            }
            let [passed, _] = underlay.seen();
            passed[std::mem::replace(&mut before, passed.len())..].to_vec()
        };
        let seen = through(40);
        assert!((2..=LIMIT as usize).contains(&seen.len()), "{} packets", seen.len());
        assert!(seen.iter().all(|packet| LaneId::claimed(packet).is_some()));
        assert!(!seen.iter().any(|packet| packet.windows(8).any(|bytes| bytes == &marked[..8])), "plaintext");
        let mut different = seen.clone();
        different.sort();
        different.dedup();
        assert_eq!(different.len(), seen.len());
        let asked = lanes.asked.lanes.lock().unwrap().len();
        assert!(if busy { asked > 1 } else { asked == 1 }, "asked {asked} times");
        assert_eq!(through(40).len(), 0, "it is still spent");
        // the next one is there
        lanes.carrier_a.change(0, 1, lanes.next_of_a.limited(LIMIT));
        let next = through(40);
        assert!((2..=LIMIT as usize).contains(&next.len()), "{} packets", next.len());
        assert!(next.iter().all(|packet| LaneId::claimed(packet) != LaneId::claimed(&seen[0])));
    }
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
