//! Where packets meet `forward`: threads that read, ask for a verdict, and do it. The only place, with `control_loop`,
//! where deciding meets doing.
//!
//! ```text
//!  queue of a TUN --> outbound thread (one per queue)             reader tasks (one per connection)
//!                      read until empty, 256 packets or 200 KB      |  batches, bounded queue
//!                      forward::outbound per superpacket            v
//!                      cut into the peer's batch                  inbound thread (one per node)
//!                      Tunnel::send per peer                        frame, forward::inbound per packet
//!                                                                   join into superpackets --> network's TUN
//!                                                                 lanes thread (one per worker, where there are lanes)
//!                                                                   the same, from the UDP socket; by flow
//! ```
//!
//! All take the snapshot once per batch. No lock and no allocation per packet, but for one lock where the outbound threads of a
//! network look up the flow of a packet to the Internet (`flow_table`). A thread never panics on what a packet holds, and counts
//! whatever it drops.
//!
//! A TUN has a queue for each worker of the node. Where a packet is written matters: the kernel gives what answers it to the
//! same queue.
//!
//! `node` builds the TUNs and calls [`PacketLoops`]; each connection's reader task gets a clone of the sender.
#![allow(clippy::disallowed_methods, reason = "the loops read the clock, once per batch")]

mod backlog;
mod company;
mod deliver;
mod flow_table;
mod inbound;
mod lanes;
mod moderation;
mod outbound;
mod queues;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::mpsc;

use crate::forward::counters::{Counters, Worker};
use crate::forward::fib::{NetworkIx, PeerIx};
use crate::io::autogroup;
use crate::io::host::moved::Moved;
use crate::io::lane::LaneWire;
use crate::io::lane::socket::LaneSocket;
use crate::io::quic::datagram::{InboundSender, inbound_queue};
use crate::io::slowness::DeviceOffloads;
use crate::io::tun::Tun;
use crate::io::tun::sys::{prioritise_thread, realtime_thread, short_turns};
use crate::io::vital;
use crate::tunnel::Snapshot;
use flow_table::TENDER;
use outbound::Network;
use queues::Queues;

/// Packet threads run before ordinary ones: they hold the packets of all of them. A unit's `Nice=` says the same; this
/// is for a daemon started by hand.
const NICE: i32 = -10;

/// What a packet thread asks the scheduler for at a time, the least there is: a packet waits for the threads that have the processor,
/// and who wants it for a short time is let in earlier.
const TURN: Duration = Duration::from_micros(100);

/// What all packet threads share.
#[derive(Debug)]
struct Shared {
    snapshot: Arc<ArcSwap<Snapshot>>,
    /// By `NetworkIx`.
    tuns: ArcSwap<Vec<Option<Queues>>>,
    counters: Arc<Counters>,
    /// Peers that have packets waiting and no tunnel.
    wanted: mpsc::Sender<PeerIx>,
    /// Flows that the kernel is to forget.
    moved: mpsc::Sender<Moved>,
}

/// The running packet threads of this node.
#[derive(Debug)]
pub struct PacketLoops {
    shared: Arc<Shared>,
    inbound: InboundSender,
    inbound_thread: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
    /// One for each worker, where there are lanes.
    lanes_threads: Vec<LanesThread>,
    outbound: BTreeMap<NetworkIx, OutboundThreads>,
}

#[derive(Debug)]
struct LanesThread {
    stop: Arc<AtomicBool>,
    socket: Arc<LaneSocket>,
    thread: JoinHandle<()>,
}

/// Those of one network.
#[derive(Debug)]
struct OutboundThreads {
    network: Arc<Network>,
    threads: Vec<JoinHandle<()>>,
}

/// Wakes the outbound threads that look after flows: what they have to do may come from the snapshot alone.
#[derive(Debug, Clone)]
pub struct Waker(Arc<Shared>);

impl Waker {
    /// All of them.
    pub fn wake(&self) {
        self.0.tuns.load().iter().flatten().for_each(|queues| queues.of(TENDER).wake());
    }
}

impl PacketLoops {
    /// Starts the inbound thread. A peer without tunnel that a packet wants to go to is told over `wanted`, about four
    /// times a second by each thread that has packets for it; when that channel is full it is told again later. So is a flow
    /// that is to begin anew, over `moved`, with each of its packets.
    pub fn start(
        snapshot: Arc<ArcSwap<Snapshot>>,
        counters: Arc<Counters>,
        wanted: mpsc::Sender<PeerIx>,
        moved: mpsc::Sender<Moved>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared { snapshot, tuns: ArcSwap::default(), counters, wanted, moved });
        let (inbound, queue) = inbound_queue();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = spawn(&Worker::Inbound.name(), {
            let (shared, stop) = (shared.clone(), stop.clone());
            move || inbound::run(&shared, queue, &stop)
        })?;
        let inbound_thread = Some((stop, thread));
        Ok(Self { shared, inbound, inbound_thread, lanes_threads: Vec::new(), outbound: BTreeMap::new() })
    }

    /// Starts to receive from the socket that lanes and QUIC share, and from those of further workers. Once in the life of these loops.
    pub fn receive_lanes(&mut self, wire: &LaneWire) -> io::Result<()> {
        for (worker, socket) in (0..).zip(wire.sockets()) {
            let stop = Arc::new(AtomicBool::new(false));
            let thread = spawn(&Worker::Lanes(worker).name(), {
                let (shared, wire, stop) = (self.shared.clone(), wire.clone(), stop.clone());
                let socket = socket.clone();
                move || lanes::run(&shared, &wire, worker, &socket, &stop)
            })?;
            self.shared.counters.add_lanes_worker();
            self.lanes_threads.push(LanesThread { stop, socket: socket.clone(), thread });
        }
        Ok(())
    }

    /// What the kernel does in larger pieces, network by network.
    pub fn device_offloads(&self) -> DeviceOffloads {
        let shared = self.shared.clone();
        Arc::new(move |network| {
            let tuns = shared.tuns.load();
            // of the device, and so of all its queues
            tuns.get(usize::from(network.0)).and_then(Option::as_ref).map(|queues| queues.of(0).offloads())
        })
    }

    /// Where reader tasks put what they received.
    pub fn inbound(&self) -> InboundSender {
        self.inbound.clone()
    }

    /// To be called after a snapshot with drained egress nodes was published.
    pub fn waker(&self) -> Waker {
        Waker(self.shared.clone())
    }

    /// Starts to serve a network, whose device has these queues: a thread for each. One that had this index is stopped first.
    pub fn add_network(&mut self, ix: NetworkIx, queues: Vec<Arc<Tun>>) -> io::Result<()> {
        self.remove_network(ix);
        let queues = Queues::new(queues).ok_or(io::ErrorKind::InvalidInput)?;
        let network = Arc::new(Network::new(ix, queues.clone()));
        // here before they have all started, so that none is left behind
        let of_network = OutboundThreads { network: network.clone(), threads: Vec::new() };
        let threads = &mut self.outbound.entry(ix).or_insert(of_network).threads;
        for worker in 0..queues.len() {
            let started = spawn(&Worker::Outbound(ix, worker).name(), {
                let (shared, network) = (self.shared.clone(), network.clone());
                move || outbound::run(&shared, &network, worker)
            });
            match started {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    self.remove_network(ix);
                    return Err(error);
                }
            }
        }
        self.set_tun(ix, Some(queues));
        Ok(())
    }

    /// Stops serving a network and waits for its threads. The device vanishes with the last `Arc` of its last queue.
    pub fn remove_network(&mut self, ix: NetworkIx) {
        let Some(OutboundThreads { network, threads }) = self.outbound.remove(&ix) else { return };
        self.set_tun(ix, None);
        network.stop();
        threads.into_iter().for_each(join);
    }

    /// Networks of which a thread has ended by itself: the device is gone, and has to be made anew.
    pub fn lost_networks(&self) -> Vec<NetworkIx> {
        let lost = |of: &OutboundThreads| of.threads.iter().any(JoinHandle::is_finished);
        self.outbound.iter().filter(|(_, of)| lost(of)).map(|(ix, _)| *ix).collect()
    }

    /// Stops every thread and waits for them. Dropping does the same.
    pub fn stop(&mut self) {
        // what has come to them is written first, while there are devices to write to
        if let Some((stop, thread)) = self.inbound_thread.take() {
            stop.store(true, Relaxed);
            self.inbound.wake();
            join(thread);
        }
        for LanesThread { stop, socket, thread } in self.lanes_threads.drain(..) {
            stop.store(true, Relaxed);
            socket.wake();
            join(thread);
        }
        for network in self.outbound.keys().copied().collect::<Vec<_>>() {
            self.remove_network(network);
        }
    }

    fn set_tun(&self, network: NetworkIx, queues: Option<Queues>) {
        self.shared.tuns.rcu(|tuns| {
            let mut tuns = Vec::clone(tuns);
            let ix = usize::from(network.0);
            if tuns.len() <= ix {
                tuns.resize(ix + 1, None);
            }
            tuns[ix].clone_from(&queues);
            tuns
        });
    }
}

impl Drop for PacketLoops {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Gives the calling thread the rank of a packet thread. In standard mode the runtime's threads are on the way of every
/// packet too: a builder's `on_thread_start` calls this. Best effort.
pub fn prioritise() {
    if !prioritise_thread(NICE) {
        tracing::debug!(nice = NICE, "no priority for a packet thread: CAP_SYS_NICE is missing");
    }
    if let Err(error) = short_turns(TURN) {
        tracing::debug!(%error, "no shorter turns for a packet thread");
    }
}

/// Gives the calling thread the rank to send probes on time: it runs before all that shares the processor by turns, since it does
/// little, and is waited for. Best effort: else it has the rank of a packet thread.
pub fn prioritise_probes() {
    prioritise();
    if let Err(error) = realtime_thread() {
        tracing::debug!(%error, "no real-time rank for the probing thread");
    }
}

/// The same for the process among those of other sessions; once, at the start. Best effort.
pub fn prioritise_session() {
    if let Err(error) = autogroup::prioritise(NICE) {
        tracing::debug!(nice = NICE, %error, "no priority for the session of this process");
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    vital::spawn(name, move || {
        prioritise();
        work();
    })
}

/// Waits for a thread that was told to stop.
fn join(thread: JoinHandle<()>) {
    // a panic has ended the process
    let _ = thread.join();
}
