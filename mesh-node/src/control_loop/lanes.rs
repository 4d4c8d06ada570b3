//! Lanes of the tunnels: offered, agreed on, made, changed, ended. `tunnel::lane::agreement` says when; this does it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_proto::hello::{LaneOffer, LaneReady, Message};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tracing::debug;

use crate::control::event::ConnId;
use crate::control::status::LaneFigures;
use crate::io::lane::LaneWire;
use crate::io::lane::carrier::LaneCarrier;
use crate::io::lane::table::{LaneEnd, LaneTable};
use crate::io::liveness::Heard;
use crate::io::now;
use crate::io::quic::connection::Event;
use crate::io::quic::exporter::LaneSecret;
use crate::io::quic::path::Beside;
use crate::tunnel::Tunnel;
use crate::tunnel::lane::LaneId;
use crate::tunnel::lane::agreement::{Agreement, Step};
use crate::tunnel::lane::keys::{Cipher, Ratchet, Side};

/// How long a lane can still be received after the peer has been seen to send on the next one: many times what is on its way.
const GRACE: Duration = Duration::from_secs(10);

/// Most lanes that a tunnel may have in a second. Each costs time that grows with the number of tunnels.
const LANES_PER_SECOND: u32 = 1000;

/// Lanes of one tunnel that can be received at a time: the one in use, the next, and one before that is running empty.
const RECEIVED: usize = 3;

/// Most ciphers that an offer may name.
const MAX_CIPHERS: usize = 16;

/// What a node with lanes needs for all of them.
pub struct LaneSetup {
    /// The way to and from the wire.
    pub wire: LaneWire,
    /// Where outbound threads say that a lane is half used.
    pub events: mpsc::Sender<Event>,
    /// Packets after which the next lane is made; twice as many end a lane.
    pub packets: u64,
}

/// The lanes of all tunnels; none on a node in standard mode.
pub(super) struct Lanes {
    setup: Option<LaneSetup>,
    sessions: BTreeMap<ConnId, Session>,
}

/// One tunnel's.
struct Session {
    /// Until lanes have been made of it.
    secret: Option<LaneSecret>,
    side: Side,
    heard: Arc<Heard>,
    writer: mpsc::Sender<Message>,
    /// Once it is published.
    carrier: Option<Arc<LaneCarrier>>,
    /// Once its packets may be taken.
    tunnel: Option<Arc<Tunnel>>,
    agreement: Option<Agreement>,
    /// Lanes that can be received, the newest last.
    receiving: Vec<LaneId>,
    /// Ends those before the newest.
    endings: Endings,
    pace: Pace,
    /// The lane sent on, and since when.
    sending: Option<(u32, Instant)>,
}

impl Lanes {
    pub(super) fn new(setup: Option<LaneSetup>) -> Self {
        Self { setup, sessions: BTreeMap::new() }
    }

    /// A connection is up: offers lanes to its other end.
    pub(super) fn opened(
        &mut self,
        conn: ConnId,
        side: Side,
        secret: Option<LaneSecret>,
        writer: &mpsc::Sender<Message>,
        heard: Arc<Heard>,
    ) {
        let (Some(_), Some(secret)) = (&self.setup, secret) else { return };
        // the queue is new, and as good as empty
        if writer.try_send(Message::LaneOffer(our_offer())).is_err() {
            return;
        }
        let session = Session {
            secret: Some(secret),
            side,
            heard,
            writer: writer.clone(),
            carrier: None,
            tunnel: None,
            agreement: None,
            receiving: Vec::new(),
            endings: Endings::new(GRACE),
            pace: Pace::default(),
            sending: None,
        };
        self.sessions.insert(conn, session);
    }

    /// What carries a tunnel's packets, where it can have lanes.
    pub(super) fn carrier(
        &mut self,
        conn: ConnId,
        connection: &quinn::Connection,
        beside: &Arc<Beside>,
    ) -> Option<Arc<LaneCarrier>> {
        let setup = self.setup.as_ref()?;
        let session = self.sessions.get_mut(&conn)?;
        let events = setup.events.clone();
        let half_used = Box::new(move |lane| events.try_send(Event::LaneHalfUsed { conn, lane }).is_ok());
        // neither changes: a connection does not migrate
        let (to, from) = (connection.remote_address(), connection.local_ip());
        let socket = setup.wire.socket.clone();
        let carrier = LaneCarrier::new(socket, to, from, connection.clone(), beside.clone(), half_used);
        let carrier = Arc::new(carrier);
        session.carrier = Some(carrier.clone());
        Some(carrier)
    }

    /// A message about lanes; any other is left alone. An error is a breach of the protocol.
    pub(super) fn message(&mut self, conn: ConnId, message: &Message) -> Result<(), String> {
        let (Some(setup), Some(session)) = (&self.setup, self.sessions.get_mut(&conn)) else { return Ok(()) };
        match message {
            Message::LaneOffer(theirs) => session.offered(conn, theirs, setup),
            Message::LaneReady(LaneReady { lane }) => {
                let agreement = session.agreement.as_mut().ok_or("a lane before an offer of lanes")?;
                let steps = agreement.handle_ready(*lane).map_err(|e| e.to_string())?;
                session.carry_out(conn, steps, setup)
            }
            _ => Ok(()),
        }
    }

    /// Packets of a tunnel may be taken.
    pub(super) fn readable(&mut self, conn: ConnId, tunnel: Arc<Tunnel>) -> Result<(), String> {
        let (Some(setup), Some(session)) = (&self.setup, self.sessions.get_mut(&conn)) else { return Ok(()) };
        session.tunnel = Some(tunnel);
        session.start(conn, setup)
    }

    /// Half of what a lane may carry has been sent.
    pub(super) fn half_used(&mut self, conn: ConnId, lane: u32) -> Result<(), String> {
        let (Some(setup), Some(session)) = (&self.setup, self.sessions.get_mut(&conn)) else { return Ok(()) };
        let Some(agreement) = &mut session.agreement else { return Ok(()) };
        let steps = agreement.handle_half_used(lane);
        session.carry_out(conn, steps, setup)
    }

    /// A tunnel has ended, and its lanes with it.
    pub(super) fn closed(&mut self, conn: ConnId) {
        let (Some(setup), Some(session)) = (&self.setup, self.sessions.remove(&conn)) else { return };
        for id in session.receiving {
            setup.wire.table.remove(id);
        }
    }

    /// The node stops: nothing that still comes by a lane may reach VMs whose way back is gone.
    pub(super) fn close(&mut self) {
        let all: Vec<ConnId> = self.sessions.keys().copied().collect();
        all.into_iter().for_each(|conn| self.closed(conn));
    }

    /// What an operator is told of a tunnel's lane; `None`: its packets travel as DATAGRAM frames of the connection.
    pub(super) fn figures(&self, conn: ConnId) -> Option<LaneFigures> {
        let session = self.sessions.get(&conn)?;
        let packets_left = session.carrier.as_ref()?.left()?;
        let (number, since) = session.sending?;
        let cipher = session.agreement.as_ref()?.cipher().as_str();
        Some(LaneFigures { cipher, number, since, packets_left })
    }
}

impl Session {
    fn offered(&mut self, conn: ConnId, theirs: &LaneOffer, setup: &LaneSetup) -> Result<(), String> {
        let secret = self.secret.take().ok_or("a second offer of lanes")?;
        if theirs.ciphers.len() > MAX_CIPHERS {
            return Err(format!(
                "an offer of {} ciphers, of which {MAX_CIPHERS} may be",
                theirs.ciphers.len()
            ));
        }
        let ours = our_offer();
        let (dialer, acceptor) = match self.side {
            Side::Client => (&ours, theirs),
            Side::Server => (theirs, &ours),
        };
        let Some(cipher) = Cipher::agreed(&dialer.ciphers, &acceptor.ciphers) else {
            debug!(?conn, "no cipher for lanes in common");
            return Ok(());
        };
        let both = [dialer, acceptor].map(|offer| Message::LaneOffer(offer.clone()).encode()).concat();
        self.agreement = Some(Agreement::new(Ratchet::new(secret.bytes(), &both, cipher, self.side)));
        self.start(conn, setup)
    }

    /// Makes the first lane once both sides have offered and packets may be taken.
    fn start(&mut self, conn: ConnId, setup: &LaneSetup) -> Result<(), String> {
        let (Some(agreement), Some(_)) = (&mut self.agreement, &self.tunnel) else { return Ok(()) };
        let steps = agreement.start();
        self.carry_out(conn, steps, setup)
    }

    fn carry_out(&mut self, conn: ConnId, steps: Vec<Step>, setup: &LaneSetup) -> Result<(), String> {
        // there are steps only after `start`
        let (Some(tunnel), Some(carrier)) = (&self.tunnel, &self.carrier) else { return Ok(()) };
        for step in steps {
            match step {
                Step::Receive { number, id, opener } => {
                    self.pace.next(now().mono)?;
                    let end = LaneEnd::new(tunnel.clone(), self.heard.clone(), *opener);
                    let Some(next) = setup.wire.table.add(id, end) else {
                        return Err(format!("lane {number} has an ID that is taken"));
                    };
                    if let Some(before) = self.receiving.last() {
                        self.endings.later(&setup.wire.table, *before, next);
                    }
                    self.receiving.push(id);
                    if self.receiving.len() > RECEIVED {
                        setup.wire.table.remove(self.receiving.remove(0));
                    }
                }
                Step::Announce(lane) => {
                    let ready = Message::LaneReady(LaneReady { lane });
                    super::give(&self.writer, ready)?;
                }
                Step::Send { number, sealer } => {
                    debug!(?conn, lane = number, "packets travel on a lane");
                    carrier.change(number, sealer.limited(setup.packets.saturating_mul(2)));
                    self.sending = Some((number, now().mono));
                }
            }
        }
        Ok(())
    }
}

/// Ends lanes after a while. Of one tunnel no more wait than can be received, however fast the peer makes us change.
struct Endings {
    waiting: Vec<AbortHandle>,
    grace: Duration,
}

impl Endings {
    fn new(grace: Duration) -> Self {
        Self { waiting: Vec::new(), grace }
    }

    /// Ends a lane once the peer has changed to the `next`. It may take its time: who has nothing to send does not change, and a
    /// control loop that hangs for a while changes late, while its packets go on.
    fn later(&mut self, table: &Arc<LaneTable>, id: LaneId, next: Arc<LaneEnd>) {
        if self.waiting.len() + 1 == RECEIVED {
            // its lane has been followed by so many that it has ended
            self.waiting.remove(0).abort();
        }
        let (table, grace) = (table.clone(), self.grace);
        let ending = tokio::spawn(async move {
            while !next.opener().is_used() {
                tokio::time::sleep(grace).await;
            }
            tokio::time::sleep(grace).await;
            table.remove(id);
        });
        self.waiting.push(ending.abort_handle());
    }
}

impl Drop for Endings {
    fn drop(&mut self) {
        for ending in &self.waiting {
            ending.abort();
        }
    }
}

/// How fast a tunnel's lanes follow one another.
#[derive(Default)]
struct Pace {
    second: Option<Instant>,
    lanes: u32,
}

impl Pace {
    /// One more; an error is a breach of the protocol.
    fn next(&mut self, now: Instant) -> Result<(), String> {
        if self.second.is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1)) {
            self.second = Some(now);
            self.lanes = 0;
        }
        self.lanes += 1;
        match self.lanes <= LANES_PER_SECOND {
            true => Ok(()),
            false => Err(format!("more than {LANES_PER_SECOND} lanes within a second")),
        }
    }
}

/// The fastest of this processor first.
fn our_offer() -> LaneOffer {
    let mut ciphers = Cipher::ALL;
    if !crate::io::lane::has_aes() {
        ciphers.reverse();
    }
    LaneOffer { ciphers: ciphers.map(|cipher| cipher as u16).into() }
}

#[cfg(test)]
mod tests;
