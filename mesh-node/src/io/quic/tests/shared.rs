//! Nodes whose socket lanes and QUIC share, with the thread that reads it: what is answered, and what is not.

use std::io::IoSliceMut;
use std::net::UdpSocket;

use quinn::AsyncUdpSocket as _;
use quinn::udp::RecvMeta;
use tokio::runtime::Runtime;

use super::*;
use crate::config::offloads::Offloads;
use crate::forward::counters::Counters;
use crate::io::lane::LaneWire;
use crate::io::quic::exporter::LaneSecret;
use crate::packet_loop::PacketLoops;
use crate::tunnel::lane::{ID_LEN, LANE_BIT, LaneId};

/// One of them.
pub(crate) struct OnLanes {
    pub(super) node: Node,
    pub(crate) wire: LaneWire,
    pub(crate) counters: Arc<Counters>,
    _loops: PacketLoops,
}

impl Spec<'_> {
    pub(super) fn start_shared(
        &self,
        credentials: Credentials,
        socket: UdpSocket,
        keepalive: Duration,
    ) -> OnLanes {
        self.start_workers(credentials, vec![socket], keepalive)
    }

    /// Of as many workers as there are sockets.
    fn start_workers(
        &self,
        credentials: Credentials,
        mut sockets: Vec<UdpSocket>,
        keepalive: Duration,
    ) -> OnLanes {
        let transport = datagram::transport_config(keepalive);
        let counters = Arc::new(Counters::new(sockets.len() as u8));
        let first = sockets.remove(0);
        let (quic, offloads, wire) =
            endpoint::shared_for_test(first, sockets, &credentials, transport).unwrap();
        let loops = reading(&wire, counters.clone());
        OnLanes { node: self.start_on(credentials, quic, offloads), wire, counters, _loops: loops }
    }
}

/// The thread that reads the socket.
fn reading(wire: &LaneWire, counters: Arc<Counters>) -> PacketLoops {
    let (wanted, moved) = (mpsc::channel(1).0, mpsc::channel(1).0);
    let mut loops = PacketLoops::start(Arc::default(), counters, wanted, moved).unwrap();
    loops.receive_lanes(wire).unwrap();
    loops
}

fn loopback() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").unwrap()
}

/// So many, of ports that follow one another.
fn loopbacks(workers: u8) -> Vec<UdpSocket> {
    let bound = std::iter::repeat_with(|| {
        let first = loopback();
        let port = first.local_addr().unwrap().port();
        let more = (1..u16::from(workers)).map(|worker| {
            let port = port.checked_add(worker)?;
            UdpSocket::bind(("127.0.0.1", port)).ok()
        });
        std::iter::once(Some(first)).chain(more).collect::<Option<Vec<_>>>()
    });
    bound.take(1000).flatten().next().unwrap()
}

/// Somebody who is no member, and what a node answers.
pub(crate) struct Stranger(UdpSocket);

impl Stranger {
    pub(crate) fn new() -> Self {
        let socket = loopback();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        Self(socket)
    }

    pub(crate) fn send(&self, datagram: &[u8], to: SocketAddr) {
        self.0.send_to(datagram, to).unwrap();
    }

    /// The first thing that comes within a while.
    pub(crate) fn answer(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 2000];
        let len = self.0.recv(&mut buffer).ok()?;
        Some(buffer[..len].to_vec())
    }
}

/// A node, and its end of the connection to another one.
pub(crate) struct Joined {
    pub(crate) on: OnLanes,
    pub(crate) connection: quinn::Connection,
    /// Of its lanes.
    pub(crate) secret: Option<LaneSecret>,
    /// The same once more, which in life nobody has.
    pub(crate) leaked: LaneSecret,
}

impl Joined {
    pub(crate) fn address(&self) -> SocketAddr {
        self.on.node.address()
    }
}

/// The dialer and the acceptor, with so many workers each.
pub(crate) async fn joined(workers: [u8; 2]) -> [Joined; 2] {
    let ca = ca("lab");
    let ends = [("ph1", workers[0]), ("ph2", workers[1])].map(|(name, workers)| {
        let spec = Spec::good(name, &ca);
        spec.start_workers(spec.credentials(), loopbacks(workers), Duration::from_secs(1))
    });
    ends[0].node.dial(ends[1].node.address(), Some("ph2"));
    let certificate = ends[0].node.context.certificate.clone();
    let [dialer, acceptor] = ends.each_ref().map(|on| on.node.context.hello.clone());
    let mut joined = Vec::new();
    for mut on in ends {
        let (connection, secrets) = on.node.up().await;
        let leaked = Secrets::export(&connection, &certificate, &dialer, &acceptor).unwrap().lanes;
        joined.push(Joined { on, connection, secret: Some(secrets.lanes), leaked });
    }
    joined.try_into().ok().unwrap()
}

fn short_header(first: u8, id: &[u8], len: usize) -> Vec<u8> {
    let mut datagram = [&[first][..], id].concat();
    datagram.resize(len, 0x5a);
    datagram
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_unknown_lanes_nor_ids_that_are_none_of_ours_are_answered() {
    let ca = ca("lab");
    let spec = Spec::good("ph2", &ca);
    let mut b = spec.start_shared(spec.credentials(), loopback(), Duration::from_secs(1));
    let (stranger, to) = (Stranger::new(), b.node.address());
    let own = endpoint::id_for_test(&b.node.credentials);
    let mut unknown = 0;
    // some of each: the check of an ID is three bytes of it
    for at in 0..16u8 {
        let mut other = own;
        other[usize::from(at % 8)] ^= 1 << (at % 7);
        other[0] &= !LANE_BIT;
        let mut lane = own;
        lane[0] |= LANE_BIT;
        // what QUIC would answer with a reset, and what is too short for that; the fixed bit greased, and not
        for len in [1 + ID_LEN, 40, 56, 1200, 1400] {
            for first in [0x40 | at, at] {
                for id in [other, lane, [0x80 | at; ID_LEN]] {
                    let datagram = short_header(first, &id, len);
                    unknown += u64::from(LaneId::claimed(&datagram).is_some());
                    stranger.send(&datagram, to);
                }
            }
        }
        // nothing is lost on the way: all of them have been seen
        for _ in 0..500 {
            if b.counters.snapshot().unknown_lane == unknown {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(b.counters.snapshot().unknown_lane, unknown);
    }
    assert_eq!(stranger.answer(), None);
    // it has heard them: an ID that it did make once is answered, by a reset
    stranger.send(&short_header(0x40, &own, 1200), to);
    let reset = stranger.answer().expect("a stateless reset");
    assert!(reset.len() < 1200 && reset[0] & 0xc0 == 0x40, "{reset:02x?}");
    // and whoever is a member gets in
    let mut a = Spec::good("ph1", &ca).start();
    a.dial(to, Some("ph2"));
    a.up().await;
    b.node.up().await;
}

#[tokio::test]
async fn what_may_be_a_stateless_reset_reaches_quinn_though_it_looks_like_a_lane_s_packet() {
    let wire = LaneWire::new(loopback(), Offloads::ALL).unwrap();
    let to = wire.socket.local_addr().unwrap();
    let _loops = reading(&wire, Arc::default());
    let stranger = Stranger::new();
    for first in [0x40, 0x7f] {
        let reset = short_header(first, &[0xff; ID_LEN], 43);
        assert!(LaneId::claimed(&reset).is_some());
        stranger.send(&reset, to);
        let mut buffer = [0; 2000];
        let mut meta = [RecvMeta::default()];
        let received = std::future::poll_fn(|cx| {
            wire.port.poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta)
        });
        tokio::time::timeout(Duration::from_secs(5), received).await.unwrap().unwrap();
        assert_eq!(buffer[..meta[0].len], reset);
    }
}

#[test]
fn a_node_that_starts_anew_ends_the_connections_of_its_former_life_by_a_reset() {
    let runtime = || Runtime::new().unwrap();
    let ca = ca("lab");
    let (ph1, ph2) = (Spec::good("ph1", &ca), Spec::good("ph2", &ca));
    let (here, there) = (runtime(), runtime());
    // nothing but a reset ends a connection while this test runs
    let long = Duration::from_secs(300);
    let start = |spec: &Spec<'_>, on: &Runtime, credentials, socket| {
        let _on = on.enter();
        spec.start_shared(credentials, socket, long)
    };
    let a = start(&ph1, &here, ph1.credentials(), loopback());
    let socket = loopback();
    let mut b = start(&ph2, &there, ph2.credentials(), socket.try_clone().unwrap());
    let to = b.node.address();
    let client = {
        let mut client = super::super::tls::client_config(&a.node.credentials).unwrap();
        client.transport_config(Arc::new(datagram::transport_config(long)));
        client
    };
    // so many that some resets look like packets of unknown lanes, and some do not
    let connections: Vec<quinn::Connection> = here.block_on(async {
        let mut connections = Vec::new();
        for _ in 0..8 {
            let dialed = a.node.quic.connect_with(client.clone(), to, super::super::tls::SERVER_NAME);
            connections.push(dialed.unwrap().await.unwrap());
        }
        connections
    });
    let credentials = copy(&b.node.credentials);
    // it dies without a word
    there.shutdown_timeout(Duration::from_secs(5));
    while b.node.events.try_recv().is_ok() {}
    drop(b);
    assert!(connections.iter().all(|connection| connection.close_reason().is_none()));
    let there = runtime();
    let _b = start(&ph2, &there, credentials, socket);
    let ended: Vec<_> = connections
        .iter()
        .map(|connection| {
            here.block_on(async {
                let until = tokio::time::Instant::now() + Duration::from_secs(5);
                // whatever is sent next, and once more should it be lost or the node answer others first
                while tokio::time::Instant::now() < until && connection.close_reason().is_none() {
                    let _ = connection.send_datagram(vec![0; 100].into());
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                connection.close_reason()
            })
        })
        .collect();
    let reset = ended.iter().filter(|reason| **reason == Some(quinn::ConnectionError::Reset)).count();
    assert_eq!(reset, connections.len(), "{ended:?}");
}
