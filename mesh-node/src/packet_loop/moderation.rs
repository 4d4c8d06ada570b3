//! When many small packets come, wait a moment so that a batch is worth its fixed cost (a wake-up of quinn, a syscall).
//! Bulk data and sparse flows never wait: the first fills batches by itself, the second would only get slower.

use std::time::{Duration, Instant};

/// At this rate batches of one are what costs: 40 packets a millisecond. At the period below a batch then has six packets.
const BUSY_PACKETS_PER_MS: u128 = 40;

/// Below this rate no longer. Far below the other: packets that are each sent alone may cost the host so much that no more of them
/// come, and nothing would ever change.
const CALM_PACKETS_PER_MS: u128 = 20;

/// At most one flush in this time while busy with small packets. It is also the longest delay added to a packet. At 100 us a packet
/// in a flood costs half as much again, and the packets of other flows wait longer, not shorter, for the processor.
const PERIOD: Duration = Duration::from_micros(150);

/// A batch with this much in it is worth sending as it is.
const FULL_ENOUGH: usize = 8000;

/// Over this time the rate is taken.
const WINDOW: Duration = Duration::from_millis(1);

/// The state of one outbound thread.
#[derive(Debug)]
pub(super) struct Moderation {
    window_start: Instant,
    packets: u64,
    busy: bool,
    last_flush: Instant,
}

impl Moderation {
    pub(super) fn new(now: Instant) -> Self {
        Self { window_start: now, packets: 0, busy: false, last_flush: now }
    }

    /// A batch ran empty with `packets` and `bytes` in it. How long to wait for more before the flush, if at all.
    pub(super) fn handle_batch(&mut self, now: Instant, packets: u64, bytes: usize) -> Option<Duration> {
        self.packets += packets;
        let window = now.saturating_duration_since(self.window_start);
        if window >= WINDOW {
            let enough = if self.busy { CALM_PACKETS_PER_MS } else { BUSY_PACKETS_PER_MS };
            self.busy = u128::from(self.packets) * 1000 >= enough * window.as_micros();
            self.packets = 0;
            self.window_start = now;
        }
        let since_flush = now.saturating_duration_since(self.last_flush);
        (self.busy && bytes < FULL_ENOUGH && since_flush < PERIOD).then(|| PERIOD - since_flush)
    }

    /// The batch leaves; `more` packets came during the wait.
    pub(super) fn handle_flush(&mut self, now: Instant, more: u64) {
        self.packets += more;
        self.last_flush = now;
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "an instant to count from")]
mod tests {
    use super::*;

    /// Feeds `count` batches, `gap` apart; the share that was told to wait.
    fn waits(count: u32, gap: Duration, packets: u64, bytes: usize) -> f64 {
        let now = Instant::now();
        goes_on(&mut Moderation::new(now), now, count, gap, packets, bytes)
    }

    fn goes_on(
        moderation: &mut Moderation,
        mut now: Instant,
        count: u32,
        gap: Duration,
        packets: u64,
        bytes: usize,
    ) -> f64 {
        let mut waited = 0;
        for _ in 0..count {
            now += gap;
            if let Some(wait) = moderation.handle_batch(now, packets, bytes) {
                assert!(wait <= PERIOD);
                waited += 1;
                now += wait;
            }
            moderation.handle_flush(now, 0);
        }
        f64::from(waited) / f64::from(count)
    }

    #[test]
    fn a_ping_never_waits() {
        assert_eq!(waits(1000, Duration::from_millis(2), 1, 84), 0.0);
    }

    #[test]
    fn bulk_data_never_waits() {
        assert_eq!(waits(1000, Duration::from_micros(50), 4, 60_000), 0.0);
    }

    #[test]
    fn many_small_packets_wait_for_company() {
        assert!(waits(1000, Duration::from_micros(20), 8, 800) > 0.9);
    }

    #[test]
    fn a_flood_that_was_waited_for_is_one_until_it_has_ended() {
        let start = Instant::now();
        let mut moderation = Moderation::new(start);
        let gap = Duration::from_micros(40);
        // 25 packets a millisecond
        assert_eq!(goes_on(&mut moderation, start, 1000, gap, 1, 100), 0.0);
        let flood = start + Duration::from_secs(1);
        assert!(goes_on(&mut moderation, flood, 1000, Duration::from_micros(20), 8, 800) > 0.9);
        // each batch takes the wait and the gap
        let slower = flood + Duration::from_secs(1);
        assert!(goes_on(&mut moderation, slower, 1000, gap, 5, 500) > 0.9);
        let over = slower + Duration::from_secs(1);
        assert!(goes_on(&mut moderation, over, 1000, Duration::from_millis(2), 1, 100) < 0.01);
    }
}
