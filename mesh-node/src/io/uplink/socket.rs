//! Sockets that leave by an uplink, and by nothing else.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpSocket;

use crate::config::uplink::UplinkConfig;
use crate::control::host::UNDERLAY_MARK;

/// A socket bound to the uplink and, where there is one of this family, to its SNAT address.
pub(super) fn open(uplink: &UplinkConfig, to: IpAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(SocketAddr::new(to, 0)), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    // the main table, as the egress traffic itself: the overlay is never followed
    socket.set_mark(UNDERLAY_MARK)?;
    socket.bind_device(Some(uplink.interface.as_bytes()))?;
    if let Some(source) = uplink.snat.iter().find(|a| a.is_ipv4() == to.is_ipv4()) {
        match socket.bind(&SocketAddr::new(*source, 0).into()) {
            // an address routed to this host need not be one of its own: then the interface's serves
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
            other => other?,
        }
    }
    Ok(socket)
}

/// A TCP connection, given up as soon as it is there.
pub(super) async fn connect(uplink: &UplinkConfig, endpoint: &str) -> io::Result<()> {
    let found = tokio::net::lookup_host(endpoint).await?.next();
    let to = found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))?;
    let socket = open(uplink, to.ip(), Type::STREAM, Protocol::TCP)?;
    // its end is a reset: a probe leaves no TIME_WAIT behind
    socket.set_linger(Some(std::time::Duration::ZERO))?;
    TcpSocket::from_std_stream(socket.into()).connect(to).await.map(drop)
}
