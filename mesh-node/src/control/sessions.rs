//! Per peer: down, dialing, up; when to dial again; which of two connections is kept.
//!
//! ```text
//!            poll: due                 hello
//!   Waiting ───────────► Dialing ───────────────► Up
//!      ▲                    │ failed               │ closed
//!      └────── backoff ─────┴──────── at once ─────┘
//! ```

use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::SmallRng;

/// First wait after a failed dial.
const BACKOFF_MIN: Duration = Duration::from_millis(200);

/// Longest wait while a peer is expected back soon: it restarts, and is to be found within 3 s of being up.
const BACKOFF_SOON: Duration = Duration::from_secs(2);

/// How long after it was last up a peer is expected back soon.
const SOON: Duration = Duration::from_secs(600);

/// Longest wait otherwise.
const BACKOFF_MAX: Duration = Duration::from_secs(15);

/// A tunnel that ends sooner than this after it came up was refused by the other side's control: the dial before it did
/// not succeed.
const SETTLED: Duration = Duration::from_secs(5);

/// Two connections that came up within this time were dialled by both sides at once; a later one replaces a connection
/// that its dialer has already given up.
const SIMULTANEOUS: Duration = Duration::from_secs(1);

/// When to dial a target, and how it went.
#[derive(Debug, Clone)]
pub struct Dialer {
    /// A dial is on its way since then.
    pub dialing: bool,
    /// Dials that failed in a row.
    pub failures: u32,
    due: Option<Instant>,
    expected_until: Instant,
}

impl Dialer {
    /// Due at once.
    pub fn new(now: Instant) -> Self {
        Self { dialing: false, failures: 0, due: Some(now), expected_until: now + SOON }
    }

    /// When the next dial is due; `None` while one is on its way or the tunnel is up.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A dial has begun.
    pub fn begun(&mut self) {
        self.dialing = true;
        self.due = None;
    }

    /// It came to nothing: wait, longer each time, with jitter so that nodes do not dial in step.
    pub fn failed(&mut self, now: Instant, rng: &mut SmallRng) {
        self.dialing = false;
        let cap = if now < self.expected_until { BACKOFF_SOON } else { BACKOFF_MAX };
        let wait = BACKOFF_MIN.saturating_mul(1 << self.failures.min(10)).min(cap);
        self.failures = self.failures.saturating_add(1);
        self.due = Some(now + wait.mul_f64(rng.random_range(0.5..1.0)));
    }

    /// The tunnel is up. Whether it stays is seen in `down`.
    pub fn up(&mut self) {
        self.dialing = false;
        self.due = None;
    }

    /// The tunnel, up since `since`, has gone: dial soon. The jitter keeps the two sides from dialling at once every time.
    pub fn down(&mut self, since: Instant, now: Instant, rng: &mut SmallRng) {
        if now.duration_since(since) < SETTLED {
            return self.failed(now, rng);
        }
        self.dialing = false;
        self.failures = 0;
        self.expected_until = now + SOON;
        self.due = Some(now + BACKOFF_MIN.mul_f64(rng.random_range(0.0..1.0)));
    }

    /// The other side has said that it does not want us: no sooner than the longest wait.
    pub fn unwelcome(&mut self, now: Instant, rng: &mut SmallRng) {
        self.dialing = false;
        self.expected_until = now;
        self.due = Some(now + BACKOFF_MAX.mul_f64(rng.random_range(0.5..1.0)));
    }

    /// Something new is known (an address, a wish): dial now unless one is on its way.
    pub fn hurry(&mut self, now: Instant) {
        if !self.dialing {
            self.due = Some(now);
        }
    }
}

/// What decides between two connections to one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Of the peer, from its hello.
    pub generation: u64,
    /// Whether the side with the smaller name dialled it.
    pub by_smaller: bool,
    /// When it came up here.
    pub since: Instant,
}

impl Claim {
    /// Whether `self`, which has just come up, takes the place of `old`.
    ///
    /// A restarted peer has a higher generation. Two that came up together were dialled by both sides at once: both keep
    /// the one that the smaller name dialled (compare RFC 4271 section 6.8). Otherwise the dialer has lost the old one.
    pub fn replaces(&self, old: &Self) -> bool {
        if self.generation != old.generation {
            return self.generation > old.generation;
        }
        if self.since.duration_since(old.since) < SIMULTANEOUS && self.by_smaller != old.by_smaller {
            return self.by_smaller;
        }
        true
    }
}

#[expect(clippy::disallowed_methods, reason = "tests take any moment as their origin")]
#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn both_sides_keep_the_same_of_two_simultaneous_connections() {
        let t = Instant::now();
        let small = Claim { generation: 5, by_smaller: true, since: t };
        let large = Claim { generation: 5, by_smaller: false, since: t + Duration::from_millis(3) };
        assert!(!large.replaces(&small));
        let small_late = Claim { since: t + Duration::from_millis(9), ..small };
        assert!(small_late.replaces(&large));
    }

    #[test]
    fn a_restarted_peer_and_a_redial_replace_the_old_connection() {
        let t = Instant::now();
        let old = Claim { generation: 5, by_smaller: true, since: t };
        assert!(Claim { generation: 6, by_smaller: false, since: t }.replaces(&old));
        assert!(!Claim { generation: 4, by_smaller: true, since: t }.replaces(&old));
        let later = Claim { generation: 5, by_smaller: false, since: t + Duration::from_secs(2) };
        assert!(later.replaces(&old));
    }

    #[test]
    fn backoff_grows_to_its_cap_and_a_lost_peer_is_dialled_within_the_short_cap() {
        let mut rng = SmallRng::seed_from_u64(1);
        let t = Instant::now();
        let mut d = Dialer::new(t);
        assert_eq!(d.due(), Some(t));
        for _ in 0..40 {
            d.begun();
            assert_eq!(d.due(), None);
            d.failed(t, &mut rng);
            assert!(d.due().unwrap() <= t + BACKOFF_SOON);
        }
        d.begun();
        let late = t + SOON;
        d.failed(late, &mut rng);
        assert!(d.due().unwrap() > late + BACKOFF_SOON);
        d.down(t, late, &mut rng);
        assert!(d.due().unwrap() <= late + BACKOFF_MIN);
    }
}
