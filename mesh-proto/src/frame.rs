//! The frame around one inner packet: what the payload of a QUIC DATAGRAM (RFC 9221) holds.
//!
//! ```text
//!  0               1               2
//! +---------------+---------------+------------------------
//! | network       | flags         | inner packet (IPv4/IPv6)
//! +---------------+---------------+------------------------
//!                  0 0 0 0 0 0 0 P      P: checksum partial
//! ```
//!
//! `network` is the *receiver's* number of the network, as its hello tells. Both bytes are authenticated with the
//! packet. Whether the peer may use that network is for `mesh-node`'s `forward` to say, packet by packet.
//!
//! A frame without a packet measures the path ([`Echo`]), or proves that its sender is alive ([`probe`]).

use crate::limits::FRAME_HEADER;
use crate::liveness::Probe;

/// The transport checksum covers the pseudo-header only: the sending kernel left the rest to the last hop.
const PARTIAL: u8 = 1;

/// What stands before the inner packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// The receiver's number of the network.
    pub network: u8,
    /// Whether the transport checksum is still to be finished.
    pub checksum_partial: bool,
}

/// Bytes that are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No room for a header and at least one byte of packet.
    #[error("a frame of {0} bytes has no packet in it")]
    Short(usize),
    /// A flag that no version of ours has. Its meaning cannot be guessed, so the packet is not used.
    #[error("unknown flags {0:#04x} in a frame")]
    Flags(u8),
}

impl FrameHeader {
    /// The header as it goes on the wire.
    pub fn encode(self) -> [u8; FRAME_HEADER] {
        [self.network, if self.checksum_partial { PARTIAL } else { 0 }]
    }

    /// Splits a frame into header and inner packet. The packet is never empty, and otherwise unchecked.
    pub fn decode(frame: &[u8]) -> Result<(Self, &[u8]), FrameError> {
        match frame {
            [] | [_] | [_, _] => Err(FrameError::Short(frame.len())),
            [_, flags, ..] if flags & !PARTIAL != 0 => Err(FrameError::Flags(*flags)),
            [network, flags, packet @ ..] => {
                Ok((Self { network: *network, checksum_partial: flags & PARTIAL != 0 }, packet))
            }
        }
    }
}

/// Holds a probe ([`crate::liveness::Probe`]).
const PROBE: u8 = 8;

/// The frame of a probe.
pub fn probe_frame(probe: &[u8; Probe::LEN]) -> [u8; FRAME_HEADER + Probe::LEN] {
    let mut frame = [0; FRAME_HEADER + Probe::LEN];
    frame[1] = PROBE;
    frame[FRAME_HEADER..].copy_from_slice(probe);
    frame
}

/// The probe in a frame, unchecked; `None`: something else.
pub fn probe(frame: &[u8]) -> Option<&[u8]> {
    match frame {
        [0, PROBE, bytes @ ..] => Some(bytes),
        _ => None,
    }
}

/// Asks the peer for an answer, or is one.
const ECHO_REQUEST: u8 = 2;
const ECHO_REPLY: u8 = 4;

/// Measures round trip and size: a request comes back as a reply of the same size. After header and number it is padding.
///
/// ```text
///  0        1        2                                     10
/// +--------+--------+-------------------------------------+---------
/// | 0      | 2 or 4 | number, big endian                  | padding
/// +--------+--------+-------------------------------------+---------
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// Whether it answers.
    pub reply: bool,
    /// Chosen by who asks.
    pub number: u64,
}

impl Echo {
    /// Smallest frame that holds one.
    pub const LEN: usize = FRAME_HEADER + size_of::<u64>();

    /// The frame, at least `Echo::LEN` long.
    pub fn encode(self, len: usize) -> Vec<u8> {
        let mut frame = vec![0; len.max(Self::LEN)];
        frame[1] = if self.reply { ECHO_REPLY } else { ECHO_REQUEST };
        frame[FRAME_HEADER..Self::LEN].copy_from_slice(&self.number.to_be_bytes());
        frame
    }

    /// `None`: not an echo, but a packet or nonsense.
    pub fn decode(frame: &[u8]) -> Option<Self> {
        let reply = match frame {
            [0, ECHO_REQUEST, ..] => false,
            [0, ECHO_REPLY, ..] => true,
            _ => return None,
        };
        let (number, _padding) = frame[FRAME_HEADER..].split_first_chunk()?;
        Some(Self { reply, number: u64::from_be_bytes(*number) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_no_packet_and_no_echo() {
        let frame = probe_frame(&[7; Probe::LEN]);
        assert_eq!(probe(&frame), Some(&[7; Probe::LEN][..]));
        assert!(FrameHeader::decode(&frame).is_err() && Echo::decode(&frame).is_none());
        assert_eq!(probe(&Echo { reply: false, number: 1 }.encode(0)), None);
        assert_eq!(probe(&[1, 8, 0]), None);
    }

    #[test]
    fn an_echo_is_no_packet_and_a_packet_no_echo() {
        for reply in [false, true] {
            let echo = Echo { reply, number: 0x0102_0304_0506_0708 };
            for len in [0, Echo::LEN, 1400] {
                let frame = echo.encode(len);
                assert_eq!((frame.len(), Echo::decode(&frame)), (len.max(Echo::LEN), Some(echo)));
                assert!(FrameHeader::decode(&frame).is_err());
            }
        }
        assert_eq!(Echo { reply: false, number: 1 }.encode(0), [0, 2, 0, 0, 0, 0, 0, 0, 0, 1]);
        let mut packet = FrameHeader { network: 0, checksum_partial: true }.encode().to_vec();
        packet.extend_from_slice(&[0; 20]);
        assert_eq!(Echo::decode(&packet), None);
        for short in 0..Echo::LEN {
            assert_eq!(Echo::decode(&Echo { reply: true, number: 1 }.encode(0)[..short]), None);
        }
    }

    #[test]
    fn a_header_comes_back_as_it_was_sent() {
        for network in [0, 1, 63, 255] {
            for checksum_partial in [false, true] {
                let header = FrameHeader { network, checksum_partial };
                let mut frame = header.encode().to_vec();
                frame.extend_from_slice(b"packet");
                assert_eq!(FrameHeader::decode(&frame), Ok((header, &b"packet"[..])));
            }
        }
    }

    #[test]
    fn the_bytes_on_the_wire_are_these() {
        assert_eq!(FrameHeader { network: 7, checksum_partial: false }.encode(), [7, 0]);
        assert_eq!(FrameHeader { network: 7, checksum_partial: true }.encode(), [7, 1]);
    }

    #[test]
    fn a_frame_without_a_packet_is_refused() {
        for len in 0..=FRAME_HEADER {
            assert_eq!(FrameHeader::decode(&[0; FRAME_HEADER][..len]), Err(FrameError::Short(len)));
        }
    }

    #[test]
    fn every_flag_but_the_known_one_is_refused() {
        for flags in 0..=255u8 {
            let frame = [0, flags, 0x45];
            assert_eq!(FrameHeader::decode(&frame).is_ok(), flags <= 1, "{flags:#04x}");
        }
    }
}
