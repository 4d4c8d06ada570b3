//! Sockets that leave by an uplink, and by nothing else.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpSocket;
use tokio::task::JoinHandle;

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

/// Where a TCP target is. A name is asked for again with each probe, but only once at a time: the resolver has a patience of its own, of
/// many probes, and each question holds a thread.
#[derive(Debug)]
pub(super) struct Resolver {
    endpoint: String,
    asking: Option<JoinHandle<io::Result<Vec<SocketAddr>>>>,
    /// The last answer.
    known: Vec<SocketAddr>,
}

impl Resolver {
    pub(super) fn new(endpoint: String) -> Self {
        Self { endpoint, asking: None, known: Vec::new() }
    }

    /// The addresses; while the resolver says nothing new, those that it said last. May be given up and called again.
    async fn addresses(&mut self) -> io::Result<&[SocketAddr]> {
        let endpoint = &self.endpoint;
        let asking = self.asking.get_or_insert_with(|| {
            let endpoint = endpoint.clone();
            tokio::spawn(async move { Ok(tokio::net::lookup_host(endpoint).await?.collect()) })
        });
        if self.known.is_empty() || asking.is_finished() {
            let answer = asking.await.map_err(io::Error::other).flatten();
            self.asking = None;
            match answer {
                Ok(found) if !found.is_empty() => self.known = found,
                Err(error) if self.known.is_empty() => return Err(error),
                // the target is asked where it was: that it answers is what counts
                _ => {}
            }
        }
        match self.known.is_empty() {
            true => Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
            false => Ok(&self.known),
        }
    }
}

/// A TCP connection to the first of a name's addresses that takes one, given up as soon as it is there.
pub(super) async fn connect(uplink: &UplinkConfig, target: &mut Resolver) -> io::Result<()> {
    let mut last = None;
    for to in target.addresses().await? {
        match one(uplink, *to).await {
            Ok(()) => return Ok(()),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address")))
}

async fn one(uplink: &UplinkConfig, to: SocketAddr) -> io::Result<()> {
    let socket = open(uplink, to.ip(), Type::STREAM, Protocol::TCP)?;
    // its end is a reset: a probe leaves no TIME_WAIT behind
    socket.set_linger(Some(std::time::Duration::ZERO))?;
    TcpSocket::from_std_stream(socket.into()).connect(to).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_resolver_that_says_nothing_is_asked_once_and_what_it_said_last_holds() {
        let mut target = Resolver::new("a.example:80".into());
        let (answer, asked) = tokio::sync::oneshot::channel::<Vec<SocketAddr>>();
        target.asking = Some(tokio::spawn(async { asked.await.map_err(io::Error::other) }));
        let first = target.asking.as_ref().map(JoinHandle::id);
        for _ in 0..3 {
            let short = std::time::Duration::from_millis(5);
            assert!(tokio::time::timeout(short, target.addresses()).await.is_err());
            assert_eq!(target.asking.as_ref().map(JoinHandle::id), first, "no second question");
        }
        let found: Vec<SocketAddr> = vec!["192.0.2.80:80".parse().unwrap()];
        answer.send(found.clone()).unwrap();
        assert_eq!(target.addresses().await.unwrap(), found);
        target.asking = Some(tokio::spawn(std::future::pending()));
        assert_eq!(target.addresses().await.unwrap(), found, "it is silent");
        target.asking = Some(tokio::spawn(async { Err(io::Error::other("no such name")) }));
        tokio::task::yield_now().await;
        assert_eq!(target.addresses().await.unwrap(), found, "it fails");
    }
}
