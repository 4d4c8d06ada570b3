//! Cost of one scrape: what the control loop is kept from its work for, and the text. Without HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use divan::{Bencher, black_box};
use mesh_node::config::EgressChoice;
use mesh_node::config::ProbeParams;
use mesh_node::control::event::{ConnId, Input, LocalNetwork, LocalNode, Now, Saved};
use mesh_node::control::status::{Figures, Live, Traffic};
use mesh_node::control::{Control, Trust};
use mesh_node::forward::counters::Counters;
use mesh_node::forward::fib::{NetworkIx, PeerIx};
use mesh_node::io::metrics::exposition;
use mesh_node::io::query::View;
use mesh_node::io::quic::udp_sockets::udp_sockets;
use mesh_node::io::scrape::{KernelDrops, input};
use mesh_node::io::tun::drops::device_drops;
use mesh_proto::Prefix;
use mesh_proto::hello::{Hello, Message, NetworkHandle};
use mesh_proto::identity::{Ca, Grants, Identity, IssueRequest, NodeKey, PublicKeySource, TrustRoots};
use mesh_proto::limits::PROTOCOL_VERSION;
use mesh_proto::record::{NetworkRecord, Record, SignedRecord};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

const UNIX: i64 = 1_800_000_000;

fn main() {
    divan::main();
}

struct Busy;

impl Live for Busy {
    fn figures(&self, _: ConnId) -> Option<Figures> {
        Some(Figures { rtt: Duration::from_micros(412), lane: None })
    }

    fn traffic(&self, peer: PeerIx) -> Traffic {
        let n = u64::from(peer.0) + 1;
        Traffic {
            receive_packets: n << 20,
            receive_bytes: n << 30,
            transmit_packets: n << 20,
            transmit_bytes: n << 30,
        }
    }
}

fn prefix(n: u32, len: u8) -> Prefix {
    Prefix::covering(std::net::Ipv4Addr::from_bits(n).into(), len).expect("the length fits")
}

fn mesh_prefix(n: u32) -> Prefix {
    prefix(0x0a4e_0000 + (n << 8), 24)
}

fn public(n: u32) -> [Prefix; 2] {
    [prefix(0xcb00_7100 + n, 32), prefix(0xcb00_7200 + n, 32)]
}

/// A node's certificate and key.
fn member(ca: &Ca, n: u32) -> (Vec<CertificateDer<'static>>, NodeKey, Identity) {
    let key = NodeKey::generate().expect("a key");
    let mut grants = Grants { egress: true, ..Grants::default() };
    let network = "default".parse().expect("a name");
    std::iter::once(mesh_prefix(n)).chain(public(n)).for_each(|p| grants.allow(&network, p));
    let request = IssueRequest {
        node: format!("host-{n}").parse().expect("a name"),
        grants,
        public_key: PublicKeySource::Key(&key),
        not_before: UNIX - 60,
        not_after: UNIX + 86_400,
    };
    let pem = ca.issue(&request).expect("a certificate");
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).expect("what was issued");
    let identity = Identity::from_certificate(&certificate).expect("what was issued");
    (vec![certificate], key, identity)
}

fn hello(identity: &Identity) -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        mesh: identity.mesh.clone(),
        node: identity.node.clone(),
        generation: 1,
        networks: vec![NetworkHandle { handle: 0, name: "default".parse().expect("a name") }],
    }
}

/// A node with so many peers, all up, each with a mesh prefix and two announced addresses.
fn control(peers: u32, now: Now) -> Control {
    let ca = Ca::init(&"bench".parse().expect("a name"), UNIX - 100, 3650).expect("a CA");
    let roots = Arc::new(TrustRoots::from_pem(ca.cert_pem().as_bytes()).expect("its certificate"));
    let (chain, key, identity) = member(&ca, 0);
    let local = LocalNode {
        identity,
        generation: 1,
        endpoints: vec!["198.51.100.1:4650".parse().expect("an endpoint")],
        networks: vec![LocalNetwork {
            ix: NetworkIx(0),
            name: "default".parse().expect("a name"),
            interface: "vmnet1".into(),
            tun: "mesh-default".into(),
            maps: vec![(prefix(0xc0a8_6400, 24), mesh_prefix(0))],
            gateways: vec![(prefix(0xc0a8_6400, 24), "192.168.100.1".parse().expect("an address"))],
            announce: vec![],
            egress: EgressChoice::Nodes(
                (1..=3).map(|n| format!("host-{n}").parse().expect("a name")).collect(),
            ),
            egress_rules: Default::default(),
        }],
        egress: vec![],
        connected: vec![],
        links: vec![],
        expose: vec![],
        seeds: (1..=peers).map(|n| (endpoint(n).to_string(), None)).collect(),
        uplinks: vec!["eth0".into()],
        underlay_mtu: 1500,
        mtu: None,
        foreign_chains: Default::default(),
        probe: ProbeParams::DEFAULT,
        probes: Default::default(),
    };
    let mut control =
        Control::new(local, Trust { chain, key, roots }, Saved::default(), 1, now).expect("a node");
    for n in 1..=peers {
        let (chain, key, identity) = member(&ca, n);
        let record = Record {
            node: identity.node.clone(),
            version: 1,
            endpoints: vec![endpoint(n)],
            networks: vec![NetworkRecord {
                name: "default".parse().expect("a name"),
                prefixes: vec![mesh_prefix(n)],
                announced: public(n).to_vec(),
                egress: None,
            }],
            leaving: false,
        };
        let (conn, hello) = (ConnId(u64::from(n)), hello(&identity));
        let took = Duration::from_millis(3);
        control.handle(
            Input::TunnelUp { conn, identity, endpoint: endpoint(n), dialed: None, hello, took },
            now,
        );
        let records = Message::Records(vec![SignedRecord::sign(&record, &key, &chain)]);
        control.handle(Input::Message { conn, message: records }, now);
        while control.poll_output().is_some() {}
    }
    control
}

fn endpoint(n: u32) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, n as u8], 4650))
}

#[expect(clippy::disallowed_methods, reason = "any moment will do")]
fn now() -> Now {
    Now { mono: Instant::now(), unix_ms: UNIX as u64 * 1000 }
}

/// The part that the control loop answers.
#[divan::bench(args = [1, 10, 100, 200])]
fn gather(bencher: Bencher, peers: u32) {
    let now = now();
    let (control, counters) = (control(peers, now), Counters::new(1));
    let view = View { now, live: &Busy };
    bencher.bench_local(|| input(black_box(&control), &view, &counters, &KernelDrops::default()));
}

/// All of it: what the kernel says, the answer, the text.
#[divan::bench(args = [1, 10, 100, 200])]
fn whole(bencher: Bencher, peers: u32) {
    let now = now();
    let (control, counters) = (control(peers, now), Counters::new(1));
    let view = View { now, live: &Busy };
    let text = exposition(&input(&control, &view, &counters, &KernelDrops::default()));
    let (up, routes) = (text.matches("mesh_peer_up{").count(), text.contains("mesh_routes"));
    assert!(up == peers as usize && routes, "{text}");
    bencher.bench_local(|| {
        let kernel = KernelDrops { devices: device_drops(), socket: udp_sockets().dropped };
        exposition(&input(black_box(&control), &view, &counters, &kernel))
    });
}
