//! The UDP socket and quinn's endpoint on it: dial, accept.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use anyhow::Context;
use aws_lc_rs::{digest, hmac};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBufForce, SndBufForce};
use quinn::{ClientConfig, Endpoint, EndpointConfig, ServerConfig, TokioRuntime, TransportConfig};
use rand::RngCore;
use socket2::{Domain, Protocol, Socket, Type};

use super::offloads::SocketOffloads;
use super::tls::{self, Credentials};
use crate::config::offloads::Offloads;
use crate::control::host::UNDERLAY_MARK;

/// Bytes the kernel may hold for us in each direction: a few milliseconds at line rate. More only adds delay under load.
const SOCKET_BUFFER: usize = 2 << 20;

/// Binds `listen` and builds the endpoint; `transport` is for both directions, `offloads` what the socket may use, and peers
/// may send UDP payloads up to `largest` bytes.
pub fn bind(
    listen: SocketAddr,
    credentials: &Credentials,
    transport: TransportConfig,
    offloads: Offloads,
    largest: u16,
) -> anyhow::Result<(Endpoint, SocketOffloads)> {
    let socket = socket(listen).with_context(|| format!("bind {listen}"))?;
    on_socket(socket, credentials, transport, offloads, largest)
}

/// Without the mark, which needs a capability.
#[cfg(test)]
pub(super) fn bind_for_test(
    listen: SocketAddr,
    credentials: &Credentials,
    transport: TransportConfig,
) -> anyhow::Result<Endpoint> {
    Ok(on_socket(UdpSocket::bind(listen)?, credentials, transport, Offloads::ALL, 1480)?.0)
}

fn on_socket(
    socket: UdpSocket,
    credentials: &Credentials,
    transport: TransportConfig,
    offloads: Offloads,
    largest: u16,
) -> anyhow::Result<(Endpoint, SocketOffloads)> {
    let (server, client) = configs(credentials, transport)?;
    let runtime = Arc::new(TokioRuntime);
    let offloads = SocketOffloads::open(socket, offloads, &*runtime).context("set up the UDP socket")?;
    let mut config = endpoint_config(credentials)?;
    config.max_udp_payload_size(largest)?;
    let mut endpoint = Endpoint::new_with_abstract_socket(config, Some(server), offloads.socket(), runtime)?;
    endpoint.set_default_client_config(client);
    Ok((endpoint, offloads))
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

fn socket(listen: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    if listen.is_ipv6() {
        // `[::]` means both families, whatever the host's bindv6only says
        socket.set_only_v6(!listen.ip().is_unspecified())?;
    }
    // the underlay never follows the overlay: a rule keeps marked packets on the main table
    socket.set_mark(UNDERLAY_MARK)?;
    // the host's limits (rmem_max, wmem_max) are for ordinary programs: CAP_NET_ADMIN may go beyond
    if setsockopt(&socket, RcvBufForce, &SOCKET_BUFFER).is_err() {
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    }
    if setsockopt(&socket, SndBufForce, &SOCKET_BUFFER).is_err() {
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    }
    socket.set_nonblocking(true)?;
    socket.bind(&listen.into())?;
    Ok(socket.into())
}

/// Keys for stateless resets and connection IDs come from the node's key, so that a restarted node's reset is understood
/// by peers that still hold a connection to the run before (RFC 9000 section 10.3).
fn endpoint_config(credentials: &Credentials) -> anyhow::Result<EndpointConfig> {
    let derive = |label: &[u8]| {
        let mut seed = label.to_vec();
        seed.extend_from_slice(credentials.key.secret_der());
        digest::digest(&digest::SHA256, &seed)
    };
    let reset = hmac::Key::new(hmac::HMAC_SHA256, derive(b"mesh stateless reset\0").as_ref());
    let cid = derive(b"mesh connection id\0");
    let cid_key = u64::from_be_bytes(cid.as_ref()[..8].try_into().context("digest is shorter than a key")?);
    let mut config = EndpointConfig::new(Arc::new(reset));
    config.cid_generator(move || Box::new(quinn_cid(cid_key)));
    let mut seed = [0; 32];
    rand::rng().fill_bytes(&mut seed);
    config.rng_seed(Some(seed));
    Ok(config)
}

fn quinn_cid(key: u64) -> quinn_proto::HashedConnectionIdGenerator {
    quinn_proto::HashedConnectionIdGenerator::from_key(key)
}
