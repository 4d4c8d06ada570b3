//! Two nodes in one process, a QUIC connection between them, and socket pairs as their devices: a packet in at A comes
//! out right at B, or is dropped for the right reason.
//!
//! ```text
//!  vm_a == device of A   [outbound] --quinn, loopback--> [inbound]   device of B == vm_b
//!  192.168.100.0/24 as 10.77.1.0/24                      192.168.100.0/24 as 10.77.2.0/24
//! ```

#![allow(clippy::unwrap_used, reason = "helpers of a test fail by panicking, like the tests")]
#![allow(clippy::disallowed_methods, reason = "a deadline, so that a failing test ends")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use mesh_node::config::offloads::Offloads;
use mesh_node::forward::DropReason;
use mesh_node::forward::counters::{Counters, Direction, PeerCounters};
use mesh_node::forward::fib::{Fib, NetworkIx, NetworkSpec, PeerIx};
use mesh_node::io::quic::aside::Aside;
use mesh_node::io::quic::datagram::{Datagrams, read_datagrams, transport_config};
use mesh_node::io::tun::{Tun, VNET_HEADER};
use mesh_node::packet_loop::PacketLoops;
use mesh_node::tunnel::{Carrier, Snapshot, Tunnel};
use mesh_proto::ip::Packet;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

#[path = "packet_path/counts.rs"]
mod counts;
#[path = "packet_path/hostile.rs"]
mod hostile;
#[path = "packet_path/lanes.rs"]
mod lanes;
#[path = "packet_path/modes.rs"]
mod modes;
#[path = "packet_path/queues.rs"]
mod queues;
#[path = "packet_path/underlay.rs"]
mod underlay;

/// Each node has one other, and that is its peer 0.
const PEER: PeerIx = PeerIx(0);
/// A's number of the network and B's: different, so that a mix-up shows.
const NETWORK_A: NetworkIx = NetworkIx(1);
const NETWORK_B: NetworkIx = NetworkIx(2);

/// Long enough for a slow machine; a pass does not wait for it.
const PATIENCE: Duration = Duration::from_secs(5);

struct Node {
    vm: UnixDatagram,
    counters: Arc<Counters>,
    peer: Arc<PeerCounters>,
    network: NetworkIx,
    wanted: mpsc::Receiver<PeerIx>,
    loops: PacketLoops,
    connection: quinn::Connection,
    tunnel: Arc<Tunnel>,
    snapshot: Arc<ArcSwap<Snapshot>>,
}

fn standard(connection: &quinn::Connection) -> Arc<dyn Carrier> {
    Arc::new(Datagrams::new(connection.clone()))
}

struct Pair {
    a: Node,
    b: Node,
    _endpoints: [quinn::Endpoint; 2],
    runtime: Runtime,
}

impl Pair {
    fn new() -> Self {
        Self::by(|b| b)
    }

    /// Where A sends what is for B's address.
    fn by(way: impl FnOnce(SocketAddr) -> SocketAddr) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (endpoints, [a, b]) = runtime.block_on(connect(way));
        let a = Node::new(&runtime, a, (NETWORK_A, spec(1, 2)), NETWORK_B, standard);
        let b = Node::new(&runtime, b, (NETWORK_B, spec(2, 1)), NETWORK_A, standard);
        Self { a, b, _endpoints: endpoints, runtime }
    }
}

impl Node {
    fn new(
        runtime: &Runtime,
        connection: quinn::Connection,
        own: (NetworkIx, NetworkSpec),
        theirs: NetworkIx,
        carrier: impl FnOnce(&quinn::Connection) -> Arc<dyn Carrier>,
    ) -> Self {
        let (network, spec) = own;
        let (vm, device) = UnixDatagram::pair().unwrap();
        vm.set_read_timeout(Some(PATIENCE)).unwrap();
        let tun = Arc::new(Tun::from_fd(device.into(), "fake").unwrap().with_offloads(Offloads::ALL));
        let mut handles = vec![None; 8];
        handles[usize::from(network.0)] = Some(theirs.0);
        let counters = Arc::new(Counters::new(2));
        let carrier = carrier(&connection);
        let peer = Arc::new(PeerCounters::default());
        let tunnel = Arc::new(Tunnel::new(PEER, handles, carrier, peer.clone()));
        let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot {
            fib: fib(network, spec),
            tunnels: vec![Some(tunnel.clone())],
        }));
        let (wanted_sender, wanted) = mpsc::channel(4);
        let mut loops =
            PacketLoops::start(snapshot.clone(), counters.clone(), wanted_sender, mpsc::channel(1).0)
                .unwrap();
        loops.add_network(network, vec![tun]).unwrap();
        let (inbound, reader) = (loops.inbound(), tunnel.clone());
        runtime.spawn(read_datagrams(connection.clone(), reader, inbound, Aside::default()));
        Self { vm, counters, peer, network, wanted, loops, connection, tunnel, snapshot }
    }

    fn send(&self, packet: &[u8]) {
        self.send_with([0; VNET_HEADER], packet);
    }

    fn send_with(&self, header: [u8; VNET_HEADER], packet: &[u8]) {
        self.vm.send(&[&header[..], packet].concat()).unwrap();
    }

    /// The next packet for the VM, with its header before it.
    fn receive(&self) -> Vec<u8> {
        let mut buffer = vec![0; 70_000];
        let n = self.vm.recv(&mut buffer).expect("a packet for the VM in time");
        buffer.truncate(n);
        buffer
    }
}

impl Node {
    /// Waits until exactly one packet has been dropped that way, and none for another reason.
    fn dropped_one(&self, direction: Direction, reason: DropReason) {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let snapshot = self.counters.snapshot();
            let dropped: Vec<_> =
                snapshot.direction(direction).dropped.iter().filter(|(_, n)| *n > 0).copied().collect();
            if dropped == [(reason, 1)] {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "{reason:?} expected, got {dropped:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A mesh connection without its identity: certificates are not what is tested here.
async fn connect(
    way: impl FnOnce(SocketAddr) -> SocketAddr,
) -> ([quinn::Endpoint; 2], [quinn::Connection; 2]) {
    let key = rcgen::generate_simple_self_signed(vec!["node.test.mesh".to_owned()]).unwrap();
    let certificate = key.cert.der().clone();
    let private = rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let transport = Arc::new(transport_config(Duration::from_secs(1)));

    let mut server = quinn::ServerConfig::with_single_cert(vec![certificate.clone()], private).unwrap();
    server.transport_config(transport.clone());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let mut client = quinn::ClientConfig::with_root_certificates(Arc::new(roots)).unwrap();
    client.transport_config(transport);

    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let b = quinn::Endpoint::server(server, any).unwrap();
    let a = quinn::Endpoint::client(any).unwrap();
    let dial = a.connect_with(client, way(b.local_addr().unwrap()), "node.test.mesh").unwrap();
    let accept = async { b.accept().await.unwrap().await };
    let (at_a, at_b) = tokio::join!(dial, accept);
    ([a, b], [at_a.unwrap(), at_b.unwrap()])
}

/// The network on node `own`, whose one peer is node `other`.
fn spec(own: u8, other: u8) -> NetworkSpec {
    let prefix = |text: String| text.parse().unwrap();
    NetworkSpec {
        name: "default".parse().unwrap(),
        maps: vec![
            (prefix("192.168.100.0/24".into()), prefix(format!("10.77.{own}.0/24"))),
            (prefix("fd64::/64".into()), prefix(format!("fd77:{own}::/64"))),
        ],
        announced: vec![],
        gateways: vec!["192.168.100.1".parse().unwrap()],
        routes: vec![
            (prefix(format!("10.77.{other}.0/24")), PEER),
            (prefix(format!("fd77:{other}::/64")), PEER),
            (prefix("10.77.9.0/24".into()), PeerIx(9)),
            (prefix("fd77:9::/64".into()), PeerIx(9)),
        ],
        egress: vec![],
        egress_holds: vec![],
        egress_drained: vec![],
        egress_peers: vec![],
        offer: vec![],
        expose: vec![],
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// RFC 1071, written plainly.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut bytes = parts.concat();
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    let mut total: u32 = bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c[1])).sum();
    while total > 0xffff {
        total = (total >> 16) + (total & 0xffff);
    }
    total as u16
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn pseudo_sum(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u16 {
    sum(&[&octets(source), &octets(destination), &(len as u32).to_be_bytes(), &[0, protocol]])
}

/// An IP packet around a transport segment whose checksum field is at `field` and zero.
fn ip(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    mut segment: Vec<u8>,
    field: usize,
    partial: bool,
) -> Vec<u8> {
    let pseudo = pseudo_sum(source, destination, protocol, segment.len());
    let checksum = if partial { pseudo } else { !sum(&[&pseudo.to_be_bytes(), &segment]) };
    segment[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
    let mut packet = if source.is_ipv4() {
        let len = (20 + segment.len()) as u16;
        let mut header = vec![0x45, 0, 0, 0, 0, 7, 0x40, 0, 64, protocol, 0, 0];
        header[2..4].copy_from_slice(&len.to_be_bytes());
        header.extend([octets(source), octets(destination)].concat());
        let checksum = !sum(&[&header]);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        header
    } else {
        let mut header = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
        header[4..6].copy_from_slice(&(segment.len() as u16).to_be_bytes());
        header.extend([octets(source), octets(destination)].concat());
        header
    };
    packet.extend(segment);
    packet
}

fn udp(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
    let mut segment = vec![0x30, 0x39, 0, 53, 0, 0, 0, 0];
    segment.extend(payload);
    let len = segment.len() as u16;
    segment[4..6].copy_from_slice(&len.to_be_bytes());
    ip(source, destination, 17, segment, 6, false)
}

/// A TCP superpacket as a kernel hands it over, with its virtio header (virtio 1.2 section 5.1.6).
fn tcp_superpacket(
    source: IpAddr,
    destination: IpAddr,
    payload: &[u8],
    size: u16,
) -> ([u8; VNET_HEADER], Vec<u8>) {
    let mut segment = vec![0x30, 0x39, 0, 80, 0, 0, 0, 100, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0];
    segment.extend(payload);
    let packet = ip(source, destination, 6, segment, 16, true);
    let ip_header: u16 = if source.is_ipv4() { 20 } else { 40 };
    let kind = if source.is_ipv4() { 1 } else { 4 };
    let mut header = [1, kind, 0, 0, 0, 0, 0, 0, 0, 0];
    for (at, value) in [(2, ip_header + 20), (4, size), (6, ip_header), (8, 16)] {
        header[at..at + 2].copy_from_slice(&u16::to_ne_bytes(value));
    }
    (header, packet)
}

/// Checks addresses and the checksum (finished, or partial when the header says so); gives the transport segment.
fn check(received: &[u8], source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let (header, bytes) = received.split_at(VNET_HEADER);
    let packet = Packet::parse(bytes).unwrap();
    assert_eq!((packet.source(), packet.destination()), (source, destination));
    let segment = packet.payload();
    let pseudo = pseudo_sum(source, destination, packet.protocol(), segment.len());
    if header[0] & 1 == 0 {
        assert_eq!(sum(&[&pseudo.to_be_bytes(), segment]), 0xffff, "transport checksum");
    } else {
        let field = if packet.protocol() == 6 { 16 } else { 6 };
        assert_eq!(segment[field..field + 2], pseudo.to_be_bytes(), "pseudo-header sum");
    }
    if source.is_ipv4() {
        assert_eq!(sum(&[&bytes[..20]]), 0xffff, "header checksum");
    }
    segment.to_vec()
}

#[test]
fn a_packet_in_at_a_comes_out_mapped_at_b_in_both_families() {
    let pair = Pair::new();
    for [vm_a, mesh_a, mesh_b, vm_b] in [
        ["192.168.100.10", "10.77.1.10", "10.77.2.20", "192.168.100.20"].map(address),
        ["fd64::10", "fd77:1::10", "fd77:2::20", "fd64::20"].map(address),
    ] {
        pair.a.send(&udp(vm_a, mesh_b, b"question"));
        assert_eq!(check(&pair.b.receive(), mesh_a, vm_b)[8..], *b"question");
        pair.b.send(&udp(vm_b, mesh_a, b"answer"));
        assert_eq!(check(&pair.a.receive(), mesh_b, vm_a)[8..], *b"answer");
    }
}

#[test]
fn a_tcp_superpacket_arrives_with_every_byte_in_order() {
    let pair = Pair::new();
    let payload: Vec<u8> = (0..60_000u32).map(|i| (i * i / 7) as u8).collect();
    for [vm_a, mesh_a, mesh_b, vm_b] in [
        ["192.168.100.10", "10.77.1.10", "10.77.2.20", "192.168.100.20"].map(address),
        ["fd64::10", "fd77:1::10", "fd77:2::20", "fd64::20"].map(address),
    ] {
        let (header, packet) = tcp_superpacket(vm_a, mesh_b, &payload, 1000);
        pair.a.send_with(header, &packet);
        let mut got = Vec::new();
        while got.len() < payload.len() {
            let segment = check(&pair.b.receive(), mesh_a, vm_b);
            let sequence = u32::from_be_bytes(segment[4..8].try_into().unwrap());
            assert_eq!(sequence as usize, 100 + got.len(), "in order");
            got.extend_from_slice(&segment[20..]);
        }
        assert_eq!(got, payload);
    }
}

#[test]
fn a_neighbour_on_the_same_host_is_reached_by_its_mesh_address() {
    let pair = Pair::new();
    pair.a.send(&udp(address("192.168.100.10"), address("10.77.1.20"), b"neighbour"));
    let segment = check(&pair.a.receive(), address("10.77.1.10"), address("192.168.100.20"));
    assert_eq!(segment[8..], *b"neighbour");
}

#[test]
fn a_peer_without_a_tunnel_is_asked_for() {
    let mut pair = Pair::new();
    pair.a.send(&udp(address("192.168.100.10"), address("10.77.9.1"), b"anybody"));
    pair.a.dropped_one(Direction::Outbound, DropReason::NoTunnel);
    let wanted = pair.runtime.block_on(async { tokio::time::timeout(PATIENCE, pair.a.wanted.recv()).await });
    assert_eq!(wanted.unwrap(), Some(PeerIx(9)));
}

#[test]
fn threads_end_at_once_when_told_to() {
    let mut pair = Pair::new();
    let start = std::time::Instant::now();
    pair.a.loops.stop();
    assert!(start.elapsed() < Duration::from_secs(1));
}

fn fib(network: NetworkIx, spec: NetworkSpec) -> Arc<Fib> {
    let mut specs = vec![None; usize::from(network.0)];
    specs.push(Some(spec));
    Arc::new(Fib::new(specs))
}

/// A frame as a peer puts it on the wire, for A's or B's number of the network.
fn frame(network: NetworkIx, flags: u8, packet: &[u8]) -> Bytes {
    [&[network.0, flags], packet].concat().into()
}

#[test]
fn what_a_hostile_peer_sends_is_dropped_for_the_right_reason() {
    let good = udp(address("10.77.1.10"), address("10.77.2.20"), b"x");
    let stolen = udp(address("10.77.3.10"), address("10.77.2.20"), b"x");
    let internet = udp(address("198.51.100.7"), address("10.77.2.20"), b"x");
    let onward = udp(address("10.77.1.10"), address("198.51.100.7"), b"x");
    let mut long = good.clone();
    long.push(0);
    for (frame, reason) in [
        (frame(NETWORK_B, 0, &stolen), DropReason::SourceNotOwned),
        (frame(NETWORK_B, 0, &internet), DropReason::SourceNotOwned),
        (frame(NETWORK_B, 0, &onward), DropReason::ForbiddenDestination),
        (frame(NETWORK_A, 0, &good), DropReason::UnknownNetwork),
        (frame(NetworkIx(200), 0, &good), DropReason::UnknownNetwork),
        (frame(NETWORK_B, 2, &good), DropReason::BadFrame),
        (frame(NETWORK_B, 0, &[]), DropReason::BadFrame),
        (Bytes::new(), DropReason::BadFrame),
        (frame(NETWORK_B, 0, &[0]), DropReason::Malformed),
        (frame(NETWORK_B, 0, &long), DropReason::Malformed),
    ] {
        let pair = Pair::new();
        pair.a.connection.send_datagram(frame).unwrap();
        pair.b.dropped_one(Direction::Inbound, reason);
        // The way is open after it.
        pair.a.connection.send_datagram(self::frame(NETWORK_B, 0, &good)).unwrap();
        check(&pair.b.receive(), address("10.77.1.10"), address("192.168.100.20"));
    }
}

#[test]
fn what_a_vm_sends_wrongly_is_dropped_for_the_right_reason() {
    let vm = address("192.168.100.10");
    for (packet, reason) in [
        (udp(address("192.168.101.10"), address("10.77.2.20"), b"x"), DropReason::BadSource),
        (udp(vm, address("198.51.100.7"), b"x"), DropReason::NoRoute),
        (udp(vm, address("224.0.0.5"), b"x"), DropReason::NotRoutable),
        (udp(vm, address("10.77.2.20"), &[0; 1600]), DropReason::TooBig),
        (vec![0x45, 0], DropReason::Malformed),
        (vec![], DropReason::Malformed),
    ] {
        let pair = Pair::new();
        pair.a.send(&packet);
        pair.a.dropped_one(Direction::Outbound, reason);
    }
}

#[test]
fn a_peer_that_went_away_costs_its_packets_and_nothing_else() {
    let pair = Pair::new();
    pair.b.connection.close(0u32.into(), b"gone");
    pair.runtime.block_on(pair.a.connection.closed());
    pair.a.send(&udp(address("192.168.100.10"), address("10.77.2.20"), b"x"));
    pair.a.dropped_one(Direction::Outbound, DropReason::NoTunnel);
    pair.a.send(&udp(address("192.168.100.10"), address("10.77.1.20"), b"neighbour"));
    check(&pair.a.receive(), address("10.77.1.10"), address("192.168.100.20"));
}
