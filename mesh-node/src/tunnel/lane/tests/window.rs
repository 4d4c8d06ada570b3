//! Which numbers have been seen.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::window::{Arrival, Counts, REORDERING, SIZE, Window};

proptest! {
    /// Against a model that remembers everything.
    #[test]
    fn the_window_lets_each_number_in_once_and_counts_what_is_missing(
        jumps in prop::collection::vec((0u64..3, prop_oneof![0u64..20, 100u64..200, 8000u64..8400, 20_000u64..30_000]), 1..300),
    ) {
        let mut window = Window::default();
        let mut seen = BTreeSet::new();
        let (mut next, mut reordered) = (0u64, 0);
        for (kind, by) in jumps {
            let number = if kind == 0 { next.saturating_sub(by) } else { next + by };
            let arrival = window.arrived(number);
            if number < next && next - number > SIZE {
                prop_assert_eq!(arrival, Arrival::TooOld);
                continue;
            }
            prop_assert_eq!(arrival == Arrival::New, seen.insert(number));
            if arrival == Arrival::New && number < next {
                reordered += 1;
            }
            next = next.max(number + 1);
        }
        window.close();
        let counts = window.take_counts();
        prop_assert_eq!(counts.reordered, reordered);
        // what came after it had been called lost counts as both
        let missing = next - seen.len() as u64;
        prop_assert!(counts.lost >= missing && counts.lost <= missing + reordered);
    }
}

#[test]
fn a_gap_is_counted_once_it_is_no_mere_reordering() {
    let mut window = Window::default();
    for number in (0..=REORDERING + 10).filter(|n| *n != 3 && *n != 5) {
        window.arrived(number);
    }
    assert_eq!(window.take_counts(), Counts { lost: 2, reordered: 0 });
    // a late one is still taken, once
    assert_eq!((window.arrived(3), window.arrived(3)), (Arrival::New, Arrival::Duplicate));
    assert_eq!(window.take_counts(), Counts { lost: 0, reordered: 1 });
    window.arrived(REORDERING + 12);
    assert_eq!(window.take_counts(), Counts::default());
    window.close();
    assert_eq!(window.take_counts().lost, 1);
}
