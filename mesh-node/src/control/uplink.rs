//! Whether an uplink carries: results of probes and the state of its link in, a verdict out. Driven by `io::uplink`.
//!
//! A fault is told at once; health only after it has lasted, so that an uplink that flaps does not flood the mesh with records.
//! Nothing is told before the link and every target are known; what holds until then is for `Offers` to say.

use std::time::{Duration, Instant};

use mesh_proto::record::UplinkFault;

use super::event::Now;
use crate::config::uplink::UplinkConfig;

/// Health that returns is told when it has lasted so long.
pub const HOLD: Duration = Duration::from_secs(1);

/// What is known of an uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Why it does not carry, and milliseconds from the last proof that it did until that was found.
    pub fault: Option<(UplinkFault, u32)>,
    /// Since when it is so, in milliseconds since 1970.
    pub since_unix_ms: u64,
    /// What does not answer, or what is wrong with the interface, in words; empty: nothing.
    pub text: String,
    /// Whether each target answers, in the order of the configuration.
    pub targets: Vec<bool>,
}

#[derive(Debug, Clone)]
struct Target {
    /// `None`: not yet known.
    up: Option<bool>,
    failures: u32,
    /// The last answer; before the first one, the start.
    answered: Instant,
    error: String,
}

/// The health of one uplink.
#[derive(Debug)]
pub struct Health {
    config: UplinkConfig,
    link: Option<bool>,
    targets: Vec<Target>,
    /// Since when everything is well.
    good_since: Option<Instant>,
    told: Option<Report>,
}

impl Health {
    /// Nothing is known yet.
    pub fn new(config: UplinkConfig, now: Instant) -> Self {
        let target = Target { up: None, failures: 0, answered: now, error: String::new() };
        let targets = vec![target; config.probe.len()];
        Self { config, link: None, targets, good_since: None, told: None }
    }

    /// The link carries, or does not. What answered over a link that is gone has to answer anew.
    pub fn handle_link(&mut self, up: bool, now: Instant) {
        if self.link == Some(up) {
            return;
        }
        if !up {
            for target in &mut self.targets {
                target.up = Some(false);
                target.error = "the link was down".into();
            }
        }
        self.link = Some(up);
        self.look(now);
    }

    /// A probe of a target was answered, or was not and why.
    pub fn handle_probe(&mut self, target: usize, result: Result<(), String>, now: Instant) {
        // an answer that was under way when the link went proves nothing of the link
        if self.link == Some(false) && result.is_ok() {
            return;
        }
        let Some(target) = self.targets.get_mut(target) else { return };
        match result {
            Ok(()) => {
                *target = Target { up: Some(true), failures: 0, answered: now, error: String::new() };
            }
            Err(error) => {
                target.failures = target.failures.saturating_add(1);
                if target.failures >= self.config.probe_count {
                    target.up = Some(false);
                    target.error = error;
                }
            }
        }
        self.look(now);
    }

    fn look(&mut self, now: Instant) {
        match self.fault(now) {
            Some(None) => self.good_since = self.good_since.or(Some(now)),
            _ => self.good_since = None,
        }
    }

    /// `None`: not known yet.
    fn fault(&self, now: Instant) -> Option<Option<(UplinkFault, u32)>> {
        if !self.link? {
            return Some(Some((UplinkFault::Link, 0)));
        }
        let down = self.targets.iter().filter(|t| t.up == Some(false));
        if let Some(answered) = down.map(|t| t.answered).min() {
            let for_ms = now.saturating_duration_since(answered).as_millis().min(u128::from(u32::MAX));
            return Some(Some((UplinkFault::Probe, for_ms as u32)));
        }
        self.targets.iter().all(|t| t.up == Some(true)).then_some(None)
    }

    fn text(&self) -> String {
        if self.link == Some(false) {
            return "the interface is missing, down or without carrier".into();
        }
        let down = self.config.probe.iter().zip(&self.targets).filter(|(_, t)| t.up == Some(false));
        let words = down.map(|(name, target)| format!("{name} does not answer ({})", target.error));
        words.collect::<Vec<_>>().join(", ")
    }

    /// What is new, if anything is.
    pub fn poll_report(&mut self, now: Now) -> Option<Report> {
        let fault = self.fault(now.mono)?;
        let targets: Vec<bool> = self.targets.iter().map(|t| t.up == Some(true)).collect();
        let told = self.told.as_ref();
        let recovers = fault.is_none() && told.is_some_and(|t| t.fault.is_some());
        if recovers && self.due().is_none_or(|due| due > now.mono) {
            return None;
        }
        let same = |t: &Report| t.fault.map(|f| f.0) == fault.map(|f| f.0) && t.targets == targets;
        if told.is_some_and(same) {
            return None;
        }
        let kept = told.filter(|t| t.fault.map(|f| f.0) == fault.map(|f| f.0));
        let report = Report {
            // of a fault that goes on, the measure of its beginning stays
            fault: kept.map_or(fault, |t| t.fault),
            since_unix_ms: kept.map_or(now.unix_ms, |t| t.since_unix_ms),
            text: self.text(),
            targets,
        };
        self.told = Some(report.clone());
        Some(report)
    }

    fn due(&self) -> Option<Instant> {
        Some(self.good_since? + HOLD)
    }

    /// When `poll_report` may have something new without an event.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due().filter(|_| self.told.as_ref().is_some_and(|t| t.fault.is_some()))
    }
}

#[cfg(test)]
mod tests;
