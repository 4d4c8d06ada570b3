//! Cost of one packet through the pure path: decide and map, cut, join, protect and open.

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use mesh_node::forward::fib::{Egress, EgressVia, NetworkFib, NetworkSpec, PeerIx};
use mesh_node::forward::flows::Flows;
use mesh_node::forward::segment::{Coalescer, GSO_TCPV4, NEEDS_CSUM, VnetHdr, cut, on_wire};
use mesh_node::forward::{inbound, outbound, translate_flow};
use mesh_node::tunnel::lane::cipher::{Cipher, Provider};
use mesh_node::tunnel::lane::keys::{Ratchet, Side};
use mesh_node::tunnel::lane::{HEADER, TAG};
use mesh_proto::Prefix;
use mesh_proto::ip::checksum::{checksum, pseudo_header};

fn main() {
    divan::main();
}

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a literal prefix")
}

/// A network of many nodes with a /24 each.
fn net(routes: u32) -> NetworkFib {
    let owned = (0..routes).map(|n| {
        let address = std::net::Ipv4Addr::from_bits(0x0a4e_0000 + (n << 8));
        (Prefix::covering(address.into(), 24).expect("24 bits fit"), PeerIx(n))
    });
    NetworkFib::new(NetworkSpec {
        name: "default".parse().expect("a literal name"),
        maps: vec![(prefix("192.168.100.0/24"), prefix("10.77.1.0/24"))],
        announced: vec![],
        gateways: vec![std::net::Ipv4Addr::new(192, 168, 100, 1).into()],
        routes: owned.collect(),
        egress: vec![(prefix("0.0.0.0/0"), vec![EgressVia { egress: Egress::Peer(PeerIx(0)), key: 1 }])],
        egress_holds: vec![],
        egress_drained: vec![],
        egress_peers: vec![],
        offer: vec![],
        expose: vec![],
    })
}

/// A TCP segment without options.
fn tcp(source: [u8; 4], destination: [u8; 4], payload: usize, partial: bool) -> Vec<u8> {
    let mut bytes = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0];
    bytes.extend_from_slice(&source);
    bytes.extend_from_slice(&destination);
    bytes.extend_from_slice(&[4, 0, 0, 80, 0, 0, 0, 0, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    bytes.resize(40 + payload, 7);
    let len = bytes.len() as u16;
    bytes[2..4].copy_from_slice(&len.to_be_bytes());
    let sum = checksum(&bytes[..20]);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    let pseudo = pseudo_header(&bytes[12..20], 6, 20 + payload);
    bytes[36..38].copy_from_slice(&pseudo.to_be_bytes());
    if !partial {
        let sum = checksum(&bytes[20..]);
        bytes[36..38].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

#[divan::bench(args = [1, 64, 5000])]
fn outbound_mapped(bencher: Bencher, routes: u32) {
    let net = net(routes);
    let packet = tcp([192, 168, 100, 5], [10, 78, 0, 9], 64, true);
    let mut bytes = packet.clone();
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| {
        bytes[..40].copy_from_slice(&packet[..40]);
        outbound(black_box(&net), &mut bytes, true)
    });
}

/// To the Internet: without a table of flows.
#[divan::bench]
fn outbound_egress(bencher: Bencher) {
    let net = net(64);
    let packet = tcp([192, 168, 100, 5], [192, 0, 2, 80], 64, true);
    let mut bytes = packet.clone();
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| {
        bytes[..40].copy_from_slice(&packet[..40]);
        outbound(black_box(&net), &mut bytes, true)
    });
}

/// The same with so many flows, each packet of another one.
#[divan::bench(args = [1, 1000, 30_000])]
fn outbound_egress_of_flows(bencher: Bencher, flows: u16) {
    let net = net(64);
    let packet = tcp([192, 168, 100, 5], [192, 0, 2, 80], 64, true);
    let mut bytes = packet.clone();
    let mut table = Flows::new(7);
    let mut port = 0u16;
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| {
        port = if port + 1 < flows { port + 1 } else { 0 };
        bytes[..40].copy_from_slice(&packet[..40]);
        bytes[20..22].copy_from_slice(&port.to_be_bytes());
        translate_flow(black_box(&net), &mut table, &mut bytes, true, 1)
    });
}

#[divan::bench(args = [false, true])]
fn inbound_mapped(bencher: Bencher, partial: bool) {
    let net = net(64);
    let packet = tcp([10, 78, 0, 9], [10, 77, 1, 5], 64, partial);
    let mut bytes = packet.clone();
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| {
        bytes[..40].copy_from_slice(&packet[..40]);
        inbound(black_box(&net), PeerIx(0), &mut bytes, partial)
    });
}

#[divan::bench]
fn cut_64_kb(bencher: Bencher) {
    let packet = tcp([192, 168, 100, 5], [10, 78, 0, 9], 65_000, true);
    let vnet = VnetHdr { flags: NEEDS_CSUM, gso_type: GSO_TCPV4, gso_size: 1400, ..VnetHdr::default() };
    let mut out = Vec::with_capacity(70_000);
    bencher.counter(BytesCount::new(packet.len())).bench_local(|| {
        out.clear();
        if let Ok(mut segments) = cut(&vnet, black_box(&packet)) {
            while segments.append_next(&mut out).is_some() {}
        }
        out.len()
    });
}

/// What counting in segments costs a superpacket, besides cutting it.
#[divan::bench]
fn count_64_kb(bencher: Bencher) {
    let packet = tcp([192, 168, 100, 5], [10, 78, 0, 9], 65_000, true);
    let vnet = VnetHdr { flags: NEEDS_CSUM, gso_type: GSO_TCPV4, gso_size: 1400, ..VnetHdr::default() };
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| on_wire(black_box(&vnet), black_box(&packet)));
}

#[divan::bench]
fn join_46_segments(bencher: Bencher) {
    let packets: Vec<Vec<u8>> = (0..46u32)
        .map(|n| {
            let mut packet = tcp([10, 78, 0, 9], [192, 168, 100, 5], 1400, true);
            packet[24..28].copy_from_slice(&(n * 1400).to_be_bytes());
            packet
        })
        .collect();
    let mut coalescer = Coalescer::new(true);
    bencher.counter(ItemsCount::new(packets.len())).bench_local(|| {
        coalescer.clear();
        for (at, packet) in packets.iter().enumerate() {
            coalescer.push(at as u32, 0, black_box(packet), true);
        }
        coalescer.outputs().map(|output| output.pieces.len()).sum::<usize>()
    });
}

const PROTECTED: [(Provider, usize); 6] = [
    (Provider::AwsLc, 100),
    (Provider::Ring, 100),
    (Provider::AwsLc, 1400),
    (Provider::Ring, 1400),
    (Provider::AwsLc, 8900),
    (Provider::Ring, 8900),
];

fn ratchet(side: Side, by: Provider) -> Ratchet {
    Ratchet::new(&[7; 32], b"offers", 0, Cipher::Aes128Gcm, side).by(by)
}

#[divan::bench(args = PROTECTED)]
fn seal(bencher: Bencher, (by, len): (Provider, usize)) {
    let mut sealer = ratchet(Side::Client, by).next_lane().sealer;
    let mut datagram = vec![7; HEADER + len + TAG];
    bencher.counter(BytesCount::new(len)).bench_local(|| sealer.seal(black_box(&mut datagram)));
}

#[divan::bench(args = PROTECTED)]
fn open(bencher: Bencher, (by, len): (Provider, usize)) {
    let mut sealer = ratchet(Side::Client, by).next_lane().sealer;
    let mut opener = ratchet(Side::Server, by).next_lane().opener;
    let sealed = || {
        let mut datagram = vec![7; HEADER + len + TAG];
        sealer.seal(&mut datagram).map(|()| datagram)
    };
    bencher.counter(BytesCount::new(len)).with_inputs(sealed).bench_local_refs(|datagram| {
        let opened = datagram.as_mut().map(|datagram| opener.open(datagram));
        assert!(matches!(opened, Ok(Ok(_))));
    });
}
