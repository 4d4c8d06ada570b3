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
//! Drops going out, and what a peer is sent, are added to by one thread per network; every other count has one writer.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh_proto::limits::MAX_NETWORKS;

use super::DropReason;
use super::fib::{Egress, NetworkIx};

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

/// What a peer's lanes saw of the underlay, as read or to be added. In packets of lanes, each of which may hold several inner
/// packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaneCount {
    /// Sent by the peer and missing here.
    pub lost: u64,
    /// Came after a later one.
    pub reordered: u64,
    /// Came twice: refused.
    pub duplicate: u64,
    /// Older than the replay window: refused.
    pub replayed: u64,
    /// Not authentic: refused.
    pub forged: u64,
}

#[derive(Debug, Default)]
struct LaneCounts {
    lost: Count,
    reordered: Count,
    duplicate: Count,
    replayed: Count,
    forged: Count,
}

/// What one peer sent and was sent: kept over its tunnels.
#[derive(Debug)]
pub struct PeerCounters {
    lane: LaneCounts,
    traffic: [Traffic; 2],
    /// By `NetworkIx`: to the Internet by this peer as egress node, and from there.
    egress: Vec<[Traffic; 2]>,
}

impl Default for PeerCounters {
    fn default() -> Self {
        let egress = (0..MAX_NETWORKS).map(|_| Default::default()).collect();
        Self { lane: LaneCounts::default(), traffic: Default::default(), egress }
    }
}

impl PeerCounters {
    /// Counts packets to (outbound) or from (inbound) the peer.
    pub fn add(&self, direction: Direction, packets: u64, bytes: u64) {
        self.traffic[direction as usize].add(TrafficCount { packets, bytes });
    }

    /// The count.
    pub fn read(&self, direction: Direction) -> TrafficCount {
        self.traffic[direction as usize].read()
    }

    /// Counts what a lane saw.
    pub fn add_lane(&self, count: LaneCount) {
        self.lane.lost.add(count.lost);
        self.lane.reordered.add(count.reordered);
        self.lane.duplicate.add(count.duplicate);
        self.lane.replayed.add(count.replayed);
        self.lane.forged.add(count.forged);
    }

    /// The count.
    pub fn read_lane(&self) -> LaneCount {
        LaneCount {
            lost: self.lane.lost.read(),
            reordered: self.lane.reordered.read(),
            duplicate: self.lane.duplicate.read(),
            replayed: self.lane.replayed.read(),
            forged: self.lane.forged.read(),
        }
    }

    /// Counts packets of a network to the Internet (outbound) or from there (inbound), with the peer as egress node.
    pub fn add_egress(&self, direction: Direction, network: NetworkIx, count: TrafficCount) {
        if let Some(egress) = self.egress.get(usize::from(network.0)) {
            egress[direction as usize].add(count);
        }
    }

    /// The count.
    pub fn read_egress(&self, direction: Direction, network: NetworkIx) -> TrafficCount {
        let egress = self.egress.get(usize::from(network.0));
        egress.map(|e| e[direction as usize].read()).unwrap_or_default()
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
    worker: WorkerCounts,
    flow_overflows: Count,
    /// Flows in progress by egress: the latest, put here whole once a second at most.
    pinned: ArcSwap<Vec<(Egress, u64)>>,
}

#[derive(Debug, Default)]
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

/// A worker: a packet thread. Its name is that of the thread, and the metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worker {
    /// From a network's TUN to the tunnels.
    Outbound(NetworkIx),
    /// From the tunnels to every TUN.
    Inbound,
    /// From the UDP socket to every TUN: packets of lanes.
    Lanes,
}

impl Worker {
    /// Its name.
    pub fn name(self) -> String {
        match self {
            Self::Outbound(network) => format!("mesh-out-{}", network.0),
            Self::Inbound => "mesh-in".to_owned(),
            Self::Lanes => "mesh-lanes".to_owned(),
        }
    }

    /// Which way its packets go.
    pub fn direction(self) -> Direction {
        match self {
            Self::Outbound(_) => Direction::Outbound,
            Self::Inbound | Self::Lanes => Direction::Inbound,
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

/// All counts that are not a peer's. One per pair of loops.
#[derive(Debug)]
pub struct Counters {
    dropped: [[Count; DropReason::ALL.len()]; 2],
    /// By `NetworkIx`.
    networks: Vec<NetworkCounts>,
    inbound: WorkerCounts,
    lanes: WorkerCounts,
    /// Whether that worker exists.
    has_lanes: AtomicBool,
    unknown_lane: Count,
    port_dropped: Count,
}

impl Default for Counters {
    fn default() -> Self {
        Self::new()
    }
}

impl Counters {
    /// All zero, with room for every network there can be.
    pub fn new() -> Self {
        Self {
            dropped: Default::default(),
            networks: (0..MAX_NETWORKS).map(|_| NetworkCounts::default()).collect(),
            inbound: WorkerCounts::default(),
            lanes: WorkerCounts::default(),
            has_lanes: AtomicBool::new(false),
            unknown_lane: Count::default(),
            port_dropped: Count::default(),
        }
    }

    /// There is a worker for lanes: its counts exist from now on.
    pub fn add_lanes_worker(&self) {
        self.has_lanes.store(true, Relaxed);
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
    pub fn pin(&self, network: NetworkIx, flows: &[(Egress, u64)]) {
        if let Some(network) = self.networks.get(usize::from(network.0))
            && network.pinned.load().as_slice() != flows
        {
            network.pinned.store(flows.to_vec().into());
        }
    }

    /// Flows of a network in progress that stay with this egress, as of a second ago.
    pub fn pinned(&self, network: NetworkIx, egress: Egress) -> u64 {
        let network = self.networks.get(usize::from(network.0));
        let count = |n: &NetworkCounts| n.pinned.load().iter().find(|(e, _)| *e == egress).map(|(_, n)| *n);
        network.and_then(count).unwrap_or(0)
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
            Worker::Outbound(network) => self.networks.get(usize::from(network.0)).map(|n| &n.worker),
            Worker::Inbound => Some(&self.inbound),
            Worker::Lanes => Some(&self.lanes),
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
            worker: n.worker.read(),
            flow_overflows: n.flow_overflows.read(),
        };
        Snapshot {
            outbound: DirectionSnapshot { dropped: dropped(Direction::Outbound) },
            inbound: DirectionSnapshot { dropped: dropped(Direction::Inbound) },
            networks: self.networks.iter().map(network).collect(),
            inbound_worker: self.inbound.read(),
            lanes_worker: self.lanes.read(),
            has_lanes: self.has_lanes.load(Relaxed),
            unknown_lane: self.unknown_lane.read(),
            port_dropped: self.port_dropped.read(),
        }
    }
}

/// Counts as read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// VM to mesh.
    pub outbound: DirectionSnapshot,
    /// Mesh to VM.
    pub inbound: DirectionSnapshot,
    networks: Vec<NetworkSnapshot>,
    inbound_worker: WorkerSnapshot,
    lanes_worker: WorkerSnapshot,
    /// Whether there is a worker for lanes.
    pub has_lanes: bool,
    /// Datagrams that name a lane that this node does not have.
    pub unknown_lane: u64,
    /// Datagrams that found QUIC's queue behind the shared socket full.
    pub port_dropped: u64,
}

impl Snapshot {
    /// The counts of a direction.
    pub fn direction(&self, direction: Direction) -> &DirectionSnapshot {
        match direction {
            Direction::Outbound => &self.outbound,
            Direction::Inbound => &self.inbound,
        }
    }

    /// The counts of a network; zero for one beyond the limit.
    pub fn network(&self, network: NetworkIx) -> NetworkSnapshot {
        self.networks.get(usize::from(network.0)).copied().unwrap_or_default()
    }

    /// The counts of a worker.
    pub fn worker(&self, worker: Worker) -> WorkerSnapshot {
        match worker {
            Worker::Outbound(network) => self.network(network).worker,
            Worker::Inbound => self.inbound_worker,
            Worker::Lanes => self.lanes_worker,
        }
    }
}

/// Counts of one direction as read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DirectionSnapshot {
    /// Every reason, also those at zero.
    pub dropped: Vec<(DropReason, u64)>,
}

impl DirectionSnapshot {
    /// Over all reasons.
    pub fn all_dropped(&self) -> u64 {
        self.dropped.iter().map(|(_, packets)| packets).sum()
    }
}

/// Counts of one network as read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetworkSnapshot {
    flows: [TrafficCount; FLOWS],
    mapped: [u64; 2],
    worker: WorkerSnapshot,
    /// Flows to the Internet that found no room in the table of flows.
    pub flow_overflows: u64,
}

impl NetworkSnapshot {
    /// Packets counted as such.
    pub fn flow(&self, flow: Flow) -> TrafficCount {
        self.flows[flow as usize]
    }

    /// Packets mapped.
    pub fn mapped(&self, direction: Direction) -> u64 {
        self.mapped[direction as usize]
    }
}

/// Counts of one worker as read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkerSnapshot {
    /// Packets that came in.
    pub packets: u64,
    /// Reads from the TUN, or writes to it.
    pub superpackets: u64,
    /// Batches.
    pub batches: u64,
    /// Time spent on them.
    pub busy: Duration,
    /// Of it, time that a full tunnel was waited for.
    pub waited: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_read() {
        let counters = Counters::new();
        let mut drops = Drops::default();
        drops.add(DropReason::SourceNotOwned, 2);
        counters.dropped(Direction::Inbound, &drops);
        let count = TrafficCount { packets: 3, bytes: 300 };
        counters.traffic(NetworkIx(63), Flow::Transmit, count);
        counters.traffic(NetworkIx(255), Flow::Transmit, count);
        counters.mapped(Direction::Outbound, NetworkIx(63), 3);
        let batch = Batch { packets: 5, superpackets: 1, busy: Duration::from_micros(7) };
        counters.batch(Worker::Outbound(NetworkIx(63)), batch);
        counters.batch(Worker::Outbound(NetworkIx(63)), batch);
        counters.waited(Worker::Outbound(NetworkIx(63)), Duration::from_micros(3));
        let read = counters.snapshot();
        let dropped: Vec<_> = read.inbound.dropped.iter().filter(|(_, n)| *n > 0).collect();
        assert_eq!(dropped, [&(DropReason::SourceNotOwned, 2)]);
        assert_eq!((read.inbound.all_dropped(), read.outbound.all_dropped()), (2, 0));
        let network = read.network(NetworkIx(63));
        assert_eq!((network.flow(Flow::Transmit), network.flow(Flow::Receive).packets), (count, 0));
        assert_eq!((network.mapped(Direction::Outbound), network.mapped(Direction::Inbound)), (3, 0));
        assert_eq!(read.network(NetworkIx(255)), NetworkSnapshot::default());
        counters.pin(NetworkIx(3), &[(Egress::Own, 4)]);
        assert_eq!(counters.pinned(NetworkIx(3), Egress::Own), 4);
        assert_eq!(counters.pinned(NetworkIx(2), Egress::Own), 0);
        let worker = read.worker(Worker::Outbound(NetworkIx(63)));
        assert_eq!((worker.packets, worker.batches, worker.busy), (10, 2, Duration::from_micros(14)));
        assert_eq!(worker.waited, Duration::from_micros(3));
        assert_eq!(read.worker(Worker::Inbound), WorkerSnapshot::default());
    }

    #[test]
    fn a_peer_s_egress_is_counted_per_network_and_direction() {
        let counters = PeerCounters::default();
        let count = TrafficCount { packets: 1, bytes: 84 };
        counters.add_egress(Direction::Outbound, NetworkIx(2), count);
        assert_eq!(counters.read_egress(Direction::Outbound, NetworkIx(2)), count);
        for (direction, network) in
            [(Direction::Inbound, 2), (Direction::Outbound, 1), (Direction::Outbound, 255)]
        {
            assert_eq!(counters.read_egress(direction, NetworkIx(network)), TrafficCount::default());
        }
    }

    #[test]
    fn every_reason_has_its_own_number_and_label() {
        for (number, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, number);
        }
        let labels: std::collections::BTreeSet<_> = DropReason::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(labels.len(), DropReason::ALL.len());
    }
}
