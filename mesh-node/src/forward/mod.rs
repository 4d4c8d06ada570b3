//! One packet at a time: a packet in, a verdict out. Pure: `packet_loop` calls it with the snapshot of the batch.
//!
//! ```text
//!  VM ──► TUN ──► outbound ──► Tunnel(peer)        source mapped local -> mesh
//!                    │ └─────► Hairpin             back into the TUN: own mesh addresses, own egress
//!  VM ◄── TUN ◄── inbound ◄─── peer                destination mapped mesh -> local
//! ```
//!
//! Time to live, fragmenting and packet-too-big are the kernel's: it routes each packet before and after us.

use std::net::IpAddr;

use mesh_proto::ip::{L4, Layout, Packet};

pub mod counters;
pub mod fair_queue;
pub mod fib;
pub mod flows;
pub mod prefix_map;
pub mod segment;

use fib::{Egress, EgressVia, Expose, NetworkFib, Owner, PeerIx, holding};
use flows::{FlowAccess, Seconds, Way};
use prefix_map::{Mapping, Rewrite};

/// Why a packet is dropped: also the label of the metric and the field of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum DropReason {
    /// Not a packet, or one that hides where it goes.
    Malformed,
    /// From the segment, with a source that does not live there.
    BadSource,
    /// From a peer, with a source that another node or this one owns.
    SourceNotOwned,
    /// The egress does not let packets to this destination leave.
    ForbiddenDestination,
    /// Multicast, broadcast, link-local or no destination at all.
    NotRoutable,
    /// Nobody has the destination, and there is no egress for it.
    NoRoute,
    /// There is a route, but no tunnel to the peer.
    NoTunnel,
    /// To this host itself, and `expose` does not name it.
    NotExposed,
    /// A frame for a network that we do not have.
    UnknownNetwork,
    /// Larger than the tunnel takes.
    TooBig,
    /// The tunnel's queue is full.
    QueueFull,
    /// The TUN device refused it.
    TunError,
    /// The frame around the packet makes no sense.
    BadFrame,
    /// Of a TCP flow whose egress node is drained: answered with a RST.
    FlowReset,
    /// Of a flow that left by another egress node, which carries it no more, and that this host's kernel does not map: it begins
    /// anew here. TCP is answered with a RST.
    FlowMoved,
}

impl DropReason {
    /// All of them, in the order of their numbers.
    pub const ALL: &'static [Self] = &[
        Self::Malformed,
        Self::BadSource,
        Self::SourceNotOwned,
        Self::ForbiddenDestination,
        Self::NotRoutable,
        Self::NoRoute,
        Self::NoTunnel,
        Self::NotExposed,
        Self::UnknownNetwork,
        Self::TooBig,
        Self::QueueFull,
        Self::TunError,
        Self::BadFrame,
        Self::FlowReset,
        Self::FlowMoved,
    ];

    /// The metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::BadSource => "bad_source",
            Self::SourceNotOwned => "source_not_owned",
            Self::ForbiddenDestination => "forbidden_destination",
            Self::NotRoutable => "not_routable",
            Self::NoRoute => "no_route",
            Self::NoTunnel => "no_tunnel",
            Self::NotExposed => "not_exposed",
            Self::UnknownNetwork => "unknown_network",
            Self::TooBig => "too_big",
            Self::QueueFull => "queue_full",
            Self::TunError => "tun_error",
            Self::BadFrame => "bad_frame",
            Self::FlowReset => "flow_reset",
            Self::FlowMoved => "flow_moved",
        }
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// To this peer.
    Tunnel(PeerIx),
    /// Back into the TUN it came from.
    Hairpin,
    /// Into the TUN of its network.
    Deliver,
    /// Nowhere.
    Drop(DropReason),
}

/// What became of a packet, and what is counted of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// What becomes of it.
    pub verdict: Verdict,
    /// An address was mapped.
    pub mapped: bool,
    /// Whether one of its ends is on the Internet, by way of an egress node.
    pub internet: Internet,
}

impl Outcome {
    fn dropped(reason: DropReason) -> Self {
        Self { verdict: Verdict::Drop(reason), mapped: false, internet: Internet::No }
    }
}

/// Where the Internet is, seen from a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Internet {
    /// Nowhere: from mesh to mesh.
    #[default]
    No,
    /// Its destination.
    To,
    /// Its source.
    From,
}

/// A verdict and the addresses with which the packet goes on; of a dropped one, those it had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// What becomes of it.
    pub verdict: Verdict,
    /// Source from here on.
    pub source: IpAddr,
    /// Destination from here on.
    pub destination: IpAddr,
}

/// A packet read from the TUN of `net`. Changes its addresses; `partial` says that its transport checksum is left to
/// others, and the field is then written anew.
pub fn outbound(net: &NetworkFib, packet: &mut [u8], partial: bool) -> Verdict {
    translate_outbound(net, packet, partial).verdict
}

/// [`outbound`], and what is counted.
pub fn translate_outbound(net: &NetworkFib, packet: &mut [u8], partial: bool) -> Outcome {
    let Ok(view) = Packet::parse(&*packet) else { return Outcome::dropped(DropReason::Malformed) };
    let (source, destination) = (view.source(), view.destination());
    let plan = plan_outbound(net, source, destination, |via| elected(via, source, destination));
    let layout = *view.layout();
    carry_out(plan, packet, &layout, partial)
}

/// [`translate_outbound`] of a packet whose flow stays with its egress node.
pub fn translate_flow(
    net: &NetworkFib,
    flows: &mut impl FlowAccess,
    packet: &mut [u8],
    partial: bool,
    now: Seconds,
) -> Outcome {
    let Ok(view) = Packet::parse(&*packet) else { return Outcome::dropped(DropReason::Malformed) };
    let (source, destination, layout) = (view.source(), view.destination(), *view.layout());
    let plan = plan_outbound(net, source, destination, |via| {
        flows.flows(|flows| flows.way(net, packet, &layout, via, now))
    });
    if matches!(plan, Err(DropReason::FlowMoved)) {
        flows.flows(|flows| flows.forget(packet, &layout));
    }
    carry_out(plan, packet, &layout, partial)
}

/// [`translate_outbound`] of a packet that leaves by this egress, whoever is elected.
pub fn translate_by(net: &NetworkFib, egress: Egress, packet: &mut [u8]) -> Outcome {
    let Ok(view) = Packet::parse(&*packet) else { return Outcome::dropped(DropReason::Malformed) };
    let (source, destination, layout) = (view.source(), view.destination(), *view.layout());
    let plan = plan_outbound(net, source, destination, |_| Some(Way::Egress(egress)));
    carry_out(plan, packet, &layout, false)
}

fn elected(via: &[EgressVia], source: IpAddr, destination: IpAddr) -> Option<Way> {
    flows::rendezvous(via, || (source, destination)).map(Way::Egress)
}

/// A packet that `from` sent for `net`.
pub fn inbound(net: &NetworkFib, from: PeerIx, packet: &mut [u8], partial: bool) -> Verdict {
    translate_inbound(net, from, packet, partial).verdict
}

/// [`inbound`], and what is counted.
pub fn translate_inbound(net: &NetworkFib, from: PeerIx, packet: &mut [u8], partial: bool) -> Outcome {
    let Ok(view) = Packet::parse(&*packet) else { return Outcome::dropped(DropReason::Malformed) };
    let plan = plan_inbound(net, from, view.source(), view.destination(), || view.l4());
    let layout = *view.layout();
    carry_out(plan, packet, &layout, partial)
}

/// What [`outbound`] would do with the first packet of a flow between these addresses.
pub fn decide_outbound(net: &NetworkFib, source: IpAddr, destination: IpAddr) -> Decision {
    let plan = plan_outbound(net, source, destination, |via| elected(via, source, destination));
    decision(&plan, source, destination)
}

/// What [`inbound`] would do with a packet between these addresses.
pub fn decide_inbound(
    net: &NetworkFib,
    from: PeerIx,
    source: IpAddr,
    destination: IpAddr,
    l4: L4,
) -> Decision {
    decision(&plan_inbound(net, from, source, destination, || l4), source, destination)
}

fn decision(plan: &Result<Plan<'_>, DropReason>, source: IpAddr, destination: IpAddr) -> Decision {
    let map = |mapping: Option<&Mapping>, address| mapping.and_then(|m| m.map(address)).unwrap_or(address);
    match plan {
        Ok(Plan { verdict, rewrite, .. }) => Decision {
            verdict: *verdict,
            source: map(rewrite.source, source),
            destination: map(rewrite.destination, destination),
        },
        Err(reason) => Decision { verdict: Verdict::Drop(*reason), source, destination },
    }
}

struct Plan<'a> {
    verdict: Verdict,
    rewrite: Rewrite<'a>,
    internet: Internet,
}

// Inlined, all three, for good: a plan returned by memory costs a fifth of the whole (benches/forward.rs).
#[inline(always)]
fn carry_out(
    plan: Result<Plan<'_>, DropReason>,
    packet: &mut [u8],
    layout: &Layout,
    partial: bool,
) -> Outcome {
    match plan {
        Err(reason) => Outcome::dropped(reason),
        Ok(Plan { verdict, rewrite, internet }) => {
            match prefix_map::rewrite_at(packet, layout, &rewrite, partial) {
                Ok(mapped) => Outcome { verdict, mapped, internet },
                Err(_) => Outcome::dropped(DropReason::Malformed),
            }
        }
    }
}

#[inline(always)]
fn plan_outbound(
    net: &NetworkFib,
    source: IpAddr,
    destination: IpAddr,
    choose: impl FnOnce(&[EgressVia]) -> Option<Way>,
) -> Result<Plan<'_>, DropReason> {
    if !routable(destination) {
        return Err(DropReason::NotRoutable);
    }
    if !routable(source) {
        return Err(DropReason::BadSource);
    }
    let owner = net.owner(destination);
    let local = holding(net.to_mesh(), source);
    let ours = local.is_some() || net.owner(source) == Some(Owner::Announced);
    let internet = match (ours, owner) {
        (false, _) => Internet::From,
        (true, None) => Internet::To,
        (true, Some(_)) => Internet::No,
    };
    if !ours {
        // Replies that the kernel brings back from the Internet. A forged source cannot be told from them here; the
        // kernel's rules keep those out of the TUN.
        let reply = net.is_egress() && owner.is_some() && net.owner(source).is_none();
        if !reply {
            return Err(DropReason::BadSource);
        }
    }
    let mut rewrite = Rewrite { source: local, quoted_destination: net.to_mesh(), ..Rewrite::default() };
    let verdict = match owner {
        Some(Owner::Peer(peer)) => Verdict::Tunnel(peer),
        Some(Owner::Announced) => Verdict::Hairpin,
        Some(Owner::Mesh) => {
            rewrite.destination = to_local(net, destination)?;
            rewrite.quoted_source = net.to_local();
            Verdict::Hairpin
        }
        // The segment itself: neighbours do not go by way of us, and no egress node may see it.
        None if net.is_local(destination) => return Err(DropReason::NoRoute),
        None => match choose(net.egress(destination)).ok_or(DropReason::NoRoute)? {
            Way::Reset => return Err(DropReason::FlowReset),
            Way::Egress(Egress::Peer(peer)) => Verdict::Tunnel(peer),
            Way::Egress(Egress::Own) if !net.offers(destination) => {
                return Err(DropReason::ForbiddenDestination);
            }
            // It would come out of the TUN as the very flow that went in, and conntrack has decided on its NAT; so the kernel
            // sends such flows past the TUN from their first packet on.
            Way::Egress(Egress::Own) if local.is_none_or(Mapping::is_identity) => {
                return Err(DropReason::FlowMoved);
            }
            Way::Egress(Egress::Own) => Verdict::Hairpin,
        },
    };
    Ok(Plan { verdict, rewrite, internet })
}

#[inline(always)]
fn plan_inbound(
    net: &NetworkFib,
    from: PeerIx,
    source: IpAddr,
    destination: IpAddr,
    l4: impl FnOnce() -> L4,
) -> Result<Plan<'_>, DropReason> {
    if !routable(destination) {
        return Err(DropReason::NotRoutable);
    }
    let internet_source = match net.owner(source) {
        Some(Owner::Peer(peer)) if peer == from => false,
        Some(_) => return Err(DropReason::SourceNotOwned),
        // From the Internet by way of an egress node. A source of our own segment would be a forged neighbour.
        None if routable(source) && !net.is_local(source) && net.spec().egress_peers.contains(&from) => true,
        None => return Err(DropReason::SourceNotOwned),
    };
    let mut rewrite = Rewrite { quoted_source: net.to_local(), ..Rewrite::default() };
    let mut internet = if internet_source { Internet::From } else { Internet::No };
    let arrives_at = match net.owner(destination) {
        Some(Owner::Mesh) => {
            rewrite.destination = to_local(net, destination)?;
            rewrite.destination.and_then(|m| m.map(destination)).unwrap_or(destination)
        }
        Some(Owner::Announced) => destination,
        // Never on to a third node: tunnels are direct.
        Some(Owner::Peer(_)) => return Err(DropReason::ForbiddenDestination),
        None if !internet_source && !net.is_local(destination) && net.offers(destination) => {
            internet = Internet::To;
            destination
        }
        None => return Err(DropReason::ForbiddenDestination),
    };
    if net.spec().gateways.contains(&arrives_at) && !exposed(&net.spec().expose, l4()) {
        return Err(DropReason::NotExposed);
    }
    Ok(Plan { verdict: Verdict::Deliver, rewrite, internet })
}

/// The mapping for one of our mesh addresses. A broadcast address of the subnet behind it is refused, since the host
/// would take it as such (RFC 2644).
fn to_local(net: &NetworkFib, destination: IpAddr) -> Result<Option<&Mapping>, DropReason> {
    let mapping = holding(net.to_local(), destination);
    match (mapping, destination) {
        (Some(mapping), IpAddr::V4(address)) if mapping.from().len() < 31 => {
            let host_mask = u32::MAX >> mapping.from().len();
            let host = address.to_bits() & host_mask;
            if host == 0 || host == host_mask { Err(DropReason::NotRoutable) } else { Ok(Some(mapping)) }
        }
        _ => Ok(mapping),
    }
}

/// Whether a router may forward packets to or from the address (RFC 1812 section 5.3.7, RFC 4291 section 2.5).
fn routable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            !(a.is_unspecified()
                || a.is_loopback()
                || a.is_link_local()
                || a.is_multicast()
                || a.is_broadcast())
        }
        IpAddr::V6(a) => {
            !(a.is_unspecified() || a.is_loopback() || a.is_unicast_link_local() || a.is_multicast())
        }
    }
}

/// Whether `expose` lets a packet to this host pass. There is no state here to tell replies to the host's own
/// connections, so that TCP segments other than the opening one, ICMP replies and errors, and UDP pass: the kernel's
/// rule, which has connection tracking, stands behind this one. TCP, pings and protocols that the host hardly speaks by
/// itself (tunnels, SCTP) stay closed when that rule is flushed away.
fn exposed(expose: &[Expose], l4: L4) -> bool {
    if expose.contains(&Expose::All) {
        return true;
    }
    match l4 {
        L4::Icmp { request: true } => expose.contains(&Expose::Icmp),
        L4::Tcp { port, opens: true } => expose.contains(&Expose::Tcp(port)),
        L4::Icmp { .. } | L4::Tcp { .. } | L4::Udp { .. } | L4::Fragment => true,
        L4::Other => false,
    }
}

#[cfg(test)]
mod packets;
#[cfg(test)]
mod tests;
