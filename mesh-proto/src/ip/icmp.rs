//! The packet inside an ICMP error (RFC 792, RFC 4443 section 2.4; RFC 5508 section 4.2 for address translators).

use super::transport::{ICMP, ICMPV6};

/// Bytes of an ICMP error before the packet it quotes.
pub const QUOTE: usize = 8;

/// Whether a message of this type quotes the packet that caused it.
pub fn is_error(protocol: u8, v4: bool, kind: u8) -> bool {
    match protocol {
        // Unreachable, source quench, redirect, time exceeded, parameter problem.
        ICMP => v4 && matches!(kind, 3 | 4 | 5 | 11 | 12),
        // RFC 4443 section 2.1: errors have the highest bit clear.
        ICMPV6 => !v4 && matches!(kind, 1..128),
        _ => false,
    }
}
