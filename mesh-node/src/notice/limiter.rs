//! How often a log line may come that a peer can trigger: a bucket of tokens a kind.

use std::time::{Duration, Instant};

/// Lines of a kind in a burst: enough to see who and why.
const BURST: u32 = 10;

/// Time in which one more may come.
const REFILL: Duration = Duration::from_secs(5);

/// Bucket of one kind of line.
#[derive(Debug, Default)]
pub struct Limiter {
    used: u32,
    /// Since when tokens come back.
    since: Option<Instant>,
    suppressed: u64,
}

impl Limiter {
    /// Whether a line may come now; if so, how many before it did not.
    pub fn allow(&mut self, now: Instant) -> Option<u64> {
        self.refill(now);
        if self.used >= BURST {
            self.suppressed += 1;
            return None;
        }
        self.used += 1;
        Some(self.take_suppressed())
    }

    /// How many lines were held back since one passed; told by whoever asks.
    pub fn take_suppressed(&mut self) -> u64 {
        std::mem::take(&mut self.suppressed)
    }

    /// Whether a whole burst may come, as at the beginning.
    pub fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.used == 0
    }

    fn refill(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        let back = (now.duration_since(since).as_millis() / REFILL.as_millis()).min(u128::from(BURST)) as u32;
        if back > 0 {
            self.used = self.used.saturating_sub(back);
            self.since = Some(now);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "tests take any moment as their origin")]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_one_a_while_and_the_rest_is_counted() {
        let mut limiter = Limiter::default();
        let t = Instant::now();
        let passed = (0..1000).filter(|_| limiter.allow(t).is_some()).count();
        assert_eq!(passed, BURST as usize);
        assert_eq!(limiter.allow(t + REFILL / 2), None);
        assert_eq!(limiter.allow(t + REFILL), Some(1000 - u64::from(BURST) + 1));
        assert_eq!(limiter.allow(t + REFILL), None);
        let passed = (0..1000).filter(|_| limiter.allow(t + REFILL * 1000).is_some()).count();
        assert_eq!(passed, BURST as usize);
    }
}
