//! Keeps the connection's path MTU true while lanes alone carry traffic. quinn finds a path that has become narrow by the loss of
//! its own large packets (black hole detection, RFC 8899 section 4.3); beside lanes it sends small ones only. So while a lane is
//! in use one large packet a second travels on the connection, and several once one was lost.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mesh_proto::frame::Echo;

use super::carrier::LaneCarrier;

/// Between two looks.
const TICK: Duration = Duration::from_secs(1);

/// Losses that quinn takes for a black hole: one more than its BLACK_HOLE_THRESHOLD.
const SUSPICIONS: usize = 4;

/// Until the connection ends.
pub async fn keep_true(connection: quinn::Connection, carrier: Arc<LaneCarrier>) {
    let (mut sent, mut lost) = (carrier.sent(), 0);
    loop {
        tokio::select! {
            _ = connection.closed() => return,
            () = tokio::time::sleep(TICK) => {}
        }
        let lost_now = connection.stats().path.lost_packets;
        let sent_now = carrier.sent();
        // in standard mode quinn's own packets tell it
        if carrier.left().is_some() {
            match (lost_now != lost, sent_now != sent) {
                (true, _) => probe(&connection, SUSPICIONS),
                (false, true) => probe(&connection, 1),
                (false, false) => {}
            }
        }
        (sent, lost) = (sent_now, lost_now);
    }
}

/// Large packets, and a small one behind each: it is what comes through that tells quinn of what did not, and each loss has to
/// stand alone to count.
fn probe(connection: &quinn::Connection, count: usize) {
    // an answer that nobody has asked for: the peer takes it, and does nothing
    let nothing = Echo { reply: true, number: u64::MAX };
    let largest = connection.max_datagram_size().unwrap_or(0);
    for _ in 0..count {
        for len in [largest, 0] {
            // a connection that has ended is told by its task
            let _ = connection.send_datagram(Bytes::from(nothing.encode(len)));
        }
    }
}
