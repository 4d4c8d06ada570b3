//! Standard mode: inner packets as DATAGRAM frames (RFC 9221) of the peer's own QUIC connection.
//!
//! ```text
//!  outbound thread -> Datagrams::send -> quinn's send buffer    ...    quinn's receive buffer -> read_datagrams
//!                     waits a little when it is full                   one task per connection       |
//!                                                                      inbound thread <- InboundQueue
//! ```
//!
//! This file moves frames and holds the transport settings of a mesh connection. What is in a frame, and who may send
//! it, is for the packet loop and `forward`.

use std::any::Any;
use std::future::Future as _;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use quinn::congestion::{Controller, ControllerFactory};
use quinn::{
    AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, SendDatagramError, TransportConfig, VarInt,
};
use tokio::sync::mpsc;

use super::aside::Aside;
use crate::tunnel::{Carrier, InBatch, OutBatch, Sent, Tunnel, Turn};

/// What quinn may hold for a peer before the outbound thread has to wait: a full batch and a bit. More is delay only,
/// since the TUN's own queue stands before it.
pub const SEND_BUFFER: usize = 320 * 1024;

/// What quinn may hold until the reader task runs. Beyond it quinn drops the oldest.
const RECEIVE_BUFFER: usize = 2 * 1024 * 1024;

/// Bytes in flight: 10 Gb/s at a round trip of 50 ms. See [`CarriedControl`].
const WINDOW: u64 = 64 * 1024 * 1024;

/// How long one batch may wait for a full send buffer, in all. Longer would hold up the packets of other peers.
const PATIENCE: Duration = Duration::from_millis(20);

/// Between two looks at a full send buffer. quinn reports room after every few datagrams, and a thread woken that often
/// does little else.
const NAP: Duration = Duration::from_micros(200);

/// Most frames the reader task hands over at once.
const MAX_BATCH: usize = 256;

/// Batches that may wait for the inbound thread: with full ones of 1,500 bytes, 3 MB.
pub const QUEUED_BATCHES: usize = 8;

/// UDP payload of an Ethernet path: 1,500 bytes less IPv4 and UDP headers.
const ETHERNET_UDP_PAYLOAD: u16 = 1472;

/// UDP payload of the largest jumbo frames that switches carry: 9,216 bytes. Loopback and InfiniBand have more, where it
/// gains nothing: trains and superpackets are 64 KiB anyway.
const JUMBO_UDP_PAYLOAD: u16 = 9216 - 28;

/// Between two searches for a larger path MTU, where the interfaces of both ends would carry one. RFC 8899 section 5.1.1
/// has 600 s: too long for who has mended a switch. A search in vain costs some 50 KB.
const RAISE: Duration = Duration::from_secs(30);

/// Where a search for the path MTU stops. quinn's 20 costs each full packet 1 % on an Ethernet path.
const CLOSE_ENOUGH: u16 = 8;

/// Frames one ACK may wait for, and how long. Nothing here is retransmitted, so an ACK only has to keep the estimate of
/// the round trip alive and find losses; one for every second packet, as RFC 9000 section 13.2.2 has it, costs the
/// receiver a tenth of its time.
const ACK_EVERY: u32 = 60;
const ACK_DELAY: Duration = Duration::from_millis(5);

/// The largest UDP payload worth a try over an underlay with packets of `mtu` bytes.
pub fn udp_payload(mtu: u32) -> u16 {
    let payload = u16::try_from(mtu.saturating_sub(28)).unwrap_or(u16::MAX);
    payload.clamp(ETHERNET_UDP_PAYLOAD, JUMBO_UDP_PAYLOAD)
}

/// Transport settings of a mesh connection over an Ethernet underlay.
pub fn transport_config(keepalive: Duration) -> TransportConfig {
    transport_config_for(keepalive, ETHERNET_UDP_PAYLOAD)
}

/// The same for an underlay that carries UDP payloads up to `largest` bytes ([`udp_payload`]). The peer may have a smaller
/// limit, its endpoint's.
pub fn transport_config_for(keepalive: Duration, largest: u16) -> TransportConfig {
    let mut config = TransportConfig::default();
    let mut discovery = MtuDiscoveryConfig::default();
    // after a black hole the search starts at once: the least that QUIC needs is far below most paths
    discovery
        .upper_bound(largest)
        .interval(RAISE)
        .black_hole_cooldown(Duration::ZERO)
        .minimum_change(CLOSE_ENOUGH);
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY)).max_ack_delay(Some(ACK_DELAY));
    config
        .initial_mtu(mesh_proto::limits::MIN_UDP_PAYLOAD)
        .mtu_discovery_config(Some(discovery))
        .ack_frequency_config(Some(acks))
        .datagram_send_buffer_size(SEND_BUFFER)
        .datagram_receive_buffer_size(Some(RECEIVE_BUFFER))
        .congestion_controller_factory(Arc::new(CarriedControl))
        .keep_alive_interval(Some(keepalive))
        .max_idle_timeout(idle_timeout(keepalive))
        // Control uses one long-lived stream and short ones for bodies.
        .max_concurrent_bidi_streams(VarInt::from_u32(16))
        .max_concurrent_uni_streams(VarInt::from_u32(64))
        .stream_receive_window(VarInt::from_u32(1024 * 1024))
        .receive_window(VarInt::from_u32(4 * 1024 * 1024))
        .send_window(4 * 1024 * 1024)
        // The spin bit tells observers the round trip (RFC 9000 section 17.4).
        .allow_spin(false);
    config
}

/// A dead peer is noticed within three keepalives: the last thing it sent puts off our next keepalive by one interval,
/// and that keepalive restarts the idle timer once more (RFC 9000 section 10.1), so 1 + 1.9.
fn idle_timeout(keepalive: Duration) -> Option<IdleTimeout> {
    // A value beyond the varint's range is a configuration of many years: no timeout.
    IdleTimeout::try_from(keepalive.mul_f64(1.9)).ok()
}

/// A congestion controller that leaves the rate to the carried flows: a constant window. RFC 9484 section 10 allows it
/// for DATAGRAMs that carry congestion-controlled traffic, RFC 8085 section 3.1.11 says the same of IP tunnels. A second
/// loop under TCP's would fight it. Control streams share the window and are small.
#[derive(Debug, Clone, Copy)]
struct CarriedControl;

impl ControllerFactory for CarriedControl {
    fn build(self: Arc<Self>, _now: Instant, _current_mtu: u16) -> Box<dyn Controller> {
        Box::new(*self)
    }
}

impl Controller for CarriedControl {
    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, _persistent: bool, _lost_bytes: u64) {}

    fn on_mtu_update(&mut self, _new_mtu: u16) {}

    fn window(&self) -> u64 {
        WINDOW
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(*self)
    }

    fn initial_window(&self) -> u64 {
        WINDOW
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// The sending half of a connection, as a tunnel's carrier.
#[derive(Debug)]
pub struct Datagrams {
    connection: quinn::Connection,
    /// The last batch waited in vain. The next ones do not, or a peer that has just died would hold up all others until
    /// its idle timeout.
    stalled: AtomicBool,
}

impl Datagrams {
    /// Carries frames over `connection`.
    pub fn new(connection: quinn::Connection) -> Self {
        Self { connection, stalled: AtomicBool::new(false) }
    }

    /// Whether the connection has ended.
    pub fn closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    /// Waits for room only while `patience` lasts; `None` when it is over. quinn's plain `send_datagram` would throw
    /// away the oldest frame instead, which is work already done.
    fn send_one(
        &self,
        frame: Bytes,
        patience: &mut Duration,
        waited: &mut Duration,
    ) -> Option<Result<(), SendDatagramError>> {
        let mut sending = pin!(self.connection.send_datagram_wait(frame));
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(result) = sending.as_mut().poll(&mut context) {
                return Some(result);
            }
            let start = Instant::now();
            while self.connection.datagram_send_buffer_space() < SEND_BUFFER / 3 {
                if start.elapsed() >= *patience || self.connection.close_reason().is_some() {
                    *waited += start.elapsed();
                    *patience = Duration::ZERO;
                    return None;
                }
                std::thread::sleep(NAP);
            }
            let elapsed = start.elapsed();
            *waited += elapsed;
            *patience = patience.saturating_sub(elapsed);
        }
    }
}

impl Carrier for Datagrams {
    fn send(&self, _: Turn, batch: &mut OutBatch) -> Sent {
        let mut sent = Sent::default();
        let mut patience = if self.stalled.load(Relaxed) { Duration::ZERO } else { PATIENCE };
        for frame in batch.take() {
            let len = frame.len() as u64;
            match self.send_one(frame, &mut patience, &mut sent.waited) {
                Some(Ok(())) => {
                    sent.packets += 1;
                    sent.bytes += len;
                }
                Some(Err(SendDatagramError::TooLarge)) => sent.too_big += 1,
                Some(Err(_)) => sent.gone += 1,
                None => sent.queue_full += 1,
            }
        }
        self.stalled.store(sent.queue_full > 0, Relaxed);
        sent
    }

    fn max_frame(&self) -> usize {
        self.connection.max_datagram_size().unwrap_or(0)
    }
}

/// The way from reader tasks to the inbound thread. Full means the task waits, and quinn's receive buffer takes the rest.
#[derive(Debug, Clone)]
pub struct InboundSender(mpsc::Sender<Option<InBatch>>);

/// The inbound thread's end.
#[derive(Debug)]
pub struct InboundQueue(mpsc::Receiver<Option<InBatch>>);

/// Makes the queue.
pub fn inbound_queue() -> (InboundSender, InboundQueue) {
    let (sender, receiver) = mpsc::channel(QUEUED_BATCHES);
    (InboundSender(sender), InboundQueue(receiver))
}

impl InboundSender {
    /// Hands over a batch; `false` when the inbound thread is gone.
    pub async fn send(&self, batch: InBatch) -> bool {
        self.0.send(Some(batch)).await.is_ok()
    }

    /// Batches that wait at present.
    pub fn waiting(&self) -> usize {
        QUEUED_BATCHES.saturating_sub(self.0.capacity())
    }

    /// Makes the inbound thread look up. A full queue needs no more.
    pub fn wake(&self) {
        let _ = self.0.try_send(None);
    }
}

impl InboundQueue {
    /// Blocks for the next batch; `None` after [`InboundSender::wake`], or when no sender is left.
    pub fn recv(&mut self) -> Option<InBatch> {
        self.0.blocking_recv().flatten()
    }
}

/// Reads the datagrams of one connection until it ends, a batch at a time.
pub async fn read_datagrams(
    connection: quinn::Connection,
    tunnel: Arc<Tunnel>,
    inbound: InboundSender,
    aside: Aside,
) -> quinn::ConnectionError {
    let mut losses = Losses::default();
    loop {
        // statistics take the connection's lock: they are asked for when nothing waits to be read
        let mut first = connection.read_datagram().now_or_never();
        if first.is_none() {
            let arrived = connection.stats().frame_rx.datagram;
            first = connection.read_datagram().now_or_never();
            let lost = if first.is_none() { losses.seen(arrived) } else { 0 };
            if lost > 0 && !inbound.send(InBatch { tunnel: tunnel.clone(), frames: Vec::new(), lost }).await {
                return quinn::ConnectionError::LocallyClosed;
            }
        }
        let first = match first {
            Some(first) => first,
            None => connection.read_datagram().await,
        };
        let first = match first {
            Ok(first) => first,
            Err(reason) => {
                // the buffer is handed out to its end before the connection's end is told
                let lost = losses.seen(connection.stats().frame_rx.datagram);
                if lost > 0 {
                    let _ = inbound.send(InBatch { tunnel, frames: Vec::new(), lost }).await;
                }
                return reason;
            }
        };
        aside.heard.now();
        if aside.took(&connection, &first) {
            losses.read += 1;
            continue;
        }
        let mut frames = Vec::with_capacity(MAX_BATCH / 4);
        frames.push(first);
        while frames.len() < MAX_BATCH {
            match connection.read_datagram().now_or_never() {
                Some(Ok(frame)) if aside.took(&connection, &frame) => losses.read += 1,
                Some(Ok(frame)) => frames.push(frame),
                // An error is told again by the next read.
                _ => break,
            }
        }
        losses.read += frames.len() as u64;
        if !inbound.send(InBatch { tunnel: tunnel.clone(), frames, lost: 0 }).await {
            return quinn::ConnectionError::LocallyClosed;
        }
    }
}

/// How many datagrams quinn has dropped because its receive buffer was full. It does not say; but what had arrived before
/// the buffer was found empty, and was not read, is lost.
#[derive(Debug, Default)]
struct Losses {
    read: u64,
    lost: u64,
}

impl Losses {
    /// `arrived` datagrams had come before the buffer was found empty: those lost and not told of yet.
    fn seen(&mut self, arrived: u64) -> u64 {
        let lost = arrived.saturating_sub(self.read);
        let news = lost.saturating_sub(self.lost);
        self.lost += news;
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_told_once() {
        let mut losses = Losses { read: 7, lost: 0 };
        assert_eq!([losses.seen(7), losses.seen(10), losses.seen(10)], [0, 3, 0]);
        losses.read += 5;
        assert_eq!([losses.seen(15), losses.seen(16)], [0, 1]);
    }

    #[test]
    fn the_search_goes_as_far_as_the_underlay_and_no_further_than_jumbo_frames() {
        assert_eq!([1280, 1500, 9000, 9216, 65_536].map(udp_payload), [1472, 1472, 8972, 9188, 9188]);
    }

    #[test]
    fn a_dead_peer_is_seen_within_three_keepalives() {
        let keepalive = Duration::from_secs(1);
        let idle = idle_timeout(keepalive).unwrap();
        assert_eq!(idle, IdleTimeout::try_from(Duration::from_millis(1900)).unwrap());
        assert!(idle_timeout(Duration::MAX / 4).is_none());
    }
}
