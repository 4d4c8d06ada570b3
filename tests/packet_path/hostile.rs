//! A member with keys that seals what it likes: every field in an authentic packet may lie. What is dropped is counted for the right
//! reason, and nothing is delivered that was not there.

use std::net::UdpSocket;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use mesh_node::forward::counters::Flow;
use proptest::prelude::*;

use super::lanes::{OnLanes, soon};
use super::*;

/// Another network that B has, and A's node no part in.
const OFFICE: NetworkIx = NetworkIx(3);

/// All that is written to a device.
struct Taker {
    taken: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Taker {
    fn new(vm: &UnixDatagram) -> Self {
        let vm = vm.try_clone().unwrap();
        vm.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let (taken, stop) = (Arc::<Mutex<Vec<Vec<u8>>>>::default(), Arc::<AtomicBool>::default());
        let thread = std::thread::spawn({
            let (taken, stop) = (taken.clone(), stop.clone());
            move || {
                let mut buffer = vec![0; 70_000];
                while !stop.load(Relaxed) {
                    if let Ok(len) = vm.recv(&mut buffer) {
                        taken.lock().unwrap().push(buffer[..len].to_vec());
                    }
                }
            }
        });
        Self { taken, stop, thread: Some(thread) }
    }

    fn taken(&self) -> Vec<Vec<u8>> {
        self.taken.lock().unwrap().clone()
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

impl OnLanes {
    /// As one packet of a lane, to B.
    fn throw(&mut self, payload: &[u8]) {
        let packet = self.sealed(payload);
        let to = self.wires[1].socket.local_addr().unwrap();
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&packet, to).unwrap();
    }

    /// Waits until B has delivered or dropped so many frames in all; says what was dropped, and why.
    fn judged(&self, frames: u64) -> BTreeMap<DropReason, u64> {
        let b = &self.pair.b;
        let delivered = || {
            let snapshot = b.counters.snapshot();
            snapshot.network(b.network).flow(Flow::Receive).packets + snapshot.inbound.all_dropped()
        };
        assert!(soon(|| delivered() >= frames), "{} of {frames} frames", delivered());
        assert_eq!(delivered(), frames);
        b.counters.snapshot().inbound.dropped.iter().filter(|(_, n)| *n > 0).copied().collect()
    }
}

/// A DATAGRAM frame to the end of the packet.
fn whole(frame: &[u8]) -> Vec<u8> {
    [&[0x30][..], frame].concat()
}

/// DATAGRAM frames with lengths.
fn shared<'f>(frames: impl IntoIterator<Item = &'f [u8]>) -> Vec<u8> {
    let with_length =
        |frame: &[u8]| [&[0x31][..], &(0x4000 | frame.len() as u16).to_be_bytes(), frame].concat();
    frames.into_iter().flat_map(with_length).collect()
}

fn good() -> Vec<u8> {
    udp(address("10.77.1.10"), address("10.77.2.20"), b"x")
}

#[test]
fn a_hostile_member_s_packets_are_dropped_for_the_right_reason() {
    let good = good();
    let stolen = udp(address("10.77.3.10"), address("10.77.2.20"), b"x");
    let own = udp(address("10.77.2.10"), address("10.77.2.20"), b"x");
    let segment = udp(address("192.168.100.10"), address("10.77.2.20"), b"x");
    let onward = udp(address("10.77.1.10"), address("10.77.9.20"), b"x");
    let unmapped = udp(address("10.77.1.10"), address("192.168.100.20"), b"x");
    let of = |packet: &[u8]| whole(&frame(NETWORK_B, 0, packet));
    for (payload, reason) in [
        (whole(&frame(NETWORK_A, 0, &good)), DropReason::UnknownNetwork),
        (whole(&frame(NetworkIx(200), 0, &good)), DropReason::UnknownNetwork),
        (whole(&frame(NETWORK_B, 2, &good)), DropReason::BadFrame),
        (whole(&frame(NETWORK_B, 4, &good)), DropReason::BadFrame),
        (whole(&frame(NETWORK_B, 8, &good)), DropReason::BadFrame),
        (whole(&frame(NETWORK_B, 0x81, &good)), DropReason::BadFrame),
        (of(&stolen), DropReason::SourceNotOwned),
        (of(&own), DropReason::SourceNotOwned),
        (of(&segment), DropReason::SourceNotOwned),
        (of(&onward), DropReason::ForbiddenDestination),
        (of(&unmapped), DropReason::ForbiddenDestination),
        (of(&good[..10]), DropReason::Malformed),
        (whole(&[]), DropReason::BadFrame),
        (whole(&frame(NETWORK_B, 0, &[])), DropReason::BadFrame),
        // lengths beyond the packet's end, of each size that a length may have
        ([&[0x31, 0x3f][..], &frame(NETWORK_B, 0, &good)].concat(), DropReason::BadFrame),
        ([&[0x31, 0x7f, 0xff][..], &frame(NETWORK_B, 0, &good)].concat(), DropReason::BadFrame),
        ([&[0x31, 0xbf, 0xff, 0xff, 0xff][..], &frame(NETWORK_B, 0, &good)].concat(), DropReason::BadFrame),
        ([&[0x31][..], &[0xff; 8], &frame(NETWORK_B, 0, &good)].concat(), DropReason::BadFrame),
        // one that is cut off itself, and none
        (vec![0x31, 0x80], DropReason::BadFrame),
        (vec![0x31], DropReason::BadFrame),
        (vec![0x31, 0], DropReason::BadFrame),
        // frames that lanes do not have: PING, ACK, STREAM, CONNECTION_CLOSE
        (vec![0x01], DropReason::BadFrame),
        (vec![0x02, 0, 0, 0, 0], DropReason::BadFrame),
        (vec![0x08, 0, 0], DropReason::BadFrame),
        (vec![0x1c, 0, 0, 0], DropReason::BadFrame),
    ] {
        let mut lanes = OnLanes::new(u64::MAX);
        lanes.throw(&payload);
        lanes.pair.b.dropped_one(Direction::Inbound, reason);
        // the way is open after it
        lanes.pair.a.send(&udp(address("192.168.100.10"), address("10.77.2.20"), b"y"));
        check(&lanes.pair.b.receive(), address("10.77.1.10"), address("192.168.100.20"));
    }
}

#[test]
fn what_comes_before_a_lie_counts_and_what_comes_after_it_does_not() {
    let good = frame(NETWORK_B, 0, &good());
    let mut lanes = OnLanes::new(u64::MAX);
    let taker = Taker::new(&lanes.pair.b.vm);
    let lie = [&[0x31, 0x7f, 0xff][..], &shared([&good[..]; 3])].concat();
    lanes.throw(&[&[0, 0], &shared([&good[..]; 2])[..], &[0], &lie].concat());
    assert_eq!(lanes.judged(3), [(DropReason::BadFrame, 1)].into());
    assert!(soon(|| taker.taken().len() == 2));
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(taker.taken().len(), 2);
}

#[test]
fn of_all_numbers_of_networks_a_peer_uses_only_those_that_it_is_a_part_of() {
    let mut lanes = OnLanes::new(u64::MAX);
    let b = &mut lanes.pair.b;
    let (office, device) = UnixDatagram::pair().unwrap();
    let tun = Arc::new(Tun::from_fd(device.into(), "office").unwrap());
    b.loops.add_network(OFFICE, vec![tun]).unwrap();
    // the same prefixes, which are another's there
    let elsewhere = NetworkSpec {
        name: "office".parse().unwrap(),
        routes: spec(2, 1).routes.into_iter().map(|(prefix, _)| (prefix, PeerIx(9))).collect(),
        ..spec(2, 1)
    };
    let fib = Fib::new(vec![None, None, Some(spec(2, 1)), Some(elsewhere)]);
    b.snapshot.store(Arc::new(Snapshot { fib: Arc::new(fib), tunnels: vec![Some(b.tunnel.clone())] }));
    let (taker, other) = (Taker::new(&b.vm), Taker::new(&office));
    let frames: Vec<Bytes> = (0..=255).map(|number| frame(NetworkIx(number), 0, &good())).collect();
    lanes.throw(&shared(frames.iter().map(|frame| &frame[..])));
    let expected = [(DropReason::UnknownNetwork, 254), (DropReason::SourceNotOwned, 1)];
    assert_eq!(lanes.judged(256), expected.into());
    assert!(soon(|| taker.taken().len() == 1));
    check(&taker.taken()[0], address("10.77.1.10"), address("192.168.100.20"));
    assert!(other.taken().is_empty());
}

/// A TCP segment of one flow, with the pseudo-header sum, from A's VM to B's.
fn tcp(v6: bool, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let [from, to] = match v6 {
        false => ["10.77.1.10", "10.77.2.20"].map(address),
        true => ["fd77:1::10", "fd77:2::20"].map(address),
    };
    let mut packet = tcp_superpacket(from, to, payload, 0).1;
    let at = if v6 { 44 } else { 24 };
    packet[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
    packet
}

#[test]
fn lengths_and_offsets_that_lie_within_an_inner_packet_are_malformed_or_change_nothing() {
    let v4 = tcp(false, 1, &[7; 100]);
    let v6 = tcp(true, 1, &[7; 100]);
    let datagram = udp(address("10.77.1.10"), address("10.77.2.20"), &[7; 100]);
    let with = |packet: &[u8], at: usize, bytes: &[u8]| {
        let mut packet = packet.to_vec();
        packet[at..at + bytes.len()].copy_from_slice(bytes);
        packet
    };
    let (malformed, as_it_is) = (true, false);
    for (name, packet, expected) in [
        ("a version", with(&v4, 0, &[0x55]), malformed),
        ("a header of 16 bytes", with(&v4, 0, &[0x44]), malformed),
        ("a header of 60, into the payload", with(&v4, 0, &[0x4f]), malformed),
        ("one byte more", with(&v4, 2, &[0, 141]), malformed),
        ("one byte fewer", with(&v4, 2, &[0, 139]), malformed),
        ("no length", with(&v4, 2, &[0, 0]), malformed),
        ("all that there can be", with(&v4, 2, &[0xff, 0xff]), malformed),
        ("one byte more, IPv6", with(&v6, 4, &[0, 121]), malformed),
        ("one byte fewer, IPv6", with(&v6, 4, &[0, 119]), malformed),
        ("a jumbogram's length", with(&v6, 4, &[0, 0]), malformed),
        ("extensions beyond the end", with(&with(&v6, 6, &[0]), 40, &[6, 255]), malformed),
        ("an extension after the other", with(&with(&v6, 6, &[0]), 40, &[0, 0, 0, 0, 0, 0, 0, 0]), malformed),
        ("a TCP header of no bytes", with(&v4, 32, &[0x00]), as_it_is),
        ("a TCP header of 16 bytes", with(&v4, 32, &[0x40]), as_it_is),
        ("a TCP header of 16 bytes, IPv6", with(&v6, 52, &[0x40]), as_it_is),
        ("a datagram's length of less than its header", with(&datagram, 24, &[0, 7]), as_it_is),
        ("a datagram's length beyond the end", with(&datagram, 24, &[0xff, 0xff]), as_it_is),
    ] {
        let mut lanes = OnLanes::new(u64::MAX);
        let taker = Taker::new(&lanes.pair.b.vm);
        // beside good ones of the same flow, with which it must not be joined
        let [before, after] = [0, 200].map(|sequence| tcp(packet[0] >> 4 == 6, sequence, &[7; 100]));
        let frames = [&before, &packet, &after].map(|packet| frame(NETWORK_B, 1, packet));
        lanes.throw(&shared(frames.iter().map(|frame| &frame[..])));
        let dropped = lanes.judged(3);
        let reasons: BTreeMap<_, _> = if expected { [(DropReason::Malformed, 1)].into() } else { [].into() };
        assert_eq!(dropped, reasons, "{name}");
        let count = if expected { 2 } else { 3 };
        assert!(soon(|| taker.taken().len() == count), "{name}: {} of {count}", taker.taken().len());
        let taken = taker.taken();
        assert!(taken.iter().all(|written| written[1] == 0), "{name}: joined");
        if !expected {
            // a datagram is another flow, which may come before or after
            let came = taken.iter().any(|written| fixed(&written[VNET_HEADER..]) == fixed(&packet));
            assert!(came, "{name}: {taken:02x?}");
        }
    }
}

#[test]
fn segments_whose_header_length_lies_are_not_joined_though_their_numbers_go_on() {
    for (v6, offset) in [false, true].into_iter().flat_map(|v6| (0..16u8).map(move |offset| (v6, offset))) {
        let mut lanes = OnLanes::new(u64::MAX);
        let taker = Taker::new(&lanes.pair.b.vm);
        let ip = if v6 { 40 } else { 20 };
        // as who believes the length counts their payload
        let payload = 120u32.saturating_sub(u32::from(offset) * 4);
        let segments = [0, 1, 2].map(|number| {
            let mut packet = tcp(v6, number * payload, &[7; 100]);
            packet[ip + 12] = offset << 4;
            packet
        });
        let frames = segments.each_ref().map(|packet| frame(NETWORK_B, 1, packet));
        lanes.throw(&shared(frames.iter().map(|frame| &frame[..])));
        assert_eq!(lanes.judged(3), [].into());
        let joined = (5..=15).contains(&offset);
        let count = if joined { 1 } else { 3 };
        assert!(soon(|| taker.taken().len() == count), "{offset}: {} of {count}", taker.taken().len());
        if !joined {
            for (written, sent) in taker.taken().iter().zip(&segments) {
                assert_eq!(fixed(&written[VNET_HEADER..]), fixed(sent), "{offset}");
            }
        }
    }
}

/// Without the fields that are written on the way: destination and checksums, which of a TCP header and a UDP header lie apart.
fn fixed(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let v4 = packet[0] >> 4 == 4;
    let (ip, destination) = if v4 { (20, 16..20) } else { (40, 24..40) };
    packet[destination].fill(0);
    if v4 {
        packet[10..12].fill(0);
    }
    for field in [6..8, 16..18] {
        if let Some(field) = packet.get_mut(ip + field.start..ip + field.end) {
            field.fill(0);
        }
    }
    packet
}

#[test]
fn a_datagram_full_of_the_smallest_packets_is_delivered_packet_by_packet() {
    let mut lanes = OnLanes::new(u64::MAX);
    let taker = Taker::new(&lanes.pair.b.vm);
    // of a protocol without a header that we know
    let smallest = ip(address("10.77.1.10"), address("10.77.2.20"), 59, vec![0; 20], 0, false);
    let mut smallest = smallest[..20].to_vec();
    smallest[2..4].copy_from_slice(&[0, 20]);
    let frame = frame(NETWORK_B, 0, &smallest);
    let count = 60_000 / (3 + frame.len());
    lanes.throw(&shared(std::iter::repeat_n(&frame[..], count)));
    assert_eq!(lanes.judged(count as u64), [].into());
    assert!(soon(|| taker.taken().len() == count), "{} of {count}", taker.taken().len());
    assert!(taker.taken().iter().all(|written| written.len() == VNET_HEADER + 20));
    // and of frames without anything in them
    lanes.throw(&[0x31, 0].repeat(30_000));
    assert_eq!(lanes.judged(count as u64 + 30_000), [(DropReason::BadFrame, 30_000)].into());
}

/// One frame that is good at first, and then has some bytes changed.
#[derive(Debug, Clone)]
struct Wrong {
    kind: u8,
    len: usize,
    partial: bool,
    changes: Vec<(usize, u8)>,
}

fn any_wrong() -> impl Strategy<Value = Wrong> {
    let header = (0usize..64, any::<u8>());
    let changes = prop_oneof![2 => Just(vec![]), 3 => prop::collection::vec(header, 1..4)];
    let partial = prop_oneof![4 => Just(true), 1 => Just(false)];
    (0u8..4, 1usize..120, partial, changes).prop_map(|(kind, len, partial, changes)| Wrong {
        kind,
        len,
        partial,
        changes,
    })
}

fn frames_of(wrong: &[Wrong]) -> Vec<Vec<u8>> {
    let mut sequence = [0u32; 2];
    let one = |(number, Wrong { kind, len, partial, changes }): (usize, &Wrong)| {
        let v6 = kind & 1 == 1;
        let payload: Vec<u8> = (0..*len).map(|at| (at * 3 + number * 17) as u8).collect();
        let packet = if kind & 2 == 0 {
            let next = &mut sequence[usize::from(v6)];
            let packet = tcp(v6, *next, &payload);
            *next += *len as u32;
            packet
        } else if v6 {
            udp(address("fd77:1::10"), address("fd77:2::20"), &payload)
        } else {
            udp(address("10.77.1.10"), address("10.77.2.20"), &payload)
        };
        let mut frame = frame(NETWORK_B, u8::from(*partial), &packet).to_vec();
        for (at, value) in changes {
            let at = at % frame.len();
            frame[at] = *value;
        }
        frame
    };
    wrong.iter().enumerate().map(one).collect()
}

/// Whether a kernel would take it for what it says it is, and each segment of it is the end of a packet that was sent.
fn was_there(written: &[u8], frames: &[Vec<u8>]) -> Result<u64, String> {
    let (header, packet) = written.split_at(VNET_HEADER);
    let word = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
    let (kind, headers, size, field) = (header[1], word(2), word(4), word(6) + word(8));
    let view = Packet::parse(packet).map_err(|error| error.to_string())?;
    if header[0] & !1 != 0 || (header[0] == 1 && field + 2 > packet.len()) {
        return Err(format!("{header:?} of {} bytes", packet.len()));
    }
    if kind == 0 {
        let icmp = matches!(view.protocol(), 1 | 58);
        let same = |frame: &Vec<u8>| {
            let sent = &frame[2.min(frame.len())..];
            // an ICMP error has addresses within
            sent.len() == packet.len() && (icmp || loose(sent) == loose(packet))
        };
        return if frames.iter().any(same) { Ok(1) } else { Err("a packet that was not sent".into()) };
    }
    if !matches!(kind, 1 | 4 | 5) || header[0] != 1 || size == 0 || headers >= packet.len() {
        return Err(format!("{header:?} of {} bytes", packet.len()));
    }
    let parts: Vec<&[u8]> = packet[headers..].chunks(size).collect();
    let sent = |part: &&[u8]| {
        frames.iter().any(|frame| frame.len() == 2 + headers + part.len() && frame.ends_with(part))
    };
    if parts.iter().all(sent) { Ok(parts.len() as u64) } else { Err("a segment that was not sent".into()) }
}

/// Without what is written on the way, wherever the transport header may be.
fn loose(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let Ok(layout) = mesh_proto::ip::Layout::of(&packet) else { return packet };
    let (addresses, len) = layout.addresses();
    packet[addresses + len..addresses + 2 * len].fill(0);
    if layout.v4 {
        packet[10..12].fill(0);
    }
    if let Some(at) = layout.pseudo_checksum() {
        packet[at..at + 2].fill(0);
    }
    packet
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 30, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_member_seals_nothing_is_delivered_that_was_not_there(
        packets in prop::collection::vec(prop::collection::vec(any_wrong(), 1..14), 1..6),
    ) {
        let mut lanes = OnLanes::new(u64::MAX);
        let taker = Taker::new(&lanes.pair.b.vm);
        let mut frames = Vec::new();
        for wrong in &packets {
            let of_it = frames_of(wrong);
            lanes.throw(&shared(of_it.iter().map(|frame| &frame[..])));
            frames.extend(of_it);
        }
        let dropped: u64 = lanes.judged(frames.len() as u64).values().sum();
        let delivered = || taker.taken().iter().map(|written| was_there(written, &frames)).sum::<Result<u64, String>>();
        let expected = frames.len() as u64 - dropped;
        prop_assert!(soon(|| delivered().map_or(true, |count| count >= expected)));
        prop_assert_eq!(delivered(), Ok(expected));
    }
}
