//! Durations, counted in buckets.

use std::time::Duration;

/// How long something took, each time.
#[derive(Debug, Clone)]
pub struct Observed<const N: usize> {
    /// Upper bounds of the buckets, in seconds.
    pub bounds: [f64; N],
    /// Per bucket, those not longer than its bound.
    pub within: [u64; N],
    /// All of them.
    pub count: u64,
    /// Together.
    pub seconds: f64,
}

impl<const N: usize> Observed<N> {
    /// None so far.
    pub fn new(bounds: [f64; N]) -> Self {
        Self { bounds, within: [0; N], count: 0, seconds: 0.0 }
    }

    /// One more.
    pub fn add(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        for (count, bound) in self.within.iter_mut().zip(self.bounds) {
            *count += u64::from(seconds <= bound);
        }
        self.count += 1;
        self.seconds += seconds;
    }
}
