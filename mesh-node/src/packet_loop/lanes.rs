//! Mesh to VM on lanes: one thread for each worker, from its UDP socket to the TUN of each network.
//!
//! 1. Receive a few messages, each a datagram or a train that GRO joined.
//! 2. A datagram with the ID of a lane of ours is opened where it lies; all others are quinn's, if they came to the first worker.
//! 3. Per frame: header, network, `forward::inbound` with the lane's peer.
//! 4. Join over the whole batch; the superpackets wait by flow, and their bytes where they were received (`backlog`).
//! 5. Write one, or some small ones, each with one call. Then look at the socket again.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mesh_proto::limits::FRAME_HEADER;
use quinn::udp::RecvMeta;

use super::Shared;
use super::backlog::Backlog;
use super::deliver::{Means, ToNetworks, Writer};
use crate::forward::DropReason;
use crate::forward::counters::{Batch, Direction, Drops, LaneCount, Worker};
use crate::io::chance;
use crate::io::lane::LaneWire;
use crate::io::lane::received::Received;
use crate::io::lane::socket::LaneSocket;
use crate::io::lane::table::LaneEnd;
use crate::tunnel::lane::LaneId;
use crate::tunnel::lane::frames::Frames;
use crate::tunnel::lane::open::{Opener, Refused};

/// Datagrams for unknown lanes that quinn gets to see in a second. A stateless reset looks like one, so some have to pass; a
/// flood of them must cost quinn nothing.
const STRAYS_A_SECOND: u32 = 256;

/// Between two tries to read from a socket that answers with an error.
const ERROR_PAUSE: Duration = Duration::from_millis(5);

/// Receives what comes to a worker's socket until told to stop.
pub(super) fn run(shared: &Shared, wire: &LaneWire, worker: u8, socket: &LaneSocket, stop: &AtomicBool) {
    // probes, and quinn's datagrams, are the first's
    let heard = |count| {
        if worker == 0 {
            wire.hearing.served(count);
        }
    };
    let mut lanes = Lanes {
        shared,
        wire,
        worker,
        to: ToNetworks::default(),
        backlog: Backlog::new(chance()),
        writer: Writer::default(),
        tally: Tally::default(),
        strays: Strays { since: Instant::now(), passed: 0 },
    };
    let mut received = Received::default();
    while !stop.load(Relaxed) {
        let room = if received.has_room() { lanes.backlog.room() } else { 0 };
        let message_count = match (room > 0).then(|| socket.receive(&mut received, room)) {
            None => 0,
            Some(Ok(count)) => {
                heard(Some(count));
                count
            }
            Some(Err(error)) => {
                let nothing_there = error.kind() == std::io::ErrorKind::WouldBlock;
                if nothing_there {
                    heard(None);
                } else {
                    // an ICMP error that the kernel remembers for the socket, at worst
                    tracing::debug!(%error, "receive from the UDP socket");
                }
                if lanes.backlog.is_empty() {
                    if !nothing_there || socket.wait().is_err() {
                        std::thread::sleep(ERROR_PAUSE);
                    }
                    continue;
                }
                0
            }
        };
        lanes.turn(&mut received, message_count);
    }
    while !lanes.backlog.is_empty() {
        lanes.turn(&mut received, 0);
    }
}

type LaneMap = BTreeMap<LaneId, Arc<LaneEnd>>;

struct Lanes<'a> {
    shared: &'a Shared,
    wire: &'a LaneWire,
    worker: u8,
    to: ToNetworks,
    backlog: Backlog,
    writer: Writer,
    tally: Tally,
    strays: Strays,
}

/// What has happened since it was counted last.
#[derive(Default)]
struct Tally {
    /// Something was received.
    open: bool,
    drops: Drops,
    packets: u64,
    unknown: u64,
    port_dropped: u64,
    busy: Duration,
}

impl Lanes<'_> {
    /// Opens what one call has received, if anything, and writes some of what waits.
    fn turn(&mut self, received: &mut Received, message_count: usize) {
        let start = Instant::now();
        let snapshot = self.shared.snapshot.load();
        let tuns = self.shared.tuns.load();
        let means = Means { snapshot: &snapshot, tuns: &tuns, worker: self.worker };
        if message_count > 0 {
            self.count();
            self.tally.open = true;
            self.take(start, &means, received, message_count);
        }
        self.backlog.write_some(&means, &mut self.writer, received);
        self.tally.busy += start.elapsed();
        self.shared.counters.backlog(self.worker, self.backlog.len());
        if self.backlog.is_empty() {
            self.count();
        }
    }

    fn take(&mut self, now: Instant, means: &Means<'_>, received: &mut Received, message_count: usize) {
        // after the receiving: whatever lane a packet is for, it was there before the packet was sent
        let lanes = self.wire.table.load();
        let mut from: Option<&Arc<LaneEnd>> = None;
        for message in 0..message_count {
            if self.worker == 0
                && let Some((_, bytes, meta)) = received.message(message)
            {
                self.wire.probes.take_out(bytes, meta);
            }
            let mut at = 0;
            while let Some((buffer, bytes, meta)) = received.message(message)
                && at < meta.len
            {
                let meta = *meta;
                let stride = meta.stride.max(1);
                let rest = &bytes[at..meta.len];
                let (claimed, len) = run_of(&lanes, rest, stride);
                let Some(lane) = claimed else {
                    self.pass_on(now, &rest[..len], RecvMeta { stride, ..meta });
                    at += len;
                    continue;
                };
                // what is written together counts for one peer, and goes to the queues of one worker
                let whose = |lane: &LaneEnd| (lane.tunnel.peer(), lane.worker());
                let before = from.replace(lane).filter(|before| whose(before) != whose(lane));
                if let Some(before) = before {
                    self.queue(before, received);
                    continue;
                }
                self.open(means, lane, bytes, buffer as u32, at..at + len, stride);
                at += len;
            }
        }
        if let Some(last) = from {
            self.queue(last, received);
        }
        received.let_go();
    }

    /// Datagrams of one lane, one after the other in a message.
    fn open(
        &mut self,
        means: &Means<'_>,
        lane: &LaneEnd,
        buffer: &mut [u8],
        number: u32,
        run: Range<usize>,
        stride: usize,
    ) {
        let mut opener = lane.opener();
        let mut count = LaneCount::default();
        let (mut packets, mut bytes) = (0, 0);
        let (mut genuine, mut asked) = (false, false);
        let mut at = run.start;
        while at < run.end {
            let end = (at + stride).min(run.end);
            let datagram = &mut buffer[at..end];
            if let Some(frames) = open(&mut opener, datagram, &mut count) {
                genuine = true;
                let before = packets;
                let mut frames = Frames::new(frames);
                while let Some(frame) = frames.next_in(datagram) {
                    packets += 1;
                    let put = frame.map_err(|_| DropReason::BadFrame).and_then(|frame| {
                        bytes += frame.len().saturating_sub(FRAME_HEADER) as u64;
                        let start = at + frame.start;
                        self.to.put(means, &lane.tunnel, number, start, &mut datagram[frame])
                    });
                    if let Err(reason) = put {
                        self.tally.drops.add(reason, 1);
                    }
                }
                asked |= packets == before;
            }
            at = end;
        }
        let seen = opener.take_counts();
        drop(opener);
        count.lost = seen.lost;
        count.reordered = seen.reordered;
        lane.tunnel.counters().add_lane(count);
        lane.tunnel.count_received(packets, bytes);
        if genuine {
            lane.heard.now();
        }
        // of another way it says nothing
        if asked && lane.worker() == self.worker {
            lane.asked();
        }
        self.tally.packets += packets;
    }

    /// For the queues of the worker whose lane it came by: wherever that was heard, the answers are to be its own.
    fn queue(&mut self, from: &LaneEnd, received: &mut Received) {
        let Self { to, backlog, .. } = self;
        to.drain(&self.shared.counters, &from.tunnel, |network, output| {
            backlog.push(network, from.worker(), output, received);
        });
    }

    /// Datagrams that are no lane's go to quinn, which has the first worker's port.
    fn pass_on(&mut self, now: Instant, bytes: &[u8], meta: RecvMeta) {
        if self.worker > 0 {
            self.tally.unknown += bytes.len().div_ceil(meta.stride) as u64;
            return;
        }
        for part in bytes.chunks(meta.stride) {
            if LaneId::claimed(part).is_some() {
                self.tally.unknown += 1;
            }
        }
        let unknown = LaneId::claimed(bytes).is_some();
        if unknown && !self.strays.may_pass(now, bytes.len().div_ceil(meta.stride) as u32) {
            return;
        }
        if !self.wire.port.push(meta, bytes) {
            self.tally.port_dropped += bytes.len().div_ceil(meta.stride) as u64;
        }
    }

    /// Counts a batch, if there is one: what one call has received, and what was written until the next.
    fn count(&mut self) {
        if !self.tally.open {
            return;
        }
        let counters = &self.shared.counters;
        let superpackets = self.writer.settle(counters);
        let Tally { drops, packets, unknown, port_dropped, busy, .. } = std::mem::take(&mut self.tally);
        counters.dropped(Direction::Inbound, &drops);
        if unknown + port_dropped > 0 {
            counters.strays(unknown, port_dropped);
        }
        counters.batch(Worker::Lanes(self.worker), Batch { packets, superpackets, busy });
    }
}

/// The frames of a datagram, if it is genuine and new.
fn open(opener: &mut Opener, datagram: &mut [u8], count: &mut LaneCount) -> Option<Range<usize>> {
    match opener.open(datagram) {
        Ok(frames) => return Some(frames),
        Err(Refused::Forged) => count.forged += 1,
        Err(Refused::Duplicate) => count.duplicate += 1,
        Err(Refused::Replayed) => count.replayed += 1,
    }
    None
}

/// Whose the first datagram is, and the bytes of all that follow it and are whose it is: of one lane, of unknown lanes, or of
/// none.
fn run_of<'l>(lanes: &'l LaneMap, bytes: &[u8], stride: usize) -> (Option<&'l Arc<LaneEnd>>, usize) {
    let mut datagrams = bytes.chunks(stride);
    let claimed = datagrams.next().and_then(LaneId::claimed);
    let lane = claimed.and_then(|id| lanes.get(&id));
    // quinn's queue has room for handshakes, which have a long header, and for the rest
    let long = |datagram: &[u8]| datagram.first().is_some_and(|first| first & 0x80 != 0);
    let alike = |datagram: &&[u8]| {
        let next = LaneId::claimed(datagram);
        match (&lane, next) {
            (Some(_), _) => next == claimed,
            (None, Some(id)) => claimed.is_some() && !lanes.contains_key(&id),
            (None, None) => claimed.is_none() && long(datagram) == long(bytes),
        }
    };
    let more = datagrams.take_while(alike).count();
    (lane, ((1 + more) * stride).min(bytes.len()))
}

/// How many datagrams of unknown lanes were passed on in the current second.
struct Strays {
    since: Instant,
    passed: u32,
}

impl Strays {
    fn may_pass(&mut self, now: Instant, datagrams: u32) -> bool {
        if now.saturating_duration_since(self.since) >= Duration::from_secs(1) {
            *self = Self { since: now, passed: 0 };
        }
        self.passed = self.passed.saturating_add(datagrams);
        self.passed <= STRAYS_A_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_unknown_lanes_reaches_quinn_a_bounded_number_of_times_a_second() {
        let start = Instant::now();
        let mut strays = Strays { since: start, passed: 0 };
        for second in 0..3 {
            let now = start + Duration::from_secs(second);
            let passed = (0..10_000).filter(|_| strays.may_pass(now, 1)).count();
            assert_eq!(passed, STRAYS_A_SECOND as usize);
        }
    }

    #[test]
    fn datagrams_are_told_apart_one_by_one_within_a_train() {
        let lanes = LaneMap::new();
        let [quic, long, stray] =
            [[0x40u8, 1], [0xc0, 0x80], [0x40, 0x80]].map(|head| [&head[..], &[0; 18]].concat());
        for (train, runs) in [
            (vec![&quic, &quic, &long, &stray, &stray, &quic], vec![40, 20, 40, 20]),
            (vec![&stray], vec![20]),
            (vec![&quic, &stray], vec![20, 20]),
        ] {
            let mut bytes: Vec<u8> = train.into_iter().flatten().copied().collect();
            // the last may be shorter
            bytes.pop();
            let mut found = Vec::new();
            let mut at = 0;
            while at < bytes.len() {
                let (lane, len) = run_of(&lanes, &bytes[at..], 20);
                assert!(lane.is_none());
                found.push(len);
                at += len;
            }
            let mut expected = runs;
            *expected.last_mut().unwrap() -= 1;
            assert_eq!(found, expected);
        }
    }
}
