//! Equality of modes: whatever a VM sends, in whatever form its kernel hands it over, and whatever the underlay does to it, the
//! packets that come out are the same, byte for byte once their checksums are finished, on lanes and in standard mode. What has to
//! come out is told by a model that shares no code with the packet path.

use std::collections::BTreeMap;

use mesh_node::tunnel::lane::cipher::Cipher;
use mesh_node::tunnel::lane::frames::Frames;
use mesh_node::tunnel::lane::keys::{Ratchet, Side};
use proptest::prelude::*;

use super::lanes::{OnLanes, SECRET};
use super::underlay::{Underlay, any_fates};
use super::*;

const TCP: u8 = 6;
const UDP: u8 = 17;
const FIN: u8 = 1;
const SYN: u8 = 2;
const PSH: u8 = 8;
const ACK: u8 = 16;

/// How the kernel of A's host hands a packet over.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// With its checksum.
    Whole,
    /// The checksum covers the pseudo-header.
    Partial,
    /// To be cut into segments of that size.
    Super(u16),
}

/// One packet from A's VM.
#[derive(Debug, Clone, Copy)]
struct Sent {
    v6: bool,
    tcp: bool,
    /// Which of a few flows.
    flow: u8,
    /// Of TCP.
    flags: u8,
    dont_fragment: bool,
    len: usize,
    form: Form,
}

fn any_sent() -> impl Strategy<Value = Sent> {
    let single = || prop_oneof![Just(Form::Whole), Just(Form::Partial)];
    let len_and_form = prop_oneof![
        // what only acknowledges, what shares a datagram, and what does not
        (Just(0usize), single()),
        (1usize..700, single()),
        (700usize..1050, single()),
        (1usize..20_000, (100u16..1050).prop_map(Form::Super)),
    ];
    let flags = prop_oneof![4 => Just(ACK), 2 => Just(ACK | PSH), 1 => Just(ACK | FIN), 1 => Just(SYN)];
    (any::<[bool; 3]>(), 0u8..3, flags, len_and_form).prop_map(
        |([v6, tcp, dont_fragment], flow, flags, (len, form))| {
            let superpacket = matches!(form, Form::Super(_));
            // no superpacket begins a connection
            let flags = if superpacket && flags == SYN { ACK } else { flags };
            // the kernel's limit for UDP: 64 segments
            let len = match form {
                Form::Super(size) if !tcp => len.min(usize::from(size) * 64),
                _ => len,
            };
            Sent { v6, tcp, flow, flags, dont_fragment, len, form }
        },
    )
}

/// Segment by segment: source and destination, protocol, ports, and the packets in order.
type Flows = BTreeMap<Vec<u8>, Vec<Vec<u8>>>;

/// What the flows of one run have come to.
#[derive(Default)]
struct Vm {
    /// By family: of one flow they go on where another's end, which is no reason to join them.
    sequences: [u32; 2],
    sent: usize,
}

impl Vm {
    /// What is written for it to A's device, and the packets that B's VM has to get for it.
    fn packet(&mut self, sent: &Sent) -> ([u8; VNET_HEADER], Vec<u8>, Vec<Vec<u8>>) {
        self.sent += 1;
        let payload: Vec<u8> = (0..sent.len).map(|at| (at * 7 + at / 256 + self.sent * 31) as u8).collect();
        // they wrap soon
        let next = &mut self.sequences[usize::from(sent.v6)];
        let sequence = next.wrapping_sub(5000);
        if sent.tcp {
            *next = next.wrapping_add(sent.len as u32);
        }
        let [vm, from, to, far] = match sent.v6 {
            false => ["192.168.100.10", "10.77.1.10", "10.77.2.20", "192.168.100.20"].map(address),
            true => ["fd64::10", "fd77:1::10", "fd77:2::20", "fd64::20"].map(address),
        };
        let identification = (self.sent * 100) as u16;
        let whole = Segment { sent, source: vm, destination: to, sequence, identification, last: true };
        let packet = whole.packet(&payload, !matches!(sent.form, Form::Whole));
        let size = match sent.form {
            Form::Super(size) => usize::from(size),
            _ => sent.len.max(1),
        };
        let mut parts: Vec<&[u8]> = payload.chunks(size).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        let count = parts.len();
        let expected = parts.into_iter().enumerate().map(|(at, part)| {
            let segment = Segment {
                source: from,
                destination: far,
                sequence: sequence.wrapping_add((at * size) as u32),
                identification: identification.wrapping_add(at as u16),
                last: at + 1 == count,
                ..whole
            };
            comparable(segment.packet(part, false))
        });
        (header(sent), packet, expected.collect())
    }
}

/// The virtio header (virtio 1.2 section 5.1.6).
fn header(sent: &Sent) -> [u8; VNET_HEADER] {
    let ip: u16 = if sent.v6 { 40 } else { 20 };
    let (transport, field) = if sent.tcp { (20, 16) } else { (8, 6) };
    let (kind, size) = match (sent.form, sent.tcp, sent.v6) {
        (Form::Whole, ..) => return [0; VNET_HEADER],
        (Form::Partial, ..) => (0, 0),
        (Form::Super(size), true, false) => (1, size),
        (Form::Super(size), true, true) => (4, size),
        (Form::Super(size), false, _) => (5, size),
    };
    let mut header = [1, kind, 0, 0, 0, 0, 0, 0, 0, 0];
    for (at, value) in [(2, ip + transport), (4, size), (6, ip), (8, field)] {
        header[at..at + 2].copy_from_slice(&u16::to_ne_bytes(value));
    }
    header
}

#[derive(Clone, Copy)]
struct Segment<'s> {
    sent: &'s Sent,
    source: IpAddr,
    destination: IpAddr,
    sequence: u32,
    identification: u16,
    last: bool,
}

impl Segment<'_> {
    fn packet(&self, payload: &[u8], partial: bool) -> Vec<u8> {
        let Sent { tcp, flow, flags, dont_fragment, .. } = *self.sent;
        let mut transport = vec![0x30, flow, 0, 80];
        let (protocol, field) = if tcp { (TCP, 16) } else { (UDP, 6) };
        if tcp {
            let flags = if self.last { flags } else { flags & !(FIN | PSH) };
            transport.extend(self.sequence.to_be_bytes());
            transport.extend([0, 0, 0, 1, 0x50, flags, 1, 0, 0, 0, 0, 0]);
        } else {
            transport.extend((8 + payload.len() as u16).to_be_bytes());
            transport.extend([0, 0]);
        }
        transport.extend(payload);
        let mut packet = ip(self.source, self.destination, protocol, transport, field, partial);
        if self.source.is_ipv4() {
            packet[4..6].copy_from_slice(&self.identification.to_be_bytes());
            packet[6] = if dont_fragment { 0x40 } else { 0 };
            sign_header(&mut packet);
        }
        packet
    }
}

/// Computes the checksum of an IPv4 header.
fn sign_header(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let checksum = !sum(&[&packet[..20]]);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// Without what may differ: the identification of what nothing may fragment means nothing (RFC 6864 section 4.1), and of UDP's two
/// zeros one is never sent.
fn comparable(mut packet: Vec<u8>) -> Vec<u8> {
    let ip = if packet[0] >> 4 == 4 { 20 } else { 40 };
    if ip == 20 && packet[6] & 0x40 != 0 {
        assert_eq!(sum(&[&packet[..20]]), 0xffff, "header checksum");
        packet[4..6].fill(0);
        sign_header(&mut packet);
    }
    let protocol = packet[if ip == 20 { 9 } else { 6 }];
    if protocol == UDP && packet[ip + 6..ip + 8] == [0, 0] {
        packet[ip + 6..ip + 8].fill(0xff);
    }
    packet
}

/// What the kernel of B's host makes of what was written to the device: cut, and with finished checksums.
fn finished(written: &[u8]) -> Vec<Vec<u8>> {
    let (header, packet) = written.split_at(VNET_HEADER);
    let word = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
    let (kind, size, start) = (header[1], word(4), word(6));
    let field = start + word(8);
    let ip = if packet[0] >> 4 == 4 { 20 } else { 40 };
    if kind == 0 {
        let mut packet = packet.to_vec();
        if header[0] & 1 != 0 {
            let checksum = !sum(&[&packet[start..]]);
            packet[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        return vec![comparable(packet)];
    }
    let tcp = kind != 5;
    let headers = ip + if tcp { usize::from(packet[ip + 12] >> 4) * 4 } else { 8 };
    assert_eq!((header[0], word(2), start), (1, headers, ip));
    let parts: Vec<&[u8]> = packet[headers..].chunks(size).collect();
    let cut = parts.iter().enumerate().map(|(at, part)| {
        let mut packet = [&packet[..headers], part].concat();
        let len = packet.len() - ip;
        if ip == 20 {
            let total = packet.len() as u16;
            packet[2..4].copy_from_slice(&total.to_be_bytes());
            let identification = u16::from_be_bytes([packet[4], packet[5]]).wrapping_add(at as u16);
            packet[4..6].copy_from_slice(&identification.to_be_bytes());
            sign_header(&mut packet);
        } else {
            packet[4..6].copy_from_slice(&(len as u16).to_be_bytes());
        }
        if tcp {
            let sequence = u32::from_be_bytes(packet[ip + 4..ip + 8].try_into().unwrap());
            let sequence = sequence.wrapping_add((at * size) as u32);
            packet[ip + 4..ip + 8].copy_from_slice(&sequence.to_be_bytes());
            if at + 1 < parts.len() {
                packet[ip + 13] &= !(FIN | PSH);
            }
        } else {
            packet[ip + 4..ip + 6].copy_from_slice(&(len as u16).to_be_bytes());
        }
        let view = Packet::parse(&packet[..]).unwrap();
        let pseudo = pseudo_sum(view.source(), view.destination(), view.protocol(), len);
        packet[field..field + 2].fill(0);
        let checksum = !sum(&[&pseudo.to_be_bytes(), &packet[ip..]]);
        packet[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
        comparable(packet)
    });
    cut.collect()
}

fn by_flow(packets: impl IntoIterator<Item = Vec<u8>>) -> Flows {
    let mut flows = Flows::new();
    for packet in packets {
        let key = match packet[0] >> 4 {
            4 => [&packet[9..10], &packet[12..24]].concat(),
            _ => [&packet[6..7], &packet[8..44]].concat(),
        };
        flows.entry(key).or_default().push(packet);
    }
    flows
}

/// Without their order.
fn sorted(mut packets: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    packets.sort();
    packets
}

/// Sends all, some at a time so that no socket's buffer overflows. `done` says of how many that were to come, and how many came,
/// whether there is nothing to wait for.
fn through(
    pair: &Pair,
    packets: &[Sent],
    mut done: impl FnMut(usize, usize) -> bool,
) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    const AT_ONCE: usize = 30_000;
    pair.b.vm.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    let mut take = |got: &mut Vec<_>, expected: usize| {
        let deadline = std::time::Instant::now() + PATIENCE;
        let mut buffer = vec![0; 70_000];
        while !done(expected, got.len()) && std::time::Instant::now() < deadline {
            if let Ok(len) = pair.b.vm.recv(&mut buffer) {
                got.extend(finished(&buffer[..len]));
            }
        }
    };
    let mut vm = Vm::default();
    let (mut expected, mut got) = (Vec::new(), Vec::new());
    let mut under_way = 0;
    for sent in packets {
        if under_way + sent.len > AT_ONCE {
            take(&mut got, expected.len());
            under_way = 0;
        }
        let (header, packet, of_it) = vm.packet(sent);
        pair.a.send_with(header, &packet);
        under_way += packet.len() + of_it.len() * 200;
        expected.extend(of_it);
    }
    take(&mut got, expected.len());
    (expected, got)
}

fn all(expected: usize, got: usize) -> bool {
    got >= expected
}

/// Nothing has come for so long that nothing more will, as far as anybody can tell.
fn quiet() -> impl FnMut(usize, usize) -> bool {
    let (mut before, mut since) = (0, std::time::Instant::now());
    move |_, got| {
        if got != before {
            (before, since) = (got, std::time::Instant::now());
        }
        since.elapsed() > Duration::from_millis(60)
    }
}

/// The frames in datagrams of A's first lane, as B delivers them.
fn delivered_of(datagrams: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut opener = Ratchet::new(&SECRET, b"", 0, Cipher::Aes128Gcm, Side::Server).next_lane().opener;
    let mut packets = Vec::new();
    for datagram in datagrams {
        let mut datagram = datagram.clone();
        // what was sent twice opens once
        let Ok(range) = opener.open(&mut datagram) else { continue };
        let mut frames = Frames::new(range);
        while let Some(frame) = frames.next_in(&datagram) {
            packets.push(mapped(&datagram[frame.unwrap()]));
        }
    }
    packets
}

/// A frame for B, as B's VM gets it.
fn mapped(frame: &[u8]) -> Vec<u8> {
    let mut packet = frame[2..].to_vec();
    let v4 = packet[0] >> 4 == 4;
    let (ip, at, far) = if v4 { (20, 16, address("192.168.100.20")) } else { (40, 24, address("fd64::20")) };
    let end = at + octets(far).len();
    packet[at..end].copy_from_slice(&octets(far));
    let (source, len) = (Packet::parse(&packet[..]).unwrap().source(), packet.len() - ip);
    let protocol = packet[if v4 { 9 } else { 6 }];
    let field = ip + if protocol == TCP { 16 } else { 6 };
    packet[field..field + 2].fill(0);
    let pseudo = pseudo_sum(source, far, protocol, len);
    let checksum = !sum(&[&pseudo.to_be_bytes(), &packet[ip..]]);
    packet[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
    if v4 {
        sign_header(&mut packet);
    }
    comparable(packet)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 60, ..ProptestConfig::default() })]

    #[test]
    fn the_same_packets_come_out_in_both_modes_and_in_order(packets in prop::collection::vec(any_sent(), 1..60)) {
        let (lanes, standard) = (OnLanes::new(u64::MAX), Pair::new());
        let (expected, on_lanes) = through(&lanes.pair, &packets, all);
        let (_, in_standard_mode) = through(&standard, &packets, all);
        let expected = by_flow(expected);
        prop_assert_eq!(&by_flow(on_lanes), &expected);
        prop_assert_eq!(&by_flow(in_standard_mode), &expected);
        prop_assert_eq!(lanes.pair.a.connection.stats().frame_tx.datagram, 0, "all of them on the lane");
        prop_assert_eq!(lanes.pair.b.peer.read_lane(), Default::default());
    }

    #[test]
    fn an_underlay_that_copies_and_mixes_changes_no_packet_in_either_mode(
        packets in prop::collection::vec(any_sent(), 1..40),
        fates in any_fates(false),
    ) {
        for lanes in [true, false] {
            let underlay = Underlay::new();
            let made = Made::by(&underlay, lanes);
            underlay.set(fates.clone());
            let (expected, got) = through(made.pair(), &packets, all);
            prop_assert_eq!(sorted(got), sorted(expected), "lanes: {}", lanes);
        }
    }

    #[test]
    fn what_an_underlay_leaves_comes_out_once_and_unchanged_in_either_mode(
        packets in prop::collection::vec(any_sent(), 1..40),
        fates in any_fates(true),
    ) {
        // on lanes what is lost can be read, and so what is left is known
        let underlay = Underlay::new();
        let lanes = OnLanes::by(u64::MAX, |b| underlay.before(b));
        underlay.set(fates.clone());
        let seen = || underlay.seen().map(|datagrams| delivered_of(&datagrams));
        let (expected, got) = through(&lanes.pair, &packets, |expected, got| {
            let [passed, lost] = seen();
            passed.len() + lost.len() >= expected && got >= passed.len()
        });
        let [passed, lost] = seen();
        prop_assert_eq!(sorted(got), sorted(passed.clone()), "all that came");
        prop_assert_eq!(sorted([passed, lost].concat()), sorted(expected), "all that was sent");

        let underlay = Underlay::new();
        let standard = Pair::by(|b| underlay.before(b));
        underlay.set(fates);
        let (expected, got) = through(&standard, &packets, quiet());
        let (expected, got) = (sorted(expected), sorted(got));
        let mut left = expected.iter();
        prop_assert!(got.iter().all(|packet| left.any(|of| of == packet)), "more than was sent");
    }
}

/// A pair over an underlay.
enum Made {
    Lanes(Box<OnLanes>),
    Standard(Box<Pair>),
}

impl Made {
    fn by(underlay: &Underlay, lanes: bool) -> Self {
        if lanes {
            Self::Lanes(Box::new(OnLanes::by(u64::MAX, |b| underlay.before(b))))
        } else {
            Self::Standard(Box::new(Pair::by(|b| underlay.before(b))))
        }
    }

    fn pair(&self) -> &Pair {
        match self {
            Self::Lanes(lanes) => &lanes.pair,
            Self::Standard(pair) => pair,
        }
    }
}

#[test]
fn the_model_tells_a_packet_that_was_changed() {
    let sent = Sent {
        v6: false,
        tcp: true,
        flow: 1,
        flags: ACK | PSH,
        dont_fragment: true,
        len: 3000,
        form: Form::Super(1000),
    };
    let (header, packet, expected) = Vm::default().packet(&sent);
    assert_eq!(expected.len(), 3);
    // as if B's kernel had been given what A's gave
    let own = finished(&[&header[..], &packet].concat());
    assert_eq!(own.len(), 3);
    for (ours, theirs) in own.iter().zip(&expected) {
        assert_eq!(ours[40..], theirs[40..]);
        assert_ne!(ours, theirs, "its addresses are others");
    }
}
