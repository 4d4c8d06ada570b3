//! Why who carries a destination has changed, and how long nobody did.

use std::time::{Duration, Instant};

use mesh_proto::NodeId;

use super::election::{Candidate, Election};
use super::standing::{Absence, Standing};
use crate::control::event::Now;

/// Upper bounds of the histogram of outages, in seconds: from what nobody notices to what somebody has to mend.
pub const OUTAGE_BUCKETS: [f64; 10] = [0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0];

/// Why who carries a destination has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailoverCause {
    /// The tunnel to the one before is gone.
    Tunnel,
    /// The one before does not answer probes.
    Liveness,
    /// The uplink of the one before does not carry.
    Uplink,
    /// The one before is about to go, or is drained.
    Drain,
    /// The one before has stopped politely, or does not offer egress, or is not listed any more.
    Left,
    /// One that is preferred has come up for the first time, or was put first.
    Preferred,
    /// One that is preferred has been alive for as long as `egress_preempt` asks.
    Preempt,
    /// The operator has said so.
    Operator,
    /// The one before is held down, and another is alive again.
    HoldDown,
    /// Nobody was left, and this host carries.
    Fallback,
    /// Nobody was left.
    None,
    /// Somebody carries again after nobody did.
    Returned,
}

impl FailoverCause {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Tunnel,
        Self::Liveness,
        Self::Uplink,
        Self::Drain,
        Self::Left,
        Self::Preferred,
        Self::Preempt,
        Self::Operator,
        Self::HoldDown,
        Self::Fallback,
        Self::None,
        Self::Returned,
    ];

    /// The metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::Liveness => "liveness",
            Self::Uplink => "uplink",
            Self::Drain => "drain",
            Self::Left => "left",
            Self::Preferred => "preferred",
            Self::Preempt => "preempt",
            Self::Operator => "operator",
            Self::HoldDown => "hold_down",
            Self::Fallback => "fallback",
            Self::None => "none",
            Self::Returned => "returned",
        }
    }
}

/// A change of who carries a destination, to be shown.
#[derive(Debug, Clone)]
pub struct Failover {
    /// When, milliseconds since 1970.
    pub at_unix_ms: u64,
    /// Why the one before lost it; `Returned`: there was none.
    pub cause: FailoverCause,
    /// Who carried before.
    pub from: Vec<NodeId>,
    /// Who carries since.
    pub to: Vec<NodeId>,
    /// How long nobody carried; none while that goes on.
    pub outage: Option<Duration>,
}

/// Who carries a destination, over time.
#[derive(Debug, Clone, Default)]
pub(super) struct Post {
    pub(super) elected: Vec<NodeId>,
    /// They carry because an operator said so.
    by_operator: bool,
    /// Nobody carries: the last proof that the last one did.
    pub(super) vacant: Option<Instant>,
    pub(super) last: Option<Failover>,
}

/// A change at a post.
pub(super) struct Change {
    pub(super) from: Vec<NodeId>,
    /// Why, in one word of the log; none for the first one ever elected.
    pub(super) cause: Option<FailoverCause>,
    /// What it is counted as, if it is a failover and not just one more node.
    pub(super) counts_as: Option<FailoverCause>,
    /// How long nobody carried, where that is over.
    pub(super) outage: Option<Duration>,
}

impl Post {
    /// The post is given to whom the election names. `forced` is whom the operator has named; `fallback`: while there is
    /// nobody this host carries.
    pub(super) fn give(
        &mut self,
        election: &Election,
        forced: Option<&NodeId>,
        fallback: bool,
        at: Now,
    ) -> Option<Change> {
        let now = at.mono;
        let was_by_operator = self.by_operator;
        let to = election.elected.clone();
        self.by_operator = to.first().is_some_and(|first| to.len() == 1 && Some(first) == forced);
        let over = |since: Instant| now.saturating_duration_since(since);
        if self.elected == to {
            // a fallback that was switched on meanwhile ends an outage as well
            let outage = self.vacant.take_if(|_| fallback).map(over)?;
            return Some(Change { from: Vec::new(), cause: None, counts_as: None, outage: Some(outage) });
        }
        let from = std::mem::replace(&mut self.elected, to.clone());
        let of = |node: &NodeId| election.candidates.iter().find(|c| c.node == *node);
        let gone: Vec<Option<&Candidate>> = from.iter().filter(|n| !to.contains(n)).map(of).collect();
        // one that has left the list carried up to now
        let carried = |c: &Option<&Candidate>| c.filter(|c| !c.standing.carries()).map_or(now, |c| c.carried);
        let proof = gone.iter().map(carried).min();
        let operator = was_by_operator || self.by_operator;
        let (cause, counts_as, outage) = match (proof, to.is_empty()) {
            (Some(proof), true) if fallback => {
                (Some(cause(&gone, election, operator)), Some(FailoverCause::Fallback), Some(over(proof)))
            }
            (Some(proof), true) => {
                self.vacant = Some(proof);
                (Some(cause(&gone, election, operator)), Some(FailoverCause::None), None)
            }
            (Some(proof), false) => {
                let cause = cause(&gone, election, operator);
                (Some(cause), Some(cause), Some(over(proof)))
            }
            // nobody has gone: somebody has come
            (None, _) if from.is_empty() => match (self.vacant.take(), self.last.is_some()) {
                (Some(since), _) => {
                    (Some(FailoverCause::Returned), Some(FailoverCause::Returned), Some(over(since)))
                }
                // this host carried meanwhile
                (None, true) => {
                    (Some(FailoverCause::Returned), Some(FailoverCause::Returned), Some(Duration::ZERO))
                }
                (None, false) => (None, None, None),
            },
            (None, _) => (Some(FailoverCause::Preferred), None, None),
        };
        if let Some(cause) = cause.filter(|_| counts_as.is_some()) {
            self.last = Some(Failover { at_unix_ms: at.unix_ms, cause, from: from.clone(), to, outage });
        }
        Some(Change { from, cause, counts_as, outage })
    }
}

/// Why the first of those that have gone has lost its role.
fn cause(gone: &[Option<&Candidate>], election: &Election, operator: bool) -> FailoverCause {
    let Some(Some(gone)) = gone.first() else { return FailoverCause::Left };
    match gone.standing {
        Standing::Silent => FailoverCause::Liveness,
        Standing::Down(Absence::Tunnel) => FailoverCause::Tunnel,
        Standing::Down(Absence::Left | Absence::NoOffer) => FailoverCause::Left,
        Standing::UplinkDown(_) => FailoverCause::Uplink,
        Standing::Draining | Standing::Drained => FailoverCause::Drain,
        Standing::Alive | Standing::HeldDown if operator => FailoverCause::Operator,
        Standing::HeldDown => FailoverCause::HoldDown,
        Standing::Alive => {
            let taker = election.candidates.iter().find(|c| Some(&c.node) == election.first());
            match taker.is_some_and(|c| c.failed) {
                true => FailoverCause::Preempt,
                false => FailoverCause::Preferred,
            }
        }
    }
}
