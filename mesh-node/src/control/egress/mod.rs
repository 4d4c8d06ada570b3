//! Egress as this node uses it: who may carry each destination, how they stand, who is elected, and what has come of it so far.
//!
//! ```text
//!   records, tunnels, probes ──► standing ──► Track (since, hold-down) ──► election ──► Post (failovers, outages)
//!        this moment               over time, per network and node         per network and destination
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use mesh_proto::{NetworkName, NodeId, Prefix};

use self::election::{Candidate, Election};
use self::failover::{Change, FailoverCause, Post};
use self::standing::{Absence, Sight, Standing, Track};
use super::event::{LocalNetwork, Now, Output};
use super::observed::Observed;
use super::{Control, Counts};
use crate::config::{EgressChoice, EgressFallback};
use crate::notice::Notice;

mod answer;
pub mod damping;
pub mod election;
pub mod failover;
pub mod standing;
mod used;

/// The state of all roles.
#[derive(Debug, Default)]
pub struct Roles {
    /// Per network and destination.
    elections: BTreeMap<NetworkName, Vec<Election>>,
    /// Networks that leave by this host because nobody else carries.
    fallen_back: BTreeSet<NetworkName>,
    /// Egress nodes that the operator has forced.
    pub(super) used: BTreeMap<NetworkName, NodeId>,
    tracks: BTreeMap<(NetworkName, NodeId), Track>,
    posts: BTreeMap<(NetworkName, Prefix), Post>,
    /// When time alone changes something.
    due: Option<Instant>,
}

impl Roles {
    /// As they are after a start.
    pub(super) fn new(used: BTreeMap<NetworkName, NodeId>) -> Self {
        Self { used, ..Self::default() }
    }

    /// Who carries a network's destinations.
    pub fn elections(&self, network: &NetworkName) -> &[Election] {
        self.elections.get(network).map_or(&[], Vec::as_slice)
    }

    /// All of them, by network.
    pub fn all(&self) -> impl Iterator<Item = (&NetworkName, &Election)> {
        self.elections.iter().flat_map(|(network, all)| all.iter().map(move |one| (network, one)))
    }

    /// The network leaves by this host because nobody else carries.
    pub fn has_fallen_back(&self, network: &NetworkName) -> bool {
        self.fallen_back.contains(network)
    }

    /// When time alone changes something: a hold-down ends, or one that is preferred has been alive for long enough.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }
}

impl Control {
    /// Elects anew for all networks, and tells what has changed.
    pub(super) fn elect(&mut self, now: Now) {
        self.roles.due = None;
        let networks = self.local.networks.clone();
        for network in &networks {
            self.elect_for(network, now);
        }
        let there = |name: &NetworkName| networks.iter().any(|n| n.name == *name);
        self.roles.elections.retain(|name, _| there(name));
        self.roles.fallen_back.retain(there);
        self.roles.tracks.retain(|(name, _), _| there(name));
        self.roles.posts.retain(|(name, _), _| there(name));
    }

    fn elect_for(&mut self, network: &LocalNetwork, now: Now) {
        let sights = standing::look(&self.local, &self.offers, network, &self.members, now);
        self.follow(network, &sights, now);
        let mut destinations: Vec<Prefix> = sights.iter().flat_map(Sight::destinations).collect();
        destinations.sort();
        destinations.dedup();
        let elections: Vec<Election> = destinations
            .into_iter()
            .map(|destination| self.elect_one(network, destination, &sights, now))
            .collect();
        // Per network, not per family or destination: the kernel's way out is one for the whole segment, and a family or a
        // destination that an egress node carries must not move because another has nobody. What has nobody is then refused,
        // as without fallback.
        let chooses = matches!(network.egress, EgressChoice::Nodes(_) | EgressChoice::Auto);
        let falls_back = chooses
            && network.egress_rules.fallback == EgressFallback::Local
            && elections.iter().all(|e| e.elected.is_empty());
        self.note(network, &elections, falls_back, now);
        self.roles.elections.insert(network.name.clone(), elections);
    }

    /// Keeps what is remembered of each node in step with what is seen.
    fn follow(&mut self, network: &LocalNetwork, sights: &[Sight], now: Now) {
        for sight in sights {
            let key = (network.name.clone(), sight.node.clone());
            let track = self.roles.tracks.entry(key).or_insert_with(|| Track::new(sight, now));
            let hold = track.see(sight.standing, sight.ago, now);
            let until = track.held_until(now);
            self.roles.due = earlier(self.roles.due, until);
            if let Some(hold) = hold {
                let left = hold.until.saturating_duration_since(now.mono).as_millis() as u64;
                self.outputs.push_back(Output::Tell(Notice::EgressHeldDown {
                    node: sight.node.clone(),
                    network: network.name.clone(),
                    count: hold.count as u64,
                    until: mesh_proto::identity::rfc3339_ms(now.unix_ms + left),
                }));
            }
        }
        let (members, auto) = (&self.members, network.egress == EgressChoice::Auto);
        self.roles.tracks.retain(|(name, node), track| {
            if *name != network.name || sights.iter().any(|s| s.node == *node) {
                return true;
            }
            // with "auto" whoever stops is not listed, and remembered: its return is not its first coming
            track.see(Standing::Down(Absence::Left), std::time::Duration::ZERO, now);
            auto && members.peers.contains_key(node)
        });
    }

    fn elect_one(
        &mut self,
        network: &LocalNetwork,
        destination: Prefix,
        sights: &[Sight],
        now: Now,
    ) -> Election {
        let candidate = |sight: &Sight| {
            let track = self.roles.tracks.get(&(network.name.clone(), sight.node.clone()))?;
            Some(Candidate {
                node: sight.node.clone(),
                standing: track.standing,
                since: track.since,
                carried: track.carried,
                failed: track.failed,
                priority: sight.priority,
                held_until_unix_ms: track.held_until_unix_ms,
            })
        };
        let candidates: Vec<Candidate> =
            sights.iter().filter(|s| s.serves(&destination)).filter_map(candidate).collect();
        let post = self.roles.posts.get(&(network.name.clone(), destination));
        let current = post.map_or(&[][..], |post| &post.elected);
        let forced = self.roles.used.get(&network.name);
        let choice = election::elect(&candidates, current, forced, &network.egress_rules, now.mono);
        self.roles.due = earlier(self.roles.due, choice.again);
        Election { destination, candidates, elected: choice.elected }
    }

    /// Gives the posts to those who are elected, counts, and tells the operator.
    fn note(&mut self, network: &LocalNetwork, elections: &[Election], falls_back: bool, now: Now) {
        let had_fallen = match falls_back {
            true => !self.roles.fallen_back.insert(network.name.clone()),
            false => self.roles.fallen_back.remove(&network.name),
        };
        // nobody offers these any more
        let vanished: Vec<Election> = self
            .roles
            .posts
            .keys()
            .filter(|(name, to)| *name == network.name && !elections.iter().any(|e| e.destination == *to))
            .map(|(_, to)| Election { destination: *to, candidates: Vec::new(), elected: Vec::new() })
            .collect();
        let mut why_fallen = None;
        for election in elections.iter().chain(&vanished) {
            let key = (network.name.clone(), election.destination);
            let forced = self.roles.used.get(&network.name);
            let post = self.roles.posts.entry(key).or_default();
            let Some(change) = post.give(election, forced, falls_back, now.mono, now.unix_ms) else {
                continue;
            };
            self.counts.note_failover(&network.name, &change);
            why_fallen = why_fallen.or(change.cause.map(FailoverCause::as_str));
            if let Some(notice) = told(&network.name, election, change, falls_back) {
                self.outputs.push_back(Output::Tell(notice));
            }
        }
        for election in vanished {
            self.roles.posts.remove(&(network.name.clone(), election.destination));
        }
        if falls_back && !had_fallen {
            let cause = why_fallen.unwrap_or(FailoverCause::None.as_str());
            self.tell(Notice::EgressFallback { network: network.name.clone(), cause });
        }
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}

/// What the operator is told of a change; nothing where this host carries instead, which is told once for the network.
fn told(network: &NetworkName, election: &Election, change: Change, falls_back: bool) -> Option<Notice> {
    let list = |nodes: &[NodeId]| nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ");
    let (network, destination) = (network.clone(), election.destination);
    let from = (!change.from.is_empty()).then(|| list(&change.from));
    let cause = change.cause.map(FailoverCause::as_str);
    let elapsed_ms = change.outage.map(|outage| outage.as_millis() as u64);
    match (election.elected.is_empty(), falls_back) {
        (true, true) => None,
        (true, false) => Some(Notice::EgressLost { network, destination, from, cause }),
        (false, _) => {
            let to = list(&election.elected);
            Some(Notice::EgressElected { network, destination, from, to, cause, elapsed_ms })
        }
    }
}

impl Counts {
    fn note_failover(&mut self, network: &NetworkName, change: &Change) {
        if let Some(cause) = change.counts_as {
            *self.egress_failovers.entry((network.clone(), cause)).or_default() += 1;
        }
        if let Some(outage) = change.outage {
            let none = || Observed::new(failover::OUTAGE_BUCKETS);
            self.egress_outages.entry(network.clone()).or_insert_with(none).add(outage);
        }
    }
}
