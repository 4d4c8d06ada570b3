//! What is asked of the loop and `Control` does not know: figures of connections, lanes and packets.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Live;
use super::lanes::Lanes;
use crate::control::event::ConnId;
use crate::control::status::{self, Figures, PathFigures, Traffic};
use crate::forward::counters::{Counters, Direction, LaneCount, PeerCounters};
use crate::forward::fib::{NetworkIx, PeerIx};
use crate::forward::flows::Pinned;
use crate::io::quic::datagram::SEND_BUFFER;

/// What the loop knows besides `Control`: live figures of connections.
pub(super) struct Figured<'a> {
    pub(super) live: &'a BTreeMap<ConnId, Live>,
    pub(super) counters: &'a Counters,
    pub(super) lanes: &'a Lanes,
    pub(super) traffic: &'a BTreeMap<PeerIx, Arc<PeerCounters>>,
}

impl status::Live for Figured<'_> {
    fn pinned_flows(&self, network: NetworkIx) -> Arc<Vec<Pinned>> {
        self.counters.pinned(network)
    }

    fn figures(&self, conn: ConnId) -> Option<Figures> {
        let live = self.live.get(&conn)?;
        Some(Figures { rtt: live.connection.rtt(), lane: self.lanes.figures(conn) })
    }

    fn underlay(&self, peer: PeerIx) -> LaneCount {
        self.traffic.get(&peer).map(|counters| counters.read_lane()).unwrap_or_default()
    }

    fn path(&self, conn: ConnId) -> Option<PathFigures> {
        let Live { connection, beside, .. } = self.live.get(&conn)?;
        let stats = connection.stats();
        let room = connection.datagram_send_buffer_space();
        Some(PathFigures {
            datagrams: stats.udp_tx.datagrams + beside.datagrams(),
            sends: stats.udp_tx.ios + beside.calls(),
            lost_packets: stats.path.lost_packets,
            send_buffer_bytes: SEND_BUFFER.saturating_sub(room) as u64,
        })
    }

    fn traffic(&self, peer: PeerIx) -> Traffic {
        let Some(counters) = self.traffic.get(&peer) else { return Traffic::default() };
        let (out, inb) = (counters.read(Direction::Outbound), counters.read(Direction::Inbound));
        Traffic {
            receive_packets: inb.packets,
            receive_bytes: inb.bytes,
            transmit_packets: out.packets,
            transmit_bytes: out.bytes,
        }
    }

    fn egress(&self, peer: PeerIx, network: NetworkIx) -> Traffic {
        let Some(counters) = self.traffic.get(&peer) else { return Traffic::default() };
        let read = |direction| counters.read_egress(direction, network);
        let (out, inb) = (read(Direction::Outbound), read(Direction::Inbound));
        Traffic {
            receive_packets: inb.packets,
            receive_bytes: inb.bytes,
            transmit_packets: out.packets,
            transmit_bytes: out.bytes,
        }
    }
}
