//! The path MTU of a connection: looks at quinn, sends what `tunnel::pmtu` asks for, tells the control loop.

use std::time::{Duration, Instant};

use mesh_proto::limits::FRAME_HEADER;

use super::connection::{Context, Event};
use super::echo::padding;
use crate::control::event::{ConnId, Input};
use crate::tunnel::pmtu::{PathWatch, Seen};

/// How long a frame may wait for room behind packets. The path is checked again soon.
const PATIENCE: Duration = Duration::from_millis(100);

/// Until the connection or the loop ends.
pub async fn watch(conn: ConnId, connection: &quinn::Connection, context: &Context) {
    let mut path = PathWatch::new(context.path_check, Instant::now());
    loop {
        let frame = connection.max_datagram_size().unwrap_or(0);
        let stats = connection.stats();
        let seen =
            Seen { frame, sent: stats.udp_tx.datagrams, lost: stats.path.lost_packets, rtt: stats.path.rtt };
        let todo = path.look(seen, Instant::now());
        if let Some(frame) = todo.tell {
            let mtu = frame.saturating_sub(FRAME_HEADER) as u32;
            if context.events.send(Event::Input(Input::TunnelMtu { conn, mtu })).await.is_err() {
                return;
            }
        }
        for len in todo.full.into_iter().chain(todo.small.then_some(0)) {
            // too large by now, or no room: the next look knows more
            let _ = tokio::time::timeout(PATIENCE, connection.send_datagram_wait(padding(len))).await;
        }
        tokio::time::sleep_until(todo.next.into()).await;
    }
}
