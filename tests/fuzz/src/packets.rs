//! Inner packets and superpackets, as a peer or a VM may have made them up.

use std::sync::OnceLock;

use mesh_node::forward::fib::{Fib, NetworkIx, NetworkSpec, PeerIx};
use mesh_node::forward::segment::{Coalescer, VnetHdr, cut, on_wire, settle};
use mesh_node::forward::{Verdict, translate_inbound, translate_outbound};
use mesh_proto::frame::{Echo, FrameHeader};
use mesh_proto::ip::{Layout, Packet};

use super::{case, changed};

/// Who sends all of this.
const PEER: PeerIx = PeerIx(0);

fn fib() -> &'static Fib {
    static FIB: OnceLock<Fib> = OnceLock::new();
    FIB.get_or_init(|| {
        let prefix = |text: &str| text.parse().expect("a prefix");
        let spec = NetworkSpec {
            name: "default".parse().expect("a name"),
            maps: vec![
                (prefix("192.168.100.0/24"), prefix("10.77.2.0/24")),
                (prefix("fd64::/64"), prefix("fd77:2::/64")),
            ],
            announced: vec![prefix("172.16.0.0/16")],
            gateways: vec!["192.168.100.1".parse().expect("an address")],
            routes: vec![(prefix("10.77.1.0/24"), PEER), (prefix("fd77:1::/64"), PEER)],
            egress: vec![],
            egress_holds: vec![],
            egress_drained: vec![],
            egress_peers: vec![PEER],
            offer: vec![(prefix("198.51.100.0/24"), true)],
            expose: vec![],
        };
        Fib::new(vec![None, Some(spec)])
    })
}

pub(super) fn frame(network: u8, flags: u8, packet: &[u8]) -> Vec<u8> {
    [&[network, flags], packet].concat()
}

/// A packet from the peer's VM to ours, some of whose kinds continue one another.
pub(super) fn inner(which: u8) -> Vec<u8> {
    let v6 = which & 4 != 0;
    let payload = &[0x5a; 90][..if which & 8 == 0 { 60 } else { 90 }];
    let transport = match which & 3 {
        0 | 1 => {
            let sequence = 60 * (which & 1);
            let header = [0x30, 0x39, 0, 80, 0, 0, 0, sequence, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0];
            (6, [&header[..], payload].concat())
        }
        2 => (17, [&[0x30, 0x39, 0, 53, 0, 8 + payload.len() as u8, 0, 0][..], payload].concat()),
        // an error about a packet of ours, which quotes it
        _ => {
            let quote = packet(v6, true, 17, &[0, 53, 0x30, 0x39, 0, 8, 0, 0]);
            let kind = if v6 { [1, 0] } else { [3, 1] };
            (if v6 { 58 } else { 1 }, [&kind[..], &[0; 6], &quote].concat())
        }
    };
    packet(v6, false, transport.0, &transport.1)
}

fn packet(v6: bool, ours: bool, protocol: u8, transport: &[u8]) -> Vec<u8> {
    let mut header = if v6 {
        let len = (transport.len() as u16).to_be_bytes();
        let [mut from, mut to] = [1, 2].map(|node| {
            let mut address = [0u8; 16];
            address[..4].copy_from_slice(&[0xfd, 0x77, 0, node]);
            address[15] = 10;
            address
        });
        if ours {
            std::mem::swap(&mut from, &mut to);
        }
        [&[0x60, 0, 0, 0, len[0], len[1], protocol, 64][..], &from, &to].concat()
    } else {
        let len = (20 + transport.len() as u16).to_be_bytes();
        let (from, to) = if ours { (2, 1) } else { (1, 2) };
        vec![0x45, 0, len[0], len[1], 0, 7, 0x40, 0, 64, protocol, 0, 0, 10, 77, from, 10, 10, 77, to, 10]
    };
    header.extend_from_slice(transport);
    header
}

/// The way of frames of one packet to the device.
pub(super) struct Delivery {
    coalescer: Coalescer,
    /// Packets put, and their bytes.
    put: [usize; 2],
}

impl Delivery {
    pub(super) fn new(udp: bool) -> Self {
        Self { coalescer: Coalescer::new(udp), put: [0; 2] }
    }

    /// A frame that lies at `start` of the buffer.
    pub(super) fn put(&mut self, start: usize, frame: &mut [u8]) {
        let _ = Echo::decode(frame);
        let Ok((FrameHeader { network, checksum_partial }, rest)) = FrameHeader::decode(frame) else {
            return;
        };
        let head = frame.len() - rest.len();
        let packet = &mut frame[head..];
        let Some(net) = fib().network(NetworkIx(network)) else { return };
        match translate_inbound(net, PEER, packet, checksum_partial).verdict {
            Verdict::Deliver => {}
            Verdict::Drop(_) => return,
            other => panic!("{other:?} of what came from a peer"),
        }
        assert!(Packet::parse(&*packet).is_ok(), "it was a packet before");
        self.coalescer.push(0, start + head, packet, checksum_partial);
        self.put[0] += 1;
        self.put[1] += packet.len();
    }

    /// All that was put comes out, from within the buffer, as a kernel takes it.
    pub(super) fn check(mut self, buffer: &[u8]) {
        let mut out = [0; 2];
        for output in self.coalescer.outputs() {
            let header = VnetHdr::parse(&output.vnet).expect("a header");
            let payload: Vec<u8> = (output.pieces.iter())
                .flat_map(|piece| &buffer[piece.start as usize..][..piece.len as usize])
                .copied()
                .collect();
            let written = [output.header, &payload].concat();
            assert!(Packet::parse(&written[..]).is_ok(), "not a packet");
            assert!(header.flags <= 1 && usize::from(header.hdr_len) <= written.len());
            if header.flags == 1 {
                assert!(
                    usize::from(header.csum_start) + usize::from(header.csum_offset) + 2 <= written.len()
                );
            }
            let carried = on_wire(&header, &written);
            assert_eq!(carried.packets as usize, output.packets);
            out[0] += output.packets;
            out[1] += carried.bytes as usize;
        }
        assert_eq!(out, self.put);
    }
}

/// Any packet, both ways.
pub(super) fn inner_packet(data: &[u8]) {
    let (which, changes) = case(data);
    let packet = if which & 0x80 == 0 { changed(&inner(which), changes) } else { changes.to_vec() };
    let partial = which & 0x40 != 0;
    let net = fib().network(NetworkIx(1)).expect("the network");
    let _ = Layout::of_quoted(&packet);
    for inbound in [true, false] {
        let mut mapped = packet.clone();
        let outcome = match inbound {
            true => translate_inbound(net, PEER, &mut mapped, partial),
            false => translate_outbound(net, &mut mapped, partial),
        };
        assert_eq!(mapped.len(), packet.len());
        let dropped = matches!(outcome.verdict, Verdict::Drop(_));
        assert!(dropped || Packet::parse(&mapped[..]).is_ok());
        let Ok(view) = Packet::parse(&packet[..]) else {
            assert!(dropped);
            continue;
        };
        let _ = (view.l4(), view.pseudo_header(), view.payload());
    }
}

/// What a VM may hand over, with a virtio header that may lie: cut, and joined again.
pub(super) fn superpacket(data: &[u8]) {
    let (which, changes) = case(data);
    let (v6, udp) = (which & 4 != 0, which & 2 != 0);
    let mut whole = inner(if udp { which & 4 | 2 } else { which & 4 });
    let (ip, transport) = (if v6 { 40u16 } else { 20 }, if udp { 8 } else { 20 });
    // so much payload that there are some segments
    whole.resize(whole.len() + usize::from(which >> 3) * 32, 0x5a);
    let len = whole.len() as u16;
    let (at, value) = if v6 { (4, len - ip) } else { (2, len) };
    whole[at..at + 2].copy_from_slice(&value.to_be_bytes());
    let kind = match (which & 1 == 0, udp, v6) {
        (true, ..) => 0,
        (_, true, _) => 5,
        (_, _, false) => 1,
        (_, _, true) => 4,
    };
    let vnet = VnetHdr {
        flags: 1,
        gso_type: kind,
        hdr_len: ip + transport,
        gso_size: 100,
        csum_start: ip,
        csum_offset: if udp { 6 } else { 16 },
    };
    let bytes = changed(&[&vnet.bytes()[..], &whole].concat(), changes);
    let Some(vnet) = VnetHdr::parse(&bytes) else { return };
    let mut packet = bytes[VnetHdr::LEN..].to_vec();
    let carried = on_wire(&vnet, &packet);
    if !vnet.is_superpacket() {
        assert_eq!(carried.packets, 1);
        if settle(&vnet, &mut packet) == Ok(true) {
            assert!(Layout::of(&packet).is_ok_and(|layout| layout.pseudo_checksum().is_some()));
        }
        return;
    }
    let Ok(mut segments) = cut(&vnet, &packet) else {
        assert_eq!(carried.packets, 1);
        return;
    };
    let (most, count) = (segments.max_len(), segments.count_left());
    assert_eq!(count as u64, carried.packets);
    let mut joined = Delivery::new(true);
    let (mut buffer, mut starts) = (Vec::new(), Vec::new());
    while let Some(len) = segments.append_next(&mut buffer) {
        assert!(len <= most);
        starts.push(buffer.len() - len);
    }
    assert_eq!((starts.len(), buffer.len() as u64), (count, carried.bytes));
    let ends = starts.iter().skip(1).copied().chain([buffer.len()]);
    for (start, end) in starts.iter().zip(ends) {
        let segment = &buffer[*start..end];
        let layout = Layout::of(segment).expect("a segment is a packet");
        assert_eq!(layout.end, segment.len());
        joined.coalescer.push(0, *start, segment, true);
        joined.put[0] += 1;
        joined.put[1] += segment.len();
    }
    joined.check(&buffer);
}
