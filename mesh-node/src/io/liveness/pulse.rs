//! Does the control loop still turn? The probing thread goes on by itself while the loop hangs, which then learns of nothing, a dead
//! uplink included. An egress node must lose its role for that as it does when all of it is frozen.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Between two questions.
const EVERY: Duration = Duration::from_millis(50);

/// A loop that has not answered for so long hangs: so that others know as soon as they would of a node that is frozen. Under full load
/// none was seen to take a third of that.
const HANGS: Duration = Duration::from_millis(125);

/// Who asks may be late by a little at any time; by so much, the whole process has paused.
const PAUSE: Duration = Duration::from_millis(10);

/// An answer worth a line for who looks for the reason.
const SLOW: Duration = Duration::from_millis(50);

/// What the thread knows of the loop.
#[derive(Debug)]
pub struct Pulse {
    answered: Arc<AtomicU64>,
    asked: u64,
    asked_at: Instant,
    /// The loop's queue was full.
    undelivered: bool,
}

/// A question, to be answered by who gets it.
#[derive(Debug)]
pub struct Question {
    number: u64,
    asked_at: Instant,
    answered: Arc<AtomicU64>,
}

impl Question {
    /// The loop turns.
    pub fn answer(self) {
        let elapsed = self.asked_at.elapsed();
        if elapsed >= SLOW {
            tracing::debug!(?elapsed, "the control loop was slow to answer");
        }
        self.answered.store(self.number, Relaxed);
    }
}

impl Pulse {
    /// Nothing was asked.
    pub fn new(now: Instant) -> Self {
        Self { answered: Arc::default(), asked: 0, asked_at: now, undelivered: false }
    }

    /// The question that is due, if one is.
    pub fn poll_question(&mut self, now: Instant) -> Option<Question> {
        let answered = self.answered.load(Relaxed) >= self.asked;
        if answered && now.saturating_duration_since(self.asked_at) >= EVERY {
            self.asked += 1;
            self.asked_at = now;
        } else if !self.undelivered {
            return None;
        }
        self.undelivered = false;
        Some(Question { number: self.asked, asked_at: now, answered: self.answered.clone() })
    }

    /// The question found no room: it is due again.
    pub fn not_delivered(&mut self) {
        self.undelivered = true;
    }

    /// Who asks was late by so much: if that is a pause of the whole process, the loop could not answer either.
    pub fn excuse(&mut self, late: Duration) {
        if late >= PAUSE {
            self.asked_at += late;
        }
    }

    /// Whether the loop has left a question unanswered for too long.
    pub fn is_lost(&self, now: Instant) -> bool {
        self.silence(now) >= HANGS
    }

    /// Whether it is going to be lost before so much time has passed, unless it answers.
    pub fn is_lost_within(&self, time: Duration, now: Instant) -> bool {
        let silence = self.silence(now);
        silence >= SLOW && silence + time >= HANGS
    }

    /// How long a question has been open.
    fn silence(&self, now: Instant) -> Duration {
        let open = self.answered.load(Relaxed) < self.asked;
        if open { now.saturating_duration_since(self.asked_at) } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_answers_is_asked_again_and_one_that_does_not_is_lost() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        assert!(pulse.poll_question(start).is_none());
        let first = pulse.poll_question(start + EVERY).unwrap();
        assert!(pulse.poll_question(start + 2 * EVERY).is_none(), "one at a time");
        assert!(!pulse.is_lost(start + 2 * EVERY));
        first.answer();
        assert!(!pulse.is_lost(start + 100 * EVERY), "it was answered");
        let second = pulse.poll_question(start + 100 * EVERY).unwrap();
        assert!(pulse.is_lost(start + 100 * EVERY + HANGS));
        second.answer();
        assert!(!pulse.is_lost(start + 100 * EVERY + HANGS), "late, and there");
    }

    #[test]
    fn a_pause_of_who_asks_is_no_silence_of_the_loop() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        let question = pulse.poll_question(start + EVERY);
        let (pause, thaw) = (Duration::from_secs(3600), start + EVERY + Duration::from_secs(3600));
        pulse.excuse(pause);
        assert!(!pulse.is_lost(thaw));
        // who asks for many peers is late again and again
        (0..1000).for_each(|_| pulse.excuse(Duration::from_millis(1)));
        assert!(pulse.is_lost(thaw + HANGS), "but what follows is");
        drop(question);
    }

    #[test]
    fn what_would_outlast_a_hang_is_not_begun_while_the_loop_is_late() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        let question = pulse.poll_question(start + EVERY).unwrap();
        let asked = start + EVERY;
        let lease = HANGS + SLOW;
        assert!(!pulse.is_lost_within(lease, asked + SLOW / 2), "an answer takes its time");
        assert!(pulse.is_lost_within(lease, asked + SLOW));
        assert!(!pulse.is_lost_within(HANGS / 4, asked + HANGS / 2), "it ends before");
        assert!(pulse.is_lost_within(HANGS / 4, asked + HANGS * 3 / 4));
        question.answer();
        assert!(!pulse.is_lost_within(lease, asked + HANGS));
    }

    #[test]
    fn a_full_queue_is_no_answer() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        drop(pulse.poll_question(start + EVERY));
        pulse.not_delivered();
        assert!(pulse.poll_question(start + 2 * EVERY).is_some(), "asked again at once");
        assert!(pulse.is_lost(start + EVERY + HANGS));
    }
}
