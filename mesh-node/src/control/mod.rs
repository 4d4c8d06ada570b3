//! What this node decides per event. Pure: `now` and a seeded generator are arguments; nothing here awaits, locks or reads a
//! clock. Called by `control_loop`, which owns the one `Control`.
//!
//! Contract: after each `handle_*`, take every output with `poll_output`; then wait for the next input, at most until
//! `poll_timeout`, and call `handle_timeout` when that has come.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use mesh_proto::hello::{CloseCode, Hello, NetworkHandle};
use mesh_proto::identity::{NodeKey, TrustRoots};
use mesh_proto::limits::PROTOCOL_VERSION;
use mesh_proto::record::VerifiedRecord;
use mesh_proto::{NetworkName, NodeId, suggest};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rustls_pki_types::CertificateDer;
use tracing::debug;

use self::drain::Drain;
use self::egress::Roles;
use self::egress::failover::{FailoverCause, OUTAGE_BUCKETS};
use self::event::{Input, LocalNode, Now, Output, Saved, Target, TunnelSpec};
use self::exchange::{sign_own, unix_time};
use self::host::HostState;
use self::members::{Members, Seed};
use self::observed::Observed;
use self::offers::Offers;
use self::sessions::Dialer;
use crate::forward::fib::NetworkSpec;
use crate::notice::Notice;
use crate::notice::limiter::Limiter;

pub mod drain;
pub mod egress;
pub mod event;
mod exchange;
pub mod gauges;
pub mod host;
pub mod kernel;
pub mod liveness;
pub mod members;
pub mod observed;
pub mod offers;
mod publish;
mod reload;
pub mod rib;
mod route_get;
pub mod sessions;
pub mod slowness;
pub mod status;
pub mod trace;
mod tunnels;
pub mod uplink;

#[cfg(test)]
mod tests;

/// With what this node signs, and whom it believes.
#[derive(Debug)]
pub struct Trust {
    /// Our certificate, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: NodeKey,
    /// The mesh's CAs.
    pub roots: Arc<TrustRoots>,
}

/// What the kernel side last reported.
#[derive(Debug, Default)]
pub struct HostReport {
    /// The last apply failed.
    pub error: Option<String>,
    /// What somebody else had removed and was put back, the newest last.
    pub repaired: VecDeque<String>,
    /// Foreign chains that drop our traffic, and the command that mends it.
    pub foreign: Vec<(String, String)>,
}

/// Upper bounds of the histogram of handshakes, in seconds: from a LAN to a path that loses packets.
pub const HANDSHAKE_BUCKETS: [f64; 9] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// Counts for the metrics endpoint.
#[derive(Debug)]
pub struct Counts {
    /// Tunnels that did not come up, by reason.
    pub handshake_failures: BTreeMap<&'static str, u64>,
    /// Those that succeeded.
    pub handshakes: Observed<{ HANDSHAKE_BUCKETS.len() }>,
    /// Changes from one egress node to another, by cause.
    pub egress_failovers: BTreeMap<(NetworkName, FailoverCause), u64>,
    /// How long nobody carried a destination, each time.
    pub egress_outages: BTreeMap<NetworkName, Observed<{ OUTAGE_BUCKETS.len() }>>,
    /// Times that the lease of this node's own egress roles ran out.
    pub leases_lost: u64,
    /// Records refused.
    pub records_refused: u64,
    /// The last reload was rejected.
    pub reload_failed: bool,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            handshake_failures: BTreeMap::new(),
            handshakes: Observed::new(HANDSHAKE_BUCKETS),
            egress_failovers: BTreeMap::new(),
            egress_outages: BTreeMap::new(),
            leases_lost: 0,
            records_refused: 0,
            reload_failed: false,
        }
    }
}

/// The node's decisions.
#[derive(Debug)]
pub struct Control {
    local: LocalNode,
    offers: Offers,
    trust: Trust,
    rng: SmallRng,
    own: VerifiedRecord,
    members: Members,
    roles: Roles,
    published: (Vec<Option<NetworkSpec>>, Vec<TunnelSpec>, Arc<HostState>),
    host: HostReport,
    counts: Counts,
    /// Announcements that answer a record of our own name.
    answers: Limiter,
    /// Records of our own name that were newer than ours: one may be from our past, more are another node's.
    own_name_elsewhere: u32,
    /// The networks' numbers have changed since the start: a hello may be older than that.
    renumbered: bool,
    /// Tunnels that are probed.
    probed: BTreeMap<event::ConnId, liveness::ProbeParams>,
    traces: trace::Traces,
    outputs: VecDeque<Output>,
}

impl Control {
    /// Starts from what is on disk: peers, and records, so that last known prefixes are refused rather than leaked.
    pub fn new(
        local: LocalNode,
        trust: Trust,
        saved: Saved,
        seed: u64,
        now: Now,
    ) -> Result<Self, mesh_proto::record::RecordError> {
        let mut members = Members::default();
        let mut last_version = 0;
        let mut outputs = VecDeque::new();
        for signed in saved.records {
            match signed.verify(&trust.roots, unix_time(now.unix_ms)) {
                Ok(known) if known.record.node == local.identity.node => last_version = known.record.version,
                Ok(known) => {
                    let peer = members.peer(&known.identity.node.clone(), now.mono, now.unix_ms);
                    peer.left = known.record.leaving;
                    peer.record = Some(known);
                }
                Err(error) => {
                    outputs.push_back(Output::Tell(Notice::RecordForgotten { error: error.to_string() }));
                }
            }
        }
        let seeds = local.seeds.iter().map(|(e, n)| (e.clone(), n.clone(), false));
        let added = saved.peers.into_iter().map(|e| (e, None, true));
        for (endpoint, node, runtime) in seeds.chain(added) {
            let pinned = node.is_some();
            let dialer = Dialer::new(now.mono);
            members.seeds.entry(endpoint).or_insert(Seed { node, pinned, runtime, dialer, reason: None });
        }
        // who is named in the file is wanted
        let named = |node: &NodeId| members.seeds.values().any(|s| s.pinned && s.node.as_ref() == Some(node));
        members.removed = saved.removed.into_iter().filter(|node| !named(node)).collect();
        let mut offers = Offers::default();
        offers.drain = Drain::restored(saved.egress_drained);
        let own = sign_own(&local, &offers, &trust, last_version, false, now)?;
        let mut control = Self {
            local,
            offers,
            trust,
            rng: SmallRng::seed_from_u64(seed),
            own,
            members,
            roles: Roles::new(saved.egress_used, saved.egress_elected, now),
            published: Default::default(),
            host: HostReport::default(),
            counts: Counts::default(),
            answers: Limiter::default(),
            own_name_elsewhere: 0,
            renumbered: false,
            probed: BTreeMap::new(),
            traces: trace::Traces::default(),
            outputs,
        };
        control.refresh(now);
        control.save();
        control.handle_timeout(now);
        Ok(control)
    }

    /// Our hello.
    pub fn hello(&self) -> Hello {
        let networks = &self.local.networks;
        Hello {
            version: PROTOCOL_VERSION,
            mesh: self.local.identity.mesh.clone(),
            node: self.local.identity.node.clone(),
            generation: self.local.generation,
            networks: networks
                .iter()
                .map(|n| NetworkHandle { handle: n.ix.0, name: n.name.clone() })
                .collect(),
        }
    }

    /// One event.
    pub fn handle(&mut self, input: Input, now: Now) {
        match input {
            Input::TunnelUp { conn, identity, endpoint, dialed, hello, took } => {
                self.counts.handshakes.add(took);
                self.tunnel_up(conn, identity, endpoint, dialed, hello, now);
            }
            Input::TunnelClosed { conn, reason } => {
                self.trace_closed(conn);
                self.tunnel_closed(conn, reason, now);
            }
            Input::DialFailed { target, endpoint, reason } => {
                self.dial_failed(target, &endpoint, reason, now)
            }
            Input::AcceptFailed { endpoint, node, reason } => self.accept_failed(endpoint, node, reason, now),
            Input::Message { conn, message } => self.message(conn, message, now),
            Input::TunnelMtu { conn, mtu } => {
                if let Some(tunnel) = self.tunnel_mut(conn) {
                    tunnel.mtu = mtu;
                }
            }
            Input::Liveness { conn, change } => self.liveness(conn, change, now),
            Input::LeaseLost(pause) => {
                self.counts.leases_lost += 1;
                self.tell(Notice::LeaseLost { elapsed_ms: pause.as_millis() as u64 });
            }
            Input::LeaseRenewed(renewed) => self.lease_renewed(renewed, now),
            Input::Wanted(ix) => {
                if let Some(peer) =
                    self.members.name(ix).cloned().and_then(|n| self.members.peers.get_mut(&n))
                    && peer.tunnel.is_none()
                    && !peer.wanted
                {
                    // the first time only: packets that keep coming must not shorten the backoff
                    peer.wanted = true;
                    peer.dialer.hurry(now.mono);
                }
            }
            Input::Endpoints(endpoints) => {
                if endpoints != self.local.endpoints {
                    self.local.endpoints = endpoints;
                    self.announce(false, now);
                }
            }
            Input::Reload(Ok(new)) => {
                self.counts.reload_failed = false;
                self.reload(new.local, new.trust, now);
            }
            Input::Reload(Err(())) => self.counts.reload_failed = true,
            Input::HostSynced(repaired) => {
                self.host.error = None;
                repaired.into_iter().for_each(|what| self.repaired(what));
            }
            Input::HostFailed(error) => {
                if self.host.error.as_ref() != Some(&error) {
                    self.tell(Notice::KernelFailed { error: error.clone() });
                }
                self.host.error = Some(error);
            }
            Input::Breach { conn, text } => {
                if self.members.conns.contains_key(&conn) {
                    self.breach(conn, text, now);
                }
            }
            Input::Repaired(what) => self.repaired(what),
            Input::ForeignChains(chains) => {
                for (chain, command) in chains.iter().filter(|c| !self.host.foreign.contains(c)) {
                    let (chain, command) = (chain.clone(), command.clone());
                    self.outputs.push_back(Output::Tell(Notice::ForeignChain { chain, command }));
                }
                self.host.foreign = chains;
            }
            Input::TraceAsk { node, request } => self.trace_ask(&node, request),
            Input::Uplink { uplink, report } => self.uplink(uplink, report, now),
            Input::FlowsCounted(counted) => self.flows_counted(counted, now),
            Input::Stop => self.stop(now),
            Input::Leave => self.announce(true, now),
        }
        self.refresh(now);
        self.handle_timeout(now);
    }

    fn tell(&mut self, notice: Notice) {
        self.outputs.push_back(Output::Tell(notice));
    }

    fn repaired(&mut self, what: String) {
        self.tell(Notice::KernelRepaired { what: what.clone() });
        self.host.repaired.push_back(what);
        if self.host.repaired.len() > 16 {
            self.host.repaired.pop_front();
        }
    }

    /// What is due by `now`: dials, certificates that have expired, roles that change with time.
    pub fn handle_timeout(&mut self, now: Now) {
        self.close_expired(now);
        self.drain_timeout(now);
        if self.roles.due().is_some_and(|due| due <= now.mono) {
            self.refresh(now);
        }
        let nodes: Vec<NodeId> = self.members.peers.keys().cloned().collect();
        for node in nodes {
            let due = |peer: &members::Peer| {
                peer.tunnel.is_none() && peer.dialer.due().is_some_and(|due| due <= now.mono)
            };
            if !self.members.peers.get(&node).is_some_and(due) || !self.members.wants_tunnel(&node) {
                continue;
            }
            let endpoints = self.members.endpoints(&node);
            let Some(peer) = self.members.peers.get_mut(&node).filter(|_| !endpoints.is_empty()) else {
                continue;
            };
            let endpoint = endpoints[peer.attempt % endpoints.len()].clone();
            peer.attempt += 1;
            peer.dialer.begun();
            debug!(peer = %node, endpoint, "dial");
            self.outputs.push_back(Output::Dial {
                target: Target::Node(node.clone()),
                endpoint,
                expect: Some(node),
            });
        }
        for (endpoint, seed) in &mut self.members.seeds {
            if seed.is_known(&self.members.peers) || seed.dialer.due().is_none_or(|due| due > now.mono) {
                continue;
            }
            seed.dialer.begun();
            debug!(endpoint, "dial");
            self.outputs.push_back(Output::Dial {
                target: Target::Seed(endpoint.clone()),
                endpoint: endpoint.clone(),
                expect: seed.node.clone(),
            });
        }
    }

    /// When `handle_timeout` has something to do.
    pub fn poll_timeout(&self, now: Now) -> Option<Instant> {
        let peers = self.members.peers.iter().filter_map(|(node, peer)| {
            let due = peer.dialer.due().filter(|_| peer.tunnel.is_none())?;
            let able = self.members.wants_tunnel(node) && !self.members.endpoints(node).is_empty();
            able.then_some(due)
        });
        let seeds = self
            .members
            .seeds
            .values()
            .filter_map(|seed| seed.dialer.due().filter(|_| !seed.is_known(&self.members.peers)));
        let expiry = self.members.peers.values().filter_map(|peer| {
            let left = (peer.tunnel.as_ref()?.identity.not_after + 1).max(0) as u64 * 1000;
            now.mono.checked_add(std::time::Duration::from_millis(left.saturating_sub(now.unix_ms)))
        });
        peers.chain(seeds).chain(expiry).chain(self.roles.due()).chain(self.offers.drain.due()).min()
    }

    /// What is to be done, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// This node's name.
    pub fn node(&self) -> &NodeId {
        &self.local.identity.node
    }

    /// Counts for the metrics endpoint.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The connection of a peer's tunnel.
    pub fn connection(&self, peer: &NodeId) -> Option<event::ConnId> {
        Some(self.members.peers.get(peer)?.tunnel.as_ref()?.conn)
    }

    /// Adds a peer at run time.
    pub fn peer_add(&mut self, endpoint: &str, now: Now) {
        let dialer = Dialer::new(now.mono);
        let seed = Seed { node: None, pinned: false, runtime: true, dialer, reason: None };
        self.members.seeds.entry(endpoint.to_owned()).or_insert(seed).dialer.hurry(now.mono);
        self.tell(Notice::PeerAdded { endpoint: endpoint.to_owned() });
        self.save();
        self.handle_timeout(now);
    }

    /// Removes a peer by name, or by the endpoint it was added with.
    pub fn peer_remove(&mut self, peer: &str, now: Now) -> Result<(), String> {
        let node = match self.members.seeds.get(peer) {
            Some(seed) => seed.node.clone(),
            None => Some(peer.parse::<NodeId>().map_err(|e| e.to_string())?),
        };
        let is_it =
            |(endpoint, seed): (&String, &Seed)| endpoint == peer || (node.is_some() && seed.node == node);
        if let Some((endpoint, _)) = self.members.seeds.iter().find(|(e, s)| !s.runtime && is_it((e, s))) {
            return Err(format!(
                "{peer} is in the configuration file ([[peer]] {endpoint}): remove it there"
            ));
        }
        let known = node.as_ref().is_some_and(|n| self.members.peers.contains_key(n));
        if !known && !self.members.seeds.iter().any(is_it) {
            let names = self.members.peers.keys().map(NodeId::as_str);
            let names = names.chain(self.members.seeds.keys().map(String::as_str));
            let hint = suggest::or_else(peer, names, "`mesh-ctl peers` lists them");
            return Err(format!("no peer {peer}: {hint}"));
        }
        let gone: Vec<String> =
            self.members.seeds.iter().filter(|s| is_it(*s)).map(|(endpoint, _)| endpoint.clone()).collect();
        for endpoint in gone {
            self.members.seeds.remove(&endpoint);
            self.outputs.push_back(Output::CancelDial(Target::Seed(endpoint)));
        }
        if let Some(node) = node {
            self.outputs.push_back(Output::CancelDial(Target::Node(node.clone())));
            if let Some(tunnel) = self.members.peers.remove(&node).and_then(|p| p.tunnel) {
                self.members.conns.remove(&tunnel.conn);
                self.close(tunnel.conn, CloseCode::Removed, "removed by the operator".into());
            }
            self.tell(Notice::PeerRemoved { peer: node.clone() });
            self.members.removed.insert(node);
        }
        self.refresh(now);
        self.save();
        self.handle_timeout(now);
        Ok(())
    }
}
