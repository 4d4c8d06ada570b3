//! Echoes over a connection: `mesh-ctl ping`. They take the way of packets, DATAGRAM frames, up to the reader task, which
//! answers; neither network nor kernel is asked.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_proto::frame::Echo;
use mesh_proto::limits::FRAME_HEADER;
use quinn::SendDatagramError;
use tokio::sync::oneshot;

/// Longest wait for an answer; the peer is dead by then, or the size does not get through.
const PATIENCE: Duration = Duration::from_secs(1);

/// A frame of so many bytes that the peer throws away: the answer to an echo that nobody asked for. What counts is
/// whether QUIC acknowledges it.
pub fn padding(len: usize) -> Bytes {
    Bytes::from(Echo { reply: true, number: u64::MAX }.encode(len))
}

/// Those that wait for an answer on one connection.
#[derive(Debug, Default)]
pub struct Echoes {
    waiting: Mutex<BTreeMap<u64, oneshot::Sender<Instant>>>,
    next: AtomicU64,
}

/// Why there is no round trip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unanswered {
    /// The connection carries no packet of this size at present.
    TooBig,
    /// Nothing came back in time.
    Lost,
    /// The connection has ended.
    Gone,
}

impl Echoes {
    /// Handles a frame that is an echo; `false` if it is none. Called for every frame: it looks at two bytes of a packet's.
    pub fn took(&self, connection: &quinn::Connection, frame: &Bytes) -> bool {
        let Some(echo) = Echo::decode(frame) else { return false };
        if echo.reply {
            if let Some(asker) = self.lock().remove(&echo.number) {
                let _ = asker.send(Instant::now());
            }
        } else {
            // quinn would make room in a full buffer by throwing a packet away
            if connection.datagram_send_buffer_space() >= frame.len() {
                let answer = Echo { reply: true, ..echo }.encode(frame.len());
                let _ = connection.send_datagram(Bytes::from(answer));
            }
        }
        true
    }

    /// Sends what an inner packet of `size` bytes would be on the wire, and measures until it comes back.
    pub async fn ping(
        self: Arc<Self>,
        connection: quinn::Connection,
        size: usize,
    ) -> Result<Duration, Unanswered> {
        let number = self.next.fetch_add(1, Relaxed);
        let (asker, answer) = oneshot::channel();
        self.lock().insert(number, asker);
        let request = Echo { reply: false, number }.encode(size + FRAME_HEADER);
        let start = Instant::now();
        let result = match connection.send_datagram_wait(Bytes::from(request)).await {
            Ok(()) => match tokio::time::timeout(PATIENCE, answer).await {
                Ok(Ok(heard)) => Ok(heard.duration_since(start)),
                _ if connection.close_reason().is_some() => Err(Unanswered::Gone),
                _ => Err(Unanswered::Lost),
            },
            Err(SendDatagramError::TooLarge) => Err(Unanswered::TooBig),
            Err(_) => Err(Unanswered::Gone),
        };
        self.lock().remove(&number);
        result
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, oneshot::Sender<Instant>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
