//! How the nodes stand by which a network may leave the mesh, and since when: from their records, tunnels and probes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use mesh_proto::record::{Condition, EgressOffer, UplinkFault};
use mesh_proto::{NodeId, Prefix};

use super::damping::{Damping, HoldDown};
use crate::config::EgressChoice;
use crate::control::event::{LocalNetwork, LocalNode, Now};
use crate::control::members::{Members, Peer};
use crate::control::offers::Offers;
use crate::control::rib;
use crate::forward::flows::TCP_IDLE;

/// Why nothing can be given to an egress node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence {
    /// There is no tunnel to it.
    Tunnel,
    /// It has stopped politely.
    Left,
    /// It is there, and does not offer egress for the network.
    NoOffer,
}

/// How an egress node stands, as seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Its tunnel is alive, its uplink carries, and it is not about to go.
    Alive,
    /// The same, but it has failed too often of late.
    HeldDown,
    /// It carries, and is about to go.
    Draining,
    /// It is drained.
    Drained,
    /// Its uplink does not carry, by its own word.
    UplinkDown(UplinkFault),
    /// Its tunnel is up, and probes are not answered.
    Silent,
    /// It is not there.
    Down(Absence),
}

impl Standing {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Alive,
        Self::HeldDown,
        Self::Draining,
        Self::Drained,
        Self::UplinkDown(UplinkFault::Link),
        Self::UplinkDown(UplinkFault::Probe),
        Self::UplinkDown(UplinkFault::Kernel),
        Self::Silent,
        Self::Down(Absence::Tunnel),
        Self::Down(Absence::Left),
        Self::Down(Absence::NoOffer),
    ];

    /// The word for it in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::HeldDown => "held_down",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::UplinkDown(_) => "uplink_down",
            Self::Silent => "silent",
            Self::Down(_) => "down",
        }
    }

    /// Packets that are given to it get through.
    pub fn carries(self) -> bool {
        matches!(self, Self::Alive | Self::HeldDown | Self::Draining)
    }

    /// Something is broken; going politely is not.
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Silent | Self::UplinkDown(_) | Self::Down(Absence::Tunnel))
    }
}

/// The longest that a flow stays without a packet.
const FLOW_LIFE: Duration = Duration::from_secs(TCP_IDLE as u64);

/// Whoever has carried for less has only been about to, and what takes that back is no failure of its own: of two nodes that dial each
/// other one gives its tunnel up for the other's, and the news of a dead uplink come after its node is heard again.
const SETTLED: Duration = Duration::from_millis(100);

/// A node as it is seen at a moment.
#[derive(Debug, Clone)]
pub(super) struct Sight {
    pub(super) node: NodeId,
    /// What it carries to; `None`: never heard, so perhaps anything.
    serves: Option<Vec<Prefix>>,
    /// Lower is preferred.
    pub(super) priority: u32,
    /// Without hold-down.
    pub(super) standing: Standing,
    /// How long ago the last proof was that it carried, if it does not.
    pub(super) ago: Duration,
}

impl Sight {
    /// Whether it is a candidate for a destination.
    pub(super) fn serves(&self, destination: &Prefix) -> bool {
        self.serves.as_ref().is_none_or(|all| all.contains(destination))
    }

    /// Its destinations, as far as they are known.
    pub(super) fn destinations(&self) -> impl Iterator<Item = Prefix> + '_ {
        self.serves.iter().flatten().copied()
    }
}

/// The nodes by which a network may leave, in the order of preference. One that was named keeps its place while it is away, or
/// not yet heard of: whoever stands in for it is a standby.
pub(super) fn look(
    local: &LocalNode,
    offers: &Offers,
    network: &LocalNetwork,
    members: &Members,
    now: Now,
) -> Vec<Sight> {
    let own = rib::own_offer(local, &network.name, offers);
    let last_word =
        |node: &NodeId| members.peers.get(node).and_then(|p| rib::part(p, &network.name)?.egress.as_ref());
    let offers: BTreeMap<&NodeId, &EgressOffer> = own
        .iter()
        .map(|offer| (&local.identity.node, offer))
        .chain(members.present().filter_map(|(node, _)| Some((node, last_word(node)?))))
        .collect();
    let mut order: Vec<&NodeId> = match &network.egress {
        EgressChoice::None | EgressChoice::Local => Vec::new(),
        EgressChoice::Nodes(names) => names.iter().filter(|n| !members.removed.contains(*n)).collect(),
        EgressChoice::Auto => offers.keys().copied().collect(),
    };
    if network.egress == EgressChoice::Auto {
        order.sort_by_key(|n| (offers.get(n).map(|o| o.priority), *n));
    }
    // named twice is named once
    let mut met = BTreeSet::new();
    order
        .into_iter()
        .filter(|node| met.insert(*node))
        .map(|node| {
            let offer = offers.get(node).copied();
            let known = offer.or_else(|| last_word(node));
            let (standing, ago) = match *node == local.identity.node {
                true => offer.map_or((Standing::Down(Absence::NoOffer), Duration::ZERO), of_offer),
                false => of_peer(members.peers.get(node), offer, now),
            };
            let priority = known.map_or(u32::MAX, |offer| offer.priority);
            let serves = known.map(|offer| offer.destinations.clone());
            Sight { node: node.clone(), serves, priority, standing, ago }
        })
        .collect()
}

/// By its own word: how it stands, and how long ago the last proof was that it carried.
fn of_offer(offer: &EgressOffer) -> (Standing, Duration) {
    let standing = match offer.condition {
        Condition::Healthy => Standing::Alive,
        Condition::Draining => Standing::Draining,
        Condition::Drained => Standing::Drained,
        Condition::UplinkDown { fault, for_ms } => {
            return (Standing::UplinkDown(fault), Duration::from_millis(for_ms.into()));
        }
    };
    (standing, Duration::ZERO)
}

/// With how long it has carried nothing, as far as that is known.
fn of_peer(peer: Option<&Peer>, offer: Option<&EgressOffer>, now: Now) -> (Standing, Duration) {
    let Some(peer) = peer else { return (Standing::Down(Absence::Tunnel), Duration::ZERO) };
    // its tunnel may be back before its new record: what it said on leaving is over
    let standing = match (&peer.tunnel, offer) {
        _ if peer.left || peer.said_goodbye() => Standing::Down(Absence::Left),
        (None, _) => Standing::Down(Absence::Tunnel),
        (Some(_), None) => Standing::Down(Absence::NoOffer),
        (Some(tunnel), Some(offer)) => match (tunnel.silent, offer.condition) {
            (Some(since), _) => {
                return (Standing::Silent, now.mono.saturating_duration_since(since));
            }
            (None, _) => return of_offer(offer),
        },
    };
    (standing, Duration::ZERO)
}

/// What is remembered of a node over time.
#[derive(Debug, Clone)]
pub(super) struct Track {
    pub(super) standing: Standing,
    /// When it came to stand so.
    pub(super) since: Now,
    /// The last proof that it carried, while it does not.
    pub(super) carried: Instant,
    /// Since this node started it has carried, and then been missing or broken.
    pub(super) failed: bool,
    /// When its hold-down ends, milliseconds since 1970; while there is one.
    pub(super) held_until_unix_ms: Option<u64>,
    /// It has carried, and for more than an instant, since this node started.
    ever: bool,
    /// When it was elected last, for whatever destination; not before it failed last.
    elected: Option<Instant>,
    damping: Damping,
}

impl Track {
    /// Of a node that is met for the first time: whatever is wrong with it, it has not failed, unless it had before this node was
    /// started anew.
    pub(super) fn new(sight: &Sight, failed: bool, now: Now) -> Self {
        Self {
            standing: sight.standing,
            since: now,
            carried: now.mono,
            failed,
            ever: false,
            elected: None,
            held_until_unix_ms: None,
            damping: Damping::default(),
        }
    }

    /// How it is at this moment. Tells of a hold-down that begins, or becomes longer.
    pub(super) fn see(&mut self, seen: Standing, ago: Duration, now: Now) -> Option<HoldDown> {
        let carried = self.standing.carries();
        let settled = carried && now.mono.saturating_duration_since(self.since.mono) >= SETTLED;
        let hold = (settled && seen.is_failure()).then(|| self.damping.failed(now.mono)).flatten();
        let until = self.damping.held_until(now.mono);
        let left = |until: Instant| until.saturating_duration_since(now.mono).as_millis() as u64;
        self.held_until_unix_ms = until.map(|until| now.unix_ms + left(until));
        let standing = if seen == Standing::Alive && until.is_some() { Standing::HeldDown } else { seen };
        if standing == self.standing {
            return hold;
        }
        if carried && !standing.carries() {
            // no longer than it is known to have carried
            let ago = ago.min(now.mono.saturating_duration_since(self.since.mono));
            self.carried = now.mono.checked_sub(ago).unwrap_or(now.mono);
        }
        self.ever |= settled;
        // whoever is drained and resumed was called back by its operator, and takes its place again, whatever was in between
        let resumed = matches!(self.standing, Standing::Draining | Standing::Drained)
            && matches!(standing, Standing::Alive | Standing::HeldDown);
        let missing = !standing.carries() && standing != Standing::Drained;
        self.failed = (self.failed && !resumed) || (self.ever && missing);
        if !standing.carries() {
            self.elected = None;
        }
        self.standing = standing;
        self.since = now;
        hold
    }

    /// It is elected at this moment.
    pub(super) fn is_elected(&mut self, now: Now) {
        self.elected = Some(now.mono);
    }

    /// Flows that began while it was elected may be in progress.
    pub(super) fn may_hold_flows(&self, now: Now) -> bool {
        self.standing.carries()
            && self.elected.is_some_and(|at| now.mono.saturating_duration_since(at) < FLOW_LIFE)
    }

    /// When its hold-down ends, if one keeps it from its role.
    pub(super) fn held_until(&self, now: Now) -> Option<Instant> {
        self.damping.held_until(now.mono).filter(|_| self.standing == Standing::HeldDown)
    }
}
