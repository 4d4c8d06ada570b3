//! Counts as read.

use std::time::Duration;

use super::{Direction, FLOWS, Flow, TrafficCount, Worker};
use crate::forward::DropReason;
use crate::forward::fib::NetworkIx;

/// Counts as read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// VM to mesh.
    pub outbound: DirectionSnapshot,
    /// Mesh to VM.
    pub inbound: DirectionSnapshot,
    pub(super) networks: Vec<NetworkSnapshot>,
    /// Network by network.
    pub(super) outbound_workers: Vec<Vec<WorkerSnapshot>>,
    pub(super) inbound_worker: WorkerSnapshot,
    pub(super) lanes_workers: Vec<WorkerSnapshot>,
    /// Superpackets that lanes threads have received and not written yet, now.
    pub backlog: u64,
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
            Worker::Outbound(network, worker) => {
                let of_network = self.outbound_workers.get(usize::from(network.0));
                of_network.and_then(|workers| workers.get(usize::from(worker))).copied().unwrap_or_default()
            }
            Worker::Inbound => self.inbound_worker,
            Worker::Lanes(worker) => self.lanes_workers.get(usize::from(worker)).copied().unwrap_or_default(),
        }
    }

    /// The workers of a network that there are, or would be if there were the network.
    pub fn outbound_workers(&self, network: NetworkIx) -> impl Iterator<Item = Worker> + use<> {
        let workers = self.outbound_workers.get(usize::from(network.0)).map_or(0, Vec::len);
        (0..workers).map(move |worker| Worker::Outbound(network, worker as u8))
    }

    /// Those from the mesh, to all networks.
    pub fn inbound_workers(&self) -> impl Iterator<Item = Worker> + use<> {
        let lanes = (0..self.lanes_workers.len()).map(|worker| Worker::Lanes(worker as u8));
        [Worker::Inbound].into_iter().chain(lanes)
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
    pub(super) flows: [TrafficCount; FLOWS],
    pub(super) mapped: [u64; 2],
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
