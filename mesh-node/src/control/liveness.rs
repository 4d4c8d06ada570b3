//! Is the other end of a tunnel alive? BFD in asynchronous mode (RFC 5880): both sides send probes at an interval that both
//! can bear; whoever hears nothing for the detection time says so. Driven by `io::liveness`, which owns the sessions; the
//! verdict comes to `Control` as an input.
//!
//! ```text
//!             Down heard          Init, Up heard
//!   ┌──────┐ ───────────► ┌──────┐ ───────────► ┌────┐
//!   │ Down │              │ Init │              │ Up │
//!   └──────┘ ◄─────────── └──────┘              └────┘
//!      ▲ ▲    expired, AdminDown                   │
//!      │ └─────────────────────────────────────────┘
//!      │       expired, Down or AdminDown heard
//!      └──────► Up, when Init is heard
//! ```
//!
//! Deviates from RFC 5880: probes of a session that is not up are not slowed to one a second (section 6.8.3), since the tunnel
//! is ours and its other end known; what a session wants is fixed for its life, so that there is no poll sequence; each side counts
//! by its own multiplier (section 6.8.4 takes the sender's), so that what an operator writes holds where it is written; and
//! whatever else comes from the peer proves its life as a probe does, so that a full tunnel is not taken for a dead one.

use std::time::{Duration, Instant};

use mesh_proto::liveness::{Diagnostic, Probe, State};
use rand::Rng;

pub use crate::config::ProbeParams;

/// A verdict that has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Both sides hear each other.
    Alive,
    /// It has been silent this long, or has lost us.
    Silent(Duration),
    /// The other side no longer wants to be asked: nothing is known.
    Unknown,
}

/// What the other side said last.
#[derive(Debug, Clone, Copy)]
struct Remote {
    discriminator: u32,
    desired_min_tx: Duration,
    required_min_rx: Duration,
}

/// One tunnel's session.
#[derive(Debug)]
pub struct Session {
    discriminator: u32,
    params: ProbeParams,
    state: State,
    diagnostic: Diagnostic,
    remote: Option<Remote>,
    /// When anything came from the peer last.
    heard: Instant,
    next_tx: Instant,
}

impl Session {
    /// A session that is down; its first probe is due at once.
    pub fn new(discriminator: u32, params: ProbeParams, now: Instant) -> Self {
        Self {
            discriminator: discriminator.max(1),
            params,
            state: State::Down,
            diagnostic: Diagnostic::None,
            remote: None,
            heard: now,
            next_tx: now,
        }
    }

    /// A session that answers a probe of the peer, on the peer's terms.
    pub fn answering(discriminator: u32, probe: &Probe, now: Instant) -> Self {
        let wish = Duration::from_micros(probe.desired_min_tx_us.into());
        let interval = wish.clamp(Duration::from_millis(10), Duration::from_secs(10));
        Self::new(discriminator, ProbeParams { interval, multiplier: probe.multiplier }, now)
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// What it wants.
    pub fn params(&self) -> ProbeParams {
        self.params
    }

    /// Whether a probe is meant for this session, or for any (RFC 5880 section 6.8.6).
    pub fn is_for_us(&self, probe: &Probe) -> bool {
        [0, self.discriminator].contains(&probe.your_discriminator)
    }

    /// A probe from the peer. One that is meant for another session is ignored.
    pub fn handle_probe(&mut self, probe: &Probe, now: Instant) -> Option<Change> {
        if !self.is_for_us(probe) {
            return None;
        }
        self.remote = Some(Remote {
            discriminator: probe.my_discriminator,
            desired_min_tx: Duration::from_micros(probe.desired_min_tx_us.into()),
            required_min_rx: Duration::from_micros(probe.required_min_rx_us.into()),
        });
        let silent = now.saturating_duration_since(self.heard);
        self.heard = self.heard.max(now);
        let next = next_state(self.state, probe.state);
        let change = match (self.state, next) {
            (State::Up, State::Up) => None,
            (_, State::Up) => Some(Change::Alive),
            (State::Up, _) if probe.state == State::AdminDown => Some(Change::Unknown),
            (State::Up, _) => Some(Change::Silent(silent)),
            _ => None,
        };
        if self.state == State::Up && next == State::Down {
            self.diagnostic = Diagnostic::NeighborDown;
        }
        if self.state != next {
            self.state = next;
            // the other side learns of it at once
            self.next_tx = now;
        }
        change
    }

    /// Something else came from the peer.
    pub fn handle_traffic(&mut self, heard: Instant) {
        self.heard = self.heard.max(heard);
    }

    /// The detection time may be over.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<Change> {
        let due = self.detection_deadline()?;
        if now < due {
            return None;
        }
        let was_up = self.state == State::Up;
        self.state = State::Down;
        self.diagnostic = Diagnostic::DetectionTimeExpired;
        self.remote = None;
        self.next_tx = now;
        was_up.then(|| Change::Silent(now.saturating_duration_since(self.heard)))
    }

    /// The probe that is due, if one is.
    pub fn poll_transmit(&mut self, now: Instant, rng: &mut impl Rng) -> Option<Probe> {
        if now < self.next_tx {
            return None;
        }
        // a quarter of jitter, so that sessions do not march in step (RFC 5880 section 6.8.7)
        self.next_tx = now + self.tx_interval().mul_f64(rng.random_range(0.75..=1.0));
        Some(self.probe())
    }

    /// The last probe: the other side must not take our silence for death.
    pub fn farewell(&mut self) -> Probe {
        self.state = State::AdminDown;
        self.diagnostic = Diagnostic::AdministrativelyDown;
        self.probe()
    }

    /// When there is something to do.
    pub fn poll_timeout(&self) -> Instant {
        self.detection_deadline().map_or(self.next_tx, |due| due.min(self.next_tx))
    }

    fn probe(&self) -> Probe {
        let micros = u32::try_from(self.params.interval.as_micros()).unwrap_or(u32::MAX);
        Probe {
            state: self.state,
            diagnostic: self.diagnostic,
            multiplier: self.params.multiplier,
            my_discriminator: self.discriminator,
            your_discriminator: self.remote.map_or(0, |remote| remote.discriminator),
            desired_min_tx_us: micros,
            required_min_rx_us: micros,
        }
    }

    /// The slower of what we would like and what the other side can bear (RFC 5880 section 6.8.7).
    fn tx_interval(&self) -> Duration {
        self.remote.map_or(self.params.interval, |remote| remote.required_min_rx.max(self.params.interval))
    }

    /// When silence becomes a verdict: our multiplier, times the slower of the other side's wish and our limit; compare RFC 5880 section 6.8.4.
    pub fn detection_deadline(&self) -> Option<Instant> {
        let remote = self.remote.filter(|_| matches!(self.state, State::Init | State::Up))?;
        let interval = remote.desired_min_tx.max(self.params.interval);
        self.heard.checked_add(interval * u32::from(self.params.multiplier))
    }
}

/// RFC 5880 section 6.8.6, as a table.
pub fn next_state(local: State, heard: State) -> State {
    use State::{AdminDown, Down, Init, Up};
    match (local, heard) {
        (AdminDown, _) => AdminDown,
        (_, AdminDown) => Down,
        (Down, Down) => Init,
        (Down, Init) => Up,
        (Down, Up) => Down,
        (Init, Down) => Init,
        (Init, Init | Up) => Up,
        (Up, Down) => Down,
        (Up, Init | Up) => Up,
    }
}

#[cfg(test)]
mod tests {
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
}
