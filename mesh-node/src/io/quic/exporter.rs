//! The secrets that a connection's lanes, and its lane for probes, grow from: TLS's exporter (RFC 8446 section 7.5).

use std::fmt;

use aws_lc_rs::digest::{Context, SHA256};
use mesh_proto::codec;
use mesh_proto::hello::Hello;

/// RFC 5705 section 4: labels that are not registered begin so.
const LANES: &[u8] = b"EXPERIMENTAL mesh lanes 1";
const PROBES: &[u8] = b"EXPERIMENTAL mesh probes 1";

/// Known to the two ends of one connection, and to nobody else. It is used once, and so cannot be copied: lanes made of it twice
/// would have the same keys.
pub struct LaneSecret([u8; 32]);

impl fmt::Debug for LaneSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LaneSecret")
    }
}

impl LaneSecret {
    /// The bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn export(connection: &quinn::Connection, label: &[u8], context: &[u8]) -> Option<Self> {
        let mut secret = [0; 32];
        connection.export_keying_material(&mut secret, label, context).ok()?;
        Some(Self(secret))
    }
}

/// All that one connection has.
#[derive(Debug)]
pub struct Secrets {
    /// Of its lanes.
    pub lanes: LaneSecret,
    /// Of its lane for probes.
    pub probes: LaneSecret,
}

impl Secrets {
    /// Of a connection on which both have proved who they are and said hello. The exporter covers the handshake up to the
    /// server's Finished; the dialer's certificate, which comes after that, and the hellos are bound in by its context. `None`:
    /// TLS has no secret to give, which is so of a connection that has ended.
    pub fn export(
        connection: &quinn::Connection,
        certificate_of_dialer: &[u8],
        dialer: &Hello,
        acceptor: &Hello,
    ) -> Option<Self> {
        let mut hash = Context::new(&SHA256);
        for part in [certificate_of_dialer, &codec::encode(dialer), &codec::encode(acceptor)] {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let context = hash.finish();
        let secret = |label| LaneSecret::export(connection, label, context.as_ref());
        Some(Self { lanes: secret(LANES)?, probes: secret(PROBES)? })
    }
}
