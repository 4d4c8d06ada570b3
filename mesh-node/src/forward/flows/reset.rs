//! The two RSTs that end a TCP flow whose egress node is drained, so that neither side hangs. RFC 9293 section 3.10.7.4.
//!
//! A RST counts only with the very sequence number that its receiver expects next (RFC 5961 section 3.2): the last one that
//! the VM acknowledged, and the end of what it sent. Where that has moved on meanwhile, the receiver answers with an ACK, and that one
//! is answered by a RST with its number.

use std::net::IpAddr;

use mesh_proto::ip::checksum::{checksum, pseudo_header};
use mesh_proto::ip::transport::{TCP, TCP_CHECKSUM, TCP_FLAGS, TCP_MIN_HEADER, TCP_SEQUENCE, flag};
use mesh_proto::ip::{Layout, v4};

use super::key::{Key, Parts};
use crate::forward::fib::Egress;

/// Hops that a RST of ours may take: the usual of a host.
const HOPS: u8 = 64;

/// A TCP flow to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reset {
    /// By which it left.
    pub egress: Egress,
    /// It breaks what is in progress: the operator is to know.
    pub in_progress: bool,
    vm: IpAddr,
    server: IpAddr,
    vm_port: u16,
    server_port: u16,
    sequence: u32,
    acknowledged: u32,
}

impl Reset {
    pub(super) fn of(key: &Key, egress: Egress, sequence: u32, acknowledged: u32) -> Self {
        let ((vm, server), (vm_port, server_port)) = (key.addresses(), key.ports());
        Self { egress, in_progress: true, vm, server, vm_port, server_port, sequence, acknowledged }
    }

    /// Of the flow that this packet of a VM belongs to; `None` where it is no whole TCP segment.
    pub fn of_packet(packet: &[u8]) -> Option<Self> {
        let parts = Parts::of(packet, &Layout::of(packet).ok()?)?;
        let tcp = parts.tcp?;
        Some(Self::of(&parts.key, Egress::Own, tcp.end, tcp.acknowledged?))
    }

    /// The RST for the VM, as from the server; with local addresses.
    pub fn to_vm(&self) -> Vec<u8> {
        let ports = (self.server_port, self.vm_port);
        segment(self.server, self.vm, ports, self.acknowledged, self.sequence)
    }

    /// The RST for the server, as from the VM; with local addresses, yet to be mapped.
    pub fn to_server(&self) -> Vec<u8> {
        segment(self.vm, self.server, (self.vm_port, self.server_port), self.sequence, self.acknowledged)
    }
}

/// A RST without data.
fn segment(from: IpAddr, to: IpAddr, ports: (u16, u16), sequence: u32, acknowledged: u32) -> Vec<u8> {
    let length = TCP_MIN_HEADER as u8;
    let (mut packet, addresses_at) = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            // RFC 791: no identification where it cannot be fragmented (RFC 6864)
            let mut head = vec![0x45, 0, 0, 20 + length, 0, 0, 0x40, 0, HOPS, TCP, 0, 0];
            head.extend_from_slice(&from.octets());
            head.extend_from_slice(&to.octets());
            let sum = checksum(&head);
            head[v4::CHECKSUM..v4::CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
            (head, 12)
        }
        (from, to) => {
            let octets = |address: IpAddr| match address {
                IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
                IpAddr::V6(a) => a.octets(),
            };
            let mut head = vec![0x60, 0, 0, 0, 0, length, TCP, HOPS];
            head.extend_from_slice(&octets(from));
            head.extend_from_slice(&octets(to));
            (head, 8)
        }
    };
    let start = packet.len();
    let mut header = [0; TCP_MIN_HEADER];
    header[..2].copy_from_slice(&ports.0.to_be_bytes());
    header[2..4].copy_from_slice(&ports.1.to_be_bytes());
    header[TCP_SEQUENCE..TCP_SEQUENCE + 4].copy_from_slice(&sequence.to_be_bytes());
    header[TCP_SEQUENCE + 4..TCP_SEQUENCE + 8].copy_from_slice(&acknowledged.to_be_bytes());
    header[12] = (length / 4) << 4;
    header[TCP_FLAGS] = flag::RST | flag::ACK;
    let pseudo = pseudo_header(&packet[addresses_at..], TCP, TCP_MIN_HEADER);
    header[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&pseudo.to_be_bytes());
    packet.extend_from_slice(&header);
    let sum = checksum(&packet[start..]);
    packet[start + TCP_CHECKSUM..start + TCP_CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
    packet
}
