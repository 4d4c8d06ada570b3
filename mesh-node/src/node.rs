//! Builds the parts, connects their channels, starts and stops them in order.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::config::{Config, OnStop};
use crate::control::Control;
use crate::control::event::{Input, LocalNetwork};
use crate::control::host::HostState;
use crate::control_loop::{self, Wiring};
use crate::forward::counters::Counters;
use crate::io;
use crate::io::host::HostSync;
use crate::io::host::addresses::HostAddresses;
use crate::io::quic::connection::{Context, Event};
use crate::packet_loop::PacketLoops;
use crate::prepare::{self, Prepared};
use crate::tunnel::Snapshot;

/// Events that wait for the control loop.
const EVENT_QUEUE: usize = 1024;

/// How long a stop waits for one of its parts, of which there are five; a whole stop takes at most 10 s.
const PATIENCE: Duration = Duration::from_millis(1900);

/// How often the devices are looked at.
const CHECK_DEVICES: Duration = Duration::from_secs(1);

/// Runs until `stop`; leaves nothing behind.
///
/// All that can fail comes before the first change to the kernel, except for the devices, which go with their owner.
pub async fn run(prepared: Prepared, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let Prepared { config, local, trust, credentials } = prepared;
    let node = &config.node;
    let _only = only_node().await?;
    std::fs::create_dir_all(&node.state_dir)
        .with_context(|| format!("create {}", node.state_dir.display()))?;
    let (saved, complaints) = io::state::load(&node.state_dir);
    for complaint in complaints {
        warn!(complaint, "state on disk is damaged");
    }
    let quic = io::quic::endpoint::bind(
        node.listen,
        &credentials,
        io::quic::datagram::transport_config(node.keepalive),
    )?;

    let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
    let (wanted_tx, wanted) = mpsc::channel(64);
    let counters = Arc::new(Counters::new());
    let mut loops = PacketLoops::start(snapshot.clone(), counters.clone(), wanted_tx)
        .context("start the packet loops")?;
    for network in &local.networks {
        add_device(&mut loops, network)?;
    }
    let mut sync = HostSync::open(&node.state_dir).await.context("open the kernel's configuration")?;
    for what in sync.clean_leftovers().await.context("clean what an earlier run left")? {
        info!(what, "left by an earlier run: removed");
    }

    let (events_tx, events) = mpsc::channel::<Event>(EVENT_QUEUE);
    let (queries_tx, queries) = mpsc::channel(64);
    let (host_tx, host_rx) = watch::channel((0, Arc::new(HostState::default())));
    let (host_applied_tx, host_applied) = watch::channel(0);
    let (save_tx, save_rx) = watch::channel(saved.clone());
    let (stop_loop, stop_rx) = oneshot::channel();
    let (api_stop, api_stopped) = watch::channel(false);

    info!(
        node = %local.identity.node, mesh = %local.identity.mesh, listen = %node.listen,
        endpoints = ?local.endpoints, version = env!("CARGO_PKG_VERSION"), "mesh-node starts"
    );
    let ours = Ours { config: config.clone(), networks: local.networks.clone() };
    let networks = local.networks.clone();
    let control = Control::new(local, trust, saved, io::chance(), io::now())?;
    let api = io::api::serve(&node.control_socket, queries_tx.clone(), api_stopped)
        .with_context(|| format!("control socket {}", node.control_socket.display()))?;
    let context = Context { hello: control.hello(), events: events_tx.clone() };
    let wiring = Wiring {
        events,
        queries,
        tracer: io::trace::Tracer::new(queries_tx.clone()),
        wanted,
        quic,
        context,
        snapshot,
        inbound: loops.inbound(),
        host: host_tx,
        host_applied,
        save: save_tx,
        stop: stop_rx,
    };
    let control_task = tokio::spawn(control_loop::run(control, wiring));
    let saver = tokio::spawn(control_loop::save_task(node.state_dir.clone(), save_rx));
    let host_task =
        io::host::task::run(sync, host_rx, host_applied_tx, events_tx.clone(), node.foreign_chains);
    let mut host_task = tokio::spawn(host_task);
    let watcher = tokio::spawn(watch_addresses(ours, events_tx.clone()));
    let mut api = tokio::spawn(api);
    let metrics = node
        .metrics
        .map(|address| tokio::spawn(io::metrics::serve(address, io::scrape::renderer(queries_tx, counters))));
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        warn!(%error, "systemd is not told");
    }

    tokio::select! {
        () = stop => {}
        () = mind_devices(&mut loops, &networks, &events_tx) => {}
    }
    let _ = stop_loop.send(());
    if timeout(PATIENCE, control_task).await.is_err() {
        warn!("the control loop does not end: going on without its goodbye");
    }
    watcher.abort();
    if let Some(metrics) = metrics {
        metrics.abort();
    }
    let _ = api_stop.send(true);
    // somebody may hold a connection to it open
    if timeout(PATIENCE / 4, &mut api).await.is_err() {
        api.abort();
        let _ = std::fs::remove_file(&node.control_socket);
    }
    // the desired state's sender has gone with the control loop: the task returns what it owns
    let mut sync = match timeout(PATIENCE, &mut host_task).await {
        Ok(Ok(sync)) => sync,
        hangs_or_died => {
            host_task.abort();
            warn!(died = hangs_or_died.is_ok(), "the host task does not end: its state is found anew");
            HostSync::open(&node.state_dir).await.context("open the kernel's configuration")?
        }
    };
    let block = node.on_stop == OnStop::Block;
    let removed = timeout(PATIENCE * 2, sync.remove_all(block)).await;
    loops.stop();
    if timeout(PATIENCE / 2, saver).await.is_err() {
        warn!("the disk is too slow: the latest state is not saved");
    }
    removed.context("remove our kernel state: it takes too long")?.context("remove our kernel state")?;
    info!("stopped");
    Ok(())
}

/// Holds this host's place for one node. Its kernel state has fixed names, so that a second node would first clean away
/// what the first one needs. An abstract socket belongs to a network namespace, as that state does, and ends with us.
async fn only_node() -> anyhow::Result<Option<tokio::net::UnixListener>> {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
    let address = SocketAddr::from_abstract_name("mesh-node").context("name of the lock")?;
    match UnixListener::bind_addr(&address) {
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
                    warn!("somebody who is not root holds the lock of this host: started without it");
                    Ok(None)
                }
            }
        }
        Err(error) => Err(error).context("take the lock of this host"),
    }
}

fn add_device(loops: &mut PacketLoops, network: &LocalNetwork) -> anyhow::Result<()> {
    let tun = io::tun::Tun::create(&network.tun).with_context(|| format!("network {}", network.name))?;
    info!(network = %network.name, tun = network.tun, offloads = ?tun.offloads(), "network");
    loops.add_network(network.ix, Arc::new(tun))?;
    Ok(())
}

/// Makes a device anew that somebody has deleted; its routes are put back by the host task, which hears of the new link.
async fn mind_devices(loops: &mut PacketLoops, networks: &[LocalNetwork], events: &mpsc::Sender<Event>) {
    let mut missing = BTreeSet::new();
    let mut told = false;
    loop {
        tokio::time::sleep(CHECK_DEVICES).await;
        for lost in loops.lost_networks() {
            loops.remove_network(lost);
            missing.insert(lost);
        }
        for network in networks {
            if !missing.contains(&network.ix) {
                continue;
            }
            match add_device(loops, network) {
                Ok(()) => {
                    missing.remove(&network.ix);
                    told = false;
                    let what = format!("TUN device {} had been removed", network.tun);
                    let _ = events.send(Event::Input(Input::Repaired(what))).await;
                }
                Err(error) if !told => {
                    told = true;
                    error!(error = format!("{error:#}"), "a lost device cannot be made anew: trying on");
                }
                Err(_) => {}
            }
        }
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
    let watcher = tokio::spawn(io::host::watch::addresses(changed_tx));
    while changed.recv().await.is_some() {
        let Ok(host) = HostAddresses::read().await else { continue };
        let endpoints = prepare::endpoints(&ours.config, &ours.networks, &host);
        let input = Input::Endpoints(endpoints);
        if events.send(Event::Input(input)).await.is_err() {
            watcher.abort();
            return;
        }
    }
    warn!("addresses of the host are no longer watched: a change is told to peers at the next start only");
}
