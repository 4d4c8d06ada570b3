//! From one secret of the TLS connection to the keys of each lane: an HKDF ratchet (RFC 5869), each link of which makes one
//! lane and the next link, and is then overwritten. Cryptography is rustls', aws-lc's and ring's.
//!
//! ```text
//!  exporter secret = link 0 --> link 1 --> link 2 ...
//!                      |          |
//!                      lane 0     lane 1         each: secret -> QUIC keys of both directions, two IDs
//! ```

use std::fmt;

use aws_lc_rs::hkdf;
pub use rustls::Side;
use rustls::quic::Version;

use super::cipher::{Cipher, Provider};
use super::open::Opener;
use super::seal::Sealer;
use super::{ID_LEN, LaneId};

/// Bytes of a link.
pub const SECRET: usize = 32;

/// Both ends of one lane, as one side has them. Neither can be copied: a packet number exists once.
pub struct Lane {
    /// From 0; one more than that of the lane before.
    pub number: u32,
    /// Towards the peer.
    pub sealer: Sealer,
    /// From the peer.
    pub opener: Opener,
    /// Packets to us bear it.
    pub id: LaneId,
}

/// Makes lanes, one after the other. There is no way back to an earlier one.
pub struct Ratchet {
    link: [u8; SECRET],
    cipher: Cipher,
    provider: Provider,
    side: Side,
    next: u32,
}

impl fmt::Debug for Ratchet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ratchet")
            .field("cipher", &self.cipher)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Ratchet {
    /// From a secret that both sides, and nobody else, can compute; once for each such secret and worker. `agreed` is what both have
    /// said of lanes: who heard something else comes to other keys. `side` is who dialled (the client) or accepted.
    pub fn new(secret: &[u8; SECRET], agreed: &[u8], worker: u8, cipher: Cipher, side: Side) -> Self {
        let link = hkdf::Salt::new(hkdf::HKDF_SHA256, b"mesh lanes 1").extract(secret);
        let link = expand(&link, &[b"mesh lane first", &[worker], agreed]);
        Self { link, cipher, provider: Provider::fastest(cipher), side, next: 0 }
    }

    /// The same, with the packets protected by this provider's code.
    pub fn by(mut self, provider: Provider) -> Self {
        self.provider = provider;
        self
    }

    /// What the lanes are protected with.
    pub fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// The next lane; the link it comes from is gone afterwards.
    pub fn next_lane(&mut self) -> Lane {
        let link = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, &self.link);
        let secret: [u8; SECRET] = expand(&link, &[b"mesh lane secret"]);
        let to_server = LaneId::new(expand::<ID_LEN>(&link, &[b"mesh lane id to acceptor"]));
        let to_client = LaneId::new(expand::<ID_LEN>(&link, &[b"mesh lane id to dialer"]));
        self.link = expand(&link, &[b"mesh lane next"]);
        let number = self.next;
        self.next += 1;
        // the construction of RFC 9001 section 5.2, which takes any bytes as its input
        let keys = self.provider.suite(self.cipher).keys(&secret, self.side, Version::V1);
        let (ours, theirs) = match self.side {
            Side::Client => (to_client, to_server),
            Side::Server => (to_server, to_client),
        };
        Lane { number, sealer: Sealer::new(keys.local, theirs), opener: Opener::new(keys.remote), id: ours }
    }
}

impl Drop for Ratchet {
    fn drop(&mut self) {
        self.link = [0; SECRET];
        std::hint::black_box(&self.link);
    }
}

fn expand<const N: usize>(link: &hkdf::Prk, info: &[&[u8]]) -> [u8; N] {
    struct Bytes(usize);
    impl hkdf::KeyType for Bytes {
        fn len(&self) -> usize {
            self.0
        }
    }
    let mut out = [0; N];
    let filled = link.expand(info, Bytes(N)).and_then(|okm| okm.fill(&mut out));
    filled.expect("HKDF-SHA-256 gives up to 8,160 bytes");
    out
}
