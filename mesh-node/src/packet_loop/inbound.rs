//! Mesh to VM in standard mode: one thread for the whole node, from the reader tasks to the TUN of each network.
//!
//! 1. Take a batch: what one connection received in a go.
//! 2. Per frame: header, network, `forward::inbound` with the peer that TLS proved.
//! 3. Join what belongs together into superpackets, over the whole batch.
//! 4. One write per superpacket.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use mesh_proto::limits::FRAME_HEADER;

use super::Shared;
use super::deliver::{Means, ToNetworks, Writer, on_wire};
use crate::forward::DropReason;
use crate::forward::counters::{Batch, Direction, Drops, Worker};
use crate::io::quic::datagram::InboundQueue;
use crate::tunnel::InBatch;

/// The number of the one buffer that all frames of a batch are copied to.
const ARENA: usize = 0;

/// Delivers until told to stop.
pub(super) fn run(shared: &Shared, mut queue: InboundQueue, stop: &AtomicBool) {
    let mut inbound =
        Inbound { shared, arena: [Vec::new()], to: ToNetworks::default(), writer: Writer::default() };
    while !stop.load(Relaxed) {
        if let Some(batch) = queue.recv() {
            inbound.batch(&batch);
        }
    }
}

struct Inbound<'a> {
    shared: &'a Shared,
    /// The frames of a batch, back to back. quinn's buffers are shared between datagrams, so that packets cannot be rewritten
    /// where they lie.
    arena: [Vec<u8>; 1],
    to: ToNetworks,
    writer: Writer,
}

impl Inbound<'_> {
    fn batch(&mut self, batch: &InBatch) {
        let start = Instant::now();
        let snapshot = self.shared.snapshot.load();
        let tuns = self.shared.tuns.load();
        let means = Means { snapshot: &snapshot, tuns: &tuns, worker: 0 };
        let mut bytes = 0;
        let mut drops = Drops::default();
        drops.add(DropReason::QueueFull, batch.lost);
        self.arena[ARENA].clear();
        for frame in &batch.frames {
            bytes += frame.len().saturating_sub(FRAME_HEADER) as u64;
            let start = self.arena[ARENA].len();
            self.arena[ARENA].extend_from_slice(frame);
            let frame = &mut self.arena[ARENA][start..];
            if let Err(reason) = self.to.put(&means, &batch.tunnel, ARENA as u32, start, frame) {
                drops.add(reason, 1);
            }
        }
        let packets = batch.frames.len() as u64 + batch.lost;
        batch.tunnel.count_received(packets, bytes);
        let counters = &self.shared.counters;
        let Self { to, writer, arena, .. } = self;
        to.drain(counters, &batch.tunnel, |network, output| {
            writer.write(&means, network, output, on_wire(output), arena);
        });
        let superpackets = writer.settle(counters);
        counters.dropped(Direction::Inbound, &drops);
        let busy = start.elapsed();
        counters.batch(Worker::Inbound, Batch { packets, superpackets, busy });
    }
}
