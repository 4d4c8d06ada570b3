//! Follows a packet through the mesh without sending it: the forwarding functions are asked here and on each node on its way.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_proto::hello::{Message, TraceHop, TraceReply, TraceRequest};
use mesh_proto::ip::transport::L4;
use mesh_proto::{NetworkName, NodeId};

use super::Control;
use super::event::{ConnId, LocalNetwork, Output};
use super::host::{HostEgress, HostOut};
use crate::config::EgressChoice;
use crate::forward::fib::NetworkFib;
use crate::forward::{self, DropReason, Verdict};

/// Questions that wait for another node.
const MAX_PENDING: usize = 64;

/// Traces on their way, by request.
#[derive(Debug, Default)]
pub struct Traces {
    /// Whom it was asked, and the hops so far.
    pending: BTreeMap<u64, (ConnId, Vec<TraceHop>)>,
}

fn done(hops: Vec<TraceHop>, id: u64, refused: Option<String>) -> TraceReply {
    TraceReply { id, hops, refused }
}

impl Control {
    /// From a VM of this node.
    pub(super) fn trace(
        &mut self,
        id: u64,
        network: Option<NetworkName>,
        source: IpAddr,
        destination: IpAddr,
    ) {
        let answer = match self.trace_outbound(id, network.as_ref(), source, destination) {
            Ok(Step::End(reply)) => Ok(reply),
            Ok(Step::Ask { node, request, hops }) => {
                match self.members.peers.get(&node).and_then(|p| p.tunnel.as_ref()) {
                    Some(tunnel) => {
                        let conn = tunnel.conn;
                        while self.traces.pending.len() >= MAX_PENDING {
                            self.traces.pending.pop_first();
                        }
                        self.traces.pending.insert(id, (conn, hops));
                        self.outputs
                            .push_back(Output::Send { conn, message: Message::TraceRequest(request) });
                        return;
                    }
                    None => Ok(done(
                        hops,
                        id,
                        Some(format!("no tunnel to {node}: `mesh-ctl peer show {node}` says why")),
                    )),
                }
            }
            Err(error) => Err(error),
        };
        self.outputs.push_back(Output::Traced { id, answer });
    }

    /// The rest of the journey has arrived.
    pub(super) fn traced(&mut self, conn: ConnId, mut reply: TraceReply) {
        // from the node that was asked, not from anyone who guesses a number
        if self.traces.pending.get(&reply.id).is_none_or(|(asked, _)| *asked != conn) {
            return;
        }
        let Some((_, mut hops)) = self.traces.pending.remove(&reply.id) else { return };
        hops.append(&mut reply.hops);
        reply.hops = hops;
        self.outputs.push_back(Output::Traced { id: reply.id, answer: Ok(reply) });
    }

    fn trace_outbound(
        &self,
        id: u64,
        name: Option<&NetworkName>,
        source: IpAddr,
        destination: IpAddr,
    ) -> Result<Step, String> {
        let network = self.trace_network(name, source)?;
        let host = self.local.identity.node.to_string();
        let fib = self.network_fib(network);
        let own_announced = network.announce.iter().find(|a| a.prefix.contains(source));
        let decision = forward::decide_outbound(&fib, source, destination);
        let mut hops = vec![TraceHop {
            host: "vm".into(),
            source,
            destination,
            action: format!("sends to its gateway on {}", network.interface),
        }];
        // rule (b) of the recipe: from an announced address to anywhere but the mesh
        let internet = matches!(decision.verdict, Verdict::Drop(DropReason::NoRoute))
            || fib.owner(destination).is_none();
        if internet && own_announced.is_some_and(|a| a.internet_own) {
            let action = "leaves by the host's own uplink, address unchanged (internet = \"own\")".into();
            hops.push(TraceHop { host, source, destination, action });
            return Ok(Step::End(done(hops, id, None)));
        }
        if internet && network.egress == EgressChoice::Local {
            let (source, how) = self.snat_of(network, source);
            let action = format!("leaves here: egress \"local\", {how}");
            hops.push(TraceHop { host, source, destination, action });
            return Ok(Step::End(done(hops, id, None)));
        }
        match decision.verdict {
            Verdict::Tunnel(peer) => {
                let node = self.members.name(peer).cloned().ok_or("the peer has just gone")?;
                let via = if fib.owner(destination).is_none() { "egress node" } else { "tunnel to" };
                let action = format!("{}, {via} {node}", mapped(source, decision.source, "source"));
                hops.push(TraceHop {
                    host,
                    source: decision.source,
                    destination: decision.destination,
                    action,
                });
                let request = TraceRequest {
                    id,
                    network: network.name.clone(),
                    source: decision.source,
                    destination: decision.destination,
                };
                Ok(Step::Ask { node, request, hops })
            }
            Verdict::Hairpin | Verdict::Deliver => {
                let egress = fib.owner(destination).is_none();
                let action = format!("{}, stays on this host", mapped(source, decision.source, "source"));
                let (src, dst) = (decision.source, decision.destination);
                hops.push(TraceHop { host: host.clone(), source: src, destination: dst, action });
                self.last_hop(network, &host, src, dst, egress, &mut hops);
                Ok(Step::End(done(hops, id, None)))
            }
            Verdict::Drop(reason) => {
                Ok(Step::End(done(hops, id, Some(self.why(network, reason, destination)))))
            }
        }
    }

    /// A packet that comes from a tunnel.
    pub(super) fn trace_here(&self, conn: ConnId, request: &TraceRequest) -> TraceReply {
        let host = self.local.identity.node.to_string();
        let refuse = |text: String| done(Vec::new(), request.id, Some(format!("{host}: {text}")));
        let Some(network) = self.local.networks.iter().find(|n| n.name == request.network) else {
            return refuse(format!("network {} is not on this node", request.network));
        };
        let Some(peer) = self.members.conns.get(&conn).and_then(|n| self.members.peers.get(n)) else {
            return refuse("the tunnel has just gone".into());
        };
        let fib = self.network_fib(network);
        let decision = forward::decide_inbound(
            &fib,
            peer.ix,
            request.source,
            request.destination,
            L4::Icmp { request: true },
        );
        match decision.verdict {
            Verdict::Drop(reason) => refuse(self.why(network, reason, request.destination)),
            Verdict::Tunnel(_) | Verdict::Hairpin | Verdict::Deliver => {
                let (src, dst) = (decision.source, decision.destination);
                let here = network.maps.iter().any(|(s, p)| s.contains(dst) || p.contains(dst))
                    || network.announce.iter().any(|a| a.prefix.contains(dst));
                let mut hops = Vec::new();
                if here {
                    let action =
                        format!("{}, from the tunnel", mapped(request.destination, dst, "destination"));
                    hops.push(TraceHop { host: host.clone(), source: src, destination: dst, action });
                }
                self.last_hop(network, &host, src, dst, !here, &mut hops);
                done(hops, request.id, None)
            }
        }
    }

    fn last_hop(
        &self,
        network: &LocalNetwork,
        host: &str,
        source: IpAddr,
        destination: IpAddr,
        egress: bool,
        hops: &mut Vec<TraceHop>,
    ) {
        if egress {
            let (source, how) = self.snat_of(network, source);
            let host = host.to_owned();
            hops.push(TraceHop { host, source, destination, action: format!("leaves the mesh, {how}") });
            return;
        }
        let own = network.gateways.iter().any(|(_, gw)| *gw == destination);
        let (host, action) = if own {
            (host.to_owned(), "this host itself".to_owned())
        } else {
            ("vm".to_owned(), format!("arrives, through {}", network.interface))
        };
        hops.push(TraceHop { host, source, destination, action });
    }

    fn snat_of(&self, network: &LocalNetwork, source: IpAddr) -> (IpAddr, String) {
        let kernel = self.published.2.networks.iter().find(|n| n.slot == network.ix.0);
        let egress: Option<&HostEgress> = kernel.and_then(|n| match &n.out {
            HostOut::Local(egress) => Some(egress),
            HostOut::None | HostOut::Tunnel { .. } => n.offer.as_ref(),
        });
        let device = egress.and_then(|e| e.interface.clone()).unwrap_or_else(|| "the default route".into());
        match egress.and_then(|e| e.snat.iter().find(|a| a.is_ipv4() == source.is_ipv4())) {
            Some(snat) => (*snat, format!("SNAT to {snat} on {device}")),
            None => (source, format!("masqueraded on {device}")),
        }
    }

    fn network_fib(&self, network: &LocalNetwork) -> NetworkFib {
        let elected = self.elections.get(&network.name).map_or(&[][..], Vec::as_slice);
        NetworkFib::new(super::rib::network_spec(&self.local, network, &self.members, elected))
    }

    fn trace_network(&self, name: Option<&NetworkName>, source: IpAddr) -> Result<&LocalNetwork, String> {
        let holds = |n: &&LocalNetwork| {
            n.maps.iter().any(|(subnet, _)| subnet.contains(source))
                || n.announce.iter().any(|a| a.prefix.contains(source))
        };
        let mut found =
            self.local.networks.iter().filter(|n| name.is_none_or(|w| *w == n.name)).filter(holds);
        match (found.next(), found.next()) {
            (Some(network), None) => Ok(network),
            (Some(a), Some(b)) => {
                Err(format!("{source} is in networks {} and {}: say which with --network", a.name, b.name))
            }
            (None, _) => Err(format!(
                "{source} is no address behind this node{}: give the VM's own address, `mesh-ctl networks` lists the subnets",
                name.map(|n| format!(" in network {n}")).unwrap_or_default()
            )),
        }
    }

    fn why(&self, network: &LocalNetwork, reason: DropReason, destination: IpAddr) -> String {
        match reason {
            DropReason::NoRoute if network.egress == EgressChoice::None => {
                format!(
                    "refused: network {} has no egress (egress = \"none\"), and nobody announces {destination}",
                    network.name
                )
            }
            DropReason::NoRoute => format!(
                "refused: nobody announces {destination}, and no egress node is reachable: `mesh-ctl egress` lists them"
            ),
            DropReason::ForbiddenDestination => format!(
                "dropped (forbidden_destination): {destination} is not what this node serves or lets out; `destination` of [[egress]] can open it"
            ),
            DropReason::SourceNotOwned => {
                "dropped (source_not_owned): the sending node does not own the source address".into()
            }
            other => format!("dropped ({})", other.as_str()),
        }
    }
}

enum Step {
    End(TraceReply),
    Ask { node: NodeId, request: TraceRequest, hops: Vec<TraceHop> },
}

fn mapped(before: IpAddr, after: IpAddr, what: &str) -> String {
    if before == after { format!("{what} unchanged") } else { format!("{what} {before} mapped to {after}") }
}
