//! Syscalls, sockets, the clock. Makes no choices.
#![allow(clippy::disallowed_methods, reason = "io is where the clock and chance are read")]
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::control::event::Now;

pub mod api;
pub mod atomic_instant;
pub mod autogroup;
pub mod events;
pub mod host;
pub mod journal;
pub mod lane;
pub mod liveness;
pub mod log;
pub mod metrics;
pub mod notices;
pub mod query;
pub mod quic;
pub mod scrape;
pub mod slowness;
pub mod state;
pub mod trace;
pub mod tun;
pub mod uplink;
pub mod vital;

/// Both clocks, read for the pure core.
pub fn now() -> Now {
    let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    Now { mono: Instant::now(), unix_ms }
}

/// When this process began to work, for shares of the time since.
pub fn started() -> Instant {
    Instant::now()
}

/// A seed for the pure core's generator.
pub fn chance() -> u64 {
    rand::random()
}
