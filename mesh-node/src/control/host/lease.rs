//! The lease: for how long the kernel of an egress node carries for others without a sign of life of its daemon. A daemon that
//! hangs or is frozen is silent to its peers, who go elsewhere; its kernel must then not go on in a role it no longer holds.
//!
//! ```text
//!  mesh-live ──packet on lo, mark of the network──► chain `renew` ──update──► set `lease`: mark, with a timeout
//!  TUN ◄──► uplink, mark of the network ──────────► chain `forward`: mark not in `lease`? drop, counted as `no_lease`
//! ```
//!
//! A packet renews, not a change of the set by netlink: each of those makes a new generation of everybody's rules, and a listing
//! that spans two generations begins anew. At this pace a large ruleset could hardly be listed any more, by anybody.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::{HostNetwork, MARK_MASK, egress_mark};
use crate::config::ProbeParams;

/// Name of the set.
const SET: &str = "lease";

/// How long a lease lasts, and how often it is renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term {
    /// How long peers bear silence.
    patience: Duration,
}

impl Term {
    /// Of a node that probes, and is probed, like this.
    pub fn new(probe: ProbeParams) -> Self {
        Self { patience: probe.interval * u32::from(probe.multiplier) }
    }

    /// Between two renewals.
    pub fn step(self) -> Duration {
        self.patience / 4
    }

    /// From a renewal to the end: a step more than the peers' patience, so that a daemon that comes late to renew has still
    /// done so before they give it up. A pause that they do not notice costs nothing.
    pub fn time(self) -> Duration {
        self.patience + self.step()
    }
}

impl Default for Term {
    fn default() -> Self {
        Self::new(ProbeParams::DEFAULT)
    }
}

/// What is to be kept: networks, by their marks, and for how long at a time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lease {
    /// Egress marks of the networks for which this node offers egress to others.
    pub marks: Vec<u32>,
    /// For all of them.
    pub term: Term,
}

/// What a renewal found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewed {
    /// The lease went on.
    InTime,
    /// There was none: it had run out, or our table was not there.
    Anew,
}

/// Says when to renew, and whether the lease had run out.
#[derive(Debug)]
pub struct Keeper {
    lease: Lease,
    next: Instant,
    last: Option<Instant>,
}

impl Keeper {
    /// With nothing to keep.
    pub fn new(now: Instant) -> Self {
        Self { lease: Lease::default(), next: now, last: None }
    }

    /// How long peers bear silence.
    pub fn patience(&self) -> Duration {
        self.lease.term.patience
    }

    /// What is to be kept from now on.
    pub fn keep(&mut self, lease: Lease, now: Instant) {
        if lease.marks.is_empty() {
            self.last = None;
        }
        self.lease = lease;
        self.next = now;
    }

    /// When a renewal is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        (!self.lease.marks.is_empty()).then_some(self.next)
    }

    /// The marks to renew, if it is time.
    pub fn poll_renewal(&mut self, now: Instant) -> Option<&[u32]> {
        self.poll_timeout().filter(|due| *due <= now)?;
        self.next = now + self.lease.term.step();
        Some(&self.lease.marks)
    }

    /// A renewal was done. Returns for how long there had been none, if the lease had run out because of that. One that was
    /// not there for another reason (somebody flushed the set) is as good as renewed.
    pub fn handle_renewed(&mut self, renewed: Renewed, now: Instant) -> Option<Duration> {
        let pause = now.saturating_duration_since(self.last.replace(now)?);
        // the kernel counts in ticks of up to 10 ms, and is early by as much
        (renewed == Renewed::Anew && pause > self.lease.term.patience).then_some(pause)
    }
}

/// The set. It comes with its elements, so that a new table begins with a lease.
pub(super) fn write_set(out: &mut String, lease: &Lease) -> std::fmt::Result {
    let time = lease.term.time().as_millis();
    let elements = lease.marks.iter().map(|mark| format!("{mark:#010x} timeout {time}ms"));
    let elements = elements.collect::<Vec<_>>().join(", ");
    writeln!(
        out,
        "\tset {SET} {{ type mark; flags dynamic,timeout; size 256; elements = {{ {elements} }}; }}"
    )
}

/// Chain `renew`, before connection tracking and anybody's rules for the host's own packets. A renewal in time is dropped,
/// which its sender sees as an error; one that had to begin anew goes on to the sender's own socket.
pub(super) fn renew_lines(lines: &mut Vec<String>, lease: &Lease) {
    let marks: Vec<String> = lease.marks.iter().map(|mark| format!("{mark:#010x}")).collect();
    let sent = format!("oifname \"lo\" meta l4proto udp meta mark {{ {} }}", marks.join(", "));
    let update = format!("update @{SET} {{ meta mark timeout {}ms }}", lease.term.time().as_millis());
    lines.push(format!("{sent} meta mark @{SET} {update} drop"));
    lines.push(format!("{sent} {update}"));
}

/// In chain `forward`: what is of the role, in both directions. What leaves from the own segment without the TUN is not.
pub(super) fn forward_lines(lines: &mut Vec<String>, network: &HostNetwork, tun: &str) {
    if network.offer.is_none() {
        return;
    }
    let mark = egress_mark(network.slot);
    for side in ["iifname", "oifname"] {
        lines.push(format!(
            "{side} {tun} meta mark & {MARK_MASK:#010x} == {mark:#010x} meta mark & {MARK_MASK:#010x} != @{SET} \
             counter name no_lease drop",
        ));
    }
}

/// A listing of our table without the set's elements: they come and go, and are renewed by themselves.
pub fn without_elements(listing: &str) -> String {
    let opening = format!("set {SET} {{");
    let Some((before, rest)) = listing.split_once(&opening) else { return listing.to_owned() };
    let Some((set, after)) = rest.split_once("\n\t}") else { return listing.to_owned() };
    let set = set.split_once("\n\t\telements").map_or(set, |(head, _)| head);
    format!("{before}{opening}{set}\n\t}}{after}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin of virtual time")]
    fn origin() -> Instant {
        Instant::now()
    }

    fn keeper(now: Instant) -> Keeper {
        let mut keeper = Keeper::new(now);
        keeper.keep(Lease { marks: vec![0x5000_0000], term: Term::default() }, now);
        keeper
    }

    #[test]
    fn nothing_to_keep_is_never_due() {
        let now = origin();
        let mut keeper = keeper(now);
        assert_eq!(keeper.poll_timeout(), Some(now));
        keeper.keep(Lease::default(), now);
        assert_eq!(keeper.poll_timeout(), None);
        assert_eq!(keeper.poll_renewal(now + 1000 * MS), None);
    }

    #[test]
    fn a_lease_that_ran_out_is_told_with_the_pause_and_one_that_was_flushed_is_not() {
        let start = origin();
        let mut keeper = keeper(start);
        assert_eq!(keeper.handle_renewed(Renewed::Anew, start), None, "the table is not there yet");
        assert_eq!(keeper.handle_renewed(Renewed::InTime, start + 37 * MS), None);
        assert_eq!(keeper.handle_renewed(Renewed::Anew, start + 74 * MS), None, "somebody flushed the set");
        assert_eq!(keeper.handle_renewed(Renewed::Anew, start + 874 * MS), Some(800 * MS));
        assert_eq!(keeper.handle_renewed(Renewed::InTime, start + 911 * MS), None, "told once");
    }

    #[test]
    fn the_elements_alone_are_left_out_of_a_listing() {
        let listing = "table inet mesh {\n\tset mesh4 {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.0/8 }\n\t}\n\n\
                       \tset lease {\n\t\ttype mark\n\t\tsize 256\n\t\tflags dynamic,timeout\n\
                       \t\telements = { 0x50000000 timeout 184ms,\n\t\t\t     0x51000000 timeout 184ms }\n\t}\n\n\
                       \tchain pre {\n\t\telements\n\t}\n}\n";
        let without = without_elements(listing);
        assert!(
            without.contains("elements = { 10.0.0.0/8 }") && without.contains("chain pre {\n\t\telements")
        );
        assert!(!without.contains("0x5"), "{without}");
        let gone = listing.replace(
            "\t\telements = { 0x50000000 timeout 184ms,\n\t\t\t     0x51000000 timeout 184ms }\n",
            "",
        );
        assert_eq!(without, without_elements(&gone), "whether they are there or not");
        assert_ne!(without, without_elements(&listing.replace("set lease", "set other")));
        assert_ne!(without, without_elements(&listing.replace("size 256", "size 1")));
    }

    proptest! {
        /// A thread that runs once within the peers' patience keeps the lease, whenever it runs.
        #[test]
        fn who_runs_in_time_never_loses_it(waits in proptest::collection::vec(0u64..150, 1..200)) {
            let mut now = origin();
            let mut keeper = keeper(now);
            let mut renewed = now;
            for wait in waits {
                now += wait as u32 * MS;
                prop_assert!(now - renewed < Term::default().time(), "run out after {:?}", now - renewed);
                if keeper.poll_renewal(now).is_some() {
                    renewed = now;
                }
            }
        }
    }
}
