//! Whom an outbound thread would stop by waiting for a peer that has no room: others that it has packets for. A peer without room stops
//! nobody, so that where all are behind one slow device all are waited for.

use std::time::{Duration, Instant};

use crate::forward::fib::PeerIx;

/// For how long after its last batch a peer is expected to have another.
const MEMORY: Duration = Duration::from_secs(3);

/// The peers that last took a whole batch: the latest one, and the latest other one.
#[derive(Debug, Default)]
pub(super) struct Company {
    latest: Option<(PeerIx, Instant)>,
    other: Option<(PeerIx, Instant)>,
}

impl Company {
    /// A peer has taken all of its batch.
    pub(super) fn handle_sent(&mut self, peer: PeerIx, now: Instant) {
        match self.latest {
            Some((latest, _)) if latest != peer => self.other = self.latest,
            _ => {}
        }
        self.latest = Some((peer, now));
    }

    /// A peer had no room for all of its batch.
    pub(super) fn handle_full(&mut self, peer: PeerIx) {
        if self.other.is_some_and(|(other, _)| other == peer) {
            self.other = None;
        }
        if self.latest.is_some_and(|(latest, _)| latest == peer) {
            self.latest = self.other.take();
        }
    }

    /// Whether others are there besides a peer.
    pub(super) fn has_others(&self, peer: PeerIx, now: Instant) -> bool {
        let lately =
            |(other, at): (PeerIx, Instant)| other != peer && now.saturating_duration_since(at) < MEMORY;
        self.latest.is_some_and(lately) || self.other.is_some_and(lately)
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "an instant to count from")]
mod tests {
    use super::*;

    const A: PeerIx = PeerIx(1);
    const B: PeerIx = PeerIx(2);
    const C: PeerIx = PeerIx(3);

    #[test]
    fn a_peer_is_alone_while_no_other_takes_batches() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut company = Company::default();
        assert!(!company.has_others(A, at(0)));
        company.handle_sent(A, at(0));
        company.handle_sent(A, at(1));
        assert!(!company.has_others(A, at(2)) && company.has_others(B, at(2)));
        company.handle_sent(B, at(1000));
        company.handle_sent(A, at(1001));
        company.handle_sent(A, at(3999));
        assert!(company.has_others(A, at(3999)));
        assert!(!company.has_others(A, at(4000)));
        assert!(company.has_others(B, at(4000)) && company.has_others(C, at(4000)));
    }

    #[test]
    fn peers_without_room_stop_nobody() {
        let now = Instant::now();
        let mut company = Company::default();
        company.handle_sent(A, now);
        company.handle_sent(B, now);
        company.handle_full(A);
        assert!(company.has_others(A, now) && !company.has_others(B, now));
        company.handle_full(B);
        assert!(!company.has_others(A, now) && !company.has_others(B, now));
        for (full, left) in [(A, B), (B, A)] {
            company.handle_sent(A, now);
            company.handle_sent(B, now);
            company.handle_full(full);
            assert!(company.has_others(full, now) && !company.has_others(left, now));
        }
    }

    #[test]
    fn of_several_the_latest_other_one_counts() {
        let start = Instant::now();
        let mut company = Company::default();
        for (peer, second) in [(A, 0), (B, 1), (C, 2), (C, 3), (C, 4)] {
            company.handle_sent(peer, start + Duration::from_secs(second));
        }
        assert!(!company.has_others(C, start + Duration::from_secs(4)), "B was 3 s ago");
        assert!(company.has_others(B, start + Duration::from_secs(6)));
    }
}
