//! The way to one peer, as the packet loop sees it: *send this batch*, *here is a batch, and whom it came from*. How
//! frames travel is a [`Carrier`]'s business (`io::quic::datagram` and `io::lane` are two); who has a tunnel, `control`'s.
//!
//! Tunnels and the FIB are published together as one [`Snapshot`], so that they never disagree.

pub mod lane;
pub mod pmtu;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use mesh_proto::frame::FrameHeader;
use mesh_proto::limits::FRAME_HEADER;

use crate::forward::counters::{Direction, PeerCounters, TrafficCount};
use crate::forward::fib::{Fib, NetworkIx, PeerIx};

/// What carries frames to one peer.
pub trait Carrier: fmt::Debug + Send + Sync {
    /// Sends every frame of a worker's batch, or drops it and says why. May wait a short, bounded time. Leaves the batch empty.
    fn send(&self, turn: Turn, batch: &mut OutBatch) -> Sent;

    /// The largest frame that fits at present.
    fn max_frame(&self) -> usize;

    /// What it needs around each frame of a batch.
    fn room(&self) -> Room {
        Room::default()
    }
}

/// A worker's turn to send to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Which worker.
    pub worker: u8,
    /// It had packets for other peers lately, which took them: a wait for this one would stop them.
    pub others: bool,
}

impl Turn {
    /// Of a worker with packets for this peer alone.
    pub fn alone(worker: u8) -> Self {
        Self { worker, others: false }
    }
}

/// Bytes to be left free before and after each frame, so that a carrier can work where the frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Room {
    /// Before.
    pub head: usize,
    /// After.
    pub tail: usize,
}

/// What became of the frames of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Frames sent.
    pub packets: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Dropped: larger than the path carries.
    pub too_big: u64,
    /// Dropped: the queue stayed full.
    pub queue_full: u64,
    /// Dropped: the connection is no more.
    pub gone: u64,
    /// Time spent waiting for room.
    pub waited: Duration,
}

impl Sent {
    /// Adds what became of other frames.
    pub fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.too_big += other.too_big;
        self.queue_full += other.queue_full;
        self.gone += other.gone;
        self.waited += other.waited;
    }

    /// Bytes of the inner packets sent.
    pub fn inner_bytes(&self) -> u64 {
        self.bytes.saturating_sub(self.packets * FRAME_HEADER as u64)
    }
}

/// A live connection to one peer.
#[derive(Debug)]
pub struct Tunnel {
    peer: PeerIx,
    /// By our `NetworkIx`: the peer's own number of the network.
    handles: Vec<Option<u8>>,
    carrier: Arc<dyn Carrier>,
    counters: Arc<PeerCounters>,
}

impl Tunnel {
    /// A tunnel to `peer`, whose hello gave its numbers of the networks we share.
    pub fn new(
        peer: PeerIx,
        handles: Vec<Option<u8>>,
        carrier: Arc<dyn Carrier>,
        counters: Arc<PeerCounters>,
    ) -> Self {
        Self { peer, handles, carrier, counters }
    }

    /// The same way to the same peer, which has changed its numbers of the networks.
    pub fn renumbered(&self, handles: Vec<Option<u8>>) -> Self {
        Self { peer: self.peer, handles, carrier: self.carrier.clone(), counters: self.counters.clone() }
    }

    /// The peer's numbers of the networks, by our own.
    pub fn handles(&self) -> &[Option<u8>] {
        &self.handles
    }

    /// Sends what a worker's batch holds, counts it, and leaves the batch empty. The drops are for the caller to count: the
    /// reasons are labels of the node, not of the peer.
    pub fn send(&self, turn: Turn, batch: &mut OutBatch) -> Sent {
        let sent = self.carrier.send(turn, batch);
        self.counters.add(Direction::Outbound, sent.packets, sent.inner_bytes());
        sent
    }

    /// Counts inner packets that came from the peer, whatever becomes of them.
    pub fn count_received(&self, packets: u64, bytes: u64) {
        self.counters.add(Direction::Inbound, packets, bytes);
    }

    /// Counts inner packets of a network to or from the Internet, with the peer as egress node.
    pub fn count_egress(&self, direction: Direction, network: NetworkIx, count: TrafficCount) {
        if count.packets > 0 {
            self.counters.add_egress(direction, network, count);
        }
    }

    /// The largest inner packet that fits at present.
    pub fn max_inner(&self) -> usize {
        self.carrier.max_frame().saturating_sub(FRAME_HEADER)
    }

    /// An empty batch for this tunnel, in the memory of a former one.
    pub fn batch(&self, mut spare: OutBatch) -> OutBatch {
        spare.clear();
        spare.room = self.carrier.room();
        spare
    }

    /// The peer's number of our network; `None` if it is not part of it.
    pub fn handle(&self, network: NetworkIx) -> Option<u8> {
        self.handles.get(usize::from(network.0)).copied().flatten()
    }

    /// Counts of the peer, kept over its tunnels.
    pub fn counters(&self) -> &PeerCounters {
        &self.counters
    }

    /// Who is at the other end, as TLS proved it.
    pub fn peer(&self) -> PeerIx {
        self.peer
    }
}

/// All that the packet loops know: immutable, swapped whole, loaded once per batch.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Who is where.
    pub fib: Arc<Fib>,
    /// By `PeerIx`.
    pub tunnels: Vec<Option<Arc<Tunnel>>>,
}

impl Snapshot {
    /// The tunnel to a peer, if there is one.
    pub fn tunnel(&self, peer: PeerIx) -> Option<&Arc<Tunnel>> {
        self.tunnels.get(peer.0 as usize)?.as_ref()
    }
}

/// Frames for one peer, back to back in one buffer that is reused once all of them have left, each with the room around it
/// that its carrier wants.
#[derive(Debug, Default)]
pub struct OutBatch {
    bytes: BytesMut,
    lens: Vec<usize>,
    room: Room,
}

impl OutBatch {
    /// Adds a frame; its packet is given in two parts, since a segment's header and payload lie apart.
    pub fn push(&mut self, header: FrameHeader, head: &[u8], payload: &[u8]) {
        let len = FRAME_HEADER + head.len() + payload.len();
        let needed = self.room.head + len + self.room.tail;
        if self.bytes.capacity() - self.bytes.len() < needed {
            self.bytes.reserve(needed.max(GROWTH));
        }
        self.bytes.put_bytes(0, self.room.head);
        self.bytes.extend_from_slice(&header.encode());
        self.bytes.extend_from_slice(head);
        self.bytes.extend_from_slice(payload);
        self.bytes.put_bytes(0, self.room.tail);
        self.lens.push(len);
    }

    /// Frames in it.
    pub fn len(&self) -> usize {
        self.lens.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lens.is_empty()
    }

    /// Takes the frames out, without the room, in the order they were put in. Frames not taken from the iterator are dropped.
    pub fn take(&mut self) -> impl Iterator<Item = Bytes> + '_ {
        let mut bytes = self.bytes.split().freeze();
        let Room { head, tail } = self.room;
        self.lens.drain(..).map(move |len| {
            bytes.advance(head);
            let frame = bytes.split_to(len);
            bytes.advance(tail);
            frame
        })
    }

    /// What is around each frame.
    pub fn room(&self) -> Room {
        self.room
    }

    /// Leaves the last `keep` frames only.
    pub fn keep_last(&mut self, keep: usize) {
        if keep == 0 {
            return self.clear();
        }
        let dropped = self.lens.len().saturating_sub(keep);
        let around = self.room.head + self.room.tail;
        self.bytes.advance(self.lens.drain(..dropped).map(|len| len + around).sum());
    }

    /// Empty, with its memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.lens.clear();
    }

    /// All bytes, room included, and the lengths of the frames in them.
    fn parts(&mut self) -> (&mut [u8], &[usize]) {
        (&mut self.bytes, &self.lens)
    }
}

/// Room a batch starts with: one superpacket, so that many idle peers cost little.
const GROWTH: usize = 64 * 1024;

/// What one connection received in a go.
#[derive(Debug)]
pub struct InBatch {
    /// Whom it came from.
    pub tunnel: Arc<Tunnel>,
    /// The frames, unchecked.
    pub frames: Vec<Bytes>,
    /// Frames that came before these and were lost here, since the connection's receive buffer was full.
    pub lost: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_in_order_with_their_headers_and_the_batch_is_empty() {
        let mut batch = OutBatch::default();
        let header = FrameHeader { network: 3, checksum_partial: true };
        for round in 0..3u8 {
            batch.push(header, &[round], b"payload");
            batch.push(header, b"head", &[]);
            assert_eq!(batch.len(), 2);
            let frames: Vec<Bytes> = batch.take().collect();
            assert_eq!(frames, [&[&[3, 1, round][..], b"payload"].concat()[..], b"\x03\x01head"]);
            assert!(batch.is_empty());
        }
    }

    #[test]
    fn frames_not_taken_do_not_come_back() {
        let mut batch = OutBatch::default();
        let header = FrameHeader { network: 0, checksum_partial: false };
        batch.push(header, b"a", b"");
        batch.push(header, b"b", b"");
        assert_eq!(batch.take().next().as_deref(), Some(&b"\0\0a"[..]));
        assert_eq!(batch.take().count(), 0);
    }
}
