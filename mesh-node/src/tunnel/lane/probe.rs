//! A lane for probes alone: a packet holds one, nothing else, and has one size. It has keys of its own, so that whoever sends probes
//! shares neither a lock nor a packet number with who sends VMs' packets.

use mesh_proto::frame;
use mesh_proto::limits::FRAME_HEADER;
use mesh_proto::liveness::Probe;

use super::cipher::Cipher;
use super::frames::Frames;
use super::keys::{Lane, Ratchet, SECRET, Side};
use super::open::{Opener, Refused};
use super::seal::{Sealer, Spent};
use super::{DATAGRAM, HEADER, TAG};

/// Bytes of each packet.
pub const LEN: usize = HEADER + 1 + FRAME_HEADER + Probe::LEN + TAG;

/// The one lane that grows from a secret; once for each such secret. ChaCha20-Poly1305 protects 2^32 packets: at the fastest pace
/// a year of them, so that there is no second lane.
pub fn lane(secret: &[u8; SECRET], side: Side) -> Lane {
    Ratchet::new(secret, b"", 0, Cipher::ChaCha20Poly1305, side).next_lane()
}

/// A probe's packet.
pub fn seal(sealer: &mut Sealer, probe: &Probe) -> Result<[u8; LEN], Spent> {
    let mut packet = [0; LEN];
    packet[HEADER] = DATAGRAM;
    packet[HEADER + 1..LEN - TAG].copy_from_slice(&frame::probe_frame(&probe.encode()));
    sealer.seal(&mut packet)?;
    Ok(packet)
}

/// The probe's frame in a packet, which may be malformed; nothing else is one.
pub fn open<'p>(opener: &mut Opener, packet: &'p mut [u8]) -> Result<&'p [u8], Refused> {
    let mut frames = Frames::new(opener.open(packet)?);
    let frame = frames.next_in(packet).and_then(Result::ok);
    Ok(frame.map_or(&[], |frame| &packet[frame]))
}

/// For tests: a probe of the peer's session 9 to session 7.
#[cfg(test)]
pub(crate) const EXAMPLE: Probe = Probe {
    state: mesh_proto::liveness::State::Up,
    diagnostic: mesh_proto::liveness::Diagnostic::None,
    multiplier: 3,
    my_discriminator: 9,
    your_discriminator: 7,
    desired_min_tx_us: 50_000,
    required_min_rx_us: 50_000,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::lane::LaneId;

    #[test]
    fn a_probe_comes_through_once_and_unchanged_only() {
        for (from, to) in [(Side::Client, Side::Server), (Side::Server, Side::Client)] {
            let (mut from, mut to) = (lane(&[7; 32], from), lane(&[7; 32], to));
            let packet = seal(&mut from.sealer, &EXAMPLE).unwrap();
            assert_eq!(LaneId::claimed(&packet), Some(to.id));
            for bit in 0..LEN * 8 {
                let mut forged = packet;
                forged[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(open(&mut to.opener, &mut forged), Err(Refused::Forged), "bit {bit}");
            }
            let mut shorter = packet;
            assert_eq!(open(&mut to.opener, &mut shorter[..LEN - 1]), Err(Refused::Forged));
            let mut whole = packet;
            let frame = open(&mut to.opener, &mut whole).unwrap();
            assert_eq!(Probe::decode(frame::probe(frame).unwrap()), Ok(EXAMPLE));
            let mut again = packet;
            assert_eq!(open(&mut to.opener, &mut again), Err(Refused::Duplicate));
        }
    }

    #[test]
    fn another_secret_and_the_way_back_open_nothing() {
        let mut sent = lane(&[7; 32], Side::Client);
        for (secret, side) in [([8; 32], Side::Server), ([7; 32], Side::Client)] {
            let mut packet = seal(&mut sent.sealer, &EXAMPLE).unwrap();
            assert_eq!(open(&mut lane(&secret, side).opener, &mut packet), Err(Refused::Forged));
        }
    }
}
