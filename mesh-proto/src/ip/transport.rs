//! Where TCP, UDP and ICMP keep what forwarding touches (RFC 9293, 768, 792, 4443; also RFC 3828 and 4340).

/// ICMP for IPv4.
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// DCCP.
pub const DCCP: u8 = 33;
/// ICMP for IPv6.
pub const ICMPV6: u8 = 58;
/// UDP-Lite.
pub const UDP_LITE: u8 = 136;

/// Offset of the TCP sequence number.
pub const TCP_SEQUENCE: usize = 4;
/// Offset of the TCP flags.
pub const TCP_FLAGS: usize = 13;
/// Offset of the TCP checksum.
pub const TCP_CHECKSUM: usize = 16;
/// TCP header without options.
pub const TCP_MIN_HEADER: usize = 20;
/// Offset of the UDP length.
pub const UDP_LENGTH: usize = 4;
/// Offset of the UDP checksum.
pub const UDP_CHECKSUM: usize = 6;
/// The UDP header.
pub const UDP_HEADER: usize = 8;
/// Offset of the checksum of ICMP and ICMPv6.
pub const ICMP_CHECKSUM: usize = 2;

/// TCP flags.
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgment counts.
    pub const ACK: u8 = 0x10;
    /// Congestion window reduced (RFC 3168).
    pub const CWR: u8 = 0x80;
}

/// Shortest header of a protocol; nothing is known of others.
pub fn min_header(protocol: u8) -> usize {
    match protocol {
        TCP => TCP_MIN_HEADER,
        UDP | UDP_LITE | ICMP => UDP_HEADER,
        DCCP => 12,
        ICMPV6 => 4,
        _ => 0,
    }
}

/// Offset, within the transport header, of a checksum that covers the addresses.
pub fn pseudo_checksum(protocol: u8, v4: bool) -> Option<usize> {
    match protocol {
        TCP => Some(TCP_CHECKSUM),
        UDP | UDP_LITE | DCCP => Some(UDP_CHECKSUM),
        // ICMP for IPv4 has no pseudo-header; RFC 4443 section 2.3 gives ICMPv6 one.
        ICMPV6 if !v4 => Some(ICMP_CHECKSUM),
        _ => None,
    }
}

/// Whether a checksum of zero means that there is none, or would be read so.
pub fn zero_is_none(protocol: u8) -> bool {
    matches!(protocol, UDP | UDP_LITE)
}

/// What the filter of the host's own addresses looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum L4 {
    /// ICMP or ICMPv6: whether it asks for an answer (an echo request and its like).
    Icmp {
        /// A request rather than a reply or an error.
        request: bool,
    },
    /// TCP.
    Tcp {
        /// Destination port.
        port: u16,
        /// Opens a connection: SYN without ACK.
        opens: bool,
    },
    /// UDP.
    Udp {
        /// Destination port.
        port: u16,
    },
    /// A fragment that is not the first: of no use without the first one, which is judged by its header.
    Fragment,
    /// Any other protocol.
    Other,
}

/// Reads the transport header that begins `bytes`.
pub(super) fn l4(protocol: u8, v4: bool, bytes: &[u8]) -> L4 {
    match (protocol, bytes) {
        (ICMP, [kind, ..]) if v4 => L4::Icmp { request: matches!(kind, 8 | 13 | 15 | 17) },
        (ICMPV6, [kind, ..]) if !v4 => L4::Icmp { request: *kind == 128 },
        (TCP, [_, _, high, low, ..]) if bytes.len() >= TCP_MIN_HEADER => L4::Tcp {
            port: u16::from_be_bytes([*high, *low]),
            opens: bytes[TCP_FLAGS] & (flag::SYN | flag::ACK) == flag::SYN,
        },
        (UDP, [_, _, high, low, ..]) => L4::Udp { port: u16::from_be_bytes([*high, *low]) },
        _ => L4::Other,
    }
}
