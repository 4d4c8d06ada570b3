//! What tells one flow from another, and what of a packet matters to its flow.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_proto::ip::transport::{self, flag};
use mesh_proto::ip::{Fragment, Layout};

/// Family, protocol, addresses and ports; the identifier of an echo stands for ports, and fragments have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    /// Source and destination; of IPv4 both in the first word.
    addresses: [u64; 4],
    /// Ports, protocol, family, whether there are ports.
    rest: u64,
}

const HAS_PORTS: u64 = 1 << 1;
const V4: u64 = 1;

/// What a flow follows of a TCP segment, or of a superpacket of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct TcpParts {
    /// The sequence number after it.
    pub(super) end: u32,
    /// If the ACK flag is set.
    pub(super) acknowledged: Option<u32>,
    pub(super) syn: bool,
    pub(super) fin: bool,
    pub(super) rst: bool,
}

/// What of a packet matters to its flow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts {
    pub(super) key: Key,
    pub(super) tcp: Option<TcpParts>,
    /// An ICMP error about a packet of the flow, which belongs to it and opens none.
    pub(super) about_another: bool,
}

impl Parts {
    /// Of a packet that `layout` describes.
    #[inline]
    pub(super) fn of(packet: &[u8], layout: &Layout) -> Option<Self> {
        if let Some(at) = layout.quote(packet) {
            let quoted = packet.get(at..)?;
            let inner = Layout::of_quoted(quoted).ok()?;
            let key = Key::of(quoted, &inner)?.reversed();
            return Some(Self { key, tcp: None, about_another: true });
        }
        let key = Key::of(packet, layout)?;
        let whole_tcp = layout.protocol == transport::TCP && layout.fragment == Fragment::Whole;
        let tcp = if whole_tcp { TcpParts::of(packet, layout) } else { None };
        Some(Self { key, tcp, about_another: false })
    }

    /// It opens a connection.
    pub(super) fn opens(&self) -> bool {
        self.tcp.is_some_and(|tcp| tcp.syn && tcp.acknowledged.is_none())
    }
}

impl TcpParts {
    fn of(packet: &[u8], layout: &Layout) -> Option<Self> {
        let header = packet.get(layout.transport..layout.end)?;
        let (head, _) = header.split_first_chunk::<{ transport::TCP_MIN_HEADER }>()?;
        let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let flags = head[transport::TCP_FLAGS];
        let is = |bit: u8| flags & bit != 0;
        let (syn, fin, rst) = (is(flag::SYN), is(flag::FIN), is(flag::RST));
        let data = header.len().saturating_sub(usize::from(head[12] >> 4) * 4) as u32;
        let end = word(transport::TCP_SEQUENCE).wrapping_add(data + u32::from(syn) + u32::from(fin));
        let acknowledged = is(flag::ACK).then(|| word(transport::TCP_SEQUENCE + 4));
        Some(Self { end, acknowledged, syn, fin, rst })
    }
}

impl Key {
    pub(super) const NONE: Self = Self { addresses: [0; 4], rest: 0 };

    #[inline]
    pub(super) fn of(packet: &[u8], layout: &Layout) -> Option<Self> {
        let (at, len) = layout.addresses();
        let both = packet.get(at..at + 2 * len)?;
        let mut addresses = [0; 4];
        let (words, _) = both.as_chunks::<8>();
        for (word, bytes) in addresses.iter_mut().zip(words) {
            *word = u64::from_be_bytes(*bytes);
        }
        let ports = ports(packet, layout);
        let rest = u64::from(ports.unwrap_or(0)) << 32
            | u64::from(layout.protocol) << 8
            | if ports.is_some() { HAS_PORTS } else { 0 }
            | if layout.v4 { V4 } else { 0 };
        Some(Self { addresses, rest })
    }

    pub(super) fn protocol(&self) -> u8 {
        (self.rest >> 8) as u8
    }

    pub(super) fn has_ports(&self) -> bool {
        self.rest & HAS_PORTS != 0
    }

    /// Source and destination port.
    pub(super) fn ports(&self) -> (u16, u16) {
        ((self.rest >> 48) as u16, (self.rest >> 32) as u16)
    }

    /// Source and destination.
    pub(super) fn addresses(&self) -> (IpAddr, IpAddr) {
        let [a, b, c, d] = self.addresses;
        if self.rest & V4 != 0 {
            return (Ipv4Addr::from_bits((a >> 32) as u32).into(), Ipv4Addr::from_bits(a as u32).into());
        }
        let v6 = |high: u64, low: u64| Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low)).into();
        (v6(a, b), v6(c, d))
    }

    /// Of what the other side sends.
    fn reversed(self) -> Self {
        let [a, b, c, d] = self.addresses;
        let addresses = if self.rest & V4 != 0 { [a.rotate_left(32), 0, 0, 0] } else { [c, d, a, b] };
        let echo = matches!(self.protocol(), transport::ICMP | transport::ICMPV6);
        let ports = (self.rest >> 32) as u32;
        // an identifier is the same both ways
        let ports = if echo { ports } else { ports.rotate_left(16) };
        Self { addresses, rest: u64::from(ports) << 32 | self.rest & 0xffff_ffff }
    }

    /// Of fragments, which have no ports.
    pub(super) fn without_ports(&self) -> Self {
        Self { addresses: self.addresses, rest: self.rest & 0xffff_fffd }
    }

    #[inline]
    pub(super) fn hash(&self, seed: u64) -> u64 {
        let [a, b, c, d] = self.addresses;
        let first = fold(a ^ seed, self.rest ^ MULTIPLIER);
        if self.rest & V4 != 0 {
            first
        } else {
            fold(first ^ b ^ seed.rotate_left(17), fold(c ^ seed, d ^ first))
        }
    }
}

/// Odd, without pattern: the golden ratio's digits.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Multiplies to 128 bits and folds: every bit of both depends on every bit of both. (As wyhash and foldhash do.)
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ MULTIPLIER) * u128::from(b | 1);
    (product >> 64) as u64 ^ product as u64
}

/// A member's weight for a flow, of names and addresses alone. The finisher is MurmurHash3's: a product alone would
/// give members with similar names similar weights.
pub(super) fn weigh(member: u64, (source, destination): (IpAddr, IpAddr)) -> u64 {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    };
    let mut hash = member;
    for word in [bits(source), bits(destination)].into_iter().flat_map(|b| [(b >> 64) as u64, b as u64]) {
        hash = finish(hash ^ word.wrapping_mul(MULTIPLIER));
    }
    hash
}

fn finish(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}

/// Both ports in one word; `None` of a fragment that is not the first.
fn ports(packet: &[u8], layout: &Layout) -> Option<u32> {
    if layout.fragment == Fragment::Later {
        return None;
    }
    let at = layout.transport;
    let word = |at: usize| Some(u32::from_be_bytes(packet.get(at..at + 4)?.try_into().ok()?));
    match layout.protocol {
        transport::TCP | transport::UDP | transport::UDP_LITE | transport::DCCP => word(at),
        // type, code, checksum, then the identifier: the same in all echoes of one ping
        transport::ICMP if layout.v4 => word(at + 4).map(|word| word & 0xffff_0000),
        transport::ICMPV6 if !layout.v4 => word(at + 4).map(|word| word & 0xffff_0000),
        _ => Some(0),
    }
}
