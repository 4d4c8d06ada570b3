//! Every state of a session with everything that can happen to it.

use mesh_proto::liveness::State::{self, AdminDown, Down, Init, Up};
use mesh_proto::liveness::{Diagnostic, Probe};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use std::time::{Duration, Instant};

use super::super::{Change, ProbeParams, Session};

const OURS: u32 = 7;
const THEIRS: u32 = 9;
const MS: Duration = Duration::from_millis(1);

/// All that can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// A probe for this session, with the sender's state.
    Probe(State),
    /// The same, of a sender that does not know our number yet.
    Nameless(State),
    /// The same, of a session that has failed before.
    Failed,
    /// The same, of one that begins after the one that was heard.
    Anew,
    /// The same, for another session.
    Stray(State),
    Traffic,
    /// A look at the clock, before the detection time is over.
    Early,
    /// And after.
    Late,
    /// After the time that a first probe has.
    Overdue,
    Transmit,
    Farewell,
}

const EVENTS: [Event; 18] = [
    Event::Probe(AdminDown),
    Event::Probe(Down),
    Event::Probe(Init),
    Event::Probe(Up),
    Event::Nameless(AdminDown),
    Event::Nameless(Down),
    Event::Failed,
    Event::Anew,
    Event::Stray(AdminDown),
    Event::Stray(Down),
    Event::Stray(Init),
    Event::Stray(Up),
    Event::Traffic,
    Event::Early,
    Event::Late,
    Event::Overdue,
    Event::Transmit,
    Event::Farewell,
];

fn probe(state: State, to: u32) -> Probe {
    Probe {
        state,
        diagnostic: Diagnostic::None,
        multiplier: 3,
        my_discriminator: THEIRS,
        your_discriminator: to,
        desired_min_tx_us: 50_000,
        required_min_rx_us: 50_000,
    }
}

/// A session that came to this state on the way that peers take.
fn session(state: State, now: Instant) -> Session {
    let mut session = Session::new(OURS, ProbeParams::DEFAULT, now);
    let heard: &[State] = match state {
        Down => &[],
        Init => &[Down],
        Up => &[Down, Init],
        AdminDown => {
            session.farewell();
            &[]
        }
    };
    for heard in heard {
        session.handle_probe(&probe(*heard, OURS), now);
    }
    assert_eq!(session.state(), state);
    session
}

/// What is told, in one word.
fn word(change: Option<Change>) -> &'static str {
    match change {
        None => "",
        Some(Change::Alive) => "alive",
        Some(Change::Silent(_)) => "silent",
        Some(Change::Unknown) => "unknown",
    }
}

fn happen(session: &mut Session, event: Event, start: Instant) -> Option<Change> {
    let now = start + 10 * MS;
    match event {
        Event::Probe(state) => session.handle_probe(&probe(state, OURS), now),
        Event::Nameless(state) => session.handle_probe(&probe(state, 0), now),
        Event::Failed => {
            let diagnostic = Diagnostic::DetectionTimeExpired;
            session.handle_probe(&Probe { diagnostic, ..probe(Down, 0) }, now)
        }
        Event::Anew => session.handle_probe(&Probe { my_discriminator: THEIRS + 1, ..probe(Down, 0) }, now),
        Event::Stray(state) => session.handle_probe(&probe(state, OURS + 1), now),
        Event::Traffic => {
            session.handle_traffic(now);
            None
        }
        Event::Early => session.handle_timeout(start + 149 * MS),
        Event::Late => session.handle_timeout(start + 150 * MS),
        Event::Overdue => session.handle_timeout(start + 2000 * MS),
        Event::Transmit => {
            assert!(session.poll_transmit(now, &mut SmallRng::seed_from_u64(1)).is_some());
            None
        }
        Event::Farewell => {
            assert_eq!(session.farewell().state, AdminDown);
            None
        }
    }
}

/// Where each state goes, and what is told. A line says nothing of events that change nothing and tell nothing.
fn expected(state: State, event: Event) -> (State, &'static str) {
    use Event::{Anew, Failed, Farewell, Late, Nameless, Overdue, Probe};
    match (state, event) {
        // who has taken leave does not come back
        (AdminDown, _) => (AdminDown, ""),
        (_, Farewell) => (AdminDown, ""),
        (Down, Probe(Down) | Nameless(Down) | Failed | Anew) => (Init, ""),
        (Down, Probe(Init)) => (Up, "alive"),
        (Init, Probe(Init | Up)) => (Up, "alive"),
        (Init, Probe(AdminDown) | Nameless(AdminDown) | Late) => (Down, ""),
        // a nameless one that gives no reason is of this session's beginning, and late
        (Up, Probe(Down) | Failed | Anew) => (Down, "silent"),
        (Up, Probe(AdminDown) | Nameless(AdminDown)) => (Down, "unknown"),
        (Up, Late | Overdue) | (Down | Init, Overdue) => (Down, "silent"),
        _ => (state, ""),
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "an arbitrary origin of virtual time")]
fn every_state_and_every_event() {
    let start = Instant::now();
    for state in State::ALL {
        for event in EVENTS {
            let mut session = session(state, start);
            let told = word(happen(&mut session, event, start));
            assert_eq!((session.state(), told), expected(state, event), "{state:?}, {event:?}");
        }
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "an arbitrary origin of virtual time")]
fn who_never_comes_up_is_told_of_once_and_who_is_heard_has_longer() {
    let start = Instant::now();
    let mut session = session(Down, start);
    session.handle_traffic(start + 500 * MS);
    assert_eq!(word(session.handle_timeout(start + 2499 * MS)), "");
    assert_eq!(word(session.handle_timeout(start + 2500 * MS)), "silent");
    assert_eq!(session.detection_deadline(), None);
    // is heard, does not hear us, and is gone again
    session.handle_probe(&probe(Down, OURS), start + 2600 * MS);
    assert_eq!(word(session.handle_timeout(start + 5000 * MS)), "");
    assert_eq!((session.state(), session.detection_deadline()), (Down, None));
}

#[test]
#[expect(clippy::disallowed_methods, reason = "an arbitrary origin of virtual time")]
fn who_says_down_all_the_while_is_told_of_once_and_so_is_that_it_comes_up() {
    let start = Instant::now();
    let mut session = session(Down, start);
    let mut told = Vec::new();
    for ms in (0..5000).step_by(50) {
        let now = start + ms * MS;
        let change = session.handle_probe(&probe(Down, OURS), now).or_else(|| session.handle_timeout(now));
        told.extend(change.map(|change| (ms, word(Some(change)))));
    }
    assert_eq!(told, [(2000, "silent")]);
    assert_eq!(word(session.verdict(start + 5000 * MS)), "silent");
    session.handle_probe(&probe(Down, OURS), start + 5000 * MS);
    assert_eq!(word(session.handle_probe(&probe(Up, OURS), start + 5050 * MS)), "alive");
    assert_eq!(word(session.verdict(start + 5050 * MS)), "alive");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "an arbitrary origin of virtual time")]
fn nobody_is_judged_before_there_is_something_to_say() {
    let start = Instant::now();
    for state in State::ALL {
        let verdict = session(state, start).verdict(start);
        assert_eq!(word(verdict), if state == Up { "alive" } else { "" }, "{state:?}");
    }
}

/// A change of state is news for the other side at once; and what is not for us does not even count as life.
#[test]
#[expect(clippy::disallowed_methods, reason = "an arbitrary origin of virtual time")]
fn a_change_is_sent_at_once_and_a_stray_probe_keeps_nobody_alive() {
    let start = Instant::now();
    for state in State::ALL {
        for event in EVENTS.into_iter().filter(|event| *event != Event::Transmit) {
            let mut session = session(state, start);
            while session.poll_transmit(start, &mut SmallRng::seed_from_u64(1)).is_some() {}
            happen(&mut session, event, start);
            let late =
                [(Event::Late, 150), (Event::Overdue, 2000)].into_iter().find(|(late, _)| event == *late);
            let now = start + late.map_or(10, |(_, after)| after) * MS;
            let sends = session.poll_transmit(now, &mut SmallRng::seed_from_u64(1)).is_some();
            // a farewell is sent by whoever asks for it; later one is due in any case
            let due = late.is_some() || session.state() != state && event != Event::Farewell;
            assert_eq!(sends, due, "{state:?}, {event:?}");
        }
    }
    for heard in State::ALL {
        let mut session = session(Up, start);
        session.handle_probe(&probe(heard, OURS + 1), start + 100 * MS);
        assert!(session.handle_timeout(start + 150 * MS).is_some(), "{heard:?}");
    }
}
