//! What a lanes thread has received and not yet written, by flow: a packet waits for no more of a bulk transfer than one superpacket,
//! however much of that was received before it. A full backlog is not fed: the socket is left alone, whose buffer has no flows, and
//! the kernel drops before the work.

use crate::forward::counters::TrafficCount;
use crate::forward::fair_queue::FairQueue;
use crate::forward::fib::NetworkIx;
use crate::forward::flows;
use crate::forward::segment::{Output, Piece, VnetHdr};
use crate::io::lane::received::{MESSAGES, Received};

use super::deliver::{Means, Writer, on_wire};

/// What is no longer is copied, so that a small packet does not keep a whole buffer.
const SMALL: usize = 2 * 1024;

/// Superpackets that may wait when more is received; what one call receives comes on top.
const WAITING: usize = 512;
/// While so many wait, a message at a time is received: one may hold hundreds of packets that cannot be joined.
const MANY: usize = 64;
/// Those that are kept for their memory.
const SPARE: usize = 2 * WAITING;

/// Written between two looks at the socket: one bulky superpacket, or some small ones.
const TURN_WRITES: usize = 8;
const TURN_BYTES: u64 = 16 * 1024;

/// What a write costs a flow at least: the kernel's work for a packet hardly depends on its size.
const LEAST_COST: u64 = 1024;

/// The superpackets of one worker.
pub(super) struct Backlog {
    queue: FairQueue<Box<Waiting>>,
    /// Kept for their memory.
    #[expect(clippy::vec_box, reason = "they go to the queue and come back as they are")]
    spare: Vec<Box<Waiting>>,
    seed: u64,
}

/// One superpacket.
struct Waiting {
    network: NetworkIx,
    /// Whose queues it is written to.
    worker: u8,
    vnet: [u8; VnetHdr::LEN],
    /// Headers; of a small one all of it.
    bytes: Vec<u8>,
    /// Held.
    pieces: Vec<Piece>,
    count: TrafficCount,
}

impl Backlog {
    /// Empty; `seed` is chance.
    pub(super) fn new(seed: u64) -> Self {
        Self { queue: FairQueue::default(), spare: Vec::new(), seed }
    }

    /// Superpackets that wait.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Messages that may be received now.
    pub(super) fn room(&self) -> usize {
        match self.queue.len() {
            WAITING.. => 0,
            MANY.. => 1,
            _ => MESSAGES,
        }
    }

    /// Takes a superpacket whose pieces lie in `received`.
    pub(super) fn push(
        &mut self,
        network: NetworkIx,
        worker: u8,
        output: &Output<'_>,
        received: &mut Received,
    ) {
        let count = on_wire(output);
        let mut waiting = self.spare.pop().unwrap_or_else(Waiting::empty);
        (waiting.network, waiting.worker) = (network, worker);
        (waiting.vnet, waiting.count) = (output.vnet, count);
        waiting.bytes.clear();
        waiting.bytes.extend_from_slice(output.header);
        waiting.pieces.clear();
        let bytes = |piece: &Piece| {
            let start = piece.start as usize;
            start..start + piece.len as usize
        };
        let len = output.header.len() + output.pieces.iter().map(|piece| piece.len as usize).sum::<usize>();
        if len <= SMALL {
            for piece in output.pieces {
                waiting.bytes.extend_from_slice(&received.buffers()[piece.buffer as usize][bytes(piece)]);
            }
        } else {
            waiting.pieces.extend_from_slice(output.pieces);
            holds(&waiting.pieces).for_each(|buffer| received.hold(buffer));
        }
        let headers = match (output.header, output.pieces.first()) {
            ([], Some(packet)) => &received.buffers()[packet.buffer as usize][bytes(packet)],
            (header, _) => header,
        };
        let hash = flows::hash(headers, self.seed ^ u64::from(network.0));
        self.queue.push(hash, count.bytes.max(LEAST_COST) as usize, waiting);
    }

    /// Writes some of what waits.
    pub(super) fn write_some(&mut self, means: &Means<'_>, writer: &mut Writer, received: &mut Received) {
        let (mut writes, mut bytes) = (0, 0);
        while writes < TURN_WRITES
            && bytes < TURN_BYTES
            && let Some(waiting) = self.queue.pop()
        {
            writes += 1;
            bytes += waiting.count.bytes;
            let means = Means { worker: waiting.worker, ..*means };
            let (output, count) = (waiting.output(), waiting.count);
            writer.write(&means, waiting.network, &output, count, received.buffers());
            holds(&waiting.pieces).for_each(|buffer| received.release(buffer));
            if self.spare.len() < SPARE {
                self.spare.push(waiting);
            }
        }
    }
}

impl Waiting {
    fn empty() -> Box<Self> {
        Box::new(Self {
            network: NetworkIx(0),
            worker: 0,
            vnet: [0; VnetHdr::LEN],
            bytes: Vec::new(),
            pieces: Vec::new(),
            count: TrafficCount::default(),
        })
    }

    fn output(&self) -> Output<'_> {
        let packets = self.count.packets as usize;
        Output { vnet: self.vnet, header: &self.bytes, pieces: &self.pieces, packets }
    }
}

/// The buffers that the pieces lie in, each as often as they come back to it.
fn holds(pieces: &[Piece]) -> impl Iterator<Item = usize> {
    let begins = |at: &usize| *at == 0 || pieces[*at - 1].buffer != pieces[*at].buffer;
    (0..pieces.len()).filter(begins).map(|at| pieces[at].buffer as usize)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::sync::Arc;

    use super::*;
    use crate::forward::DropReason;
    use crate::forward::counters::Counters;
    use crate::io::lane::received::BUFFERS;
    use crate::io::tun::Tun;
    use crate::packet_loop::queues::Queues;
    use crate::tunnel::Snapshot;

    const NETWORK: NetworkIx = NetworkIx(0);

    /// One network whose TUN is a socket.
    struct World {
        backlog: Backlog,
        writer: Writer,
        received: Received,
        tuns: Vec<Option<Queues>>,
        written: UnixDatagram,
    }

    impl World {
        fn new() -> Self {
            let (ours, written) = UnixDatagram::pair().unwrap();
            written.set_nonblocking(true).unwrap();
            let tun = Arc::new(Tun::from_fd(ours.into(), "mesh-test").unwrap());
            Self {
                backlog: Backlog::new(1),
                writer: Writer::default(),
                received: Received::default(),
                tuns: vec![Queues::new(vec![tun])],
                written,
            }
        }

        /// A UDP packet with this source port, received in a message of its own.
        fn push(&mut self, port: u16, len: usize) {
            let mut packet = vec![port as u8; len];
            packet[..20]
                .copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            packet[20..22].copy_from_slice(&port.to_be_bytes());
            let filled = self.received.fill(1, |slices, meta| {
                slices[0][..len].copy_from_slice(&packet);
                meta[0].len = len;
                Ok::<_, ()>(1)
            });
            assert_eq!(filled, Ok(1));
            let (buffer, ..) = self.received.message(0).unwrap();
            let pieces = [Piece { buffer: buffer as u32, start: 0, len: len as u32 }];
            let output = Output { vnet: [0; VnetHdr::LEN], header: &[], pieces: &pieces, packets: 1 };
            self.backlog.push(NETWORK, 0, &output, &mut self.received);
            self.received.let_go();
        }

        /// Source port and length of what one turn writes.
        fn turn(&mut self) -> Vec<(u16, usize)> {
            let snapshot = Snapshot::default();
            let means = Means { snapshot: &snapshot, tuns: &self.tuns, worker: 0 };
            self.backlog.write_some(&means, &mut self.writer, &mut self.received);
            let mut bytes = [0; 70_000];
            let next = || {
                let len = self.written.recv(&mut bytes).ok()?;
                let packet = &bytes[VnetHdr::LEN..len];
                let port = u16::from_be_bytes([packet[20], packet[21]]);
                assert!(packet[22..].iter().all(|byte| *byte == port as u8), "unchanged");
                Some((port, packet.len()))
            };
            std::iter::from_fn(next).collect()
        }
    }

    #[test]
    fn a_small_packet_waits_for_one_superpacket_of_a_bulky_flow_and_no_more() {
        let mut world = World::new();
        (0..5).for_each(|_| world.push(1, 60_000));
        assert_eq!(world.turn(), [(1, 60_000)]);
        world.push(2, 100);
        assert_eq!(world.turn(), [(2, 100), (1, 60_000)]);
        for port in 3..13 {
            world.push(port, 100);
        }
        let (first, rest) = (world.turn(), world.turn());
        assert_eq!(
            first,
            (3..11).map(|port| (port, 100)).collect::<Vec<_>>(),
            "then the socket is looked at"
        );
        assert_eq!(rest, [(11, 100), (12, 100), (1, 60_000)]);
        assert_eq!(world.turn(), [(1, 60_000)]);
        assert_eq!(world.turn(), [(1, 60_000)]);
        assert!(world.backlog.is_empty());
    }

    #[test]
    fn buffers_are_held_until_they_are_written_and_not_for_small_packets() {
        let mut world = World::new();
        while world.received.has_room() {
            world.push(1, 3_000);
        }
        let waiting = std::iter::from_fn(|| (!world.backlog.is_empty()).then(|| world.turn())).flatten();
        assert_eq!(waiting.count(), BUFFERS);
        for waiting in 0..WAITING {
            assert!(world.received.has_room());
            assert_eq!(world.backlog.room(), if waiting < MANY { MESSAGES } else { 1 });
            world.push(1, SMALL);
        }
        assert_eq!(world.backlog.room(), 0);
    }

    #[test]
    fn a_buffer_is_free_when_the_last_superpacket_with_a_part_in_it_is_written() {
        let mut world = World::new();
        let filled = world.received.fill(2, |slices, _| {
            slices.iter_mut().for_each(|slice| slice[..10_000].fill(7));
            Ok::<_, ()>(2)
        });
        assert_eq!(filled, Ok(2));
        let [a, b] = [0, 1].map(|at| world.received.message(at).unwrap().0 as u32);
        let part = |(buffer, start)| Piece { buffer, start, len: 3_000 };
        let mut header = [0; 28];
        header[..20].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        for pieces in [vec![(a, 0), (b, 0), (a, 3_000)], vec![(b, 3_000), (b, 6_000)]] {
            let pieces: Vec<_> = pieces.into_iter().map(part).collect();
            let output = Output { vnet: [0; VnetHdr::LEN], header: &header, pieces: &pieces, packets: 3 };
            world.backlog.push(NETWORK, 0, &output, &mut world.received);
        }
        world.received.let_go();
        let free = |world: &mut World| {
            let mut free = 0;
            while world.received.has_room() {
                world.received.fill(1, |_, _| Ok::<_, ()>(1)).unwrap();
                let (number, ..) = world.received.message(0).unwrap();
                world.received.hold(number);
                free += 1;
            }
            free
        };
        assert_eq!(free(&mut world), BUFFERS - 2);
        let snapshot = Snapshot::default();
        for (buffers, len) in [(1, 9_000), (1, 6_000)] {
            let means = Means { snapshot: &snapshot, tuns: &world.tuns, worker: 0 };
            let waiting = world.backlog.queue.pop().unwrap();
            world.writer.write(&means, NETWORK, &waiting.output(), waiting.count, world.received.buffers());
            holds(&waiting.pieces).for_each(|buffer| world.received.release(buffer));
            let mut written = [0; 20_000];
            assert_eq!(world.written.recv(&mut written).unwrap(), VnetHdr::LEN + 28 + len);
            assert_eq!(free(&mut world), buffers, "a with the first, b with the second");
        }
    }

    #[test]
    fn what_waits_for_a_network_that_is_removed_is_dropped_and_counted() {
        let mut world = World::new();
        world.push(1, 60_000);
        world.push(1, 100);
        world.tuns.clear();
        assert_eq!((world.turn(), world.turn()), (vec![], vec![]));
        let counters = Counters::default();
        assert_eq!(world.writer.settle(&counters), 0);
        let dropped = counters.snapshot().inbound.dropped;
        let expected = dropped.iter().map(|(reason, _)| u64::from(*reason == DropReason::UnknownNetwork) * 2);
        assert!(dropped.iter().map(|(_, count)| *count).eq(expected), "{dropped:?}");
        assert!(world.backlog.is_empty());
        (0..BUFFERS).for_each(|_| world.push(1, 60_000));
        assert!(!world.received.has_room(), "none was held for ever before");
    }
}
