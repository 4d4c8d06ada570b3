//! bincode behind one door, and the header of a control message.
//!
//! ```text
//!  0       2        3       4              8
//!  +-------+--------+-------+--------------+------------ - -
//!  | magic | version| kind  | body length  | body (bincode)
//!  +-------+--------+-------+--------------+------------ - -
//! ```
//! The header is outside bincode, so a node can step over a kind that it does not know. Numbers are big endian.
//! A body is decoded with a byte limit and must be used up exactly: without a limit a hostile length makes bincode
//! allocate without bound, and it accepts trailing bytes.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};

use crate::limits::MAX_MESSAGE;

/// Bytes before a message's body.
pub const HEADER: usize = 8;
const MAGIC: u16 = 0x4d45;
const VERSION: u8 = 1;

/// bincode's limit counts memory, not wire bytes: numbers that are short on the wire take up to eight bytes there.
type Bounded = Configuration<LittleEndian, Varint, Limit<{ MAX_MESSAGE * 8 }>>;

fn config() -> Bounded {
    bincode::config::standard().with_limit()
}

/// Bytes that are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not a message of ours.
    #[error("bad magic {0:#06x}")]
    Magic(u16),
    /// A header version that this node does not speak.
    #[error("message version {0} is not {VERSION}")]
    Version(u8),
    /// Announces more than a message may have.
    #[error("message of {0} bytes is longer than {MAX_MESSAGE}")]
    TooLong(usize),
    /// The body is not of its kind.
    #[error("malformed body: {0}")]
    Body(String),
    /// Bytes are left behind the body.
    #[error("{0} bytes behind the end of the body")]
    Trailing(usize),
}

/// Header of a message: its kind and the length of its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Kind of the message.
    pub kind: u8,
    /// Bytes that follow.
    pub len: usize,
}

impl Header {
    /// Reads a header.
    pub fn decode(bytes: &[u8; HEADER]) -> Result<Self, DecodeError> {
        let magic = u16::from_be_bytes([bytes[0], bytes[1]]);
        if magic != MAGIC {
            return Err(DecodeError::Magic(magic));
        }
        if bytes[2] != VERSION {
            return Err(DecodeError::Version(bytes[2]));
        }
        let len = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
        if len > MAX_MESSAGE {
            return Err(DecodeError::TooLong(len));
        }
        Ok(Self { kind: bytes[3], len })
    }

    /// Writes a header.
    pub fn encode(&self) -> [u8; HEADER] {
        let [m0, m1] = MAGIC.to_be_bytes();
        let [l0, l1, l2, l3] = (self.len as u32).to_be_bytes();
        [m0, m1, VERSION, self.kind, l0, l1, l2, l3]
    }
}

/// Bytes of a value.
pub fn encode<T: bincode::Encode>(value: &T) -> Vec<u8> {
    bincode::encode_to_vec(value, config()).expect("encoding into memory fails for no type of ours")
}

/// A value from exactly these bytes.
pub fn decode<T: bincode::Decode<()>>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(DecodeError::TooLong(bytes.len()));
    }
    let (value, used) =
        bincode::decode_from_slice(bytes, config()).map_err(|e| DecodeError::Body(e.to_string()))?;
    if used != bytes.len() {
        return Err(DecodeError::Trailing(bytes.len() - used));
    }
    Ok(value)
}
