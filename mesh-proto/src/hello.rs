//! Control messages, and the first exchange on a new tunnel.
//!
//! ```text
//!   dialer                               acceptor
//!     │ ── TLS 1.3, both certificates ──── │
//!     │ ── Hello ────────────────────────► │  checks version, mesh, that the name is the certificate's
//!     │ ◄──────────────────────── Hello ── │  up
//!  up │ ◄──────────── Records, … ────────► │
//! ```
//! A dialer believes that it is connected before the acceptor has seen its certificate (TLS 1.3), so a tunnel is up
//! only when the peer's hello has arrived.

use bincode::{Decode, Encode};

use crate::codec::{self, DecodeError, HEADER, Header};
use crate::record::SignedRecord;
use crate::trace::{TraceReply, TraceRequest};
use crate::{MeshId, NetworkName, NodeId};

/// What a node says first.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// `limits::PROTOCOL_VERSION` of the sender.
    pub version: u16,
    /// The sender's mesh.
    pub mesh: MeshId,
    /// The sender's name; must be the one in its certificate.
    pub node: NodeId,
    /// Rises at each start of the sender: the newer of two connections wins.
    pub generation: u64,
    /// Networks that the sender carries, with the handle that packets *to the sender* have to bear.
    pub networks: Vec<NetworkHandle>,
}

/// A network and its number at the node that says so.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct NetworkHandle {
    /// Byte in front of each packet.
    pub handle: u8,
    /// The network.
    pub name: NetworkName,
}

/// What a node that has lanes says after its hello. One that has none steps over it, and packets travel as DATAGRAM frames of
/// the connection.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct LaneOffer {
    /// AEADs by the numbers of TLS cipher suites (RFC 8446 appendix B.4), the best first. That of the dialer decides.
    pub ciphers: Vec<u16>,
    /// Packet workers of the sender: it receives lanes on as many UDP ports, the first of which is the connection's.
    pub workers: u8,
}

/// The sender can receive a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct LaneReady {
    /// Whose lane it is: that of the workers of this number, which both sides have.
    pub worker: u8,
    /// From 0, one after the other.
    pub lane: u32,
}

/// The answer to a packet without frames on a lane of this worker: it has come, so that packets get through to the port that they go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct LaneHeard {
    /// Not 0, whose packets go where the connection's go.
    pub worker: u8,
}

/// All that goes over a control stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// First, both ways.
    Hello(Hello),
    /// Records that the sender knows.
    Records(Vec<SignedRecord>),
    /// See there.
    TraceRequest(TraceRequest),
    /// See there.
    TraceReply(TraceReply),
    /// The sender's networks have changed: in place of those of its hello.
    Networks(Vec<NetworkHandle>),
    /// See there.
    LaneOffer(LaneOffer),
    /// See there.
    LaneReady(LaneReady),
    /// See there.
    LaneHeard(LaneHeard),
    /// The sender can receive probes beside the connection. One that cannot steps over it, and probes travel as DATAGRAM frames.
    ProbesReady,
}

impl Message {
    /// Header and body.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, body) = match self {
            Self::Hello(m) => (1, codec::encode(m)),
            Self::Records(m) => (2, codec::encode(m)),
            Self::TraceRequest(m) => (3, codec::encode(m)),
            Self::TraceReply(m) => (4, codec::encode(m)),
            Self::Networks(m) => (5, codec::encode(m)),
            Self::LaneOffer(m) => (16, codec::encode(m)),
            Self::LaneReady(m) => (17, codec::encode(m)),
            Self::ProbesReady => (18, codec::encode(&())),
            Self::LaneHeard(m) => (19, codec::encode(m)),
        };
        let mut bytes = Vec::with_capacity(HEADER + body.len());
        bytes.extend_from_slice(&Header { kind, len: body.len() }.encode());
        bytes.extend_from_slice(&body);
        bytes
    }

    /// `None`: a kind of a later version, to be stepped over.
    pub fn decode(kind: u8, body: &[u8]) -> Result<Option<Self>, DecodeError> {
        Ok(Some(match kind {
            1 => Self::Hello(codec::decode(body)?),
            2 => Self::Records(codec::decode(body)?),
            3 => Self::TraceRequest(codec::decode(body)?),
            4 => Self::TraceReply(codec::decode(body)?),
            5 => Self::Networks(codec::decode(body)?),
            16 => Self::LaneOffer(codec::decode(body)?),
            17 => Self::LaneReady(codec::decode(body)?),
            18 => codec::decode(body).map(|()| Self::ProbesReady)?,
            19 => Self::LaneHeard(codec::decode(body)?),
            _ => return Ok(None),
        }))
    }
}

/// Why a connection is closed: the code of QUIC's CONNECTION_CLOSE of type 0x1d (RFC 9000 section 19.19).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CloseCode {
    /// Given up before the hello; also what QUIC says for a connection that is simply dropped.
    Abandoned = 0,
    /// The other of two connections is kept.
    Superseded = 1,
    /// Another protocol version.
    Version = 2,
    /// Another mesh.
    Mesh = 3,
    /// Not the node that was expected.
    Name = 4,
    /// A message was malformed or out of turn.
    Protocol = 5,
    /// The record claims what the certificate does not allow.
    Grant = 6,
    /// The operator removed the peer.
    Removed = 7,
    /// The peer's certificate has expired.
    Expired = 8,
    /// No hello in time.
    Timeout = 9,
    /// The node leaves.
    Leaving = 10,
}

impl CloseCode {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Abandoned,
        Self::Superseded,
        Self::Version,
        Self::Mesh,
        Self::Name,
        Self::Protocol,
        Self::Grant,
        Self::Removed,
        Self::Expired,
        Self::Timeout,
        Self::Leaving,
    ];

    /// From a number on the wire.
    pub fn from_wire(code: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|c| *c as u64 == code)
    }

    /// Label in metrics and logs.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Abandoned => "abandoned",
            Self::Leaving => "leaving",
            Self::Superseded => "superseded",
            Self::Version => "version",
            Self::Mesh => "other_mesh",
            Self::Name => "name_mismatch",
            Self::Protocol => "protocol",
            Self::Grant => "prefix_not_allowed",
            Self::Removed => "removed",
            Self::Expired => "certificate_expired",
            Self::Timeout => "timeout",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Message {
        Message::Hello(Hello {
            version: 1,
            mesh: "lab".parse().unwrap(),
            node: "ph1".parse().unwrap(),
            generation: 7,
            networks: vec![NetworkHandle { handle: 0, name: "default".parse().unwrap() }],
        })
    }

    fn split(bytes: &[u8]) -> (Header, &[u8]) {
        (Header::decode(bytes[..HEADER].try_into().unwrap()).unwrap(), &bytes[HEADER..])
    }

    #[test]
    fn a_message_survives_the_wire() {
        let bytes = hello().encode();
        let (header, body) = split(&bytes);
        assert_eq!(header.len, body.len());
        assert_eq!(Message::decode(header.kind, body).unwrap(), Some(hello()));
    }

    #[test]
    fn the_bytes_of_a_hello_do_not_change() {
        let (_, body) = (0, &hello().encode()[HEADER..].to_vec());
        assert_eq!(body.as_slice(), b"\x01\x03lab\x03ph1\x07\x01\x00\x07default");
    }

    #[test]
    fn the_bytes_about_lanes_do_not_change() {
        for (message, kind, bytes) in [
            (
                Message::LaneOffer(LaneOffer { ciphers: vec![0x1301], workers: 2 }),
                16,
                &b"\x01\xfb\x01\x13\x02"[..],
            ),
            (Message::LaneReady(LaneReady { worker: 1, lane: 7 }), 17, b"\x01\x07"),
            (Message::ProbesReady, 18, b""),
            (Message::LaneHeard(LaneHeard { worker: 1 }), 19, b"\x01"),
        ] {
            let encoded = message.encode();
            let (header, body) = split(&encoded);
            assert_eq!((header.kind, body), (kind, bytes));
            assert_eq!(Message::decode(header.kind, body), Ok(Some(message)));
        }
    }

    #[test]
    fn trailing_and_missing_bytes_are_refused_and_unknown_kinds_stepped_over() {
        let bytes = hello().encode();
        let (header, body) = split(&bytes);
        let mut longer = body.to_vec();
        longer.push(0);
        assert_eq!(Message::decode(header.kind, &longer), Err(DecodeError::Trailing(1)));
        assert!(Message::decode(header.kind, &body[..body.len() - 1]).is_err());
        assert_eq!(Message::decode(200, body), Ok(None));
    }

    #[test]
    fn hostile_lengths_are_refused_without_allocating() {
        // a Vec of 2^64 - 1 records
        let body = [0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        assert!(Message::decode(2, &body).is_err());
        let mut header = Header { kind: 1, len: 0 }.encode();
        header[4] = 0xff;
        assert!(matches!(Header::decode(&header), Err(DecodeError::TooLong(_))));
        header[0] = 0;
        assert!(matches!(Header::decode(&header), Err(DecodeError::Magic(_))));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(kind in 0u8..20, body in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            let _ = Message::decode(kind, &body);
        }
    }
}
