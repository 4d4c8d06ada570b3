//! Lanes' sending ends as a tunnel's carrier, one for each of our workers. Until a lane is up, and should one be spent before the next
//! is there, frames travel as DATAGRAM frames of the connection.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use super::LaneWire;
use super::socket::LaneSocket;
pub use super::way::HalfUsed;
use super::way::Way;
use crate::io::quic::datagram::Datagrams;
use crate::io::quic::path::Beside;
use crate::tunnel::lane::seal::Sealer;
use crate::tunnel::lane::{HEADER, ROOM, TAG};
use crate::tunnel::{Carrier, OutBatch, Room, Sent, Turn};

/// Sends to one peer.
#[derive(Debug)]
pub struct LaneCarrier {
    /// Of the first worker, whose packets go where the connection's go.
    first: Way,
    /// Of the others, in order.
    more: Vec<Way>,
    datagrams: Datagrams,
    /// What left on lanes.
    beside: Arc<Beside>,
}

impl LaneCarrier {
    /// To a peer's address, from one of ours, beside `connection`, which hears so; without a lane so far.
    pub fn new(
        wire: &LaneWire,
        to: SocketAddr,
        from: Option<IpAddr>,
        connection: quinn::Connection,
        beside: Arc<Beside>,
        half_used: HalfUsed,
    ) -> Self {
        let way = |worker, socket: &Arc<LaneSocket>, to| {
            Way::new(worker, socket.clone(), socket.destination(to, from), half_used.clone())
        };
        // a port beyond the last is nobody's
        let more = (1..)
            .zip(&wire.more)
            .map_while(|(worker, socket)| Some(way(worker, socket, of_worker(to, worker)?)));
        let (more, first) = (more.collect(), way(0, &wire.socket, to));
        Self { first, more, datagrams: Datagrams::new(connection), beside }
    }

    /// Changes to this lane of a worker with its next batch. The one after it is asked for when half of its packets are used.
    pub fn change(&self, worker: u8, number: u32, sealer: Sealer) {
        if let Some(way) = self.way(worker) {
            way.change(number, sealer);
        }
    }

    /// The peer has heard what a worker sent.
    pub fn heard(&self, worker: u8, now: Instant) {
        if let Some(way) = self.way(worker) {
            way.heard(now);
        }
    }

    /// Packets that the lane in use may still carry; `None`: frames travel as DATAGRAM frames of the connection.
    pub fn left(&self) -> Option<u64> {
        Some(self.first.left()).filter(|left| *left > 0)
    }

    /// Ports, ours and the peer's, between which the packets of our further workers do not get through.
    pub fn unheard(&self) -> Vec<(u16, u16)> {
        self.more.iter().filter_map(Way::unheard).collect()
    }

    fn way(&self, worker: u8) -> Option<&Way> {
        match worker {
            0 => Some(&self.first),
            _ => self.more.get(usize::from(worker) - 1),
        }
    }

    /// UDP payload of the largest packet.
    fn largest(&self) -> usize {
        HEADER + 1 + self.max_frame() + TAG
    }
}

/// Where a worker receives, if the first one receives there.
fn of_worker(mut first: SocketAddr, worker: u8) -> Option<SocketAddr> {
    first.set_port(first.port().checked_add(worker.into())?);
    Some(first)
}

impl Carrier for LaneCarrier {
    fn send(&self, turn: Turn, batch: &mut OutBatch) -> Sent {
        let mut sent = Sent::default();
        // a lane ends with its connection: what is left is counted as such by the other way
        if !self.datagrams.closed() {
            let (largest, beside) = (self.largest(), &self.beside);
            if let Some(own) = self.way(turn.worker).filter(|_| turn.worker > 0) {
                sent = own.send(turn.others, batch, largest, beside, Some(&self.first));
            }
            // also what another worker has no lane for: its own is spent, or the peer has fewer workers
            if !batch.is_empty() {
                sent.add(self.first.send(turn.others, batch, largest, beside, None));
            }
        }
        if !batch.is_empty() {
            sent.add(self.datagrams.send(turn, batch));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_s_port_is_at_the_same_address_in_the_same_zone() {
        for (first, worker, expected) in [
            ("[fe80::1%2]:4650", 0, Some("[fe80::1%2]:4650")),
            ("[fe80::1%2]:4650", 3, Some("[fe80::1%2]:4653")),
            ("198.51.100.11:65535", 0, Some("198.51.100.11:65535")),
            ("198.51.100.11:65535", 1, None),
        ] {
            let expected = expected.map(|at| at.parse::<SocketAddr>().unwrap());
            assert_eq!(of_worker(first.parse().unwrap(), worker), expected);
        }
    }
}
