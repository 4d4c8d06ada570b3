use super::*;
use proptest::prelude::*;

const RTT: Duration = Duration::from_millis(1);
const MS: Duration = Duration::from_millis(1);
const LEAST: usize = 1162;

/// A transport that loses what its path does not carry, and falls to the least after four such losses, as quinn does.
struct Transport {
    frame: usize,
    path: usize,
    sent: u64,
    lost: u64,
    suspicious: u32,
}

impl Transport {
    fn new(frame: usize) -> Self {
        Self { frame, path: frame, sent: 0, lost: 0, suspicious: 0 }
    }

    fn seen(&self) -> Seen {
        Seen { frame: self.frame, sent: self.sent, lost: self.lost, rtt: RTT }
    }

    fn send(&mut self, size: usize) {
        self.sent += 1;
        if size > self.path {
            self.lost += 1;
            self.suspicious += 1;
        } else if size > LEAST {
            self.suspicious = 0;
        }
        if self.suspicious == 4 {
            self.frame = LEAST;
            self.suspicious = 0;
        }
    }
}

/// Looks as often as it is told to, for so long; gives what was told, and when.
fn run(
    watch: &mut PathWatch,
    transport: &mut Transport,
    now: &mut Instant,
    span: Duration,
) -> Vec<(Instant, usize)> {
    let (end, mut told) = (*now + span, Vec::new());
    while *now < end {
        let todo = watch.look(transport.seen(), *now);
        told.extend(todo.tell.map(|frame| (*now, frame)));
        if let Some(size) = todo.full {
            transport.send(size);
        }
        assert!(todo.next > *now, "time passes");
        *now = todo.next;
    }
    told
}

#[test]
fn an_idle_path_that_shrinks_is_known_after_the_confirmation_and_the_search() {
    let mut now = Instant::now();
    let (mut watch, mut transport) = (PathWatch::new(CONFIRM, now), Transport::new(8932));
    let told = run(&mut watch, &mut transport, &mut now, Duration::from_secs(60));
    assert_eq!(told.iter().map(|(_, frame)| *frame).collect::<Vec<_>>(), [8932]);
    assert!((10..=14).contains(&transport.sent), "a check every 5 s: {}", transport.sent);
    transport.path = 1432;
    let start = now;
    while transport.frame != LEAST {
        run(&mut watch, &mut transport, &mut now, MS);
    }
    assert!(now - start < CONFIRM + Duration::from_millis(400), "{:?}", now - start);
    // the transport searches upwards: what it finds is told, the least on its way there is not
    let told = run(&mut watch, &mut transport, &mut now, SEARCH / 2);
    assert_eq!(told, []);
    transport.frame = 1400;
    let told = run(&mut watch, &mut transport, &mut now, 30 * MS);
    assert_eq!(told, [], "the search goes on");
    transport.frame = 1432;
    let told = run(&mut watch, &mut transport, &mut now, Duration::from_secs(1));
    assert_eq!(told.iter().map(|(_, frame)| *frame).collect::<Vec<_>>(), [1432]);
}

#[test]
fn an_idle_path_is_looked_at_once_a_second() {
    let mut now = Instant::now();
    let (mut watch, mut transport) = (PathWatch::new(CONFIRM, now), Transport::new(1432));
    run(&mut watch, &mut transport, &mut now, Duration::from_secs(5));
    let (end, mut looks) = (now + Duration::from_secs(60), 0);
    while now < end {
        looks += 1;
        let todo = watch.look(transport.seen(), now);
        todo.full.into_iter().for_each(|size| transport.send(size));
        now = todo.next;
    }
    // and a few more for each check, of which there are twelve
    assert!((60..=60 + 12 * 4).contains(&looks), "{looks}");
}

#[test]
fn losses_raise_suspicion_at_the_next_look() {
    let mut now = Instant::now();
    let (mut watch, mut transport) = (PathWatch::new(CONFIRM, now), Transport::new(8932));
    run(&mut watch, &mut transport, &mut now, Duration::from_secs(2));
    transport.path = 1432;
    transport.send(8932);
    let start = now;
    while transport.frame != LEAST {
        run(&mut watch, &mut transport, &mut now, MS);
    }
    assert!(now - start < Duration::from_millis(400), "{:?}", now - start);
    let told = run(&mut watch, &mut transport, &mut now, SEARCH * 2);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].1, LEAST, "the least is believed once the search has had its time");
    assert!(told[0].0 - start >= SEARCH);
}

#[test]
fn a_false_alarm_is_not_told() {
    let mut now = Instant::now();
    let (mut watch, mut transport) = (PathWatch::new(CONFIRM, now), Transport::new(1432));
    run(&mut watch, &mut transport, &mut now, Duration::from_secs(2));
    transport.frame = LEAST;
    assert_eq!(run(&mut watch, &mut transport, &mut now, 100 * MS), []);
    transport.frame = 1432;
    assert_eq!(run(&mut watch, &mut transport, &mut now, Duration::from_secs(3)), []);
}

#[test]
fn a_path_that_always_loses_something_is_left_alone_between_bouts() {
    let mut now = Instant::now();
    let (mut watch, mut transport) = (PathWatch::new(CONFIRM, now), Transport::new(1432));
    let end = now + Duration::from_secs(60);
    let mut full = 0;
    while now < end {
        transport.lost += 1;
        let todo = watch.look(transport.seen(), now);
        full += u32::from(todo.full.is_some());
        now = todo.next;
    }
    assert!((8 * 30..8 * 62).contains(&full), "{full}");
}

proptest! {
    /// Whatever the transport does: the figure told last is the transport's own, soon after it has come to rest; no frame is
    /// asked for that does not fit; and looks are neither too frequent nor too rare.
    #[test]
    fn what_is_told_follows_the_transport(
        steps in prop::collection::vec((0usize..9000, 0u64..3, 0u64..3, 0u64..2000), 1..60),
    ) {
        let mut now = Instant::now();
        let mut watch = PathWatch::new(CONFIRM, now);
        let (mut told, mut seen) = (0, Seen { frame: 0, sent: 0, lost: 0, rtt: RTT });
        for (frame, sent, lost, wait) in steps {
            seen = Seen { frame, sent: seen.sent + sent, lost: seen.lost + lost, rtt: RTT };
            let todo = watch.look(seen, now);
            told = todo.tell.unwrap_or(told);
            prop_assert!(todo.full.is_none_or(|full| full == frame && full > LEAST_FRAME && todo.small));
            let wait_until_next = todo.next - now;
            prop_assert!(wait_until_next >= LOOKS[0] && wait_until_next <= LOOKS[2]);
            now += Duration::from_millis(wait);
        }
        let rest = now + SEARCH + SETTLED + LOOKS[2];
        while now < rest {
            let todo = watch.look(seen, now);
            told = todo.tell.unwrap_or(told);
            now = todo.next;
        }
        prop_assert_eq!(told, seen.frame);
    }
}
