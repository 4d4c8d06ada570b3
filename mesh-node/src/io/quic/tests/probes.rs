//! A peer that is let in, and sends probes that it should not.

use bytes::Bytes;
use mesh_proto::frame::{FrameHeader, probe_frame};
use mesh_proto::liveness::{Probe, State};
use quinn::Connection;

use super::*;
use crate::control::event::ConnId;
use crate::control::host::lease::{Lease, Term};
use crate::control::liveness::{Change, ProbeParams};
use crate::io::liveness::beside::Sending;
use crate::io::liveness::{Prober, stray_probes};
use crate::io::quic::aside::Aside;
use crate::io::quic::hearing::Hearing;
use crate::tunnel::lane::keys::Side;
use crate::tunnel::lane::probe::{EXAMPLE, lane};

/// Our number of the session: the tunnel's first.
const OURS: u32 = 1;

fn probe(state: State, to: u32) -> Probe {
    Probe { state, your_discriminator: to, ..EXAMPLE }
}

/// Both ends of a tunnel: a peer that does what it likes, and ours with its node.
async fn tunnel() -> (Connection, Connection, (Node, Node)) {
    let ca = ca("lab");
    let (a, mut b) = (Spec::good("ph1", &ca).start(), Spec::good("ph2", &ca).start());
    let theirs = raw(&b, Some(&a)).await;
    let (mut send, recv) = theirs.open_bi().await.unwrap();
    send.write_all(&Message::Hello(a.context.hello.clone()).encode()).await.unwrap();
    let Event::Up { connection, .. } = b.event().await else { panic!("no tunnel") };
    // their end of the control stream stays open
    std::mem::forget((send, recv));
    (theirs, connection, (a, b))
}

/// Probes this connection by the number, and reads from it all there is. `begin` is what the thread does first.
fn probing(
    number: u32,
    connection: &Connection,
    begin: fn(),
) -> (ConnId, Prober, Aside, mpsc::Receiver<Event>) {
    let (events_tx, events) = mpsc::channel(16);
    let prober = Prober::start(events_tx, Arc::new(Hearing::new(None, None)), begin).unwrap();
    let conn = ConnId(u64::from(number));
    let aside = Aside::new(conn, prober.clone());
    prober.open(conn, connection.clone(), aside.heard.clone());
    (conn, prober, aside, events)
}

/// What the control loop is told within so long.
async fn told(events: &mut mpsc::Receiver<Event>, within: Duration) -> Option<Change> {
    match tokio::time::timeout(within, events.recv()).await.ok()?? {
        Event::Input(Input::Liveness { change, .. }) => Some(change),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn probes_for_another_session_are_counted_and_are_no_probes_of_this_one() {
    let (_theirs, ours, _nodes) = tunnel().await;
    let (conn, prober, aside, mut events) = probing(OURS, &ours, || {});
    let patient = ProbeParams { interval: Duration::from_millis(200), multiplier: 3 };
    prober.want([(conn, patient)].into());
    let take = |probe: Probe| {
        assert!(aside.took(&ours, &Bytes::copy_from_slice(&probe_frame(&probe.encode()))));
    };
    take(probe(State::Down, OURS));
    take(probe(State::Init, OURS));
    assert_eq!(told(&mut events, Duration::from_secs(5)).await, Some(Change::Alive));
    let before = stray_probes();
    for state in State::ALL {
        take(probe(state, OURS + 1));
    }
    let mut passed = Duration::ZERO;
    let silent = loop {
        // they answer nothing; that a frame has come at all is noted by who reads the connection
        take(probe(State::Up, OURS + 1));
        passed += Duration::from_millis(50);
        if let Some(change) = told(&mut events, Duration::from_millis(50)).await {
            break change;
        }
        assert!(passed < Duration::from_secs(5), "they keep a silent peer alive");
    };
    assert!(matches!(silent, Change::Silent(for_) if for_ >= Duration::from_millis(600)), "{silent:?}");
    assert!(stray_probes() >= before + 5);
}

#[tokio::test]
async fn a_malformed_probe_is_left_to_the_packet_path_which_counts_it_as_a_bad_frame() {
    let (_theirs, ours, _nodes) = tunnel().await;
    let (_, _prober, aside, mut events) = probing(1, &ours, || {});
    let good = probe_frame(&probe(State::Down, 0).encode());
    let mut cases: Vec<Vec<u8>> =
        vec![good[..good.len() - 1].to_vec(), [&good[..], &[0]].concat(), vec![0, 8, 1]];
    // version, flags, multiplier, length, the sender's number
    for (at, value) in [(2, 0x40), (3, 0x41), (4, 0), (5, 25), (0, 1)] {
        let mut bytes = good.to_vec();
        bytes[at] = value;
        cases.push(bytes);
    }
    let mut nobody = good.to_vec();
    nobody[6..10].fill(0);
    cases.push(nobody);
    for frame in cases {
        assert!(!aside.took(&ours, &Bytes::copy_from_slice(&frame)), "{frame:02x?}");
        assert!(FrameHeader::decode(&frame).is_err(), "counted as bad_frame: {frame:02x?}");
    }
    assert_eq!(told(&mut events, Duration::from_millis(300)).await, None);
}

#[tokio::test]
async fn a_peer_that_probes_us_unasked_is_answered_and_a_flood_of_it_stops_nobody() {
    let (theirs, ours, _nodes) = tunnel().await;
    let (_, _prober, aside, _events) = probing(OURS, &ours, || {});
    let frame = Bytes::copy_from_slice(&probe_frame(&probe(State::Down, 0).encode()));
    for _ in 0..20_000 {
        assert!(aside.took(&ours, &frame));
    }
    let answered = tokio::time::timeout(Duration::from_secs(5), theirs.read_datagram()).await;
    let answer = answered.unwrap().unwrap();
    let answer = Probe::decode(mesh_proto::frame::probe(&answer).unwrap()).unwrap();
    assert_eq!((answer.state, answer.your_discriminator), (State::Init, 9));
    assert_eq!(answer.my_discriminator, OURS);
}

#[tokio::test]
async fn a_probe_that_says_nothing_new_keeps_the_peer_alive_without_the_thread() {
    let (_theirs, ours, _nodes) = tunnel().await;
    let (conn, prober, aside, mut events) = probing(OURS, &ours, || {});
    let interval = Duration::from_millis(100);
    prober.want([(conn, ProbeParams { interval, multiplier: 3 })].into());
    let take = |state| {
        assert!(aside.took(&ours, &Bytes::copy_from_slice(&probe_frame(&probe(state, OURS).encode()))));
    };
    [State::Down, State::Init].into_iter().for_each(take);
    assert_eq!(told(&mut events, Duration::from_secs(5)).await, Some(Change::Alive));
    take(State::Up);
    tokio::time::sleep(interval / 2).await;
    for _ in 0..10 {
        (0..50).for_each(|_| take(State::Up));
        assert_eq!(aside.heard.waiting(), 0, "they do not wait for the thread");
        assert_eq!(told(&mut events, interval / 2).await, None, "and prove life");
    }
    take(State::Down);
    let news = told(&mut events, interval).await;
    assert!(matches!(news, Some(Change::Silent(_))), "{news:?}");
    [State::Down, State::Up].into_iter().for_each(take);
    assert_eq!(told(&mut events, interval).await, Some(Change::Alive), "and so is the same probe after it");
}

#[tokio::test]
async fn of_a_flood_no_more_waits_than_its_bound() {
    let (_theirs, ours, _nodes) = tunnel().await;
    let (_, _prober, aside, _events) = probing(1, &ours, || std::thread::sleep(Duration::from_millis(500)));
    let frame = Bytes::copy_from_slice(&probe_frame(&probe(State::Down, 0).encode()));
    for _ in 0..1000 {
        assert!(aside.took(&ours, &frame), "it is a probe, and no packet");
    }
    let waiting = aside.heard.waiting();
    assert!((16..=64).contains(&waiting), "{waiting}");
    let end = std::time::Instant::now() + Duration::from_secs(5);
    while aside.heard.waiting() > 0 {
        assert!(std::time::Instant::now() < end, "they are never taken");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The thread of the probes runs, and the runtime that reads the socket does not until the detection time is just over.
async fn alarmed_by_a_pause() -> bool {
    let (_theirs, ours, _nodes) = tunnel().await;
    let (conn, prober, aside, mut events) = probing(OURS, &ours, || {});
    let interval = Duration::from_millis(200);
    prober.want([(conn, ProbeParams { interval, multiplier: 3 })].into());
    let take = move |state| {
        aside.heard.now();
        assert!(aside.took(&ours, &Bytes::copy_from_slice(&probe_frame(&probe(state, OURS).encode()))));
    };
    take(State::Down);
    take(State::Init);
    assert_eq!(told(&mut events, Duration::from_secs(5)).await, Some(Change::Alive));
    take(State::Up);
    // comes in time, as a packet to a socket that nobody reads
    let reader = tokio::spawn(async move {
        tokio::time::sleep(interval).await;
        take(State::Up);
    });
    tokio::task::yield_now().await;
    std::thread::sleep(interval * 3 + Duration::from_millis(10));
    reader.await.unwrap();
    told(&mut events, interval).await.is_some()
}

#[tokio::test]
async fn what_has_come_and_was_not_read_is_no_silence() {
    for _ in 0..5 {
        // a machine so busy that the pause becomes a long one proves nothing
        if !alarmed_by_a_pause().await {
            return;
        }
    }
    panic!("a pause of our own is taken for the peer's silence");
}

#[tokio::test]
async fn an_egress_node_whose_control_loop_hangs_tells_its_peers_until_it_turns_again() {
    let (theirs, ours, _nodes) = tunnel().await;
    let (conn, prober, aside, mut events) = probing(OURS, &ours, || {});
    prober.want([(conn, ProbeParams { multiplier: 200, ..ProbeParams::DEFAULT })].into());
    prober.keep(Lease { marks: vec![0x5000_0000], term: Term::default() });
    for state in [State::Down, State::Init, State::Up] {
        assert!(aside.took(&ours, &Bytes::copy_from_slice(&probe_frame(&probe(state, OURS).encode()))));
    }
    let end = std::time::Instant::now() + Duration::from_secs(10);
    let until = async |wanted: State| loop {
        assert!(std::time::Instant::now() < end, "it does not come to say {wanted:?}");
        let frame = tokio::time::timeout(Duration::from_secs(5), theirs.read_datagram()).await;
        let frame = frame.expect("it is never silent").unwrap();
        let said = Probe::decode(mesh_proto::frame::probe(&frame).unwrap()).unwrap();
        if said.state == wanted {
            return;
        }
    };
    until(State::Up).await;
    let question = loop {
        match events.recv().await {
            Some(Event::Pulse(question)) => break question,
            event => assert!(event.is_some()),
        }
    };
    until(State::Down).await;
    question.answer();
    until(State::Up).await;
}

#[tokio::test]
async fn probes_travel_beside_the_connection_once_both_sides_can() {
    let ca = ca("lab");
    let (mut a, mut b) = (Spec::good("ph1", &ca).start(), Spec::good("ph2", &ca).start());
    a.dial(b.address(), Some("ph2"));
    let mut ends = Vec::new();
    for (node, side) in [(&mut a, Side::Client), (&mut b, Side::Server)] {
        let Event::Up { connection, secrets, writer, .. } = node.event().await else { panic!("no tunnel") };
        let lane = lane(secrets.unwrap().probes.bytes(), side);
        let (conn, prober, aside, events) = probing(OURS, &connection, || {});
        let receivers = node.socket.probes();
        let receiving = receivers.receive(lane.id, lane.opener, conn, aside.heard.clone(), prober.clone());
        prober.beside(conn, Sending::new(node.socket.socket(), &connection, lane.sealer));
        prober.want([(conn, ProbeParams::DEFAULT)].into());
        ends.push((connection, events, receiving.unwrap(), (prober, aside, writer)));
    }
    for (_, events, ..) in &mut ends {
        assert_eq!(told(events, Duration::from_secs(5)).await, Some(Change::Alive));
    }
    // what was under way before either had heard the other's
    tokio::time::sleep(Duration::from_millis(200)).await;
    let frames =
        |ends: &[(Connection, _, _, _)]| ends.iter().map(|end| end.0.stats().frame_tx.datagram).sum::<u64>();
    let before = frames(&ends);
    for (_, events, ..) in &mut ends {
        assert_eq!(told(events, Duration::from_millis(500)).await, None, "they go on");
    }
    assert_eq!(frames(&ends), before, "by the connection");
    let (_, mut events, receiving, _rest) = ends.remove(0);
    drop(receiving);
    let silent = told(&mut events, Duration::from_secs(5)).await;
    assert!(matches!(silent, Some(Change::Silent(_))), "{silent:?}");
}
