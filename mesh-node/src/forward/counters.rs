//! Counts of the packet path. Each field has one writer, the loop of its direction, so that an add is a load and a store
//! without a locked instruction. Any number of readers; what they read of different fields need not be of one instant.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use mesh_proto::limits::MAX_NETWORKS;

use super::DropReason;
use super::fib::NetworkIx;

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
        self.0.fetch_add(n, Relaxed);
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
    fn add(&self, packets: u64, bytes: u64) {
        self.packets.add(packets);
        self.bytes.add(bytes);
    }

    fn read(&self) -> TrafficCount {
        TrafficCount { packets: self.packets.read(), bytes: self.bytes.read() }
    }
}

/// Packets and bytes, as read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrafficCount {
    /// Packets.
    pub packets: u64,
    /// Bytes of inner packets.
    pub bytes: u64,
}

/// What one peer sent and was sent: kept by its tunnel.
#[derive(Debug, Default)]
pub struct PeerCounters {
    traffic: [Traffic; 2],
}

impl PeerCounters {
    /// Counts packets to (outbound) or from (inbound) the peer.
    pub fn add(&self, direction: Direction, packets: u64, bytes: u64) {
        self.traffic[direction as usize].add(packets, bytes);
    }

    /// The count.
    pub fn read(&self, direction: Direction) -> TrafficCount {
        self.traffic[direction as usize].read()
    }
}

#[derive(Debug, Default)]
struct PerDirection {
    dropped: [Count; DropReason::ALL.len()],
    networks: Vec<NetworkTraffic>,
}

#[derive(Debug, Default)]
struct NetworkTraffic {
    traffic: Traffic,
    mapped: Count,
}

/// All counts that are not a peer's. One per pair of loops.
#[derive(Debug)]
pub struct Counters {
    directions: [PerDirection; 2],
}

impl Default for Counters {
    fn default() -> Self {
        Self::new()
    }
}

impl Counters {
    /// All zero, with room for every network there can be.
    pub fn new() -> Self {
        let direction = || PerDirection {
            networks: (0..MAX_NETWORKS).map(|_| NetworkTraffic::default()).collect(),
            ..PerDirection::default()
        };
        Self { directions: [direction(), direction()] }
    }

    /// Counts dropped packets.
    pub fn dropped(&self, direction: Direction, reason: DropReason, packets: u64) {
        self.directions[direction as usize].dropped[reason as usize].add(packets);
    }

    /// Counts packets of a network that went on; a network beyond the limit is not counted.
    pub fn traffic(&self, direction: Direction, network: NetworkIx, packets: u64, bytes: u64) {
        if let Some(network) = self.network(direction, network) {
            network.traffic.add(packets, bytes);
        }
    }

    /// Counts packets of a network whose addresses were mapped.
    pub fn mapped(&self, direction: Direction, network: NetworkIx, packets: u64) {
        if let Some(network) = self.network(direction, network) {
            network.mapped.add(packets);
        }
    }

    fn network(&self, direction: Direction, network: NetworkIx) -> Option<&NetworkTraffic> {
        self.directions[direction as usize].networks.get(usize::from(network.0))
    }

    /// Reads everything.
    pub fn snapshot(&self) -> Snapshot {
        let direction = |d: &PerDirection| DirectionSnapshot {
            dropped: DropReason::ALL.iter().map(|&r| (r, d.dropped[r as usize].read())).collect(),
            networks: d
                .networks
                .iter()
                .map(|n| NetworkSnapshot { traffic: n.traffic.read(), mapped: n.mapped.read() })
                .collect(),
        };
        let [outbound, inbound] = &self.directions;
        Snapshot { outbound: direction(outbound), inbound: direction(inbound) }
    }
}

/// Counts as read, both ways.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// VM to mesh.
    pub outbound: DirectionSnapshot,
    /// Mesh to VM.
    pub inbound: DirectionSnapshot,
}

impl Snapshot {
    /// The counts of a direction.
    pub fn direction(&self, direction: Direction) -> &DirectionSnapshot {
        match direction {
            Direction::Outbound => &self.outbound,
            Direction::Inbound => &self.inbound,
        }
    }
}

/// Counts of one direction as read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DirectionSnapshot {
    /// Every reason, also those at zero.
    pub dropped: Vec<(DropReason, u64)>,
    /// By `NetworkIx`.
    pub networks: Vec<NetworkSnapshot>,
}

/// Counts of one network and direction as read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetworkSnapshot {
    /// What went on.
    pub traffic: TrafficCount,
    /// How many of its packets were mapped.
    pub mapped: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_read() {
        let counters = Counters::new();
        counters.dropped(Direction::Inbound, DropReason::SourceNotOwned, 2);
        counters.traffic(Direction::Outbound, NetworkIx(63), 3, 300);
        counters.traffic(Direction::Outbound, NetworkIx(255), 1, 1);
        counters.mapped(Direction::Outbound, NetworkIx(63), 3);
        let read = counters.snapshot();
        let dropped: Vec<_> = read.inbound.dropped.iter().filter(|(_, n)| *n > 0).collect();
        assert_eq!(dropped, [&(DropReason::SourceNotOwned, 2)]);
        assert_eq!(read.direction(Direction::Outbound).networks[63].traffic.bytes, 300);
        assert_eq!(read.outbound.networks[63].mapped, 3);
        assert_eq!(read.outbound.networks.len(), MAX_NETWORKS);
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
