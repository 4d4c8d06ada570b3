//! The IPv4 header (RFC 791): where its fields are, and what a header must fulfil.

use super::{Fragment, Layout, Malformed, read_u16};

/// Length without options.
pub const MIN_HEADER: usize = 20;
/// Offset of the total length.
pub const TOTAL_LENGTH: usize = 2;
/// Offset of the identification.
pub const IDENTIFICATION: usize = 4;
/// Offset of flags and fragment offset.
pub const FRAGMENT: usize = 6;
/// Offset of the header checksum.
pub const CHECKSUM: usize = 10;
/// Offset of the source address; the destination follows it.
pub const SOURCE: usize = 12;
/// "Don't fragment", in the word at [`FRAGMENT`].
pub const DONT_FRAGMENT: u16 = 0x4000;

/// Where the parts are. `quoted`: the packet inside an ICMP error, which may be cut short anywhere after its header.
pub(super) fn layout(bytes: &[u8], quoted: bool) -> Result<Layout, Malformed> {
    if bytes.len() < MIN_HEADER {
        return Err(Malformed::Length);
    }
    let header = usize::from(bytes[0] & 0x0f) * 4;
    let total = usize::from(read_u16(bytes, TOTAL_LENGTH));
    if header < MIN_HEADER || header > bytes.len() || total < header || (!quoted && total != bytes.len()) {
        return Err(Malformed::Length);
    }
    check_options(&bytes[MIN_HEADER..header])?;
    let fragment = read_u16(bytes, FRAGMENT);
    let fragment = Fragment::of(fragment & 0x1fff, fragment & 0x2000 != 0);
    Ok(Layout { v4: true, protocol: bytes[9], transport: header, end: total.min(bytes.len()), fragment })
}

/// Refuses source routes: they would take a packet past the destination that was checked (RFC 7126 sections 4.3, 4.4).
fn check_options(mut options: &[u8]) -> Result<(), Malformed> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;
    loop {
        match options {
            [] | [END, ..] => return Ok(()),
            [NO_OPERATION, rest @ ..] => options = rest,
            [LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE, ..] => return Err(Malformed::SourceRoute),
            [_, len, ..] if *len >= 2 => {
                options = options.get(usize::from(*len)..).ok_or(Malformed::Length)?;
            }
            _ => return Err(Malformed::Length),
        }
    }
}
