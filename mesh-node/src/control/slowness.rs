//! Why the node may be slow: two samples of the counters become shares, ratios and words of advice. Also which offloads
//! are missing, which is worth a word at any time.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_proto::api::{self, Pace, PeerPace, Performance, Queue, SocketOffloads, TunOffloads, WorkerPace};

use super::Control;
use super::event::LocalNetwork;
use super::status::{Live, PathFigures};
use crate::config::offloads::{Offload, Offloads};
use crate::forward::DropReason;
use crate::forward::counters::{Direction, Snapshot, WorkerSnapshot};
use crate::forward::fib::NetworkIx;

/// The one UDP socket's name in notes and notices.
pub const SOCKET: &str = "the UDP socket";

/// Packets a second below which ratios tell nothing: a few pings are not slow.
const TELLING: f64 = 1000.0;

/// A thread that is busy for more than this has no reserve.
const BUSY: f64 = 0.85;

/// A thread that waits for more than this is held up by what comes after it.
const WAITING: f64 = 0.25;

/// Fewer packets a call than this: nothing is gained by superpackets.
const ALONE: f64 = 1.5;

/// Lost packets, as a share of those sent, that slow down a VM's TCP.
const LOSS: f64 = 0.001;

/// An inner packet of an Ethernet path is larger.
const SMALL_MTU: u32 = 1300;

/// What is looked at twice.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Of the packet threads.
    pub counters: Snapshot,
    /// Superpackets dropped at each device: for us to read, written by us.
    pub devices: BTreeMap<String, [u64; 2]>,
    /// Bytes that wait at the UDP sockets: to be sent, and to be received.
    pub udp: [u64; 2],
    /// Datagrams dropped at the UDP sockets.
    pub socket_dropped: u64,
    /// Of each peer's path.
    pub paths: BTreeMap<String, PathFigures>,
    /// Since the start.
    pub uptime: Duration,
}

/// What is looked at once.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// What the file allows.
    pub wanted: Offloads,
    /// In use at each network's TUN.
    pub tuns: BTreeMap<NetworkIx, Offloads>,
    /// In use at the UDP socket.
    pub socket: Offloads,
    /// The same at the start.
    pub socket_had: Offloads,
    /// Batches that wait for the inbound thread, and how many may.
    pub inbound_queue: [u64; 2],
    /// Superpackets that a TUN may hold.
    pub tun_queue: u64,
}

/// Offloads of the UDP socket that are wanted or not, were in use at the start or not, and are not now: device, name, text.
pub fn missing_of_socket(
    wanted: Offloads,
    had: Offloads,
    used: Offloads,
) -> Vec<(String, &'static str, String)> {
    missing(SOCKET, wanted, had, used, false)
}

/// The same of a TUN.
pub fn missing_of_tun(tun: &str, wanted: Offloads, used: Offloads) -> Vec<(String, &'static str, String)> {
    missing(tun, wanted, used, used, true)
}

fn missing(
    device: &str,
    wanted: Offloads,
    had: Offloads,
    used: Offloads,
    of_tun: bool,
) -> Vec<(String, &'static str, String)> {
    let gone = Offload::ALL.into_iter().filter(|o| o.of_tun() == of_tun && !used.has(*o));
    gone.map(|offload| {
        let why = if had.has(offload) {
            "a device has refused it: this holds for peers there, in standard mode for all".to_owned()
        } else if wanted.has(offload) {
            format!("this kernel lacks it ({})", offload.since())
        } else {
            "`offloads` in the configuration leaves it out".to_owned()
        };
        (device.to_owned(), offload.as_str(), format!("{}; {why}", offload.cost()))
    })
    .collect()
}

impl Control {
    /// Notes on offloads that are not in use.
    pub fn offload_notes(&self, facts: &Facts) -> Vec<String> {
        let mut all = missing_of_socket(facts.wanted, facts.socket_had, facts.socket);
        for network in &self.local.networks {
            // without an entry there is no device at present, which is told elsewhere
            if let Some(used) = facts.tuns.get(&network.ix) {
                all.extend(missing_of_tun(&network.tun, facts.wanted, *used));
            }
        }
        all.into_iter().map(|(device, offload, text)| format!("no {offload} at {device}: {text}")).collect()
    }

    /// Figures of the paths to all peers whose tunnel is up.
    pub fn paths(&self, live: &dyn Live) -> BTreeMap<String, PathFigures> {
        let tunnels = self.members.peers.iter().filter_map(|(node, p)| Some((node, p.tunnel.as_ref()?)));
        tunnels.filter_map(|(node, t)| Some((node.to_string(), live.path(t.conn)?))).collect()
    }

    /// What two samples tell; `peers` is the list of all peers.
    pub fn performance(
        &self,
        before: &Sample,
        after: &Sample,
        facts: &Facts,
        peers: Vec<api::Peer>,
    ) -> Performance {
        let interval = after.uptime.saturating_sub(before.uptime);
        let networks = &self.local.networks;
        let of_network = |n: &LocalNetwork| {
            let name = n.name.to_string();
            after.counters.outbound_workers(n.ix).map(move |worker| (worker, Some(name.clone())))
        };
        let inbound = after.counters.inbound_workers().map(|worker| (worker, None));
        let workers = networks.iter().flat_map(of_network).chain(inbound).map(|(worker, network)| {
            let [old, new] = [before, after].map(|sample| sample.counters.worker(worker));
            WorkerPace {
                worker: worker.name(),
                network,
                direction: worker.direction().as_str().into(),
                interval: pace(old, new, interval),
                since_start: pace(WorkerSnapshot::default(), new, after.uptime),
            }
        });
        let tun = |network: &LocalNetwork| {
            let used = facts.tuns.get(&network.ix).copied().unwrap_or_default();
            TunOffloads {
                network: network.name.to_string(),
                tun: network.tun.clone(),
                csum: used.has(Offload::Csum),
                tso: used.has(Offload::Tso),
                uso: used.has(Offload::Uso),
            }
        };
        let mut found = Performance {
            interval_seconds: interval.as_secs_f64(),
            workers: workers.collect(),
            tuns: networks.iter().map(tun).collect(),
            socket: SocketOffloads {
                gso: facts.socket.has(Offload::Gso),
                gro: facts.socket.has(Offload::Gro),
            },
            peers: peer_paces(before, after, peers),
            queues: self.queues(before, after, facts),
            advice: Vec::new(),
        };
        found.advice = advice(&found);
        found
    }

    /// In the order in which a packet meets them, out and in again.
    fn queues(&self, before: &Sample, after: &Sample, facts: &Facts) -> Vec<Queue> {
        let mut queues = Vec::new();
        let mut device = |tun: &str, side: usize, name: &str, limit: Option<u64>| {
            let [old, new] = [before, after].map(|s| s.devices.get(tun).map_or(0, |drops| drops[side]));
            queues.push(Queue {
                queue: format!("{name} {tun}"),
                depth: None,
                limit,
                unit: "superpackets".into(),
                dropped: new.saturating_sub(old),
                dropped_since_start: new,
            });
        };
        for network in &self.local.networks {
            device(&network.tun, 0, "tun_read", Some(facts.tun_queue));
            device(&network.tun, 1, "tun_write", None);
        }
        let full = |direction| {
            [before, after].map(|sample| {
                let dropped = &sample.counters.direction(direction).dropped;
                dropped.iter().find(|(reason, _)| *reason == DropReason::QueueFull).map_or(0, |(_, n)| *n)
            })
        };
        let mut ours =
            |name: &str, unit: &str, (depth, limit): (Option<u64>, Option<u64>), [old, new]: [u64; 2]| {
                queues.push(Queue {
                    queue: name.into(),
                    depth,
                    limit,
                    unit: unit.into(),
                    dropped: new.saturating_sub(old),
                    dropped_since_start: new,
                });
            };
        let [to_send, received] = after.udp;
        ours("send_buffer", "packets", (None, None), full(Direction::Outbound));
        // who fills it waits, or drops what counts for the one before
        ours("udp_send", "bytes", (Some(to_send), None), [0, 0]);
        ours("udp_waiting", "bytes", (Some(received), None), [0, 0]);
        ours("udp_receive", "datagrams", (None, None), [before.socket_dropped, after.socket_dropped]);
        ours("receive_buffer", "packets", (None, None), full(Direction::Inbound));
        // the socket fills
        ours("backlog", "superpackets", (Some(after.counters.backlog), None), [0, 0]);
        // who fills it waits
        let [depth, limit] = facts.inbound_queue;
        ours("inbound", "batches", (Some(depth), Some(limit)), [0, 0]);
        queues
    }
}

fn peer_paces(before: &Sample, after: &Sample, peers: Vec<api::Peer>) -> Vec<PeerPace> {
    let up = peers.into_iter().filter(|peer| peer.state == "up");
    up.map(|peer| {
        let new = after.paths.get(&peer.name).copied().unwrap_or_default();
        // a connection that is younger than the first sample counts from its own start
        let old = before.paths.get(&peer.name).copied().filter(|old| old.datagrams <= new.datagrams);
        let old = old.unwrap_or_default();
        let datagrams = new.datagrams - old.datagrams;
        PeerPace {
            transport: peer.transport.unwrap_or_default(),
            rtt_seconds: peer.rtt_seconds,
            path_mtu_bytes: peer.path_mtu_bytes.unwrap_or_default(),
            datagrams,
            datagrams_per_send: ratio(datagrams, new.sends.saturating_sub(old.sends)),
            lost_packets: new.lost_packets.saturating_sub(old.lost_packets),
            send_buffer_bytes: new.send_buffer_bytes,
            peer: peer.name,
        }
    })
    .collect()
}

fn ratio(all: u64, parts: u64) -> Option<f64> {
    (parts > 0).then(|| all as f64 / parts as f64)
}

fn pace(old: WorkerSnapshot, new: WorkerSnapshot, time: Duration) -> Pace {
    let share = |old: Duration, new: Duration| {
        let share = new.saturating_sub(old).as_secs_f64() / time.as_secs_f64().max(1e-9);
        // a batch is counted when it ends, so that one may seem to take more than there was
        share.min(1.0)
    };
    let packets = new.packets.saturating_sub(old.packets);
    Pace {
        packets,
        busy_share: share(old.busy, new.busy),
        waiting_share: share(old.waited, new.waited),
        packets_per_batch: ratio(packets, new.batches.saturating_sub(old.batches)),
        packets_per_call: ratio(packets, new.superpackets.saturating_sub(old.superpackets)),
    }
}

/// What an experienced operator would say of these figures.
pub fn advice(found: &Performance) -> Vec<String> {
    let mut advice = Vec::new();
    let rate = |count: u64| count as f64 / found.interval_seconds.max(1e-9);
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    for queue in found.queues.iter().filter(|q| q.dropped > 0) {
        advice.push(format!(
            "{} {} dropped at {} in this interval: docs/queues.md says what fills it",
            queue.dropped, queue.unit, queue.queue
        ));
    }
    for worker in &found.workers {
        let Pace { busy_share, waiting_share, packets, packets_per_call, .. } = worker.interval;
        if waiting_share > WAITING {
            advice.push(format!(
                "{} waits {} of the time for a full tunnel: the path, or the CPU that encrypts, is the limit",
                worker.worker,
                percent(waiting_share)
            ));
        } else if busy_share > BUSY {
            advice.push(format!(
                "{} is busy {} of the time: this thread is the limit; more `workers`, where cores are idle, or larger packets",
                worker.worker,
                percent(busy_share)
            ));
        }
        if let (Some(network), Some(per_call)) = (&worker.network, packets_per_call)
            && per_call < ALONE
            && rate(packets) > TELLING
        {
            let tun = found.tuns.iter().find(|t| t.network == *network);
            let whole = tun.is_some_and(|t| t.csum && t.tso && t.uso);
            advice.push(format!(
                "packets of network {network} come one by one: {}",
                if whole {
                    "`ethtool -k` of the VMs' interfaces says whether they leave segmentation to the host"
                } else {
                    "the TUN lacks an offload"
                }
            ));
        }
    }
    for tun in &found.tuns {
        for (there, offload) in [(tun.csum, Offload::Csum), (tun.tso, Offload::Tso), (tun.uso, Offload::Uso)]
        {
            if !there {
                advice.push(format!("no {} at {}: {}", offload.as_str(), tun.tun, offload.cost()));
            }
        }
    }
    for (there, offload) in [(found.socket.gso, Offload::Gso), (found.socket.gro, Offload::Gro)] {
        if !there {
            advice.push(format!("no {} at {SOCKET}: {}", offload.as_str(), offload.cost()));
        }
    }
    for peer in &found.peers {
        if rate(peer.datagrams) > TELLING && peer.lost_packets as f64 > LOSS * peer.datagrams as f64 {
            advice.push(format!(
                "{} of {} datagrams to {} were lost on the way: VMs' TCP slows down",
                peer.lost_packets, peer.datagrams, peer.peer
            ));
        }
        if peer.path_mtu_bytes < SMALL_MTU {
            advice.push(format!(
                "the path to {} carries packets of {} bytes only: a larger MTU between the hosts means fewer",
                peer.peer, peer.path_mtu_bytes
            ));
        }
    }
    if found.workers.iter().all(|w| w.interval.packets == 0) {
        advice.push("no packet was carried in this interval: ask again while it is slow".into());
    }
    advice
}

/// Adds what is known of offloads, and the figures where there are some.
pub fn complete(status: &mut api::Status, notes: Vec<String>, performance: Option<Performance>) {
    status.notes.extend(notes);
    status.performance = performance;
}

#[cfg(test)]
mod tests;
