//! Egress as this node uses it: who may carry each destination, how they stand, who is elected, and what has come of it so far.
//!
//! ```text
//!   records, tunnels, probes ──► standing ──► Track (since, hold-down) ──► election ──► Post (failovers, outages)
//!        this moment               over time, per network and node         per network and destination
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use mesh_proto::identity::rfc3339_ms;
use mesh_proto::{NetworkName, NodeId, Prefix};

use self::election::{Candidate, Election};
use self::failover::{Change, FailoverCause, Post};
use self::former::Former;
use self::standing::{Absence, Sight, Standing, Track};
use super::event::{LocalNetwork, LocalNode, Now, Output, SavedPost};
use super::members::Members;
use super::observed::Observed;
use super::offers::Offers;
use super::{Control, Counts};
use crate::config::{EgressChoice, EgressFallback};
use crate::notice::Notice;

mod answer;
pub mod damping;
pub mod election;
pub mod failover;
mod former;
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
    former: Former,
    /// When time alone changes something.
    due: Option<Instant>,
}

impl Roles {
    /// As they are after a start.
    pub(super) fn new(used: BTreeMap<NetworkName, NodeId>, former: Vec<SavedPost>, now: Now) -> Self {
        Self { used, former: Former::new(former, now), ..Self::default() }
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

/// What is known at a moment.
struct Scene<'a> {
    local: &'a LocalNode,
    offers: &'a Offers,
    members: &'a Members,
    now: Now,
}

impl Control {
    /// Elects anew for all networks, counts, and tells what has changed.
    pub(super) fn elect(&mut self, now: Now) {
        let Self { local, offers, members, roles, counts, outputs, .. } = self;
        let scene = Scene { local, offers, members, now };
        let mut told = Vec::new();
        roles.due = None;
        roles.former.expire(now);
        for network in &local.networks {
            roles.elect_for(&scene, network, counts, &mut told);
        }
        roles.keep(|name| local.networks.iter().any(|n| n.name == *name));
        members.carriers =
            roles.all().flat_map(|(_, election)| &election.candidates).map(|c| c.node.clone()).collect();
        let changed = !told.is_empty();
        outputs.extend(told.into_iter().map(Output::Tell));
        if changed {
            self.save();
        }
    }
}

impl Roles {
    /// Forgets networks that are gone.
    fn keep(&mut self, there: impl Fn(&NetworkName) -> bool) {
        self.elections.retain(|name, _| there(name));
        self.fallen_back.retain(&there);
        self.tracks.retain(|(name, _), _| there(name));
        self.posts.retain(|(name, _), _| there(name));
    }

    fn elect_for(
        &mut self,
        scene: &Scene<'_>,
        network: &LocalNetwork,
        counts: &mut Counts,
        told: &mut Vec<Notice>,
    ) {
        let sights = standing::look(scene.local, scene.offers, network, scene.members, scene.now);
        self.follow(scene, network, &sights, told);
        let destinations: BTreeSet<Prefix> = sights.iter().flat_map(Sight::destinations).collect();
        let one = |destination| self.elect_one(network, destination, &sights, scene.now);
        let (elections, again): (Vec<Election>, Vec<Option<Instant>>) =
            destinations.into_iter().map(one).unzip();
        self.due = again.into_iter().chain([self.due]).flatten().min();
        // Per network, not per family or destination: the kernel's way out is one for the whole segment, and a family or a
        // destination that an egress node carries must not move because another has nobody. What has nobody is then refused,
        // as without fallback.
        let chooses = matches!(network.egress, EgressChoice::Nodes(_) | EgressChoice::Auto);
        let awaits = |e: &Election| {
            self.former.expected_until(&network.name, e.destination, &e.candidates, scene.now).is_some()
        };
        let falls_back = chooses
            && network.egress_rules.fallback == EgressFallback::Local
            && elections.iter().all(|e| e.elected.is_empty() && !awaits(e));
        self.note(network, &elections, falls_back, scene.now, counts, told);
        self.elections.insert(network.name.clone(), elections);
    }

    /// Keeps what is remembered of each node in step with what is seen.
    fn follow(
        &mut self,
        scene: &Scene<'_>,
        network: &LocalNetwork,
        sights: &[Sight],
        told: &mut Vec<Notice>,
    ) {
        let now = scene.now;
        for sight in sights {
            let key = (network.name.clone(), sight.node.clone());
            let failed = self.former.has_failed(&network.name, &sight.node);
            let track = self.tracks.entry(key).or_insert_with(|| Track::new(sight, failed, now));
            let hold = track.see(sight.standing, sight.ago, now);
            self.due = [self.due, track.held_until(now)].into_iter().flatten().min();
            if let Some(hold) = hold {
                let left = hold.until.saturating_duration_since(now.mono).as_millis() as u64;
                told.push(Notice::EgressHeldDown {
                    node: sight.node.clone(),
                    network: network.name.clone(),
                    count: hold.count as u64,
                    until: rfc3339_ms(now.unix_ms + left),
                });
            }
        }
        let auto = network.egress == EgressChoice::Auto;
        self.tracks.retain(|(name, node), track| {
            if *name != network.name || sights.iter().any(|s| s.node == *node) {
                return true;
            }
            // with "auto" whoever stops is not listed, and remembered: its return is not its first coming
            track.see(Standing::Down(Absence::Left), Duration::ZERO, now);
            auto && scene.members.peers.contains_key(node)
        });
    }

    /// Who carries a destination, and when time alone may change that.
    fn elect_one(
        &self,
        network: &LocalNetwork,
        destination: Prefix,
        sights: &[Sight],
        now: Now,
    ) -> (Election, Option<Instant>) {
        let candidate = |sight: &Sight| {
            let track = self.tracks.get(&(network.name.clone(), sight.node.clone()))?;
            Some(Candidate {
                node: sight.node.clone(),
                standing: track.standing,
                since: track.since,
                carried: track.carried,
                failed: track.failed,
                may_hold_flows: track.may_hold_flows(now),
                priority: sight.priority,
                held_until_unix_ms: track.held_until_unix_ms,
            })
        };
        let candidates: Vec<Candidate> =
            sights.iter().filter(|s| s.serves(&destination)).filter_map(candidate).collect();
        let post = self.posts.get(&(network.name.clone(), destination));
        let forced = self.used.get(&network.name);
        let is_there = candidates.iter().any(|c| Some(&c.node) == forced && c.standing.carries());
        let until = self.former.expected_until(&network.name, destination, &candidates, now);
        if let Some(until) = until.filter(|_| !is_there) {
            return (Election { destination, candidates, elected: Vec::new() }, Some(until));
        }
        let current = post.map(|post| &post.elected[..]).filter(|elected| !elected.is_empty());
        let current = current.unwrap_or_else(|| self.former.elected(&network.name, destination));
        let choice = election::elect(&candidates, current, forced, &network.egress_rules, now.mono);
        (Election { destination, candidates, elected: choice.elected }, choice.again)
    }

    /// Gives the posts to those who are elected, counts, and tells the operator.
    fn note(
        &mut self,
        network: &LocalNetwork,
        elections: &[Election],
        falls_back: bool,
        now: Now,
        counts: &mut Counts,
        told: &mut Vec<Notice>,
    ) {
        let name = &network.name;
        let had_fallen = match falls_back {
            true => !self.fallen_back.insert(name.clone()),
            false => self.fallen_back.remove(name),
        };
        let offered = |to: &Prefix| elections.iter().any(|e| e.destination == *to);
        let vanished = self.posts.keys().filter(|(of, to)| of == name && !offered(to)).map(|(_, to)| *to);
        let nobody = |destination| Election { destination, candidates: Vec::new(), elected: Vec::new() };
        let vanished: Vec<Election> = vanished.map(nobody).collect();
        let mut why = None;
        for election in elections.iter().chain(&vanished) {
            for node in &election.elected {
                if let Some(track) = self.tracks.get_mut(&(name.clone(), node.clone())) {
                    track.is_elected(now);
                }
            }
            if !election.elected.is_empty() {
                self.former.succeeded(name, election.destination);
            }
            let post = self.posts.entry((name.clone(), election.destination)).or_default();
            let forced = self.used.get(name);
            let Some(change) = post.give(election, forced, falls_back, now) else { continue };
            counts.note_failover(name, &change);
            why = why.or(change.cause);
            told.extend(change_told(name, election, change, falls_back));
        }
        for election in vanished {
            self.posts.remove(&(name.clone(), election.destination));
        }
        if falls_back && !had_fallen {
            let cause = why.unwrap_or(FailoverCause::None).as_str();
            told.push(Notice::EgressFallback { network: name.clone(), cause });
        }
    }
}

/// What the operator is told of a change; nothing where this host carries instead, which is told once for the network.
fn change_told(
    network: &NetworkName,
    election: &Election,
    change: Change,
    falls_back: bool,
) -> Option<Notice> {
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
