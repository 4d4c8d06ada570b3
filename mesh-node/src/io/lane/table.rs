//! Lanes that this node can receive, by ID. The lanes thread reads it without waiting; the control loop changes it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};

use crate::forward::counters::LaneCount;
use crate::io::liveness::Heard;
use crate::tunnel::Tunnel;
use crate::tunnel::lane::LaneId;
use crate::tunnel::lane::open::Opener;

/// Between two answers to the peer's questions, of which an honest one asks fewer.
const ANSWER_EVERY: Duration = Duration::from_millis(500);

/// Has the peer told that its question came; `false`: not now.
pub type Answer = Box<dyn Fn() -> bool + Send + Sync>;

/// A lane's receiving end, and whose it is.
#[derive(Debug)]
pub struct LaneEnd {
    /// Whom its packets come from: TLS says so, no packet does.
    pub tunnel: Arc<Tunnel>,
    /// When anything came last.
    pub heard: Arc<Heard>,
    /// The lanes thread has it, a message's datagrams at a time; the control loop once, at the lane's end.
    opener: Mutex<Opener>,
    /// Whose lane it is, on either side: to its queues what comes is written, so that the kernel gives the answers to it.
    worker: u8,
    /// Of a worker after the first.
    answering: Option<Answering>,
}

/// Answers the question whether packets arrive.
struct Answering {
    answer: Answer,
    last: Mutex<Option<Instant>>,
}

impl fmt::Debug for Answering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answering").field("last", &self.last).finish_non_exhaustive()
    }
}

impl LaneEnd {
    /// Of a tunnel, and of its first worker.
    pub fn new(tunnel: Arc<Tunnel>, heard: Arc<Heard>, opener: Opener) -> Self {
        Self { tunnel, heard, opener: Mutex::new(opener), worker: 0, answering: None }
    }

    /// The same of another worker, whose sender asks whether it is heard.
    pub fn of_worker(self, worker: u8, answer: Answer) -> Self {
        Self { worker, answering: Some(Answering { answer, last: Mutex::default() }), ..self }
    }

    /// Whose it is.
    pub fn worker(&self) -> u8 {
        self.worker
    }

    /// A packet without frames has come: a question.
    pub fn asked(&self) {
        let Some(Answering { answer, last }) = &self.answering else { return };
        let now = Instant::now();
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|at| now.saturating_duration_since(at) >= ANSWER_EVERY) && answer() {
            *last = Some(now);
        }
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
