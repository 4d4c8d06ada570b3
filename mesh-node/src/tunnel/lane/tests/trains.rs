//! From a batch of frames to trains, and back.

use mesh_proto::frame::FrameHeader;
use proptest::prelude::*;

use super::super::train::{MAX_DATAGRAMS, MAX_TRAIN, Packer, Taken, Train};
use super::super::window::Counts;
use super::*;
use crate::tunnel::{OutBatch, Sent};

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

#[test]
fn of_a_spent_lane_nothing_leaves_and_the_batch_is_left_whole() {
    for limit in 0..4 {
        let mut sealer = pair(Cipher::Aes128Gcm).0.sealer.limited(limit);
        let mut packer = Packer::default();
        let mut left = Vec::new();
        for size in [64, 1400, 64, 1400] {
            let mut batch = OutBatch { room: ROOM, ..OutBatch::default() };
            (0..5).for_each(|_| {
                batch.push(FrameHeader { network: 0, checksum_partial: false }, &vec![0x5a; size], &[])
            });
            let packed = packer.pack(&mut batch, &mut sealer, 1472, |train| {
                assert!(!train.bytes.windows(16).any(|bytes| bytes == [0x5a; 16]), "plaintext");
                Taken::Yes
            });
            assert_eq!(packed.sent.packets + packed.left as u64, 5, "each is sent or left to another way");
            left.push(packed.left);
        }
        assert!(sealer.used() <= limit);
        assert_eq!(left.last(), Some(&5), "of {limit} packets");
    }
}

proptest! {
    #[test]
    fn whatever_goes_in_comes_out_in_order(
        sizes in prop::collection::vec(prop_oneof![1usize..120, 500usize..800, 1200usize..1600], 1..120),
        largest in 1200usize..1500,
        limit in 0u64..200,
    ) {
        let (trains, frames, sent, left) = packed(&sizes, largest, limit);
        let mut datagrams = 0;
        for (bytes, datagram) in trains {
            prop_assert!(bytes <= MAX_TRAIN && bytes.div_ceil(datagram) <= MAX_DATAGRAMS);
            datagrams += bytes.div_ceil(datagram) as u64;
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
        prop_assert!(datagrams <= limit, "{} packets of a lane that has {}", datagrams, limit);
    }
}
