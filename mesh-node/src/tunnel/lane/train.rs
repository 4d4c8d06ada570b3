//! From a batch of frames to trains: datagrams of one size, the last of which may be shorter, that the kernel takes with one
//! call (`UDP_SEGMENT`) and the far kernel joins again (`UDP_GRO`).
//!
//! A frame of some size gets a datagram to itself, protected where it lies in the batch. Small ones share datagrams, since
//! most of what a small packet costs is paid per datagram. Frames leave in the order they came.

use super::seal::Sealer;
use super::{DATAGRAM, DATAGRAM_WITH_LENGTH, HEADER, ROOM, TAG};
use crate::tunnel::{OutBatch, Sent};

/// Datagrams in a train: the kernel's own limit (UDP_MAX_SEGMENTS).
pub const MAX_DATAGRAMS: usize = 64;
/// Bytes in a train: what one UDP datagram could hold, with some room for headers.
pub const MAX_TRAIN: usize = 65_000;
/// Largest frame that shares a datagram: two must fit into the smallest path.
pub const SHARES: usize = 700;
/// Type and length before a frame that shares a datagram.
const SHARED_HEADER: usize = 3;

/// One call's worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Train<'a> {
    /// The datagrams, back to back.
    pub bytes: &'a [u8],
    /// Bytes of each but the last.
    pub datagram: usize,
}

/// What became of a train.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// The socket has it.
    Yes,
    /// It is larger than the path carries.
    TooBig,
    /// There was no room in time.
    Full,
    /// There is no way to the peer.
    Gone,
}

/// How a batch went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Packed {
    /// Frames by what became of them.
    pub sent: Sent,
    /// Frames at the batch's end that were not touched, since the lane is spent.
    pub left: usize,
}

/// Fills trains. Reused from batch to batch, so that it allocates only at first.
#[derive(Debug, Default)]
pub struct Packer {
    shared: Vec<u8>,
}

impl Packer {
    /// Protects and hands over all frames of a batch made with [`ROOM`]; `largest` is the path's UDP payload. Once a train
    /// finds no room the rest is dropped unprotected: no work for what is lost anyway.
    pub fn pack(
        &mut self,
        batch: &mut OutBatch,
        sealer: &mut Sealer,
        largest: usize,
        send: impl FnMut(Train<'_>) -> Taken,
    ) -> Packed {
        debug_assert_eq!(batch.room(), ROOM);
        self.shared.clear();
        let frames = batch.len();
        let (bytes, lens) = batch.parts();
        let out = Out { sealer, send, sent: Sent::default(), full: false };
        let mut packing = Packing { out, largest, own: Run::default(), shared: Shared::of(&mut self.shared) };
        let mut at = 0;
        let mut done = 0;
        for len in lens {
            // one datagram more than what is under way has to be possible
            if packing.out.sealer.left() <= packing.own.datagrams as u64 + 1 {
                break;
            }
            packing.frame(bytes, at, *len);
            at += ROOM.head + len + ROOM.tail;
            done += 1;
        }
        packing.flush(bytes);
        Packed { sent: packing.out.sent, left: frames - done }
    }
}

/// Where trains go, and the books.
struct Out<'a, F> {
    sealer: &'a mut Sealer,
    send: F,
    sent: Sent,
    full: bool,
}

impl<F: FnMut(Train<'_>) -> Taken> Out<'_, F> {
    fn seal(&mut self, datagram: &mut [u8]) -> bool {
        // that there are numbers left was seen before; a failure must not send plaintext, whatever its reason
        self.sealer.seal(datagram).is_ok()
    }

    fn train(&mut self, train: Train<'_>, load: Load) {
        let taken = (self.send)(train);
        self.count(taken, load);
    }

    fn count(&mut self, taken: Taken, load: Load) {
        match taken {
            Taken::Yes => {
                self.sent.packets += load.frames;
                self.sent.bytes += load.bytes;
            }
            Taken::TooBig => self.sent.too_big += load.frames,
            Taken::Full => {
                self.sent.queue_full += load.frames;
                self.full = true;
            }
            Taken::Gone => self.sent.gone += load.frames,
        }
    }
}

/// Frames in something, and their bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    frames: u64,
    bytes: u64,
}

impl Load {
    fn add(&mut self, frame: usize) {
        self.frames += 1;
        self.bytes += frame as u64;
    }

    fn join(&mut self, other: Self) {
        self.frames += other.frames;
        self.bytes += other.bytes;
    }
}

/// Datagrams with one frame each, which lie in the batch one after the other.
#[derive(Debug, Default)]
struct Run {
    start: usize,
    len: usize,
    datagram: usize,
    datagrams: usize,
    load: Load,
}

impl Run {
    /// Whether a datagram of this size that begins there can be its next; a shorter one is its last.
    fn takes(&self, at: usize, size: usize) -> bool {
        self.datagrams > 0
            && self.start + self.len == at
            && self.len == self.datagrams * self.datagram
            && size <= self.datagram
            && self.datagrams < MAX_DATAGRAMS
            && self.len + size <= MAX_TRAIN
    }

    fn add(&mut self, at: usize, size: usize, frame: usize) {
        if self.datagrams == 0 {
            (self.start, self.datagram) = (at, size);
        }
        self.len += size;
        self.datagrams += 1;
        self.load.add(frame);
    }
}

/// Datagrams with several frames each, in a buffer of their own; the last one is still open.
struct Shared<'a> {
    buffer: &'a mut Vec<u8>,
    closed: Run,
    open: Load,
}

impl<'a> Shared<'a> {
    fn of(buffer: &'a mut Vec<u8>) -> Self {
        Self { buffer, closed: Run::default(), open: Load::default() }
    }
}

struct Packing<'a, F> {
    out: Out<'a, F>,
    largest: usize,
    /// Of this and `shared` one is empty, so that frames keep their order.
    own: Run,
    shared: Shared<'a>,
}

impl<F: FnMut(Train<'_>) -> Taken> Packing<'_, F> {
    /// The frame of `len` bytes whose room begins at `at`.
    fn frame(&mut self, batch: &mut [u8], at: usize, len: usize) {
        let size = ROOM.head + len + ROOM.tail;
        let load = Load { frames: 1, bytes: len as u64 };
        if self.out.full {
            return self.out.count(Taken::Full, load);
        }
        if size > self.largest {
            return self.out.count(Taken::TooBig, load);
        }
        if self.own.takes(at, size) {
            return self.own.add(at, size, len);
        }
        if len <= SHARES {
            self.flush_own(batch);
            let frame = &batch[at + ROOM.head..at + ROOM.head + len];
            return self.share(frame);
        }
        self.flush(batch);
        self.own.add(at, size, len);
    }

    fn flush(&mut self, batch: &mut [u8]) {
        self.flush_own(batch);
        self.close();
        self.flush_shared();
    }

    fn flush_own(&mut self, batch: &mut [u8]) {
        let run = std::mem::take(&mut self.own);
        if run.datagrams == 0 {
            return;
        }
        if self.out.full {
            return self.out.count(Taken::Full, run.load);
        }
        let bytes = &mut batch[run.start..run.start + run.len];
        for datagram in bytes.chunks_mut(run.datagram) {
            datagram[HEADER] = DATAGRAM;
            if !self.out.seal(datagram) {
                return self.out.count(Taken::Gone, run.load);
            }
        }
        self.out.train(Train { bytes, datagram: run.datagram }, run.load);
    }

    fn share(&mut self, frame: &[u8]) {
        let open = self.shared.buffer.len() - self.shared.closed.len;
        if open > 0 && open + SHARED_HEADER + frame.len() + TAG > self.largest {
            self.close();
        }
        let Shared { buffer, closed, open } = &mut self.shared;
        if buffer.len() == closed.len {
            buffer.resize(closed.len + HEADER, 0);
        }
        // a variable-length integer of two bytes (RFC 9000 section 16)
        let len = (frame.len() as u16 | 0x4000).to_be_bytes();
        buffer.extend_from_slice(&[DATAGRAM_WITH_LENGTH, len[0], len[1]]);
        buffer.extend_from_slice(frame);
        open.add(frame.len());
    }

    /// Protects the open datagram and puts it to the train, which leaves first if it cannot take it.
    fn close(&mut self) {
        let start = self.shared.closed.len;
        if self.shared.buffer.len() == start {
            return;
        }
        self.shared.buffer.resize(self.shared.buffer.len() + TAG, 0);
        let size = self.shared.buffer.len() - start;
        if self.shared.closed.datagrams > 0 && !self.shared.closed.takes(start, size) {
            self.flush_shared();
        }
        let start = self.shared.closed.len;
        let load = std::mem::take(&mut self.shared.open);
        if self.out.full || !self.out.seal(&mut self.shared.buffer[start..]) {
            self.shared.buffer.truncate(start);
            let taken = if self.out.full { Taken::Full } else { Taken::Gone };
            return self.out.count(taken, load);
        }
        let run = &mut self.shared.closed;
        if run.datagrams == 0 {
            run.datagram = size;
        }
        run.len += size;
        run.datagrams += 1;
        run.load.join(load);
    }

    /// The closed datagrams leave; an open one moves to the front.
    fn flush_shared(&mut self) {
        let run = std::mem::take(&mut self.shared.closed);
        if run.datagrams == 0 {
            return;
        }
        let train = Train { bytes: &self.shared.buffer[..run.len], datagram: run.datagram };
        self.out.train(train, run.load);
        self.shared.buffer.drain(..run.len);
    }
}
