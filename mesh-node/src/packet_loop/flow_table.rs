//! The flows of one network, shared by its outbound threads: the kernel gives the packets of a flow to one queue for as long as it
//! remembers it, which is not for long, and an egress node for as long as the flow lives.
//!
//! ```text
//!  worker 0, 1, ...  a packet to the Internet ──► looks up its flow
//!  worker 0 alone    each second, and while an egress node is drained ──► tends all of them
//! ```
//!
//! Locked for one packet to the Internet, and never for others; nothing is sent, written or waited for meanwhile. Worker 0 may
//! sleep as long as there is nothing to tend: who changes that wakes it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::forward::fib::Egress;
use crate::forward::flows::{FlowAccess, Flows, Reset, Seconds};
use crate::io::tun::Tun;

/// The worker that tends the flows.
pub(super) const TENDER: u8 = 0;

/// Flows that are reset in a go, between two batches: about a millisecond.
const RESETS: usize = 512;

/// The flows of one network, one clock for them, and who tends them.
#[derive(Debug)]
pub(super) struct FlowTable {
    flows: Mutex<Flows>,
    start: Instant,
    /// Published: there are no flows. Written under the lock.
    quiet: AtomicBool,
    /// Resets wait for the next evacuation. Written under the lock.
    resets: AtomicBool,
    /// The queue of worker 0.
    tender: Arc<Tun>,
}

impl FlowTable {
    /// Without flows; `seed` is chance.
    pub(super) fn new(seed: u64, now: Instant, tender: Arc<Tun>) -> Self {
        Self {
            flows: Mutex::new(Flows::new(seed)),
            start: now,
            quiet: AtomicBool::new(true),
            resets: AtomicBool::new(false),
            tender,
        }
    }

    /// The moment, for flows.
    pub(super) fn seconds(&self, now: Instant) -> Seconds {
        now.saturating_duration_since(self.start).as_secs() as Seconds
    }

    /// The flows, for a packet that a worker has.
    pub(super) fn by(&self, worker: u8) -> ByWorker<'_> {
        ByWorker { table: self, worker }
    }

    /// There is nothing to tend, and nothing to publish.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet.load(Relaxed)
    }

    /// There is something to tend at once.
    pub(super) fn has_resets(&self) -> bool {
        self.resets.load(Relaxed)
    }

    /// Forgets what is idle, and takes flows from egress nodes that are drained: adds some resets of those that would hang, and says
    /// whether there are no more. When a second has begun `publish` is called, for the counts.
    pub(super) fn tend(
        &self,
        drained: Option<&[Egress]>,
        now: Seconds,
        resets: &mut Vec<Reset>,
        publish: impl FnOnce(&mut Flows),
    ) -> bool {
        let mut flows = self.lock();
        if flows.tick(now) {
            publish(&mut flows);
            self.quiet.store(flows.is_empty(), Relaxed);
        }
        let done = drained.is_none_or(|drained| flows.evacuate(drained, now, RESETS, resets));
        self.resets.store(flows.has_resets(), Relaxed);
        done
    }

    fn lock(&self) -> MutexGuard<'_, Flows> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is something to tend of which worker 0 does not know.
    fn calls(&self, flows: &Flows) -> bool {
        let first = self.is_quiet() && !flows.is_empty();
        let reset = flows.has_resets() && !self.has_resets();
        if first {
            self.quiet.store(false, Relaxed);
        }
        if reset {
            self.resets.store(true, Relaxed);
        }
        first || reset
    }
}

/// The flows, for a packet of one worker.
pub(super) struct ByWorker<'a> {
    table: &'a FlowTable,
    worker: u8,
}

impl FlowAccess for ByWorker<'_> {
    fn flows<T>(&mut self, look: impl FnOnce(&mut Flows) -> T) -> T {
        let mut flows = self.table.lock();
        let found = look(&mut flows);
        let calls = self.table.calls(&flows);
        drop(flows);
        if calls && self.worker != TENDER {
            self.table.tender.wake();
        }
        found
    }
}

#[cfg(test)]
mod tests;
