//! Both ends of a lane in one process, without sockets.

use rustls::quic::{DirectionalKeys, Version};

use super::cipher::{Cipher, Provider};
use super::frames::{Frames, Malformed};
use super::keys::{Lane, Ratchet, Side};
use super::open::{Opener, Refused};
use super::seal::Sealer;
use super::*;

mod agreement;
mod frames;
mod packets;
mod replay;
mod trains;
mod window;

const SECRET: [u8; 32] = [7; 32];

fn ratchet(side: Side) -> Ratchet {
    Ratchet::new(&SECRET, b"offers", 0, Cipher::Aes128Gcm, side)
}

/// The first lane as both sides have it.
fn pair(cipher: Cipher) -> (Lane, Lane) {
    let make = |side| Ratchet::new(&SECRET, b"offers", 0, cipher, side).next_lane();
    (make(Side::Client), make(Side::Server))
}

fn sealed(sealer: &mut Sealer, payload: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; HEADER + payload.len() + TAG];
    datagram[HEADER..HEADER + payload.len()].copy_from_slice(payload);
    sealer.seal(&mut datagram).unwrap();
    datagram
}

fn opened(opener: &mut Opener, datagram: &[u8]) -> Result<Vec<u8>, Refused> {
    let mut datagram = datagram.to_vec();
    opener.open(&mut datagram).map(|range| datagram[range].to_vec())
}

fn all_frames(bytes: &[u8]) -> Result<Vec<Vec<u8>>, Malformed> {
    let mut frames = Frames::new(0..bytes.len());
    std::iter::from_fn(|| frames.next_in(bytes))
        .map(|frame| frame.map(|range| bytes[range].to_vec()))
        .collect()
}

/// Has a lane's keys and seals what no [`Sealer`] would: any header, any number, in any order.
struct Forger {
    keys: DirectionalKeys,
}

/// And the end that its packets are for.
fn forger(cipher: Cipher) -> (Forger, Opener) {
    let keys = |side| Provider::fastest(cipher).suite(cipher).keys(&SECRET, side, Version::V1);
    (Forger { keys: keys(Side::Client).local }, Opener::new(keys(Side::Server).remote))
}

impl Forger {
    fn seal(&self, first: u8, number: u32, payload: &[u8]) -> Vec<u8> {
        let mut header = [&[first, LANE_BIT][..], &[0; ID_LEN - 1], &number.to_be_bytes()].concat();
        let mut rest = payload.to_vec();
        let tag = self.keys.packet.encrypt_in_place(number.into(), &header, &mut rest).unwrap();
        rest.extend_from_slice(tag.as_ref());
        let (first, numbers) = header.split_at_mut(1 + ID_LEN);
        self.keys.header.encrypt_in_place(&rest[..TAG], &mut first[0], numbers).unwrap();
        [header, rest].concat()
    }
}
