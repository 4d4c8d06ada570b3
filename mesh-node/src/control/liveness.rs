//! Is the other end of a tunnel alive? BFD in asynchronous mode (RFC 5880): both sides send probes at an interval that both
//! can bear; whoever hears nothing for the detection time says so. Driven by `io::liveness`, which owns the sessions; the
//! verdict comes to `Control` as an input.
//!
//! ```text
//!             Down heard          Init, Up heard
//!   ┌──────┐ ───────────► ┌──────┐ ───────────► ┌────┐
//!   │ Down │              │ Init │              │ Up │
//!   └──────┘ ◄─────────── └──────┘              └────┘
//!      ▲ ▲    expired, AdminDown                   │
//!      │ └─────────────────────────────────────────┘
//!      │       expired, Down or AdminDown heard
//!      └──────► Up, when Init is heard
//! ```
//!
//! Deviates from RFC 5880: probes of a session that is not up are not slowed to one a second (section 6.8.3), since the tunnel
//! is ours and its other end known; what a session wants is fixed for its life, so that there is no poll sequence; each side counts
//! by its own multiplier (section 6.8.4 takes the sender's), so that what an operator writes holds where it is written;
//! whatever else comes from the peer proves its life as a probe does, so that a full tunnel is not taken for a dead one; and a
//! probe of a session's beginning that comes late does not end it.

use std::time::{Duration, Instant};

use mesh_proto::liveness::{Diagnostic, Probe, State};
use rand::Rng;

pub use crate::config::ProbeParams;

/// The slowest probes that a peer may wish for.
const SLOWEST: Duration = Duration::from_secs(10);

/// A peer that was not heard since its tunnel began has at least this long for its first probe: neither side reads from a tunnel
/// before its kernel has the routes.
const FIRST: Duration = Duration::from_secs(2);

/// A verdict that has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Both sides hear each other.
    Alive,
    /// It has been silent this long, or has lost us.
    Silent(Duration),
    /// The other side no longer wants to be asked: nothing is known.
    Unknown,
}

/// How far this node has heard what was sent to it.
#[derive(Debug, Clone, Copy)]
pub struct HeardBy {
    /// All that had come by then was read; `None`: it is not known.
    pub read_by: Option<Instant>,
    /// What came before then may be lost: this node did not read for a while, and its socket was full.
    pub deaf_until: Instant,
}

/// What a silence is, once the detection time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// The peer's.
    Silent,
    /// Ours: the peer has one more interval to be heard.
    Deaf,
    /// Not known before what has come is read.
    Unread,
}

/// What the other side said last.
#[derive(Debug, Clone, Copy)]
struct Remote {
    discriminator: u32,
    desired_min_tx: Duration,
    required_min_rx: Duration,
}

/// One tunnel's session.
#[derive(Debug)]
pub struct Session {
    discriminator: u32,
    params: ProbeParams,
    state: State,
    diagnostic: Diagnostic,
    remote: Option<Remote>,
    begun: Instant,
    /// When anything came from the peer last, or the session began.
    heard: Instant,
    /// There has been a verdict.
    judged: bool,
    next_tx: Instant,
}

impl Session {
    /// A session that is down; its first probe is due at once. Its number must be no other's of the same tunnel.
    pub fn new(discriminator: u32, params: ProbeParams, now: Instant) -> Self {
        Self {
            discriminator: discriminator.max(1),
            params,
            state: State::Down,
            diagnostic: Diagnostic::None,
            remote: None,
            begun: now,
            heard: now,
            judged: false,
            next_tx: now,
        }
    }

    /// A session that answers a probe of the peer, on the peer's terms.
    pub fn answering(discriminator: u32, probe: &Probe, now: Instant) -> Self {
        let wish = Duration::from_micros(probe.desired_min_tx_us.into());
        let interval = wish.clamp(Duration::from_millis(10), SLOWEST);
        Self::new(discriminator, ProbeParams { interval, multiplier: probe.multiplier }, now)
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// What it wants.
    pub fn params(&self) -> ProbeParams {
        self.params
    }

    /// The last verdict, for one who has not been told.
    pub fn verdict(&self, now: Instant) -> Option<Change> {
        self.judged.then(|| match self.state {
            State::Up => Change::Alive,
            _ => Change::Silent(now.saturating_duration_since(self.heard)),
        })
    }

    /// Whether a probe is meant for this session, or for any (RFC 5880 section 6.8.6).
    pub fn is_for_us(&self, probe: &Probe) -> bool {
        let unknown = probe.your_discriminator == 0 && matches!(probe.state, State::Down | State::AdminDown);
        unknown || probe.your_discriminator == self.discriminator
    }

    /// A probe of the peer's session before that had heard of ours, which is up since: the first ones go two ways, one of which may take
    /// long, and a path may change their order. A session that has failed says why, and one that begins anew has another number.
    fn is_late(&self, probe: &Probe) -> bool {
        self.state == State::Up
            && probe.state == State::Down
            && probe.your_discriminator == 0
            && probe.diagnostic == Diagnostic::None
            && self.remote.is_some_and(|remote| remote.discriminator == probe.my_discriminator)
    }

    /// A probe from the peer. One that is meant for another session is ignored.
    pub fn handle_probe(&mut self, probe: &Probe, now: Instant) -> Option<Change> {
        if !self.is_for_us(probe) || self.is_late(probe) {
            return None;
        }
        self.remote = Some(Remote {
            discriminator: probe.my_discriminator,
            // who wishes for less than that would be taken for alive for ever
            desired_min_tx: Duration::from_micros(probe.desired_min_tx_us.into()).min(SLOWEST),
            required_min_rx: Duration::from_micros(probe.required_min_rx_us.into()),
        });
        let silent = now.saturating_duration_since(self.heard);
        self.heard = self.heard.max(now);
        let next = next_state(self.state, probe.state);
        let change = match (self.state, next) {
            (State::Up, State::Up) => None,
            (_, State::Up) => Some(Change::Alive),
            (State::Up, _) if probe.state == State::AdminDown => Some(Change::Unknown),
            (State::Up, _) => Some(Change::Silent(silent)),
            _ => None,
        };
        self.judged |= change.is_some();
        if self.state == State::Up && next == State::Down {
            self.diagnostic = Diagnostic::NeighborDown;
        }
        if self.state != next {
            self.state = next;
            // the other side learns of it at once
            self.next_tx = now;
        }
        change
    }

    /// Something else came from the peer.
    pub fn handle_traffic(&mut self, heard: Instant) {
        self.heard = self.heard.max(heard);
    }

    /// The detection time may be over.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<Change> {
        let due = self.detection_deadline()?;
        if now < due {
            return None;
        }
        let is_news = self.state != State::Init || !self.judged && now >= self.begun + self.first_time();
        self.judged |= is_news;
        self.state = State::Down;
        self.diagnostic = Diagnostic::DetectionTimeExpired;
        self.remote = None;
        self.next_tx = now;
        is_news.then(|| Change::Silent(now.saturating_duration_since(self.heard)))
    }

    /// The probe that is due, if one is.
    pub fn poll_transmit(&mut self, now: Instant, rng: &mut impl Rng) -> Option<Probe> {
        if now < self.next_tx {
            return None;
        }
        // a quarter of jitter, so that sessions do not march in step (RFC 5880 section 6.8.7)
        self.next_tx = now + self.tx_interval().mul_f64(rng.random_range(0.75..=1.0));
        Some(self.probe())
    }

    /// The next probe is due at once.
    pub fn hurry(&mut self, now: Instant) {
        self.next_tx = now;
    }

    /// The last probe: the other side must not take our silence for death.
    pub fn farewell(&mut self) -> Probe {
        self.state = State::AdminDown;
        self.diagnostic = Diagnostic::AdministrativelyDown;
        self.probe()
    }

    /// When there is something to do.
    pub fn poll_timeout(&self) -> Instant {
        self.detection_deadline().map_or(self.next_tx, |due| due.min(self.next_tx))
    }

    fn probe(&self) -> Probe {
        let micros = u32::try_from(self.params.interval.as_micros()).unwrap_or(u32::MAX);
        Probe {
            state: self.state,
            diagnostic: self.diagnostic,
            multiplier: self.params.multiplier,
            my_discriminator: self.discriminator,
            your_discriminator: self.remote.map_or(0, |remote| remote.discriminator),
            desired_min_tx_us: micros,
            required_min_rx_us: micros,
        }
    }

    /// The slower of what we would like and what the other side can bear (RFC 5880 section 6.8.7).
    fn tx_interval(&self) -> Duration {
        self.remote.map_or(self.params.interval, |remote| remote.required_min_rx.max(self.params.interval))
    }

    /// What a silence of this session's peer may be, at `now` and as far as this node has heard; `None`: it is not over.
    pub fn judge(&self, heard: HeardBy, now: Instant) -> Option<Judgement> {
        let due = self.detection_deadline().filter(|due| *due <= now)?;
        let (interval, detection) = (self.detection_interval(), self.detection_time());
        // a node that is never on time has to decide some day
        if now >= due + detection {
            return Some(Judgement::Silent);
        }
        let since = due.checked_sub(detection).unwrap_or(due);
        if heard.deaf_until > since && now < heard.deaf_until + interval {
            return Some(Judgement::Deaf);
        }
        Some(if heard.read_by.is_some_and(|by| by >= due) { Judgement::Silent } else { Judgement::Unread })
    }

    /// When silence becomes a verdict: our multiplier, times the slower of the other side's wish and our limit; compare RFC 5880
    /// section 6.8.4. Who was never up has longer, and is judged as well: it may have died before its first probe.
    pub fn detection_deadline(&self) -> Option<Instant> {
        let time = match self.state {
            State::Init | State::Up => self.detection_time(),
            State::Down if !self.judged => self.first_time(),
            State::Down | State::AdminDown => return None,
        };
        let due = self.heard.checked_add(time)?;
        // who says "down" all the while is heard, and does not carry
        let never_up = self.state == State::Init && !self.judged;
        Some(if never_up { due.min(self.begun + self.first_time()) } else { due })
    }

    /// How long a session has for coming up.
    fn first_time(&self) -> Duration {
        FIRST.max(2 * self.detection_time())
    }

    fn detection_interval(&self) -> Duration {
        self.remote.map_or(self.params.interval, |remote| remote.desired_min_tx.max(self.params.interval))
    }

    fn detection_time(&self) -> Duration {
        self.detection_interval() * u32::from(self.params.multiplier)
    }
}

/// RFC 5880 section 6.8.6, as a table.
pub fn next_state(local: State, heard: State) -> State {
    use State::{AdminDown, Down, Init, Up};
    match (local, heard) {
        (AdminDown, _) => AdminDown,
        (_, AdminDown) => Down,
        (Down, Down) => Init,
        (Down, Init) => Up,
        (Down, Up) => Down,
        (Init, Down) => Init,
        (Init, Init | Up) => Up,
        (Up, Down) => Down,
        (Up, Init | Up) => Up,
    }
}

#[cfg(test)]
mod tests;
