//! The IPv6 header and its extension headers (RFC 8200 sections 3 and 4).

use super::{Fragment, Layout, Malformed, read_u16};

/// Length without extension headers.
pub const HEADER: usize = 40;
/// Offset of the payload length.
pub const PAYLOAD_LENGTH: usize = 4;
/// Offset of the source address; the destination follows it.
pub const SOURCE: usize = 8;

/// Extension headers looked through. RFC 8200 section 4.1 names seven at most, so that more are hostile.
const MAX_EXTENSIONS: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// Where the parts are. `quoted`: the packet inside an ICMP error, which may be cut short anywhere after its header.
pub(super) fn layout(bytes: &[u8], quoted: bool) -> Result<Layout, Malformed> {
    if bytes.len() < HEADER {
        return Err(Malformed::Length);
    }
    let total = HEADER + usize::from(read_u16(bytes, PAYLOAD_LENGTH));
    if !quoted && total != bytes.len() {
        return Err(Malformed::Length);
    }
    let end = total.min(bytes.len());
    let mut protocol = bytes[6];
    let mut at = HEADER;
    let mut fragment = Fragment::Whole;
    for _ in 0..=MAX_EXTENSIONS {
        if !matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
            || fragment == Fragment::Later
        {
            return Ok(Layout { v4: false, protocol, transport: at, end, fragment });
        }
        let Some(&[next, len, kind, segments_left]) = bytes[at..end].first_chunk() else {
            return Err(Malformed::Length);
        };
        let mut header_len = 8 * (usize::from(len) + 1);
        match protocol {
            // The pseudo-header then has an address of the list (RFC 8200 section 8.1), and the packet would go past the
            // destination that was checked (RFC 5095).
            ROUTING if segments_left != 0 => return Err(Malformed::SourceRoute),
            FRAGMENT => {
                header_len = 8;
                let word = u16::from_be_bytes([kind, segments_left]);
                fragment = Fragment::of(word >> 3, word & 1 != 0);
            }
            _ => {}
        }
        if header_len > end - at {
            return Err(Malformed::Length);
        }
        at += header_len;
        protocol = next;
    }
    Err(Malformed::Extensions)
}
