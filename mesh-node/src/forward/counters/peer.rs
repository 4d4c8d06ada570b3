//! Counts of one peer.

use mesh_proto::limits::MAX_NETWORKS;

use super::{Count, Direction, Traffic, TrafficCount};
use crate::forward::fib::NetworkIx;

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
