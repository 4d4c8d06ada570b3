use mesh_proto::frame::FrameHeader;

use super::*;
use crate::forward::counters::{Direction, LaneCount, Worker};
use crate::forward::fib::PeerIx;
use crate::io::quic::tests::shared::{Joined, Stranger, joined};
use crate::tunnel::lane::keys::Lane;
use crate::tunnel::lane::{HEADER, TAG, probe};
use crate::tunnel::{Carrier, OutBatch, Sent, Turn};

const SHORT: Duration = Duration::from_millis(200);

fn id(number: u8) -> LaneId {
    LaneId::claimed(&[0x40, 0x80, 0, 0, 0, number, 0, 0, 0]).unwrap()
}

/// A lane's two ends.
fn lane() -> (crate::tunnel::lane::seal::Sealer, Arc<LaneEnd>) {
    #[derive(Debug)]
    struct Nowhere;
    impl Carrier for Nowhere {
        fn send(&self, _: Turn, batch: &mut OutBatch) -> Sent {
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
    events: mpsc::Receiver<Event>,
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
        Self { lanes, tunnel, written, events: events_rx, end }
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
    seats_of([1, 1]).await
}

/// The same with so many workers each; of the first worker, what is leaked.
async fn seats_of(workers: [u8; 2]) -> ([Seat; 2], Ratchet) {
    let [dialer, acceptor] = joined(workers).await;
    let offer = our_offer(&dialer.on.wire);
    let offers =
        [&dialer, &acceptor].map(|end| Message::LaneOffer(our_offer(&end.on.wire)).encode()).concat();
    let cipher = Cipher::agreed(&offer.ciphers, &offer.ciphers).unwrap();
    let leaked = Ratchet::new(dialer.leaked.bytes(), &offers, 0, cipher, Side::Client);
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
        seats[newest as usize % 2].lanes.half_used(CONN, 0, newest).unwrap();
        talk(&mut seats);
    }
    assert_eq!(stranger.answer(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_of_a_connection_that_has_ended_are_of_unknown_lanes() {
    let (mut seats, mut leaked) = seats().await;
    let stranger = Stranger::new();
    seats[0].lanes.half_used(CONN, 0, 0).unwrap();
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
    seats[0].lanes.half_used(CONN, 0, 1).unwrap();
    talk(&mut seats);
    seats[1].lanes.half_used(CONN, 0, 1).unwrap();
    assert_eq!(seats[1].received(), 0);
    assert_eq!(stranger.answer(), None);
}

impl Seat {
    /// Sends a frame by one of its workers.
    fn send(&self, worker: u8) {
        let mut batch = self.tunnel.batch(OutBatch::default());
        batch.push(FrameHeader { network: 0, checksum_partial: false }, b"a packet", b"");
        let sent = self.tunnel.send(Turn::alone(worker), &mut batch);
        assert_eq!((sent.packets, batch.len()), (1, 0));
    }

    /// Batches that its lanes threads have had, and packets of the peer in all.
    fn came(&self) -> (Vec<u64>, u64) {
        let counts = self.end.on.counters.snapshot();
        let of = |worker| counts.worker(Worker::Lanes(worker)).packets;
        ((0..self.end.on.wire.workers()).map(of).collect(), self.counts().0)
    }

    /// What its packet threads tell reaches its peer.
    async fn tells(&mut self, to: &mut Seat) {
        let told = tokio::time::timeout(Duration::from_secs(5), self.events.recv()).await;
        let Ok(Some(Event::LaneHeard { conn, worker })) = told else { panic!("nothing is told: {told:?}") };
        self.lanes.heard(conn, worker).unwrap();
        while let Ok(message) = self.written.try_recv() {
            to.lanes.message(CONN, &message).unwrap();
        }
    }
}

async fn until(mut condition: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it does not come to be");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_s_lane_goes_between_the_first_ports_until_the_peer_has_heard_it_between_its_own() {
    let (seats, _) = seats_of([2, 2]).await;
    let [mut a, mut b] = seats;
    assert_eq!((a.received(), b.received()), (2, 2), "a lane for each");
    let of_second = |of: &Seat| {
        let lanes = of.end.on.wire.table.load();
        let lane = lanes.values().find(|lane| lane.worker() == 1).unwrap();
        lane.opener().is_used()
    };
    a.send(1);
    until(|| b.came() == (vec![1, 0], 1)).await;
    assert!(of_second(&b) && !of_second(&a));
    b.tells(&mut a).await;
    a.send(1);
    until(|| b.came() == (vec![1, 1], 2)).await;
    a.send(0);
    until(|| b.came() == (vec![2, 1], 3)).await;
    // one way says nothing of the other
    b.send(1);
    until(|| a.came() == (vec![1, 0], 1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_the_peer_does_not_have_share_the_first_one_s_lane() {
    let (seats, _) = seats_of([3, 1]).await;
    let [mut a, b] = seats;
    assert_eq!((a.received(), b.received()), (1, 1));
    for worker in 0..3 {
        a.send(worker);
    }
    until(|| b.came() == (vec![3], 3)).await;
    b.send(0);
    until(|| a.came() == (vec![1, 0, 0], 1)).await;
    assert!(a.events.try_recv().is_err(), "nobody asks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_to_a_further_worker_s_port_and_is_of_no_lane_is_counted_and_answered_by_nothing() {
    let (seats, mut leaked) = seats_of([2, 2]).await;
    let (b, stranger) = (&seats[1], Stranger::new());
    let mut to = b.end.address();
    to.set_port(to.port() + 1);
    let unknown = || b.end.on.counters.snapshot().unknown_lane;
    for (at, datagram) in
        [&[0xc0; 1200][..], &[0x40; 1200], &[0x40, 0x80, 1], &[0xff; 1200]].iter().enumerate()
    {
        stranger.send(datagram, to);
        until(|| unknown() == at as u64 + 1).await;
    }
    assert_eq!(stranger.answer(), None);
    // a lane is taken wherever it comes
    let mut packet = [&[0; HEADER][..], b"\x30\x00\x00a packet", &[0; TAG]].concat();
    leaked.next_lane().sealer.seal(&mut packet).unwrap();
    stranger.send(&packet, to);
    until(|| b.came() == (vec![0, 1], 1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offer_of_no_worker_or_of_too_many_and_a_lane_of_one_that_not_both_have_are_breaches() {
    for (workers, fine) in [(0, false), (1, true), (MAX_WORKERS, true), (MAX_WORKERS + 1, false)] {
        let [dialer, _acceptor] = joined([1, 1]).await;
        let mut seat = Seat::new(dialer, Side::Client);
        let offer = LaneOffer { workers, ..our_offer(&seat.end.on.wire) };
        assert_eq!(seat.lanes.message(CONN, &Message::LaneOffer(offer)).is_ok(), fine, "{workers}");
        if fine {
            let ready = |worker| Message::LaneReady(LaneReady { worker, lane: 0 });
            assert!(seat.lanes.message(CONN, &ready(0)).is_ok());
            assert!(seat.lanes.message(CONN, &ready(1)).is_err());
        }
    }
}
