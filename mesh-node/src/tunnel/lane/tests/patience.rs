//! Who is waited for.
#![allow(clippy::disallowed_methods, reason = "an instant to count from")]

use std::time::{Duration, Instant};

use super::super::patience::{LONGEST, Patience};

/// Batches of the peer, 1 ms apart, of which each finds no room; `others` says how many others had by then. How long they waited.
fn waits(patience: &mut Patience, from: Instant, others: impl Fn(u64) -> u64) -> Vec<Duration> {
    let mut now = from;
    (0..50)
        .map(|batch| {
            now += Duration::from_millis(1);
            let wait = patience.of_batch(others(batch), || now);
            now += wait;
            patience.handle_full(others(batch), now);
            wait
        })
        .collect()
}

#[test]
fn a_peer_whose_packets_are_the_only_ones_is_waited_for() {
    let waits = waits(&mut Patience::default(), Instant::now(), |_| 7);
    assert!(waits.iter().all(|wait| *wait == LONGEST));
}

#[test]
fn a_peer_that_alone_is_slow_is_not() {
    let mut patience = Patience::default();
    let start = Instant::now();
    // others have one in five
    let seen = waits(&mut patience, start, |batch| batch / 5);
    assert!(seen[..5].iter().all(|wait| *wait == LONGEST), "{seen:?}");
    assert!(seen[5..].iter().all(Duration::is_zero), "{seen:?}");
    // once there is room for a while it is as all are
    let later = start + Duration::from_secs(3);
    assert_eq!(patience.of_batch(100, || later), LONGEST);
    assert_eq!(patience.of_batch(200, || panic!("no clock while nothing is slow")), LONGEST);
}

#[test]
fn others_that_have_stopped_sending_are_waited_for_no_more() {
    let mut patience = Patience::default();
    let start = Instant::now();
    waits(&mut patience, start, |batch| batch);
    let quiet = |after: u64| start + Duration::from_secs(after);
    patience.handle_full(49, quiet(2));
    assert_eq!(patience.of_batch(49, || quiet(2)), LONGEST);
    // and are there again
    assert_eq!(patience.of_batch(50, || quiet(2)), Duration::ZERO);
}
