//! Joins the packets of one batch into superpackets, as the kernel's GRO would, so that the TUN takes them with one write.
//! Packets are compared as they came: what is decided about the first of a superpacket, and done to its addresses, holds for all.
//!
//! Only packets with a partial checksum are joined: a whole one would have to be verified first, or damage would be
//! hidden under the fresh checksum of the superpacket. Bulk traffic is partial, since kernels segment it late.

use mesh_proto::ip::transport::{TCP, TCP_FLAGS, TCP_SEQUENCE, UDP, UDP_HEADER, UDP_LENGTH, flag};
use mesh_proto::ip::{Fragment, Layout, checksum, v4, v6};

use super::{
    GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHdr, checksum_offset, write_ip_lengths,
};

/// Source and destination, IPv6.
const MAX_ADDRESSES: usize = 32;
/// IPv6 and TCP with all options.
const MAX_HEADER: usize = 100;
/// Largest superpacket: the IPv4 length field.
const MAX_SUPERPACKET: usize = 65_535;
/// Flows that are joined at a time; more make the search longer than what it saves.
const MAX_OPEN: usize = 16;
/// Well below IOV_MAX, which a `writev` with all pieces must not pass.
const MAX_TCP_PIECES: usize = 512;
/// The kernel's own limit of datagrams in one UDP superpacket (UDP_GRO_CNT_MAX).
const MAX_UDP_PIECES: usize = 64;

/// Bytes of one of the caller's buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Which buffer, by the caller's numbering.
    pub buffer: u32,
    /// Where they begin.
    pub start: u32,
    /// How many.
    pub len: u32,
}

/// One write to the TUN: vnet header, header bytes, pieces, in this order.
#[derive(Debug, Clone, Copy)]
pub struct Output<'c> {
    /// The `virtio_net_hdr`.
    pub vnet: [u8; VnetHdr::LEN],
    /// Headers of the (super)packet; empty if they are part of the one piece.
    pub header: &'c [u8],
    /// The payload, or one whole packet.
    pub pieces: &'c [Piece],
    /// How many packets it was.
    pub packets: usize,
}

/// What a packet must agree in, to join, and what it brings.
struct Candidate {
    layout: Layout,
    header_len: usize,
    payload_len: usize,
    /// No packet can follow it in a superpacket.
    last: bool,
}

/// One output in the making.
#[derive(Debug, Clone)]
struct Super<T> {
    /// What was decided about its first packet.
    decided: T,
    /// Addresses that its packets came with.
    came: [u8; MAX_ADDRESSES],
    /// As it leaves.
    header: [u8; MAX_HEADER],
    /// 0: a packet that passes as it is.
    header_len: usize,
    transport: usize,
    v4: bool,
    protocol: u8,
    /// Payload of every piece but the last.
    size: usize,
    payload_len: usize,
    next_sequence: u32,
    open: bool,
    vnet: VnetHdr,
    pieces: Vec<Piece>,
}

/// Joins packets, and remembers what was decided about each superpacket. Reused from batch to batch: after the first few it
/// allocates nothing.
#[derive(Debug)]
pub struct Coalescer<T = ()> {
    udp: bool,
    /// In order of their first packets; those from `used` on are spare.
    supers: Vec<Super<T>>,
    used: usize,
    /// Those that may still grow.
    open: Vec<usize>,
}

impl Coalescer {
    /// [`Self::take`] of a packet that stays as it is. One that is none passes as it is.
    pub fn push(&mut self, buffer: u32, start: usize, packet: &[u8], partial: bool) {
        let at = (buffer, start);
        let Ok(layout) = Layout::of(packet) else {
            return self.pass(whole(at, packet), VnetHdr::default(), ());
        };
        let found = self.find(packet, layout, partial);
        if self.join(&found, at, packet).is_none() {
            self.add(&found, at, packet, addresses(packet, &layout), ());
        }
    }
}

impl<T: Copy + Default> Coalescer<T> {
    /// Empty. `udp`: whether UDP is joined too, which the TUN takes where it has the USO offloads (Linux 6.2).
    pub fn new(udp: bool) -> Self {
        Self { udp, supers: Vec::new(), used: 0, open: Vec::with_capacity(MAX_OPEN) }
    }

    /// Forgets the batch, keeps the memory.
    pub fn clear(&mut self) {
        self.used = 0;
        self.open.clear();
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Takes one packet that lies at `at`, number and place within it, of the caller's buffers, which must stay until the outputs are
    /// written. One that begins a superpacket, or stays alone, is given to `decide`, which may change its addresses and, where it is
    /// partial, has to rewrite the checksum field; one that is refused is left out. Says what was decided about it, or about the
    /// one that it continues.
    pub fn take<E>(
        &mut self,
        at: (u32, usize),
        packet: &mut [u8],
        layout: Layout,
        partial: bool,
        decide: impl FnOnce(&mut [u8]) -> Result<T, E>,
    ) -> Result<T, E> {
        let found = self.find(packet, layout, partial);
        if let Some(decided) = self.join(&found, at, packet) {
            return Ok(decided);
        }
        let came = addresses(packet, &layout);
        let decided = decide(packet)?;
        self.add(&found, at, packet, came, decided);
        Ok(decided)
    }

    fn find(&self, packet: &[u8], layout: Layout, partial: bool) -> Found {
        let candidate = if partial { candidate(packet, layout, self.udp) } else { None };
        let place = self.open.iter().position(|&at| self.supers[at].same_flow(packet, &layout));
        Found { layout, partial, candidate, place }
    }

    /// What was decided about the superpacket that the packet continues, if it does.
    fn join(&mut self, found: &Found, at: (u32, usize), packet: &[u8]) -> Option<T> {
        let (candidate, place) = (found.candidate.as_ref()?, found.place?);
        let continued = &mut self.supers[self.open[place]];
        if !continued.join(packet, candidate, candidate.payload(at)) {
            return None;
        }
        let decided = continued.decided;
        if !continued.open {
            self.open.swap_remove(place);
        }
        Some(decided)
    }

    /// Begins a superpacket, or lets the packet pass alone.
    fn add(&mut self, found: &Found, at: (u32, usize), packet: &[u8], came: [u8; MAX_ADDRESSES], decided: T) {
        // it must not be overtaken by later packets of its flow
        self.close(found.place);
        match &found.candidate {
            Some(candidate) => {
                let place = self.place();
                (place.came, place.decided) = (came, decided);
                place.start(packet, candidate, candidate.payload(at));
                self.open(candidate.last);
            }
            None => self.pass(whole(at, packet), VnetHdr::single(&found.layout, found.partial), decided),
        }
    }

    /// What to write, in order.
    pub fn outputs(&mut self) -> impl Iterator<Item = Output<'_>> {
        self.supers[..self.used].iter_mut().map(Super::finish)
    }

    fn close(&mut self, place: Option<usize>) {
        if let Some(place) = place {
            let at = self.open.swap_remove(place);
            self.supers[at].open = false;
        }
    }

    /// An empty place, from the spare ones if there are any.
    fn place(&mut self) -> &mut Super<T> {
        if self.used == self.supers.len() {
            self.supers.push(Super::empty());
        }
        self.used += 1;
        let place = &mut self.supers[self.used - 1];
        place.pieces.clear();
        place.header_len = 0;
        place.open = false;
        place
    }

    fn pass(&mut self, whole: Piece, vnet: VnetHdr, decided: T) {
        let place = self.place();
        place.decided = decided;
        place.vnet = vnet;
        place.pieces.push(whole);
    }

    /// The newest may grow, unless it is the `last` of its flow.
    fn open(&mut self, last: bool) {
        if last {
            return;
        }
        if self.open.len() == MAX_OPEN {
            // The oldest goes: `swap_remove` mixes the order a little, which costs nothing but a chance to join.
            self.close(Some(0));
        }
        let at = self.used - 1;
        self.supers[at].open = true;
        self.open.push(at);
    }
}

impl Candidate {
    /// Where its payload is, of a packet at a place.
    fn payload(&self, (buffer, start): (u32, usize)) -> Piece {
        Piece { buffer, start: (start + self.header_len) as u32, len: self.payload_len as u32 }
    }
}

/// What is known of a packet before it is put anywhere.
struct Found {
    layout: Layout,
    partial: bool,
    /// It may be joined.
    candidate: Option<Candidate>,
    /// The open superpacket of its flow.
    place: Option<usize>,
}

/// All of a packet.
fn whole((buffer, start): (u32, usize), packet: &[u8]) -> Piece {
    Piece { buffer, start: start as u32, len: packet.len() as u32 }
}

/// Source and destination, one behind the other.
fn addresses(packet: &[u8], layout: &Layout) -> [u8; MAX_ADDRESSES] {
    let (at, len) = layout.addresses();
    let mut all = [0; MAX_ADDRESSES];
    all[..2 * len].copy_from_slice(&packet[at..at + 2 * len]);
    all
}

/// Whether the packet may begin or continue a superpacket.
fn candidate(packet: &[u8], layout: Layout, udp: bool) -> Option<Candidate> {
    let at = layout.transport;
    let plain_ip = at == if layout.v4 { v4::MIN_HEADER } else { v6::HEADER };
    if !plain_ip || layout.fragment != Fragment::Whole {
        return None;
    }
    let (header_len, last) = match layout.protocol {
        TCP => {
            let flags = packet[at + TCP_FLAGS];
            let offset = packet[at + 12];
            if flags & !flag::PSH != flag::ACK || offset & 0x0f != 0 || offset < 0x50 {
                return None;
            }
            (at + usize::from(offset >> 4) * 4, flags & flag::PSH != 0)
        }
        UDP if udp => {
            let len = u16::from_be_bytes([packet[at + UDP_LENGTH], packet[at + UDP_LENGTH + 1]]);
            if usize::from(len) != packet.len() - at {
                return None;
            }
            (at + UDP_HEADER, false)
        }
        _ => return None,
    };
    let payload_len = packet.len().checked_sub(header_len)?;
    (payload_len > 0).then_some(Candidate { layout, header_len, payload_len, last })
}

impl<T: Default> Super<T> {
    fn empty() -> Self {
        Self {
            decided: T::default(),
            came: [0; MAX_ADDRESSES],
            header: [0; MAX_HEADER],
            header_len: 0,
            transport: 0,
            v4: false,
            protocol: 0,
            size: 0,
            payload_len: 0,
            next_sequence: 0,
            open: false,
            vnet: VnetHdr::default(),
            pieces: Vec::new(),
        }
    }
}

impl<T> Super<T> {
    fn start(&mut self, packet: &[u8], candidate: &Candidate, piece: Piece) {
        self.header[..candidate.header_len].copy_from_slice(&packet[..candidate.header_len]);
        self.header_len = candidate.header_len;
        self.transport = candidate.layout.transport;
        self.v4 = candidate.layout.v4;
        self.protocol = candidate.layout.protocol;
        self.size = candidate.payload_len;
        self.payload_len = candidate.payload_len;
        self.next_sequence = sequence(packet, self.transport).wrapping_add(candidate.payload_len as u32);
        self.pieces.push(piece);
    }

    /// Same family, addresses as they came, protocol and ports.
    fn same_flow(&self, packet: &[u8], layout: &Layout) -> bool {
        if layout.v4 != self.v4 || layout.protocol != self.protocol || layout.fragment != Fragment::Whole {
            return false;
        }
        let (at, len) = layout.addresses();
        let (ours, theirs) = (self.transport, layout.transport);
        self.header[ours..ours + 4] == packet[theirs..theirs + 4]
            && self.came[..2 * len] == packet[at..at + 2 * len]
    }

    /// Takes the packet, of the same flow, if it continues this one.
    fn join(&mut self, packet: &[u8], candidate: &Candidate, piece: Piece) -> bool {
        let tcp = self.protocol == TCP;
        let most = if tcp { MAX_TCP_PIECES } else { MAX_UDP_PIECES };
        if candidate.header_len != self.header_len
            || candidate.payload_len > self.size
            || self.header_len + self.payload_len + candidate.payload_len > MAX_SUPERPACKET
            || self.pieces.len() >= most
            || !self.same_ip_header(packet)
            || (tcp && !self.continues_tcp(packet))
        {
            return false;
        }
        if tcp {
            self.header[self.transport + TCP_FLAGS] |= packet[self.transport + TCP_FLAGS];
        }
        self.pieces.push(piece);
        self.payload_len += candidate.payload_len;
        self.next_sequence = self.next_sequence.wrapping_add(candidate.payload_len as u32);
        self.open = !candidate.last && candidate.payload_len == self.size;
        true
    }

    /// All that every segment will have alike; addresses are known to be equal.
    fn same_ip_header(&self, packet: &[u8]) -> bool {
        let ours = &self.header;
        if !self.v4 {
            // Version, class, flow label; hop limit.
            return ours[..4] == packet[..4] && ours[7] == packet[7];
        }
        let word = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let atomic = word(ours, v4::FRAGMENT) & v4::DONT_FRAGMENT != 0;
        let expected = word(ours, v4::IDENTIFICATION).wrapping_add(self.pieces.len() as u16);
        ours[..2] == packet[..2]
            && ours[v4::FRAGMENT..v4::CHECKSUM] == packet[v4::FRAGMENT..v4::CHECKSUM]
            // The identification means nothing where nothing may be fragmented (RFC 6864 section 4.1).
            && (atomic || expected == word(packet, v4::IDENTIFICATION))
    }

    /// Next in sequence, and alike in acknowledgment, window, urgent pointer and options.
    fn continues_tcp(&self, packet: &[u8]) -> bool {
        let at = self.transport;
        let same = |from: usize, to: usize| self.header[at + from..at + to] == packet[at + from..at + to];
        self.next_sequence == sequence(packet, at)
            && same(8, 13)
            && same(14, 16)
            && same(18, self.header_len - at)
    }

    /// Writes the lengths and the partial checksum of what it has become.
    fn finish(&mut self) -> Output<'_> {
        if self.header_len > 0 {
            let total = self.header_len + self.payload_len;
            let at = self.transport;
            let identification =
                u16::from_be_bytes([self.header[v4::IDENTIFICATION], self.header[v4::IDENTIFICATION + 1]]);
            write_ip_lengths(&mut self.header[..self.header_len], self.v4, total, identification);
            let (addresses, len) = if self.v4 { (v4::SOURCE, 4) } else { (v6::SOURCE, 16) };
            let addresses = &self.header[addresses..addresses + 2 * len];
            let pseudo = checksum::pseudo_header(addresses, self.protocol, total - at);
            if self.protocol == UDP {
                let len = (total - at) as u16;
                self.header[at + UDP_LENGTH..at + UDP_LENGTH + 2].copy_from_slice(&len.to_be_bytes());
            }
            let offset = checksum_offset(self.protocol);
            self.header[at + offset..at + offset + 2].copy_from_slice(&pseudo.to_be_bytes());
            let many = self.pieces.len() > 1;
            self.vnet = VnetHdr {
                flags: NEEDS_CSUM,
                gso_type: match (many, self.protocol, self.v4) {
                    (false, ..) => GSO_NONE,
                    (true, TCP, true) => GSO_TCPV4,
                    (true, TCP, false) => GSO_TCPV6,
                    (true, ..) => GSO_UDP_L4,
                },
                hdr_len: if many { self.header_len as u16 } else { 0 },
                gso_size: if many { self.size as u16 } else { 0 },
                csum_start: at as u16,
                csum_offset: offset as u16,
            };
        }
        Output {
            vnet: self.vnet.bytes(),
            header: &self.header[..self.header_len],
            pieces: &self.pieces,
            packets: self.pieces.len(),
        }
    }
}

/// The four bytes where TCP has its sequence number; of UDP they mean nothing, but are there.
fn sequence(packet: &[u8], transport: usize) -> u32 {
    let at = transport + TCP_SEQUENCE;
    u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]])
}
