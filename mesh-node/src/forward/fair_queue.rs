//! A queue that serves flows in turn (RFC 8290 section 4, without the CoDel part: what waits here leaves within milliseconds). A flow
//! that has little waiting is served before those that always have something; among these each has its share of bytes. The order
//! within a flow is kept.
//!
//! ```text
//!  push --by hash--> flow ──► new ── first QUANTUM bytes ──► old ──┐ in turn, QUANTUM bytes a round
//!                     ▲                                       └────┘
//!                     └────────── nothing waits ──────────────┘
//! ```

use std::collections::VecDeque;

/// Flows are told apart as far as these go; two that share one share its turn (RFC 8290 section 5.2).
const FLOWS: usize = 1024;

/// Bytes of a flow's turn: a superpacket is paid for with as many rounds as it is long.
const QUANTUM: i64 = 8 * 1024;

/// Room for so many items stays with a flow that has none.
const KEPT: usize = 64;

/// Items of flows, each with its cost in bytes.
#[derive(Debug)]
pub struct FairQueue<T> {
    flows: Vec<Flow<T>>,
    /// Flows that had nothing waiting when their first item came.
    new: VecDeque<usize>,
    old: VecDeque<usize>,
    len: usize,
}

#[derive(Debug)]
struct Flow<T> {
    items: VecDeque<(i64, T)>,
    credit: i64,
    /// It has a turn, `new` or `old`.
    listed: bool,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        let flow = || Flow { items: VecDeque::new(), credit: 0, listed: false };
        Self {
            flows: std::iter::repeat_with(flow).take(FLOWS).collect(),
            new: VecDeque::new(),
            old: VecDeque::new(),
            len: 0,
        }
    }
}

impl<T> FairQueue<T> {
    /// How many items wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Behind what waits of the same flow.
    pub fn push(&mut self, hash: u64, bytes: usize, item: T) {
        let at = hash as usize % FLOWS;
        let flow = &mut self.flows[at];
        flow.items.push_back((bytes as i64, item));
        self.len += 1;
        if !flow.listed {
            flow.listed = true;
            flow.credit = QUANTUM;
            self.new.push_back(at);
        }
    }

    /// What is next.
    pub fn pop(&mut self) -> Option<T> {
        loop {
            let is_new = !self.new.is_empty();
            let list = if is_new { &mut self.new } else { &mut self.old };
            let at = *list.front()?;
            let flow = &mut self.flows[at];
            if flow.credit <= 0 {
                flow.credit += QUANTUM;
                list.pop_front();
                self.old.push_back(at);
                continue;
            }
            if let Some((bytes, item)) = flow.items.pop_front() {
                flow.credit -= bytes;
                self.len -= 1;
                return Some(item);
            }
            list.pop_front();
            // one that comes back at once must not always be new (RFC 8290 section 4.2)
            if is_new && !self.old.is_empty() {
                self.old.push_back(at);
            } else {
                flow.listed = false;
                if flow.items.capacity() > KEPT {
                    flow.items = VecDeque::new();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BULK: usize = 65_000;

    #[test]
    fn a_flow_with_one_packet_passes_what_waits_of_a_bulky_one() {
        let mut queue = FairQueue::default();
        (0..10).for_each(|_| queue.push(1, BULK, "bulk"));
        assert_eq!(queue.pop(), Some("bulk"), "alone");
        queue.push(2, 100, "ping");
        assert_eq!(queue.pop(), Some("ping"));
        assert_eq!(queue.pop(), Some("bulk"));
        queue.push(2, 100, "ping");
        queue.push(3, 100, "dns");
        let next: Vec<_> = std::iter::from_fn(|| queue.pop()).take(3).collect();
        assert!(next.contains(&"ping") && next.contains(&"dns"), "{next:?}");
        assert_eq!(queue.len(), 7);
        assert_eq!(std::iter::from_fn(|| queue.pop()).count(), 7);
        assert!(queue.is_empty() && queue.pop().is_none());
    }

    #[test]
    fn flows_that_always_have_something_share_the_bytes() {
        let mut queue = FairQueue::default();
        let sizes = [BULK, 9_000, 100];
        let mut served = [0; 3];
        for flow in 0..3 {
            queue.push(flow, sizes[flow as usize], flow as usize);
        }
        for _ in 0..20_000 {
            let flow = queue.pop().unwrap();
            served[flow] += sizes[flow];
            queue.push(flow as u64, sizes[flow], flow);
        }
        let (least, most) = (served.iter().min().unwrap(), served.iter().max().unwrap());
        assert!(most - least <= 3 * BULK, "{served:?}");
    }

    #[test]
    fn a_flow_that_comes_back_at_once_does_not_starve_the_others() {
        let mut queue = FairQueue::default();
        (0..4).for_each(|_| queue.push(1, 1_000, 1));
        let mut others = 0;
        for _ in 0..1_000 {
            queue.push(2, QUANTUM as usize, 2);
            others += u64::from(queue.pop() == Some(1));
        }
        assert_eq!(others, 4);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_each_flow_keeps_its_order(
            steps in prop::collection::vec((0u64..6, 1usize..70_000, any::<bool>()), 1..300),
        ) {
            let mut queue = FairQueue::default();
            let mut waiting: [VecDeque<usize>; 6] = Default::default();
            for (number, (flow, bytes, pops)) in steps.into_iter().enumerate() {
                queue.push(flow, bytes, (flow, number));
                waiting[flow as usize].push_back(number);
                if pops {
                    let (flow, number) = queue.pop().unwrap();
                    prop_assert_eq!(waiting[flow as usize].pop_front(), Some(number));
                }
                prop_assert_eq!(queue.len(), waiting.iter().map(VecDeque::len).sum::<usize>());
            }
            while let Some((flow, number)) = queue.pop() {
                prop_assert_eq!(waiting[flow as usize].pop_front(), Some(number));
            }
            prop_assert!(waiting.iter().all(VecDeque::is_empty));
        }
    }
}
