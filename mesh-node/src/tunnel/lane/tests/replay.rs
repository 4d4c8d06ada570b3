//! What comes again.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::window::SIZE;
use super::*;

#[test]
fn a_replay_is_refused_within_the_window_at_its_edge_and_beyond_it() {
    let (mut a, mut b) = pair(Cipher::Aes128Gcm);
    let packets: Vec<_> = (0..SIZE + 2).map(|_| sealed(&mut a.sealer, b"packet")).collect();
    let last = packets.len() - 1;
    // 0 and 1 are held back
    for packet in &packets[2..last] {
        opened(&mut b.opener, packet).unwrap();
    }
    // the oldest that the window holds is taken late, and once
    assert!(opened(&mut b.opener, &packets[1]).is_ok());
    assert_eq!(opened(&mut b.opener, &packets[1]), Err(Refused::Duplicate));
    assert_eq!(opened(&mut b.opener, &packets[last / 2]), Err(Refused::Duplicate));
    opened(&mut b.opener, &packets[last]).unwrap();
    // it has slid over 1, which came, and over 0, which did not: neither may come now
    assert_eq!(opened(&mut b.opener, &packets[0]), Err(Refused::Replayed));
    assert_eq!(opened(&mut b.opener, &packets[1]), Err(Refused::Replayed));
}

#[test]
fn a_packet_far_ahead_leaves_nothing_of_the_window_and_its_copy_is_a_duplicate() {
    for cipher in Cipher::ALL {
        let (forger, mut opener) = forger(cipher);
        let mut arrives = |number| opened(&mut opener, &forger.seal(FIRST, number, b"")).map(drop);
        let edge = SIZE as u32;
        for number in 0..3 {
            arrives(number).unwrap();
        }
        arrives(u32::MAX).unwrap();
        assert_eq!(arrives(u32::MAX), Err(Refused::Duplicate));
        for number in [0, 2, 3, u32::MAX - edge] {
            assert_eq!(arrives(number), Err(Refused::Replayed), "{number}");
        }
        for number in [u32::MAX - edge + 1, u32::MAX - 1] {
            assert_eq!(arrives(number), Ok(()), "{number} is late, and in the window");
            assert_eq!(arrives(number), Err(Refused::Duplicate), "{number}");
        }
    }
}

#[test]
fn what_is_forged_moves_no_window() {
    let (forger, mut opener) = forger(Cipher::Aes128Gcm);
    opened(&mut opener, &forger.seal(FIRST, 0, b"packet")).unwrap();
    for number in [1, SIZE as u32 * 3, u32::MAX] {
        let mut packet = forger.seal(FIRST, number, b"packet");
        *packet.last_mut().unwrap() ^= 1;
        assert_eq!(opened(&mut opener, &packet), Err(Refused::Forged));
    }
    assert_eq!(opened(&mut opener, &forger.seal(FIRST, 1, b"packet")).unwrap(), b"packet");
    assert_eq!(opened(&mut opener, &forger.seal(FIRST, 0, b"packet")), Err(Refused::Duplicate));
}

/// Numbers near one another, at the edges of the window, and anywhere.
fn any_number() -> impl Strategy<Value = u32> {
    let near =
        prop_oneof![0..4u32, SIZE as u32 - 3..SIZE as u32 + 3, 2 * SIZE as u32 - 70..2 * SIZE as u32 + 70];
    prop_oneof![8 => near, 1 => any::<u32>(), 1 => u32::MAX - SIZE as u32 - 2..=u32::MAX]
}

proptest! {
    #[test]
    fn in_any_order_each_packet_is_opened_once_at_most_and_never_when_it_is_too_old(
        numbers in prop::collection::vec(any_number(), 1..200),
    ) {
        let (forger, mut opener) = forger(Cipher::Aes128Gcm);
        let mut seen = BTreeSet::new();
        for number in numbers {
            let too_old = seen.last().is_some_and(|newest| *newest >= number && newest - number >= SIZE as u32);
            let expected = match (too_old, seen.contains(&number)) {
                (true, _) => Err(Refused::Replayed),
                (false, true) => Err(Refused::Duplicate),
                (false, false) => Ok(number.to_be_bytes().to_vec()),
            };
            let packet = forger.seal(FIRST, number, &number.to_be_bytes());
            prop_assert_eq!(opened(&mut opener, &packet), expected, "{}", number);
            if !too_old {
                seen.insert(number);
            }
        }
    }
}
