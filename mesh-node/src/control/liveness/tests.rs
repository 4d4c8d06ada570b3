mod table;

use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng};

use super::*;

#[expect(clippy::disallowed_methods, reason = "an arbitrary origin of virtual time")]
fn origin() -> Instant {
    Instant::now()
}

const MS: Duration = Duration::from_millis(1);

#[test]
fn every_state_goes_where_the_rfc_says_for_every_state_heard() {
    use State::{AdminDown, Down, Init, Up};
    // rows: local; columns: AdminDown, Down, Init, Up heard
    let table = [
        (AdminDown, [AdminDown, AdminDown, AdminDown, AdminDown]),
        (Down, [Down, Init, Up, Down]),
        (Init, [Down, Init, Up, Up]),
        (Up, [Down, Down, Up, Up]),
    ];
    for (local, row) in table {
        for (heard, expected) in State::ALL.into_iter().zip(row) {
            assert_eq!(next_state(local, heard), expected, "{local:?} hears {heard:?}");
        }
    }
}

/// Two sessions, and a path between them that loses what `lost` says.
struct Pair {
    now: Instant,
    ends: [Session; 2],
    changes: [Vec<(Duration, Change)>; 2],
    rng: SmallRng,
    start: Instant,
}

impl Pair {
    fn new(a: ProbeParams, b: ProbeParams, seed: u64) -> Self {
        let now = origin();
        Self {
            now,
            ends: [Session::new(7, a, now), Session::new(9, b, now)],
            changes: [Vec::new(), Vec::new()],
            rng: SmallRng::seed_from_u64(seed),
            start: now,
        }
    }

    /// Step by step of 1 ms.
    fn run(&mut self, time: Duration, mut lost: impl FnMut(usize, Duration) -> bool) {
        let end = self.now + time;
        while self.now < end {
            self.now += MS;
            let at = self.now - self.start;
            for from in 0..2 {
                if let Some(change) = self.ends[from].handle_timeout(self.now) {
                    self.changes[from].push((at, change));
                }
                let Some(probe) = self.ends[from].poll_transmit(self.now, &mut self.rng) else {
                    continue;
                };
                if lost(from, at) {
                    continue;
                }
                let probe = Probe::decode(&probe.encode()).unwrap();
                if let Some(change) = self.ends[1 - from].handle_probe(&probe, self.now) {
                    self.changes[1 - from].push((at, change));
                }
            }
        }
    }

    fn states(&self) -> [State; 2] {
        [self.ends[0].state(), self.ends[1].state()]
    }
}

#[test]
fn two_ends_agree_within_a_few_probes_and_silence_is_seen_in_time() {
    let params = ProbeParams::DEFAULT;
    let mut pair = Pair::new(params, params, 1);
    pair.run(20 * MS, |_, _| false);
    assert_eq!(pair.states(), [State::Up, State::Up]);
    pair.run(500 * MS, |_, _| false);
    assert_eq!(pair.changes.each_ref().map(Vec::len), [1, 1], "{:?}", pair.changes);
    // one end dies
    let died = pair.now - pair.start;
    pair.run(400 * MS, |from, _| from == 1);
    let (at, change) = pair.changes[0][1];
    assert!((100 * MS..=160 * MS).contains(&(at - died)), "{at:?} after {died:?}");
    assert!(matches!(change, Change::Silent(silent) if silent >= 150 * MS));
    // the other end is told that it is not heard
    assert!(matches!(pair.changes[1][1].1, Change::Silent(_)), "{:?}", pair.changes[1]);
    pair.run(100 * MS, |_, _| false);
    assert_eq!(pair.states(), [State::Up, State::Up], "and back");
}

#[test]
fn copies_of_probes_that_come_late_change_nothing_and_do_not_hide_a_new_beginning() {
    let mut pair = Pair::new(ProbeParams::DEFAULT, ProbeParams::DEFAULT, 1);
    let mut copies = Vec::new();
    for _ in 0..300 {
        pair.now += MS;
        let (now, late) = (pair.now, pair.now + 70 * MS);
        for from in 0..2 {
            let Some(probe) = pair.ends[from].poll_transmit(now, &mut pair.rng) else { continue };
            pair.changes[1 - from]
                .extend(pair.ends[1 - from].handle_probe(&probe, now).map(|change| (MS, change)));
            copies.push((late, 1 - from, probe));
        }
        while let Some((_, to, probe)) = copies.first().copied().filter(|(at, ..)| *at <= now) {
            copies.remove(0);
            let told = pair.ends[to].handle_probe(&probe, now);
            assert_eq!(told, None, "{probe:?}");
        }
    }
    assert_eq!(pair.changes.each_ref().map(Vec::len), [1, 1], "{:?}", pair.changes);
    // one end begins anew, and its farewell is lost
    pair.ends[0] = Session::new(8, ProbeParams::DEFAULT, pair.now);
    pair.run(200 * MS, |_, _| false);
    assert_eq!(pair.states(), [State::Up, State::Up], "{:?}", pair.changes);
}

#[test]
fn the_slower_of_two_wishes_counts() {
    let slow = ProbeParams { interval: 200 * MS, multiplier: 2 };
    let mut pair = Pair::new(ProbeParams::DEFAULT, slow, 1);
    pair.run(500 * MS, |_, _| false);
    let mut sent = 0;
    pair.run(1000 * MS, |from, _| {
        sent += usize::from(from == 0);
        false
    });
    assert!((5..=7).contains(&sent), "at most one in 150 to 200 ms: {sent}");
    assert_eq!(pair.changes.each_ref().map(Vec::len), [1, 1]);
    // three missing of the slow one's, at its pace
    let died = pair.now - pair.start;
    pair.run(1000 * MS, |from, _| from == 1);
    let (at, _) = pair.changes[0][1];
    assert!((400 * MS..=610 * MS).contains(&(at - died)), "{:?}", at - died);
}

#[test]
fn a_node_that_did_not_hear_blames_nobody_until_it_has_been_deaf_for_as_long_again() {
    let mut pair = Pair::new(ProbeParams::DEFAULT, ProbeParams::DEFAULT, 1);
    pair.run(100 * MS, |_, _| false);
    let session = &pair.ends[0];
    let (due, never) = (session.detection_deadline().unwrap(), pair.start);
    let judge = |read_by, deaf_until, now| session.judge(HeardBy { read_by, deaf_until }, now);
    let read = Some(due);
    assert_eq!(judge(read, never, due - MS), None);
    assert_eq!(judge(read, never, due), Some(Judgement::Silent));
    assert_eq!(judge(None, never, due), Some(Judgement::Unread));
    assert_eq!(judge(Some(due - MS), never, due + 140 * MS), Some(Judgement::Unread));
    assert_eq!(judge(None, never, due + 150 * MS), Some(Judgement::Silent), "it has to decide some day");
    let deaf_until = due - 10 * MS;
    assert_eq!(judge(read, deaf_until, due + 39 * MS), Some(Judgement::Deaf), "the next probe is on its way");
    assert_eq!(judge(read, deaf_until, due + 40 * MS), Some(Judgement::Silent));
    assert_eq!(judge(read, due + 140 * MS, due + 150 * MS), Some(Judgement::Silent), "deaf all the time");
    assert_eq!(judge(read, due - 150 * MS, due), Some(Judgement::Silent), "before it was heard last");
}

#[test]
fn who_wishes_for_a_probe_an_hour_is_missed_all_the_same() {
    let mut pair = Pair::new(ProbeParams::DEFAULT, ProbeParams::DEFAULT, 1);
    pair.run(100 * MS, |_, _| false);
    let slow = Probe { desired_min_tx_us: u32::MAX, ..pair.ends[1].probe() };
    pair.ends[0].handle_probe(&slow, pair.now);
    assert!(pair.ends[0].handle_timeout(pair.now + Duration::from_secs(30)).is_some());
}

#[test]
fn only_who_is_down_may_not_know_whom_it_talks_to() {
    let session = Session::new(7, ProbeParams::DEFAULT, origin());
    let to = |state, your_discriminator| {
        session.is_for_us(&Probe { state, your_discriminator, ..session.probe() })
    };
    assert!(to(State::Down, 0) && to(State::AdminDown, 0) && to(State::Up, 7));
    assert!(!to(State::Up, 0) && !to(State::Init, 0) && !to(State::Down, 8));
}

#[test]
fn traffic_proves_life_where_probes_are_lost() {
    let mut pair = Pair::new(ProbeParams::DEFAULT, ProbeParams::DEFAULT, 1);
    pair.run(100 * MS, |_, _| false);
    for _ in 0..50 {
        pair.run(20 * MS, |_, _| true);
        let now = pair.now;
        pair.ends.iter_mut().for_each(|end| end.handle_traffic(now));
    }
    assert_eq!(pair.changes.each_ref().map(Vec::len), [1, 1], "{:?}", pair.changes);
    pair.run(200 * MS, |_, _| true);
    assert_eq!(pair.states(), [State::Down, State::Down]);
}

#[test]
fn who_takes_leave_is_not_taken_for_dead() {
    let mut pair = Pair::new(ProbeParams::DEFAULT, ProbeParams::DEFAULT, 1);
    pair.run(100 * MS, |_, _| false);
    let last = pair.ends[0].farewell();
    assert_eq!(pair.ends[1].handle_probe(&last, pair.now), Some(Change::Unknown));
    assert_eq!(pair.ends[1].handle_timeout(pair.now + 10_000 * MS), None);
}

#[test]
fn a_probe_for_another_session_changes_nothing() {
    let mut pair = Pair::new(ProbeParams::DEFAULT, ProbeParams::DEFAULT, 1);
    pair.run(100 * MS, |_, _| false);
    let foreign = Probe { your_discriminator: 8, state: State::Down, ..pair.ends[1].farewell() };
    assert_eq!(pair.ends[0].handle_probe(&foreign, pair.now), None);
    assert_eq!(pair.ends[0].state(), State::Up);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Never two of three in a row: no alarm; all of them: an alarm in time. For any jitter.
    #[test]
    fn single_losses_raise_no_alarm(seed: u64) {
        let mut pair = Pair::new(ProbeParams::DEFAULT, ProbeParams::DEFAULT, seed);
        pair.run(100 * MS, |_, _| false);
        let mut last = [false; 2];
        let mut chance = SmallRng::seed_from_u64(seed);
        pair.run(5000 * MS, |from, _| {
            last[from] = !last[from] && chance.random_bool(0.3);
            last[from]
        });
        prop_assert_eq!(pair.changes.each_ref().map(Vec::len), [1, 1]);
        let died = pair.now - pair.start;
        pair.run(151 * MS, |_, _| true);
        prop_assert_eq!(pair.changes.each_ref().map(Vec::len), [2, 2]);
        prop_assert!(pair.changes[0][1].0 - died <= 151 * MS);
    }

    /// Whatever is heard in whatever order: no panic, and never up without having heard Init or Up.
    #[test]
    fn any_sequence_of_probes_is_borne(
        heard in proptest::collection::vec((0usize..4, any::<u8>(), any::<u32>(), any::<u32>(), any::<u32>(), 0u64..400), 0..60)
    ) {
        let start = origin();
        let mut now = start;
        let mut session = Session::new(7, ProbeParams::DEFAULT, now);
        let mut rng = SmallRng::seed_from_u64(1);
        for (state, multiplier, mine, tx, rx, wait) in heard {
            now += Duration::from_millis(wait);
            session.handle_timeout(now);
            let _ = session.poll_transmit(now, &mut rng);
            let before = session.state();
            let probe = Probe {
                state: State::ALL[state],
                diagnostic: Diagnostic::None,
                multiplier: multiplier.max(1),
                my_discriminator: mine.max(1),
                your_discriminator: 7,
                desired_min_tx_us: tx,
                required_min_rx_us: rx,
            };
            session.handle_probe(&probe, now);
            if session.state() == State::Up && before != State::Up {
                prop_assert!(matches!(probe.state, State::Init | State::Up));
            }
            prop_assert!(session.poll_timeout() >= start);
        }
    }
}
