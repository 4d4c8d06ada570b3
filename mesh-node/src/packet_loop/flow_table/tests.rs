//! What workers see of each other's flows, and when the one that tends them is woken.

use std::net::IpAddr;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crate::forward::fib::{EgressVia, NetworkFib, NetworkSpec, PeerIx};
use crate::forward::flows::TCP_IDLE;
use crate::forward::{DropReason, Verdict, translate_flow};
use crate::io::tun::{Read, Wait};

use super::*;

const ONE: Egress = Egress::Peer(PeerIx(1));
const TWO: Egress = Egress::Peer(PeerIx(2));

fn via(egress: Egress) -> EgressVia {
    EgressVia { egress, key: u64::from(egress == TWO) + 1 }
}

/// A network that goes to the Internet by the elected; what these hold, or held, they still carry.
fn net(elected: &[Egress], holds: &[Egress], drained: &[Egress]) -> NetworkFib {
    let internet: mesh_proto::Prefix = "0.0.0.0/0".parse().unwrap();
    NetworkFib::new(NetworkSpec {
        name: "default".parse().unwrap(),
        maps: vec![("192.168.100.0/24".parse().unwrap(), "10.77.1.0/24".parse().unwrap())],
        announced: vec![],
        gateways: vec![],
        routes: vec![("10.77.2.0/24".parse().unwrap(), PeerIx(3))],
        egress: vec![(internet, elected.iter().copied().map(via).collect())],
        egress_holds: holds.iter().map(|egress| (internet, *egress)).collect(),
        egress_drained: drained.to_vec(),
        egress_peers: vec![PeerIx(1), PeerIx(2)],
        offer: vec![],
        expose: vec![],
    })
}

/// A TCP segment of a VM: from this port to that address.
fn segment(port: u16, to: &str, flags: u8) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 192, 168, 100, 5];
    let IpAddr::V4(to) = to.parse().unwrap() else { panic!("{to}") };
    packet.extend(to.octets());
    packet.extend(port.to_be_bytes());
    packet.extend([0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    packet
}

const SYN: u8 = 2;
const ACK: u8 = 16;
const INTERNET: &str = "198.51.100.7";

struct Table {
    table: FlowTable,
    tender: Arc<Tun>,
    _far: UnixDatagram,
}

impl Table {
    fn new() -> Self {
        let (near, far) = UnixDatagram::pair().unwrap();
        let tender = Arc::new(Tun::from_fd(near.into(), "fake").unwrap());
        Self { table: FlowTable::new(7, Instant::now(), tender.clone()), tender, _far: far }
    }

    fn sent(&self, worker: u8, net: &NetworkFib, mut packet: Vec<u8>) -> Verdict {
        translate_flow(net, &mut self.table.by(worker), &mut packet, true, 1).verdict
    }

    /// Whether worker 0's wait has been ended since the last look.
    fn woken(&self) -> bool {
        self.tender.read(&mut [0; 64], Wait::AtMost(Duration::ZERO)).unwrap() == Read::Woken
    }

    fn tend(&self, net: &NetworkFib, now: Seconds) -> (bool, usize, u64) {
        let (mut resets, mut published) = (Vec::new(), 0);
        let done = self.table.tend(Some(&net.spec().egress_drained), now, &mut resets, |flows| {
            published = flows.counts().iter().map(|pinned| pinned.flows).sum();
        });
        (done, resets.len(), published)
    }
}

#[test]
fn a_flow_that_changes_its_worker_stays_with_its_egress_node() {
    let this = Table::new();
    let before = net(&[ONE], &[], &[]);
    for port in 0..100 {
        let worker = u8::from(port % 2 == 0);
        assert_eq!(this.sent(worker, &before, segment(port, INTERNET, SYN)), Verdict::Tunnel(PeerIx(1)));
    }
    let after = net(&[TWO], &[ONE], &[]);
    for port in 0..100 {
        let other = u8::from(port % 2 == 1);
        assert_eq!(this.sent(other, &after, segment(port, INTERNET, ACK)), Verdict::Tunnel(PeerIx(1)));
    }
    assert_eq!(this.sent(1, &after, segment(100, INTERNET, SYN)), Verdict::Tunnel(PeerIx(2)));
}

#[test]
fn threads_that_use_it_at_once_lose_no_flow() {
    let this = Table::new();
    let net = net(&[ONE, TWO], &[], &[]);
    std::thread::scope(|s| {
        for worker in 0..4u8 {
            let (this, net) = (&this, &net);
            s.spawn(move || {
                for port in (0..500).chain(0..500) {
                    let port = u16::from(worker) * 500 + port;
                    this.sent(worker, net, segment(port, INTERNET, SYN));
                }
            });
        }
    });
    assert_eq!(this.tend(&net, 2), (true, 0, 2000));
}

#[test]
fn the_first_flow_of_another_worker_wakes_worker_0_once() {
    let this = Table::new();
    let net = net(&[ONE], &[], &[]);
    assert!(this.table.is_quiet());
    // what stays in the mesh is nobody's flow
    assert_eq!(this.sent(1, &net, segment(1, "10.77.2.9", SYN)), Verdict::Tunnel(PeerIx(3)));
    assert!(!this.woken() && this.table.is_quiet());
    this.sent(1, &net, segment(1, INTERNET, SYN));
    assert!(!this.table.is_quiet());
    assert!(this.woken());
    for port in 2..50 {
        this.sent(2, &net, segment(port, INTERNET, SYN));
    }
    assert!(!this.woken(), "not for each flow");
    assert_eq!(this.tend(&net, 2), (true, 0, 49));
    assert!(!this.table.is_quiet());
    // all of them idle for too long, and swept
    for second in 0..20 {
        this.tend(&net, TCP_IDLE + second);
    }
    assert!(this.table.is_quiet());
    this.sent(1, &net, segment(1, INTERNET, SYN));
    assert!(this.woken());
}

#[test]
fn a_flow_of_worker_0_wakes_nobody() {
    let this = Table::new();
    this.sent(0, &net(&[ONE], &[], &[]), segment(1, INTERNET, SYN));
    assert!(!this.table.is_quiet() && !this.woken());
}

#[test]
fn a_reset_that_another_worker_begins_is_ended_by_worker_0() {
    let this = Table::new();
    let before = net(&[ONE], &[], &[]);
    this.sent(1, &before, segment(1, INTERNET, SYN));
    this.sent(1, &before, segment(1, INTERNET, ACK));
    assert!(this.woken());
    let drained = net(&[TWO], &[], &[ONE]);
    assert_eq!(this.sent(1, &drained, segment(1, INTERNET, ACK)), Verdict::Drop(DropReason::FlowReset));
    assert!(this.table.has_resets() && this.woken());
    assert_eq!(this.sent(1, &drained, segment(1, INTERNET, ACK)), Verdict::Drop(DropReason::FlowReset));
    assert!(!this.woken(), "once");
    assert_eq!(this.tend(&drained, 1).1, 1);
    assert!(!this.table.has_resets());
}

#[test]
fn all_workers_have_one_clock() {
    let (start, this) = (Instant::now(), Table::new());
    assert_eq!(this.table.seconds(start), 0);
    assert_eq!(this.table.seconds(start + Duration::from_secs(61)), 60);
}
