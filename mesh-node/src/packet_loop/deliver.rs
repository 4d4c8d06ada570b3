//! Mesh to VM, once a frame is out of its tunnel: to which network, whether it may, and into the TUN, joined with others.

use std::io::IoSlice;

use mesh_proto::frame::FrameHeader;
use mesh_proto::ip::Packet;
use mesh_proto::limits::FRAME_HEADER;

use super::queues::Queues;
use crate::config::offloads::Offload;
use crate::forward::counters::{Counters, Direction, Drops, Flow, TrafficCount};
use crate::forward::fib::NetworkIx;
use crate::forward::segment::{Coalescer, Output, Piece};
use crate::forward::{self, DropReason, Internet, Outcome, Verdict};
use crate::io::tun::Tun;
use crate::tunnel::{Snapshot, Tunnel};

/// The packets of a batch by network. They lie in the caller's buffers, where they are rewritten, until [`Self::drain`].
#[derive(Default)]
pub(super) struct ToNetworks {
    /// By `NetworkIx`.
    networks: Vec<Option<ForNetwork>>,
    /// Which of them this batch has packets for.
    used: Vec<NetworkIx>,
}

/// What one batch is delivered with.
pub(super) struct Means<'a> {
    pub(super) snapshot: &'a Snapshot,
    /// By `NetworkIx`.
    pub(super) tuns: &'a [Option<Queues>],
    /// Whose queues are written to.
    pub(super) worker: u8,
}

impl Means<'_> {
    /// Where packets of a network are written.
    fn tun(&self, network: NetworkIx) -> Option<&Tun> {
        let queues = self.tuns.get(usize::from(network.0))?.as_ref()?;
        Some(queues.of(self.worker))
    }
}

/// What is decided about a packet that is delivered, and holds for those that are joined to it.
#[derive(Clone, Copy, Default)]
struct Decided {
    mapped: bool,
    internet: Internet,
}

/// What a batch holds for one network.
struct ForNetwork {
    coalescer: Coalescer<Decided>,
    mapped: u64,
    /// From the Internet, with the sender as egress node; to the Internet, with this node as egress node.
    from_internet: TrafficCount,
    to_internet: TrafficCount,
}

impl ForNetwork {
    fn new(tun: &Tun) -> Self {
        Self {
            coalescer: Coalescer::new(tun.offloads().has(Offload::Uso)),
            mapped: 0,
            from_internet: TrafficCount::default(),
            to_internet: TrafficCount::default(),
        }
    }
}

impl ToNetworks {
    /// Checks and maps the packet in a frame, which lies at `start` of the caller's buffer number `buffer`, and puts it to those
    /// of its network. One that continues a superpacket is looked up and mapped with that.
    pub(super) fn put(
        &mut self,
        means: &Means<'_>,
        from: &Tunnel,
        buffer: u32,
        start: usize,
        frame: &mut [u8],
    ) -> Result<(), DropReason> {
        let (FrameHeader { network, checksum_partial }, _) =
            FrameHeader::decode(frame).map_err(|_| DropReason::BadFrame)?;
        let packet = &mut frame[FRAME_HEADER..];
        let network = NetworkIx(network);
        let ix = usize::from(network.0);
        let net = means.snapshot.fib.network(network).ok_or(DropReason::UnknownNetwork)?;
        // The device comes after the snapshot that names the network, and goes before it.
        let tun = means.tun(network).ok_or(DropReason::UnknownNetwork)?;
        let layout = *Packet::parse(&*packet).map_err(|_| DropReason::Malformed)?.layout();
        if self.networks.len() <= ix {
            self.networks.resize_with(ix + 1, || None);
        }
        let to = self.networks[ix].get_or_insert_with(|| ForNetwork::new(tun));
        let is_first = to.coalescer.is_empty();
        let at = (buffer, start + FRAME_HEADER);
        let Decided { mapped, internet } =
            to.coalescer.take(at, packet, layout, checksum_partial, |packet| {
                let Outcome { verdict, mapped, internet } =
                    forward::translate_inbound(net, from.peer(), packet, checksum_partial);
                match verdict {
                    Verdict::Deliver => Ok(Decided { mapped, internet }),
                    Verdict::Drop(reason) => Err(reason),
                    Verdict::Tunnel(_) | Verdict::Hairpin => Err(DropReason::ForbiddenDestination),
                }
            })?;
        if is_first {
            self.used.push(network);
        }
        let count = TrafficCount { packets: 1, bytes: packet.len() as u64 };
        match internet {
            Internet::No => {}
            Internet::From => to.from_internet.add(count),
            Internet::To => to.to_internet.add(count),
        }
        to.mapped += u64::from(mapped);
        Ok(())
    }

    /// Gives away what the batch holds, network by network and in order.
    pub(super) fn drain(
        &mut self,
        counters: &Counters,
        from: &Tunnel,
        mut take: impl FnMut(NetworkIx, &Output<'_>),
    ) {
        for network in self.used.drain(..) {
            let Some(Some(of)) = self.networks.get_mut(usize::from(network.0)) else { continue };
            of.coalescer.outputs().for_each(|output| take(network, &output));
            counters.traffic(network, Flow::CarriedTransmit, std::mem::take(&mut of.to_internet));
            from.count_egress(Direction::Inbound, network, std::mem::take(&mut of.from_internet));
            counters.mapped(Direction::Inbound, network, std::mem::take(&mut of.mapped));
            of.coalescer.clear();
        }
    }
}

/// Writes to TUNs, and counts what they take.
#[derive(Default)]
pub(super) struct Writer {
    slices: Vec<IoSlice<'static>>,
    writes: u64,
    /// By `NetworkIx`.
    taken: Vec<TrafficCount>,
    drops: Drops,
}

impl Writer {
    /// One superpacket in one write. Its pieces lie in `buffers`; `count` is what it was on the wire.
    pub(super) fn write(
        &mut self,
        means: &Means<'_>,
        network: NetworkIx,
        output: &Output<'_>,
        count: TrafficCount,
        buffers: &[Vec<u8>],
    ) {
        // the device may have been removed since the packet was checked
        let Some(tun) = means.tun(network) else {
            self.drops.add(DropReason::UnknownNetwork, count.packets);
            return;
        };
        if !write(tun, output, buffers, &mut self.slices) {
            self.drops.add(DropReason::TunError, count.packets);
            return;
        }
        self.writes += 1;
        let ix = usize::from(network.0);
        if self.taken.len() <= ix {
            self.taken.resize_with(ix + 1, TrafficCount::default);
        }
        self.taken[ix].add(count);
    }

    /// Counts what was written and what was not, and says how many writes it was.
    pub(super) fn settle(&mut self, counters: &Counters) -> u64 {
        counters.dropped(Direction::Inbound, &std::mem::take(&mut self.drops));
        for (ix, taken) in self.taken.iter_mut().enumerate().filter(|(_, taken)| taken.packets > 0) {
            counters.traffic(NetworkIx(ix as u8), Flow::Receive, std::mem::take(taken));
        }
        std::mem::take(&mut self.writes)
    }
}

/// The packets that one output was made of.
pub(super) fn on_wire(output: &Output<'_>) -> TrafficCount {
    let payload: u64 = output.pieces.iter().map(|p| u64::from(p.len)).sum();
    let packets = output.packets as u64;
    TrafficCount { packets, bytes: payload + packets * output.header.len() as u64 }
}

/// One superpacket in one write; whether the device took it.
fn write(tun: &Tun, output: &Output<'_>, buffers: &[Vec<u8>], spare: &mut Vec<IoSlice<'static>>) -> bool {
    let mut slices = recycle(std::mem::take(spare));
    slices.push(IoSlice::new(&output.vnet));
    slices.push(IoSlice::new(output.header));
    let bytes = |p: &Piece| &buffers[p.buffer as usize][p.start as usize..(p.start + p.len) as usize];
    slices.extend(output.pieces.iter().map(|p| IoSlice::new(bytes(p))));
    let taken = tun.write(&slices).is_ok();
    *spare = recycle(slices);
    taken
}

/// The same allocation, empty, for slices of another lifetime.
fn recycle<'b>(mut slices: Vec<IoSlice<'_>>) -> Vec<IoSlice<'b>> {
    slices.clear();
    slices.into_iter().map(|_| IoSlice::new(&[])).collect()
}
