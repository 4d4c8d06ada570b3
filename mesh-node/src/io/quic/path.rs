//! The path MTU of a connection: looks at quinn, sends what `tunnel::pmtu` asks for, tells the control loop.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mesh_proto::limits::FRAME_HEADER;
use tokio::sync::Notify;

use super::connection::{Context, Event};
use super::echo::padding;
use crate::control::event::{ConnId, Input};
use crate::tunnel::pmtu::{PathWatch, Seen};

/// How long a frame may wait for room behind packets. The path is checked again soon.
const PATIENCE: Duration = Duration::from_millis(100);

/// Between a large frame and the small one that is to show its loss: in one train this host's own device would refuse both.
const APART: Duration = Duration::from_millis(1);

/// Between two looks, whatever happens.
const CLOSEST: Duration = Duration::from_millis(10);

/// What travels the same path beside the connection, for the watch to know of.
#[derive(Debug, Default)]
pub struct Beside {
    datagrams: AtomicU64,
    calls: AtomicU64,
    too_big: AtomicU64,
    news: Notify,
}

impl Beside {
    /// Datagrams that have left.
    pub fn datagrams(&self) -> u64 {
        self.datagrams.load(Relaxed)
    }

    /// Calls it took to send them.
    pub fn calls(&self) -> u64 {
        self.calls.load(Relaxed)
    }

    /// More datagrams have left, with so many calls; trains have not, since this host's own device does not take their size.
    pub fn sent(&self, datagrams: u64, calls: u64, too_big: u64) {
        self.datagrams.fetch_add(datagrams, Relaxed);
        self.calls.fetch_add(calls, Relaxed);
        if too_big > 0 {
            self.too_big.fetch_add(too_big, Relaxed);
            self.news.notify_one();
        }
    }
}

/// Until the connection or the loop ends.
pub async fn watch(conn: ConnId, connection: &quinn::Connection, beside: &Beside, context: &Context) {
    let mut path = PathWatch::new(context.path_check, Instant::now());
    loop {
        let frame = connection.max_datagram_size().unwrap_or(0);
        let stats = connection.stats();
        let seen = Seen {
            frame,
            sent: stats.udp_tx.datagrams + beside.datagrams(),
            lost: stats.path.lost_packets + beside.too_big.load(Relaxed),
            rtt: stats.path.rtt,
        };
        let todo = path.look(seen, Instant::now());
        if let Some(frame) = todo.tell {
            let mtu = frame.saturating_sub(FRAME_HEADER) as u32;
            if context.events.send(Event::Input(Input::TunnelMtu { conn, mtu })).await.is_err() {
                return;
            }
        }
        // too large by now, or no room: the next look knows more
        let send = |len| tokio::time::timeout(PATIENCE, connection.send_datagram_wait(padding(len)));
        if let Some(len) = todo.full {
            let _ = send(len).await;
            tokio::time::sleep(APART).await;
        }
        if todo.small {
            let _ = send(0).await;
        }
        // news come with each batch, and a look takes the connection's lock
        tokio::time::sleep(CLOSEST).await;
        let _ = tokio::time::timeout_at(todo.next.into(), beside.news.notified()).await;
    }
}
