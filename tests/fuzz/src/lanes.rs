//! A lane's packets, from the first byte to the frames within.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh_node::forward::fib::PeerIx;
use mesh_node::io::lane::table::{LaneEnd, LaneTable};
use mesh_node::tunnel::lane::cipher::Cipher;
use mesh_node::tunnel::lane::frames::Frames;
use mesh_node::tunnel::lane::keys::{Ratchet, Side};
use mesh_node::tunnel::lane::window::{Arrival, SIZE, Window};
use mesh_node::tunnel::lane::{HEADER, LaneId, TAG};
use mesh_node::tunnel::{Carrier, OutBatch, Sent, Tunnel, Turn};

use super::packets::{Delivery, frame, inner};
use super::{case, changed};

#[derive(Debug)]
struct Nowhere;

impl Carrier for Nowhere {
    fn send(&self, _: Turn, batch: &mut OutBatch) -> Sent {
        batch.clear();
        Sent::default()
    }

    fn max_frame(&self) -> usize {
        1400
    }
}

fn ratchets(which: u8) -> [Ratchet; 2] {
    let cipher = Cipher::ALL[usize::from(which) % Cipher::ALL.len()];
    [Side::Client, Side::Server].map(|side| Ratchet::new(&[7; 32], b"offers", 0, cipher, side))
}

/// Any datagram, at a node that can receive two lanes: nothing but what was sealed opens, and that once.
pub(super) fn lane_packet(data: &[u8]) {
    let (which, changes) = case(data);
    let [mut theirs, mut ours] = ratchets(which >> 2);
    let table = LaneTable::default();
    let mut genuine = Vec::new();
    for _ in 0..2 {
        let (mut sent, received) = (theirs.next_lane(), ours.next_lane());
        let tunnel = Arc::new(Tunnel::new(PeerIx(0), vec![], Arc::new(Nowhere), Arc::default()));
        let end = LaneEnd::new(tunnel, Arc::default(), received.opener);
        assert!(table.add(received.id, end).is_some());
        let payload = [&[0x30][..], &frame(1, 0, &inner(0))].concat();
        let mut packet = [&[0; HEADER][..], &payload, &[0; TAG]].concat();
        sent.sealer.seal(&mut packet).expect("a new lane");
        genuine.push(packet);
    }
    let own = &genuine[usize::from(which & 1)];
    let datagram = if which & 2 == 0 { changed(own, changes) } else { changes.to_vec() };
    let lanes = table.load();
    let open = |datagram: &[u8]| {
        let end = lanes.get(&LaneId::claimed(datagram)?)?;
        let mut opened = datagram.to_vec();
        let range = end.opener().open(&mut opened).ok()?;
        assert!(range.end <= opened.len());
        let mut frames = Frames::new(range);
        while let Some(Ok(frame)) = frames.next_in(&opened) {
            assert!(frame.end <= opened.len());
        }
        Some(())
    };
    let is_genuine = genuine.contains(&datagram);
    assert_eq!(open(&datagram).is_some(), is_genuine);
    for packet in &genuine {
        assert_eq!(open(packet).is_some(), *packet != datagram, "a forgery has changed something");
        assert!(open(packet).is_none(), "twice");
    }
}

/// An authentic packet with any content, opened and delivered.
pub(super) fn lane_frames(data: &[u8]) {
    let (which, changes) = case(data);
    let [mut theirs, mut ours] = ratchets(which >> 5);
    let (mut sent, mut received) = (theirs.next_lane(), ours.next_lane());
    let with_length =
        |frame: &[u8]| [&[0x31][..], &(0x4000 | frame.len() as u16).to_be_bytes(), frame].concat();
    // some go on where the one before ends, and are longer than it
    let longer = |at: u8| if at > 0 && which & 0x10 != 0 { at | 8 } else { at };
    let frames: Vec<u8> =
        (0..which & 7).flat_map(|at| with_length(&frame(1, 1, &inner(longer(at))))).collect();
    let payload = if which & 8 == 0 { changed(&frames, changes) } else { changes.to_vec() };
    let mut packet = [&[0; HEADER][..], &payload, &[0; TAG]].concat();
    sent.sealer.seal(&mut packet).expect("a new lane");
    let range = received.opener.open(&mut packet).expect("it is authentic");
    assert_eq!(packet[range.clone()], payload);

    let mut delivery = Delivery::new(which & 0x80 != 0);
    let mut frames = Frames::new(range.clone());
    let mut last = range.start;
    while let Some(frame) = frames.next_in(&packet) {
        let Ok(frame) = frame else {
            assert!(frames.next_in(&packet).is_none(), "something after what was malformed");
            break;
        };
        assert!(frame.start > last && frame.end <= range.end, "{frame:?} of {range:?}");
        last = frame.end;
        delivery.put(frame.start, &mut packet[frame]);
    }
    delivery.check(&packet);
}

/// Numbers in any order, against a set that forgets nothing.
pub(super) fn replay_window(data: &[u8]) {
    let mut window = Window::default();
    let mut seen = BTreeSet::new();
    let (mut next, mut reordered) = (0u64, 0);
    for chunk in data.chunks_exact(3) {
        let by = u64::from(u16::from_be_bytes([chunk[1], chunk[2]]));
        let number = match chunk[0] % 5 {
            0 => next + by % 300,
            1 => next.saturating_sub(by),
            2 => next + by,
            // about the window's edge
            3 => next.saturating_sub(SIZE + 3 - by % 6),
            // a packet number is of four bytes
            _ => by << 16 | by,
        };
        if number > u64::from(u32::MAX) {
            continue;
        }
        let arrival = window.arrived(number);
        if number < next && next - number > SIZE {
            assert_eq!(arrival, Arrival::TooOld);
            continue;
        }
        assert_eq!(arrival == Arrival::New, seen.insert(number), "{number} of {next}");
        reordered += u64::from(arrival == Arrival::New && number < next);
        next = next.max(number + 1);
    }
    window.close();
    let counts = window.take_counts();
    let missing = next - seen.len() as u64;
    assert_eq!(counts.reordered, reordered);
    assert!(counts.lost >= missing && counts.lost <= missing + reordered, "{counts:?}, {missing} missing");
}
