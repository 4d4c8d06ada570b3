//! A moment that one thread notes and another reads.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// To the microsecond; at first the moment when it was made.
#[derive(Debug)]
pub struct AtomicInstant {
    origin: Instant,
    after_us: AtomicU64,
}

impl Default for AtomicInstant {
    fn default() -> Self {
        Self { origin: Instant::now(), after_us: AtomicU64::new(0) }
    }
}

impl AtomicInstant {
    /// Notes a moment.
    pub fn set(&self, at: Instant) {
        self.replace(at);
    }

    /// Notes a moment, and gives the one before.
    pub fn replace(&self, at: Instant) -> Instant {
        let after = at.saturating_duration_since(self.origin).as_micros() as u64;
        self.origin + Duration::from_micros(self.after_us.swap(after, Relaxed))
    }

    /// The last one noted.
    pub fn get(&self) -> Instant {
        self.origin + Duration::from_micros(self.after_us.load(Relaxed))
    }
}
