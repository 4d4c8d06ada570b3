//! Builds the parts, connects their channels, starts and stops them in order.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::config::{Config, OnStop, Transport};
use crate::control::Control;
use crate::control::drain::STOP_DEADLINE;
use crate::control::event::{Input, LocalNetwork};
use crate::control::host::HostState;
use crate::control::slowness;
use crate::control_loop::{self, LaneSetup, ProbeWire, Wiring};
use crate::devices::Devices;
use crate::forward::counters::Counters;
use crate::io;
use crate::io::host::HostSync;
use crate::io::host::addresses::HostAddresses;
use crate::io::liveness::Prober;
use crate::io::log::LogFilter;
use crate::io::notices::{self, tell};
use crate::io::query::Query;
use crate::io::quic::connection::{Context, Event};
use crate::io::quic::tls::Credentials;
use crate::io::slowness::Sources;
use crate::io::uplink::Uplinks;
use crate::notice::Notice;
use crate::packet_loop::{PacketLoops, prioritise_probes};
use crate::prepare::{self, Prepared, Running};
use crate::tunnel::Snapshot;
use crate::tunnel::pmtu::{CONFIRM, CONFIRM_BESIDE};

/// Events that wait for the control loop.
const EVENT_QUEUE: usize = 1024;

/// How long a stop waits for one of its parts, of which there are five; a whole stop takes at most 10 s.
const PATIENCE: Duration = Duration::from_millis(1900);

/// The most that handing over flows takes of it.
const DRAIN_PATIENCE: Duration = STOP_DEADLINE.saturating_add(Duration::from_secs(1));

/// How often the devices are looked at.
const CHECK_DEVICES: Duration = Duration::from_secs(1);

/// SIGTERM and SIGINT. One that came before it was asked for is kept.
#[derive(Debug)]
pub struct StopSignal {
    term: Signal,
    int: Signal,
}

impl StopSignal {
    /// Listens from here on.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// The next one. Nothing is lost when this is dropped.
    pub async fn received(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// A running node: what a reload changes, and what a stop needs.
pub(crate) struct Node {
    pub(crate) running: Running,
    pub(crate) networks: Vec<LocalNetwork>,
    pub(crate) credentials: Credentials,
    pub(crate) devices: Devices,
    pub(crate) quic: quinn::Endpoint,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) host_applied: watch::Receiver<u64>,
    queries: mpsc::Sender<Query>,
    counters: Arc<Counters>,
    /// Ends with its handle, as does the next one.
    watcher: JoinSet<()>,
    metrics: JoinSet<std::io::Result<()>>,
    uplinks: Uplinks,
}

/// Runs until `stop`; reads its configuration anew at each `hangup`; leaves nothing behind.
///
/// All that can fail comes before the first change to the kernel, except for the devices, which go with their owner.
pub async fn run(
    prepared: Prepared,
    log: LogFilter,
    mut stop: StopSignal,
    mut hangup: Signal,
) -> anyhow::Result<()> {
    let Prepared { config, document, in_file: _, numbers, local, trust, credentials } = prepared;
    let node = config.node.clone();
    let _only = only_node().await?;
    std::fs::create_dir_all(&node.state_dir)
        .with_context(|| format!("create {}", node.state_dir.display()))?;
    let (saved, complaints) = io::state::load(&node.state_dir);
    for error in complaints {
        tell(Notice::StateDamaged { error });
    }
    let started = io::started();
    let largest = io::quic::datagram::udp_payload(local.underlay_mtu);
    let transport = io::quic::offloads::transport(&node, largest);
    let (listen, offloads, workers) = (node.listen, node.offloads, node.workers);
    let bind = io::quic::endpoint::Bind { listen, offloads, largest, workers };
    let (quic, socket, wire) = match node.transport {
        Transport::Datagram => {
            let (quic, socket) = bind.alone(&credentials, transport)?;
            (quic, socket, None)
        }
        Transport::Lanes => {
            let (quic, socket, wire) = bind.shared(&credentials, transport)?;
            (quic, socket, Some(wire))
        }
    };
    for (device, offload, text) in slowness::missing_of_socket(node.offloads, socket.had(), socket.in_use()) {
        tell(Notice::OffloadMissing { device, offload, text });
    }

    let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
    let (wanted_tx, wanted) = mpsc::channel(64);
    let counters = Arc::new(Counters::new(workers));
    let (moved_tx, moved) = mpsc::channel(64);
    tokio::spawn(io::host::moved::forget(moved));
    let mut loops = PacketLoops::start(snapshot.clone(), counters.clone(), wanted_tx, moved_tx)
        .context("start the packet loops")?;
    if let Some(wire) = &wire {
        loops.receive_lanes(wire).context("start the lanes thread")?;
    }
    let devices = Devices::start(loops, &local.networks, node.offloads, workers)?;
    let mut sync = HostSync::open(&node.state_dir).await.context("open the kernel's configuration")?;
    for what in sync.clean_leftovers().await.context("clean what an earlier run left")? {
        tell(Notice::LeftoverRemoved { what });
    }

    let (events_tx, events) = mpsc::channel::<Event>(EVENT_QUEUE);
    let (queries_tx, queries) = mpsc::channel(64);
    let (host_tx, host_rx) = watch::channel((0, Arc::new(HostState::default())));
    let (host_applied_tx, host_applied) = watch::channel(0);
    let (save_tx, save_rx) = watch::channel(saved.clone());
    let (stop_loop, stop_rx) = mpsc::channel(2);
    let (api_stop, api_stopped) = watch::channel(false);
    let (reloads_tx, mut reloads) = mpsc::channel(1);

    tell(Notice::Starting {
        node: local.identity.node.clone(),
        mesh: local.identity.mesh.clone(),
        listen: node.listen,
        endpoints: local.endpoints.clone(),
        version: env!("CARGO_PKG_VERSION"),
    });
    let networks = local.networks.clone();
    let running = Running { config, document, numbers, identity: local.identity.clone() };
    let control = Control::new(local, trust, saved, io::chance(), io::now())?;
    let (hearing, probe_socket, receivers) = (socket.hearing(), socket.socket(), socket.probes());
    let sources = Sources {
        counters: counters.clone(),
        inbound: devices.inbound(),
        devices: devices.offloads(),
        socket,
        wanted: node.offloads,
        started,
    };
    let api = io::api::serve(&node.control_socket, queries_tx.clone(), reloads_tx, log, sources, api_stopped)
        .with_context(|| format!("control socket {}", node.control_socket.display()))?;
    let prober =
        Prober::start(events_tx.clone(), hearing, prioritise_probes).context("start the probing thread")?;
    let context = Context {
        hello: control.hello(),
        certificate: credentials.leaf()?,
        path_check: if wire.is_some() { CONFIRM_BESIDE } else { CONFIRM },
        events: events_tx.clone(),
    };
    let packets = u64::from(node.lane_packets);
    let lanes = wire.map(|wire| LaneSetup { wire, events: events_tx.clone(), packets });
    let wiring = Wiring {
        events,
        queries,
        tracer: io::trace::Tracer::new(queries_tx.clone()),
        wanted,
        quic: quic.clone(),
        context,
        snapshot,
        lanes,
        probes: ProbeWire { socket: probe_socket, receivers, prober },
        inbound: devices.inbound(),
        host: host_tx,
        host_applied: host_applied.clone(),
        save: save_tx,
        stop: stop_rx,
        counters: counters.clone(),
        waker: devices.waker(),
    };
    let mut control_task = tokio::spawn(control_loop::run(control, wiring));
    let saver = tokio::spawn(control_loop::save::run(node.state_dir.clone(), save_rx));
    let host_task = io::host::task::run(sync, host_rx, host_applied_tx, events_tx.clone());
    let mut host_task = tokio::spawn(host_task);
    let mut api = tokio::spawn(api);
    let mut this = Node {
        running,
        networks,
        credentials,
        devices,
        quic,
        events: events_tx,
        host_applied,
        queries: queries_tx,
        counters,
        watcher: JoinSet::new(),
        metrics: JoinSet::new(),
        uplinks: Uplinks::default(),
    };
    this.watch_addresses();
    this.watch_uplinks();
    this.serve_metrics();
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tell(Notice::ServiceManagerDeaf { error: error.to_string() });
    }

    let mut check = tokio::time::interval(CHECK_DEVICES);
    let settle = notices::settle();
    tokio::pin!(settle);
    loop {
        tokio::select! {
            () = stop.received() => break,
            () = &mut settle => {}
            _ = check.tick() => this.mend_devices().await,
            Some(()) = hangup.recv() => drop(this.reload().await),
            Some(reply) = reloads.recv() => {
                let _ = oneshot::Sender::send(reply, this.reload().await);
            }
        }
    }
    // who asks for a reload now is told that the node stops
    drop(reloads);
    let Node { running, mut devices, watcher, metrics, .. } = this;
    let begun = io::now().mono;
    let _ = stop_loop.send(()).await;
    let ended = async {
        tokio::select! {
            _ = &mut control_task => {}
            () = stop.received() => {
                // whoever tells twice does not want to wait
                let _ = stop_loop.send(()).await;
                let _ = control_task.await;
            }
        }
    };
    if timeout(DRAIN_PATIENCE + PATIENCE / 2, ended).await.is_err() {
        tell(Notice::ControlHangs {});
    }
    // what the hand-over took, the other parts do not have
    let took = io::now().mono.saturating_duration_since(begun).min(DRAIN_PATIENCE);
    let patience = PATIENCE.mul_f64(1.0 - took.as_secs_f64() / (PATIENCE * 5).as_secs_f64());
    drop((watcher, metrics));
    let _ = api_stop.send(true);
    // somebody may hold a connection to it open
    if timeout(patience / 4, &mut api).await.is_err() {
        api.abort();
        let _ = std::fs::remove_file(&node.control_socket);
    }
    // the desired state's sender has gone with the control loop: the task returns what it owns
    let mut sync = match timeout(patience, &mut host_task).await {
        Ok(Ok(sync)) => sync,
        hangs_or_died => {
            host_task.abort();
            tell(Notice::HostTaskHangs { died: hangs_or_died.is_ok() });
            HostSync::open(&node.state_dir).await.context("open the kernel's configuration")?
        }
    };
    let block = running.config.node.on_stop == OnStop::Block;
    let removed = timeout(patience * 2, sync.remove_all(block)).await;
    devices.stop();
    if timeout(patience / 2, saver).await.is_err() {
        tell(Notice::StateSavedTooSlowly {});
    }
    removed.context("remove our kernel state: it takes too long")?.context("remove our kernel state")?;
    notices::settle_at_once();
    tell(Notice::Stopped {});
    Ok(())
}

impl Node {
    async fn mend_devices(&mut self) {
        for what in self.devices.mend() {
            let _ = self.events.send(Event::Input(Input::Repaired(what))).await;
        }
    }

    /// Starts to watch the host's addresses, on which our endpoints depend, in place of a former watch.
    pub(crate) fn watch_addresses(&mut self) {
        let ours = Ours { config: self.running.config.clone(), networks: self.networks.clone() };
        self.watcher = JoinSet::new();
        self.watcher.spawn(watch_addresses(ours, self.events.clone()));
    }

    /// Watches the uplinks of the configuration, and no others.
    pub(crate) fn watch_uplinks(&mut self) {
        let wanted = self.running.config.egress.iter().map(|e| e.uplink.clone()).collect();
        self.uplinks.want(&wanted, &self.events);
    }

    /// Starts to serve metrics where they are wanted, in place of a former address.
    pub(crate) fn serve_metrics(&mut self) {
        self.metrics = JoinSet::new();
        if let Some(address) = self.running.config.node.metrics {
            let render = io::scrape::renderer(self.queries.clone(), self.counters.clone());
            self.metrics.spawn(io::metrics::serve(address, render));
        }
    }
}

/// Between two tries to take the place, and how many. One that was killed while it started `nft` still holds it until that
/// has begun.
const PLACE_PAUSE: Duration = Duration::from_millis(50);
const PLACE_TRIES: u32 = 10;

/// Holds this host's place for one node. Its kernel state has fixed names, so that a second node would first clean away
/// what the first one needs. An abstract socket belongs to a network namespace, as that state does, and ends with us.
async fn only_node() -> anyhow::Result<Option<tokio::net::UnixListener>> {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
    let address = SocketAddr::from_abstract_name("mesh-node").context("name of the lock")?;
    let mut place = UnixListener::bind_addr(&address);
    for _ in 0..PLACE_TRIES {
        if place.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse) {
            tokio::time::sleep(PLACE_PAUSE).await;
            place = UnixListener::bind_addr(&address);
        }
    }
    match place {
        Ok(listener) => {
            listener.set_nonblocking(true)?;
            Ok(Some(tokio::net::UnixListener::from_std(listener)?))
        }
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            // anybody may take the name: only root's word counts
            let holder = UnixStream::connect_addr(&address).and_then(|stream| {
                stream.set_nonblocking(true)?;
                tokio::net::UnixStream::from_std(stream)?.peer_cred()
            });
            match holder {
                Ok(holder) if holder.uid() == 0 => bail!(
                    "another mesh-node runs on this host (process {}): a host has one; stop it first, or add the network to its configuration",
                    holder.pid().unwrap_or_default()
                ),
                _ => {
                    tell(Notice::HostLockTaken {});
                    Ok(None)
                }
            }
        }
        Err(error) => Err(error).context("take the lock of this host"),
    }
}

/// What endpoints depend on.
struct Ours {
    config: Config,
    networks: Vec<LocalNetwork>,
}

/// Tells `Control` when the host's addresses have changed.
async fn watch_addresses(ours: Ours, events: mpsc::Sender<Event>) {
    let (changed_tx, mut changed) = mpsc::channel(1);
    let mut watcher = JoinSet::new();
    watcher.spawn(io::host::watch::addresses(changed_tx));
    while changed.recv().await.is_some() {
        let Ok(host) = HostAddresses::read().await else { continue };
        let endpoints = prepare::endpoints(&ours.config, &ours.networks, &host);
        let input = Input::Endpoints(endpoints);
        if events.send(Event::Input(input)).await.is_err() {
            return;
        }
    }
    tell(Notice::AddressesUnwatched {});
}
