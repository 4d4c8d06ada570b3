//! A tunnel's probes travel beside its connection once both sides have said that they can receive them so; until then, and
//! where the socket is full, as DATAGRAM frames of the connection.

use std::sync::Arc;

use mesh_proto::hello::Message;
use quinn::AsyncUdpSocket;
use tokio::sync::mpsc;

use crate::control::event::ConnId;
use crate::io::liveness::beside::{Receivers, Receiving, Sending};
use crate::io::liveness::{Heard, Prober};
use crate::io::quic::exporter::LaneSecret;
use crate::tunnel::lane::keys::Side;
use crate::tunnel::lane::probe;

/// What all tunnels share.
pub struct ProbeWire {
    /// Sends.
    pub socket: Arc<dyn AsyncUdpSocket>,
    /// What the socket's reader knows.
    pub receivers: Arc<Receivers>,
    /// The probing thread.
    pub prober: Prober,
}

/// One tunnel's.
pub(super) struct Probes {
    /// Until the lane has been made of it.
    secret: Option<(LaneSecret, Side)>,
    /// Ours, until the peer can receive it.
    sending: Option<Sending>,
    receiving: Option<Receiving>,
    /// The peer can receive them.
    peer_ready: bool,
}

impl Probes {
    pub(super) fn new(secret: Option<LaneSecret>, side: Side) -> Self {
        let secret = secret.map(|secret| (secret, side));
        Self { secret, sending: None, receiving: None, peer_ready: false }
    }

    /// Whatever comes from the peer may be taken, its probes too.
    pub(super) fn readable(
        &mut self,
        conn: ConnId,
        connection: &quinn::Connection,
        writer: &mpsc::Sender<Message>,
        heard: Arc<Heard>,
        wire: &ProbeWire,
    ) -> Result<(), String> {
        let Some((secret, side)) = self.secret.take() else { return Ok(()) };
        let lane = probe::lane(secret.bytes(), side);
        let received = wire.receivers.receive(lane.id, lane.opener, conn, heard, wire.prober.clone());
        self.receiving = Some(received.ok_or("a lane for probes has an ID that is taken")?);
        self.sending = Some(Sending::new(wire.socket.clone(), connection, lane.sealer));
        self.begin(conn, &wire.prober);
        super::give(writer, Message::ProbesReady)
    }

    /// The peer can receive them.
    pub(super) fn peer_ready(&mut self, conn: ConnId, prober: &Prober) -> Result<(), String> {
        if std::mem::replace(&mut self.peer_ready, true) {
            return Err("a lane for probes is ready twice".to_owned());
        }
        self.begin(conn, prober);
        Ok(())
    }

    fn begin(&mut self, conn: ConnId, prober: &Prober) {
        if self.peer_ready
            && let Some(sending) = self.sending.take()
        {
            prober.beside(conn, sending);
        }
    }
}
