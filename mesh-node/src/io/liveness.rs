//! Drives the probes of all tunnels: one real-time thread, so that neither bulk traffic nor a busy runtime makes a live peer
//! look dead. What a probe means is `control::liveness`'s; who is probed, `Control`'s. A peer that probes us is answered whether
//! we want to know of it or not.
//!
//! ```text
//!  reader of the socket, or of a --Heard--> thread --probe--> the socket (`beside`); until both sides have that, or while it
//!  connection's DATAGRAM frames             |                is full: quinn (DATAGRAM frames)
//!  control loop ---Want, Keep---------->    |---renewal--> kernel    (see `control::host::lease`)
//!                                           +--Input::Liveness, LeaseLost, LeaseRenewed--> control loop
//!                                           <---------- Question, answered (`pulse`) ---->
//! ```
//!
//! The lease of this node's own egress roles is renewed here as well: it must end when our probes do. While the control loop hangs
//! it is not renewed, and every probe says "down".

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_proto::frame;
use mesh_proto::liveness::{Probe, State};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use self::beside::Sending;
pub use self::heard::Heard;
use self::heard::digest;
use self::mailbox::{Receiver, Sender, mailbox};
use self::pulse::Pulse;
use super::host::lease::Renewals;
use super::notices::tell;
use super::quic::connection::Event;
use super::quic::hearing::Hearing;
use super::vital;
use crate::control::event::{ConnId, Input};
use crate::control::host::lease::{Keeper, Lease};
use crate::control::liveness::{Change, HeardBy, Judgement, ProbeParams, Session};
use crate::notice::Notice;

pub mod beside;
mod heard;
mod mailbox;
pub mod pulse;

/// Longest sleep without a session: nothing is missed, since every message wakes.
const IDLE: Duration = Duration::from_secs(3600);

/// Messages taken at once: a peer that floods us with probes must not keep ours, or the lease, from being sent in time.
const BURST: usize = 256;

/// Turns of the runtime before anybody is called silent: one reads the socket, the next ones bring what was read through quinn to
/// the reader task. One takes 1 to 2 ms.
const TURNS: u32 = 3;

/// Between two looks at whether all has been read.
const LOOK: Duration = Duration::from_millis(1);

/// Probes for another session than the one there is; the process has one thread that counts.
static STRAY: AtomicU64 = AtomicU64::new(0);

/// Probes that peers have sent for another session than theirs: forged, or of a session that has ended.
pub fn stray_probes() -> u64 {
    STRAY.load(Relaxed)
}

/// Between two tries to tell a full control loop.
const RETRY: Duration = Duration::from_millis(5);

#[derive(Debug)]
enum Message {
    Open { conn: ConnId, connection: quinn::Connection, heard: Arc<Heard> },
    Beside { conn: ConnId, sending: Sending },
    Want { wanted: BTreeMap<ConnId, ProbeParams> },
    Keep { lease: Lease },
    Probed { conn: ConnId, heard: Arc<Heard>, probe: Probe, at: Instant },
    Close { conn: ConnId },
}

/// How the rest of the node talks to the thread. It ends when the last of these is dropped.
#[derive(Debug, Clone)]
pub struct Prober(Arc<Sender<Message>>);

impl Prober {
    /// Starts the thread; `prioritise` gives it the rank of a packet thread. To be called within the runtime that reads connections.
    pub fn start(
        events: mpsc::Sender<Event>,
        hearing: Arc<Hearing>,
        prioritise: fn(),
    ) -> std::io::Result<Self> {
        let (sender, messages) = mailbox();
        let thread = Thread {
            messages,
            events,
            sessions: BTreeMap::new(),
            wanted: BTreeMap::new(),
            keeper: Keeper::new(Instant::now()),
            renewals: Renewals::default(),
            lease_untold: None,
            renewal_failed: false,
            renewal_untold: None,
            runtime: Handle::current(),
            hearing,
            waits: false,
            pulse: Pulse::new(Instant::now()),
            hangs: false,
            turns: None,
            read_by: None,
            rng: SmallRng::seed_from_u64(super::chance()),
        };
        vital::spawn("mesh-live", move || {
            prioritise();
            thread.run();
        })?;
        Ok(Self(Arc::new(sender)))
    }

    /// A tunnel is there; its probes come to `took`, and whatever else comes is noted in `heard`.
    pub fn open(&self, conn: ConnId, connection: quinn::Connection, heard: Arc<Heard>) {
        self.send(Message::Open { conn, connection, heard });
    }

    /// A tunnel's probes may travel beside its connection.
    pub fn beside(&self, conn: ConnId, sending: Sending) {
        self.send(Message::Beside { conn, sending });
    }

    /// A tunnel is gone.
    pub fn close(&self, conn: ConnId) {
        self.send(Message::Close { conn });
    }

    /// All tunnels that are to be probed, and how.
    pub fn want(&self, wanted: BTreeMap<ConnId, ProbeParams>) {
        self.send(Message::Want { wanted });
    }

    /// The egress roles that the kernel is to go on with.
    pub fn keep(&self, lease: Lease) {
        self.send(Message::Keep { lease });
    }

    /// Takes a frame that is a probe; `false` if it is none. One that is malformed is none either, and is counted as a bad frame.
    pub fn took(&self, conn: ConnId, heard: &Arc<Heard>, frame: &[u8]) -> bool {
        let Some(probe) = frame::probe(frame).and_then(|bytes| Probe::decode(bytes).ok()) else {
            return false;
        };
        if heard.knows(&probe) {
            heard.now();
        } else if heard.takes(Instant::now()) {
            self.send(Message::Probed { conn, heard: heard.clone(), probe, at: Instant::now() });
        }
        true
    }

    fn send(&self, message: Message) {
        self.0.send(message);
    }
}

/// A tunnel, with a session where one of its ends wants one.
struct Tunnel {
    connection: quinn::Connection,
    beside: Option<Sending>,
    heard: Arc<Heard>,
    session: Option<Session>,
    /// Whether we want the session, not the peer alone.
    ours: bool,
    /// Not told yet.
    untold: Option<Change>,
    /// The peer's last probe that said "up".
    said: u64,
    /// The number of the last session.
    number: u32,
}

impl Tunnel {
    /// Ends the session, if there is one.
    fn take_leave(&mut self) {
        if let Some(mut session) = self.session.take() {
            self.send(&session.farewell());
        }
    }

    fn send(&mut self, probe: &Probe) {
        let sent = self.beside.as_mut().is_some_and(|beside| beside.send(probe));
        // before the peer's have come, nothing shows that both have the same keys
        if !sent || !self.heard.beside.load(Relaxed) {
            // a full buffer gives its oldest packet for it: a probe that waits is a false alarm. A connection that has ended is told
            // by its task
            let frame = frame::probe_frame(&probe.encode());
            let _ = self.connection.send_datagram(Bytes::copy_from_slice(&frame));
        }
    }
}

struct Thread {
    messages: Receiver<Message>,
    events: mpsc::Sender<Event>,
    sessions: BTreeMap<ConnId, Tunnel>,
    wanted: BTreeMap<ConnId, ProbeParams>,
    keeper: Keeper,
    renewals: Renewals,
    /// A loss of the lease that has not been told yet.
    lease_untold: Option<Duration>,
    /// The last renewal failed.
    renewal_failed: bool,
    /// That this has changed has not been told yet.
    renewal_untold: Option<Result<(), String>>,
    runtime: Handle,
    hearing: Arc<Hearing>,
    /// Somebody is overdue, and not called silent yet.
    waits: bool,
    pulse: Pulse,
    /// The control loop does: nothing is renewed in its name, and peers are told.
    hangs: bool,
    /// The turns that the runtime takes before anybody is called silent, and when it was asked to. This thread may be the first to run
    /// again after a pause of the whole process: what lies in the socket then is no silence.
    turns: Option<(Instant, JoinHandle<()>)>,
    /// All that had come by then has been read, as far as the runtime runs at all.
    read_by: Option<Instant>,
    rng: SmallRng,
}

impl Thread {
    fn run(mut self) {
        let mut taken = Vec::new();
        loop {
            let now = Instant::now();
            let next = self.next(now);
            if !self.messages.take(&mut taken, BURST, next.saturating_duration_since(now)) {
                return;
            }
            self.pulse.excuse(Instant::now().saturating_duration_since(next));
            for message in taken.drain(..) {
                self.message(message);
            }
            self.feel_pulse(Instant::now());
            self.renew(Instant::now());
            self.due(Instant::now());
        }
    }

    fn next(&self, now: Instant) -> Instant {
        let due = self.sessions.values().filter_map(|tunnel| {
            let retry = tunnel.untold.map(|_| now + RETRY);
            let session = tunnel.session.as_ref().map(Session::poll_timeout);
            retry.into_iter().chain(session).min()
        });
        let untold = self.lease_untold.is_some() || self.renewal_untold.is_some();
        let retry = untold.then(|| now + RETRY);
        let due = due.map(|at| if self.waits { at.max(now + LOOK) } else { at });
        due.chain(self.keeper.poll_timeout()).chain(retry).min().unwrap_or(now + IDLE)
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Open { conn, connection, heard } => {
                let tunnel = Tunnel {
                    connection,
                    beside: None,
                    heard,
                    session: None,
                    ours: false,
                    untold: None,
                    said: 0,
                    number: 0,
                };
                self.sessions.insert(conn, tunnel);
                self.adapt();
            }
            Message::Beside { conn, sending } => {
                if let Some(tunnel) = self.sessions.get_mut(&conn) {
                    tunnel.beside = Some(sending);
                }
            }
            Message::Want { wanted } => {
                self.wanted = wanted;
                self.adapt();
            }
            Message::Keep { lease } => {
                if lease.marks.is_empty() && std::mem::take(&mut self.renewal_failed) {
                    self.renewal_untold = Some(Ok(()));
                }
                self.keeper.keep(lease, Instant::now());
            }
            Message::Probed { conn, heard, probe, at } => {
                heard.waiting.fetch_sub(1, Relaxed);
                let Some(tunnel) = self.sessions.get_mut(&conn) else { return };
                let session = tunnel.session.get_or_insert_with(|| {
                    tunnel.number += 1;
                    Session::answering(tunnel.number, &probe, at)
                });
                if !session.is_for_us(&probe) {
                    STRAY.fetch_add(1, Relaxed);
                    return;
                }
                tunnel.untold = session.handle_probe(&probe, at).or(tunnel.untold);
                tunnel.said = if probe.state == State::Up { digest(&probe) } else { 0 };
                if probe.state == State::AdminDown && !tunnel.ours {
                    tunnel.session = None;
                }
            }
            Message::Close { conn } => drop(self.sessions.remove(&conn)),
        }
    }

    /// Begins and ends sessions as wanted. One that the other side wants goes on.
    fn adapt(&mut self) {
        let now = Instant::now();
        for (conn, tunnel) in &mut self.sessions {
            let has = tunnel.session.as_ref().map(Session::params);
            match self.wanted.get(conn) {
                Some(wanted) if has != Some(*wanted) => {
                    // the other side must not take the new beginning for a failure
                    tunnel.take_leave();
                    tunnel.number += 1;
                    tunnel.session = Some(Session::new(tunnel.number, *wanted, now));
                    tunnel.ours = true;
                }
                Some(_) if !tunnel.ours => {
                    tunnel.ours = true;
                    let verdict = tunnel.session.as_ref().and_then(|session| session.verdict(now));
                    tunnel.untold = verdict.or(tunnel.untold);
                }
                Some(_) => {}
                None if tunnel.ours => {
                    tunnel.ours = false;
                    tunnel.take_leave();
                }
                None => {}
            }
        }
    }

    /// Of an egress node's control loop: others rely on what it knows.
    fn feel_pulse(&mut self, now: Instant) {
        if self.keeper.poll_timeout().is_none() {
            self.hangs = false;
            return;
        }
        if let Some(question) = self.pulse.poll_question(now)
            && !told(&self.events, Event::Pulse(question))
        {
            self.pulse.not_delivered();
        }
        let hangs = self.pulse.is_lost(now);
        if hangs && !self.hangs {
            tell(Notice::ControlStuck {});
            self.sessions
                .values_mut()
                .filter_map(|tunnel| tunnel.session.as_mut())
                .for_each(|s| s.hurry(now));
        }
        self.hangs = hangs;
    }

    fn renew(&mut self, now: Instant) {
        let hangs_soon = self.pulse.is_lost_within(self.keeper.patience(), now);
        if let Some(marks) = self.keeper.poll_renewal(now)
            && !hangs_soon
        {
            match self.renewals.renew(marks) {
                Ok(renewed) => {
                    if std::mem::take(&mut self.renewal_failed) {
                        self.renewal_untold = Some(Ok(()));
                    }
                    self.lease_untold = self.keeper.handle_renewed(renewed, now).or(self.lease_untold);
                }
                Err(error) if !self.renewal_failed => {
                    self.renewal_failed = true;
                    self.renewal_untold = Some(Err(error.to_string()));
                }
                Err(_) => {}
            }
        }
        if let Some(pause) = self.lease_untold
            && told(&self.events, Event::Input(Input::LeaseLost(pause)))
        {
            self.lease_untold = None;
        }
        if let Some(renewed) = self.renewal_untold.take()
            && !told(&self.events, Event::Input(Input::LeaseRenewed(renewed.clone())))
        {
            self.renewal_untold = Some(renewed);
        }
    }

    fn due(&mut self, now: Instant) {
        if let Some((begun, _)) = self.turns.take_if(|(_, turns)| turns.is_finished()) {
            self.read_by = Some(begun);
        }
        let heard_by = HeardBy { read_by: self.read_by, deaf_until: self.hearing.deaf_until() };
        self.waits = false;
        let mut unread = false;
        for (conn, tunnel) in &mut self.sessions {
            if let Some(session) = &mut tunnel.session {
                session.handle_traffic(tunnel.heard.last());
                match session.judge(heard_by, now) {
                    Some(Judgement::Silent) => tunnel.untold = session.handle_timeout(now).or(tunnel.untold),
                    Some(Judgement::Unread) => unread = true,
                    Some(Judgement::Deaf) => self.waits = true,
                    None => {}
                }
                if let Some(probe) = session.poll_transmit(now, &mut self.rng) {
                    tunnel.send(&if self.hangs { Probe { state: State::Down, ..probe } } else { probe });
                }
            }
            let up = tunnel.session.as_ref().is_some_and(|session| session.state() == State::Up);
            tunnel.heard.steady.store(if up { tunnel.said } else { 0 }, Relaxed);
            let Some(change) = tunnel.untold.take() else { continue };
            let event = Event::Input(Input::Liveness { conn: *conn, change });
            if !told(&self.events, event) {
                tunnel.untold = Some(change);
            }
        }
        self.waits |= unread;
        if unread && self.turns.is_none() && self.hearing.has_read_all() {
            let turns = self.runtime.spawn(async {
                for _ in 0..TURNS {
                    tokio::time::sleep(LOOK).await;
                }
            });
            self.turns = Some((now, turns));
        }
    }
}

/// Whether the control loop has taken it; a full one is told again.
fn told(events: &mpsc::Sender<Event>, event: Event) -> bool {
    !matches!(events.try_send(event), Err(mpsc::error::TrySendError::Full(_)))
}
