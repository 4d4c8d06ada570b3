//! What this node does with a packet, by the forwarding functions that move real ones, and what its kernel has to do for it.

use std::net::IpAddr;

use mesh_proto::trace::{Packet, Place, Protocol, Stage, TraceEnd, TraceHop, TraceRequest};
use mesh_proto::{NetworkName, NodeId};

use super::kernel::{Expect, Incoming, Lookup};
use super::words;
use crate::config::EgressChoice;
use crate::control::Control;
use crate::control::event::{ConnId, LocalNetwork};
use crate::control::host::foreign::Flow;
use crate::control::host::{HostEgress, HostNetwork, HostOut, egress_mark, ruleset};
use crate::control::rib;
use crate::forward::fib::{Expose, NetworkFib, PeerIx};
use crate::forward::{self, Decision, DropReason, Verdict};

/// A hop, and what the kernel has to do before the packet has made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leg {
    /// The line of the table, as it is when the kernel follows.
    pub hop: TraceHop,
    /// Asked of the kernel.
    pub lookups: Vec<Lookup>,
}

/// The journey on this node, if the kernel follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// This node.
    pub node: NodeId,
    /// The network.
    pub network: Option<NetworkName>,
    /// The packet as it comes to this node.
    pub packet: Packet,
    /// In order.
    pub legs: Vec<Leg>,
    /// Where the packet is then.
    pub end: TraceEnd,
}

impl Control {
    /// What becomes of a packet here. `asker` is the peer that wants to know: of networks that it carries.
    pub fn trace_plan(&self, asker: Option<ConnId>, request: &TraceRequest) -> Plan {
        let mut plan = Plan {
            node: self.node().clone(),
            network: request.network.clone(),
            packet: request.packet,
            legs: Vec::new(),
            end: TraceEnd::Unanswerable(String::new()),
        };
        let network = match self.trace_network(asker, request) {
            Ok(network) => network,
            Err(text) => {
                plan.end = TraceEnd::Unanswerable(text);
                return plan;
            }
        };
        plan.network = Some(network.name.clone());
        let elected = self.roles.elections(&network.name);
        let spec = rib::network_spec(&self.local, network, &self.members, elected);
        let walk = Walk {
            control: self,
            network,
            kernel: self.published.2.networks.iter().find(|n| n.slot == network.ix.0),
            fib: NetworkFib::new(spec),
            plan,
        };
        match &request.stage {
            Stage::Segment => walk.sent_by_segment(request.packet),
            Stage::Tunnel(from) => walk.out_of_tunnel(from, request.packet),
            Stage::Uplink(inside) => walk.in_by_uplink(*inside, request.packet),
            Stage::Name => walk.name(request.packet.destination),
        }
    }
}

struct Walk<'a> {
    control: &'a Control,
    network: &'a LocalNetwork,
    kernel: Option<&'a HostNetwork>,
    fib: NetworkFib,
    plan: Plan,
}

impl Walk<'_> {
    fn sent_by_segment(mut self, packet: Packet) -> Plan {
        let (source, destination) = (packet.source, packet.destination);
        let (segment, tun) = (self.network.interface.clone(), self.network.tun.clone());
        let from_host = self.is_gateway(source) || (packet.reply && self.control.is_own_address(source));
        let incoming = if from_host { Incoming::Host } else { Incoming::Device(segment.clone()) };
        // the host's own answers carry the mark of the flow that asked
        let far = from_host && packet.reply && !self.fib.is_local(destination);
        let mark = if far { egress_mark(self.network.ix.0) } else { 0 };
        if !from_host {
            let action = format!("{}, by {segment}", if packet.reply { "answers" } else { "sends" });
            self.hop(Place::Vm, source, destination, Some(&segment), &action, Vec::new());
        }
        if self.fib.is_local(destination) {
            return self.neighbour(incoming, mark, packet);
        }
        let decision = forward::decide_outbound(&self.fib, source, destination);
        let no_owner = self.fib.owner(destination).is_none();
        if from_host && no_owner {
            let text =
                format!("{source} is {} itself: outside the mesh its traffic is not ours", self.plan.node);
            return self.end(TraceEnd::Unanswerable(text));
        }
        // what the mesh has no place for may leave by this host's own uplink
        let placeless = match decision.verdict {
            Verdict::Drop(reason) => reason == DropReason::NoRoute,
            Verdict::Tunnel(_) | Verdict::Hairpin | Verdict::Deliver => true,
        };
        let announced = self.network.announce.iter().find(|a| a.prefix.contains(source));
        match announced {
            Some(announced) if no_owner && placeless && announced.internet_own => {
                let lookup = self.lookup(incoming, source, destination, mark, self.uplink(None));
                self.leave(source, source, destination, "address unchanged", lookup)
            }
            None if no_owner && placeless && self.leaves_by_host() => {
                self.leave_here(incoming, source, destination)
            }
            _ if no_owner && self.kernel.is_some_and(|k| k.own.has(source, destination)) => {
                let egress = self.kernel.and_then(|k| k.offer.clone());
                let lookup = self.egress_lookup(incoming, source, destination, egress.as_ref());
                let (after, how) = words::snat(source, egress.as_ref());
                self.leave(source, after, destination, how, lookup)
            }
            _ => {
                let lookup = self.lookup(incoming, source, destination, mark, Expect::Device(tun));
                self.into_mesh(packet, decision, lookup)
            }
        }
    }

    /// Into the TUN, where the forwarding function has this to say.
    fn into_mesh(mut self, packet: Packet, decision: Decision, lookup: Lookup) -> Plan {
        let tun = self.network.tun.clone();
        let Decision { verdict, source, destination } = decision;
        let did = words::changed("source", packet.source, source);
        // refused as well by the kernel: else it leaks
        let nothing_but = |lookup| Lookup { expect: Expect::NothingBut(tun.clone()), ..lookup };
        match verdict {
            Verdict::Tunnel(peer) => {
                let node = match self.tunnel_to(peer) {
                    Ok(node) => node,
                    Err(text) => {
                        let lookups = vec![nothing_but(lookup)];
                        return self.refuse(DropReason::NoTunnel.as_str(), text, lookups);
                    }
                };
                let way = if self.fib.owner(destination).is_none() { "egress " } else { "" };
                let action = format!("{did}, tunnel to {way}{node}");
                self.hop(Place::Host, source, destination, Some(&tun), &action, vec![lookup]);
                self.end(TraceEnd::Tunnel(node))
            }
            Verdict::Hairpin | Verdict::Deliver => {
                // `decision` has the destination mapped already, as it comes back out of the TUN
                let action = format!("{did}, stays on this host");
                self.hop(Place::Host, source, destination, Some(&tun), &action, vec![lookup]);
                self.out_of_tun(source, destination, None, None)
            }
            Verdict::Drop(reason) => self.dropped(reason, destination, vec![nothing_but(lookup)]),
        }
    }

    fn out_of_tunnel(self, from: &NodeId, packet: Packet) -> Plan {
        let (source, destination) = (packet.source, packet.destination);
        let Some(peer) = self.control.members.peers.get(from) else {
            let text = format!("{} knows no node {from}", self.plan.node);
            return self.end(TraceEnd::Unanswerable(text));
        };
        let decision = forward::decide_inbound(&self.fib, peer.ix, source, destination, l4(&packet));
        match decision.verdict {
            Verdict::Drop(reason) => self.dropped(reason, destination, Vec::new()),
            Verdict::Tunnel(_) | Verdict::Hairpin | Verdict::Deliver => {
                let did = words::changed("destination", destination, decision.destination);
                self.out_of_tun(decision.source, decision.destination, Some(from), Some(did))
            }
        }
    }

    /// What comes from the Internet in answer to what left here.
    fn in_by_uplink(mut self, inside: IpAddr, packet: Packet) -> Plan {
        let (source, destination) = (packet.source, packet.destination);
        let (segment, tun) = (self.network.interface.clone(), self.network.tun.clone());
        self.hop(Place::Internet, source, destination, None, "answers", Vec::new());
        let incoming = Incoming::UplinkTo(source);
        let mark = egress_mark(self.network.ix.0);
        if inside == destination {
            if !self.network.announce.iter().any(|a| a.prefix.contains(destination)) {
                let text = format!("{destination} is not announced by {}", self.plan.node);
                return self.end(TraceEnd::Unanswerable(text));
            }
            let lookup = self.lookup(incoming, source, destination, 0, Expect::Device(segment));
            return self.arrive(source, destination, "address unchanged", lookup);
        }
        // past the TUN, as it went out
        let own = self.network.announce.iter().any(|a| !a.internet_own && a.prefix.contains(inside));
        if own || self.fib.is_local(inside) {
            let lookup = self.lookup(incoming, source, inside, mark, Expect::Device(segment));
            return self.arrive(source, inside, "SNAT undone", lookup);
        }
        let lookup = self.lookup(incoming, source, inside, mark, Expect::Device(tun.clone()));
        let decision = forward::decide_outbound(&self.fib, source, inside);
        match decision.verdict {
            Verdict::Tunnel(peer) => {
                let node = match self.tunnel_to(peer) {
                    Ok(node) => node,
                    Err(text) => return self.refuse(DropReason::NoTunnel.as_str(), text, Vec::new()),
                };
                let action = format!("SNAT undone, tunnel to {node}");
                self.hop(Place::Host, source, inside, Some(&tun), &action, vec![lookup]);
                self.end(TraceEnd::Tunnel(node))
            }
            Verdict::Hairpin | Verdict::Deliver => {
                self.hop(Place::Host, source, inside, Some(&tun), "SNAT undone", vec![lookup]);
                let destination = decision.destination;
                let did = words::changed("destination", inside, destination);
                self.out_of_tun(decision.source, destination, None, Some(did))
            }
            Verdict::Drop(reason) => self.dropped(reason, inside, vec![lookup]),
        }
    }

    /// The address by which others reach what a VM here calls `address`.
    fn name(self, address: IpAddr) -> Plan {
        let announced = self.network.announce.iter().any(|a| a.prefix.contains(address));
        let local = self.fib.to_mesh().iter().find(|m| m.from().contains(address) && !announced);
        let mesh = local.and_then(|m| m.map(address)).unwrap_or(address);
        self.end(TraceEnd::Address(mesh))
    }

    /// Written into the TUN by us, with these addresses: the kernel carries on. `did` is what was done before; without it
    /// the line of that is there already.
    fn out_of_tun(
        mut self,
        source: IpAddr,
        destination: IpAddr,
        from: Option<&NodeId>,
        did: Option<String>,
    ) -> Plan {
        let from = from.map(|node| format!("from {node}: ")).unwrap_or_default();
        let (segment, tun) = (self.network.interface.clone(), self.network.tun.clone());
        let mark = egress_mark(self.network.ix.0);
        let incoming = Incoming::Device(tun);
        if self.is_gateway(destination) {
            if !exposed(&self.control.local.expose, &self.plan.packet) {
                return self.dropped(DropReason::NotExposed, destination, Vec::new());
            }
            let lookup = self.lookup(incoming, source, destination, mark, Expect::Local);
            let did = did.map(|did| format!("{did}, ")).unwrap_or_default();
            let action = format!("{from}{did}this host itself");
            self.hop(Place::Host, source, destination, None, &action, vec![lookup]);
            return self.end(TraceEnd::Arrived);
        }
        let behind = self.fib.is_local(destination)
            || self.network.announce.iter().any(|a| a.prefix.contains(destination));
        if behind {
            let lookup = self.lookup(incoming, source, destination, 0, Expect::Device(segment.clone()));
            return match did {
                Some(did) => self.arrive(source, destination, &format!("{from}{did}"), lookup),
                None => {
                    let action = format!("arrives, through {segment}");
                    self.hop(Place::Vm, source, destination, Some(&segment), &action, vec![lookup]);
                    self.end(TraceEnd::Arrived)
                }
            };
        }
        let egress = self.kernel.and_then(|k| k.offer.clone());
        let lookup = self.egress_lookup(incoming, source, destination, egress.as_ref());
        let (after, how) = words::snat(source, egress.as_ref());
        self.leave(source, after, destination, &format!("{from}{how}"), lookup)
    }

    /// "local", or what has fallen back to it.
    fn leaves_by_host(&self) -> bool {
        self.network.egress == EgressChoice::Local || self.control.roles.has_fallen_back(&self.network.name)
    }

    /// To the Internet by this host's own uplink, with source NAT, without the TUN.
    fn leave_here(self, incoming: Incoming, source: IpAddr, destination: IpAddr) -> Plan {
        let state = &self.control.published.2;
        let egress = self.kernel.and_then(|k| match &k.out {
            HostOut::Local(egress) => Some(egress.clone()),
            HostOut::None | HostOut::Tunnel { .. } => None,
        });
        if !ruleset::leaves_locally(state, destination) {
            let text = format!(
                "dropped (forbidden_destination): egress = \"local\" lets nothing out to private and connected networks, as {destination} is"
            );
            let expect = Expect::NothingBut(self.network.tun.clone());
            let lookup = self.lookup(incoming, source, destination, 0, expect);
            return self.refuse(DropReason::ForbiddenDestination.as_str(), text, vec![lookup]);
        }
        let lookup = self.egress_lookup(incoming, source, destination, egress.as_ref());
        let (after, how) = words::snat(source, egress.as_ref());
        self.leave(source, after, destination, how, lookup)
    }

    fn egress_lookup(
        &self,
        incoming: Incoming,
        source: IpAddr,
        destination: IpAddr,
        egress: Option<&HostEgress>,
    ) -> Lookup {
        let mark = egress_mark(self.network.ix.0);
        let expect = self.uplink(egress.and_then(|e| e.interface.clone()));
        let masquerade = !egress.is_some_and(|e| e.snat.iter().any(|a| a.is_ipv4() == source.is_ipv4()));
        Lookup { masquerade, ..self.lookup(incoming, source, destination, mark, expect) }
    }

    fn neighbour(mut self, incoming: Incoming, mark: u32, packet: Packet) -> Plan {
        let (source, destination) = (packet.source, packet.destination);
        let segment = self.network.interface.clone();
        if self.is_gateway(destination) {
            let lookup = self.lookup(incoming, source, destination, mark, Expect::Local);
            self.hop(Place::Host, source, destination, None, "this host itself", vec![lookup]);
            return self.end(TraceEnd::Arrived);
        }
        if incoming == Incoming::Host {
            let lookup = self.lookup(incoming, source, destination, mark, Expect::Device(segment));
            let action = if packet.reply { "answers" } else { "sends" };
            return self.arrive(source, destination, action, lookup);
        }
        let action = format!("arrives: a neighbour on {segment}, not by the host");
        self.hop(Place::Vm, source, destination, Some(&segment), &action, Vec::new());
        self.end(TraceEnd::Arrived)
    }

    /// By the segment to a VM.
    fn arrive(mut self, source: IpAddr, destination: IpAddr, did: &str, lookup: Lookup) -> Plan {
        let segment = self.network.interface.clone();
        self.hop(Place::Host, source, destination, Some(&segment), did, vec![lookup]);
        let action = format!("arrives, through {segment}");
        self.hop(Place::Vm, source, destination, Some(&segment), &action, Vec::new());
        self.end(TraceEnd::Arrived)
    }

    /// By an uplink; the device is the kernel's choice.
    fn leave(
        mut self,
        inside: IpAddr,
        source: IpAddr,
        destination: IpAddr,
        did: &str,
        lookup: Lookup,
    ) -> Plan {
        self.hop(Place::Host, source, destination, None, did, vec![lookup]);
        self.end(TraceEnd::Outside(inside))
    }

    /// Refused here, unless the kernel does not even follow so far.
    fn refuse(mut self, label: &str, text: String, lookups: Vec<Lookup>) -> Plan {
        let last = self.plan.legs.last().map(|l| (l.hop.source, l.hop.destination));
        let (source, destination) = last.unwrap_or((self.plan.packet.source, self.plan.packet.destination));
        self.hop(Place::Host, source, destination, None, &format!("refused: {label}"), lookups);
        if let Some(leg) = self.plan.legs.last_mut() {
            leg.hop.refused = true;
        }
        let text = format!("{}: {text}", self.plan.node);
        self.end(TraceEnd::Refused(text))
    }

    fn end(self, end: TraceEnd) -> Plan {
        Plan { end, ..self.plan }
    }

    fn hop(
        &mut self,
        place: Place,
        source: IpAddr,
        destination: IpAddr,
        device: Option<&str>,
        action: &str,
        lookups: Vec<Lookup>,
    ) {
        let (device, action) = (device.map(str::to_owned), action.to_owned());
        let hop = TraceHop { place, source, destination, device, action, refused: false };
        self.plan.legs.push(Leg { hop, lookups });
    }

    fn lookup(
        &self,
        incoming: Incoming,
        source: IpAddr,
        destination: IpAddr,
        mark: u32,
        expect: Expect,
    ) -> Lookup {
        let Packet { protocol, reply, .. } = self.plan.packet;
        let flow = Flow { source, destination, protocol, reply };
        // the kernel knows its own addresses before it asks our tables
        let outside = self.fib.owner(destination).is_none() && !self.fib.is_local(destination);
        let local_is_fine = outside && incoming == Incoming::Device(self.network.interface.clone());
        let tun = &self.network.tun;
        let by_tun = matches!(&incoming, Incoming::Device(device) if device == tun)
            || matches!(&expect, Expect::Device(device) | Expect::NothingBut(device) if device == tun);
        let ours = if by_tun { tun } else { &self.network.interface }.clone();
        Lookup { incoming, flow, mark, expect, ours, local_is_fine, masquerade: false }
    }

    fn uplink(&self, named: Option<String>) -> Expect {
        let networks = &self.control.local.networks;
        let inside = networks.iter().flat_map(|n| [n.interface.clone(), n.tun.clone()]).collect();
        Expect::Uplink { named, inside }
    }

    fn dropped(self, reason: DropReason, destination: IpAddr, lookups: Vec<Lookup>) -> Plan {
        let text = words::why(self.network, &self.plan.packet, reason, destination);
        self.refuse(reason.as_str(), text, lookups)
    }

    /// The peer that a packet is sent to, or why it is not.
    fn tunnel_to(&self, peer: PeerIx) -> Result<NodeId, String> {
        let members = &self.control.members;
        let node = members.name(peer).cloned().ok_or("the peer has just gone")?;
        let up = members.peers.get(&node).is_some_and(|p| p.tunnel.is_some());
        if up { Ok(node) } else { Err(words::no_tunnel(members, &node)) }
    }

    fn is_gateway(&self, address: IpAddr) -> bool {
        self.network.gateways.iter().any(|(_, gateway)| *gateway == address)
    }
}

fn l4(packet: &Packet) -> mesh_proto::ip::L4 {
    use mesh_proto::ip::L4;
    match packet.protocol {
        Protocol::Icmp => L4::Icmp { request: !packet.reply },
        Protocol::Tcp(port) => L4::Tcp { port, opens: !packet.reply },
        Protocol::Udp(port) => L4::Udp { port },
    }
}

/// What our rule of the host's input lets pass: stricter than `forward`, since it knows connections.
fn exposed(expose: &[Expose], packet: &Packet) -> bool {
    packet.reply
        || expose.iter().any(|e| match (e, packet.protocol) {
            (Expose::All, _) | (Expose::Icmp, Protocol::Icmp) => true,
            (Expose::Tcp(open), Protocol::Tcp(port)) | (Expose::Udp(open), Protocol::Udp(port)) => {
                *open == port
            }
            _ => false,
        })
}
