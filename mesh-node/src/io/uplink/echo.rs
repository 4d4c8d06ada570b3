//! One ICMP echo. RFC 792, RFC 4443 section 4.
//!
//! The kernel's ping sockets (`net.ipv4.ping_group_range`, open to all where systemd sets it) need no capability; where they
//! are closed, a raw socket does, which needs CAP_NET_RAW.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use mesh_proto::ip::checksum::checksum;
use socket2::{Protocol, Socket, Type};

use super::socket;
use crate::config::uplink::UplinkConfig;

const HEADER: usize = 8;
const TOKEN: usize = 16;

/// Types of request and reply.
fn types(to: IpAddr) -> (u8, u8) {
    if to.is_ipv4() { (8, 0) } else { (128, 129) }
}

/// A request with a random identifier, sequence number and token.
fn request(to: IpAddr) -> [u8; HEADER + TOKEN] {
    let mut packet: [u8; HEADER + TOKEN] = rand::random();
    packet[..4].copy_from_slice(&[types(to).0, 0, 0, 0]);
    if to.is_ipv4() {
        // of ICMPv6 the kernel does it: the addresses are part of the sum (RFC 3542 section 3.1)
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// Whether a packet, after a raw IPv4 socket's IP header, answers this very request: a forged or late one has another token.
/// The identifier is not compared: a ping socket replaces it by its own, and hears no other.
fn answers(packet: &[u8], raw: bool, to: IpAddr, request: &[u8; HEADER + TOKEN]) -> bool {
    let start = match packet.first() {
        Some(first) if raw && to.is_ipv4() => usize::from(first & 0x0f) * 4,
        _ => 0,
    };
    let Some(icmp) = packet.get(start..) else { return false };
    icmp.len() == request.len() && icmp[..2] == [types(to).1, 0] && icmp[6..] == request[6..]
}

fn open(uplink: &UplinkConfig, to: IpAddr) -> io::Result<(Socket, bool)> {
    let protocol = if to.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
    let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    match socket::open(uplink, to, Type::DGRAM, protocol) {
        Err(error) if denied(&error) => {
            let raw = socket::open(uplink, to, Type::RAW, protocol).map_err(|error| match denied(&error) {
                true => io::Error::new(
                    error.kind(),
                    "this node may not send echoes: let net.ipv4.ping_group_range include its group, add CAP_NET_RAW to its unit, or use tcp://host:port",
                ),
                false => error,
            });
            Ok((raw?, true))
        }
        other => Ok((other?, false)),
    }
}

/// Sends an echo and waits for its answer, for ever if there is none.
pub(super) async fn ask(uplink: &UplinkConfig, to: IpAddr) -> io::Result<()> {
    let (socket, raw) = open(uplink, to)?;
    socket.connect(&SocketAddr::new(to, 0).into())?;
    // a datagram socket of any protocol reads and writes as UDP's does
    let socket = tokio::net::UdpSocket::from_std(UdpSocket::from(socket))?;
    let request = request(to);
    socket.send(&request).await?;
    let mut buffer = [0; 256];
    loop {
        let n = socket.recv(&mut buffer).await?;
        if answers(&buffer[..n], raw, to, &request) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_answer_to_this_very_request_counts() {
        for to in ["192.0.2.1", "2001:db8::1"] {
            let to: IpAddr = to.parse().unwrap();
            let asked = request(to);
            let mut reply = asked;
            reply[0] = types(to).1;
            // a ping socket has an identifier of its own
            reply[4] ^= 1;
            assert!(answers(&reply, false, to, &asked));
            assert!(!answers(&asked, false, to, &asked), "the request itself is none");
            for i in (0..2).chain(6..reply.len()) {
                let mut forged = reply;
                forged[i] ^= 1;
                assert!(!answers(&forged, false, to, &asked), "byte {i}");
            }
            let mut late = request(to);
            late[0] = types(to).1;
            assert!(!answers(&late, false, to, &asked), "of an earlier request");
            for len in 0..reply.len() {
                assert!(!answers(&reply[..len], false, to, &asked));
            }
        }
    }

    #[test]
    fn a_raw_socket_s_ip_header_is_passed_over_whatever_it_claims() {
        let to: IpAddr = "192.0.2.1".parse().unwrap();
        let asked = request(to);
        let mut reply = asked;
        reply[0] = 0;
        for words in 5..=15_u8 {
            let mut packet = vec![0; usize::from(words) * 4];
            packet[0] = 0x40 | words;
            packet.extend(reply);
            assert!(answers(&packet, true, to, &asked));
            packet[0] = 0x40 | (words - 1);
            assert!(!answers(&packet, true, to, &asked));
        }
        assert!(!answers(&[0x4f], true, to, &asked) && !answers(&[], true, to, &asked));
    }
}
