//! Egress in the operator's words: `mesh-ctl egress`, and its part of the status.

use mesh_proto::identity::rfc3339_ms;
use mesh_proto::record::UplinkFault;
use mesh_proto::{NodeId, Prefix, api};

use super::election::{Candidate, Election};
use super::failover::Failover;
use super::standing::{Absence, Standing};
use crate::config::EgressChoice;
use crate::control::Control;
use crate::control::event::LocalNetwork;
use crate::control::status::{Live, moment};
use crate::forward::fib::Egress;

/// Of an egress node that does not carry by its place in the order.
fn forced(node: &NodeId) -> String {
    format!("{node} is used because an operator said so: `mesh-ctl egress use auto` undoes it")
}

fn list<'a>(nodes: impl IntoIterator<Item = &'a NodeId>) -> Option<String> {
    let names: Vec<&str> = nodes.into_iter().map(NodeId::as_str).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

fn chooses(network: &LocalNetwork) -> bool {
    matches!(network.egress, EgressChoice::Nodes(_) | EgressChoice::Auto)
}

impl Control {
    /// What is degraded about egress, and what is worth a note.
    pub(in crate::control) fn egress_status(&self, reasons: &mut Vec<String>, notes: &mut Vec<String>) {
        for network in self.local.networks.iter().filter(|network| chooses(network)) {
            let name = &network.name;
            let elections = self.roles.elections(name);
            if self.roles.has_fallen_back(name) {
                reasons.push(format!(
                    "no egress node of network {name} is healthy: its private VMs leave by this host (egress_fallback)"
                ));
                continue;
            }
            if elections.is_empty() {
                reasons
                    .push(format!("no node known offers egress for network {name}: private VMs are refused"));
            }
            for election in elections {
                let destination = election.destination;
                let elected = list(&election.elected).unwrap_or_default();
                match self.egress_state(network, election) {
                    "none" => reasons.push(format!(
                        "no egress node for {destination} of network {name} is healthy: private VMs are refused"
                    )),
                    "standby" => reasons.push(format!(
                        "egress of network {name} to {destination} is on the standby {elected}"
                    )),
                    _ => {}
                }
                for held in election.candidates.iter().filter(|c| c.standing == Standing::HeldDown) {
                    let text = format!("egress node {} of network {name} {}", held.node, held_down(held));
                    if !notes.contains(&text) {
                        notes.push(text);
                    }
                }
            }
        }
        for (network, node) in &self.roles.used {
            let elections = self.roles.elections(network);
            let text = match elections.iter().any(|election| election.first() == Some(node)) {
                true => forced(node),
                false => format!(
                    "an operator named {node}, which cannot carry at present: `mesh-ctl egress use auto` undoes it"
                ),
            };
            notes.push(format!("egress of network {network}: {text}"));
        }
    }

    /// The word for how a destination is carried.
    pub(in crate::control) fn egress_state(
        &self,
        network: &LocalNetwork,
        election: &Election,
    ) -> &'static str {
        match election.first() {
            None if self.roles.has_fallen_back(&network.name) => "fallback",
            None => "none",
            Some(_) if election.is_standby(network.egress_rules.balance) => "standby",
            Some(_) => "active",
        }
    }

    /// Who carries which destination, why, and who could.
    pub fn egress(&self, live: &dyn Live) -> api::EgressAnswer {
        let mut egress = Vec::new();
        for network in &self.local.networks {
            let elections = self.roles.elections(&network.name);
            if elections.is_empty() {
                egress.push(self.without_candidates(network));
            }
            egress.extend(elections.iter().map(|e| self.destination(network, e, live)));
        }
        api::EgressAnswer { schema: api::SCHEMA, egress }
    }

    fn without_candidates(&self, network: &LocalNetwork) -> api::Egress {
        let nobody = "no node known offers egress for this network";
        let (state, reason) = match &network.egress {
            EgressChoice::None => ("refused", "egress = \"none\""),
            EgressChoice::Local => ("local", "egress = \"local\""),
            _ if self.roles.has_fallen_back(&network.name) => ("fallback", nobody),
            EgressChoice::Nodes(_) | EgressChoice::Auto => ("none", nobody),
        };
        api::Egress {
            network: network.name.to_string(),
            destination: Prefix::default_route(true),
            state: state.into(),
            reason: Some(reason.into()),
            elected: None,
            elected_nodes: Vec::new(),
            forced: self.roles.used.get(&network.name).map(NodeId::to_string),
            candidates: Vec::new(),
            last_failover: None,
        }
    }

    fn destination(&self, network: &LocalNetwork, election: &Election, live: &dyn Live) -> api::Egress {
        let state = self.egress_state(network, election);
        let post = self.roles.posts.get(&(network.name.clone(), election.destination));
        api::Egress {
            network: network.name.to_string(),
            destination: election.destination,
            state: state.into(),
            reason: self.why(network, election, state),
            elected: election.first().map(NodeId::to_string),
            elected_nodes: election.elected.iter().map(NodeId::to_string).collect(),
            forced: self.roles.used.get(&network.name).map(NodeId::to_string),
            candidates: self.candidates(network, election, live),
            last_failover: post.and_then(|post| post.last.as_ref()).map(shown),
        }
    }

    /// Why a destination is not carried as the order has it.
    fn why(&self, network: &LocalNetwork, election: &Election, state: &str) -> Option<String> {
        let better = || {
            let others = election.candidates.iter().filter(|c| !election.elected.contains(&c.node));
            // in order: what stands after the one elected was not passed over
            let before = election.candidates.iter().position(|c| election.elected.contains(&c.node));
            let used = before.map(|at| election.candidates[at].priority);
            match network.egress_rules.balance {
                true => others.filter(|c| used.is_none_or(|used| c.priority <= used)).collect::<Vec<_>>(),
                false => others.take(before.unwrap_or_default()).collect(),
            }
        };
        match state {
            "none" if election.candidates.iter().any(|c| c.standing.carries()) => {
                Some("who carried before the restart is waited for, two seconds at most".to_owned())
            }
            "none" => Some("no candidate is healthy".to_owned()),
            "fallback" => Some("no candidate is healthy: this host carries (egress_fallback)".to_owned()),
            "standby" => {
                if let Some(node) = self.roles.used.get(&network.name).filter(|n| election.first() == Some(n))
                {
                    return Some(forced(node));
                }
                let each = better().into_iter().map(|c| match self.trouble(c) {
                    Some(trouble) => format!("{} {trouble}", c.node),
                    None => match network.egress_rules.preempt {
                        Some(after) => {
                            format!("{} had failed: it takes over once healthy for {after:?}", c.node)
                        }
                        None => format!("{} had failed: the one elected stays while it is healthy", c.node),
                    },
                });
                Some(each.collect::<Vec<_>>().join("; "))
            }
            _ => None,
        }
    }

    fn candidates(
        &self,
        network: &LocalNetwork,
        election: &Election,
        live: &dyn Live,
    ) -> Vec<api::Candidate> {
        let pinned = live.pinned_flows(network.ix);
        let flows = |node: &NodeId| {
            let way = match *node == self.local.identity.node {
                true => Egress::Own,
                false => Egress::Peer(self.members.peers.get(node)?.ix),
            };
            let there = pinned.iter().find(|p| p.to == election.destination && p.egress == way);
            there.map(|pinned| pinned.flows)
        };
        let one = |candidate: &Candidate| api::Candidate {
            node: candidate.node.to_string(),
            state: candidate.standing.as_str().into(),
            reason: self.trouble(candidate),
            since: moment(candidate.since.unix_ms),
            held_down_until: candidate.held_until_unix_ms.map(moment),
            flows: flows(&candidate.node).unwrap_or(0),
        };
        election.candidates.iter().map(one).collect()
    }

    /// What is wrong with a candidate, as the end of a sentence about it.
    fn trouble(&self, candidate: &Candidate) -> Option<String> {
        let text = match candidate.standing {
            Standing::Alive => return None,
            Standing::HeldDown => return Some(held_down(candidate)),
            Standing::Draining => "is about to go: new flows go elsewhere",
            Standing::Drained => "is drained: `mesh-ctl egress resume` on it takes flows again",
            Standing::UplinkDown(UplinkFault::Link) => "has an uplink without link",
            Standing::UplinkDown(UplinkFault::Probe) => {
                "has an uplink that does not carry: its probes are not answered"
            }
            Standing::UplinkDown(UplinkFault::Kernel) => {
                "cannot keep its kernel carrying for others: see its own `mesh-ctl status`"
            }
            Standing::Silent => "has a tunnel that is up, and does not answer probes",
            Standing::Down(Absence::Left) => "has stopped politely",
            Standing::Down(Absence::NoOffer) => "offers no egress for this network",
            Standing::Down(Absence::Tunnel) => {
                let peer = self.members.peers.get(&candidate.node);
                let why = peer.and_then(|peer| peer.reason.as_ref());
                let why = why.map_or("not yet reached", |reason| reason.text.as_str());
                return Some(format!("has no tunnel: {why}"));
            }
        };
        Some(text.to_owned())
    }
}

fn held_down(candidate: &Candidate) -> String {
    let until = candidate.held_until_unix_ms.map(moment).unwrap_or_default();
    format!("has failed again and again: held down until {until}")
}

fn shown(failover: &Failover) -> api::Failover {
    api::Failover {
        at: rfc3339_ms(failover.at_unix_ms),
        cause: failover.cause.as_str().into(),
        from: list(&failover.from),
        to: list(&failover.to),
        duration_seconds: failover.outage.map(|outage| outage.as_secs_f64()),
    }
}
