//! For how long a batch may wait for room in a send buffer. A worker that waits reads no more from its TUN, which is what keeps a full
//! socket from being fed; but a peer that alone is slow must not stop what goes to others.

use std::time::{Duration, Instant};

/// How long one batch may wait, in all.
pub const LONGEST: Duration = Duration::from_millis(20);

/// For how long a peer is slow after a wait that was in vain, and others are there to be stopped after a batch of theirs.
const MEMORY: Duration = Duration::from_secs(1);

/// What is known of one peer.
#[derive(Debug, Default)]
pub struct Patience {
    /// The last wait in vain.
    full: Option<Instant>,
    /// Batches to others, when this was last looked at; and when they were seen to be more than before.
    others: u64,
    others_at: Option<Instant>,
}

impl Patience {
    /// For the next batch; `others` have had so many batches so far.
    pub fn of_batch(&mut self, others: u64, now: impl FnOnce() -> Instant) -> Duration {
        let Some(full) = self.full else { return LONGEST };
        let now = now();
        let lately = |at: Instant| now.saturating_duration_since(at) < MEMORY;
        if !lately(full) {
            *self = Self::default();
            return LONGEST;
        }
        if self.others != others {
            self.others = others;
            self.others_at = Some(now);
        }
        if self.others_at.is_some_and(lately) { Duration::ZERO } else { LONGEST }
    }

    /// There was no room in time.
    pub fn handle_full(&mut self, others: u64, now: Instant) {
        if self.full.replace(now).is_none() {
            self.others = others;
        }
    }
}
