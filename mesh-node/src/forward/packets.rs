//! Packets for the tests of this folder, and a check of all their checksums that shares nothing with the code under test.

use std::net::IpAddr;

use mesh_proto::ip::{Fragment, Packet, checksum, transport};

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// An IP packet around a transport, whose checksum (at `field`) is completed, or left partial.
pub(super) fn packet(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    mut payload: Vec<u8>,
    partial: bool,
) -> Vec<u8> {
    let v4 = source.is_ipv4();
    let addresses = [octets(source), octets(destination)].concat();
    let pseudo = checksum::pseudo_header(&addresses, protocol, payload.len());
    let field = match protocol {
        transport::TCP => Some(16),
        transport::UDP | transport::UDP_LITE => Some(6),
        transport::ICMP | transport::ICMPV6 => Some(2),
        _ => None,
    };
    if let Some(field) = field {
        payload[field..field + 2].fill(0);
        let start = if protocol == transport::ICMP { 0 } else { u64::from(pseudo) };
        let full = !checksum::fold(checksum::add(start, &payload));
        let full = if transport::zero_is_none(protocol) && full == 0 { 0xffff } else { full };
        let value = if partial { pseudo } else { full };
        payload[field..field + 2].copy_from_slice(&value.to_be_bytes());
    }
    let mut bytes = if v4 {
        let mut header = vec![0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, protocol, 0, 0];
        header[2..4].copy_from_slice(&((20 + payload.len()) as u16).to_be_bytes());
        header
    } else {
        let mut header = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
        header[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        header
    };
    bytes.extend_from_slice(&addresses);
    if v4 {
        let sum = checksum::checksum(&bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    bytes.extend_from_slice(&payload);
    bytes
}

pub(super) fn udp(source: IpAddr, destination: IpAddr, port: u16, data: &[u8], partial: bool) -> Vec<u8> {
    let mut bytes = [1000u16.to_be_bytes(), port.to_be_bytes()].concat();
    bytes.extend_from_slice(&((8 + data.len()) as u16).to_be_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(data);
    packet(source, destination, transport::UDP, bytes, partial)
}

pub(super) fn tcp(
    source: IpAddr,
    destination: IpAddr,
    port: u16,
    sequence: u32,
    flags: u8,
    data: &[u8],
    partial: bool,
) -> Vec<u8> {
    let mut bytes = [1000u16.to_be_bytes(), port.to_be_bytes()].concat();
    bytes.extend_from_slice(&sequence.to_be_bytes());
    bytes.extend_from_slice(&[0, 0, 0, 7, 0x80, flags, 0x01, 0xf5, 0, 0, 0, 0]);
    // Timestamps, as Linux sends them.
    bytes.extend_from_slice(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    bytes.extend_from_slice(data);
    packet(source, destination, transport::TCP, bytes, partial)
}

/// An echo request.
pub(super) fn ping(source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let v4 = source.is_ipv4();
    let (protocol, kind) = if v4 { (transport::ICMP, 8) } else { (transport::ICMPV6, 128) };
    packet(source, destination, protocol, vec![kind, 0, 0, 0, 0, 1, 0, 1, 42], false)
}

/// Unreachable, quoting a packet.
pub(super) fn icmp_error(source: IpAddr, destination: IpAddr, quoted: &[u8]) -> Vec<u8> {
    let v4 = source.is_ipv4();
    let (protocol, kind) = if v4 { (transport::ICMP, 3) } else { (transport::ICMPV6, 1) };
    let body = [&[kind, 1, 0, 0, 0, 0, 0, 0], quoted].concat();
    packet(source, destination, protocol, body, false)
}

/// The packet with these addresses instead, all checksums computed anew: what mapping has to give.
pub(super) fn readdressed(bytes: &[u8], source: IpAddr, destination: IpAddr, partial: bool) -> Vec<u8> {
    let view = Packet::parse(bytes).unwrap();
    packet(source, destination, view.protocol(), view.payload().to_vec(), partial)
}

/// Whether every checksum of a whole packet is right.
pub(super) fn checksums_hold(bytes: &[u8]) -> bool {
    let view = Packet::parse(bytes).unwrap();
    if view.layout().v4 && checksum::checksum(&bytes[..20]) != 0 {
        return false;
    }
    assert_eq!(view.layout().fragment, Fragment::Whole);
    let start = if view.protocol() == transport::ICMP { 0 } else { u64::from(view.pseudo_header()) };
    checksum::fold(checksum::add(start, view.payload())) == 0xffff
}
