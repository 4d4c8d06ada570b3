//! Looks at all counters twice for `status --verbose`. A rate needs two looks; whoever asks waits for the second, so that
//! nobody pays while nobody asks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_proto::api::Status;

use super::query::View;
use super::quic::datagram::{InboundSender, QUEUED_BATCHES};
use super::quic::offloads::SocketOffloads;
use super::quic::udp_sockets::udp_sockets;
use super::tun::READ_QUEUE;
use super::tun::drops::device_drops;
use crate::config::offloads::Offloads;
use crate::control::Control;
use crate::control::slowness::{self, Facts, Sample};
use crate::forward::counters::Counters;
use crate::forward::fib::NetworkIx;

/// Between the two looks.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// The offloads of a network's device; `None` while it has none.
pub type DeviceOffloads = Arc<dyn Fn(NetworkIx) -> Option<Offloads> + Send + Sync>;

/// Where the figures are.
#[derive(Clone)]
pub struct Sources {
    /// Of the packet threads.
    pub counters: Arc<Counters>,
    /// The queue before the inbound thread.
    pub inbound: InboundSender,
    /// Of the TUNs.
    pub devices: DeviceOffloads,
    /// Of the UDP socket.
    pub socket: SocketOffloads,
    /// What the file allows.
    pub wanted: Offloads,
    /// When the node started.
    pub started: Instant,
}

impl Sources {
    /// One look.
    pub fn sample(&self, control: &Control, view: &View<'_>) -> Sample {
        let udp = udp_sockets();
        let devices = device_drops().into_iter().map(|(name, d)| (name, [d.outbound, d.inbound]));
        Sample {
            counters: self.counters.snapshot(),
            devices: devices.collect(),
            udp: [udp.to_send, udp.received],
            socket_dropped: udp.dropped,
            paths: control.paths(view.live),
            uptime: self.started.elapsed(),
        }
    }

    fn facts(&self, control: &Control) -> Facts {
        let networks = control.local_networks().iter();
        let tuns: BTreeMap<_, _> = networks.filter_map(|n| Some((n.ix, (self.devices)(n.ix)?))).collect();
        Facts {
            wanted: self.wanted,
            tuns,
            socket: self.socket.in_use(),
            socket_had: self.socket.had(),
            inbound_queue: [self.inbound.waiting() as u64, QUEUED_BATCHES as u64],
            tun_queue: READ_QUEUE,
        }
    }

    /// The verdict with notes on offloads; with all figures where there was a first look.
    pub fn status(&self, control: &Control, view: &View<'_>, before: Option<&Sample>) -> Status {
        let mut status = control.status(view.now);
        let facts = self.facts(control);
        let performance = before.map(|before| {
            let after = self.sample(control, view);
            let peers = control.peers(view.now, view.live).peers;
            control.performance(before, &after, &facts, peers)
        });
        slowness::complete(&mut status, control.offload_notes(&facts), performance);
        status
    }
}
