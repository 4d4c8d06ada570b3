//! Stateless one-to-one prefix translation: addresses of one prefix become those of another of equal length, the host
//! part kept, and checksums follow by difference. (RFC 6296 keeps the checksum and changes the host part instead.)
//! Addresses quoted in ICMP errors are mapped too (RFC 5508 section 4.2): path MTU discovery and traceroute need them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_proto::Prefix;
use mesh_proto::ip::checksum::{Delta, udp_wire_form};
use mesh_proto::ip::{Fragment, Layout, Malformed, checksum, transport, v4};

/// One direction of one pair of prefixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    from: Prefix,
    to: Prefix,
    /// The host part stays and shares no bit with the prefix, so that the change of the sum is the same for every address.
    delta: Delta,
}

impl Mapping {
    /// From one prefix to another of equal family and length.
    pub fn new(from: Prefix, to: Prefix) -> Option<Self> {
        if !from.same_family(&to) || from.len() != to.len() {
            return None;
        }
        let delta = match (from.address(), to.address()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => Delta::between(&a.octets(), &b.octets()),
            (IpAddr::V6(a), IpAddr::V6(b)) => Delta::between(&a.octets(), &b.octets()),
            _ => return None,
        };
        Some(Self { from, to, delta })
    }

    /// The prefix that is mapped.
    pub fn from(&self) -> Prefix {
        self.from
    }

    /// What it becomes.
    pub fn to(&self) -> Prefix {
        self.to
    }

    /// Whether nothing changes.
    pub fn is_identity(&self) -> bool {
        self.from == self.to
    }

    /// The address on the other side; `None` if it is not within the prefix.
    pub fn map(&self, address: IpAddr) -> Option<IpAddr> {
        if !self.from.contains(address) {
            return None;
        }
        let len = u32::from(self.from.len());
        Some(match (address, self.to.address()) {
            (IpAddr::V4(a), IpAddr::V4(to)) => {
                let host = a.to_bits() & u32::MAX.checked_shr(len).unwrap_or(0);
                Ipv4Addr::from_bits(to.to_bits() | host).into()
            }
            (IpAddr::V6(a), IpAddr::V6(to)) => {
                let host = a.to_bits() & u128::MAX.checked_shr(len).unwrap_or(0);
                Ipv6Addr::from_bits(to.to_bits() | host).into()
            }
            _ => return None,
        })
    }
}

/// What to change in one packet.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rewrite<'a> {
    /// Of the source address.
    pub source: Option<&'a Mapping>,
    /// Of the destination address.
    pub destination: Option<&'a Mapping>,
    /// Of the source of a packet quoted in an ICMP error: it went the other way, so its source is what the outer
    /// destination is.
    pub quoted_source: &'a [Mapping],
    /// Of the destination of a quoted packet.
    pub quoted_destination: &'a [Mapping],
}

/// Changes the packet. `partial`: its transport checksum field holds, or is to hold, the sum of the pseudo-header only
/// (CHECKSUM_PARTIAL); then the field is written anew whatever it holds. Says whether an address has changed.
pub fn rewrite(bytes: &mut [u8], rewrite: &Rewrite<'_>, partial: bool) -> Result<bool, Malformed> {
    let layout = Layout::of(bytes)?;
    rewrite_at(bytes, &layout, rewrite, partial)
}

/// [`rewrite`] for a packet whose layout is known.
pub(super) fn rewrite_at(
    bytes: &mut [u8],
    layout: &Layout,
    rewrite: &Rewrite<'_>,
    partial: bool,
) -> Result<bool, Malformed> {
    if partial && (layout.fragment != Fragment::Whole || layout.pseudo_checksum().is_none()) {
        return Err(Malformed::Transport);
    }
    let outer = map_addresses(bytes, layout, one(rewrite.source), one(rewrite.destination));
    let mut inner = Delta::NONE;
    let mut changed = outer.is_some();
    if let Some(at) = layout.quote(bytes)
        && !(rewrite.quoted_source.is_empty() && rewrite.quoted_destination.is_empty())
        && let Some(delta) = map_quoted(&mut bytes[at..], rewrite.quoted_source, rewrite.quoted_destination)
    {
        inner = delta;
        changed = true;
    }
    if partial {
        write_partial(bytes, layout);
        return Ok(changed);
    }
    let outer = outer.unwrap_or(Delta::NONE);
    if let Some(at) = layout.pseudo_checksum() {
        adjust(bytes, at, layout, outer.and(inner));
    } else if layout.v4 && layout.protocol == transport::ICMP && layout.fragment != Fragment::Later {
        adjust(bytes, layout.transport + transport::ICMP_CHECKSUM, layout, inner);
    }
    Ok(changed)
}

/// At most one mapping, as a list.
fn one(mapping: Option<&Mapping>) -> &[Mapping] {
    mapping.map_or(&[], std::slice::from_ref)
}

/// Writes the sum of the pseudo-header into the transport checksum field.
fn write_partial(bytes: &mut [u8], layout: &Layout) {
    let Some(field) = layout.pseudo_checksum() else { return };
    let (at, len) = layout.addresses();
    let sum =
        checksum::pseudo_header(&bytes[at..at + 2 * len], layout.protocol, layout.end - layout.transport);
    bytes[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Changes a transport checksum by `delta`. Returns what that changes in a sum over it.
fn adjust(bytes: &mut [u8], at: usize, layout: &Layout, delta: Delta) -> Delta {
    let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    // A UDP checksum of zero is none (RFC 768) and stays so (RFC 6935 for IPv6).
    if delta == Delta::NONE || (old == 0 && transport::zero_is_none(layout.protocol)) {
        return Delta::NONE;
    }
    let mut new = delta.apply(old);
    if transport::zero_is_none(layout.protocol) {
        new = udp_wire_form(new);
    }
    bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
    Delta::NONE.word(old, new)
}

/// Maps the two addresses, each by the first mapping that holds it, and corrects the IPv4 header checksum. Returns the
/// change of the addresses' sum, if there is any.
fn map_addresses(
    bytes: &mut [u8],
    layout: &Layout,
    source: &[Mapping],
    destination: &[Mapping],
) -> Option<Delta> {
    let (at, len) = layout.addresses();
    let mut total: Option<Delta> = None;
    for (maps, at) in [(source, at), (destination, at + len)] {
        let Some(delta) = maps.iter().find_map(|mapping| map_address(&mut bytes[at..at + len], mapping))
        else {
            continue;
        };
        total = Some(total.unwrap_or(Delta::NONE).and(delta));
    }
    let delta = total?;
    if layout.v4 {
        let old = u16::from_be_bytes([bytes[v4::CHECKSUM], bytes[v4::CHECKSUM + 1]]);
        bytes[v4::CHECKSUM..v4::CHECKSUM + 2].copy_from_slice(&delta.apply(old).to_be_bytes());
    }
    Some(delta)
}

/// Maps the address that `field` is.
fn map_address(field: &mut [u8], mapping: &Mapping) -> Option<Delta> {
    if mapping.is_identity() {
        return None;
    }
    if let Ok(octets) = <&mut [u8; 4]>::try_from(&mut *field) {
        if let IpAddr::V4(new) = mapping.map(Ipv4Addr::from(*octets).into())? {
            *octets = new.octets();
        }
    } else if let Ok(octets) = <&mut [u8; 16]>::try_from(field)
        && let IpAddr::V6(new) = mapping.map(Ipv6Addr::from(*octets).into())?
    {
        *octets = new.octets();
    }
    Some(mapping.delta)
}

/// Maps the packet quoted in an ICMP error. Returns the change of the sum over the error's body; `None` if nothing
/// changed, also when the quoted bytes make no sense: the receiver will judge them.
fn map_quoted(bytes: &mut [u8], source: &[Mapping], destination: &[Mapping]) -> Option<Delta> {
    let layout = Layout::of_quoted(bytes).ok()?;
    let header_checksum = |bytes: &[u8]| u16::from_be_bytes([bytes[v4::CHECKSUM], bytes[v4::CHECKSUM + 1]]);
    let old = layout.v4.then(|| header_checksum(bytes));
    let addresses = map_addresses(bytes, &layout, source, destination)?;
    let mut delta = addresses;
    if let Some(old) = old {
        delta = delta.word(old, header_checksum(bytes));
    }
    // The field may lie beyond the quoted bytes; and bytes beyond the quoted packet are no part of it (RFC 4884).
    if let Some(at) = layout.pseudo_checksum() {
        delta = delta.and(adjust(bytes, at, &layout, addresses));
    }
    Some(delta)
}

#[cfg(test)]
mod tests;
