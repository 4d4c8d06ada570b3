//! The frames of an opened packet. Their lengths are a peer's word: nothing is believed beyond the packet's end.

use std::ops::Range;

use super::{DATAGRAM, DATAGRAM_WITH_LENGTH};

const PADDING: u8 = 0;

/// A frame of a kind that lanes do not have, or one that claims more bytes than there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a lane's packet holds what is no DATAGRAM frame")]
pub struct Malformed;

/// Goes through the frames one by one without holding the bytes, so that each may be rewritten in between.
#[derive(Debug)]
pub struct Frames {
    at: usize,
    end: usize,
}

impl Frames {
    /// Of the frames at a range of a buffer.
    pub fn new(range: Range<usize>) -> Self {
        Self { at: range.start, end: range.end }
    }

    /// Where the next DATAGRAM's data is in `buffer`. After an error there is no more.
    pub fn next_in(&mut self, buffer: &[u8]) -> Option<Result<Range<usize>, Malformed>> {
        let bytes = buffer.get(..self.end)?;
        while bytes.get(self.at) == Some(&PADDING) {
            self.at += 1;
        }
        let kind = *bytes.get(self.at)?;
        let data = match kind {
            DATAGRAM => Some(self.at + 1..self.end),
            DATAGRAM_WITH_LENGTH => length(&bytes[self.at + 1..]).and_then(|(len, took)| {
                let start = self.at + 1 + took;
                let end = start.checked_add(usize::try_from(len).ok()?)?;
                (end <= self.end).then_some(start..end)
            }),
            _ => None,
        };
        self.at = data.as_ref().map_or(self.end, |data| data.end);
        Some(data.ok_or(Malformed))
    }
}

/// A variable-length integer (RFC 9000 section 16), and how many bytes it took.
fn length(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let len = 1 << (first >> 6);
    let rest = bytes.get(1..len)?;
    Some((rest.iter().fold(u64::from(first & 0x3f), |value, byte| value << 8 | u64::from(*byte)), len))
}
