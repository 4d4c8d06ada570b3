//! Superpackets: where one is cut and with which headers, and how small packets become one again. Bytes only; `io::tun`
//! reads and writes them, `packet_loop` calls this.
//!
//! The kernel hands us up to 64 KB of TCP or UDP with one header and a [`VnetHdr`] before it (`IFF_VNET_HDR`). Between
//! nodes, packets go one by one, with a bit that says whether the checksum is *partial*: only the pseudo-header is in it,
//! because the kernel that wrote it left the rest to a card. It stays so to the far kernel, and nobody sums payload.

use mesh_proto::ip::checksum::{add, checksum, fold, udp_wire_form};
use mesh_proto::ip::transport::{
    TCP, TCP_CHECKSUM, TCP_FLAGS, TCP_MIN_HEADER, TCP_SEQUENCE, UDP, UDP_CHECKSUM, UDP_HEADER, UDP_LENGTH,
    flag,
};
use mesh_proto::ip::{Fragment, Layout, Malformed, v4, v6};

use super::counters::TrafficCount;

mod coalesce;

pub use coalesce::{Coalescer, Output, Piece};

/// `virtio_net_hdr` (virtio 1.2 section 5.1.6), in the machine's own byte order as a TUN device has it by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VnetHdr {
    /// [`NEEDS_CSUM`], [`DATA_VALID`].
    pub flags: u8,
    /// One of the `GSO_*`, with [`GSO_ECN`].
    pub gso_type: u8,
    /// Length of all headers, as the kernel thinks; a hint that we write and never trust.
    pub hdr_len: u16,
    /// Payload of each segment.
    pub gso_size: u16,
    /// Where the checksum begins that is to be completed.
    pub csum_start: u16,
    /// Where, after that, it is stored.
    pub csum_offset: u16,
}

/// The checksum is partial.
pub const NEEDS_CSUM: u8 = 1;
/// The checksum has been verified.
pub const DATA_VALID: u8 = 2;
/// Not a superpacket.
pub const GSO_NONE: u8 = 0;
/// TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// UDP fragmented by IP; we do not offer it to the kernel.
pub const GSO_UDP: u8 = 3;
/// TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// UDP datagrams of equal length.
pub const GSO_UDP_L4: u8 = 5;
/// The superpacket has CWR set, which goes to its first segment only.
pub const GSO_ECN: u8 = 0x80;

impl VnetHdr {
    /// Its length before each packet.
    pub const LEN: usize = 10;

    /// Reads it; `None` if there are fewer bytes.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let b: &[u8; Self::LEN] = bytes.first_chunk()?;
        let word = |at: usize| u16::from_ne_bytes([b[at], b[at + 1]]);
        Some(Self {
            flags: b[0],
            gso_type: b[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        })
    }

    /// As bytes.
    pub fn bytes(&self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        b[0] = self.flags;
        b[1] = self.gso_type;
        for (at, word) in [(2, self.hdr_len), (4, self.gso_size), (6, self.csum_start), (8, self.csum_offset)]
        {
            b[at..at + 2].copy_from_slice(&word.to_ne_bytes());
        }
        b
    }

    /// For a packet that is not a superpacket, partial or not.
    pub fn single(layout: &Layout, partial: bool) -> Self {
        match (partial, layout.pseudo_checksum()) {
            (true, Some(at)) => Self {
                flags: NEEDS_CSUM,
                csum_start: layout.transport as u16,
                csum_offset: (at - layout.transport) as u16,
                ..Self::default()
            },
            _ => Self::default(),
        }
    }

    /// Whether [`cut`] is needed.
    pub fn is_superpacket(&self) -> bool {
        self.gso_type & !GSO_ECN != GSO_NONE
    }
}

/// Why a superpacket cannot be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// It is no packet.
    #[error("not a packet: {0}")]
    Malformed(#[from] Malformed),
    /// A type that we never asked for.
    #[error("segmentation type {0} is not supported")]
    Type(u8),
    /// Type and packet disagree, the segment size is zero, or a length does not fit.
    #[error("the packet is not what its segmentation type says")]
    Mismatch,
    /// The checksum to complete lies outside the packet.
    #[error("the checksum field lies outside the packet")]
    Checksum,
}

/// Decides whether a packet from the TUN travels as partial. A checksum to complete that is *not* the packet's own
/// transport checksum (that of a packet within, when a VM sends VXLAN) is completed here, since a peer knows only of
/// the outer one.
pub fn settle(vnet: &VnetHdr, packet: &mut [u8]) -> Result<bool, SegmentError> {
    if vnet.flags & NEEDS_CSUM == 0 {
        return Ok(false);
    }
    let layout = Layout::of(packet)?;
    let start = usize::from(vnet.csum_start);
    let field = start + usize::from(vnet.csum_offset);
    if start == layout.transport
        && layout.pseudo_checksum() == Some(field)
        && layout.fragment == Fragment::Whole
    {
        return Ok(true);
    }
    if start < layout.transport || field + 2 > packet.len() {
        return Err(SegmentError::Checksum);
    }
    let sum = udp_wire_form(checksum(&packet[start..]));
    packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    Ok(false)
}

/// Longest header of a segment: IP with extensions or options, and TCP with options.
const MAX_HEADER: usize = 256;

/// The segments of one superpacket, in order.
#[derive(Debug, Clone)]
pub struct Segments<'p> {
    header: [u8; MAX_HEADER],
    header_len: usize,
    transport: usize,
    v4: bool,
    tcp: bool,
    payload: &'p [u8],
    size: usize,
    /// Sum of the addresses and the protocol.
    pseudo: u64,
    flags: u8,
    sequence: u32,
    identification: u16,
    first: bool,
    done: bool,
}

/// Where a superpacket is cut.
struct Cuts {
    layout: Layout,
    tcp: bool,
    header_len: usize,
}

impl Cuts {
    fn of(vnet: &VnetHdr, packet: &[u8]) -> Result<Self, SegmentError> {
        let layout = Layout::of(packet)?;
        let tcp = match vnet.gso_type & !GSO_ECN {
            GSO_TCPV4 if layout.v4 => true,
            GSO_TCPV6 if !layout.v4 => true,
            GSO_UDP_L4 => false,
            GSO_TCPV4 | GSO_TCPV6 => return Err(SegmentError::Mismatch),
            other => return Err(SegmentError::Type(other)),
        };
        let at = layout.transport;
        let is = if tcp { TCP } else { UDP };
        if layout.protocol != is || layout.fragment != Fragment::Whole || vnet.gso_size == 0 {
            return Err(SegmentError::Mismatch);
        }
        let header_len = at + if tcp { usize::from(packet[at + 12] >> 4) * 4 } else { UDP_HEADER };
        if header_len > packet.len()
            || header_len > MAX_HEADER
            || (tcp && header_len < at + TCP_MIN_HEADER)
            || header_len + usize::from(vnet.gso_size) > usize::from(u16::MAX)
        {
            return Err(SegmentError::Mismatch);
        }
        Ok(Self { layout, tcp, header_len })
    }
}

fn count(payload: usize, size: usize) -> usize {
    payload.div_ceil(size).max(1)
}

/// Packets and bytes that this is on a wire; what cannot be cut is one packet.
pub fn on_wire(vnet: &VnetHdr, packet: &[u8]) -> TrafficCount {
    let whole = TrafficCount { packets: 1, bytes: packet.len() as u64 };
    if !vnet.is_superpacket() {
        return whole;
    }
    Cuts::of(vnet, packet).map_or(whole, |Cuts { header_len, .. }| {
        let payload = packet.len() - header_len;
        let packets = count(payload, usize::from(vnet.gso_size));
        TrafficCount { packets: packets as u64, bytes: (payload + packets * header_len) as u64 }
    })
}

/// Prepares cutting. Every length comes from the packet itself. All segments have a partial checksum.
pub fn cut<'p>(vnet: &VnetHdr, packet: &'p [u8]) -> Result<Segments<'p>, SegmentError> {
    let Cuts { layout, tcp, header_len } = Cuts::of(vnet, packet)?;
    let at = layout.transport;
    let is = if tcp { TCP } else { UDP };
    let mut header = [0; MAX_HEADER];
    header[..header_len].copy_from_slice(&packet[..header_len]);
    let (addresses, len) = layout.addresses();
    let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    Ok(Segments {
        header,
        header_len,
        transport: at,
        v4: layout.v4,
        tcp,
        payload: &packet[header_len..],
        size: usize::from(vnet.gso_size),
        pseudo: add(u64::from(is), &packet[addresses..addresses + 2 * len]),
        flags: if tcp { packet[at + TCP_FLAGS] } else { 0 },
        sequence: if tcp { u32::from(word(at + 4)) << 16 | u32::from(word(at + 6)) } else { 0 },
        identification: word(v4::IDENTIFICATION),
        first: true,
        done: false,
    })
}

impl<'p> Segments<'p> {
    /// Bytes of the longest segment.
    pub fn max_len(&self) -> usize {
        self.header_len + self.size.min(self.payload.len())
    }

    /// How many are left.
    pub fn count_left(&self) -> usize {
        if self.done { 0 } else { count(self.payload.len(), self.size) }
    }

    /// The next segment: its headers, which the next call overwrites, and its part of the payload.
    pub fn next_segment(&mut self) -> Option<(&[u8], &'p [u8])> {
        if self.done {
            return None;
        }
        let (payload, rest) = self.payload.split_at(self.size.min(self.payload.len()));
        self.payload = rest;
        self.done = rest.is_empty();
        self.write_header(payload.len());
        self.first = false;
        self.identification = self.identification.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(payload.len() as u32);
        Some((&self.header[..self.header_len], payload))
    }

    /// Appends the next segment to `out` and returns its length.
    pub fn append_next(&mut self, out: &mut Vec<u8>) -> Option<usize> {
        let (header, payload) = self.next_segment()?;
        out.extend_from_slice(header);
        out.extend_from_slice(payload);
        Some(header.len() + payload.len())
    }

    fn write_header(&mut self, payload_len: usize) {
        let (first, last) = (self.first, self.done);
        let at = self.transport;
        let total = self.header_len + payload_len;
        write_ip_lengths(&mut self.header[..self.header_len], self.v4, total, self.identification);
        let transport_len = total - at;
        let pseudo = fold(self.pseudo + transport_len as u64);
        let header = &mut self.header[at..self.header_len];
        if self.tcp {
            let mut flags = self.flags;
            if !last {
                flags &= !(flag::FIN | flag::PSH);
            }
            if !first {
                // RFC 3168 section 6.1.2: CWR tells of one event, once.
                flags &= !flag::CWR;
            }
            header[TCP_FLAGS] = flags;
            header[TCP_SEQUENCE..TCP_SEQUENCE + 4].copy_from_slice(&self.sequence.to_be_bytes());
            header[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&pseudo.to_be_bytes());
        } else {
            header[UDP_LENGTH..UDP_LENGTH + 2].copy_from_slice(&(transport_len as u16).to_be_bytes());
            header[UDP_CHECKSUM..UDP_CHECKSUM + 2].copy_from_slice(&pseudo.to_be_bytes());
        }
    }
}

/// Writes the lengths of an IP header for a packet of `total` bytes, and what follows from them. `total` fits.
fn write_ip_lengths(header: &mut [u8], is_v4: bool, total: usize, identification: u16) {
    let mut put = |at: usize, word: u16| header[at..at + 2].copy_from_slice(&word.to_be_bytes());
    if is_v4 {
        put(v4::TOTAL_LENGTH, total as u16);
        put(v4::IDENTIFICATION, identification);
        put(v4::CHECKSUM, 0);
        let len = usize::from(header[0] & 0x0f) * 4;
        let sum = checksum(&header[..len]);
        header[v4::CHECKSUM..v4::CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
    } else {
        put(v6::PAYLOAD_LENGTH, (total - v6::HEADER) as u16);
    }
}

/// Where a protocol's checksum is in its header.
fn checksum_offset(protocol: u8) -> usize {
    if protocol == TCP { TCP_CHECKSUM } else { UDP_CHECKSUM }
}

#[cfg(test)]
mod tests;
