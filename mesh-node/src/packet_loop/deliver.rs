//! Mesh to VM, once a frame is out of its tunnel: to which network, whether it may, and into the TUN, joined with others.

use std::io::IoSlice;

use mesh_proto::frame::FrameHeader;
use mesh_proto::ip::Packet;
use mesh_proto::limits::FRAME_HEADER;

use super::Shared;
use super::queues::Queues;
use crate::config::offloads::Offload;
use crate::forward::counters::{Direction, Drops, Flow, TrafficCount};
use crate::forward::fib::NetworkIx;
use crate::forward::segment::{Coalescer, Output, Piece};
use crate::forward::{self, DropReason, Internet, Outcome, Verdict};
use crate::io::tun::Tun;
use crate::tunnel::{Snapshot, Tunnel};

/// The packets of a batch by network. They lie in the caller's buffers, where they are rewritten, until [`Self::write_all`].
#[derive(Default)]
pub(super) struct ToNetworks {
    /// By `NetworkIx`.
    networks: Vec<Option<ForNetwork>>,
    /// Which of them this batch has packets for.
    used: Vec<NetworkIx>,
    slices: Vec<IoSlice<'static>>,
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

impl ToNetworks {
    /// Whether there is nothing to write.
    pub(super) fn is_empty(&self) -> bool {
        self.used.is_empty()
    }

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
        to.count.add(count);
        match internet {
            Internet::No => {}
            Internet::From => to.from_internet.add(count),
            Internet::To => to.to_internet.add(count),
        }
        to.mapped += u64::from(mapped);
        Ok(())
    }

    /// Writes what the batch holds, network by network. Says how many writes it took.
    pub(super) fn write_all(
        &mut self,
        shared: &Shared,
        means: &Means<'_>,
        from: &Tunnel,
        buffers: &[Vec<u8>],
        drops: &mut Drops,
    ) -> u64 {
        let counters = &shared.counters;
        let mut writes = 0;
        for network in self.used.drain(..) {
            let ix = usize::from(network.0);
            let (Some(Some(of)), Some(tun)) = (self.networks.get_mut(ix), means.tun(network)) else {
                continue;
            };
            for output in of.coalescer.outputs() {
                if write(tun, &output, buffers, &mut self.slices) {
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
            from.count_egress(Direction::Inbound, network, std::mem::take(&mut of.from_internet));
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
