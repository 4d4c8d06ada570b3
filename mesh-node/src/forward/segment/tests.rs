use mesh_proto::ip::Packet;
use proptest::prelude::*;

use super::super::packets::{checksums_hold, ip, ping, tcp, udp};
use super::*;

fn gso(gso_type: u8, gso_size: u16) -> VnetHdr {
    VnetHdr { flags: NEEDS_CSUM, gso_type, gso_size, ..VnetHdr::default() }
}

fn addresses(v4: bool) -> [std::net::IpAddr; 2] {
    if v4 { [ip("10.0.0.1"), ip("10.0.0.2")] } else { [ip("fd00::1"), ip("fd00::2")] }
}

fn segments(vnet: &VnetHdr, packet: &[u8]) -> Vec<Vec<u8>> {
    let mut cut = cut(vnet, packet).unwrap();
    let (expected, longest) = (cut.count_left(), cut.max_len());
    let mut all = Vec::new();
    let mut bytes = Vec::new();
    while let Some(len) = cut.append_next(&mut bytes) {
        assert_eq!(len, bytes.len());
        assert!(len <= longest);
        all.push(std::mem::take(&mut bytes));
    }
    assert_eq!(all.len(), expected);
    let bytes = all.iter().map(|segment| segment.len() as u64).sum();
    assert_eq!(on_wire(vnet, packet), TrafficCount { packets: all.len() as u64, bytes });
    all
}

/// All that a coalescer gives, put together: vnet header and packet.
fn coalesce(packets: &[(Vec<u8>, bool)]) -> Vec<(VnetHdr, Vec<u8>)> {
    let mut coalescer = Coalescer::new(true);
    // Twice, so that reuse is tested too.
    let mut result = Vec::new();
    for _ in 0..2 {
        coalescer.clear();
        for (at, (packet, partial)) in packets.iter().enumerate() {
            coalescer.push(at as u32, 0, packet, *partial);
        }
        result = coalescer
            .outputs()
            .map(|output| {
                let mut bytes = output.header.to_vec();
                for piece in output.pieces {
                    let from = piece.start as usize;
                    bytes.extend_from_slice(
                        &packets[piece.buffer as usize].0[from..from + piece.len as usize],
                    );
                }
                (VnetHdr::parse(&output.vnet).unwrap(), bytes)
            })
            .collect();
    }
    result
}

fn partial(packets: Vec<Vec<u8>>) -> Vec<(Vec<u8>, bool)> {
    packets.into_iter().map(|packet| (packet, true)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn cutting_and_joining_gives_the_superpacket_back(
        v4: bool,
        is_tcp: bool,
        push: bool,
        size in 40u16..1500,
        len in 1usize..4000,
        sequence: u32,
    ) {
        let [a, b] = addresses(v4);
        let data: Vec<u8> = (0..len).map(|n| n as u8).collect();
        let flags = if push { 0x18 } else { 0x10 };
        let (packet, gso_type) = match (is_tcp, v4) {
            (true, true) => (tcp(a, b, 80, sequence, flags, &data, true), GSO_TCPV4),
            (true, false) => (tcp(a, b, 80, sequence, flags, &data, true), GSO_TCPV6),
            _ => (udp(a, b, 53, &data[..len.min(usize::from(size) * 64)], true), GSO_UDP_L4),
        };
        let cut = segments(&gso(gso_type, size), &packet);
        let many = cut.len() > 1;
        let joined = coalesce(&partial(cut));
        prop_assert_eq!(joined.len(), 1);
        prop_assert_eq!(&joined[0].1, &packet);
        prop_assert_eq!(joined[0].0.gso_type, if many { gso_type } else { GSO_NONE });
        prop_assert_eq!(joined[0].0.gso_size, if many { size } else { 0 });
    }

    #[test]
    fn each_segment_is_right_once_its_checksum_is_completed(v4: bool, is_tcp: bool, len in 1usize..3000) {
        let [a, b] = addresses(v4);
        let data = vec![7; len];
        let (packet, gso_type) = match (is_tcp, v4) {
            (true, true) => (tcp(a, b, 80, u32::MAX - 5, 0x99, &data, true), GSO_TCPV4 | GSO_ECN),
            (true, false) => (tcp(a, b, 80, u32::MAX - 5, 0x99, &data, true), GSO_TCPV6),
            _ => (udp(a, b, 53, &data, true), GSO_UDP_L4),
        };
        let cut = segments(&gso(gso_type, 700), &packet);
        let last = cut.len() - 1;
        let mut total = 0;
        for (number, mut segment) in cut.into_iter().enumerate() {
            let layout = Layout::of(&segment).unwrap();
            let field = layout.pseudo_checksum().unwrap();
            let sum = checksum(&segment[layout.transport..]);
            segment[field..field + 2].copy_from_slice(&sum.to_be_bytes());
            prop_assert!(checksums_hold(&segment));
            let transport = Packet::parse(&segment[..]).unwrap().payload().to_vec();
            if is_tcp {
                let sequence = u32::from_be_bytes(transport[4..8].try_into().unwrap());
                prop_assert_eq!(sequence, (u32::MAX - 5).wrapping_add(total));
                let mut flags = 0x10;
                flags |= if number == 0 { 0x80 } else { 0 };
                flags |= if number == last { 0x09 } else { 0 };
                prop_assert_eq!(transport[13], flags);
                total += (transport.len() - 32) as u32;
            } else {
                total += (transport.len() - 8) as u32;
            }
            if v4 {
                prop_assert_eq!(&segment[4..6], &(0x1234 + number as u16).to_be_bytes());
            }
        }
        prop_assert_eq!(total as usize, len);
    }

    #[test]
    fn no_bytes_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..140),
        header in any::<[u8; 10]>(),
        v4: bool,
        kind in prop_oneof![Just(GSO_TCPV4), Just(GSO_TCPV6), Just(GSO_UDP_L4), any::<u8>()],
        protocol in prop_oneof![Just(TCP), Just(UDP)],
    ) {
        if bytes.len() >= 40 {
            let len = bytes.len() as u16;
            if v4 {
                bytes[..10].copy_from_slice(&[0x45, 0, (len >> 8) as u8, len as u8, 0, 0, 0x40, 0, 9, protocol]);
            } else {
                bytes[0] = 0x60;
                bytes[4..6].copy_from_slice(&(len - 40).to_be_bytes());
                bytes[6] = protocol;
            }
        }
        let vnet = VnetHdr { gso_type: kind, ..VnetHdr::parse(&header).unwrap() };
        if let Ok(mut cut) = cut(&vnet, &bytes) {
            let mut out = Vec::new();
            while cut.append_next(&mut out).is_some() {}
        }
        let _ = settle(&vnet, &mut bytes.clone());
        let mut coalescer = Coalescer::new(true);
        for partial in [true, false, true, true] {
            coalescer.push(0, 0, &bytes, partial);
        }
        prop_assert!(coalescer.outputs().count() > 0);
    }
}

#[test]
fn flows_are_joined_apart_and_keep_their_order() {
    let [a, b] = addresses(true);
    let data = [1; 100];
    let seg = |port, sequence, flags| tcp(a, b, port, sequence, flags, &data, true);
    let packets = vec![
        seg(1, 0, 0x10),
        seg(2, 0, 0x10),
        seg(1, 100, 0x10),
        seg(2, 100, 0x18), // pushes: ends its superpacket
        seg(2, 200, 0x10),
        seg(1, 300, 0x10), // a gap
        seg(1, 400, 0x10),
    ];
    let joined = coalesce(&partial(packets));
    let told: Vec<_> =
        joined.iter().map(|(vnet, bytes)| (bytes[23], bytes.len() - 52, bytes[27], vnet.gso_type)).collect();
    assert_eq!(
        told,
        [
            (1, 200, 0, GSO_TCPV4),
            (2, 200, 0, GSO_TCPV4),
            (2, 100, 200, GSO_NONE),
            (1, 200, (300u32 & 0xff) as u8, GSO_TCPV4),
        ]
    );
}

#[test]
fn a_packet_that_cannot_join_is_not_overtaken_by_its_flow() {
    let [a, b] = addresses(false);
    let seg = |sequence, flags| tcp(a, b, 1, sequence, flags, &[1; 100], true);
    let packets = partial(vec![seg(0, 0x10), seg(100, 0x11), seg(100, 0x10)]);
    let joined = coalesce(&packets);
    assert_eq!(joined.len(), 3);
    assert_eq!(joined[1].1, packets[1].0);
    assert_eq!((joined[1].0.flags, joined[1].0.csum_start, joined[1].0.csum_offset), (NEEDS_CSUM, 40, 16));
}

#[test]
fn packets_with_a_whole_checksum_pass_untouched() {
    let [a, b] = addresses(true);
    let packets = vec![
        (ping(a, b), false),
        (udp(a, b, 1, b"one", false), false),
        (udp(a, b, 1, b"two", false), false),
        (vec![1, 2, 3], false),
    ];
    let joined = coalesce(&packets);
    for ((vnet, bytes), (packet, _)) in joined.iter().zip(&packets) {
        assert_eq!((*vnet, bytes), (VnetHdr::default(), packet));
    }
    assert_eq!(joined.len(), packets.len());
}

#[test]
fn packets_that_differ_in_a_header_field_do_not_join() {
    let [a, b] = addresses(true);
    let first = tcp(a, b, 1, 0, 0x10, &[1; 100], true);
    let second = tcp(a, b, 1, 100, 0x10, &[1; 100], true);
    assert_eq!(coalesce(&partial(vec![first.clone(), second.clone()])).len(), 1);
    // Service class, hop limit, DF, acknowledgment, window, timestamp.
    for at in [1, 8, 6, 31, 34, 45] {
        let mut other = second.clone();
        other[at] ^= 0x40;
        assert_eq!(coalesce(&partial(vec![first.clone(), other])).len(), 2, "{at}");
    }
}

#[test]
fn a_superpacket_stays_within_its_length_field() {
    for v4 in [true, false] {
        let [a, b] = addresses(v4);
        let packets: Vec<_> = (0..70).map(|n| tcp(a, b, 1, n * 1400, 0x10, &[1; 1400], true)).collect();
        let joined = coalesce(&partial(packets));
        assert_eq!(joined.len(), 2);
        assert!(joined.iter().all(|(_, bytes)| bytes.len() <= 65_535));
    }
    let [a, b] = addresses(true);
    let packets = (0..65).map(|_| udp(a, b, 1, &[1; 10], true)).collect();
    assert_eq!(coalesce(&partial(packets)).len(), 2);
}

#[test]
fn what_is_not_as_its_type_says_is_refused() {
    let [a, b] = addresses(true);
    let packet = tcp(a, b, 1, 0, 0x10, &[1; 100], true);
    assert_eq!(cut(&gso(GSO_TCPV6, 50), &packet).unwrap_err(), SegmentError::Mismatch);
    assert_eq!(cut(&gso(GSO_UDP_L4, 50), &packet).unwrap_err(), SegmentError::Mismatch);
    assert_eq!(cut(&gso(GSO_TCPV4, 0), &packet).unwrap_err(), SegmentError::Mismatch);
    assert_eq!(cut(&gso(GSO_UDP, 50), &packet).unwrap_err(), SegmentError::Type(GSO_UDP));
    assert_eq!(cut(&gso(GSO_NONE, 50), &packet).unwrap_err(), SegmentError::Type(GSO_NONE));
    let mut short = packet.clone();
    short[32] = 0x40;
    assert_eq!(cut(&gso(GSO_TCPV4, 50), &short).unwrap_err(), SegmentError::Mismatch);
}

#[test]
fn a_checksum_within_a_tunnel_is_completed_before_it_travels() {
    let [a, b] = addresses(true);
    let inner = udp(a, b, 1, b"inside", true);
    let mut packet = udp(a, b, 4789, &inner, false);
    let own = VnetHdr { flags: NEEDS_CSUM, csum_start: 20, csum_offset: 6, ..VnetHdr::default() };
    assert_eq!(settle(&own, &mut packet.clone()), Ok(true));
    let within = VnetHdr { csum_start: 48, ..own };
    assert_eq!(settle(&within, &mut packet), Ok(false));
    assert!(checksums_hold(&packet[28..]));
    let outside = VnetHdr { csum_start: 4000, ..own };
    assert_eq!(settle(&outside, &mut packet), Err(SegmentError::Checksum));
    assert_eq!(settle(&VnetHdr::default(), &mut packet), Ok(false));
}

#[test]
fn the_vnet_header_is_read_as_written() {
    let header =
        VnetHdr { flags: 1, gso_type: 5, hdr_len: 28, gso_size: 1200, csum_start: 20, csum_offset: 6 };
    assert_eq!(VnetHdr::parse(&header.bytes()), Some(header));
    assert_eq!(VnetHdr::parse(&[0; 9]), None);
}

/// A flow from VM 1 or 2 that comes with mesh addresses, cut into segments; and as it is to leave, whole.
fn mapped_flow(v4: bool, vm: u8) -> (Vec<Vec<u8>>, Vec<u8>) {
    let (came, leaves) = match v4 {
        true => {
            ([format!("10.77.1.{vm}"), "10.77.2.9".into()], [format!("10.77.1.{vm}"), "192.168.0.9".into()])
        }
        false => ([format!("fd77::{vm}"), "fd77:2::9".into()], [format!("fd77::{vm}"), "fd64::9".into()]),
    };
    let data = [vm; 5000];
    let [packet, whole] = [came, leaves].map(|[from, to]| tcp(ip(&from), ip(&to), 80, 7, 0x10, &data, true));
    (segments(&gso(if v4 { GSO_TCPV4 } else { GSO_TCPV6 }, 1000), &packet), whole)
}

/// Writes the destination of another packet of the same family.
fn map(packet: &mut [u8], like: &[u8]) {
    let (at, len) = Layout::of(packet).unwrap().addresses();
    packet[at + len..at + 2 * len].copy_from_slice(&like[at + len..at + 2 * len]);
}

#[test]
fn what_is_decided_of_the_first_packet_holds_for_all_that_are_joined_to_it() {
    for v4 in [true, false] {
        let (one, whole_one) = mapped_flow(v4, 1);
        let (two, whole_two) = mapped_flow(v4, 2);
        // the two differ in one bit of an address; every packet of the second finds the first one's open
        let mut packets: Vec<_> =
            one.into_iter().zip(two).flat_map(|(one, two)| [(1, one), (2, two)]).collect();
        let (mut coalescer, mut decided) = (Coalescer::<u8>::new(true), Vec::new());
        for (at, (vm, packet)) in packets.iter_mut().enumerate() {
            let layout = Layout::of(packet).unwrap();
            let said = coalescer.take((at as u32, 0), packet, layout, true, |packet| {
                decided.push(*vm);
                map(packet, if *vm == 1 { &whole_one } else { &whole_two });
                Ok::<_, ()>(*vm)
            });
            assert_eq!(said, Ok(*vm));
        }
        assert_eq!(decided, [1, 2]);
        let out: Vec<Vec<u8>> = coalescer
            .outputs()
            .map(|output| {
                let piece =
                    |p: &Piece| packets[p.buffer as usize].1[p.start as usize..][..p.len as usize].to_vec();
                let payload: Vec<u8> = output.pieces.iter().flat_map(piece).collect();
                [output.header, &payload].concat()
            })
            .collect();
        assert_eq!(out, [whole_one, whole_two]);
    }
}

#[test]
fn what_is_refused_is_left_out_and_holds_for_nobody_else() {
    let (one, _) = mapped_flow(true, 1);
    let mut coalescer = Coalescer::<u8>::new(true);
    let mut asked = 0;
    for mut packet in one {
        let layout = Layout::of(&packet).unwrap();
        let refused = coalescer.take((0, 0), &mut packet, layout, true, |_| {
            asked += 1;
            Err("not here")
        });
        assert_eq!(refused, Err("not here"));
    }
    assert_eq!((asked, coalescer.outputs().count()), (5, 0));
}
