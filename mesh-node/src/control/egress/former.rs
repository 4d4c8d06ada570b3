//! Who carried before this node was started anew. Flows through them are still in progress, and the order in which tunnels come up
//! after a start is no reason to move those.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use mesh_proto::{NetworkName, NodeId, Prefix};

use super::Roles;
use super::election::Candidate;
use super::standing::{Absence, Standing};
use crate::control::event::{Now, SavedPost};

/// For so long after a start nobody else is elected while one of them has not come up yet.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is known of them, until each has a successor.
#[derive(Debug, Default)]
pub(super) struct Former {
    posts: BTreeMap<(NetworkName, Prefix), Vec<NodeId>>,
    /// Those that had failed: they do not take a post back just because they are met for the first time.
    failed: BTreeSet<(NetworkName, NodeId)>,
    until: Option<Instant>,
}

impl Former {
    pub(super) fn new(saved: Vec<SavedPost>, now: Now) -> Self {
        let mut former = Self { until: now.mono.checked_add(PATIENCE), ..Self::default() };
        for post in saved {
            former.failed.extend(post.failed.into_iter().map(|node| (post.network.clone(), node)));
            former.posts.insert((post.network, post.destination), post.elected);
        }
        former
    }

    /// Those who carried a destination.
    pub(super) fn elected(&self, network: &NetworkName, destination: Prefix) -> &[NodeId] {
        self.posts.get(&(network.clone(), destination)).map_or(&[], Vec::as_slice)
    }

    /// Until when they are waited for: while one comes, and none of them is there.
    pub(super) fn expected_until(
        &self,
        network: &NetworkName,
        destination: Prefix,
        candidates: &[Candidate],
        now: Now,
    ) -> Option<Instant> {
        let elected = self.elected(network, destination);
        let mut ours = candidates.iter().filter(|c| elected.contains(&c.node));
        let comes = ours.clone().any(|c| c.standing == Standing::Down(Absence::Tunnel));
        self.until.filter(|until| now.mono < *until && comes && !ours.any(|c| c.standing.carries()))
    }

    /// Their time is over.
    pub(super) fn expire(&mut self, now: Now) {
        if self.until.is_some_and(|until| until <= now.mono) {
            *self = Self::default();
        }
    }

    /// Whether a node had failed.
    pub(super) fn has_failed(&self, network: &NetworkName, node: &NodeId) -> bool {
        self.failed.contains(&(network.clone(), node.clone()))
    }

    /// A destination has somebody again.
    pub(super) fn succeeded(&mut self, network: &NetworkName, destination: Prefix) {
        self.posts.remove(&(network.clone(), destination));
    }
}

impl Roles {
    /// Who carries what, for the next start.
    pub(in crate::control) fn saved(&self) -> Vec<SavedPost> {
        let failed = |network: &NetworkName| {
            let all = self.tracks.iter().filter(|((name, _), track)| name == network && track.failed);
            all.map(|((_, node), _)| node.clone()).collect()
        };
        let posts = self.posts.iter().map(|(key, post)| (key, &post.elected));
        let all = posts.filter(|(_, elected)| !elected.is_empty()).chain(&self.former.posts);
        let saved = |((network, destination), elected): (&(NetworkName, Prefix), &Vec<NodeId>)| SavedPost {
            network: network.clone(),
            destination: *destination,
            elected: elected.clone(),
            failed: failed(network),
        };
        all.map(saved).collect()
    }
}
