//! Connections that the kernel tracks for an egress role: which of them are in progress, and which are to be forgotten.

use std::net::IpAddr;

use mesh_proto::Prefix;
use mesh_proto::ip::transport;
use mesh_proto::record::{Condition, UplinkFault};

use crate::config::{EgressChoice, EgressFallback};
use crate::control::event::{LocalNetwork, Output};
use crate::control::host::egress_mark;
use crate::control::{Control, kernel, rib};
use crate::forward::flows::TCP_IDLE;

/// A flow that was quiet for so many seconds, and has no state that says otherwise, is not in progress.
const QUIET: u32 = 3;

/// What to count: connections with one of these marks, by where they come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowWatch {
    /// Egress marks of this host.
    pub marks: Vec<u32>,
    /// Sources of its own VMs.
    pub own: Vec<Prefix>,
    /// Sources of those of its own VMs that leave "local": their connections stay, drained or not, and do not count.
    pub stay: Vec<Prefix>,
}

/// Tracked connections to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forget {
    /// Egress mark of the network.
    pub mark: u32,
    /// Those of whom.
    pub whose: Whose,
}

/// Sources of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// All with a few exceptions: the end of a drain.
    AllBut {
        /// Sources of this host's own VMs that leave without the TUN. Their TCP connections were not seen by those who reset: the
        /// kernel answers their next packet with a RST (see `host::ruleset`), and needs the entry for that.
        unmapped: Vec<Prefix>,
        /// This host's own VMs leave by it, drained or not: these sources stay.
        stay: Vec<Prefix>,
    },
    /// These.
    Of(Vec<Prefix>),
}

impl Forget {
    /// Whether a connection is one of them.
    pub fn has(&self, source: IpAddr, protocol: u8) -> bool {
        match &self.whose {
            Whose::AllBut { unmapped, stay } => {
                let reset = protocol == transport::TCP && within(unmapped, source);
                !(within(stay, source) || reset)
            }
            Whose::Of(sources) => within(sources, source),
        }
    }
}

/// Connections in progress.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlowCount {
    /// Of other nodes' VMs.
    pub others: u64,
    /// Of this host's own.
    pub own: u64,
}

/// A connection as conntrack has it.
#[derive(Debug, Clone, Copy)]
pub struct Tracked {
    /// The VM's address, as it came here.
    pub source: IpAddr,
    /// Transport protocol.
    pub protocol: u8,
    /// `TCP_CONNTRACK_*` of linux/netfilter/nf_conntrack_tcp.h.
    pub tcp_state: Option<u8>,
    /// `IPS_ASSURED`.
    pub assured: bool,
    /// Seconds until it is forgotten.
    pub left: u32,
}

/// What conntrack gives a connection at each packet, in seconds (`net.netfilter.nf_conntrack_*`).
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// TCP that both sides have opened, and not closed.
    pub tcp_established: u32,
    /// The longer of what the same has while there is something unacknowledged, and after retransmissions.
    pub tcp_in_doubt: u32,
    /// TCP that both sides have closed.
    pub tcp_time_wait: u32,
    /// UDP of one direction, or short.
    pub udp: u32,
    /// UDP that is assured.
    pub udp_stream: u32,
    /// Echoes.
    pub icmp: u32,
    /// All else.
    pub generic: u32,
}

impl Tracked {
    /// Whether it is in progress: TCP that has not closed, and that whoever sends has not forgotten, and all else that has not been
    /// quiet.
    pub fn in_progress(&self, timeouts: &Timeouts) -> bool {
        const SYN_SENT: u8 = 1;
        const ESTABLISHED: u8 = 3;
        const LAST_ACK: u8 = 6;
        const TIME_WAIT: u8 = 7;
        let full = match (self.protocol, self.tcp_state) {
            // of a VM that was switched off, say
            (transport::TCP, Some(ESTABLISHED)) => {
                let idle = timeouts.tcp_established.saturating_sub(self.left);
                return idle <= TCP_IDLE || self.left <= timeouts.tcp_in_doubt;
            }
            (transport::TCP, Some(SYN_SENT..=LAST_ACK)) => return true,
            // it may not have closed: a FIN that is sent twice (RFC 8985 does so at the end of what is sent fast) is taken for that
            // of both sides, while the VM has still to read
            (transport::TCP, Some(TIME_WAIT)) => timeouts.tcp_time_wait,
            (transport::TCP, _) => return false,
            (transport::UDP, _) if self.assured => timeouts.udp_stream,
            (transport::UDP, _) => timeouts.udp,
            (transport::ICMP | transport::ICMPV6, _) => timeouts.icmp,
            _ => timeouts.generic,
        };
        full.saturating_sub(self.left) <= QUIET
    }
}

impl FlowWatch {
    /// Counts.
    pub fn count(&self, tracked: impl IntoIterator<Item = Tracked>, timeouts: &Timeouts) -> FlowCount {
        let mut count = FlowCount::default();
        for flow in tracked.into_iter().filter(|flow| flow.in_progress(timeouts)) {
            if within(&self.stay, flow.source) {
                continue;
            }
            let own = within(&self.own, flow.source);
            *(if own { &mut count.own } else { &mut count.others }) += 1;
        }
        count
    }
}

impl Control {
    pub(super) fn flow_watch(&self) -> FlowWatch {
        let marks = self.shared_networks().map(|n| egress_mark(n.ix.0)).collect();
        let networks = &self.local.networks;
        FlowWatch {
            marks,
            own: networks.iter().flat_map(sources).collect(),
            stay: networks.iter().flat_map(|n| self.staying(n)).collect(),
        }
    }

    /// What own VMs send past the TUN, by an uplink that does not carry, has another way once another node is elected: tracked anew it
    /// takes that. Others' flows are not ended here: who sends has moved them, or has nobody else and goes on when the uplink does.
    pub(in crate::control) fn own_flows_move(&mut self) {
        let own = &self.local.identity.node;
        for network in &self.local.networks {
            let offer = rib::own_offer(&self.local, &network.name, &self.offers);
            let dead = |condition| {
                matches!(
                    condition,
                    Condition::UplinkDown { fault: UplinkFault::Link | UplinkFault::Probe, .. }
                )
            };
            if !offer.is_some_and(|offer| dead(offer.condition)) {
                self.offers.moved.remove(&network.name);
                continue;
            }
            let elections = self.roles.elections(&network.name);
            let by_another = elections.iter().any(|e| e.first().is_some() && !e.elected.contains(own));
            let sources = kernel::unmapped(network);
            if by_another && !sources.is_empty() && self.offers.moved.insert(network.name.clone()) {
                let forget = Forget { mark: egress_mark(network.ix.0), whose: Whose::Of(sources) };
                self.outputs.push_back(Output::ForgetFlows(vec![forget]));
            }
        }
    }

    /// Sources of a network's own VMs that leave by this host whether it is drained or not, with the mark of those who share it.
    fn staying(&self, network: &LocalNetwork) -> Vec<Prefix> {
        if network.egress == EgressChoice::Local || self.roles.has_fallen_back(&network.name) {
            return sources(network);
        }
        // flows that a fallback began have local addresses, and those of the role have mapped ones
        let falls_back = network.egress_rules.fallback == EgressFallback::Local;
        let mapped = network.maps.iter().filter(|(local, mesh)| falls_back && local != mesh);
        mapped.map(|(local, _)| *local).collect()
    }

    /// What is not in progress any more.
    pub(super) fn to_forget(&self) -> Vec<Forget> {
        let one = |network: &LocalNetwork| {
            let whose = Whose::AllBut { unmapped: kernel::unmapped(network), stay: self.staying(network) };
            Forget { mark: egress_mark(network.ix.0), whose }
        };
        self.shared_networks().map(one).collect()
    }
}

fn within(all: &[Prefix], source: IpAddr) -> bool {
    all.iter().any(|prefix| prefix.contains(source))
}

/// Of a network's own VMs, before and after mapping.
fn sources(network: &LocalNetwork) -> Vec<Prefix> {
    let maps = network.maps.iter().flat_map(|(local, mesh)| [*local, *mesh]);
    maps.chain(network.announce.iter().map(|a| a.prefix)).collect()
}
