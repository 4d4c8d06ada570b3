//! Sockets that only send, at the port of another one: each is a send buffer of its own in the kernel, for one peer. What waits in a
//! device's queue is charged to its socket, so that a peer behind a slow device would else take the room of all, QUIC and probes included.
//!
//! They share the port by SO_REUSEPORT (socket(7)). A filter chooses who receives: always the first, which was there before them.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{SndBufForce, UdpGroSegment};
use quinn::udp::UdpSocketState;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::io::tun::sys::receive_by_first;

/// Bytes that the kernel may hold for one peer.
const BUFFER: usize = 512 << 10;

/// Lets this process have as many open files as it may: each outlet is one, and there is one for each peer and worker. Once, at the
/// start. Best effort: what is refused an outlet shares the first socket.
pub fn allow_many() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// Bytes that the kernel may hold for us to send. The host's limit (wmem_max) is for ordinary programs: CAP_NET_ADMIN may go beyond.
pub fn send_buffer(socket: &UdpSocket, bytes: usize) {
    if setsockopt(socket, SndBufForce, &bytes).is_err() {
        let _ = SockRef::from(socket).set_send_buffer_size(bytes);
    }
}

/// Binds a socket that can have outlets, where nobody has the port: one with a filter of its own cannot join others there.
pub fn bind(socket: Socket, address: SocketAddr) -> io::Result<UdpSocket> {
    socket.set_reuse_port(true)?;
    if let Err(error) = receive_by_first(&socket) {
        tracing::debug!(%error, "no outlets: the kernel does not let one socket of a port receive all");
        socket.set_reuse_port(false)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Makes an outlet of a socket that was bound by [`bind`], which `joins` datagrams or not.
pub(super) fn of(first: &UdpSocket, joins: bool) -> io::Result<UdpSocket> {
    let address = first.local_addr()?;
    let like = SockRef::from(first);
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(like.only_v6()?)?;
    }
    let mark = like.mark()?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    // as the first has it: datagrams are never fragmented, and the kernel asks any socket of the port whether it may join them
    let socket = UdpSocket::from(socket);
    UdpSocketState::new((&socket).into())?;
    setsockopt(&socket, UdpGroSegment, &joins).map_err(io::Error::from)?;
    send_buffer(&socket, BUFFER);
    let plain = SockRef::from(&socket);
    // a broadcast comes to all sockets of a port
    let _ = plain.set_recv_buffer_size(0);
    plain.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn udp(address: SocketAddr) -> io::Result<Socket> {
        Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))
    }

    #[test]
    fn an_outlet_sends_from_the_port_and_receives_nothing() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let address = address.parse().unwrap();
            let first = bind(udp(address).unwrap(), address).unwrap();
            let at = first.local_addr().unwrap();
            let outlets: Vec<_> = (0..3).map(|_| of(&first, true).unwrap()).collect();
            let peers: Vec<_> = (0..50).map(|_| UdpSocket::bind(address).unwrap()).collect();
            first.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            for (at_peer, peer) in peers.iter().enumerate() {
                peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                let outlet = &outlets[at_peer % outlets.len()];
                outlet.send_to(b"out", peer.local_addr().unwrap()).unwrap();
                assert_eq!(peer.recv_from(&mut [0; 9]).unwrap(), (3, at));
                peer.send_to(b"in", at).unwrap();
                assert_eq!(first.recv_from(&mut [0; 9]).unwrap(), (2, peer.local_addr().unwrap()));
            }
            drop(outlets);
            peers[0].send_to(b"in", at).unwrap();
            assert_eq!(first.recv(&mut [0; 9]).unwrap(), 2);
        }
    }

    #[test]
    fn a_port_that_somebody_has_is_in_use() {
        let address = "127.0.0.1:0".parse().unwrap();
        let shared = bind(udp(address).unwrap(), address).unwrap();
        let alone = UdpSocket::bind(address).unwrap();
        for taken in [shared, alone] {
            let at = taken.local_addr().unwrap();
            let error = bind(udp(at).unwrap(), at).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        }
    }
}
