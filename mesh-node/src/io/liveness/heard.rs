//! What readers note of a peer, so that the probing thread wakes up for news alone and a flood of probes does not hold it.

use std::hash::{DefaultHasher, Hasher as _};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mesh_proto::liveness::Probe;

use crate::io::atomic_instant::AtomicInstant;

/// Probes of one connection that may wait for the thread: far more than a peer sends while the thread does not run. What comes beyond
/// is dropped; that something came is noted anyway.
const WAITING: u32 = 64;

/// Probes of one connection for the thread in a while: some times what the fastest pace makes. It is real-time, and a peer that floods
/// it must not hold a processor.
const IN_WINDOW: u32 = 16;
const WINDOW: Duration = Duration::from_millis(10);

/// What has come from a peer: noted by whoever reads the socket, and by the connection's reader task once a batch.
#[derive(Debug, Default)]
pub struct Heard {
    /// When something came last.
    last: AtomicInstant,
    /// Probes that the thread has not taken yet.
    pub(super) waiting: AtomicU32,
    /// Since when those in `lately` were taken.
    window: AtomicInstant,
    lately: AtomicU32,
    /// Probes have come beside the connection.
    pub(super) beside: AtomicBool,
    /// What a probe says that says nothing new, as [`digest`] has it; 0: there is none.
    pub(super) steady: AtomicU64,
}

/// Of a probe; never 0.
pub(super) fn digest(probe: &Probe) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(&probe.encode());
    hasher.finish() | 1
}

impl Heard {
    /// Something has come.
    pub fn now(&self) {
        self.last.set(Instant::now());
    }

    /// A probe of a session that is up on both sides, which says what the last one said, proves life and nothing else: the thread need
    /// not wake up for it.
    pub(super) fn knows(&self, probe: &Probe) -> bool {
        let steady = self.steady.load(Relaxed);
        steady != 0 && steady == digest(probe)
    }

    /// Whether the thread is to have one probe more.
    pub(super) fn takes(&self, now: Instant) -> bool {
        if now.saturating_duration_since(self.window.get()) >= WINDOW {
            self.window.set(now);
            self.lately.store(0, Relaxed);
        }
        self.lately.fetch_add(1, Relaxed) < IN_WINDOW
            && self
                .waiting
                .fetch_update(Relaxed, Relaxed, |waiting| (waiting < WAITING).then_some(waiting + 1))
                .is_ok()
    }

    /// Probes that the thread has not taken yet.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> u32 {
        self.waiting.load(Relaxed)
    }

    pub(super) fn last(&self) -> Instant {
        self.last.get()
    }
}
