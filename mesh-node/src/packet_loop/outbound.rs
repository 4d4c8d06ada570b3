//! VM to mesh: one thread per queue of a network's TUN, from there to the tunnels.
//!
//! 1. Read: the first packet of a batch may be waited for, the next ones not.
//! 2. `forward::outbound` once per superpacket: tunnel, back to the TUN, or drop.
//! 3. Cut into the batch of the peer, each piece behind its frame header.
//! 4. When the TUN is empty or the batch full: one `Tunnel::send` per peer.
//!
//! Between batches that of the first queue looks after the network's flows: each second what is idle, and, once an egress node is
//! drained, what is still there.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mesh_proto::frame::FrameHeader;

use super::Shared;
use super::company::Company;
use super::flow_table::{FlowTable, TENDER};
use super::moderation::Moderation;
use super::queues::Queues;
use crate::forward::counters::{Batch, Direction, Drops, Flow, TrafficCount, Worker};
use crate::forward::fib::{NetworkIx, PeerIx};
use crate::forward::flows::{FlowAccess as _, Reset, Seconds};
use crate::forward::segment::{self, NEEDS_CSUM, VnetHdr};
use crate::forward::{self, DropReason, Internet, Outcome, Verdict};
use crate::io::host::moved::Moved;
use crate::io::notices::tell;
use crate::io::tun::{READ_BUFFER, Read, Tun, VNET_HEADER, Wait};
use crate::notice::Notice;
use crate::tunnel::{OutBatch, Sent, Snapshot, Tunnel, Turn};

/// Limits of one batch: what the far side can buffer in a go, and about 0.2 ms of work.
const BATCH_PACKETS: u64 = 256;
const BATCH_BYTES: usize = 200_000;
/// Segments in a batch: a machine may ask for tiny ones, each of which is a frame with a header of its own.
const BATCH_SEGMENTS: u64 = 2048;
/// Segments that one superpacket may be cut into: 64 bytes each of a full one. Less is no use, and no stack's default.
const MAX_SEGMENTS: usize = 1024;

/// How often a peer without tunnel is asked for while packets for it come.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// Between two tries to read from a device that answers with an error, and how many tries before it is given up. A
/// device set down for a moment is no reason to end; one that was deleted never comes back.
const ERROR_PAUSE: Duration = Duration::from_millis(20);
const ERROR_TRIES: u32 = 50;

/// How often flows are looked after while no packets come.
const TICK: Duration = Duration::from_secs(1);

/// What the outbound threads of one network share.
#[derive(Debug)]
pub(super) struct Network {
    ix: NetworkIx,
    queues: Queues,
    flows: FlowTable,
    stop: AtomicBool,
}

impl Network {
    pub(super) fn new(ix: NetworkIx, queues: Queues) -> Self {
        let flows = FlowTable::new(crate::io::chance(), Instant::now(), queues.of(TENDER).clone());
        Self { ix, queues, flows, stop: AtomicBool::new(false) }
    }

    /// Tells all of its threads to end. True for the first to say so.
    pub(super) fn stop(&self) -> bool {
        let first = !self.stop.swap(true, Relaxed);
        self.queues.wake();
        first
    }
}

/// Reads the queue of a worker until told to stop, or until the device is gone; then the others of the network end as well.
pub(super) fn run(shared: &Shared, network: &Network, worker: u8) {
    let tun = &**network.queues.of(worker);
    if worker == TENDER {
        // of a thread before this one, whose device is gone
        shared.counters.pin(network.ix, &[]);
    }
    let mut outbound = Outbound {
        shared,
        network: network.ix,
        worker,
        tun,
        flows: &network.flows,
        buffer: vec![0; READ_BUFFER],
        peers: Peers::default(),
        asked: BTreeMap::new(),
        moderation: Moderation::new(Instant::now()),
        now: 0,
        care: Care::default(),
    };
    let mut errors = 0;
    while !network.stop.load(Relaxed) {
        match outbound.batch() {
            Ok(()) => errors = 0,
            Err(error) => {
                errors += 1;
                if errors == ERROR_TRIES {
                    if network.stop() {
                        tell(Notice::DeviceLost { device: tun.name().to_owned(), error: error.to_string() });
                    }
                    return;
                }
                std::thread::sleep(ERROR_PAUSE);
            }
        }
    }
}

struct Outbound<'a> {
    shared: &'a Shared,
    network: NetworkIx,
    worker: u8,
    tun: &'a Tun,
    flows: &'a FlowTable,
    buffer: Vec<u8>,
    peers: Peers,
    /// When a tunnel was last asked for.
    asked: BTreeMap<PeerIx, Instant>,
    moderation: Moderation,
    /// At the beginning of the batch.
    now: Seconds,
    care: Care,
}

/// What the one that looks after flows remembers.
#[derive(Default)]
struct Care {
    /// When it last did.
    at: Seconds,
    /// An egress node was drained then.
    drained: bool,
    /// Flows of it are still there.
    evacuates: bool,
    /// Flows reset since this was last told.
    resets: u64,
}

/// How much a batch holds, and what became of it.
#[derive(Default, Clone, Copy)]
struct Filled {
    /// Superpackets, and their bytes with headers.
    reads: u64,
    bytes: usize,
    /// Packets in them.
    packets: u64,
    /// Frames put to a peer's part.
    framed: u64,
    mapped: u64,
    hairpin: TrafficCount,
    own_egress_transmit: TrafficCount,
    own_egress_receive: TrafficCount,
    carried_receive: TrafficCount,
    drops: Drops,
}

impl Outbound<'_> {
    /// Waits for a packet, then handles it and all that follow at once.
    fn batch(&mut self) -> std::io::Result<()> {
        let wait = self.patience();
        let read = self.tun.read(&mut self.buffer, wait)?;
        let start = Instant::now();
        self.now = self.flows.seconds(start);
        // One snapshot for all that follows; the guard keeps it alive without counting references.
        let snapshot = self.shared.snapshot.load();
        let mut filled = Filled::default();
        if self.worker == TENDER {
            self.look_after_flows(start, &snapshot, &mut filled);
        }
        let Read::Packet(first) = read else { return Ok(()) };
        self.packet(&snapshot, first, &mut filled);
        let drained = self.drain(&snapshot, &mut filled);
        let now = Instant::now();
        let mut waited = Duration::ZERO;
        let mut more = 0;
        if let Some(wait) = self.moderation.handle_batch(now, filled.reads, filled.bytes) {
            std::thread::sleep(wait);
            waited = now.elapsed();
            let before = filled.reads;
            let _ = self.drain(&snapshot, &mut filled);
            more = filled.reads - before;
        }
        self.flush(now, &mut filled);
        let end = Instant::now();
        self.moderation.handle_flush(end, more);
        let busy = end.saturating_duration_since(start).saturating_sub(waited);
        let batch = Batch { packets: filled.packets, superpackets: filled.reads, busy };
        self.shared.counters.batch(Worker::Outbound(self.network, self.worker), batch);
        drained
    }

    /// For how long there is nothing to do without a packet.
    fn patience(&self) -> Wait {
        if self.worker != TENDER {
            Wait::Forever
        } else if self.care.evacuates || self.flows.has_resets() {
            Wait::No
        } else if self.flows.is_quiet() {
            Wait::Forever
        } else {
            Wait::AtMost(TICK)
        }
    }

    /// Handles what is there, up to the limits of a batch.
    fn drain(&mut self, snapshot: &Snapshot, filled: &mut Filled) -> std::io::Result<()> {
        while filled.reads < BATCH_PACKETS && filled.bytes < BATCH_BYTES && filled.framed < BATCH_SEGMENTS {
            match self.tun.read(&mut self.buffer, Wait::No)? {
                Read::Packet(n) => self.packet(snapshot, n, filled),
                Read::Empty | Read::Woken => break,
            }
        }
        Ok(())
    }

    /// One superpacket of `n` bytes, header included, from the buffer.
    fn packet(&mut self, snapshot: &Snapshot, n: usize, filled: &mut Filled) {
        filled.reads += 1;
        filled.bytes += n;
        let vnet = VnetHdr::parse(&self.buffer[..n]);
        let packet = self.buffer[..n].get(VNET_HEADER..).unwrap_or_default();
        let count = segment::on_wire(&vnet.unwrap_or_default(), packet);
        filled.packets += count.packets;
        let forwarded = match vnet {
            Some(vnet) => self.forward(snapshot, n, &vnet, count, filled),
            None => Err(DropReason::Malformed),
        };
        if matches!(forwarded, Err(DropReason::FlowReset | DropReason::FlowMoved))
            && let Some(reset) = Reset::of_packet(&self.buffer[VNET_HEADER..n])
        {
            self.answer(&reset.to_vm());
        }
        if forwarded == Err(DropReason::FlowMoved)
            && let Some(moved) = Moved::of(&self.buffer[VNET_HEADER..n])
        {
            // full: its next packet tells again
            let _ = self.shared.moved.try_send(moved);
        }
        if let Err(reason) = forwarded {
            filled.drops.add(reason, count.packets);
        }
    }

    /// Puts it where it belongs, whole or not at all.
    fn forward(
        &mut self,
        snapshot: &Snapshot,
        n: usize,
        vnet: &VnetHdr,
        count: TrafficCount,
        filled: &mut Filled,
    ) -> Result<(), DropReason> {
        let (header, packet) =
            self.buffer[..n].split_at_mut_checked(VNET_HEADER).ok_or(DropReason::Malformed)?;
        let net = snapshot.fib.network(self.network).ok_or(DropReason::UnknownNetwork)?;
        let partial = segment::settle(vnet, packet).map_err(|_| DropReason::Malformed)?;
        let Outcome { verdict, mapped, internet } =
            forward::translate_flow(net, &mut self.flows.by(self.worker), packet, partial, self.now);
        match verdict {
            Verdict::Tunnel(peer) => {
                match self.peers.of_batch(snapshot, peer, self.network) {
                    Some(to) => to.push(vnet, packet, partial, count, internet)?,
                    // Connected, but not in this network: dialling would change nothing.
                    None if snapshot.tunnel(peer).is_some() => return Err(DropReason::NoTunnel),
                    None => return Err(self.ask_for(peer)),
                }
                filled.framed += count.packets;
                if internet == Internet::From {
                    filled.carried_receive.add(count);
                }
            }
            Verdict::Hairpin => {
                // Still whole, so the header before it holds, unless `settle` has done what it asks for.
                if !partial {
                    header[0] &= !NEEDS_CSUM;
                }
                self.tun.write(&[IoSlice::new(&self.buffer[..n])]).map_err(|_| DropReason::TunError)?;
                filled.hairpin.add(count);
                match internet {
                    Internet::No => {}
                    Internet::To => filled.own_egress_transmit.add(count),
                    Internet::From => filled.own_egress_receive.add(count),
                }
            }
            Verdict::Drop(reason) => return Err(reason),
            Verdict::Deliver => return Err(DropReason::Malformed),
        }
        filled.mapped += if mapped { count.packets } else { 0 };
        Ok(())
    }

    /// Sends what the batch holds, a peer at a time, makes ready for the next, and counts.
    fn flush(&mut self, now: Instant, filled: &mut Filled) {
        let (counters, network) = (&self.shared.counters, self.network);
        let mut transmit = TrafficCount::default();
        self.peers.send_all(now, network, self.worker, |sent| {
            transmit.add(TrafficCount { packets: sent.packets, bytes: sent.inner_bytes() });
            filled.drops.add(DropReason::TooBig, sent.too_big);
            filled.drops.add(DropReason::QueueFull, sent.queue_full);
            filled.drops.add(DropReason::NoTunnel, sent.gone);
            counters.waited(Worker::Outbound(network, self.worker), sent.waited);
        });
        for (flow, count) in [
            (Flow::Transmit, transmit),
            (Flow::Hairpin, filled.hairpin),
            (Flow::OwnEgressTransmit, filled.own_egress_transmit),
            (Flow::OwnEgressReceive, filled.own_egress_receive),
            (Flow::CarriedReceive, filled.carried_receive),
        ] {
            counters.traffic(network, flow, count);
        }
        counters.mapped(Direction::Outbound, network, filled.mapped);
        counters.dropped(Direction::Outbound, &filled.drops);
    }

    /// Forgets what is idle, publishes how many flows there are, and ends those whose egress node is drained.
    fn look_after_flows(&mut self, now: Instant, snapshot: &Snapshot, filled: &mut Filled) {
        let (counters, network) = (&self.shared.counters, self.network);
        let net = snapshot.fib.network(network);
        let drained = net.map(|net| &*net.spec().egress_drained);
        let drains = drained.is_some_and(|drained| !drained.is_empty());
        // Not locked with each batch, for nothing: others may be at it. While nothing is drained there is nothing to do but once a
        // second.
        if self.now == self.care.at && !drains && !self.care.drained && !self.flows.has_resets() {
            return;
        }
        (self.care.at, self.care.drained) = (self.now, drains);
        let mut resets = Vec::new();
        let done = self.flows.tend(drained, self.now, &mut resets, |flows| {
            counters.pin(network, flows.counts());
            counters.flow_overflows(network, flows.take_overflows());
        });
        self.care.evacuates = !done;
        let Some(net) = net else { return };
        self.care.resets += resets.iter().filter(|reset| reset.in_progress).count() as u64;
        for reset in &resets {
            self.answer(&reset.to_vm());
            let mut packet = reset.to_server();
            let verdict = forward::translate_by(net, reset.egress, &mut packet).verdict;
            match verdict {
                Verdict::Hairpin => self.answer(&packet),
                Verdict::Tunnel(peer) => {
                    // without a tunnel nothing can be told to the server; smaller than any path's limit
                    let count = TrafficCount { packets: 1, bytes: packet.len() as u64 };
                    if let Some(to) = self.peers.of_batch(snapshot, peer, network) {
                        let _ = to.push(&VnetHdr::default(), &packet, false, count, Internet::To);
                    }
                }
                Verdict::Drop(_) | Verdict::Deliver => {}
            }
        }
        if !resets.is_empty() {
            self.flush(now, filled);
            *filled = Filled::default();
        }
        if done && self.care.resets > 0 {
            self.flows.by(self.worker).flows(|flows| self.shared.counters.pin(self.network, flows.counts()));
            let network = net.spec().name.clone();
            tell(Notice::FlowsReset { network, count: std::mem::take(&mut self.care.resets) });
        }
    }

    /// Writes a packet of our own into the TUN. Best effort, as all that is written there.
    fn answer(&self, packet: &[u8]) {
        let header = [0; VNET_HEADER];
        if let Err(error) = self.tun.write(&[IoSlice::new(&header), IoSlice::new(packet)]) {
            tracing::trace!(%error, "a RST is not taken by the device");
        }
    }

    /// Tells control that packets wait for `peer`. This one is dropped: whoever sent it tries again, and a queue here
    /// would need a bound and a clock.
    fn ask_for(&mut self, peer: PeerIx) -> DropReason {
        let now = Instant::now();
        let asked = self.asked.get(&peer);
        if asked.is_none_or(|at| now.saturating_duration_since(*at) >= ASK_EVERY)
            && self.shared.wanted.try_send(peer).is_ok()
        {
            self.asked.insert(peer, now);
        }
        DropReason::NoTunnel
    }
}

/// The peers of one batch and their frames.
#[derive(Default)]
struct Peers {
    current: Vec<ToPeer>,
    /// By `PeerIx`: one more than the place in `current`, or 0.
    slots: Vec<u32>,
    /// Buffers of earlier batches.
    spare: Vec<OutBatch>,
    company: Company,
}

/// What a batch holds for one peer.
struct ToPeer {
    peer: PeerIx,
    tunnel: Arc<Tunnel>,
    handle: u8,
    max_inner: usize,
    frames: OutBatch,
    /// Of them, those to the Internet, with the peer as egress node.
    egress: TrafficCount,
}

impl Peers {
    /// The peer's part of the batch; `None` if it has no tunnel, or takes no packets of the network.
    fn of_batch(&mut self, snapshot: &Snapshot, peer: PeerIx, network: NetworkIx) -> Option<&mut ToPeer> {
        let ix = peer.0 as usize;
        if let Some(place) = self.slots.get(ix).copied().filter(|place| *place > 0) {
            return self.current.get_mut(place as usize - 1);
        }
        let tunnel = snapshot.tunnel(peer)?.clone();
        let (handle, max_inner) = (tunnel.handle(network)?, tunnel.max_inner());
        if self.slots.len() <= ix {
            self.slots.resize(ix + 1, 0);
        }
        let frames = tunnel.batch(self.spare.pop().unwrap_or_default());
        let egress = TrafficCount::default();
        self.current.push(ToPeer { peer, tunnel, handle, max_inner, frames, egress });
        self.slots[ix] = self.current.len() as u32;
        self.current.last_mut()
    }

    /// Sends each part by the way of a worker, and says what became of it.
    fn send_all(&mut self, now: Instant, network: NetworkIx, worker: u8, mut report: impl FnMut(Sent)) {
        for mut to in self.current.drain(..) {
            to.tunnel.count_egress(Direction::Outbound, network, to.egress);
            let turn = Turn { worker, others: self.company.has_others(to.peer, now) };
            let sent = to.tunnel.send(turn, &mut to.frames);
            if sent.queue_full > 0 {
                self.company.handle_full(to.peer);
            } else if sent.packets > 0 {
                self.company.handle_sent(to.peer, now);
            }
            report(sent);
            if let Some(slot) = self.slots.get_mut(to.peer.0 as usize) {
                *slot = 0;
            }
            self.spare.push(to.frames);
        }
    }
}

impl ToPeer {
    /// Adds a packet, cut if it is a superpacket.
    fn push(
        &mut self,
        vnet: &VnetHdr,
        packet: &[u8],
        partial: bool,
        count: TrafficCount,
        internet: Internet,
    ) -> Result<(), DropReason> {
        let header = |checksum_partial| FrameHeader { network: self.handle, checksum_partial };
        if vnet.is_superpacket() {
            let mut segments = segment::cut(vnet, packet).map_err(|_| DropReason::Malformed)?;
            if segments.count_left() > MAX_SEGMENTS {
                return Err(DropReason::Malformed);
            }
            if segments.max_len() > self.max_inner {
                return Err(DropReason::TooBig);
            }
            while let Some((head, payload)) = segments.next_segment() {
                self.frames.push(header(true), head, payload);
            }
        } else {
            if packet.len() > self.max_inner {
                return Err(DropReason::TooBig);
            }
            self.frames.push(header(partial), packet, &[]);
        }
        if internet == Internet::To {
            self.egress.add(count);
        }
        Ok(())
    }
}
