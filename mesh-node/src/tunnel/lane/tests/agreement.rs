//! When a lane is made, announced and used.

use super::super::agreement::{Agreement, OutOfTurn, Step};
use super::*;

/// Each step of an agreement, without the keys.
fn said(steps: &[Step]) -> Vec<String> {
    let word = |step: &Step| match step {
        Step::Receive { number, .. } => format!("receive {number}"),
        Step::Announce(number) => format!("announce {number}"),
        Step::Send { number, .. } => format!("send {number}"),
    };
    steps.iter().map(word).collect()
}

#[test]
fn a_lane_is_sent_on_when_the_peer_can_receive_it_and_not_before() {
    let mut a = Agreement::new(ratchet(Side::Client));
    let mut b = Agreement::new(ratchet(Side::Server));
    assert_eq!(said(&a.start()), ["receive 0", "announce 0"]);
    assert!(a.start().is_empty());
    // b is not ready to take packets yet, and remembers
    assert!(said(&b.handle_ready(0).unwrap()).is_empty());
    assert_eq!(said(&b.start()), ["receive 0", "announce 0", "send 0"]);
    assert_eq!(said(&a.handle_ready(0).unwrap()), ["send 0"]);
    // a changes
    assert_eq!(said(&a.handle_half_used(0)), ["receive 1", "announce 1"]);
    assert!(a.handle_half_used(0).is_empty());
    assert_eq!(said(&b.handle_ready(1).unwrap()), ["receive 1", "announce 1", "send 1"]);
    assert_eq!(said(&a.handle_ready(1).unwrap()), ["send 1"]);
    // both at once
    assert_eq!(said(&a.handle_half_used(1)), ["receive 2", "announce 2"]);
    assert_eq!(said(&b.handle_half_used(1)), ["receive 2", "announce 2"]);
    assert_eq!(said(&a.handle_ready(2).unwrap()), ["send 2"]);
    assert_eq!(said(&b.handle_ready(2).unwrap()), ["send 2"]);
    // old news
    assert!(a.handle_half_used(1).is_empty());
}

#[test]
fn a_lane_out_of_turn_is_a_breach() {
    let mut a = Agreement::new(ratchet(Side::Client));
    assert_eq!(a.handle_ready(1).unwrap_err(), OutOfTurn(1));
    a.handle_ready(0).unwrap();
    assert_eq!(a.handle_ready(0).unwrap_err(), OutOfTurn(0));
    // two ahead of what this side has made
    assert_eq!(a.handle_ready(1).unwrap_err(), OutOfTurn(1));
    a.start();
    a.handle_ready(1).unwrap();
    assert_eq!(a.handle_ready(3).unwrap_err(), OutOfTurn(3));
}

#[test]
fn the_dialer_s_order_decides_among_what_both_have() {
    let all = Cipher::ALL.map(|c| c as u16);
    assert_eq!(Cipher::agreed(&all, &all), Some(Cipher::Aes128Gcm));
    assert_eq!(Cipher::agreed(&[0x1303, 0x1301], &all), Some(Cipher::ChaCha20Poly1305));
    assert_eq!(Cipher::agreed(&[0x1399, 0x1302], &[0x1399, 0x1302]), Some(Cipher::Aes256Gcm));
    assert_eq!(Cipher::agreed(&[0x1301], &[0x1302]), None);
    assert_eq!(Cipher::agreed(&[], &all), None);
}
