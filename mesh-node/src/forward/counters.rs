//! Counts of the packet path. Added to once a batch, never per packet, and with relaxed order. What readers see of
//! different counts need not be of one instant; once the path is quiet it is exact.
//!
//! All are in packets as they would be on a wire: a superpacket counts as its segments. So, on every node,
//!
//! ```text
//!  outbound:  workers' packets = transmitted to peers + hairpinned + dropped
//!  inbound:   workers' packets = received by networks + dropped
//! ```
//!
//! but for the RSTs that this node itself makes for servers of drained flows: those are transmitted, and came from nowhere.
//!
//! A worker's counts are added to by its own thread only, and the number of flows that stay by the first worker of their network;
//! all others by every thread that has packets of that kind.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh_proto::limits::MAX_NETWORKS;

use super::DropReason;
use super::fib::NetworkIx;
use super::flows::Pinned;

mod peer;
mod snapshot;

pub use peer::{LaneCount, PeerCounters};
pub use snapshot::{DirectionSnapshot, NetworkSnapshot, Snapshot, WorkerSnapshot};

/// Which way a packet goes, seen from the VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// VM to mesh.
    Outbound,
    /// Mesh to VM.
    Inbound,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Outbound, Self::Inbound];

    /// The metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// One count.
#[derive(Debug, Default)]
struct Count(AtomicU64);

impl Count {
    fn add(&self, n: u64) {
        if n > 0 {
            self.0.fetch_add(n, Relaxed);
        }
    }

    fn read(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

#[derive(Debug, Default)]
struct Traffic {
    packets: Count,
    bytes: Count,
}

impl Traffic {
    fn add(&self, count: TrafficCount) {
        self.packets.add(count.packets);
        self.bytes.add(count.bytes);
    }

    fn read(&self) -> TrafficCount {
        TrafficCount { packets: self.packets.read(), bytes: self.bytes.read() }
    }
}

/// Packets and bytes, as read or to be added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrafficCount {
    /// Packets.
    pub packets: u64,
    /// Bytes of inner packets.
    pub bytes: u64,
}

impl TrafficCount {
    /// Adds another.
    pub fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// What a network's packets are counted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Flow {
    /// Taken by a tunnel.
    Transmit,
    /// Delivered from the mesh.
    Receive,
    /// Back into the TUN they came from.
    Hairpin,
    /// Of our own VMs to the Internet, by this node as their egress node. Part of `Hairpin`.
    OwnEgressTransmit,
    /// The way back. Part of `Hairpin`.
    OwnEgressReceive,
    /// Of other nodes' VMs to the Internet, by this node as their egress node. Part of `Receive`.
    CarriedTransmit,
    /// The way back. Part of `Transmit`, as far as the tunnel takes them.
    CarriedReceive,
}

const FLOWS: usize = Flow::CarriedReceive as usize + 1;

#[derive(Debug, Default)]
struct NetworkCounts {
    flows: [Traffic; FLOWS],
    mapped: [Count; 2],
    /// By number.
    workers: Box<[WorkerCounts]>,
    flow_overflows: Count,
    /// Flows in progress by egress: the latest, put here whole once a second at most.
    pinned: ArcSwap<Vec<Pinned>>,
}

/// In cache lines of its own: two threads that count do not wait for each other.
#[derive(Debug, Default)]
#[repr(align(64))]
struct WorkerCounts {
    packets: Count,
    superpackets: Count,
    batches: Count,
    busy_nanos: Count,
    waited_nanos: Count,
}

/// One batch of a worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Batch {
    /// Packets that came in.
    pub packets: u64,
    /// Reads from the TUN (outbound) or writes to it (inbound), a superpacket each.
    pub superpackets: u64,
    /// Time spent on it, waiting for a full tunnel included.
    pub busy: Duration,
}

impl WorkerCounts {
    fn add(&self, batch: Batch) {
        self.packets.add(batch.packets);
        self.superpackets.add(batch.superpackets);
        self.batches.add(1);
        self.busy_nanos.add(u64::try_from(batch.busy.as_nanos()).unwrap_or(u64::MAX));
    }

    fn read(&self) -> WorkerSnapshot {
        WorkerSnapshot {
            packets: self.packets.read(),
            superpackets: self.superpackets.read(),
            batches: self.batches.read(),
            busy: Duration::from_nanos(self.busy_nanos.read()),
            waited: Duration::from_nanos(self.waited_nanos.read()),
        }
    }
}

/// A worker: a packet thread. Its name is that of the thread, and the metric label. Where there are several of a kind, the
/// number is the last field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worker {
    /// From a queue of a network's TUN to the tunnels.
    Outbound(NetworkIx, u8),
    /// From the tunnels to every TUN.
    Inbound,
    /// From a UDP socket to every TUN: packets of lanes.
    Lanes(u8),
}

impl Worker {
    /// Its name: at most 15 bytes, which is what the kernel keeps of a thread's.
    pub fn name(self) -> String {
        match self {
            Self::Outbound(network, 0) => format!("mesh-out-{}", network.0),
            Self::Outbound(network, worker) => format!("mesh-out-{}.{worker}", network.0),
            Self::Inbound => "mesh-in".to_owned(),
            Self::Lanes(0) => "mesh-lanes".to_owned(),
            Self::Lanes(worker) => format!("mesh-lanes.{worker}"),
        }
    }

    /// Which way its packets go.
    pub fn direction(self) -> Direction {
        match self {
            Self::Outbound(..) => Direction::Outbound,
            Self::Inbound | Self::Lanes(_) => Direction::Inbound,
        }
    }
}

/// Packets by reason, of one batch.
#[derive(Debug, Clone, Copy, Default)]
pub struct Drops([u64; DropReason::ALL.len()]);

impl Drops {
    /// Counts dropped packets.
    pub fn add(&mut self, reason: DropReason, packets: u64) {
        self.0[reason as usize] += packets;
    }
}

/// All counts that are not a peer's. One per node.
#[derive(Debug)]
pub struct Counters {
    dropped: [[Count; DropReason::ALL.len()]; 2],
    /// By `NetworkIx`.
    networks: Vec<NetworkCounts>,
    inbound: WorkerCounts,
    /// By number.
    lanes: Box<[WorkerCounts]>,
    /// How many of them exist.
    lanes_workers: AtomicU8,
    /// Superpackets that wait in each of them.
    backlogs: Box<[AtomicU64]>,
    unknown_lane: Count,
    port_dropped: Count,
}

impl Default for Counters {
    fn default() -> Self {
        Self::new(1)
    }
}

impl Counters {
    /// All zero, with room for every network there can be, and for so many workers of each.
    pub fn new(workers: u8) -> Self {
        let backlogs = (0..workers).map(|_| AtomicU64::default()).collect();
        let workers = || (0..workers).map(|_| WorkerCounts::default()).collect();
        let network = |_| NetworkCounts { workers: workers(), ..NetworkCounts::default() };
        Self {
            dropped: Default::default(),
            networks: (0..MAX_NETWORKS).map(network).collect(),
            inbound: WorkerCounts::default(),
            lanes: workers(),
            lanes_workers: AtomicU8::new(0),
            backlogs,
            unknown_lane: Count::default(),
            port_dropped: Count::default(),
        }
    }

    /// There is one more worker for lanes, of the next number: its counts exist from now on.
    pub fn add_lanes_worker(&self) {
        self.lanes_workers.fetch_add(1, Relaxed);
    }

    /// So many superpackets wait in the lanes thread of a worker.
    pub fn backlog(&self, worker: u8, waiting: usize) {
        if let Some(backlog) = self.backlogs.get(usize::from(worker)) {
            backlog.store(waiting as u64, Relaxed);
        }
    }

    /// Counts datagrams of no lane that is known, and datagrams that found QUIC's queue full.
    pub fn strays(&self, unknown_lane: u64, port_dropped: u64) {
        self.unknown_lane.add(unknown_lane);
        self.port_dropped.add(port_dropped);
    }

    /// Counts dropped packets.
    pub fn dropped(&self, direction: Direction, drops: &Drops) {
        for (count, packets) in self.dropped[direction as usize].iter().zip(drops.0) {
            count.add(packets);
        }
    }

    /// Counts packets of a network; a network beyond the limit is not counted.
    pub fn traffic(&self, network: NetworkIx, flow: Flow, count: TrafficCount) {
        if let Some(network) = self.networks.get(usize::from(network.0)) {
            network.flows[flow as usize].add(count);
        }
    }

    /// Counts packets of a network whose addresses were mapped.
    pub fn mapped(&self, direction: Direction, network: NetworkIx, packets: u64) {
        if let Some(network) = self.networks.get(usize::from(network.0)) {
            network.mapped[direction as usize].add(packets);
        }
    }

    /// Counts flows of a network that found no room in its table of flows.
    pub fn flow_overflows(&self, network: NetworkIx, flows: u64) {
        if let Some(network) = self.networks.get(usize::from(network.0)) {
            network.flow_overflows.add(flows);
        }
    }

    /// Says how many flows of a network stay with each egress.
    pub fn pin(&self, network: NetworkIx, flows: &[Pinned]) {
        if let Some(network) = self.networks.get(usize::from(network.0))
            && network.pinned.load().as_slice() != flows
        {
            network.pinned.store(flows.to_vec().into());
        }
    }

    /// Flows of a network in progress that stay where they are, as of a second ago.
    pub fn pinned(&self, network: NetworkIx) -> Arc<Vec<Pinned>> {
        let network = self.networks.get(usize::from(network.0));
        network.map(|network| network.pinned.load_full()).unwrap_or_default()
    }

    /// Counts a batch.
    pub fn batch(&self, worker: Worker, batch: Batch) {
        if let Some(worker) = self.worker(worker) {
            worker.add(batch);
        }
    }

    /// Counts time, part of a batch's, that a full tunnel was waited for.
    pub fn waited(&self, worker: Worker, time: Duration) {
        if let Some(worker) = self.worker(worker) {
            worker.waited_nanos.add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        }
    }

    fn worker(&self, worker: Worker) -> Option<&WorkerCounts> {
        match worker {
            Worker::Outbound(network, worker) => {
                self.networks.get(usize::from(network.0))?.workers.get(usize::from(worker))
            }
            Worker::Inbound => Some(&self.inbound),
            Worker::Lanes(worker) => self.lanes.get(usize::from(worker)),
        }
    }

    /// Reads everything.
    pub fn snapshot(&self) -> Snapshot {
        let dropped = |direction: Direction| {
            DropReason::ALL
                .iter()
                .map(|&r| (r, self.dropped[direction as usize][r as usize].read()))
                .collect()
        };
        let network = |n: &NetworkCounts| NetworkSnapshot {
            flows: std::array::from_fn(|flow| n.flows[flow].read()),
            mapped: Direction::ALL.map(|d| n.mapped[d as usize].read()),
            flow_overflows: n.flow_overflows.read(),
        };
        let read = |workers: &[WorkerCounts]| workers.iter().map(WorkerCounts::read).collect();
        let lanes = usize::from(self.lanes_workers.load(Relaxed));
        Snapshot {
            outbound: DirectionSnapshot { dropped: dropped(Direction::Outbound) },
            inbound: DirectionSnapshot { dropped: dropped(Direction::Inbound) },
            networks: self.networks.iter().map(network).collect(),
            outbound_workers: self.networks.iter().map(|n| read(&n.workers)).collect(),
            inbound_worker: self.inbound.read(),
            lanes_workers: self.lanes.iter().take(lanes).map(WorkerCounts::read).collect(),
            backlog: self.backlogs.iter().map(|waiting| waiting.load(Relaxed)).sum(),
            unknown_lane: self.unknown_lane.read(),
            port_dropped: self.port_dropped.read(),
        }
    }
}

#[cfg(test)]
mod tests;
