//! Lanes of the tunnels: offered, agreed on, made, changed, ended. `tunnel::lane::agreement` says when; this does it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_proto::hello::{LaneHeard, LaneOffer, LaneReady, Message};
use mesh_proto::limits::MAX_WORKERS;
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
use crate::tunnel::lane::cipher::{Cipher, Provider, has_aes};
use crate::tunnel::lane::keys::{Ratchet, Side};

/// How long a lane can still be received after the peer has been seen to send on the next one: many times what is on its way.
const GRACE: Duration = Duration::from_secs(10);

/// Most lanes that a tunnel may have in a second. Each costs time that grows with the number of tunnels.
const LANES_PER_SECOND: u32 = 1000;

/// Lanes of one worker that can be received at a time: the one in use, the next, and one before that is running empty.
const RECEIVED: usize = 3;

/// Most ciphers that an offer may name.
const MAX_CIPHERS: usize = 16;

/// What a node with lanes needs for all of them.
pub struct LaneSetup {
    /// The way to and from the wire.
    pub wire: LaneWire,
    /// Where packet threads say that a lane is half used, or heard.
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
    /// Of each worker that both sides have, once both have offered.
    sets: Vec<Set>,
    pace: Pace,
}

/// The lanes of the workers of one number.
struct Set {
    agreement: Agreement,
    /// Lanes that can be received, the newest last.
    receiving: Vec<LaneId>,
    /// Ends those before the newest.
    endings: Endings,
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
        let (Some(setup), Some(secret)) = (&self.setup, secret) else { return };
        // the queue is new, and as good as empty
        if writer.try_send(Message::LaneOffer(our_offer(&setup.wire))).is_err() {
            return;
        }
        let session = Session {
            secret: Some(secret),
            side,
            heard,
            writer: writer.clone(),
            carrier: None,
            tunnel: None,
            sets: Vec::new(),
            pace: Pace::default(),
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
        let half_used =
            Arc::new(move |worker, lane| events.try_send(Event::LaneHalfUsed { conn, worker, lane }).is_ok());
        // neither changes: a connection does not migrate
        let (to, from) = (connection.remote_address(), connection.local_ip());
        let carrier = LaneCarrier::new(&setup.wire, to, from, connection.clone(), beside.clone(), half_used);
        let carrier = Arc::new(carrier);
        session.carrier = Some(carrier.clone());
        Some(carrier)
    }

    /// A message about lanes; any other is left alone. An error is a breach of the protocol.
    pub(super) fn message(&mut self, conn: ConnId, message: &Message) -> Result<(), String> {
        let (Some(setup), Some(session)) = (&self.setup, self.sessions.get_mut(&conn)) else { return Ok(()) };
        match message {
            Message::LaneOffer(theirs) => session.offered(conn, theirs, setup),
            Message::LaneReady(LaneReady { worker, lane }) => {
                let set = session.sets.get_mut(usize::from(*worker));
                let set = set.ok_or("a lane of no worker, or before an offer of lanes")?;
                let steps = set.agreement.handle_ready(*lane).map_err(|e| e.to_string())?;
                session.carry_out(conn, *worker, steps, setup)
            }
            Message::LaneHeard(LaneHeard { worker }) => {
                if let Some(carrier) = &session.carrier {
                    carrier.heard(*worker, now().mono);
                }
                Ok(())
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
    pub(super) fn half_used(&mut self, conn: ConnId, worker: u8, lane: u32) -> Result<(), String> {
        let (Some(setup), Some(session)) = (&self.setup, self.sessions.get_mut(&conn)) else { return Ok(()) };
        let Some(set) = session.sets.get_mut(usize::from(worker)) else { return Ok(()) };
        let steps = set.agreement.handle_half_used(lane);
        session.carry_out(conn, worker, steps, setup)
    }

    /// What a worker of the peer sends arrives: it has asked.
    pub(super) fn heard(&mut self, conn: ConnId, worker: u8) -> Result<(), String> {
        let Some(session) = self.sessions.get(&conn) else { return Ok(()) };
        super::give(&session.writer, Message::LaneHeard(LaneHeard { worker }))
    }

    /// A tunnel has ended, and its lanes with it.
    pub(super) fn closed(&mut self, conn: ConnId) {
        let (Some(setup), Some(session)) = (&self.setup, self.sessions.remove(&conn)) else { return };
        for id in session.sets.into_iter().flat_map(|set| set.receiving) {
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
        let carrier = session.carrier.as_ref()?;
        let (packets_left, unheard) = (carrier.left()?, carrier.unheard());
        let set = session.sets.first()?;
        let (number, since) = set.sending?;
        let cipher = set.agreement.cipher().as_str();
        Some(LaneFigures { cipher, number, since, packets_left, unheard })
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
        if !(1..=MAX_WORKERS).contains(&theirs.workers) {
            return Err(format!("an offer of {} workers, of which {MAX_WORKERS} may be", theirs.workers));
        }
        let ours = our_offer(&setup.wire);
        let (dialer, acceptor) = match self.side {
            Side::Client => (&ours, theirs),
            Side::Server => (theirs, &ours),
        };
        let Some(cipher) = Cipher::agreed(&dialer.ciphers, &acceptor.ciphers) else {
            debug!(?conn, "no cipher for lanes in common");
            return Ok(());
        };
        debug!(?conn, cipher = cipher.as_str(), by = Provider::fastest(cipher).as_str(), "lanes agreed");
        let both = [dialer, acceptor].map(|offer| Message::LaneOffer(offer.clone()).encode()).concat();
        let sets = (0..ours.workers.min(theirs.workers)).map(|worker| Set {
            agreement: Agreement::new(Ratchet::new(secret.bytes(), &both, worker, cipher, self.side)),
            receiving: Vec::new(),
            endings: Endings::new(GRACE),
            sending: None,
        });
        self.sets = sets.collect();
        self.start(conn, setup)
    }

    /// Makes the first lane of each worker once both sides have offered and packets may be taken.
    fn start(&mut self, conn: ConnId, setup: &LaneSetup) -> Result<(), String> {
        if self.tunnel.is_none() {
            return Ok(());
        }
        (0..).zip(0..self.sets.len()).try_for_each(|(worker, at)| {
            let steps = self.sets[at].agreement.start();
            self.carry_out(conn, worker, steps, setup)
        })
    }

    fn carry_out(
        &mut self,
        conn: ConnId,
        worker: u8,
        steps: Vec<Step>,
        setup: &LaneSetup,
    ) -> Result<(), String> {
        // there are steps only after `start`
        let (Some(tunnel), Some(carrier)) = (&self.tunnel, &self.carrier) else { return Ok(()) };
        let Some(set) = self.sets.get_mut(usize::from(worker)) else { return Ok(()) };
        for step in steps {
            match step {
                Step::Receive { number, id, opener } => {
                    self.pace.next(now().mono)?;
                    let mut end = LaneEnd::new(tunnel.clone(), self.heard.clone(), *opener);
                    if worker > 0 {
                        let events = setup.events.clone();
                        let answer = move || events.try_send(Event::LaneHeard { conn, worker }).is_ok();
                        end = end.of_worker(worker, Box::new(answer));
                    }
                    let Some(next) = setup.wire.table.add(id, end) else {
                        return Err(format!("lane {number} has an ID that is taken"));
                    };
                    if let Some(before) = set.receiving.last() {
                        set.endings.later(&setup.wire.table, *before, next);
                    }
                    set.receiving.push(id);
                    if set.receiving.len() > RECEIVED {
                        setup.wire.table.remove(set.receiving.remove(0));
                    }
                }
                Step::Announce(lane) => {
                    let ready = Message::LaneReady(LaneReady { worker, lane });
                    super::give(&self.writer, ready)?;
                }
                Step::Send { number, sealer } => {
                    debug!(?conn, worker, lane = number, "packets travel on a lane");
                    let sealer = sealer.limited(setup.packets.saturating_mul(2));
                    carrier.change(worker, number, sealer);
                    set.sending = Some((number, now().mono));
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
fn our_offer(wire: &LaneWire) -> LaneOffer {
    let mut ciphers = Cipher::ALL;
    if !has_aes() {
        ciphers.reverse();
    }
    LaneOffer { ciphers: ciphers.map(|cipher| cipher as u16).into(), workers: wire.workers() }
}

#[cfg(test)]
mod tests;
