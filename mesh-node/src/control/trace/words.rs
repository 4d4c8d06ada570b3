//! What an operator reads of a packet's journey: what was done, why it was refused, and the remedy.

use std::net::IpAddr;

use mesh_proto::NodeId;
use mesh_proto::trace::{Packet, Protocol};

use crate::config::EgressChoice;
use crate::control::event::LocalNetwork;
use crate::control::host::HostEgress;
use crate::control::members::Members;
use crate::forward::DropReason;

/// The source after an egress, and what is done to it.
pub(super) fn snat(source: IpAddr, egress: Option<&HostEgress>) -> (IpAddr, &'static str) {
    match egress.and_then(|e| e.snat.iter().find(|a| a.is_ipv4() == source.is_ipv4())) {
        Some(snat) => (*snat, "SNAT"),
        None => (source, "masqueraded"),
    }
}

/// An address, as far as forwarding changes it.
pub(super) fn changed(what: &str, before: IpAddr, after: IpAddr) -> String {
    if before == after { format!("{what} unchanged") } else { format!("{what} mapped") }
}

/// A packet for a node without tunnel.
pub(super) fn no_tunnel(members: &Members, node: &NodeId) -> String {
    if members.wants_tunnel(node) {
        return format!("no tunnel to {node}: `mesh-ctl peer show {node}` says why");
    }
    format!(
        "no tunnel to {node}: the node has left, or the first packet will ask for one; `mesh-ctl peer show {node}` tells"
    )
}

/// Why a packet is dropped, with the remedy.
pub(super) fn why(
    network: &LocalNetwork,
    packet: &Packet,
    reason: DropReason,
    destination: IpAddr,
) -> String {
    let name = &network.name;
    match reason {
        DropReason::NoRoute => match &network.egress {
            EgressChoice::None => format!(
                "nobody announces {destination}, and network {name} has no egress: name egress nodes with `egress` of [[network]], or \"local\""
            ),
            EgressChoice::Local => format!(
                "nobody announces {destination}, and the sender is an announced address that leaves by an egress node, of which egress = \"local\" has none"
            ),
            EgressChoice::Nodes(_) | EgressChoice::Auto => format!(
                "nobody announces {destination}, and no egress node that carries it is up: `mesh-ctl egress` lists them"
            ),
        },
        DropReason::ForbiddenDestination => format!(
            "dropped (forbidden_destination): {destination} is not what this node serves or lets out; `destination` of [[egress]] can open it"
        ),
        DropReason::SourceNotOwned => {
            "dropped (source_not_owned): the sending node does not own the source address; `mesh-ctl routes` tells who does".into()
        }
        DropReason::NotExposed => {
            let what = match packet.protocol {
                Protocol::Icmp => "icmp".to_owned(),
                Protocol::Tcp(port) => format!("tcp/{port}"),
                Protocol::Udp(port) => format!("udp/{port}"),
            };
            format!(
                "dropped (not_exposed): {destination} is this host itself; add \"{what}\" to `expose` of [node] to let the mesh reach it"
            )
        }
        DropReason::NotRoutable => format!(
            "dropped (not_routable): {destination} is multicast, broadcast, link-local or no host's address"
        ),
        other => format!("dropped ({})", other.as_str()),
    }
}
