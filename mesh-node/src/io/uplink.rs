//! Watches own uplinks: their link by netlink, their targets by probes. What that means is `control::uplink`'s.
//!
//! ```text
//!  netlink ----link----> task of an uplink --Input::Uplink--> control loop
//!  prober of a target ------^
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use rand::Rng as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use self::socket::Resolver;
use super::host;
use super::now;
use super::quic::connection::Event;
use crate::config::uplink::{ProbeTarget, UplinkConfig};
use crate::control::event::Input;
use crate::control::uplink::Health;

mod echo;
mod socket;

/// Between two tries to listen to netlink.
const RETRY: Duration = Duration::from_secs(1);

/// Results that may wait for the task of their uplink.
const QUEUE: usize = 64;

/// The uplinks that are watched.
#[derive(Debug, Default)]
pub struct Uplinks(BTreeMap<UplinkConfig, JoinSet<()>>);

impl Uplinks {
    /// Watches these, and no others; one that is watched already goes on as it is.
    pub fn want(&mut self, wanted: &BTreeSet<UplinkConfig>, events: &mpsc::Sender<Event>) {
        self.0.retain(|uplink, _| wanted.contains(uplink));
        for uplink in wanted {
            self.0.entry(uplink.clone()).or_insert_with(|| {
                let mut task = JoinSet::new();
                task.spawn(watch_uplink(uplink.clone(), events.clone()));
                task
            });
        }
    }
}

/// A target, by its place, and whether it answered.
type Seen = (usize, Result<(), String>);

async fn watch_uplink(uplink: UplinkConfig, events: mpsc::Sender<Event>) {
    let (tx, mut seen) = mpsc::channel(QUEUE);
    let (link_tx, mut link) = watch::channel(None);
    let mut tasks = JoinSet::new();
    tasks.spawn(watch_link(uplink.interface.clone(), link_tx));
    for (index, target) in uplink.probe.iter().enumerate() {
        tasks.spawn(probe(uplink.clone(), index, target.clone(), tx.clone()));
    }
    drop(tx);
    let mut health = Health::new(uplink.clone(), Instant::now());
    loop {
        let due = health.poll_timeout();
        tokio::select! {
            Ok(()) = link.changed() => {
                let up = *link.borrow_and_update();
                if let Some(up) = up {
                    health.handle_link(up, Instant::now());
                }
            }
            Some((target, result)) = seen.recv() => health.handle_probe(target, result, Instant::now()),
            () = sleep_until(due) => {}
        }
        if let Some(report) = health.poll_report(now()) {
            let input = Input::Uplink { uplink: uplink.clone(), report };
            if events.send(Event::Input(input)).await.is_err() {
                return;
            }
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

async fn watch_link(interface: String, state: watch::Sender<Option<bool>>) {
    loop {
        // the state is told, not the change: one that is not taken at once is replaced by the next, never lost
        let told = |up| state.send(Some(up)).is_ok();
        match host::watch::link(&interface, told).await {
            Ok(()) => return,
            Err(error) => tracing::debug!(%error, interface, "the state of the link is asked for again"),
        }
        sleep(RETRY).await;
    }
}

enum Asked {
    Echo(IpAddr),
    Tcp(Resolver),
}

async fn probe(uplink: UplinkConfig, index: usize, target: ProbeTarget, seen: mpsc::Sender<Seen>) {
    let mut target = match target {
        ProbeTarget::Echo(address) => Asked::Echo(address),
        ProbeTarget::Tcp(endpoint) => Asked::Tcp(Resolver::new(endpoint)),
    };
    loop {
        let started = Instant::now();
        let asked = async {
            match &mut target {
                Asked::Echo(address) => echo::ask(&uplink, *address).await,
                Asked::Tcp(resolver) => socket::connect(&uplink, resolver).await,
            }
        };
        let result = match timeout(uplink.probe_interval, asked).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} ms", uplink.probe_interval.as_millis())),
        };
        if seen.send((index, result)).await.is_err() {
            return;
        }
        // up to a tenth sooner: probes of many nodes must not fall into step (RFC 5880 section 6.8.7)
        let wait = uplink.probe_interval.mul_f64(rand::rng().random_range(0.9..=1.0));
        sleep(wait.saturating_sub(started.elapsed())).await;
    }
}
