//! Taking this node's egress out of use without breaking what is in progress: by the operator, or because the node stops.
//!
//! ```text
//!   in use ──drain──► draining ──no flow left, or the deadline──► drained ──1 s──► tracked connections are deleted
//!      ▲                  │                                          │
//!      └────── resume ────┴──────────────────────────────────────────┘
//!
//!   stop ──► are there flows of others, and a standby? ──no──► gone
//!                     └─yes─► draining, 5 s at most ──► drained ──0.3 s──► gone
//! ```
//!
//! Those who send learn of it from this node's record: on "draining" they send new flows elsewhere, on "drained" they reset
//! what TCP is left.

use std::time::{Duration, Instant};

use mesh_proto::identity::rfc3339_ms;
use mesh_proto::record::Condition;
use mesh_proto::{NetworkName, Prefix, api};

use super::event::{LocalNetwork, Now, Output};
use super::members::Peer;
use super::{Control, rib};
use crate::notice::Notice;

mod tracked;

pub use tracked::{FlowCount, FlowWatch, Forget, Timeouts, Tracked, Whose};

/// Longest drain: a forgotten one should not live for ever.
pub const MAX_DEADLINE: Duration = Duration::from_secs(86_400);

/// Longest drain of a stop, which as a whole takes at most 10 s.
pub const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// From the news that this node is drained to the end of its work: what is on its way to it, and the resets, still pass.
const STOP_GRACE: Duration = Duration::from_millis(300);

/// How long a stop waits for the first count.
const STOP_COUNT: Duration = Duration::from_millis(500);

/// A drain is not over before all have heard of it.
const AT_LEAST: Duration = Duration::from_secs(1);

/// From the news to the deletion of tracked connections: the resets that follow it need them for their addresses.
const FORGET_AFTER: Duration = Duration::from_secs(1);

/// Whether this node's egress is in use.
#[derive(Debug, Default)]
pub struct Drain {
    state: State,
    /// The operator wants it so, also after a restart.
    wanted: bool,
    stop: Option<Stop>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    InUse,
    Draining {
        since: Instant,
        until: Instant,
        until_unix_ms: u64,
        left: Option<FlowCount>,
    },
    Drained {
        /// When tracked connections are deleted.
        forget: Option<Instant>,
    },
}

/// The node stops.
#[derive(Debug)]
enum Stop {
    /// Are there flows to hand over? No longer than until then.
    Asked { until: Instant },
    /// Flows are handed over.
    HandsOver,
    /// There is nothing more to wait for.
    Gone,
}

impl Drain {
    /// As it is after a start.
    pub fn restored(wanted: bool) -> Self {
        let state = if wanted { State::Drained { forget: None } } else { State::InUse };
        Self { state, wanted, stop: None }
    }

    /// What is told to those who would use this node's egress.
    pub fn condition(&self) -> Condition {
        match self.state {
            State::InUse => Condition::Healthy,
            State::Draining { .. } => Condition::Draining,
            State::Drained { .. } => Condition::Drained,
        }
    }

    /// The operator wants it out of use.
    pub fn wanted(&self) -> bool {
        self.wanted
    }

    /// When time alone changes something.
    pub fn due(&self) -> Option<Instant> {
        let state = match self.state {
            State::Draining { until, .. } => Some(until),
            State::Drained { forget } => forget,
            State::InUse => None,
        };
        let stop = match self.stop {
            Some(Stop::Asked { until }) => Some(until),
            _ => None,
        };
        state.into_iter().chain(stop).min()
    }
}

impl Control {
    /// Takes this node's egress out of use: new flows go elsewhere at once, those in progress have until the deadline.
    pub fn egress_drain(&mut self, deadline: Duration, now: Now) -> Result<api::EgressDrain, String> {
        if self.offered_networks().is_empty() {
            let text = "this node offers no egress: there is nothing to drain; `mesh-ctl egress` says which nodes do";
            return Err(text.to_owned());
        }
        if self.offers.drain.stop.is_some() {
            return Err("the node is stopping, and drains by itself".to_owned());
        }
        if !matches!(self.offers.drain.state, State::Drained { .. }) {
            self.begin_drain(deadline.min(MAX_DEADLINE), now);
            let State::Draining { until_unix_ms, .. } = self.offers.drain.state else {
                return Ok(self.drain());
            };
            self.tell(Notice::EgressDraining { until: rfc3339_ms(until_unix_ms) });
        }
        self.offers.drain.wanted = true;
        self.drain_changed(now);
        Ok(self.drain())
    }

    /// Takes it into use again. Flows that have moved stay where they are.
    pub fn egress_resume(&mut self, now: Now) -> Result<String, String> {
        if self.offers.drain.stop.is_some() {
            return Err("the node is stopping: start it again for that".to_owned());
        }
        if matches!(self.offers.drain.state, State::InUse) {
            return Ok("egress of this node was in use already".to_owned());
        }
        self.offers.drain = Drain::default();
        self.outputs.push_back(Output::CountFlows(None));
        self.tell(Notice::EgressResumed {});
        self.drain_changed(now);
        Ok("egress of this node is in use again: others elect it by their rules, and moved flows stay"
            .to_owned())
    }

    /// How far it is.
    pub fn drain(&self) -> api::EgressDrain {
        let answer = |state: &str, reason: Option<String>| api::EgressDrain {
            schema: api::SCHEMA,
            state: state.to_owned(),
            reason,
            until: None,
            flows: None,
            warnings: Vec::new(),
        };
        match &self.offers.drain.state {
            State::InUse => answer("in use", None),
            State::Draining { until_unix_ms, left, .. } => {
                let until = rfc3339_ms(*until_unix_ms);
                let reason = format!("new flows go elsewhere; those in progress have until {until}");
                api::EgressDrain {
                    until: Some(until),
                    flows: left.map(|left| left.others + left.own),
                    warnings: self.without_standby(),
                    ..answer("draining", Some(reason))
                }
            }
            State::Drained { .. } => {
                let reason = "out of use until `mesh-ctl egress resume`".to_owned();
                api::EgressDrain {
                    flows: Some(0),
                    warnings: self.without_standby(),
                    ..answer("drained", Some(reason))
                }
            }
        }
    }

    /// The note for `status`.
    pub(super) fn drain_note(&self) -> Option<String> {
        let drain = self.drain();
        let flows = drain.flows.filter(|_| drain.state == "draining");
        let flows = flows.map(|flows| format!(", {flows} flows in progress")).unwrap_or_default();
        let reason = drain.reason?;
        Some(format!("egress of this node is {}{flows}: {reason}", drain.state))
    }

    /// The node is to stop: hands its flows over first, if there are any and somebody to take them. `Output::Gone` comes when
    /// there is nothing to wait for, at once if need be.
    pub(super) fn stop(&mut self, now: Now) {
        let standby = self.offered_networks().iter().any(|network| self.has_standby(network));
        match self.offers.drain.state {
            State::InUse | State::Draining { .. } if standby => {
                self.offers.drain.stop = Some(Stop::Asked { until: now.mono + STOP_COUNT });
                self.outputs.push_back(Output::CountFlows(Some(self.flow_watch())));
            }
            _ => self.gone(Duration::ZERO),
        }
    }

    /// Connections in progress were counted, or cannot be.
    pub(super) fn flows_counted(&mut self, counted: Result<FlowCount, String>, now: Now) {
        let count = match counted {
            Ok(count) => Some(count),
            Err(error) => {
                self.tell(Notice::FlowsUncounted { error });
                None
            }
        };
        if let Some(Stop::Asked { .. }) = self.offers.drain.stop {
            match count {
                Some(FlowCount { others: 0, .. }) => self.gone(Duration::ZERO),
                // what cannot be counted may be there
                count => self.hand_over(count.map(|count| count.others), now),
            }
        }
        let stops = self.offers.drain.stop.is_some();
        let State::Draining { since, left, .. } = &mut self.offers.drain.state else { return };
        *left = count.or(*left);
        let heard = now.mono.saturating_duration_since(*since) >= AT_LEAST;
        let over = count.is_some_and(|c| c.others == 0 && (stops || (c.own == 0 && heard)));
        if over {
            self.drained(now);
        }
    }

    /// What is due by `now`.
    pub(super) fn drain_timeout(&mut self, now: Now) {
        if self.offers.drain.due().is_none_or(|due| due > now.mono) {
            return;
        }
        if let Some(Stop::Asked { until }) = self.offers.drain.stop
            && until <= now.mono
        {
            // so many that they are not counted in time: they are there
            self.hand_over(None, now);
        }
        match &mut self.offers.drain.state {
            State::Draining { until, .. } if *until <= now.mono => self.drained(now),
            State::Drained { forget } if forget.is_some_and(|at| at <= now.mono) => {
                *forget = None;
                let forget = self.to_forget();
                self.outputs.push_back(Output::ForgetFlows(forget));
            }
            _ => {}
        }
    }

    /// A later call brings the end nearer, or farther, and does not count anew.
    fn begin_drain(&mut self, deadline: Duration, now: Now) {
        let (until, until_unix_ms) = (now.mono + deadline, now.unix_ms + deadline.as_millis() as u64);
        let (since, left) = match &self.offers.drain.state {
            State::Draining { since, left, .. } => (*since, *left),
            _ => (now.mono, None),
        };
        self.offers.drain.state = State::Draining { since, until, until_unix_ms, left };
        self.outputs.push_back(Output::CountFlows(Some(self.flow_watch())));
    }

    /// The node stops once its flows have ended, or are taken over.
    fn hand_over(&mut self, count: Option<u64>, now: Now) {
        self.offers.drain.stop = Some(Stop::HandsOver);
        self.tell(Notice::EgressHandover { count });
        self.begin_drain(STOP_DEADLINE, now);
        self.announce(false, now);
    }

    fn drained(&mut self, now: Now) {
        let State::Draining { left, .. } = self.offers.drain.state else { return };
        let stops = self.offers.drain.stop.is_some();
        let forget = (!stops).then(|| now.mono + FORGET_AFTER);
        self.offers.drain.state = State::Drained { forget };
        self.outputs.push_back(Output::CountFlows(None));
        self.tell(Notice::EgressDrained { count: left.map(|left| left.others + left.own) });
        self.announce(false, now);
        self.refresh(now);
        if stops {
            self.gone(STOP_GRACE);
        }
    }

    fn gone(&mut self, after: Duration) {
        self.offers.drain.stop = Some(Stop::Gone);
        self.outputs.push_back(Output::CountFlows(None));
        self.outputs.push_back(Output::Gone { after });
    }

    fn drain_changed(&mut self, now: Now) {
        self.announce(false, now);
        self.refresh(now);
        self.handle_timeout(now);
    }

    fn offered_networks(&self) -> Vec<NetworkName> {
        self.shared_networks().map(|n| n.name.clone()).collect()
    }

    /// Some other node could carry something of this network in place of this one.
    fn has_standby(&self, network: &NetworkName) -> bool {
        self.by_standby(network).iter().any(|(_, there)| *there)
    }

    /// Each of the destinations that this node carries to, and whether some other node could.
    fn by_standby(&self, network: &NetworkName) -> Vec<(Prefix, bool)> {
        let up = |peer: &Peer| peer.tunnel.as_ref().is_some_and(|tunnel| tunnel.silent.is_none());
        let offers = self.members.present().filter(|(_, peer)| up(peer));
        let offers = offers.filter_map(|(_, peer)| rib::part(peer, network)?.egress.as_ref());
        let offers = offers.filter(|offer| offer.condition == Condition::Healthy);
        let others: Vec<Prefix> = offers.flat_map(|offer| &offer.destinations).copied().collect();
        let own = rib::own_offer(&self.local, network, &self.offers).map(|offer| offer.destinations);
        let taken = |to: Prefix| (to, others.iter().any(|other| other.covers(&to)));
        own.into_iter().flatten().map(taken).collect()
    }

    fn without_standby(&self) -> Vec<String> {
        let text = |network: NetworkName| {
            let all = self.by_standby(&network);
            let alone: Vec<String> =
                all.iter().filter(|(_, there)| !there).map(|(to, _)| to.to_string()).collect();
            let what = match alone.len() {
                0 => return None,
                n if n == all.len() => format!("network {network}"),
                _ => format!("network {network} to {}", alone.join(", ")),
            };
            Some(format!(
                "no other node carries {what} at present: once this one is drained its VMs have no way out there"
            ))
        };
        self.offered_networks().into_iter().filter_map(text).collect()
    }

    /// Those for which this node offers egress.
    fn shared_networks(&self) -> impl Iterator<Item = &LocalNetwork> {
        self.local.networks.iter().filter(|n| rib::own_offer(&self.local, &n.name, &self.offers).is_some())
    }
}
