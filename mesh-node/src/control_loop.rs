//! The one task that owns `Control`: an input in, its outputs carried out in order, one alarm set. It decides nothing.

mod figures;
mod lanes;
mod probes;
pub mod save;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh_proto::hello::{CloseCode, Message};
use mesh_proto::trace::{TraceReply, TraceRequest};
use quinn::VarInt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::control::Control;
use crate::control::drain::Forget;
use crate::control::event::{ConnId, Input, Output, Saved, Target, TunnelSpec};
use crate::control::host::HostState;
use crate::forward::counters::{Counters, PeerCounters};
use crate::forward::fib::{Fib, NetworkSpec, PeerIx};
use crate::io::host::{conntrack, flows};
use crate::io::notices::tell;
use crate::io::now;
use crate::io::query::{Query, View};
use crate::io::quic::aside::Aside;
use crate::io::quic::connection::{self, Context, Dial, Door, Event};
use crate::io::quic::datagram::{Datagrams, InboundSender, read_datagrams};
use crate::io::quic::echo::Unanswered;
use crate::io::quic::path::Beside;
use crate::io::trace::Tracer;
use crate::notice::Notice;
use crate::packet_loop::Waker;
use crate::tunnel::lane::keys::Side;
use crate::tunnel::{Carrier, Snapshot, Tunnel};
use figures::Figured;
pub use lanes::LaneSetup;
use lanes::Lanes;
pub use probes::ProbeWire;
use probes::Probes;

/// How long a polite goodbye may take to reach the peers.
const GOODBYE: Duration = Duration::from_millis(300);

/// How long a tunnel, or a reload, waits for the kernel to follow: many times what it takes on a busy host, and short beside
/// what a hanging nft takes.
const KERNEL_PATIENCE: Duration = Duration::from_secs(1);

/// The channels between the loop and the rest.
pub struct Wiring {
    /// From connections and tasks.
    pub events: mpsc::Receiver<Event>,
    /// Questions of the API.
    pub queries: mpsc::Receiver<Query>,
    /// Answers peers' questions about packets.
    pub tracer: Tracer,
    /// Packets that lacked a tunnel.
    pub wanted: mpsc::Receiver<PeerIx>,
    /// quinn's endpoint.
    pub quic: quinn::Endpoint,
    /// For new connections.
    pub context: Context,
    /// What the packet loops read.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Lanes, where this node has them.
    pub lanes: Option<LaneSetup>,
    /// Probes of tunnels.
    pub probes: ProbeWire,
    /// Where a tunnel's packets go.
    pub inbound: InboundSender,
    /// Desired kernel state, the latest only, numbered from 1.
    pub host: watch::Sender<(u64, Arc<HostState>)>,
    /// Number of the last one that the kernel was brought to.
    pub host_applied: watch::Receiver<u64>,
    /// State for the disk, the latest only.
    pub save: watch::Sender<Saved>,
    /// Ends the loop, politely: flows are handed over first, unless it is told twice.
    pub stop: mpsc::Receiver<()>,
    /// Counts of the packet loops.
    pub counters: Arc<Counters>,
    /// Wakes the packet loops.
    pub waker: Waker,
}

struct Live {
    connection: quinn::Connection,
    writer: mpsc::Sender<Message>,
    tunnel: Option<Arc<Tunnel>>,
    aside: Aside,
    beside: Arc<Beside>,
    probes: Probes,
}

/// Runs until told to stop; then says goodbye.
pub async fn run(mut control: Control, mut wiring: Wiring) {
    let mut state = Loop {
        lanes: Lanes::new(wiring.lanes.take()),
        live: BTreeMap::new(),
        traffic: BTreeMap::new(),
        dials: BTreeMap::new(),
        traces: BTreeMap::new(),
        next_trace: 1,
        host_wanted: 0,
        unread: Vec::new(),
        counting: JoinSet::new(),
        counters: wiring.counters.clone(),
        gone: None,
    };
    let mut stopping = false;
    let door = Door::default();
    state.carry_out(&mut control, &mut wiring);
    loop {
        let alarm = control.poll_timeout(now()).map(tokio::time::Instant::from_std);
        // in no order: a peer that talks without end must not keep the others, the operator or the stop waiting
        tokio::select! {
            told = wiring.stop.recv() => {
                if stopping || told.is_none() {
                    break;
                }
                stopping = true;
                control.handle(Input::Stop, now());
            }
            () = sleep_until(state.gone) => break,
            Some(event) = wiring.events.recv() => state.event(&mut control, event, &mut wiring),
            Some(query) = wiring.queries.recv() => state.query(&mut control, query),
            Some(peer) = wiring.wanted.recv() => control.handle(Input::Wanted(peer), now()),
            Some(incoming) = wiring.quic.accept() => door.admit(incoming, &wiring.context),
            () = sleep_until(alarm) => control.handle_timeout(now()),
        }
        state.carry_out(&mut control, &mut wiring);
    }
    tell(Notice::Goodbye {});
    control.handle(Input::Leave, now());
    state.carry_out(&mut control, &mut wiring);
    if !state.live.is_empty() {
        goodbye(tokio::time::sleep(GOODBYE), &mut wiring.events).await;
    }
    state.live.keys().for_each(|conn| wiring.probes.prober.close(*conn));
    wiring.quic.close(VarInt::from_u32(CloseCode::Leaving as u32), b"the node stops");
    state.lanes.close();
    let idle = tokio::time::timeout(GOODBYE, wiring.quic.wait_idle());
    let _ = goodbye(idle, &mut wiring.events).await;
}

/// Waits at the end of the loop, which is asked whether it hangs as long as it is there. What else comes is too late.
async fn goodbye<T>(wait: impl Future<Output = T>, events: &mut mpsc::Receiver<Event>) -> T {
    tokio::pin!(wait);
    loop {
        tokio::select! {
            done = &mut wait => return done,
            Some(event) = events.recv() => if let Event::Pulse(question) = event {
                question.answer();
            },
        }
    }
}

/// Waits until the kernel is at the desired state of this number, or a later one; no longer than is good for who waits.
pub async fn kernel_follows(applied: &mut watch::Receiver<u64>, number: u64) {
    let _ = tokio::time::timeout(KERNEL_PATIENCE, applied.wait_for(|at| *at >= number)).await;
}

async fn sleep_until(alarm: Option<tokio::time::Instant>) {
    match alarm {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn forget_flows(forget: Vec<Forget>) {
    for forget in forget {
        let ended = conntrack::delete_marked_if(forget.mark, |source, protocol| forget.has(source, protocol));
        if let Err(error) = ended.await {
            tell(Notice::FlowsStay { error: error.to_string() });
        }
    }
}

struct Loop {
    live: BTreeMap<ConnId, Live>,
    lanes: Lanes,
    /// Kept over a peer's tunnels: a counter does not go back.
    traffic: BTreeMap<PeerIx, Arc<PeerCounters>>,
    /// Ends a dial that has not got through; the last one to each target.
    dials: BTreeMap<Target, oneshot::Sender<()>>,
    traces: BTreeMap<u64, oneshot::Sender<Result<TraceReply, String>>>,
    next_trace: u64,
    /// Number of the last desired kernel state.
    host_wanted: u64,
    /// Tunnels just published that nothing reads from yet.
    unread: Vec<(ConnId, quinn::Connection, Arc<Tunnel>, Aside)>,
    /// Counts tracked connections while it is wanted.
    counting: JoinSet<()>,
    counters: Arc<Counters>,
    /// When the node may stop.
    gone: Option<tokio::time::Instant>,
}

impl Loop {
    fn event(&mut self, control: &mut Control, event: Event, wiring: &mut Wiring) {
        let input = match event {
            Event::Input(input) => input,
            Event::Up { input, conn, connection, writer, secrets, beside } => {
                let aside = Aside::new(conn, wiring.probes.prober.clone());
                let dialed = matches!(&input, Input::TunnelUp { dialed: Some(_), .. });
                let side = if dialed { Side::Client } else { Side::Server };
                let (lanes, probes) = secrets.map(|secrets| (secrets.lanes, secrets.probes)).unzip();
                self.lanes.opened(conn, side, lanes, &writer, aside.heard.clone());
                wiring.probes.prober.open(conn, connection.clone(), aside.heard.clone());
                let probes = Probes::new(probes, side);
                self.live.insert(conn, Live { connection, writer, tunnel: None, aside, beside, probes });
                input
            }
            Event::Pulse(question) => return question.answer(),
            Event::Readable { conn } => {
                let started = self.readable(conn, wiring);
                return breach(control, conn, started);
            }
            Event::LaneHalfUsed { conn, worker, lane } => {
                let changed = self.lanes.half_used(conn, worker, lane);
                return breach(control, conn, changed);
            }
            Event::LaneHeard { conn, worker } => {
                let told = self.lanes.heard(conn, worker);
                return breach(control, conn, told);
            }
            Event::Reload { input, client, certificate, done } => {
                wiring.quic.set_default_client_config(client);
                wiring.context.certificate = certificate;
                control.handle(input, now());
                self.carry_out(control, wiring);
                let _ = done.send(self.host_wanted);
                return;
            }
        };
        match &input {
            Input::TunnelClosed { conn, .. } => {
                self.live.remove(conn);
                self.lanes.closed(*conn);
                wiring.probes.prober.close(*conn);
            }
            Input::Message { conn, message } => {
                let conn = *conn;
                let taken = match (message, self.live.get_mut(&conn)) {
                    (Message::ProbesReady, Some(live)) => live.probes.peer_ready(conn, &wiring.probes.prober),
                    _ => self.lanes.message(conn, message),
                };
                breach(control, conn, taken);
            }
            _ => {}
        }
        control.handle(input, now());
    }

    fn query(&mut self, control: &mut Control, query: Query) {
        match query {
            Query::Ask(ask) => {
                let live = Figured {
                    live: &self.live,
                    lanes: &self.lanes,
                    counters: &self.counters,
                    traffic: &self.traffic,
                };
                ask(control, &View { now: now(), live: &live });
            }
            Query::Ping { peer, size, reply } => {
                let Some(live) = control.connection(&peer).and_then(|conn| self.live.get(&conn)) else {
                    let _ = reply.send(Err(Unanswered::Gone));
                    return;
                };
                let echo = live.aside.echoes.clone().ping(live.connection.clone(), size);
                tokio::spawn(async move { reply.send(echo.await) });
            }
            Query::Trace { node, request, reply } => {
                let id = self.next_trace;
                self.next_trace += 1;
                // an asker that has gone away no longer waits
                self.traces.retain(|_, reply| !reply.is_closed());
                self.traces.insert(id, reply);
                let request = TraceRequest { id, ..request };
                control.handle(Input::TraceAsk { node, request }, now());
            }
        }
    }

    fn carry_out(&mut self, control: &mut Control, wiring: &mut Wiring) {
        while let Some(output) = control.poll_output() {
            match output {
                Output::Publish { networks, tunnels } => self.publish(networks, &tunnels, wiring),
                Output::SyncHost(state) => {
                    self.host_wanted += 1;
                    wiring.probes.prober.keep(state.lease());
                    wiring.host.send_replace((self.host_wanted, state));
                }
                Output::Dial { target, endpoint, expect } => {
                    let (cancel, cancelled) = oneshot::channel();
                    self.dials.insert(target.clone(), cancel);
                    let dial = Dial { target, endpoint, expect, cancelled };
                    tokio::spawn(connection::dial(wiring.quic.clone(), wiring.context.clone(), dial));
                }
                Output::CancelDial(target) => {
                    if let Some(cancel) = self.dials.remove(&target) {
                        let _ = cancel.send(());
                    }
                }
                Output::Close { conn, code, text } => {
                    if let Some(live) = self.live.get(&conn) {
                        // nothing goes on in its name
                        wiring.probes.prober.close(conn);
                        self.lanes.closed(conn);
                        live.connection.close(VarInt::from_u32(code as u32), text.as_bytes());
                    }
                }
                Output::Send { conn, message } => {
                    let Some(live) = self.live.get(&conn) else { continue };
                    breach(control, conn, give(&live.writer, message));
                }
                Output::Hello(hello) => wiring.context.hello = hello,
                Output::Save(saved) => {
                    wiring.save.send_replace(saved);
                }
                Output::Probe(wanted) => wiring.probes.prober.want(wanted),
                Output::CountFlows(watch) => {
                    self.counting = JoinSet::new();
                    if let Some(watch) = watch {
                        let events = wiring.context.events.clone();
                        self.counting.spawn(flows::watch(watch, events));
                    }
                }
                Output::ForgetFlows(forget) => {
                    let (wanted, mut applied) = (self.host_wanted, wiring.host_applied.clone());
                    tokio::spawn(async move {
                        // what is tracked anew meanwhile would go the old way
                        kernel_follows(&mut applied, wanted).await;
                        forget_flows(forget).await;
                    });
                }
                Output::Gone { after } => self.gone = Some(tokio::time::Instant::now() + after),
                Output::Tell(notice) => tell(notice),
                Output::TraceWanted { conn, request } => {
                    tokio::spawn(wiring.tracer.clone().answer(conn, request));
                }
                Output::Traced { id, answer } => {
                    if let Some(reply) = self.traces.remove(&id) {
                        let _ = reply.send(answer);
                    }
                }
            }
        }
        for (conn, connection, tunnel, aside) in std::mem::take(&mut self.unread) {
            self.read(conn, connection, tunnel, aside, wiring);
        }
    }

    /// Reads from a new tunnel once the kernel has the routes back to its peer: what the kernel answers by itself, an ICMP
    /// error to a peer's VM, would else leave by the host's default route. A kernel that does not follow must not keep the
    /// tunnel from being read at all.
    fn read(
        &self,
        conn: ConnId,
        connection: quinn::Connection,
        tunnel: Arc<Tunnel>,
        aside: Aside,
        wiring: &Wiring,
    ) {
        let (wanted, mut applied, inbound) =
            (self.host_wanted, wiring.host_applied.clone(), wiring.inbound.clone());
        let events = wiring.context.events.clone();
        tokio::spawn(async move {
            kernel_follows(&mut applied, wanted).await;
            let _ = events.send(Event::Readable { conn }).await;
            read_datagrams(connection, tunnel, inbound, aside).await;
        });
    }

    /// Packets and probes of a tunnel may be taken.
    fn readable(&mut self, conn: ConnId, wiring: &Wiring) -> Result<(), String> {
        let Some(live) = self.live.get_mut(&conn) else { return Ok(()) };
        let heard = live.aside.heard.clone();
        live.probes.readable(conn, &live.connection, &live.writer, heard, &wiring.probes)?;
        live.tunnel.clone().map_or(Ok(()), |tunnel| self.lanes.readable(conn, tunnel))
    }

    /// Builds the snapshot: tunnels that stay keep their object and its counters.
    fn publish(&mut self, networks: Vec<Option<NetworkSpec>>, specs: &[TunnelSpec], wiring: &Wiring) {
        let len = specs.iter().map(|s| s.peer.0 as usize + 1).max().unwrap_or(0);
        let mut tunnels = vec![None; len];
        for spec in specs {
            let Some(live) = self.live.get_mut(&spec.conn) else { continue };
            let counters = self.traffic.entry(spec.peer).or_default().clone();
            let tunnel = live.tunnel.get_or_insert_with(|| {
                let lanes = self.lanes.carrier(spec.conn, &live.connection, &live.beside);
                let carrier: Arc<dyn Carrier> = match lanes {
                    Some(lanes) => lanes,
                    None => Arc::new(Datagrams::new(live.connection.clone())),
                };
                let tunnel = Arc::new(Tunnel::new(spec.peer, spec.handles.clone(), carrier, counters));
                let (connection, aside) = (live.connection.clone(), live.aside.clone());
                self.unread.push((spec.conn, connection, tunnel.clone(), aside));
                tunnel
            });
            if tunnel.handles() != spec.handles {
                *tunnel = Arc::new(tunnel.renumbered(spec.handles.clone()));
            }
            tunnels[spec.peer.0 as usize] = Some(tunnel.clone());
        }
        let drained = networks.iter().flatten().any(|network| !network.egress_drained.is_empty());
        wiring.snapshot.store(Arc::new(Snapshot { fib: Arc::new(Fib::new(networks)), tunnels }));
        if drained {
            wiring.waker.wake();
        }
    }
}

/// Gives a peer's connection a control message. A peer that takes none any more is a breach: better a new tunnel than a queue without
/// end. One whose connection has closed is not: that comes as an event of its own, with the reason.
fn give(writer: &mpsc::Sender<Message>, message: Message) -> Result<(), String> {
    match writer.try_send(message) {
        Err(mpsc::error::TrySendError::Full(_)) => Err("control messages are not taken".to_owned()),
        Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
    }
}

/// An authenticated peer that breaks the protocol loses its tunnel.
fn breach(control: &mut Control, conn: ConnId, result: Result<(), String>) {
    if let Err(text) = result {
        control.handle(Input::Breach { conn, text }, now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::liveness::pulse::Pulse;

    #[tokio::test]
    async fn a_kernel_that_does_not_follow_is_waited_for_a_while_only() {
        let started = now().mono;
        let (applied, mut at) = watch::channel(1);
        kernel_follows(&mut at, 1).await;
        assert!(started.elapsed() < KERNEL_PATIENCE / 2);
        // hangs
        kernel_follows(&mut at, 2).await;
        let waited = started.elapsed();
        assert!(waited >= KERNEL_PATIENCE && waited < KERNEL_PATIENCE * 5, "{waited:?}");
        applied.send_replace(3);
        kernel_follows(&mut at, 2).await;
        // has died
        drop(applied);
        kernel_follows(&mut at, 4).await;
        assert!(started.elapsed() < waited + KERNEL_PATIENCE / 2);
    }

    #[tokio::test]
    async fn at_its_end_the_loop_is_not_taken_for_one_that_hangs() {
        let start = now().mono;
        let mut pulse = Pulse::new(start);
        let question = pulse.poll_question(start + Duration::from_secs(1)).unwrap();
        let (sender, mut events) = mpsc::channel(1);
        assert!(sender.try_send(Event::Pulse(question)).is_ok());
        goodbye(tokio::time::sleep(Duration::from_millis(50)), &mut events).await;
        assert!(!pulse.is_lost(start + Duration::from_secs(60)));
    }
}
