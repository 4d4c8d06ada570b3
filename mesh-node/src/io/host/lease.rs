//! Renews the lease of egress roles: a packet to ourselves that chain `renew` of our nftables table sees. Owned by the probing
//! thread: what keeps the peers' faith and what keeps the kernel's must end together.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind};
use std::net::Ipv4Addr;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::control::host::lease::Renewed;

/// One socket a mark: each sends to itself.
#[derive(Debug, Default)]
pub struct Renewals {
    sockets: BTreeMap<u32, Socket>,
}

impl Renewals {
    /// Renews these. They are one daemon's: what is said of one is said of all.
    pub fn renew(&mut self, marks: &[u32]) -> Result<Renewed, Error> {
        let mut all = Renewed::InTime;
        for mark in marks {
            if self.one(*mark)? == Renewed::Anew {
                all = Renewed::Anew;
            }
        }
        Ok(all)
    }

    fn one(&mut self, mark: u32) -> Result<Renewed, Error> {
        let socket = match self.sockets.get(&mark) {
            Some(socket) => socket,
            None => self.sockets.entry(mark).or_insert(open(mark)?),
        };
        match socket.send(&[]) {
            // a local packet that a rule drops is an error to its sender
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(Renewed::InTime),
            Ok(_) => {
                // it came through: a buffer that nobody empties would in time count as our drops
                while socket.recv(&mut []).is_ok() {}
                Ok(Renewed::Anew)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Renewed::Anew),
            Err(error) => Err(error),
        }
    }
}

fn open(mark: u32) -> Result<Socket, Error> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.set_mark(mark)?;
    // with lo down the default route would take it, without a word
    socket.bind_device(Some(b"lo"))?;
    socket.bind(&SockAddr::from(std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0))))?;
    socket.connect(&socket.local_addr()?)?;
    Ok(socket)
}
