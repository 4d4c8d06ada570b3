//! Sockets that only send, at the port of another one: each is a send buffer of its own in the kernel, for a peer that must not fill
//! that of all.
//!
//! They share the port by SO_REUSEPORT (socket(7)). A filter chooses who receives: always the first, which was there before them.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBufForce;
use quinn::udp::UdpSocketState;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::socket::SEND_BUFFER;
use crate::io::tun::sys::receive_by_first;

/// Binds a socket that can have outlets, where nobody has the port.
pub fn bind(make: impl Fn() -> io::Result<Socket>, address: SocketAddr) -> io::Result<UdpSocket> {
    // one that shares its port would not be told that it is in use
    make()?.bind(&address.into())?;
    let socket = make()?;
    socket.set_reuse_port(true)?;
    receive_by_first(&socket)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Makes an outlet of a socket that was bound by [`bind`].
pub(super) fn of(first: &UdpSocket) -> io::Result<UdpSocket> {
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
    socket.bind(&address.into())?;
    let socket = UdpSocket::from(socket);
    // datagrams are never fragmented on their way, as those of the first are not
    UdpSocketState::new((&socket).into())?;
    if setsockopt(&socket, SndBufForce, &SEND_BUFFER).is_err() {
        let _ = SockRef::from(&socket).set_send_buffer_size(SEND_BUFFER);
    }
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
            let first = bind(|| udp(address), address).unwrap();
            let at = first.local_addr().unwrap();
            let outlets: Vec<_> = (0..3).map(|_| of(&first).unwrap()).collect();
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
        let shared = bind(|| udp(address), address).unwrap();
        let alone = UdpSocket::bind(address).unwrap();
        for taken in [shared, alone] {
            let at = taken.local_addr().unwrap();
            let error = bind(|| udp(at), at).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        }
    }
}
