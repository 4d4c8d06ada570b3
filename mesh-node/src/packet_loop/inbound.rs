//! Mesh to VM: one thread for the whole node, from the reader tasks to the TUN of each network.
//!
//! 1. Take a batch: what one connection received in a go.
//! 2. Per frame: header, network, `forward::inbound` with the peer that TLS proved.
//! 3. Join what belongs together into superpackets, over the whole batch.
//! 4. One write per superpacket.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use bytes::Bytes;
use mesh_proto::frame::FrameHeader;
use mesh_proto::limits::FRAME_HEADER;

use super::Shared;
use crate::config::offloads::Offload;
use crate::forward::counters::{Batch, Direction, Drops, Flow, TrafficCount, Worker};
use crate::forward::fib::{NetworkIx, PeerIx};
use crate::forward::segment::{Coalescer, Output};
use crate::forward::{self, DropReason, Internet, Outcome, Verdict};
use crate::io::quic::datagram::InboundQueue;
use crate::io::tun::Tun;
use crate::tunnel::{InBatch, Snapshot, Tunnel};

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
    count: TrafficCount,
    mapped: u64,
    /// From the Internet, with the sender as egress node; to the Internet, with this node as egress node.
    from_internet: TrafficCount,
    to_internet: TrafficCount,
}

impl ForNetwork {
    fn new(tun: &Tun) -> Self {
        Self {
            coalescer: Coalescer::new(tun.offloads().has(Offload::Uso)),
            count: TrafficCount::default(),
            mapped: 0,
            from_internet: TrafficCount::default(),
            to_internet: TrafficCount::default(),
        }
    }
}

impl Inbound<'_> {
    fn batch(&mut self, batch: &InBatch) {
        let start = Instant::now();
        let snapshot = self.shared.snapshot.load();
        let tuns = self.shared.tuns.load();
        let peer = batch.tunnel.peer();
        let mut bytes = 0;
        let mut drops = Drops::default();
        drops.add(DropReason::QueueFull, batch.lost);
        self.arena.clear();
        for frame in &batch.frames {
            bytes += frame.len().saturating_sub(FRAME_HEADER) as u64;
            if let Err(reason) = self.frame(&snapshot, &tuns, peer, frame) {
                drops.add(reason, 1);
            }
        }
        let packets = batch.frames.len() as u64 + batch.lost;
        batch.tunnel.count_received(packets, bytes);
        let superpackets = self.deliver(&tuns, &batch.tunnel, &mut drops);
        self.shared.counters.dropped(Direction::Inbound, &drops);
        let busy = start.elapsed();
        self.shared.counters.batch(Worker::Inbound, Batch { packets, superpackets, busy });
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
        let Outcome { verdict, mapped, internet } =
            forward::translate_inbound(net, peer, packet, checksum_partial);
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
        let count = TrafficCount { packets: 1, bytes: packet.len() as u64 };
        to.count.add(count);
        match internet {
            Internet::No => {}
            Internet::From => to.from_internet.add(count),
            Internet::To => to.to_internet.add(count),
        }
        to.mapped += u64::from(mapped);
        to.coalescer.push(ARENA, start, packet, checksum_partial);
        Ok(())
    }

    /// Writes what the batch holds, network by network. Says how many writes it took.
    fn deliver(&mut self, tuns: &[Option<Arc<Tun>>], tunnel: &Tunnel, drops: &mut Drops) -> u64 {
        let counters = &self.shared.counters;
        let mut writes = 0;
        for network in self.used.drain(..) {
            let ix = usize::from(network.0);
            let (Some(Some(of)), Some(Some(tun))) = (self.networks.get_mut(ix), tuns.get(ix)) else {
                continue;
            };
            for output in of.coalescer.outputs() {
                if write(tun, &output, &self.arena, &mut self.slices) {
                    writes += 1;
                } else {
                    let refused = on_wire(&output);
                    drops.add(DropReason::TunError, refused.packets);
                    of.count.packets -= refused.packets;
                    of.count.bytes -= refused.bytes;
                }
            }
            counters.traffic(network, Flow::Receive, std::mem::take(&mut of.count));
            counters.traffic(network, Flow::CarriedTransmit, std::mem::take(&mut of.to_internet));
            tunnel.count_egress(Direction::Inbound, network, std::mem::take(&mut of.from_internet));
            counters.mapped(Direction::Inbound, network, std::mem::take(&mut of.mapped));
            of.coalescer.clear();
        }
        writes
    }
}

/// The packets that one output was made of.
fn on_wire(output: &Output<'_>) -> TrafficCount {
    let payload: u64 = output.pieces.iter().map(|p| u64::from(p.len)).sum();
    let packets = output.packets as u64;
    TrafficCount { packets, bytes: payload + packets * output.header.len() as u64 }
}

/// One superpacket in one write; whether the device took it.
fn write(tun: &Tun, output: &Output<'_>, arena: &[u8], spare: &mut Vec<IoSlice<'static>>) -> bool {
    let mut slices = recycle(std::mem::take(spare));
    slices.push(IoSlice::new(&output.vnet));
    slices.push(IoSlice::new(output.header));
    let bytes = |start: u32, len: u32| &arena[start as usize..(start + len) as usize];
    slices.extend(output.pieces.iter().map(|p| IoSlice::new(bytes(p.start, p.len))));
    let taken = tun.write(&slices).is_ok();
    *spare = recycle(slices);
    taken
}

/// The same allocation, empty, for slices of another lifetime.
fn recycle<'b>(mut slices: Vec<IoSlice<'_>>) -> Vec<IoSlice<'b>> {
    slices.clear();
    slices.into_iter().map(|_| IoSlice::new(&[])).collect()
}
