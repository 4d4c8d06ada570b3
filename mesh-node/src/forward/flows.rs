//! Which egress node carries which flow: a bounded table of the node that sends, for what goes to the Internet only. A flow
//! stays with its egress node as long as that one carries, elected or not: moved, it would have another source address.
//!
//! ```text
//!   new ──► the elected, by rendezvous hashing ──► pinned ──► its egress fails: elected anew
//!                                                    │  └───► it ends, or is idle for too long: forgotten
//!                                                    └──────► its egress is drained: TCP is reset, all else elected anew
//! ```
//!
//! One table a network: who shares it among outbound threads gives [`FlowAccess`]. Only packets of the VMs are seen here, not the
//! answers.
//! 8192 sets of 8 flows, so that each packet costs the same whatever an attacker sends. A full set makes room by giving up
//! what has ended, then what has only begun, then the idlest; a flow in use is never given up, and one that finds no room goes
//! by the election, unpinned, and is counted.

use std::net::IpAddr;

use mesh_proto::Prefix;
use mesh_proto::ip::{Fragment, Layout, transport};

use super::fib::{Egress, EgressVia, NetworkFib};
use key::{Key, Parts};

mod access;
mod key;
pub mod reset;
#[cfg(test)]
mod tests;

pub use access::FlowAccess;
pub use reset::Reset;

/// Seconds since any fixed moment.
pub type Seconds = u32;

/// Flows in a set, and sets: 64 Ki flows in all, 64 bytes each.
const WAYS: usize = 8;
const SETS: usize = 8192;

/// Idle times after which a flow is forgotten. Answers, which keep it alive at the egress node, are not seen here: not shorter than
/// Linux's conntrack there, TCP excepted, which that keeps for five days.
///
/// TCP: RFC 5382 REQ-5 (2 h 4 min, just longer than the usual keep-alive), and for one that opens or closes 4 min.
pub const TCP_IDLE: Seconds = 7440;
const TCP_TRANSITORY: Seconds = 240;
/// UDP: RFC 4787 REQ-5 recommends 5 min; one packet alone asks for one answer.
const UDP_IDLE: Seconds = 300;
const UDP_SINGLE: Seconds = 60;
/// Conntrack's for ICMP, and for all else (10 min).
const ICMP_IDLE: Seconds = 30;
const OTHER_IDLE: Seconds = 600;
/// After a RST, and after a reset of ours: repetitions are still on their way.
const ENDED: Seconds = 10;
const RESET: Seconds = 60;

/// A flow used within this time is not given up for a new one.
const IN_USE: Seconds = 60;

/// A TCP flow that the VM has closed, and that has been idle since, has most likely ended: the other side has closed as well. It
/// may as well be one that waits for its answer, so that it is reset, but is not told of.
const CLOSED: Seconds = 2;

/// Nor is one that has said little since: it has acknowledged what was on its way, and the other side's FIN.
const LAST_WORDS: u8 = 3;

/// Sets looked through for idle flows each second: all of them within 16 s.
const SWEEP: usize = SETS / 16;

/// How far a flow has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// One packet, or SYNs only.
    Opening,
    /// In use.
    Open,
    /// The VM has sent its FIN; answers may come for long.
    Closing,
    /// The VM has sent a RST.
    Ended,
    /// We have reset it: its egress is drained.
    Reset,
}

/// What becomes of a packet to the Internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By this egress.
    Egress(Egress),
    /// Nowhere: its egress is drained, and the VM is to be told by a RST.
    Reset,
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    key: Key,
    egress: Egress,
    last: Seconds,
    /// TCP: next sequence number of the VM, and what it has acknowledged.
    sequence: u32,
    acknowledged: u32,
    state: State,
    /// Segments of the VM since its FIN, as far as can be counted.
    closing: u8,
    /// Where it is counted, while it is.
    group: u16,
}

/// How many flows in progress to a destination, as egress nodes are elected for it, stay with an egress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pinned {
    /// The destination.
    pub to: Prefix,
    /// By which they leave.
    pub egress: Egress,
    /// How many.
    pub flows: u64,
}

impl Flow {
    const NONE: Self = Self {
        key: Key::NONE,
        egress: Egress::Own,
        last: 0,
        sequence: 0,
        acknowledged: 0,
        state: State::Ended,
        closing: 0,
        group: 0,
    };

    fn limit(&self) -> Seconds {
        match (self.state, self.key.protocol()) {
            (State::Ended, _) => ENDED,
            (State::Reset, _) => RESET,
            (State::Open, transport::TCP) => TCP_IDLE,
            (_, transport::TCP) => TCP_TRANSITORY,
            (State::Opening, transport::UDP) => UDP_SINGLE,
            (_, transport::UDP) => UDP_IDLE,
            (_, transport::ICMP | transport::ICMPV6) => ICMP_IDLE,
            _ => OTHER_IDLE,
        }
    }

    fn idle(&self, now: Seconds) -> Seconds {
        now.saturating_sub(self.last)
    }

    fn expired(&self, now: Seconds) -> bool {
        self.idle(now) > self.limit()
    }

    /// Whether it is in progress, as the operator counts.
    fn counts(&self) -> bool {
        matches!(self.state, State::Opening | State::Open)
    }

    /// Follows one more packet.
    fn see(&mut self, parts: &Parts, now: Seconds) {
        if let Some(tcp) = parts.tcp {
            let newer = tcp.end.wrapping_sub(self.sequence) as i32 > 0;
            if newer {
                self.sequence = tcp.end;
            }
            if let Some(acknowledged) = tcp.acknowledged {
                self.acknowledged = acknowledged;
            }
            if self.state == State::Closing && !tcp.fin {
                self.closing = self.closing.saturating_add(1);
            }
            self.state = match self.state {
                State::Reset => State::Reset,
                _ if tcp.rst => State::Ended,
                State::Ended => State::Ended,
                _ if tcp.fin => State::Closing,
                State::Closing => State::Closing,
                _ if tcp.syn => self.state,
                _ => State::Open,
            };
        } else if now > self.last && self.state == State::Opening {
            self.state = State::Open;
        }
        self.last = now;
    }
}

/// The flows of one network.
#[derive(Debug)]
pub struct Flows {
    /// By set and way: a part of the hash, 0 where there is none.
    tags: Vec<[u16; WAYS]>,
    flows: Vec<Flow>,
    /// Unknown to VMs: whoever knew it could fill one set.
    seed: u64,
    /// Flows in progress.
    counts: Vec<Pinned>,
    overflows: u64,
    /// Where sweeping, and evacuating, goes on.
    swept: usize,
    evacuated: usize,
    /// Those that were drained when all sets were last looked through.
    evacuated_of: Vec<Egress>,
    /// Resets begun by a packet of the flow, before it was evacuated.
    begun: Vec<Reset>,
    /// The last second swept in.
    ticked: Seconds,
}

impl Flows {
    /// An empty table; memory comes with the first flow. `seed` is chance.
    pub fn new(seed: u64) -> Self {
        Self {
            tags: Vec::new(),
            flows: Vec::new(),
            seed,
            counts: Vec::new(),
            overflows: 0,
            swept: 0,
            evacuated: 0,
            evacuated_of: Vec::new(),
            begun: Vec::new(),
            ticked: 0,
        }
    }

    /// Where a packet to the Internet goes. `via`: the elected for its destination; empty: nobody.
    pub fn way(
        &mut self,
        net: &NetworkFib,
        packet: &[u8],
        layout: &Layout,
        via: &[EgressVia],
        now: Seconds,
    ) -> Option<Way> {
        let Some(parts) = Parts::of(packet, layout) else {
            return via.first().map(|member| Way::Egress(member.egress));
        };
        if self.flows.is_empty() {
            self.tags = vec![[0; WAYS]; SETS];
            self.flows = vec![Flow::NONE; SETS * WAYS];
        }
        let way = self.follow(net, &parts, via, now)?;
        if let (Way::Egress(egress), Fragment::First) = (way, layout.fragment) {
            // those that come after it have no ports
            self.set(net, &parts.key.without_ports(), egress, now);
        }
        Some(way)
    }

    fn follow(&mut self, net: &NetworkFib, parts: &Parts, via: &[EgressVia], now: Seconds) -> Option<Way> {
        let hash = parts.key.hash(self.seed);
        let elect = || rendezvous(via, || parts.key.addresses());
        let Some(place) = self.find(&parts.key, hash) else {
            let egress = elect()?;
            if !parts.about_another {
                self.add(net, parts, hash, egress, now);
            }
            return Some(Way::Egress(egress));
        };
        let flow = &mut self.flows[place];
        let carries = elected(via, flow.egress) || net.holds(flow.egress, parts.key.addresses().1);
        if parts.about_another {
            return if carries { Some(Way::Egress(flow.egress)) } else { elect().map(Way::Egress) };
        }
        let over = flow.expired(now) || (parts.opens() && flow.state != State::Opening);
        if flow.state == State::Reset && !over {
            // an answer to our RST, or one that is older than it
            let told = parts.tcp.is_some_and(|tcp| tcp.rst);
            flow.see(parts, now);
            return Some(if told { Way::Egress(flow.egress) } else { Way::Reset });
        }
        if carries && !over {
            let counted = flow.counts();
            flow.see(parts, now);
            let flow = *flow;
            if counted && !flow.counts() {
                self.uncount(flow.group);
            }
            return Some(Way::Egress(flow.egress));
        }
        if !over && flow.is_to_be_reset() && net.spec().egress_drained.contains(&flow.egress) {
            let (group, counted, in_progress) = (flow.group, flow.counts(), flow.in_progress(now));
            flow.state = State::Reset;
            flow.see(parts, now);
            // the VM is told at once, and the server with the flows that are evacuated
            self.begun.push(flow.reset(in_progress));
            if counted {
                self.uncount(group);
            }
            return Some(Way::Reset);
        }
        self.remove(place);
        let egress = elect()?;
        self.add(net, parts, hash, egress, now);
        Some(Way::Egress(egress))
    }

    /// Forgets the flow of a packet: it begins anew, where it is not seen here.
    pub fn forget(&mut self, packet: &[u8], layout: &Layout) {
        let found =
            Parts::of(packet, layout).and_then(|parts| self.find(&parts.key, parts.key.hash(self.seed)));
        found.into_iter().for_each(|place| self.remove(place));
    }

    /// Each second: forgets what is idle, some sets at a time. True when that second has begun.
    pub fn tick(&mut self, now: Seconds) -> bool {
        if now == self.ticked {
            return false;
        }
        self.ticked = now;
        if !self.flows.is_empty() {
            for set in self.swept..self.swept + SWEEP {
                for place in (set * WAYS)..(set + 1) * WAYS {
                    if self.is_taken(place) && self.flows[place].expired(now) {
                        self.remove(place);
                    }
                }
            }
            self.swept = (self.swept + SWEEP) % SETS;
        }
        true
    }

    /// Takes flows from egress nodes that are drained, at most `limit` resets a call, and gives the resets of those that would
    /// hang. True when none is left.
    pub fn evacuate(
        &mut self,
        drained: &[Egress],
        now: Seconds,
        limit: usize,
        resets: &mut Vec<Reset>,
    ) -> bool {
        resets.append(&mut self.begun);
        let counted = self.counts.iter().any(|pinned| pinned.flows > 0 && drained.contains(&pinned.egress));
        if !counted && self.evacuated == 0 && self.evacuated_of == drained {
            return true;
        }
        if self.flows.is_empty() || drained.is_empty() {
            self.evacuated = 0;
            self.evacuated_of = drained.to_vec();
            return true;
        }
        while self.evacuated < SETS {
            if resets.len() >= limit {
                return false;
            }
            for place in (self.evacuated * WAYS)..(self.evacuated + 1) * WAYS {
                let flow = &mut self.flows[place];
                if self.tags[self.evacuated][place % WAYS] == 0
                    || flow.state == State::Reset
                    || !drained.contains(&flow.egress)
                {
                    continue;
                }
                if !flow.expired(now) && flow.is_to_be_reset() {
                    let (group, counted) = (flow.group, flow.counts());
                    resets.push(flow.reset(flow.in_progress(now)));
                    flow.state = State::Reset;
                    flow.last = now;
                    if counted {
                        self.uncount(group);
                    }
                } else {
                    self.remove(place);
                }
            }
            self.evacuated += 1;
        }
        self.evacuated = 0;
        self.evacuated_of = drained.to_vec();
        true
    }

    /// Flows in progress by destination and egress.
    pub fn counts(&self) -> &[Pinned] {
        &self.counts
    }

    /// Resets wait for the next evacuation.
    pub fn has_resets(&self) -> bool {
        !self.begun.is_empty()
    }

    /// Whether there is any.
    pub fn is_empty(&self) -> bool {
        self.counts.iter().all(|pinned| pinned.flows == 0)
    }

    /// Takes the number of flows that found no room, or lost it while in use, since the last call.
    pub fn take_overflows(&mut self) -> u64 {
        std::mem::take(&mut self.overflows)
    }

    fn is_taken(&self, place: usize) -> bool {
        self.tags[place / WAYS][place % WAYS] != 0
    }

    fn find(&self, key: &Key, hash: u64) -> Option<usize> {
        let (set, tag) = (set_of(hash), tag_of(hash));
        let tags = self.tags.get(set)?;
        (0..WAYS)
            .find(|way| tags[*way] == tag && self.flows[set * WAYS + way].key == *key)
            .map(|w| set * WAYS + w)
    }

    fn add(&mut self, net: &NetworkFib, parts: &Parts, hash: u64, egress: Egress, now: Seconds) {
        let mut flow = Flow { key: parts.key, egress, last: now, state: State::Opening, ..Flow::NONE };
        if let Some(tcp) = parts.tcp {
            flow.sequence = tcp.end;
            flow.see(parts, now);
            // one packet is cheap to forge
            flow.state = if flow.state == State::Open { State::Opening } else { flow.state };
        }
        // the end of a flow that we do not know opens none
        if flow.counts() {
            self.put(net, flow, hash, now);
        }
    }

    fn set(&mut self, net: &NetworkFib, key: &Key, egress: Egress, now: Seconds) {
        let hash = key.hash(self.seed);
        match self.find(key, hash) {
            Some(place) if self.flows[place].egress == egress => self.flows[place].last = now,
            found => {
                found.into_iter().for_each(|place| self.remove(place));
                let flow = Flow { key: *key, egress, last: now, state: State::Opening, ..Flow::NONE };
                self.put(net, flow, hash, now);
            }
        }
    }

    /// Puts a flow in progress where there is room, or where it can be made.
    fn put(&mut self, net: &NetworkFib, mut flow: Flow, hash: u64, now: Seconds) {
        let set = set_of(hash);
        let free = self.tags[set].iter().position(|tag| *tag == 0);
        let way = free.or_else(|| {
            let worth = |way: &usize| {
                let flow = &self.flows[set * WAYS + way];
                let class = if flow.expired(now) {
                    0
                } else if flow.under_way() || flow.state == State::Reset {
                    2
                } else {
                    1
                };
                (class, std::cmp::Reverse(flow.idle(now)))
            };
            (0..WAYS).min_by_key(worth)
        });
        let Some(way) = way else { return };
        let place = set * WAYS + way;
        if free.is_none() {
            let there = &self.flows[place];
            if !there.expired(now) {
                self.overflows += u64::from(there.counts() || there.under_way());
                if there.under_way() && there.idle(now) < IN_USE {
                    return;
                }
            }
            self.remove(place);
        }
        flow.group = self.count(net.egress_prefix(flow.key.addresses().1), flow.egress);
        self.tags[set][way] = tag_of(hash);
        self.flows[place] = flow;
    }

    fn remove(&mut self, place: usize) {
        let flow = self.flows[place];
        self.tags[place / WAYS][place % WAYS] = 0;
        if flow.counts() {
            self.uncount(flow.group);
        }
    }

    /// Counts one more, and says where. A place that nothing is counted in any more is taken for another.
    fn count(&mut self, to: Prefix, egress: Egress) -> u16 {
        let same = |pinned: &Pinned| pinned.to == to && pinned.egress == egress;
        let at = self.counts.iter().position(same);
        let at = at.or_else(|| self.counts.iter().position(|pinned| pinned.flows == 0));
        let at = at.unwrap_or(self.counts.len());
        let Ok(group) = u16::try_from(at) else { return u16::MAX };
        let flows = self.counts.get(at).map_or(0, |pinned| pinned.flows) + 1;
        let pinned = Pinned { to, egress, flows };
        match self.counts.get_mut(at) {
            Some(place) => *place = pinned,
            None => self.counts.push(pinned),
        }
        group
    }

    fn uncount(&mut self, group: u16) {
        if let Some(pinned) = self.counts.get_mut(usize::from(group)) {
            pinned.flows = pinned.flows.saturating_sub(1);
        }
    }
}

impl Flow {
    /// More than begun, and more than about to end: a download after the VM's FIN is.
    fn under_way(&self) -> bool {
        self.state == State::Open || (self.state == State::Closing && self.closing > LAST_WORDS)
    }

    /// May hang without a word: a TCP flow under way, also one that only the VM has closed.
    fn is_to_be_reset(&self) -> bool {
        let tcp = self.key.protocol() == transport::TCP && self.key.has_ports();
        tcp && matches!(self.state, State::Open | State::Closing)
    }

    /// Its reset breaks something, for all that is seen of it.
    fn in_progress(&self, now: Seconds) -> bool {
        self.state != State::Closing || (self.closing > LAST_WORDS && self.idle(now) <= CLOSED)
    }

    fn reset(&self, in_progress: bool) -> Reset {
        let mut reset = Reset::of(&self.key, self.egress, self.sequence, self.acknowledged);
        reset.in_progress = in_progress;
        reset
    }
}

fn set_of(hash: u64) -> usize {
    hash as usize % SETS
}

/// Never 0.
fn tag_of(hash: u64) -> u16 {
    ((hash >> 48) as u16) | 1
}

fn elected(via: &[EgressVia], egress: Egress) -> bool {
    // where flows are spread as well: a change of who else carries moves none
    via.iter().any(|member| member.egress == egress)
}

/// Tells flows apart for a queue: of the headers of a packet, or of a superpacket, whose rest may be elsewhere. The fragments of a packet
/// are of one flow, which is not that of whole packets.
pub fn hash(headers: &[u8], seed: u64) -> u64 {
    let Ok(layout) = Layout::of_quoted(headers) else { return 0 };
    let key = Key::of(headers, &layout);
    let whole = layout.fragment == Fragment::Whole;
    key.map_or(0, |key| if whole { key } else { key.without_ports() }.hash(seed))
}

/// The member that a flow between these addresses goes to: the one with the highest hash, so that the loss of one moves only
/// its own (Thaler and Ravishankar, 1998). Nodes with the same members decide the same.
pub fn rendezvous(via: &[EgressVia], addresses: impl FnOnce() -> (IpAddr, IpAddr)) -> Option<Egress> {
    match via {
        [] => None,
        [one] => Some(one.egress),
        many => {
            let addresses = addresses();
            let weight = |member: &&EgressVia| (key::weigh(member.key, addresses), member.key);
            many.iter().max_by_key(weight).map(|member| member.egress)
        }
    }
}
