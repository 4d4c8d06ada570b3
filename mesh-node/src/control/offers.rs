//! How this node's own offers of egress are: what it tells of them to those who would use them.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::NetworkName;
use mesh_proto::record::{Condition, UplinkFault};

use super::Control;
use super::drain::Drain;
use super::event::Now;
use super::status::moment;
use super::uplink::Report;
use crate::config::EgressConfig;
use crate::config::uplink::UplinkConfig;
use crate::notice::Notice;

/// What keeps own offers from being used.
#[derive(Debug, Default)]
pub struct Offers {
    /// What is known of own uplinks. One that a reload has replaced stays until its successor is known.
    uplinks: BTreeMap<UplinkConfig, Report>,
    /// Why the lease of all of them cannot be renewed: the kernel drops what it would carry for others.
    lease_fault: Option<String>,
    /// The operator, or a stop, takes all of them out of use.
    pub drain: Drain,
    /// Networks whose own VMs have moved from an uplink that does not carry.
    pub(super) moved: BTreeSet<NetworkName>,
}

impl Offers {
    /// What is told of an offer. Without a word of an uplink yet, one without targets carries; one with targets has first to
    /// show it, except where it is known to carry by what was asked of it before a reload.
    pub fn condition(&self, offer: &EgressConfig) -> Condition {
        let fault = match self.uplinks.get(&offer.uplink) {
            _ if self.lease_fault.is_some() => Some((UplinkFault::Kernel, 0)),
            Some(report) => report.fault,
            None if offer.uplink.probe.is_empty() => None,
            None => {
                let mut former = self.uplinks.iter().filter(|(u, _)| u.interface == offer.interface);
                let carries = former.any(|(_, report)| report.fault.is_none());
                (!carries).then_some((UplinkFault::Probe, 0))
            }
        };
        let uplink =
            fault.map_or(Condition::Healthy, |(fault, for_ms)| Condition::UplinkDown { fault, for_ms });
        // the worse of both
        uplink.max(self.drain.condition())
    }
}

impl Control {
    pub(super) fn uplink(&mut self, uplink: UplinkConfig, report: Report, now: Now) {
        if !self.local.egress.iter().any(|e| e.uplink == uplink) {
            return;
        }
        let known = &mut self.offers.uplinks;
        let before = known.get(&uplink).map(|r| r.fault);
        let told = match (before.flatten(), report.fault) {
            (None, Some(fault)) => Some(Notice::UplinkDown {
                interface: uplink.interface.clone(),
                text: report.text.clone(),
                elapsed_ms: u64::from(fault.1),
            }),
            (Some(_), None) => Some(Notice::UplinkUp { interface: uplink.interface.clone() }),
            _ => None,
        };
        let changed = before != Some(report.fault);
        known.insert(uplink, report);
        known.retain(|uplink, _| self.local.egress.iter().any(|e| e.uplink == *uplink));
        if let Some(notice) = told {
            self.tell(notice);
        }
        if changed {
            self.announce(false, now);
        }
    }

    pub(super) fn lease_renewed(&mut self, renewed: Result<(), String>, now: Now) {
        self.offers.lease_fault = renewed.err();
        if let Some(error) = self.offers.lease_fault.clone() {
            self.tell(Notice::LeaseNotRenewed { error });
        }
        self.announce(false, now);
    }

    /// Each own uplink that does not carry, in words.
    pub(super) fn uplink_reasons(&self) -> Vec<String> {
        let down = self.offers.uplinks.iter().filter(|(_, report)| report.fault.is_some());
        let lease = self.offers.lease_fault.iter().map(|error| {
            format!("the kernel carries no egress for others: the lease cannot be renewed: {error}; is the device lo up?")
        });
        lease
            .chain(down.map(|(uplink, report)| {
                let since = moment(report.since_unix_ms);
                format!(
                    "uplink {}: {} since {since}: this node carries no egress",
                    uplink.interface, report.text
                )
            }))
            .collect()
    }

    /// Whether each probed target answers; one that several uplinks ask answers where all of them say so.
    pub fn probe_gauges(&self) -> Vec<(String, bool)> {
        let mut all: BTreeMap<String, bool> = BTreeMap::new();
        for uplink in self.local.egress.iter().map(|e| &e.uplink) {
            let report = self.offers.uplinks.get(uplink);
            for (i, target) in uplink.probe.iter().enumerate() {
                let up = report.and_then(|r| r.targets.get(i)).copied().unwrap_or(false);
                *all.entry(target.to_string()).or_insert(true) &= up;
            }
        }
        all.into_iter().collect()
    }
}
