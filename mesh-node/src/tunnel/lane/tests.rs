use std::collections::BTreeSet;

use mesh_proto::frame::FrameHeader;
use proptest::prelude::*;

use super::agreement::{Agreement, OutOfTurn, Step};
use super::frames::{Frames, Malformed};
use super::keys::{Cipher, Lane, Ratchet, Side};
use super::open::{Opener, Refused};
use super::seal::{Sealer, Spent};
use super::train::{MAX_DATAGRAMS, MAX_TRAIN, Packer, Taken, Train};
use super::window::{Arrival, Counts, REORDERING, SIZE, Window};
use super::*;
use crate::tunnel::{OutBatch, Sent};

const SECRET: [u8; 32] = [7; 32];

fn ratchet(side: Side) -> Ratchet {
    Ratchet::new(&SECRET, b"offers", Cipher::Aes128Gcm, side)
}

/// The first lane as both sides have it.
fn pair(cipher: Cipher) -> (Lane, Lane) {
    let make = |side| Ratchet::new(&SECRET, b"offers", cipher, side).next_lane();
    (make(Side::Client), make(Side::Server))
}

fn sealed(sealer: &mut Sealer, payload: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; HEADER + payload.len() + TAG];
    datagram[HEADER..HEADER + payload.len()].copy_from_slice(payload);
    sealer.seal(&mut datagram).unwrap();
    datagram
}

fn opened(opener: &mut Opener, datagram: &[u8]) -> Result<Vec<u8>, Refused> {
    let mut datagram = datagram.to_vec();
    opener.open(&mut datagram).map(|range| datagram[range].to_vec())
}

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
fn every_bit_of_a_packet_counts() {
    let (mut a, mut b) = pair(Cipher::Aes128Gcm);
    let packet = sealed(&mut a.sealer, b"a packet of some bytes");
    for bit in 0..packet.len() * 8 {
        let mut other = packet.clone();
        other[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(opened(&mut b.opener, &other), Err(Refused::Forged), "bit {bit}");
    }
    for len in 0..packet.len() {
        assert_eq!(opened(&mut b.opener, &packet[..len]), Err(Refused::Forged), "{len} bytes");
    }
    // none of them has touched the window
    assert_eq!(opened(&mut b.opener, &packet).unwrap(), b"a packet of some bytes");
    assert_eq!(b.opener.take_last_counts(), Counts::default());
}

#[test]
fn a_packet_is_opened_once_and_neither_reflected_nor_on_another_lane_or_connection() {
    let (mut a, mut b) = pair(Cipher::Aes128Gcm);
    let packet = sealed(&mut a.sealer, b"packet");
    assert_eq!(opened(&mut a.opener, &packet), Err(Refused::Forged));
    let next = |side| {
        let mut ratchet = ratchet(side);
        ratchet.next_lane();
        ratchet.next_lane()
    };
    assert_eq!(opened(&mut next(Side::Server).opener, &packet), Err(Refused::Forged));
    let elsewhere = |secret: [u8; 32], offers: &[u8]| {
        Ratchet::new(&secret, offers, Cipher::Aes128Gcm, Side::Server).next_lane()
    };
    assert_eq!(opened(&mut elsewhere([8; 32], b"offers").opener, &packet), Err(Refused::Forged));
    assert_eq!(opened(&mut elsewhere(SECRET, b"others").opener, &packet), Err(Refused::Forged));
    assert!(opened(&mut b.opener, &packet).is_ok());
    assert_eq!(opened(&mut b.opener, &packet), Err(Refused::Duplicate));
}

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
    let mut datagram = vec![0; 100];
    assert_eq!(sealer.seal(&mut datagram), Err(Spent));
    assert_eq!(datagram, [0; 100]);

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
fn the_dialer_s_order_decides_among_what_both_have() {
    let all = Cipher::ALL.map(|c| c as u16);
    assert_eq!(Cipher::agreed(&all, &all), Some(Cipher::Aes128Gcm));
    assert_eq!(Cipher::agreed(&[0x1303, 0x1301], &all), Some(Cipher::ChaCha20Poly1305));
    assert_eq!(Cipher::agreed(&[0x1399, 0x1302], &[0x1399, 0x1302]), Some(Cipher::Aes256Gcm));
    assert_eq!(Cipher::agreed(&[0x1301], &[0x1302]), None);
    assert_eq!(Cipher::agreed(&[], &all), None);
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

fn all_frames(bytes: &[u8]) -> Result<Vec<Vec<u8>>, Malformed> {
    let mut frames = Frames::new(0..bytes.len());
    std::iter::from_fn(|| frames.next_in(bytes))
        .map(|frame| frame.map(|range| bytes[range].to_vec()))
        .collect()
}

#[test]
fn frames_are_read_and_a_length_that_lies_is_refused() {
    assert_eq!(
        all_frames(b"\0\0\x31\x02ab\0\x31\x40\x01c\x30rest"),
        Ok(vec![b"ab".to_vec(), b"c".to_vec(), b"rest".to_vec()])
    );
    assert_eq!(all_frames(b""), Ok(vec![]));
    assert_eq!(all_frames(b"\0\0\0"), Ok(vec![]));
    let lies: [&[u8]; 8] = [
        b"\x31",
        b"\x31\x03ab",
        b"\x31\x40",
        b"\x31\x80\0\0",
        b"\x31\xff\xff\xff\xff\xff\xff\xff\xffab",
        b"\x31\x02ab\x31\x05ab",
        b"\x01",
        b"\x1c\x00",
    ];
    for bytes in lies {
        assert_eq!(all_frames(bytes), Err(Malformed), "{bytes:?}");
    }
}

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

/// Bytes of each train and of its datagrams, the frames that came out at the other end, and the books.
type Outcome = (Vec<(usize, usize)>, Vec<Vec<u8>>, Sent, usize);

/// Packs frames of these sizes, with a lane of so many packets.
fn packed(sizes: &[usize], largest: usize, limit: u64) -> Outcome {
    let (a, mut b) = pair(Cipher::Aes128Gcm);
    let mut sealer = a.sealer.limited(limit);
    let mut batch = OutBatch { room: ROOM, ..OutBatch::default() };
    for (at, size) in sizes.iter().enumerate() {
        batch.push(FrameHeader { network: at as u8, checksum_partial: false }, &vec![at as u8; *size], &[]);
    }
    let (mut trains, mut frames) = (Vec::new(), Vec::new());
    let result = Packer::default().pack(&mut batch, &mut sealer, largest, |train: Train<'_>| {
        trains.push((train.bytes.len(), train.datagram));
        for datagram in train.bytes.chunks(train.datagram) {
            assert!(datagram.len() <= largest);
            let plain = opened(&mut b.opener, datagram).expect("genuine");
            frames.extend(all_frames(&plain).expect("frames"));
        }
        Taken::Yes
    });
    assert_eq!(b.opener.take_last_counts(), Counts::default());
    (trains, frames, result.sent, result.left)
}

#[test]
fn bulk_travels_in_trains_and_small_packets_share_datagrams() {
    let bulk = [vec![1400; 44], vec![500]].concat();
    let (trains, frames, ..) = packed(&bulk, 1472, u64::MAX);
    let datagram = ROOM.head + 1402 + ROOM.tail;
    // the superpacket's short end rides along
    assert_eq!(trains, [(44 * datagram + ROOM.head + 502 + ROOM.tail, datagram)]);
    assert_eq!(frames.len(), 45);
    let (trains, frames, ..) = packed(&[64; 210], 1472, u64::MAX);
    assert_eq!(trains.len(), 1);
    assert_eq!((trains[0].0.div_ceil(trains[0].1), frames.len()), (11, 210));
    // one small packet is one small datagram
    assert_eq!(packed(&[64], 1472, u64::MAX).0, [(HEADER + 3 + 66 + TAG, HEADER + 3 + 66 + TAG)]);
}

#[test]
fn a_full_socket_stops_the_work_and_each_frame_is_accounted_for() {
    let (a, _) = pair(Cipher::Aes128Gcm);
    let mut sealer = a.sealer;
    let mut batch = OutBatch { room: ROOM, ..OutBatch::default() };
    for at in 0..200 {
        let size = if at == 5 { 3000 } else { 1000 };
        batch.push(FrameHeader { network: 0, checksum_partial: false }, &vec![0; size], &[]);
    }
    let mut trains = 0;
    let packed = Packer::default().pack(&mut batch, &mut sealer, 1472, |_| {
        trains += 1;
        if trains == 2 { Taken::Full } else { Taken::Yes }
    });
    assert_eq!((trains, packed.left), (2, 0));
    let Sent { packets, queue_full, too_big, gone, .. } = packed.sent;
    assert_eq!((packets, queue_full, too_big, gone), (5, 194, 1, 0));
    assert_eq!(sealer.used(), 5 + 62, "one train more was protected than had room");
}

proptest! {
    #[test]
    fn whatever_goes_in_comes_out_in_order(
        sizes in prop::collection::vec(prop_oneof![1usize..120, 500usize..800, 1200usize..1600], 1..120),
        largest in 1200usize..1500,
        limit in 4u64..200,
    ) {
        let (trains, frames, sent, left) = packed(&sizes, largest, limit);
        for (bytes, datagram) in trains {
            prop_assert!(bytes <= MAX_TRAIN && bytes.div_ceil(datagram) <= MAX_DATAGRAMS);
        }
        let fits = |size: &usize| ROOM.head + size + 2 + ROOM.tail <= largest;
        let done = &sizes[..sizes.len() - left];
        let expected: Vec<Vec<u8>> = done
            .iter()
            .enumerate()
            .filter(|(_, size)| fits(size))
            .map(|(at, size)| [vec![at as u8, 0], vec![at as u8; *size]].concat())
            .collect();
        prop_assert_eq!(sent.packets, expected.len() as u64);
        prop_assert_eq!(sent.bytes, expected.iter().map(|f| f.len() as u64).sum::<u64>());
        prop_assert_eq!(sent.too_big, (done.len() - expected.len()) as u64);
        prop_assert_eq!(sent.queue_full + sent.gone, 0);
        prop_assert_eq!(frames, expected);
        prop_assert!(left == 0 || limit < 200);
    }

    #[test]
    fn no_bytes_make_frames_beyond_the_packet(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut frames = Frames::new(0..bytes.len());
        let mut last = 0;
        while let Some(Ok(range)) = frames.next_in(&bytes) {
            prop_assert!(range.start >= last && range.end <= bytes.len());
            last = range.end;
        }
        prop_assert!(frames.next_in(&bytes).is_none());
    }

    #[test]
    fn no_bytes_are_opened(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let (_, mut b) = pair(Cipher::Aes128Gcm);
        prop_assert_eq!(opened(&mut b.opener, &bytes), Err(Refused::Forged));
    }

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
