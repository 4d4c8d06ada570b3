//! The UDP socket and quinn's endpoint on it: dial, accept.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use aws_lc_rs::{digest, hmac};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use quinn::{ClientConfig, Endpoint, EndpointConfig, ServerConfig, TokioRuntime, TransportConfig};
use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use rand::RngCore;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::offloads::SocketOffloads;
use super::tls::{self, Credentials};
use crate::config::offloads::Offloads;
use crate::control::host::UNDERLAY_MARK;
use crate::io::lane::{self, LaneWire};
use crate::tunnel::lane::{ID_LEN, LANE_BIT};

/// Bytes the kernel may hold for us in each direction: a few milliseconds at line rate. More only adds delay under load.
const SOCKET_BUFFER: usize = 2 << 20;

/// What the key for connection IDs is derived by.
const CONNECTION_ID: &[u8] = b"mesh connection id\0";

/// How the socket is to be bound.
#[derive(Debug, Clone, Copy)]
pub struct Bind {
    /// Where.
    pub listen: SocketAddr,
    /// What it may use.
    pub offloads: Offloads,
    /// The largest UDP payload that peers may send.
    pub largest: u16,
    /// Packet workers: with lanes each has a port, the ones after the first's.
    pub workers: u8,
}

impl Bind {
    /// Binds and builds the endpoint; `transport` is for both directions.
    pub fn alone(
        self,
        credentials: &Credentials,
        transport: TransportConfig,
    ) -> anyhow::Result<(Endpoint, SocketOffloads)> {
        let bound = socket(self.listen).and_then(|socket| {
            socket.bind(&self.listen.into())?;
            Ok(UdpSocket::from(socket))
        });
        let socket = bound.with_context(|| format!("bind {}", self.listen))?;
        buffers(&socket, SOCKET_BUFFER, SOCKET_BUFFER);
        self.on_socket(socket, credentials, transport)
    }

    /// Binds for QUIC and lanes together. Somebody has to receive from the socket, else quinn hears nothing.
    pub fn shared(
        self,
        credentials: &Credentials,
        transport: TransportConfig,
    ) -> anyhow::Result<(Endpoint, SocketOffloads, LaneWire)> {
        let bind = |worker: u8| {
            let port = self.listen.port().checked_add(worker.into());
            let port = port.with_context(|| format!("no port is left for worker {worker}"))?;
            let address = SocketAddr::new(self.listen.ip(), port);
            let bound = socket(address).and_then(|socket| lane::outlet::bind(socket, address));
            let socket = bound.with_context(|| match worker {
                0 => format!("bind {address}"),
                _ => format!("bind {address}, the port of packet worker {worker} (`workers`)"),
            })?;
            buffers(&socket, lane::socket::RECEIVE_BUFFER, lane::socket::SEND_BUFFER);
            anyhow::Ok(socket)
        };
        let first = bind(0)?;
        let more = (1..self.workers).map(bind).collect::<anyhow::Result<_>>()?;
        let wire = LaneWire::of_workers(first, more, self.offloads).context("set up the UDP socket")?;
        let offloads = SocketOffloads::shared(&wire, self.offloads);
        Ok((self.endpoint(&offloads, credentials, transport)?, offloads, wire))
    }

    fn on_socket(
        self,
        socket: UdpSocket,
        credentials: &Credentials,
        transport: TransportConfig,
    ) -> anyhow::Result<(Endpoint, SocketOffloads)> {
        let offloads =
            SocketOffloads::open(socket, self.offloads, &TokioRuntime).context("set up the UDP socket")?;
        Ok((self.endpoint(&offloads, credentials, transport)?, offloads))
    }

    fn endpoint(
        self,
        offloads: &SocketOffloads,
        credentials: &Credentials,
        transport: TransportConfig,
    ) -> anyhow::Result<Endpoint> {
        let (server, client) = configs(credentials, transport)?;
        let mut config = endpoint_config(credentials)?;
        config.max_udp_payload_size(self.largest)?;
        let runtime = Arc::new(TokioRuntime);
        let mut endpoint =
            Endpoint::new_with_abstract_socket(config, Some(server), offloads.socket(), runtime)?;
        endpoint.set_default_client_config(client);
        Ok(endpoint)
    }
}

/// Without the mark, which needs a capability.
#[cfg(test)]
pub(super) fn bind_for_test(
    listen: SocketAddr,
    credentials: &Credentials,
    transport: TransportConfig,
) -> anyhow::Result<(Endpoint, SocketOffloads)> {
    let bind = Bind { listen, offloads: Offloads::ALL, largest: 1480, workers: 1 };
    bind.on_socket(UdpSocket::bind(listen)?, credentials, transport)
}

/// The same on a socket that lanes share, with those of further workers.
#[cfg(test)]
pub(super) fn shared_for_test(
    socket: UdpSocket,
    more: Vec<UdpSocket>,
    credentials: &Credentials,
    transport: TransportConfig,
) -> anyhow::Result<(Endpoint, SocketOffloads, LaneWire)> {
    let bind = Bind { listen: socket.local_addr()?, offloads: Offloads::ALL, largest: 1480, workers: 1 };
    let wire = LaneWire::of_workers(socket, more, bind.offloads)?;
    let offloads = SocketOffloads::shared(&wire, bind.offloads);
    Ok((bind.endpoint(&offloads, credentials, transport)?, offloads, wire))
}

/// An ID that a node with these credentials takes for one of its own.
#[cfg(test)]
pub(super) fn id_for_test(credentials: &Credentials) -> [u8; ID_LEN] {
    let id = Ids { key: derived(credentials, CONNECTION_ID) }.generate_cid();
    std::array::from_fn(|at| id[at])
}

/// Whoever dials us from now on is shown these credentials; the answer is for whoever dials, since each clone of an endpoint
/// has its own. Connections that are up go on with the former ones.
pub fn renew(
    endpoint: &Endpoint,
    credentials: &Credentials,
    transport: TransportConfig,
) -> anyhow::Result<ClientConfig> {
    let (server, client) = configs(credentials, transport)?;
    endpoint.set_server_config(Some(server));
    Ok(client)
}

fn configs(
    credentials: &Credentials,
    transport: TransportConfig,
) -> anyhow::Result<(ServerConfig, ClientConfig)> {
    let transport = Arc::new(transport);
    let mut server = tls::server_config(credentials)?;
    server.transport_config(transport.clone());
    // An address changes only by a new connection: quinn moves to an address before it has validated it.
    server.migration(false);
    let mut client = tls::client_config(credentials)?;
    client.transport_config(transport);
    Ok((server, client))
}

/// Ready to be bound.
fn socket(listen: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    if listen.is_ipv6() {
        // `[::]` means both families, whatever the host's bindv6only says
        socket.set_only_v6(!listen.ip().is_unspecified())?;
    }
    // the underlay never follows the overlay: a rule keeps marked packets on the main table
    socket.set_mark(UNDERLAY_MARK)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Bytes that the kernel may hold for us. The host's limits (rmem_max, wmem_max) are for ordinary programs: CAP_NET_ADMIN may go
/// beyond.
fn buffers(socket: &UdpSocket, receive: usize, send: usize) {
    if setsockopt(socket, RcvBufForce, &receive).is_err() {
        let _ = SockRef::from(socket).set_recv_buffer_size(receive);
    }
    lane::outlet::send_buffer(socket, send);
}

/// Keys for stateless resets and connection IDs come from the node's key, so that a restarted node's reset is understood
/// by peers that still hold a connection to the run before (RFC 9000 section 10.3).
fn endpoint_config(credentials: &Credentials) -> anyhow::Result<EndpointConfig> {
    let reset = derived(credentials, b"mesh stateless reset\0");
    let cid = derived(credentials, CONNECTION_ID);
    let mut config = EndpointConfig::new(Arc::new(reset));
    config.cid_generator(move || Box::new(Ids { key: cid.clone() }));
    let mut seed = [0; 32];
    rand::rng().fill_bytes(&mut seed);
    config.rng_seed(Some(seed));
    Ok(config)
}

fn derived(credentials: &Credentials, label: &[u8]) -> hmac::Key {
    let mut seed = label.to_vec();
    seed.extend_from_slice(credentials.key.secret_der());
    hmac::Key::new(hmac::HMAC_SHA256, digest::digest(&digest::SHA256, &seed).as_ref())
}

/// quinn's connection IDs: never one of a lane (`tunnel::lane::LANE_BIT` is clear), and known again by a check that only this
/// node's key makes, so that what is no ID of ours is not answered, by a stateless reset or otherwise.
struct Ids {
    key: hmac::Key,
}

impl Ids {
    /// Chance, and then the check.
    const CHANCE: usize = 5;

    fn check(&self, chance: &[u8]) -> [u8; ID_LEN - Self::CHANCE] {
        let tag = hmac::sign(&self.key, chance);
        std::array::from_fn(|at| tag.as_ref()[at])
    }
}

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID_LEN];
        rand::rng().fill_bytes(&mut id[..Self::CHANCE]);
        id[0] &= !LANE_BIT;
        let check = self.check(&id[..Self::CHANCE]);
        id[Self::CHANCE..].copy_from_slice(&check);
        ConnectionId::new(&id)
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        let ours = id.len() == ID_LEN && id[0] & LANE_BIT == 0;
        if ours && id[Self::CHANCE..] == self.check(&id[..Self::CHANCE]) { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        ID_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_ours_is_known_again_and_is_no_lane_s() {
        let ids = |key: &[u8]| Ids { key: hmac::Key::new(hmac::HMAC_SHA256, key) };
        let mut ours = ids(&[1; 32]);
        for _ in 0..1000 {
            let id = ours.generate_cid();
            assert!(id[0] & LANE_BIT == 0 && ours.validate(&id).is_ok());
            // the same after a restart; another node's is not ours
            assert!(ids(&[1; 32]).validate(&id).is_ok());
            assert!(ids(&[2; 32]).validate(&id).is_err());
            for bit in 0..64 {
                let mut other = [0; ID_LEN];
                other.copy_from_slice(&id);
                other[bit / 8] ^= 1 << (bit % 8);
                assert!(ours.validate(&ConnectionId::new(&other)).is_err());
            }
        }
        assert!(ours.validate(&ConnectionId::new(&[])).is_err());
    }
}
