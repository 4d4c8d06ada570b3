//! A lane's sending end as a tunnel's carrier. Until a lane is up, and should one be spent before the next is there, frames
//! travel as DATAGRAM frames of the connection.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::socket::{Destination, LaneSocket};
use crate::io::quic::datagram::Datagrams;
use crate::io::quic::path::Beside;
use crate::tunnel::lane::seal::Sealer;
use crate::tunnel::lane::train::{Packer, Taken};
use crate::tunnel::lane::{HEADER, ROOM, TAG};
use crate::tunnel::{Carrier, OutBatch, Room, Sent};

/// How long one batch may wait for the socket, in all.
const PATIENCE: Duration = Duration::from_millis(20);

/// Says that half of a lane is used; `false`: not now, ask again.
pub type HalfUsed = Box<dyn Fn(u32) -> bool + Send + Sync>;

/// Sends to one peer.
pub struct LaneCarrier {
    socket: Arc<LaneSocket>,
    to: Destination,
    datagrams: Datagrams,
    half_used: HalfUsed,
    /// Taken once a batch: of several networks' threads one at a time sends on a lane.
    sending: Mutex<Sending>,
    /// A lane to change to, which never waits for a batch under way.
    next: Mutex<Option<Current>>,
    has_next: AtomicBool,
    /// Packets that the lane in use may still carry; 0: none is in use.
    left: AtomicU64,
    /// What left on lanes.
    beside: Arc<Beside>,
}

#[derive(Debug, Default)]
struct Sending {
    lane: Option<Current>,
    packer: Packer,
}

#[derive(Debug)]
struct Current {
    number: u32,
    sealer: Sealer,
    /// Packets left when the next lane is asked for.
    ask_at: u64,
    asked: bool,
}

impl fmt::Debug for LaneCarrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LaneCarrier").field("to", &self.to).field("left", &self.left).finish_non_exhaustive()
    }
}

impl LaneCarrier {
    /// To a peer's address, from one of ours, beside `connection`, which hears so; without a lane so far.
    pub fn new(
        socket: Arc<LaneSocket>,
        to: SocketAddr,
        from: Option<IpAddr>,
        connection: quinn::Connection,
        beside: Arc<Beside>,
        half_used: HalfUsed,
    ) -> Self {
        Self {
            to: socket.destination(to, from),
            socket,
            datagrams: Datagrams::new(connection),
            half_used,
            sending: Mutex::default(),
            next: Mutex::default(),
            has_next: AtomicBool::new(false),
            left: AtomicU64::new(0),
            beside,
        }
    }

    /// Changes to this lane with the next batch. The one after it is asked for when half of its packets are used.
    pub fn change(&self, number: u32, sealer: Sealer) {
        self.left.store(sealer.left(), Relaxed);
        let ask_at = sealer.left() / 2;
        *lock(&self.next) = Some(Current { number, sealer, ask_at, asked: false });
        self.has_next.store(true, Relaxed);
    }

    /// Packets that the lane in use may still carry; `None`: frames travel as DATAGRAM frames of the connection.
    pub fn left(&self) -> Option<u64> {
        Some(self.left.load(Relaxed)).filter(|left| *left > 0)
    }

    fn send_on_lane(&self, batch: &mut OutBatch) -> Sent {
        let mut sending = lock(&self.sending);
        if self.has_next.swap(false, Relaxed)
            && let Some(next) = lock(&self.next).take()
        {
            sending.lane = Some(next);
        }
        let Sending { lane, packer } = &mut *sending;
        let Some(current) = lane else { return Sent::default() };
        let mut patience = PATIENCE;
        let (mut datagrams, mut calls, mut too_big) = (0, 0, 0);
        let mut packed = packer.pack(batch, &mut current.sealer, self.largest(), |train| {
            let handed = self.socket.send(train, &self.to, &mut patience);
            datagrams += handed.datagrams;
            calls += handed.calls;
            too_big += u64::from(handed.taken == Taken::TooBig);
            handed.taken
        });
        packed.sent.waited = PATIENCE.saturating_sub(patience);
        batch.keep_last(packed.left);
        self.beside.sent(datagrams, calls, too_big);
        let left = current.sealer.left();
        if !current.asked && left <= current.ask_at {
            current.asked = (self.half_used)(current.number);
        }
        let spent = packed.left > 0;
        // a lane whose successor could not be asked for stays, to ask again with the next batch
        if spent && current.asked {
            *lane = None;
        }
        if !self.has_next.load(Relaxed) {
            self.left.store(if spent { 0 } else { left }, Relaxed);
        }
        packed.sent
    }

    /// UDP payload of the largest packet.
    fn largest(&self) -> usize {
        HEADER + 1 + self.max_frame() + TAG
    }
}

impl Carrier for LaneCarrier {
    fn send(&self, batch: &mut OutBatch) -> Sent {
        // a lane ends with its connection: what is left is counted as such by the other way
        let ended = self.datagrams.closed();
        let mut sent = if ended { Sent::default() } else { self.send_on_lane(batch) };
        if !batch.is_empty() {
            sent.add(self.datagrams.send(batch));
        }
        batch.clear();
        sent
    }

    /// quinn's figure, also for lanes, whose packets are a few bytes smaller: a tunnel's MTU does not change with its carrier.
    fn max_frame(&self) -> usize {
        self.datagrams.max_frame()
    }

    fn room(&self) -> Room {
        ROOM
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
