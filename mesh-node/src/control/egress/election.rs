//! Who carries a destination: a pure function of the candidates, of who carries at present, and of what the operator wants.
//! Nodes that know the same elect the same.

use std::time::Instant;

use mesh_proto::{NodeId, Prefix};

use super::standing::Standing;
use crate::config::EgressRules;
use crate::control::event::Now;

/// A node that may carry a destination.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Who.
    pub node: NodeId,
    /// How it stands.
    pub standing: Standing,
    /// Since when.
    pub since: Now,
    /// The last proof that it carried, while it does not.
    pub carried: Instant,
    /// It has carried, and then been missing or broken, since this node started.
    pub failed: bool,
    /// It carries, and was elected for something not long ago: flows in progress may have stayed with it.
    pub may_hold_flows: bool,
    /// Lower is preferred where flows are spread.
    pub priority: u32,
    /// When its hold-down ends, milliseconds since 1970; while there is one.
    pub held_until_unix_ms: Option<u64>,
}

/// Who carries a destination.
#[derive(Debug, Clone)]
pub struct Election {
    /// The destination.
    pub destination: Prefix,
    /// In order of preference.
    pub candidates: Vec<Candidate>,
    /// Those in use; more than one where flows are spread. Empty: nobody.
    pub elected: Vec<NodeId>,
}

impl Election {
    /// The one in use, or the first of those.
    pub fn first(&self) -> Option<&NodeId> {
        self.elected.first()
    }

    /// The one elected is not whom the operator put first; none is neither.
    pub fn is_standby(&self, balance: bool) -> bool {
        let Some(elected) = self.first() else { return false };
        let best = self.candidates.iter().map(|c| c.priority).min();
        match balance {
            // those listed are a set: what counts is whether all of the best are there
            true => {
                self.candidates.iter().any(|c| Some(c.priority) == best && !self.elected.contains(&c.node))
            }
            false => self.candidates.first().is_some_and(|c| c.node != *elected),
        }
    }
}

/// What an election comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Those who carry, in the order of preference.
    pub elected: Vec<NodeId>,
    /// When time alone may change this.
    pub again: Option<Instant>,
}

/// Better is used while there is one: whoever fails often before whoever is about to go. Anybody else carries nothing.
const USABLE: [Standing; 3] = [Standing::Alive, Standing::HeldDown, Standing::Draining];

/// Elects. `forced`, the operator's word, goes before all, also before a hold-down, while that node carries and is not about to
/// go: then its own operator's word is the newer one, and what would still go there would be cut. Else `current` stays while
/// it is alive, unless one before it has come up for the first time (it had not failed: it had not been there), or has been
/// alive for as long as `preempt` asks: moving back to one that had failed would break flows for nothing.
pub fn elect(
    candidates: &[Candidate],
    current: &[NodeId],
    forced: Option<&NodeId>,
    rules: &EgressRules,
    now: Instant,
) -> Choice {
    let settled = |elected: Vec<NodeId>| Choice { elected, again: None };
    let named = candidates.iter().find(|c| Some(&c.node) == forced);
    if let Some(named) = named.filter(|c| matches!(c.standing, Standing::Alive | Standing::HeldDown)) {
        return settled(vec![named.node.clone()]);
    }
    let as_good = |standing: &Standing| {
        candidates.iter().filter(|c| c.standing == *standing).collect::<Vec<&Candidate>>()
    };
    let usable: Vec<&Candidate> =
        USABLE.iter().map(as_good).find(|found| !found.is_empty()).unwrap_or_default();
    let Some(first) = usable.first() else { return settled(Vec::new()) };
    if rules.balance {
        let best = usable.iter().map(|c| c.priority).min();
        let of_best = usable.iter().filter(|c| Some(c.priority) == best);
        return settled(of_best.map(|c| c.node.clone()).collect());
    }
    let Some(place) = usable.iter().position(|c| current.contains(&c.node)) else {
        return settled(vec![first.node.clone()]);
    };
    let alive = usable[place].standing == Standing::Alive;
    let ripe = |c: &Candidate| rules.preempt.and_then(|time| c.since.mono.checked_add(time));
    let takes_over = |c: &&Candidate| alive && (!c.failed || ripe(c).is_some_and(|at| at <= now));
    let taker = usable[..place].iter().position(takes_over).unwrap_or(place);
    let ripening = usable[..taker].iter().filter(|_| alive).filter_map(|c| ripe(c));
    let again = ripening.filter(|at| *at > now).min();
    Choice { elected: vec![usable[taker].node.clone()], again }
}

#[cfg(test)]
mod tests;
