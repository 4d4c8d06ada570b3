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

use std::net::IpAddr;
use std::time::{Duration, Instant};

use mesh_proto::identity::rfc3339_ms;
use mesh_proto::ip::transport;
use mesh_proto::record::Condition;
use mesh_proto::{NetworkName, Prefix, api};

use super::event::{LocalNetwork, Now, Output};
use super::host::egress_mark;
use super::{Control, kernel, rib};
use crate::config::EgressChoice;
use crate::notice::Notice;

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

/// Tracked connections that end with a drain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forget {
    /// Egress mark of the network.
    pub mark: u32,
    /// Sources of this host's own VMs that leave without the TUN. Their TCP connections were not seen by those who reset: the kernel
    /// answers their next packet with a RST (see `host::ruleset`), and needs the entry for that.
    pub unmapped: Vec<Prefix>,
    /// This host's own VMs leave by it, drained or not: these sources stay.
    pub stay: Vec<Prefix>,
}

impl Forget {
    /// Whether a connection is one of them.
    pub fn has(&self, source: IpAddr, protocol: u8) -> bool {
        let reset = protocol == transport::TCP && within(&self.unmapped, source);
        !(within(&self.stay, source) || reset)
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
    /// Whether it is in progress: TCP that has not closed, and all else that has not been quiet.
    pub fn in_progress(&self, timeouts: &Timeouts) -> bool {
        const SYN_SENT: u8 = 1;
        const LAST_ACK: u8 = 6;
        const TIME_WAIT: u8 = 7;
        let full = match (self.protocol, self.tcp_state) {
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
                Some(FlowCount { others, .. }) if others > 0 => self.hand_over(Some(others), now),
                _ => self.gone(Duration::ZERO),
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

    /// Some other node could carry this network.
    fn has_standby(&self, network: &NetworkName) -> bool {
        self.members.present().any(|(_, peer)| {
            let up = peer.tunnel.as_ref().is_some_and(|tunnel| tunnel.silent.is_none());
            let record = peer.record.as_ref().filter(|_| up);
            let mut parts = record.iter().flat_map(|r| &r.record.networks).filter(|n| n.name == *network);
            parts.any(|n| n.egress.as_ref().is_some_and(|e| e.condition == Condition::Healthy))
        })
    }

    fn without_standby(&self) -> Vec<String> {
        let alone = self.offered_networks().into_iter().filter(|network| !self.has_standby(network));
        let text = |network| {
            format!(
                "no other node carries network {network} at present: once this one is drained its VMs have no way out"
            )
        };
        alone.map(text).collect()
    }

    fn flow_watch(&self) -> FlowWatch {
        let marks = self.shared_networks().map(|n| egress_mark(n.ix.0)).collect();
        let (stay, own): (Vec<_>, Vec<_>) = self.local.networks.iter().partition(|n| self.leaves_local(n));
        FlowWatch {
            marks,
            own: own.into_iter().flat_map(sources).collect(),
            stay: stay.into_iter().flat_map(sources).collect(),
        }
    }

    /// Those for which this node offers egress.
    fn shared_networks(&self) -> impl Iterator<Item = &LocalNetwork> {
        self.local.networks.iter().filter(|n| rib::own_offer(&self.local, &n.name, &self.offers).is_some())
    }

    /// Its own VMs use this host whether it is drained or not, with the mark of those who share it.
    fn leaves_local(&self, network: &LocalNetwork) -> bool {
        network.egress == EgressChoice::Local || self.roles.has_fallen_back(&network.name)
    }

    /// What is not in progress any more.
    fn to_forget(&self) -> Vec<Forget> {
        let one = |network: &LocalNetwork| Forget {
            mark: egress_mark(network.ix.0),
            unmapped: kernel::unmapped(network),
            stay: if self.leaves_local(network) { sources(network) } else { Vec::new() },
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
