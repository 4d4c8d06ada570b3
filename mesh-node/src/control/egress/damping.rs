//! An egress node that fails again and again is held down for a while, each time longer: what moves with each of its failures
//! suffers more from its returns than from its absence. Compare route flap damping, RFC 2439; simpler, since an operator has
//! to foresee it: a count in place of a decaying figure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Failures that lie further back do not count.
pub const WINDOW: Duration = Duration::from_secs(600);

/// For the second failure within the window; each further one doubles it. Longer than a reboot of the path, shorter than it
/// takes somebody to look.
pub const FIRST: Duration = Duration::from_secs(10);

/// At most. Longer would keep a node that was mended out for no reason an operator can see.
pub const MOST: Duration = Duration::from_secs(300);

/// Failures remembered: more than it takes to reach `MOST`.
const REMEMBERED: usize = 16;

/// A hold-down that a failure has begun or prolonged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldDown {
    /// Failures within the window.
    pub count: usize,
    /// When it ends.
    pub until: Instant,
}

/// The failures of one node.
#[derive(Debug, Clone, Default)]
pub struct Damping {
    /// In order of time, a bounded number.
    failures: VecDeque<Instant>,
    until: Option<Instant>,
}

impl Damping {
    /// It has failed: silent, cut off, or without its uplink. `Some` from the second failure within the window on.
    pub fn failed(&mut self, now: Instant) -> Option<HoldDown> {
        self.failures.retain(|at| now.saturating_duration_since(*at) < WINDOW);
        if self.failures.len() == REMEMBERED {
            self.failures.pop_front();
        }
        self.failures.push_back(now);
        let count = self.failures.len();
        let further = u32::try_from(count.checked_sub(2)?).unwrap_or(u32::MAX);
        let time = FIRST.saturating_mul(2_u32.saturating_pow(further)).min(MOST);
        let until = now.checked_add(time)?;
        self.until = Some(until);
        Some(HoldDown { count, until })
    }

    /// Until when it is held down, if it is.
    pub fn held_until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin of virtual time")]
    fn origin() -> Instant {
        Instant::now()
    }

    #[test]
    fn each_failure_doubles_the_hold_down_up_to_five_minutes() {
        let start = origin();
        let mut damping = Damping::default();
        let mut held = Vec::new();
        for n in 0..9 {
            let now = start + Duration::from_secs(n * 20);
            held.push(damping.failed(now).map(|hold| (hold.until - now).as_secs()));
        }
        let expected =
            [None, Some(10), Some(20), Some(40), Some(80), Some(160), Some(300), Some(300), Some(300)];
        assert_eq!(held, expected);
    }

    #[test]
    fn what_lies_ten_minutes_back_is_forgotten() {
        let start = origin();
        let mut damping = Damping::default();
        assert_eq!(damping.failed(start), None);
        assert_eq!(damping.failed(start + WINDOW), None);
        let again = start + WINDOW + Duration::from_secs(599);
        let hold = damping.failed(again).unwrap();
        assert_eq!((hold.count, hold.until), (2, again + FIRST));
        assert_eq!(damping.held_until(hold.until - Duration::from_millis(1)), Some(hold.until));
        assert_eq!(damping.held_until(hold.until), None, "over on the moment");
    }

    proptest! {
        #[test]
        fn a_hold_down_is_bounded_counted_from_the_last_failure_and_memory_too(
            gaps in proptest::collection::vec(0_u64..700, 1..200),
        ) {
            let mut now = origin();
            let mut damping = Damping::default();
            for gap in gaps {
                now += Duration::from_secs(gap);
                let hold = damping.failed(now);
                prop_assert!(damping.failures.len() <= REMEMBERED);
                if let Some(hold) = hold {
                    prop_assert!(hold.count >= 2);
                    prop_assert!(hold.until >= now + FIRST && hold.until <= now + MOST);
                    prop_assert_eq!(damping.held_until(now), Some(hold.until));
                }
                prop_assert_eq!(damping.held_until(now + MOST), None);
            }
        }
    }
}
