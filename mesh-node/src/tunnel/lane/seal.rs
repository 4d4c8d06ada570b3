//! The sending end of a lane.

use std::fmt;

use rustls::quic::DirectionalKeys;

use super::{FIRST, HEADER, ID_LEN, LaneId, TAG};

/// Packet numbers that four bytes hold; a lane ends before it needs a fifth.
const NUMBERS: u64 = 1 << 32;

/// Protects packets. One writer at a time has it (`&mut`), it cannot be copied, and its number only rises: a nonce cannot
/// repeat.
pub struct Sealer {
    keys: DirectionalKeys,
    id: LaneId,
    next: u64,
    limit: u64,
}

/// The lane has protected as many packets as its keys may (RFC 9001 section 6.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the lane has carried all the packets that its keys may")]
pub struct Spent;

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("id", &self.id).field("next", &self.next).finish_non_exhaustive()
    }
}

impl Sealer {
    pub(super) fn new(keys: DirectionalKeys, id: LaneId) -> Self {
        let limit = keys.packet.confidentiality_limit().min(NUMBERS);
        Self { keys, id, next: 0, limit }
    }

    /// Ends after fewer packets than the cipher allows, never after more.
    pub fn limited(mut self, packets: u64) -> Self {
        self.limit = self.limit.min(packets);
        self
    }

    /// Packets it may still protect.
    pub fn left(&self) -> u64 {
        self.limit.saturating_sub(self.next)
    }

    /// Packets it has protected.
    pub fn used(&self) -> u64 {
        self.next
    }

    /// Turns a datagram (room for the header, frames, room for the tag) into a packet, in place.
    ///
    /// # Panics
    /// If it is shorter than header and tag.
    pub fn seal(&mut self, datagram: &mut [u8]) -> Result<(), Spent> {
        if self.left() == 0 {
            return Err(Spent);
        }
        let number = self.next;
        // first of all: whatever happens below, this number is used up
        self.next += 1;
        let (header, rest) = datagram.split_at_mut(HEADER);
        header[0] = FIRST;
        header[1..=ID_LEN].copy_from_slice(&self.id.0);
        header[1 + ID_LEN..].copy_from_slice(&(number as u32).to_be_bytes());
        let (payload, tag) = rest.split_at_mut(rest.len() - TAG);
        let sealed = self.keys.packet.encrypt_in_place(number, header, payload).map_err(|_| Spent)?;
        tag.copy_from_slice(sealed.as_ref());
        // RFC 9001 section 5.4.2: the sample begins four bytes after the packet number does
        let (first, numbers) = header.split_at_mut(1 + ID_LEN);
        self.keys.header.encrypt_in_place(&rest[..TAG], &mut first[0], numbers).map_err(|_| Spent)
    }
}
