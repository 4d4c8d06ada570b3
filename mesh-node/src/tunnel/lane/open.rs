//! The receiving end of a lane.

use std::fmt;
use std::ops::Range;

use rustls::quic::DirectionalKeys;

use super::window::{Arrival, Counts, Window};
use super::{FIRST, HEADER, ID_LEN, TAG};

/// Opens packets, once each. Only what is authentic changes anything but the count of what is not.
pub struct Opener {
    keys: DirectionalKeys,
    window: Window,
    forged: u64,
    limit: u64,
}

/// Why a datagram is not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is not what the peer sealed for this lane, or so many were not that the lane takes no more (RFC 9001 section 6.6).
    #[error("not authentic")]
    Forged,
    /// It has been opened before.
    #[error("a duplicate")]
    Duplicate,
    /// It is so old that whether it has been opened before is not known.
    #[error("older than the replay window")]
    Replayed,
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").field("window", &self.window).finish_non_exhaustive()
    }
}

impl Opener {
    pub(super) fn new(keys: DirectionalKeys) -> Self {
        let limit = keys.packet.integrity_limit();
        Self { keys, window: Window::default(), forged: 0, limit }
    }

    /// Takes fewer forged packets than the cipher allows, never more.
    #[cfg(test)]
    pub(super) fn limited(mut self, forged: u64) -> Self {
        self.limit = self.limit.min(forged);
        self
    }

    /// Opens a datagram in place; the frames are at the range returned.
    pub fn open(&mut self, datagram: &mut [u8]) -> Result<Range<usize>, Refused> {
        let Some(number) = self.decrypt(datagram) else {
            self.forged += 1;
            return Err(Refused::Forged);
        };
        match self.window.arrived(number) {
            Arrival::New => Ok(HEADER..datagram.len() - TAG),
            Arrival::Duplicate => Err(Refused::Duplicate),
            Arrival::TooOld => Err(Refused::Replayed),
        }
    }

    /// Whether a packet was opened: the peer sends on this lane.
    pub fn is_used(&self) -> bool {
        self.window.has_any()
    }

    /// What has been seen since the last time this was asked.
    pub fn take_counts(&mut self) -> Counts {
        self.window.take_counts()
    }

    /// The same for the last time: numbers that are still missing are lost.
    pub fn take_last_counts(&mut self) -> Counts {
        self.window.close();
        self.window.take_counts()
    }

    /// The packet number, if the packet is authentic.
    fn decrypt(&self, datagram: &mut [u8]) -> Option<u64> {
        if datagram.len() < HEADER + TAG || self.forged >= self.limit {
            return None;
        }
        let (header, payload) = datagram.split_at_mut(HEADER);
        let (first, number) = header.split_at_mut(1 + ID_LEN);
        self.keys.header.decrypt_in_place(&payload[..TAG], &mut first[0], number).ok()?;
        // there is one form of header only: no other bit may be set, and none is left out
        if first[0] != FIRST {
            return None;
        }
        let number = u64::from(u32::from_be_bytes((&*number).try_into().ok()?));
        self.keys.packet.decrypt_in_place(number, header, payload).ok()?;
        Some(number)
    }
}
