//! Do the packets of a worker after the first get through to the port that they go to? A firewall may have the connection's port open
//! and no other. So a packet without frames asks now and then, and the peer says that it has come. What is not known to get through
//! goes to the connection's port, on the same lane.
//!
//! ```text
//!              heard
//!  unproven ──────────► proven
//!      ▲                  │
//!      └──────────────────┘ not heard again for a while: nothing was sent, or nothing came
//! ```

use std::time::{Duration, Instant};

/// How long the peer's word holds: some questions may be lost.
const HOLDS: Duration = Duration::from_secs(6);

/// Between two questions, of a way that is proven and of one that is not.
const ASK_EVERY: Duration = Duration::from_secs(2);
const TRY_EVERY: Duration = Duration::from_secs(1);

/// So many in vain are worth a line.
const IN_VAIN: u32 = 5;

/// What is known of one worker's way to one peer.
#[derive(Debug, Default)]
pub struct Proof {
    heard: Option<Instant>,
    asked: Option<Instant>,
    in_vain: u32,
}

/// Whether the peer is to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Not yet again.
    No,
    /// Now.
    Now,
    /// Now; and the operator is to know that it was in vain so often: once, until the peer is heard.
    Tell,
}

impl Proof {
    /// The peer has said that a question came.
    pub fn handle_heard(&mut self, at: Instant) {
        self.heard = Some(at);
        self.in_vain = 0;
    }

    /// Whether what is sent now gets through, as far as is known.
    pub fn holds(&self, now: Instant) -> bool {
        self.heard.is_some_and(|at| now.saturating_duration_since(at) < HOLDS)
    }

    /// Whether it is time to ask; where something is sent, and only there.
    pub fn poll_ask(&mut self, now: Instant) -> Ask {
        let holds = self.holds(now);
        let pause = if holds { ASK_EVERY } else { TRY_EVERY };
        if self.asked.is_some_and(|at| now.saturating_duration_since(at) < pause) {
            return Ask::No;
        }
        self.asked = Some(now);
        self.in_vain = if holds { 0 } else { self.in_vain.saturating_add(1) };
        if self.in_vain == IN_VAIN { Ask::Tell } else { Ask::Now }
    }

    /// Whether it was asked in vain again and again.
    pub fn is_in_vain(&self) -> bool {
        self.in_vain >= IN_VAIN
    }
}

#[expect(clippy::disallowed_methods, reason = "tests take any moment as their origin")]
#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn nothing_holds_before_the_peer_has_said_so_and_it_is_asked_once_a_second() {
        let start = Instant::now();
        let mut proof = Proof::default();
        let asked = (0..10_000).map(|ms| {
            let now = start + ms * MS;
            assert!(!proof.holds(now));
            proof.poll_ask(now)
        });
        let asked: Vec<Ask> = asked.filter(|ask| *ask != Ask::No).collect();
        assert_eq!(asked.len(), 10);
        assert_eq!(asked.iter().position(|ask| *ask == Ask::Tell), Some(4));
        assert!(proof.is_in_vain());
        let heard = start + Duration::from_secs(10);
        proof.handle_heard(heard);
        assert!(proof.holds(heard) && !proof.is_in_vain());
        // it was asked a second ago, and is now less often
        assert_eq!(proof.poll_ask(heard), Ask::No);
        assert_eq!(proof.poll_ask(heard + ASK_EVERY - TRY_EVERY), Ask::Now);
        assert_eq!(proof.poll_ask(heard + 2 * ASK_EVERY - TRY_EVERY - MS), Ask::No);
    }

    #[test]
    fn it_holds_as_long_as_the_peer_answers_and_six_seconds_longer() {
        let start = Instant::now();
        for (pause, late) in [(MS, MS), (MS, 900 * MS), (300 * MS, 100 * MS), (3900 * MS, 900 * MS)] {
            let mut proof = Proof::default();
            proof.handle_heard(start);
            let (mut now, mut answers) = (start, Vec::new());
            while now < start + Duration::from_secs(60) {
                answers.retain(|at| {
                    let came = *at <= now;
                    if came {
                        proof.handle_heard(*at);
                    }
                    !came
                });
                assert!(proof.holds(now), "every {pause:?}");
                if proof.poll_ask(now) != Ask::No {
                    answers.push(now + late);
                }
                now += pause;
            }
            let end = now;
            while proof.holds(now) {
                proof.poll_ask(now);
                now += pause;
            }
            assert!(now <= end + HOLDS + pause && !proof.is_in_vain(), "every {pause:?}");
        }
    }

    #[test]
    fn who_has_had_nothing_to_send_asks_anew_and_that_is_not_in_vain() {
        let start = Instant::now();
        let mut proof = Proof::default();
        proof.handle_heard(start);
        for round in 1..20 {
            let now = start + round * 2 * HOLDS;
            assert!(!proof.holds(now));
            assert_eq!(proof.poll_ask(now), Ask::Now);
            proof.handle_heard(now + 50 * MS);
            assert!(proof.holds(now + 50 * MS) && !proof.is_in_vain());
        }
    }
}
