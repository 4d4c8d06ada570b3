//! Mesh to VM: one thread for the whole node, from the reader tasks to the TUN of each network.
//!
//! 1. Take a batch: what one connection received in a go.
//! 2. Per frame: header, network, `forward::inbound` with the peer that TLS proved.
//! 3. Join what belongs together into superpackets, over the whole batch.
//! 4. One write per superpacket.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::Bytes;
use mesh_proto::frame::FrameHeader;
use mesh_proto::limits::FRAME_HEADER;

use super::Shared;
use crate::forward::counters::{Counters, Direction};
use crate::forward::fib::{NetworkIx, PeerIx};
use crate::forward::segment::{Coalescer, Output};
use crate::forward::{self, DropReason, Verdict};
use crate::io::quic::datagram::InboundQueue;
use crate::io::tun::Tun;
use crate::tunnel::{InBatch, Snapshot};

/// The coalescer's number for the one buffer that all packets of a batch are copied to.
const ARENA: u32 = 0;

/// Delivers until told to stop.
pub(super) fn run(shared: &Shared, mut queue: InboundQueue, stop: &AtomicBool) {
    let mut inbound =
        Inbound { shared, arena: Vec::new(), networks: Vec::new(), used: Vec::new(), slices: Vec::new() };
    while !stop.load(Relaxed) {
        if let Some(batch) = queue.recv() {
            inbound.batch(&batch);
        }
    }
}

struct Inbound<'a> {
    shared: &'a Shared,
    /// The packets of a batch, back to back. quinn's buffers are shared between datagrams, so that packets cannot be
    /// rewritten where they lie.
    arena: Vec<u8>,
    /// By `NetworkIx`.
    networks: Vec<Option<ForNetwork>>,
    /// Which of them this batch has packets for.
    used: Vec<NetworkIx>,
    slices: Vec<IoSlice<'static>>,
}

/// What a batch holds for one network.
struct ForNetwork {
    coalescer: Coalescer,
    packets: u64,
    bytes: u64,
    mapped: u64,
}

impl ForNetwork {
    fn new(tun: &Tun) -> Self {
        Self { coalescer: Coalescer::new(tun.offloads().udp), packets: 0, bytes: 0, mapped: 0 }
    }
}

impl Inbound<'_> {
    fn batch(&mut self, batch: &InBatch) {
        let snapshot = self.shared.snapshot.load();
        let tuns = self.shared.tuns.load();
        let peer = batch.tunnel.peer();
        let mut bytes = 0;
        self.arena.clear();
        for frame in &batch.frames {
            bytes += frame.len().saturating_sub(FRAME_HEADER) as u64;
            if let Err(reason) = self.frame(&snapshot, &tuns, peer, frame) {
                self.shared.counters.dropped(Direction::Inbound, reason, 1);
            }
        }
        batch.tunnel.count_received(batch.frames.len() as u64, bytes);
        self.deliver(&tuns);
    }

    /// Copies, checks and maps one packet, and puts it to those of its network.
    fn frame(
        &mut self,
        snapshot: &Snapshot,
        tuns: &[Option<Arc<Tun>>],
        peer: PeerIx,
        frame: &Bytes,
    ) -> Result<(), DropReason> {
        let (FrameHeader { network, checksum_partial }, packet) =
            FrameHeader::decode(frame).map_err(|_| DropReason::BadFrame)?;
        let network = NetworkIx(network);
        let ix = usize::from(network.0);
        let net = snapshot.fib.network(network).ok_or(DropReason::UnknownNetwork)?;
        // The device comes after the snapshot that names the network, and goes before it.
        let tun = tuns.get(ix).and_then(Option::as_ref).ok_or(DropReason::UnknownNetwork)?;
        let start = self.arena.len();
        self.arena.extend_from_slice(packet);
        let packet = &mut self.arena[start..];
        let (verdict, mapped) = forward::translate_inbound(net, peer, packet, checksum_partial);
        match verdict {
            Verdict::Deliver => {}
            Verdict::Drop(reason) => return Err(reason),
            Verdict::Tunnel(_) | Verdict::Hairpin => return Err(DropReason::ForbiddenDestination),
        }
        if self.networks.len() <= ix {
            self.networks.resize_with(ix + 1, || None);
        }
        let to = self.networks[ix].get_or_insert_with(|| ForNetwork::new(tun));
        if to.coalescer.is_empty() {
            self.used.push(network);
        }
        to.packets += 1;
        to.bytes += packet.len() as u64;
        to.mapped += u64::from(mapped);
        to.coalescer.push(ARENA, start, packet, checksum_partial);
        Ok(())
    }

    /// Writes what the batch holds, network by network.
    fn deliver(&mut self, tuns: &[Option<Arc<Tun>>]) {
        let counters = &self.shared.counters;
        for network in self.used.drain(..) {
            let ix = usize::from(network.0);
            let (Some(Some(of)), Some(Some(tun))) = (self.networks.get_mut(ix), tuns.get(ix)) else {
                continue;
            };
            counters.traffic(Direction::Inbound, network, of.packets, of.bytes);
            counters.mapped(Direction::Inbound, network, of.mapped);
            for output in of.coalescer.outputs() {
                write(tun, &output, &self.arena, &mut self.slices, counters);
            }
            of.coalescer.clear();
            (of.packets, of.bytes, of.mapped) = (0, 0, 0);
        }
    }
}

/// One superpacket in one write.
fn write(
    tun: &Tun,
    output: &Output<'_>,
    arena: &[u8],
    spare: &mut Vec<IoSlice<'static>>,
    counters: &Counters,
) {
    let mut slices = recycle(std::mem::take(spare));
    slices.push(IoSlice::new(&output.vnet));
    slices.push(IoSlice::new(output.header));
    let bytes = |start: u32, len: u32| &arena[start as usize..(start + len) as usize];
    slices.extend(output.pieces.iter().map(|p| IoSlice::new(bytes(p.start, p.len))));
    if tun.write(&slices).is_err() {
        counters.dropped(Direction::Inbound, DropReason::TunError, output.packets as u64);
    }
    *spare = recycle(slices);
}

/// The same allocation, empty, for slices of another lifetime.
fn recycle<'b>(mut slices: Vec<IoSlice<'_>>) -> Vec<IoSlice<'b>> {
    slices.clear();
    slices.into_iter().map(|_| IoSlice::new(&[])).collect()
}
