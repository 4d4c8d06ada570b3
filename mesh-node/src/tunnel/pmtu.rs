//! Watches what a path carries (RFC 8899). The transport searches by itself when it starts and from time to time; what it
//! does not see is a path that became narrower, until enough of its own large packets have been lost. While nothing large
//! is sent, or TCP waits longer after each loss, that takes seconds to minutes. So the path is checked from here: a padded
//! frame as large as the path is believed to carry, and a small one behind it, which shows at once that the large one is
//! missing. Each is one more loss for the transport's black-hole detection (RFC 8899 section 4.3) to count.
//!
//! ```text
//!               confirmation due, or packets were lost              lost again, up to ROUNDS
//!             +------------------------------------------> Checking ----+
//!  Trusted ---+                                              ^  |   |   |
//!     ^  ^                                                   +--|---|---+
//!     |  +--------- nothing was lost meanwhile -----------------+   +---> Lossy: a pause, then Checking again
//!     +------------ from anywhere: the transport has changed its figure
//! ```
//!
//! Pure: the caller looks at the transport, sends what it is told to, and comes again. One for each direction of a tunnel.

use std::time::{Duration, Instant};

/// A frame as large as this passes every path that carries QUIC (RFC 9000 section 14): nothing to check.
const LEAST_FRAME: usize = mesh_proto::limits::MIN_UDP_PAYLOAD as usize;

/// Between two checks of a path on which nothing is lost: RFC 8899's CONFIRMATION_TIMER (section 5.1.1). The first packets
/// after a pause should find the right size, and 9,000 bytes in this time are nothing to a path that carries them.
pub const CONFIRM: Duration = Duration::from_secs(5);

/// The same where packets travel beside the transport, which then loses none of them by itself.
pub const CONFIRM_BESIDE: Duration = Duration::from_secs(1);

/// Checks in a row that may be followed by losses before they are put down to a lossy path: twice what the transport
/// takes to see a black hole.
const ROUNDS: u32 = 8;

/// How long a lossy path is left alone then.
const LOSSY_PAUSE: Duration = Duration::from_secs(1);

/// What a check waits beyond the round trips: the peer's ACK delay and a busy host.
const CHECK_MARGIN: Duration = Duration::from_millis(15);

/// A new figure counts when it has stood so long: a search comes by many.
const SETTLED: Duration = Duration::from_millis(50);

/// After a fall to the least, the search upwards may take so long before the least is believed. VMs keep a path MTU that
/// they are told for ten minutes: told too early, they would be slower than the path for as long.
const SEARCH: Duration = Duration::from_millis(1000);

/// Between two looks: while something moves, while packets are sent, and else.
const LOOKS: [Duration; 3] = [Duration::from_millis(10), Duration::from_millis(100), Duration::from_secs(1)];

/// What the transport says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// The largest frame it takes at present.
    pub frame: usize,
    /// Packets sent since its start.
    pub sent: u64,
    /// Packets lost since its start, those of its own search excepted, and what this host's device did not take.
    pub lost: u64,
    /// Round trip.
    pub rtt: Duration,
}

/// What is to be done after a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Todo {
    /// The largest frame, for `control` to know.
    pub tell: Option<usize>,
    /// A padded frame of this size is to be sent.
    pub full: Option<usize>,
    /// A small one is to be sent, behind it.
    pub small: bool,
    /// When to look again.
    pub next: Instant,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Trusted { confirm: Instant },
    Checking { round: u32, until: Instant, lost: u64 },
    Lossy { until: Instant },
}

/// The watch of one path.
#[derive(Debug)]
pub struct PathWatch {
    confirm: Duration,
    state: State,
    last: Seen,
    changed: Instant,
    /// When the figure fell, until it has been told.
    fell: Option<Instant>,
    told: usize,
}

impl PathWatch {
    /// Of a tunnel that has just come up, and is to be checked at this interval; the first look is due.
    pub fn new(confirm: Duration, now: Instant) -> Self {
        Self {
            confirm,
            state: State::Trusted { confirm: now + confirm },
            last: Seen { frame: 0, sent: 0, lost: 0, rtt: Duration::ZERO },
            changed: now,
            fell: None,
            told: 0,
        }
    }

    /// Takes a look at the transport.
    pub fn look(&mut self, seen: Seen, now: Instant) -> Todo {
        if seen.frame != self.last.frame {
            if seen.frame < self.last.frame {
                self.fell = Some(now);
            }
            self.changed = now;
            self.state = State::Trusted { confirm: now + self.confirm };
            self.last.lost = seen.lost;
        }
        let full = self.check(seen, now);
        let moving =
            now.duration_since(self.changed) < SEARCH || matches!(self.state, State::Checking { .. });
        let pace = if moving { 0 } else { 2 - usize::from(seen.sent != self.last.sent) };
        self.last = seen;
        let tell = self.news(now);
        // small frames show the transport at once which of its probes are missing
        Todo { tell, full, small: full.is_some() || self.fell.is_some(), next: now + LOOKS[pace] }
    }

    /// The size of a frame that checks the path, where one is due.
    fn check(&mut self, seen: Seen, now: Instant) -> Option<usize> {
        let round = match self.state {
            _ if seen.frame <= LEAST_FRAME => return None,
            State::Trusted { confirm } if now < confirm && seen.lost == self.last.lost => return None,
            State::Checking { until, .. } | State::Lossy { until } if now < until => return None,
            State::Trusted { .. } | State::Lossy { .. } => 1,
            State::Checking { lost, .. } if seen.lost == lost => {
                self.state = State::Trusted { confirm: now + self.confirm };
                return None;
            }
            State::Checking { round, .. } => round + 1,
        };
        if round > ROUNDS {
            self.state = State::Lossy { until: now + LOSSY_PAUSE };
            return None;
        }
        self.state = State::Checking { round, until: now + seen.rtt * 3 + CHECK_MARGIN, lost: seen.lost };
        Some(seen.frame)
    }

    /// The figure, when it is to be told.
    fn news(&mut self, now: Instant) -> Option<usize> {
        let frame = self.last.frame;
        let searched = frame > LEAST_FRAME || self.fell.is_none_or(|fell| now.duration_since(fell) >= SEARCH);
        let settled = searched && now.duration_since(self.changed) >= SETTLED;
        if self.told != 0 && !settled {
            return None;
        }
        self.fell = None;
        if frame == self.told {
            return None;
        }
        self.told = frame;
        Some(frame)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests take any moment as their origin")]
mod tests;
