//! What opens, and what does not.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::seal::Spent;
use super::super::window::Counts;
use super::*;

#[test]
fn what_one_side_seals_the_other_opens_with_every_cipher_both_ways() {
    for cipher in Cipher::ALL {
        let (mut a, mut b) = pair(cipher);
        for payload in [&b""[..], b"x", &[1; 1400]] {
            let there = sealed(&mut a.sealer, payload);
            assert_eq!(LaneId::claimed(&there), Some(b.id));
            assert_eq!(opened(&mut b.opener, &there).unwrap(), payload);
            let back = sealed(&mut b.sealer, payload);
            assert_eq!(LaneId::claimed(&back), Some(a.id));
            assert_eq!(opened(&mut a.opener, &back).unwrap(), payload);
        }
    }
}

#[test]
fn every_bit_of_a_packet_and_each_of_its_bytes_counts_with_every_cipher_both_ways() {
    for cipher in Cipher::ALL {
        let (mut a, mut b) = pair(cipher);
        // without a frame, of a few bytes, and longer than any block of a cipher
        for payload in [&b""[..], b"a packet of some bytes", &[0; 300]] {
            for (from, to) in [(&mut a.sealer, &mut b.opener), (&mut b.sealer, &mut a.opener)] {
                let packet = sealed(from, payload);
                let mut refused = |other: &[u8], what: &str, at: usize| {
                    assert_eq!(opened(to, other), Err(Refused::Forged), "{cipher:?}: {what} {at}");
                };
                for bit in 0..packet.len() * 8 {
                    let mut other = packet.clone();
                    other[bit / 8] ^= 1 << (bit % 8);
                    refused(&other, "bit", bit);
                }
                for len in 0..packet.len() {
                    refused(&packet[..len], "cut to", len);
                    refused(&packet[packet.len() - len..], "only the last", len);
                    refused(&[&packet[..], &packet[..len + 1]].concat(), "longer by", len + 1);
                }
                // none of them has touched the window
                assert_eq!(opened(to, &packet).unwrap(), payload);
                assert_eq!(to.take_counts(), Counts::default());
            }
        }
    }
}

#[test]
fn whoever_implements_a_cipher_the_packets_are_the_same() {
    let by = [Provider::AwsLc, Provider::Ring];
    for cipher in Cipher::ALL {
        let lane = |side, by| Ratchet::new(&SECRET, b"offers", 0, cipher, side).by(by).next_lane();
        let [mut one, mut other] = by.map(|by| lane(Side::Client, by).sealer);
        let mut open = by.map(|by| lane(Side::Server, by).opener);
        assert_eq!(one.left(), other.left(), "{cipher:?}");
        for len in [0, 1, 15, 16, 17, 127, 128, 129, 300, 1400, 9000, 65_000] {
            let payload: Vec<u8> = (0..len).map(|at| at as u8).collect();
            let packet = sealed(&mut one, &payload);
            assert_eq!(packet, sealed(&mut other, &payload), "{cipher:?}, {len}");
            for opener in &mut open {
                assert_eq!(opened(opener, &packet).unwrap(), payload, "{cipher:?}, {len}");
            }
        }
    }
}

/// With the ID of another lane, which whoever copies a packet may write into it.
fn readdressed(packet: &[u8], to: LaneId) -> Vec<u8> {
    [&packet[..1], &to.0, &packet[1 + ID_LEN..]].concat()
}

#[test]
fn a_packet_opens_at_no_other_end_than_its_own_whatever_id_it_is_given() {
    for cipher in Cipher::ALL {
        let make = |side| Ratchet::new(&SECRET, b"offers", 0, cipher, side);
        let [mut client, mut server] = [Side::Client, Side::Server].map(make);
        let mut ends: Vec<Lane> = Vec::new();
        for _ in 0..3 {
            ends.extend([client.next_lane(), server.next_lane()]);
        }
        // the lane for probes of the same secret, which in life has a secret of its own too
        ends.extend([Side::Client, Side::Server].map(|side| probe::lane(&SECRET, side)));
        for from in 0..ends.len() {
            // the two ends of a lane are neighbours
            let own = from ^ 1;
            let packet = sealed(&mut ends[from].sealer, b"packet");
            for to in (0..ends.len()).filter(|to| *to != own) {
                let end = &mut ends[to];
                let copy = readdressed(&packet, end.id);
                assert_eq!(LaneId::claimed(&copy), Some(end.id));
                for copy in [&packet, &copy] {
                    let result = opened(&mut end.opener, copy);
                    assert_eq!(result, Err(Refused::Forged), "{cipher:?}: from {from} to {to}");
                }
            }
            assert_eq!(opened(&mut ends[own].opener, &packet).unwrap(), b"packet");
            assert_eq!(opened(&mut ends[own].opener, &packet), Err(Refused::Duplicate));
        }
    }
}

#[test]
fn a_packet_opens_on_no_other_connection_for_no_other_worker_and_not_where_other_offers_were_heard() {
    let (mut a, mut b) = pair(Cipher::Aes128Gcm);
    let packet = sealed(&mut a.sealer, b"packet");
    let elsewhere = |secret: [u8; 32], offers: &[u8], worker, cipher| {
        let mut lane = Ratchet::new(&secret, offers, worker, cipher, Side::Server).next_lane();
        let copy = readdressed(&packet, lane.id);
        [opened(&mut lane.opener, &packet), opened(&mut lane.opener, &copy)]
    };
    let refused = [Err(Refused::Forged), Err(Refused::Forged)];
    assert_eq!(elsewhere([8; 32], b"offers", 0, Cipher::Aes128Gcm), refused);
    assert_eq!(elsewhere(SECRET, b"others", 0, Cipher::Aes128Gcm), refused);
    assert_eq!(elsewhere(SECRET, b"offers", 1, Cipher::Aes128Gcm), refused);
    assert_eq!(elsewhere(SECRET, b"offers", 0, Cipher::Aes256Gcm), refused);
    assert_eq!(opened(&mut b.opener, &packet).unwrap(), b"packet");
}

#[test]
fn parts_of_genuine_packets_make_no_packet() {
    for cipher in Cipher::ALL {
        let (mut a, mut b) = pair(cipher);
        let [one, other] = [b"one packet", b"other bits"].map(|payload| sealed(&mut a.sealer, payload));
        for at in 1..one.len() {
            for (head, tail) in [(&one, &other), (&other, &one)] {
                let spliced = [&head[..at], &tail[at..]].concat();
                // of equal bytes, as the ID's are, both halves may be one packet's
                if spliced != one && spliced != other {
                    assert_eq!(opened(&mut b.opener, &spliced), Err(Refused::Forged), "{cipher:?}: at {at}");
                }
            }
        }
    }
}

#[test]
fn a_header_with_any_other_first_byte_is_refused_also_from_who_has_the_keys() {
    for cipher in Cipher::ALL {
        let (forger, mut opener) = forger(cipher);
        for first in 0..=255u8 {
            let expected = if first == FIRST { Ok(b"packet".to_vec()) } else { Err(Refused::Forged) };
            let packet = forger.seal(first, u32::from(first), b"packet");
            assert_eq!(opened(&mut opener, &packet), expected, "{cipher:?}: {first:#04x}");
        }
    }
}

#[test]
fn a_lane_ends_at_its_limits_and_no_number_is_used_twice() {
    let (a, b) = pair(Cipher::Aes128Gcm);
    let (mut sealer, mut opener) = (a.sealer.limited(100), b.opener.limited(3));
    let mut seen = BTreeSet::new();
    for used in 0..100 {
        assert_eq!((sealer.used(), sealer.left()), (used, 100 - used));
        let packet = sealed(&mut sealer, b"the same bytes each time");
        // one key, and equal plaintext: equal only if the nonce were
        assert!(seen.insert(packet[HEADER..].to_vec()));
        assert!(opened(&mut opener, &packet).is_ok());
    }
    for _ in 0..3 {
        let mut datagram = vec![0; 100];
        assert_eq!(sealer.seal(&mut datagram), Err(Spent));
        assert_eq!(datagram, [0; 100]);
        assert_eq!((sealer.used(), sealer.left()), (100, 0));
    }

    let (mut a, _) = pair(Cipher::Aes128Gcm);
    let genuine: Vec<_> = (0..101).map(|_| sealed(&mut a.sealer, b"")).collect();
    for _ in 0..3 {
        assert_eq!(opened(&mut opener, &[0x40; 64]), Err(Refused::Forged));
    }
    // so many forgeries that the AEAD's promise no longer holds: not even what is genuine
    assert_eq!(opened(&mut opener, &genuine[100]), Err(Refused::Forged));
}

#[test]
fn limits_are_those_of_the_standard() {
    for (cipher, limit) in
        [(Cipher::Aes128Gcm, 1 << 23), (Cipher::Aes256Gcm, 1 << 23), (Cipher::ChaCha20Poly1305, 1 << 32)]
    {
        assert_eq!(pair(cipher).0.sealer.left(), limit, "{cipher:?}");
        assert_eq!(pair(cipher).0.sealer.limited(u64::MAX).left(), limit, "{cipher:?}");
    }
}

#[test]
fn keys_and_ids_of_lanes_all_differ() {
    let (mut client, mut server) = (ratchet(Side::Client), ratchet(Side::Server));
    let mut ids = BTreeSet::new();
    let mut ciphertexts = BTreeSet::new();
    for number in 0..50 {
        let (mut a, mut b) = (client.next_lane(), server.next_lane());
        assert_eq!((a.number, b.number), (number, number));
        assert!(ids.insert(a.id) && ids.insert(b.id));
        assert!(ciphertexts.insert(sealed(&mut a.sealer, b"same")[HEADER..].to_vec()));
        assert!(ciphertexts.insert(sealed(&mut b.sealer, b"same")[HEADER..].to_vec()));
    }
}

#[test]
fn only_a_short_header_with_the_lane_bit_claims_a_lane() {
    let mut datagram = [0x40, 0x80, 1, 2, 3, 4, 5, 6, 7, 0];
    assert!(LaneId::claimed(&datagram).is_some());
    assert!(LaneId::claimed(&datagram[..9]).is_some() && LaneId::claimed(&datagram[..8]).is_none());
    assert_eq!(LaneId::claimed(&[]), None);
    // the fixed bit does not count
    datagram[0] = 0;
    assert!(LaneId::claimed(&datagram).is_some());
    datagram[0] = 0xc0;
    assert_eq!(LaneId::claimed(&datagram), None);
    datagram[..2].copy_from_slice(&[0x40, 0x7f]);
    assert_eq!(LaneId::claimed(&datagram), None);
}

proptest! {
    #[test]
    fn no_bytes_are_opened(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let (_, mut b) = pair(Cipher::Aes128Gcm);
        prop_assert_eq!(opened(&mut b.opener, &bytes), Err(Refused::Forged));
    }
}
