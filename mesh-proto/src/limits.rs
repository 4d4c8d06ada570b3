//! Every number two nodes share: value, unit, source.

use std::time::Duration;

/// Protocol version told in the hello. A node refuses another major version.
pub const PROTOCOL_VERSION: u16 = 2;

/// ALPN protocol name of a mesh tunnel (RFC 7301).
pub const ALPN: &[u8] = b"mesh/1";

/// Largest body of one control message, in bytes. A full exchange is cut into messages below this.
pub const MAX_MESSAGE: usize = 256 * 1024;

/// Most records in one message.
pub const MAX_RECORDS_PER_MESSAGE: usize = 64;

/// Largest signed record, in bytes.
pub const MAX_RECORD: usize = 16 * 1024;

/// Records a node keeps at most: a bound on memory that a hostile member can fill.
pub const MAX_RECORDS: usize = 8192;

/// Networks a node may have: a handle is one byte.
pub const MAX_NETWORKS: usize = 64;

/// Most packet workers of a node: each has a UDP port of its own.
pub const MAX_WORKERS: u8 = 16;

/// Lines of a packet's journey on one node: VM, host, host once more, VM, and room to grow.
pub const MAX_TRACE_HOPS: usize = 8;

/// Longest text in an answer about a packet's journey, in bytes.
pub const MAX_TRACE_TEXT: usize = 1024;

/// How long a peer has for its hello once the handshake is done.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// A UDP payload that every QUIC path carries. RFC 9000 section 14.
pub const MIN_UDP_PAYLOAD: u16 = 1200;

/// Bytes before the inner packet in a DATAGRAM: network handle, flags. See `frame`.
pub const FRAME_HEADER: usize = 2;
