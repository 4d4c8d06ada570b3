use super::*;
use crate::forward::counters::{Direction, LaneCount};
use crate::forward::fib::PeerIx;
use crate::io::quic::tests::shared::{Joined, Stranger, joined};
use crate::tunnel::lane::keys::Lane;
use crate::tunnel::lane::{HEADER, TAG, probe};
use crate::tunnel::{Carrier, OutBatch, Sent};

const SHORT: Duration = Duration::from_millis(200);

fn id(number: u8) -> LaneId {
    LaneId::claimed(&[0x40, 0x80, 0, 0, 0, number, 0, 0, 0]).unwrap()
}

/// A lane's two ends.
fn lane() -> (crate::tunnel::lane::seal::Sealer, Arc<LaneEnd>) {
    #[derive(Debug)]
    struct Nowhere;
    impl Carrier for Nowhere {
        fn send(&self, batch: &mut OutBatch) -> Sent {
            batch.clear();
            Sent::default()
        }
        fn max_frame(&self) -> usize {
            1400
        }
    }
    let (theirs, ours) = (probe::lane(&[7; 32], Side::Client), probe::lane(&[7; 32], Side::Server));
    let tunnel = Tunnel::new(PeerIx(1), vec![], Arc::new(Nowhere), Arc::default());
    (theirs.sealer, Arc::new(LaneEnd::new(Arc::new(tunnel), Arc::default(), ours.opener)))
}

#[tokio::test]
async fn a_lane_is_received_until_the_peer_has_changed_to_the_next_and_a_while_longer() {
    let table = Arc::<LaneTable>::default();
    let (_, before) = lane();
    let (mut sealer, next) = lane();
    let before = Arc::into_inner(before).unwrap();
    assert!(table.add(id(1), before).is_some());
    let mut endings = Endings::new(SHORT);
    endings.later(&table, id(1), next.clone());
    tokio::time::sleep(4 * SHORT).await;
    assert!(table.load().contains_key(&id(1)), "it still sends on the former one");
    let mut packet = probe::seal(&mut sealer, &probe::EXAMPLE).unwrap();
    next.opener().open(&mut packet).unwrap();
    tokio::time::sleep(SHORT / 2).await;
    assert!(table.load().contains_key(&id(1)), "what is late still counts");
    tokio::time::sleep(4 * SHORT).await;
    assert!(!table.load().contains_key(&id(1)));
}

#[test]
fn lanes_that_follow_one_another_too_fast_are_a_breach() {
    let start = now().mono;
    let mut pace = Pace::default();
    for at in [start, start + Duration::from_secs(1)] {
        (0..LANES_PER_SECOND).for_each(|_| pace.next(at).unwrap());
        assert!(pace.next(at).is_err());
    }
}

#[tokio::test]
async fn a_peer_that_floods_lanes_makes_no_more_wait_than_can_be_received() {
    let table = Arc::<LaneTable>::default();
    let (_, next) = lane();
    let mut endings = Endings::new(SHORT);
    for _ in 0..1000 {
        endings.later(&table, id(0), next.clone());
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    assert!(alive() < RECEIVED, "{}", alive());
    drop(endings);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(alive(), 0);
}

/// One end of a connection with lanes, and what the control loop has of it.
struct Seat {
    lanes: Lanes,
    tunnel: Arc<Tunnel>,
    written: mpsc::Receiver<Message>,
    _events: mpsc::Receiver<Event>,
    end: Joined,
}

const CONN: ConnId = ConnId(1);

impl Seat {
    fn new(mut end: Joined, side: Side) -> Self {
        let (events, events_rx) = mpsc::channel(16);
        let wire = end.on.wire.clone();
        let mut lanes = Lanes::new(Some(LaneSetup { wire, events, packets: 1 << 20 }));
        let (writer, written) = mpsc::channel(16);
        lanes.opened(CONN, side, end.secret.take(), &writer, Arc::default());
        let carrier = lanes.carrier(CONN, &end.connection, &Arc::default()).unwrap();
        let tunnel = Arc::new(Tunnel::new(PeerIx(0), vec![], carrier, Arc::default()));
        Self { lanes, tunnel, written, _events: events_rx, end }
    }

    fn received(&self) -> usize {
        self.end.on.wire.table.load().len()
    }

    /// Packets of the peer, of unknown lanes, and how the peer's lanes went.
    fn counts(&self) -> (u64, u64, LaneCount) {
        let counters = self.tunnel.counters();
        let packets = counters.read(Direction::Inbound).packets;
        (packets, self.end.on.counters.snapshot().unknown_lane, counters.read_lane())
    }
}

/// Tells each what the other has written, until both are silent.
fn talk(seats: &mut [Seat; 2]) {
    loop {
        let mut silent = true;
        for (from, to) in [(0, 1), (1, 0)] {
            while let Ok(message) = seats[from].written.try_recv() {
                seats[to].lanes.message(CONN, &message).unwrap();
                silent = false;
            }
        }
        if silent {
            return;
        }
    }
}

/// Both ends with their first lane, and the dialer's lanes once more, in the hands of one who has the secret.
async fn seats() -> ([Seat; 2], Ratchet) {
    let [dialer, acceptor] = joined().await;
    let offers = [our_offer(), our_offer()].map(|offer| Message::LaneOffer(offer).encode()).concat();
    let cipher = Cipher::agreed(&our_offer().ciphers, &our_offer().ciphers).unwrap();
    let leaked = Ratchet::new(dialer.leaked.bytes(), &offers, cipher, Side::Client);
    let mut seats = [Seat::new(dialer, Side::Client), Seat::new(acceptor, Side::Server)];
    talk(&mut seats);
    for seat in &mut seats {
        seat.lanes.readable(CONN, seat.tunnel.clone()).unwrap();
    }
    talk(&mut seats);
    (seats, leaked)
}

/// Whether the acceptor opens the next packet of a lane; if not, it is of an unknown lane, and nothing but that.
async fn opens(seat: &Seat, lane: &mut Lane, stranger: &Stranger) -> bool {
    let mut packet = [&[0; HEADER][..], b"\x30\x00\x00a packet", &[0; TAG]].concat();
    lane.sealer.seal(&mut packet).unwrap();
    let (packets, unknown, lanes) = seat.counts();
    stranger.send(&packet, seat.end.address());
    for _ in 0..500 {
        match seat.counts() {
            now if now == (packets + 1, unknown, lanes) => return true,
            now if now == (packets, unknown + 1, lanes) => return false,
            now => assert_eq!(now, (packets, unknown, lanes)),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("lane {}: the packet is not seen", lane.number);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_three_newest_lanes_are_received_and_packets_of_older_ones_are_of_unknown_lanes() {
    let (mut seats, mut leaked) = seats().await;
    let stranger = Stranger::new();
    let mut lanes = Vec::new();
    for newest in 0..6 {
        lanes.push(leaked.next_lane());
        for lane in &mut lanes {
            let expected = lane.number + RECEIVED as u32 > newest;
            assert_eq!(opens(&seats[1], lane, &stranger).await, expected, "{} of {newest}", lane.number);
        }
        assert!(seats.iter().all(|seat| seat.received() == RECEIVED.min(newest as usize + 1)));
        // now the one, now the other begins with the next
        seats[newest as usize % 2].lanes.half_used(CONN, newest).unwrap();
        talk(&mut seats);
    }
    assert_eq!(stranger.answer(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_of_a_connection_that_has_ended_are_of_unknown_lanes() {
    let (mut seats, mut leaked) = seats().await;
    let stranger = Stranger::new();
    seats[0].lanes.half_used(CONN, 0).unwrap();
    talk(&mut seats);
    let mut lanes = [leaked.next_lane(), leaked.next_lane()];
    for lane in &mut lanes {
        assert!(opens(&seats[1], lane, &stranger).await);
    }
    seats[1].lanes.closed(CONN);
    for lane in &mut lanes {
        assert!(!opens(&seats[1], lane, &stranger).await);
    }
    // what is still said of it makes no lane
    seats[0].lanes.half_used(CONN, 1).unwrap();
    talk(&mut seats);
    seats[1].lanes.half_used(CONN, 1).unwrap();
    assert_eq!(seats[1].received(), 0);
    assert_eq!(stranger.answer(), None);
}
