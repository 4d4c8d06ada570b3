//! [`Packet`]: a view on the bytes of one IPv4 or IPv6 packet, checked once. No accessor can panic afterwards.
//! Used by the packet path and by `trace`; what to do with a packet is decided elsewhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub mod checksum;
pub mod icmp;
pub mod transport;
pub mod v4;
pub mod v6;

pub use transport::L4;

/// Why bytes are not a packet that may be forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Neither version 4 nor 6.
    #[error("neither IPv4 nor IPv6")]
    Version,
    /// A length field and the bytes disagree.
    #[error("a length field disagrees with the bytes there are")]
    Length,
    /// Goes by way of other addresses.
    #[error("source-routed")]
    SourceRoute,
    /// Too many IPv6 extension headers.
    #[error("too many extension headers")]
    Extensions,
    /// The transport header does not fit in the first fragment (RFC 1858 section 3, RFC 7112 section 5).
    #[error("the transport header is cut short")]
    Transport,
}

/// Which part of a datagram a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// All of it.
    Whole,
    /// The first: the transport header is here.
    First,
    /// Another: no transport header.
    Later,
}

impl Fragment {
    fn of(offset: u16, more: bool) -> Self {
        match (offset, more) {
            (0, false) => Self::Whole,
            (0, true) => Self::First,
            _ => Self::Later,
        }
    }
}

/// Where the parts of a packet are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// IPv4 rather than IPv6.
    pub v4: bool,
    /// Protocol of the transport header.
    pub protocol: u8,
    /// Offset of the transport header, which is the length of all IP headers.
    pub transport: usize,
    /// Length of the packet.
    pub end: usize,
    /// Whether it is a fragment.
    pub fragment: Fragment,
}

impl Layout {
    /// Of a whole packet, exactly as long as its header says.
    pub fn of(bytes: &[u8]) -> Result<Self, Malformed> {
        let layout = Self::parse(bytes, false)?;
        if layout.fragment != Fragment::Later {
            if layout.end - layout.transport < transport::min_header(layout.protocol) {
                return Err(Malformed::Transport);
            }
        } else if layout.v4
            && layout.protocol == transport::TCP
            && read_u16(bytes, v4::FRAGMENT) & 0x1fff == 1
        {
            // Would overwrite the flags of the first one (RFC 1858 section 4.2).
            return Err(Malformed::Transport);
        }
        Ok(layout)
    }

    /// Of a packet quoted in an ICMP error: its end may be missing.
    pub fn of_quoted(bytes: &[u8]) -> Result<Self, Malformed> {
        Self::parse(bytes, true)
    }

    fn parse(bytes: &[u8], quoted: bool) -> Result<Self, Malformed> {
        match bytes.first().map(|first| first >> 4) {
            Some(4) => v4::layout(bytes, quoted),
            Some(6) => v6::layout(bytes, quoted),
            _ => Err(Malformed::Version),
        }
    }

    /// Offset of the source address and length of an address; the destination follows the source in both families.
    pub fn addresses(&self) -> (usize, usize) {
        if self.v4 { (v4::SOURCE, 4) } else { (v6::SOURCE, 16) }
    }

    /// Offset of a transport checksum that covers the addresses, if the packet has one within its bytes.
    pub fn pseudo_checksum(&self) -> Option<usize> {
        if self.fragment == Fragment::Later {
            return None;
        }
        let at = self.transport + transport::pseudo_checksum(self.protocol, self.v4)?;
        (at + 2 <= self.end).then_some(at)
    }

    /// Offset of the quoted packet, if this is an ICMP error.
    pub fn quote(&self, bytes: &[u8]) -> Option<usize> {
        if self.fragment == Fragment::Later || self.end < self.transport + icmp::QUOTE {
            return None;
        }
        let kind = *bytes.get(self.transport)?;
        icmp::is_error(self.protocol, self.v4, kind).then_some(self.transport + icmp::QUOTE)
    }
}

/// A packet. `B` is `&[u8]`, `&mut [u8]` or the like.
#[derive(Debug)]
pub struct Packet<B> {
    bytes: B,
    layout: Layout,
}

impl<B: AsRef<[u8]>> Packet<B> {
    /// Checks the bytes of one whole packet.
    pub fn parse(bytes: B) -> Result<Self, Malformed> {
        let layout = Layout::of(bytes.as_ref())?;
        Ok(Self { bytes, layout })
    }

    /// Where its parts are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// Source address.
    pub fn source(&self) -> IpAddr {
        let (at, len) = self.layout.addresses();
        read_address(&self.bytes()[at..at + len])
    }

    /// Destination address.
    pub fn destination(&self) -> IpAddr {
        let (at, len) = self.layout.addresses();
        read_address(&self.bytes()[at + len..at + 2 * len])
    }

    /// Protocol after all IP headers.
    pub fn protocol(&self) -> u8 {
        self.layout.protocol
    }

    /// The transport header and what follows; of a later fragment just data.
    pub fn payload(&self) -> &[u8] {
        &self.bytes()[self.layout.transport..self.layout.end]
    }

    /// Ports and the like.
    pub fn l4(&self) -> L4 {
        match self.layout.fragment {
            Fragment::Later => L4::Fragment,
            _ => transport::l4(self.layout.protocol, self.layout.v4, self.payload()),
        }
    }

    /// The sum of the pseudo-header, not complemented.
    pub fn pseudo_header(&self) -> u16 {
        let (at, len) = self.layout.addresses();
        let addresses = &self.bytes()[at..at + 2 * len];
        checksum::pseudo_header(addresses, self.layout.protocol, self.layout.end - self.layout.transport)
    }
}

/// The 16-bit word at `at`, which the caller knows to be there.
pub(crate) fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// An address of 4 or 16 bytes; of any other length the unspecified one.
fn read_address(bytes: &[u8]) -> IpAddr {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Ipv4Addr::from(octets).into();
    }
    <[u8; 16]>::try_from(bytes).map_or(Ipv6Addr::UNSPECIFIED, Ipv6Addr::from).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v6_with(extensions: &[u8], first: u8) -> Vec<u8> {
        let mut bytes = vec![0u8; 40];
        bytes[0] = 0x60;
        bytes[6] = first;
        bytes.extend_from_slice(extensions);
        bytes.extend_from_slice(&[0, 1, 0, 53, 0, 8, 0, 0]);
        let len = (bytes.len() - 40) as u16;
        bytes[4..6].copy_from_slice(&len.to_be_bytes());
        bytes
    }

    fn v4_with(options: &[u8], fragment: u16, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0u8; 20];
        bytes.extend_from_slice(options);
        bytes[0] = 0x40 | (bytes.len() / 4) as u8;
        bytes[6..8].copy_from_slice(&fragment.to_be_bytes());
        bytes[9] = protocol;
        bytes.extend_from_slice(payload);
        let len = bytes.len() as u16;
        bytes[2..4].copy_from_slice(&len.to_be_bytes());
        bytes
    }

    #[test]
    fn extension_headers_are_walked_to_the_transport() {
        let chain = [60, 0, 1, 4, 0, 0, 0, 0, 44, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 9];
        let bytes = v6_with(&chain, 0);
        let packet = Packet::parse(&bytes[..]).unwrap();
        assert_eq!((packet.protocol(), packet.layout().transport), (17, 64));
        assert_eq!(packet.layout().fragment, Fragment::First);
        assert_eq!(packet.l4(), L4::Udp { port: 53 });
    }

    #[test]
    fn a_later_fragment_has_no_transport_header() {
        let bytes = v6_with(&[17, 0, 0, 8, 0, 0, 0, 9], 44);
        let packet = Packet::parse(&bytes[..]).unwrap();
        assert_eq!((packet.l4(), packet.layout().pseudo_checksum()), (L4::Fragment, None));
        let bytes = v4_with(&[], 185, 17, &[1, 2, 3]);
        assert_eq!(Packet::parse(&bytes[..]).unwrap().l4(), L4::Fragment);
    }

    #[test]
    fn source_routes_are_refused() {
        let v6 = v6_with(&[17, 0, 4, 1, 0, 0, 0, 0], 43);
        assert_eq!(Layout::of(&v6), Err(Malformed::SourceRoute));
        let v4 = v4_with(&[1, 131, 3, 4], 0, 17, &[0; 8]);
        assert_eq!(Layout::of(&v4), Err(Malformed::SourceRoute));
    }

    #[test]
    fn endless_extension_headers_are_refused() {
        let chain: Vec<u8> = std::iter::repeat_n([60, 0, 1, 4, 0, 0, 0, 0], 20).flatten().collect();
        assert_eq!(Layout::of(&v6_with(&chain, 60)), Err(Malformed::Extensions));
    }

    #[test]
    fn a_transport_header_cut_short_by_fragmenting_is_refused() {
        assert_eq!(Layout::of(&v4_with(&[], 0x2000, 6, &[0; 8])), Err(Malformed::Transport));
        assert_eq!(Layout::of(&v4_with(&[], 1, 6, &[0; 8])), Err(Malformed::Transport));
    }

    #[test]
    fn lengths_must_be_exact() {
        let mut bytes = v4_with(&[], 0, 17, &[0; 8]);
        bytes.push(0);
        assert_eq!(Layout::of(&bytes), Err(Malformed::Length));
        bytes.truncate(27);
        assert_eq!(Layout::of(&bytes), Err(Malformed::Length));
        assert_eq!(Layout::of(&[]), Err(Malformed::Version));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..120),
            first in prop_oneof![Just(0x45u8), Just(0x46), Just(0x60), any::<u8>()],
            next in prop_oneof![Just(0u8), Just(43), Just(44), Just(60), Just(6), any::<u8>()],
        ) {
            if bytes.len() >= 40 {
                bytes[0] = first;
                bytes[6] = next;
                let len = if first == 0x60 { bytes.len() - 40 } else { bytes.len() } as u16;
                let at = if first == 0x60 { 4 } else { 2 };
                bytes[at..at + 2].copy_from_slice(&len.to_be_bytes());
            }
            let _ = Layout::of_quoted(&bytes);
            if let Ok(packet) = Packet::parse(&bytes[..]) {
                let _ = (packet.source(), packet.destination(), packet.l4(), packet.pseudo_header());
                let _ = (packet.layout().quote(&bytes), packet.layout().pseudo_checksum());
            }
        }
    }
}
