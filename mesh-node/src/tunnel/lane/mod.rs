//! Lanes: packets of QUIC's shape (RFC 9000 section 17.3, RFC 9001 section 5, RFC 9221) with keys, connection IDs and packet
//! numbers of their own, made and read by the packet threads. `docs/wire.md` is the specification.
//!
//! ```text
//!  0          1                             9              13                                  n-16      n
//! +----------+-----------------------------+--------------+-----------------------------------+---------+
//! | 0 1 . .  | lane's ID, first bit set    | packet number| DATAGRAM frames, each a frame of  | AEAD tag|
//! |          |                             | (protected)  | `mesh_proto::frame` (encrypted)   |         |
//! +----------+-----------------------------+--------------+-----------------------------------+---------+
//! ```
//!
//! Everything here is pure: [`keys`] makes lanes from a secret for a [`cipher`], [`seal`] and [`open`] use them, [`train`] fills
//! datagrams, [`frames`] empties them, [`agreement`] says when a lane is made and used, [`proof`] whether its packets get through, [`probe`]
//! is a lane for probes. Sockets are `io::lane`'s.

pub mod agreement;
pub mod cipher;
pub mod frames;
pub mod keys;
pub mod open;
pub mod probe;
pub mod proof;
pub mod seal;
pub mod train;
pub mod window;

#[cfg(test)]
mod tests;

use super::Room;

/// Bytes of a connection ID, quinn's and ours.
pub const ID_LEN: usize = 8;

/// Bytes before the encrypted part: first byte, ID, packet number. The number is never shortened, so that it needs no
/// guess at the receiver.
pub const HEADER: usize = 1 + ID_LEN + NUMBER;

/// Bytes of a packet number.
const NUMBER: usize = 4;

/// Bytes of the AEAD tag of every cipher that QUIC has (RFC 9001 section 5.3).
pub const TAG: usize = 16;

/// Set in the first byte of a lane's connection ID, clear in quinn's.
pub const LANE_BIT: u8 = 0x80;

/// First byte before header protection: short header, fixed bit, no spin, no key phase, a packet number of four bytes.
const FIRST: u8 = 0x43;

/// A DATAGRAM frame that reaches to the end of its packet, and one with a length (RFC 9221 section 4).
const DATAGRAM: u8 = 0x30;
const DATAGRAM_WITH_LENGTH: u8 = 0x31;

/// What a lane needs around a frame that has a datagram to itself.
pub const ROOM: Room = Room { head: HEADER + 1, tail: TAG };

/// Names a lane's receiving end; whoever sends to it writes it into each packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LaneId([u8; ID_LEN]);

impl LaneId {
    /// Any bytes, with the lane bit set.
    fn new(mut bytes: [u8; ID_LEN]) -> Self {
        bytes[0] |= LANE_BIT;
        Self(bytes)
    }

    /// The ID that a datagram claims, if it may be a lane's: a short header with the lane bit in its connection ID. The fixed
    /// bit is not asked, since quinn greases it (RFC 9287).
    pub fn claimed(datagram: &[u8]) -> Option<Self> {
        let (first, rest) = datagram.split_first()?;
        let id: &[u8; ID_LEN] = rest.first_chunk()?;
        (first & 0x80 == 0 && id[0] & LANE_BIT != 0).then_some(Self(*id))
    }
}
