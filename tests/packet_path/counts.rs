//! What goes in comes out, or is dropped and counted: exactly, whatever the mix.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;

use mesh_node::forward::counters::{Flow, Worker};
use proptest::prelude::*;

use super::*;

/// Takes what arrives for a VM, and counts it as a wire would.
struct Sink {
    packets: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sink {
    fn new(vm: &UnixDatagram) -> Self {
        let vm = vm.try_clone().unwrap();
        vm.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (packets, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (packets, stop) = (packets.clone(), stop.clone());
            move || {
                let mut buffer = vec![0; 70_000];
                loop {
                    match vm.recv(&mut buffer) {
                        Ok(n) => drop(packets.fetch_add(packets_in(&buffer[..n]), Relaxed)),
                        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                            if stop.load(Relaxed) {
                                return;
                            }
                        }
                        Err(e) => panic!("{e}"),
                    }
                }
            }
        });
        Self { packets, stop, thread: Some(thread) }
    }

    fn packets(&self) -> u64 {
        self.packets.load(Relaxed)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

/// Packets in what a device was given: by its virtio header, without the code under test.
fn packets_in(bytes: &[u8]) -> u64 {
    let size = usize::from(u16::from_ne_bytes([bytes[4], bytes[5]]));
    if bytes[1] == 0 {
        return 1;
    }
    let packet = &bytes[VNET_HEADER..];
    let ip = if packet[0] >> 4 == 4 { usize::from(packet[0] & 15) * 4 } else { 40 };
    let transport = if bytes[1] & 0x7f == 5 { 8 } else { usize::from(packet[ip + 12] >> 4) * 4 };
    (packet.len() - ip - transport).div_ceil(size) as u64
}

impl Node {
    fn dropped(&self, direction: Direction, reason: DropReason) -> u64 {
        let snapshot = self.counters.snapshot();
        snapshot.direction(direction).dropped.iter().find(|(r, _)| *r == reason).unwrap().1
    }

    fn flow(&self, flow: Flow) -> u64 {
        self.counters.snapshot().network(self.network).flow(flow).packets
    }

    fn came(&self, worker: Worker) -> u64 {
        self.counters.snapshot().worker(worker).packets
    }

    /// Waits until nothing is counted any more.
    fn settle(&self) {
        let mut before = self.counters.snapshot();
        for _ in 0..100 {
            std::thread::sleep(Duration::from_millis(60));
            let now = self.counters.snapshot();
            if now == before {
                return;
            }
            before = now;
        }
        panic!("counts do not come to rest");
    }

    /// The invariant, both ways, with the peer's own counts.
    fn adds_up(&self) {
        let now = self.counters.snapshot();
        let peer = |direction| self.peer.read(direction);
        let network = now.network(self.network);
        let transmit = network.flow(Flow::Transmit);
        assert_eq!(
            now.worker(Worker::Outbound(self.network, 0)).packets,
            transmit.packets + network.flow(Flow::Hairpin).packets + now.outbound.all_dropped(),
            "outbound: {now:?}"
        );
        assert_eq!(transmit, peer(Direction::Outbound));
        assert_eq!(
            now.worker(Worker::Inbound).packets,
            network.flow(Flow::Receive).packets + now.inbound.all_dropped(),
            "inbound: {now:?}"
        );
        assert_eq!(now.worker(Worker::Inbound).packets, peer(Direction::Inbound).packets);
    }
}

/// What a VM may send, and what has to become of it.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Good,
    ToNeighbour,
    BadSource,
    NoRoute,
    NotRoutable,
    NoTunnel,
    TooBig,
    Malformed,
    NoSegmentSize,
    TooManySegments,
    ShorterThanItsHeader,
}

const KINDS: [Kind; 11] = [
    Kind::Good,
    Kind::ToNeighbour,
    Kind::BadSource,
    Kind::NoRoute,
    Kind::NotRoutable,
    Kind::NoTunnel,
    Kind::TooBig,
    Kind::Malformed,
    Kind::NoSegmentSize,
    Kind::TooManySegments,
    Kind::ShorterThanItsHeader,
];

/// What the packets of a mix have to be counted as.
#[derive(Debug, Default, PartialEq, Eq)]
struct Expected {
    came: u64,
    transmit: u64,
    hairpin: u64,
    drops: BTreeMap<DropReason, u64>,
}

/// Sends one from A's VM: a superpacket of `payload` bytes in segments of `size`, or a single packet for `None`.
fn send(pair: &Pair, kind: Kind, payload: usize, size: Option<u16>, v6: bool, expected: &mut Expected) {
    let pick = |v4, six| address(if v6 { six } else { v4 });
    let vm = pick("192.168.100.10", "fd64::10");
    let far = pick("10.77.2.20", "fd77:2::20");
    let (source, destination, reason) = match kind {
        Kind::ToNeighbour => (vm, pick("10.77.1.20", "fd77:1::20"), None),
        Kind::BadSource => (pick("192.168.101.1", "fd65::1"), far, Some(DropReason::BadSource)),
        Kind::NoRoute => (vm, pick("198.51.100.7", "2001:db8::7"), Some(DropReason::NoRoute)),
        Kind::NotRoutable => (vm, pick("224.0.0.5", "ff02::5"), Some(DropReason::NotRoutable)),
        Kind::NoTunnel => (vm, pick("10.77.9.1", "fd77:9::1"), Some(DropReason::NoTunnel)),
        Kind::TooBig => (vm, far, Some(DropReason::TooBig)),
        Kind::Malformed | Kind::NoSegmentSize | Kind::TooManySegments | Kind::ShorterThanItsHeader => {
            (vm, far, Some(DropReason::Malformed))
        }
        Kind::Good => (vm, far, None),
    };
    let (payload, size) = match kind {
        Kind::TooBig => (6000, size.map(|_| 3000)),
        Kind::TooManySegments => (3000, Some(1)),
        Kind::NoSegmentSize => (payload, Some(0)),
        _ => (payload, size),
    };
    let bytes = vec![7; payload];
    let (header, mut packet, segments) = match size {
        None => ([0; VNET_HEADER], udp(source, destination, &bytes[..payload.min(1000)]), 1),
        Some(size) => {
            let (header, packet) = tcp_superpacket(source, destination, &bytes, size);
            (header, packet, if size == 0 { 1 } else { payload.div_ceil(usize::from(size)) as u64 })
        }
    };
    if matches!(kind, Kind::TooBig) && size.is_none() {
        packet = udp(source, destination, &bytes);
    }
    let segments = match kind {
        Kind::Malformed => {
            packet.truncate(9);
            pair.a.send(&packet);
            1
        }
        Kind::ShorterThanItsHeader => {
            pair.a.vm.send(&header[..4]).unwrap();
            1
        }
        _ => {
            pair.a.send_with(header, &packet);
            segments
        }
    };
    expected.came += segments;
    match (kind, reason) {
        (_, Some(reason)) => *expected.drops.entry(reason).or_default() += segments,
        (Kind::ToNeighbour, None) => expected.hairpin += segments,
        (_, None) => expected.transmit += segments,
    }
}

/// What a peer may send besides.
fn frames() -> Vec<(Bytes, Option<DropReason>)> {
    let good = udp(address("10.77.1.10"), address("10.77.2.20"), b"x");
    let stolen = udp(address("10.77.3.10"), address("10.77.2.20"), b"x");
    vec![
        (frame(NETWORK_B, 0, &good), None),
        (frame(NETWORK_B, 0, &stolen), Some(DropReason::SourceNotOwned)),
        (frame(NETWORK_A, 0, &good), Some(DropReason::UnknownNetwork)),
        (frame(NETWORK_B, 2, &good), Some(DropReason::BadFrame)),
        (Bytes::new(), Some(DropReason::BadFrame)),
        (frame(NETWORK_B, 0, &[0]), Some(DropReason::Malformed)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn of_any_mix_each_packet_is_counted_once_for_what_became_of_it(
        mix in proptest::collection::vec((0..KINDS.len(), 1usize..30_000, proptest::option::of(200u16..1000), any::<bool>()), 1..60),
        foreign in proptest::collection::vec(0usize..6, 0..20),
    ) {
        let pair = Pair::new();
        let (neighbour, far) = (Sink::new(&pair.a.vm), Sink::new(&pair.b.vm));
        let mut expected = Expected::default();
        for (kind, payload, size, v6) in mix {
            send(&pair, KINDS[kind], payload, size, v6, &mut expected);
        }
        let frames = frames();
        let mut refused: BTreeMap<DropReason, u64> = BTreeMap::new();
        for at in &foreign {
            let (frame, reason) = frames[*at].clone();
            pair.runtime.block_on(pair.a.connection.send_datagram_wait(frame)).unwrap();
            if let Some(reason) = reason {
                *refused.entry(reason).or_default() += 1;
            }
        }
        pair.a.settle();
        pair.b.settle();
        pair.a.adds_up();
        pair.b.adds_up();

        // a slow machine may fill a queue; nothing else may change what becomes of a packet
        let queue_full = pair.a.dropped(Direction::Outbound, DropReason::QueueFull);
        let mut drops: BTreeMap<_, _> =
            pair.a.counters.snapshot().outbound.dropped.into_iter().filter(|(_, n)| *n > 0).collect();
        drops.remove(&DropReason::QueueFull);
        let got = Expected {
            came: pair.a.came(Worker::Outbound(NETWORK_A, 0)),
            transmit: pair.a.flow(Flow::Transmit) + queue_full,
            hairpin: pair.a.flow(Flow::Hairpin),
            drops,
        };
        prop_assert_eq!(got, expected);
        prop_assert_eq!(pair.a.flow(Flow::Hairpin), neighbour.packets());
        prop_assert_eq!(pair.b.flow(Flow::Receive), far.packets());
        // what a tunnel took has left, frame by frame
        let sent = pair.a.flow(Flow::Transmit) + foreign.len() as u64;
        prop_assert_eq!(pair.a.connection.stats().frame_tx.datagram, sent);
        // what left A came to B: nothing is lost on a loopback unless a socket's buffer overflows
        prop_assert!(pair.b.came(Worker::Inbound) <= sent);
        if pair.b.came(Worker::Inbound) == sent {
            let drops: BTreeMap<_, _> =
                pair.b.counters.snapshot().inbound.dropped.into_iter().filter(|(_, n)| *n > 0).collect();
            prop_assert_eq!(drops, refused);
        }
    }
}

#[test]
fn what_quinn_drops_from_a_full_receive_buffer_is_counted() {
    let pair = Pair::new();
    // nobody takes B's packets: its thread waits at the device, the queue before it fills, then quinn's buffer
    let frame = frame(NETWORK_B, 0, &udp(address("10.77.1.10"), address("10.77.2.20"), &[7; 1000]));
    pair.runtime.block_on(async {
        for _ in 0..6000 {
            pair.a.connection.send_datagram_wait(frame.clone()).await.unwrap();
        }
    });
    let arrived = || pair.b.connection.stats().frame_rx.datagram;
    let mut before = 0;
    while before != arrived() {
        before = arrived();
        std::thread::sleep(Duration::from_millis(200));
    }
    let far = Sink::new(&pair.b.vm);
    pair.b.settle();
    pair.b.adds_up();
    let lost = pair.b.dropped(Direction::Inbound, DropReason::QueueFull);
    assert!(lost > 0, "of {before} that came");
    assert_eq!(pair.b.came(Worker::Inbound), arrived(), "all that came is accounted for");
    assert_eq!(far.packets() + lost, arrived());
    assert_eq!(pair.b.dropped(Direction::Inbound, DropReason::TunError), 0);
}

#[test]
fn packets_of_a_peer_that_went_away_are_drops() {
    let pair = Pair::new();
    pair.b.connection.close(0u32.into(), b"gone");
    pair.runtime.block_on(pair.a.connection.closed());
    let mut expected = Expected::default();
    for size in [None, Some(500)] {
        send(&pair, Kind::Good, 5000, size, false, &mut expected);
    }
    pair.a.settle();
    pair.a.adds_up();
    assert_eq!(expected.transmit, 11);
    // closed, no connection has room for any packet
    let dropped = [DropReason::NoTunnel, DropReason::TooBig].map(|r| pair.a.dropped(Direction::Outbound, r));
    assert_eq!(dropped.iter().sum::<u64>(), 11);
}
