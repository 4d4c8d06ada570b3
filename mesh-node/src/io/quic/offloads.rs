//! What the kernel does in larger pieces at the UDP socket, and how to do without.

use std::fmt;
use std::io;
use std::net::UdpSocket;
use std::sync::Arc;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGroSegment;
use quinn::{AsyncUdpSocket, Runtime, TransportConfig};

use super::datagram;
use super::hearing::Hearing;
use super::trains::Trains;
use crate::config::NodeConfig;
use crate::config::offloads::{Offload, Offloads};
use crate::io::lane::LaneWire;
use crate::io::lane::socket::LaneSocket;
use crate::io::liveness::beside::Receivers;

/// Transport settings of this node's connections, over an underlay that carries UDP payloads up to `largest` bytes.
pub fn transport(node: &NodeConfig, largest: u16) -> TransportConfig {
    let mut transport = datagram::transport_config_for(node.keepalive, largest);
    transport.enable_segmentation_offload(node.offloads.has(Offload::Gso));
    transport
}

/// The socket as quinn uses it.
#[derive(Clone)]
pub struct SocketOffloads {
    socket: Arc<dyn AsyncUdpSocket>,
    hearing: Arc<Hearing>,
    probes: Arc<Receivers>,
    /// The sockets that carry them, where there are any: this one, and those of further workers.
    lanes: Vec<Arc<LaneSocket>>,
    wanted: Offloads,
    /// What the kernel had at the start.
    had: Offloads,
}

impl SocketOffloads {
    /// Hands the socket to quinn, with those of the wanted offloads that the kernel has.
    pub(super) fn open(socket: UdpSocket, wanted: Offloads, runtime: &dyn Runtime) -> io::Result<Self> {
        let same = socket.try_clone()?;
        let socket = runtime.wrap_udp_socket(socket)?;
        if !wanted.has(Offload::Gro) {
            // quinn switches it on wherever there is one
            setsockopt(&same, UdpGroSegment, &false).map_err(io::Error::from)?;
        }
        let hearing = Arc::new(Hearing::new(Some(same), None));
        let probes = Arc::<Receivers>::default();
        let trains = Trains { socket, hearing: hearing.clone(), probes: probes.clone() };
        Ok(Self::of(Arc::new(trains), hearing, probes, Vec::new(), wanted))
    }

    /// Of a socket that is set up, and read by others, who pass on what is quinn's.
    pub(super) fn shared(wire: &LaneWire, wanted: Offloads) -> Self {
        // probes are taken out before anything is passed on
        let (socket, probes) = (wire.port.clone(), Arc::default());
        let trains = Trains { socket, hearing: wire.passed_on.clone(), probes };
        let (hearing, probes) = (wire.hearing.clone(), wire.probes.clone());
        Self::of(Arc::new(trains), hearing, probes, wire.sockets().cloned().collect(), wanted)
    }

    fn of(
        socket: Arc<dyn AsyncUdpSocket>,
        hearing: Arc<Hearing>,
        probes: Arc<Receivers>,
        lanes: Vec<Arc<LaneSocket>>,
        wanted: Offloads,
    ) -> Self {
        let had = Offloads::default();
        let new = Self { socket, hearing, probes, lanes, wanted, had };
        Self { had: new.in_use(), ..new }
    }

    /// How the socket is read.
    pub fn hearing(&self) -> Arc<Hearing> {
        self.hearing.clone()
    }

    /// Who takes probes out of what is read.
    pub fn probes(&self) -> Arc<Receivers> {
        self.probes.clone()
    }

    /// What quinn talks to.
    pub fn socket(&self) -> Arc<dyn AsyncUdpSocket> {
        self.socket.clone()
    }

    /// At the start.
    pub fn had(&self) -> Offloads {
        self.had
    }

    /// At present, everywhere: where a device turns out to be unable to cut trains, lanes end them to that peer, quinn to all.
    pub fn in_use(&self) -> Offloads {
        let segments =
            self.socket.max_transmit_segments() > 1 && self.lanes.iter().all(|lanes| lanes.segments());
        let there = [(Offload::Gso, segments), (Offload::Gro, self.socket.max_receive_segments() > 1)];
        let used = there.into_iter().filter(|(offload, used)| *used && self.wanted.has(*offload));
        used.map(|(offload, _)| offload).collect()
    }
}

impl fmt::Debug for SocketOffloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SocketOffloads({})", self.in_use())
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::getsockopt;

    use super::*;

    #[tokio::test]
    async fn what_is_left_out_is_off_in_the_kernel_too() {
        for gro in [true, false] {
            let mut wanted = Offloads::ALL;
            wanted.set(Offload::Gro, gro);
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let kernel = socket.try_clone().unwrap();
            let open = SocketOffloads::open(socket, wanted, &quinn::TokioRuntime).unwrap();
            assert_eq!(getsockopt(&kernel, UdpGroSegment).unwrap(), gro);
            assert_eq!(open.in_use().has(Offload::Gro), gro);
            assert!(open.in_use().has(Offload::Gso));
        }
    }
}
