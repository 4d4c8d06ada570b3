//! How one worker's packets get to one peer: a socket of ours, a port of theirs, and the lane in use between them.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::socket::{Destination, LaneSocket};
use crate::io::notices::tell;
use crate::io::quic::path::Beside;
use crate::notice::Notice;
use crate::tunnel::lane::proof::{Ask, Proof};
use crate::tunnel::lane::seal::Sealer;
use crate::tunnel::lane::train::{Packer, Taken};
use crate::tunnel::lane::{HEADER, TAG};
use crate::tunnel::{OutBatch, Sent};

/// Says of a worker that half of its lane is used; `false`: not now, ask again.
pub type HalfUsed = Arc<dyn Fn(u8, u32) -> bool + Send + Sync>;

/// One worker's.
pub(super) struct Way {
    worker: u8,
    socket: Arc<LaneSocket>,
    to: Destination,
    half_used: HalfUsed,
    /// Taken once a batch: of several networks' threads one at a time sends on a lane.
    sending: Mutex<Sending>,
    /// A lane to change to, which never waits for a batch under way.
    next: Mutex<Option<Current>>,
    has_next: AtomicBool,
    /// When the peer has said last that packets get through; until it is taken note of.
    heard: Mutex<Option<Instant>>,
    /// It was asked in vain again and again.
    unheard: AtomicBool,
    /// Packets that the lane in use may still carry; 0: none is in use.
    left: AtomicU64,
}

#[derive(Debug, Default)]
struct Sending {
    lane: Option<Current>,
    packer: Packer,
    proof: Proof,
}

#[derive(Debug)]
struct Current {
    number: u32,
    sealer: Sealer,
    /// Packets left when the next lane is asked for.
    ask_at: u64,
    asked: bool,
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Way").field("to", &self.to).field("left", &self.left).finish_non_exhaustive()
    }
}

impl Way {
    /// From a socket of ours to an address of theirs; without a lane so far.
    pub(super) fn new(worker: u8, socket: Arc<LaneSocket>, to: Destination, half_used: HalfUsed) -> Self {
        Self {
            worker,
            socket,
            to,
            half_used,
            sending: Mutex::default(),
            next: Mutex::default(),
            has_next: AtomicBool::new(false),
            heard: Mutex::default(),
            unheard: AtomicBool::new(false),
            left: AtomicU64::new(0),
        }
    }

    /// Changes to this lane with the next batch.
    pub(super) fn change(&self, number: u32, sealer: Sealer) {
        self.left.store(sealer.left(), Relaxed);
        let ask_at = sealer.left() / 2;
        *lock(&self.next) = Some(Current { number, sealer, ask_at, asked: false });
        self.has_next.store(true, Relaxed);
    }

    /// The peer has heard what came this way.
    pub(super) fn heard(&self, now: Instant) {
        *lock(&self.heard) = Some(now);
        self.unheard.store(false, Relaxed);
    }

    /// Packets that the lane in use may still carry; 0: none is in use.
    pub(super) fn left(&self) -> u64 {
        self.left.load(Relaxed)
    }

    /// Our port and the peer's, where it does not hear what is sent from the one to the other.
    pub(super) fn unheard(&self) -> Option<(u16, u16)> {
        if !self.unheard.load(Relaxed) {
            return None;
        }
        Some((self.socket.local_addr().ok()?.port(), self.to.address().port()))
    }

    /// Sends what the lane takes; the frames that stay in the batch are for another way. `others`: a wait would stop what goes to
    /// them. `first`: the first worker's way, for those of another one. Its ports are taken while it is not known that packets get
    /// through between this one's.
    pub(super) fn send(
        &self,
        others: bool,
        batch: &mut OutBatch,
        largest: usize,
        beside: &Beside,
        first: Option<&Self>,
    ) -> Sent {
        let mut sending = self.sending();
        let Sending { lane, packer, proof } = &mut *sending;
        let Some(current) = lane else { return Sent::default() };
        let Self { socket, to, .. } = match first {
            Some(first) if !self.gets_through(current, proof, beside) => first,
            _ => self,
        };
        let Some(granted) = socket.patience(to, others) else {
            // no work for what is lost anyway
            let sent = Sent { queue_full: batch.len() as u64, ..Sent::default() };
            batch.clear();
            return sent;
        };
        let mut unused = granted;
        let (mut datagrams, mut calls, mut too_big) = (0, 0, 0);
        let mut packed = packer.pack(batch, &mut current.sealer, largest, |train| {
            let handed = socket.send(train, to, &mut unused);
            datagrams += handed.datagrams;
            calls += handed.calls;
            too_big += u64::from(handed.taken == Taken::TooBig);
            handed.taken
        });
        packed.sent.waited = granted.saturating_sub(unused);
        socket.note_full(to, packed.sent.queue_full > 0);
        batch.keep_last(packed.left);
        beside.sent(datagrams, calls, too_big);
        let left = current.sealer.left();
        if !current.asked && left <= current.ask_at {
            current.asked = (self.half_used)(self.worker, current.number);
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

    /// Whether what is sent now arrives, as far as is known. Now and then a packet without frames asks.
    fn gets_through(&self, current: &mut Current, proof: &mut Proof, beside: &Beside) -> bool {
        if let Some(at) = lock(&self.heard).take() {
            proof.handle_heard(at);
        }
        let now = Instant::now();
        let ask = proof.poll_ask(now);
        self.unheard.store(proof.is_in_vain(), Relaxed);
        if ask == Ask::Tell {
            tell(Notice::WorkerUnheard { worker: self.worker.into(), endpoint: self.to.address() });
        }
        let mut packet = [0; HEADER + 1 + TAG];
        if ask != Ask::No && current.sealer.seal(&mut packet).is_ok() {
            let handed = self.socket.send_past(&packet, &self.to);
            beside.sent(handed.datagrams, handed.calls, 0);
        }
        proof.holds(now)
    }

    /// On the lane to be used.
    fn sending(&self) -> MutexGuard<'_, Sending> {
        let mut sending = lock(&self.sending);
        if self.has_next.swap(false, Relaxed)
            && let Some(next) = lock(&self.next).take()
        {
            sending.lane = Some(next);
        }
        sending
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
