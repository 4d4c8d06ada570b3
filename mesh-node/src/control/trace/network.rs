//! Which network a question about a packet is about.

use std::net::IpAddr;

use mesh_proto::Prefix;
use mesh_proto::trace::{Stage, TraceRequest};

use crate::control::Control;
use crate::control::event::{ConnId, LocalNetwork};

impl Control {
    /// An address of this host outside the mesh.
    pub(super) fn is_own_address(&self, address: IpAddr) -> bool {
        self.local.connected.contains(&Prefix::host(address))
    }

    /// The one network a question is about; else why there is none, or more than one.
    pub(super) fn trace_network(
        &self,
        asker: Option<ConnId>,
        request: &TraceRequest,
    ) -> Result<&LocalNetwork, String> {
        let (node, packet) = (self.node(), &request.packet);
        let tunnel = match asker {
            Some(conn) => {
                let peer = self.members.conns.get(&conn).and_then(|n| self.members.peers.get(n));
                Some(peer.and_then(|p| p.tunnel.as_ref()).ok_or("the tunnel has just gone")?)
            }
            None => None,
        };
        // a network is none of the business of nodes that do not carry it
        let carried = |network: &&LocalNetwork| {
            tunnel.is_none_or(|t| t.hello.networks.iter().any(|n| n.name == network.name))
        };
        let named = |network: &&LocalNetwork| request.network.as_ref().is_none_or(|n| *n == network.name);
        let holds = |network: &&LocalNetwork, address: IpAddr| {
            network.maps.iter().any(|(subnet, _)| subnet.contains(address))
                || network.announce.iter().any(|a| a.prefix.contains(address))
        };
        let of_mesh =
            |network: &&LocalNetwork, address| network.maps.iter().any(|(_, p)| p.contains(address));
        let fits = |network: &&LocalNetwork| match &request.stage {
            // the host may have been asked by another of its addresses
            Stage::Segment if request.network.is_some() && packet.reply => {
                holds(network, packet.source) || self.is_own_address(packet.source)
            }
            Stage::Segment => holds(network, packet.source),
            Stage::Name => holds(network, packet.destination) || of_mesh(network, packet.destination),
            Stage::Tunnel(_) | Stage::Uplink(_) => request.network.is_some(),
        };
        let mut found = self.local.networks.iter().filter(carried).filter(named).filter(fits);
        let address = if request.stage == Stage::Name { packet.destination } else { packet.source };
        match (found.next(), found.next(), &request.network) {
            (Some(network), None, _) => Ok(network),
            (Some(a), Some(b), _) => {
                Err(format!("{address} is in networks {} and {}: say which with --network", a.name, b.name))
            }
            (None, _, Some(name)) if !self.local.networks.iter().filter(carried).any(|n| n.name == *name) => {
                Err(format!("network {name} is not on {node}: `mesh-ctl networks` lists those that are"))
            }
            (None, _, name) => Err(format!(
                "{address} is no address behind {node}{}: give the VM's own address, `mesh-ctl networks` lists the subnets",
                name.as_ref().map(|n| format!(" in network {n}")).unwrap_or_default()
            )),
        }
    }
}
