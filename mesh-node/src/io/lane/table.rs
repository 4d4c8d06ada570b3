//! Lanes that this node can receive, by ID. The lanes thread reads it without waiting; the control loop changes it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwap, Guard};

use crate::forward::counters::LaneCount;
use crate::io::liveness::Heard;
use crate::tunnel::Tunnel;
use crate::tunnel::lane::LaneId;
use crate::tunnel::lane::open::Opener;

/// A lane's receiving end, and whose it is.
#[derive(Debug)]
pub struct LaneEnd {
    /// Whom its packets come from: TLS says so, no packet does.
    pub tunnel: Arc<Tunnel>,
    /// When anything came last.
    pub heard: Arc<Heard>,
    /// The lanes thread has it, a message's datagrams at a time; the control loop once, at the lane's end.
    opener: Mutex<Opener>,
}

impl LaneEnd {
    /// Of a tunnel.
    pub fn new(tunnel: Arc<Tunnel>, heard: Arc<Heard>, opener: Opener) -> Self {
        Self { tunnel, heard, opener: Mutex::new(opener) }
    }

    /// To open packets with.
    pub fn opener(&self) -> MutexGuard<'_, Opener> {
        self.opener.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct LaneTable(ArcSwap<BTreeMap<LaneId, Arc<LaneEnd>>>);

impl LaneTable {
    /// To be looked up in for one batch. Loaded after the batch was received, it has every lane that a packet in it can be for.
    pub fn load(&self) -> Guard<Arc<BTreeMap<LaneId, Arc<LaneEnd>>>> {
        self.0.load()
    }

    /// Adds a lane; `None` if another has that ID, which is too unlikely to be anything but a fault.
    pub fn add(&self, id: LaneId, lane: LaneEnd) -> Option<Arc<LaneEnd>> {
        let lane = Arc::new(lane);
        let before = self.0.rcu(|lanes| {
            let mut lanes = BTreeMap::clone(lanes);
            lanes.entry(id).or_insert_with(|| lane.clone());
            lanes
        });
        (!before.contains_key(&id)).then_some(lane)
    }

    /// Ends a lane: what has not come by now is lost.
    pub fn remove(&self, id: LaneId) {
        let before = self.0.rcu(|lanes| {
            let mut lanes = BTreeMap::clone(lanes);
            lanes.remove(&id);
            lanes
        });
        if let Some(lane) = before.get(&id) {
            let counts = lane.opener().take_last_counts();
            let (lost, reordered) = (counts.lost, counts.reordered);
            lane.tunnel.counters().add_lane(LaneCount { lost, reordered, ..LaneCount::default() });
        }
    }
}
