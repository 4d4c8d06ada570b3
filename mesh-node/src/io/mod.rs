//! Syscalls, sockets, the clock. Makes no choices.
#![allow(clippy::disallowed_methods, reason = "io is where the clock and chance are read")]
pub mod api;
pub mod host;
pub mod metrics;
pub mod query;
pub mod quic;
pub mod scrape;
pub mod state;
pub mod tun;

/// A seed for the pure core's generator.
pub fn chance() -> u64 {
    rand::random()
}
