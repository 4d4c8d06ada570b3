//! Tunnels come and go: which of two is kept, why one ended, when one has to end.

use std::net::SocketAddr;

use mesh_proto::NodeId;
use mesh_proto::hello::{CloseCode, Hello};
use mesh_proto::identity::Identity;
use mesh_proto::limits::MIN_UDP_PAYLOAD;
use mesh_proto::record::SignedRecord;
use tracing::debug;

use super::Control;
use super::event::{ConnId, Now, Output, Reason, Target};
use super::liveness::Change;
use super::members::{Stranger, Tunnel};
use super::sessions::{Claim, Dialer};
use crate::notice::Notice;

impl Control {
    pub(super) fn tunnel_up(
        &mut self,
        conn: ConnId,
        identity: Identity,
        endpoint: SocketAddr,
        dialed: Option<Target>,
        hello: Hello,
        now: Now,
    ) {
        let node = identity.node.clone();
        if let Some(Target::Seed(seed)) = &dialed
            && let Some(seed) = self.members.seeds.get_mut(seed)
            // a name may have been written into the file meanwhile
            && (!seed.pinned || seed.node.as_ref() == Some(&node))
        {
            seed.node = Some(node.clone());
            seed.reason = None;
            seed.dialer.up();
            // the operator named this endpoint after the removal
            self.members.removed.remove(&node);
        }
        if self.members.removed.contains(&node) {
            let text =
                format!("{node} was removed here by the operator: `mesh-ctl peer add` lets it in again");
            self.close(conn, CloseCode::Removed, text);
            return;
        }
        let by_smaller = (self.local.identity.node < node) == dialed.is_some();
        let claim = Claim { generation: hello.generation, by_smaller, since: now.mono };
        let peer = self.members.peer(&node, now.mono, now.unix_ms);
        let mut superseded = None;
        if let Some(old) = &peer.tunnel {
            if !claim.replaces(&old.claim) {
                debug!(peer = %node, "a second connection: the first is kept");
                self.close(conn, CloseCode::Superseded, "another connection is kept".into());
                return;
            }
            superseded = Some(old.conn);
        }
        let up = Notice::TunnelUp { peer: node.clone(), endpoint, dialed: dialed.is_some() };
        self.outputs.push_back(Output::Tell(up));
        if dialed.is_none() && peer.dialer.dialing {
            self.outputs.push_back(Output::CancelDial(Target::Node(node.clone())));
        }
        peer.dialer.up();
        peer.reason = None;
        peer.left = false;
        peer.tunnel = Some(Tunnel {
            conn,
            endpoint,
            identity,
            hello,
            claim,
            since_unix_ms: now.unix_ms,
            mtu: u32::from(MIN_UDP_PAYLOAD) - 40,
            silent: None,
        });
        self.members.strangers.retain(|_, s| s.node.as_ref() != Some(&node));
        self.members.conns.insert(conn, node);
        if let Some(old) = superseded {
            self.members.conns.remove(&old);
            self.close(old, CloseCode::Superseded, "another connection is kept".into());
        }
        if self.renumbered {
            self.send_networks(conn);
        }
        let known = self.members.peers.values().filter_map(|p| p.record.as_ref());
        let all: Vec<SignedRecord> =
            std::iter::once(&self.own).chain(known).map(|r| r.signed.clone()).collect();
        self.send_records(conn, &all);
    }

    pub(super) fn tunnel_closed(&mut self, conn: ConnId, reason: Reason, now: Now) {
        let Some(node) = self.members.conns.remove(&conn) else { return };
        let Some(peer) = self.members.peers.get_mut(&node) else { return };
        if peer.tunnel.as_ref().is_none_or(|t| t.conn != conn) {
            return;
        }
        let left = peer.said_goodbye() || reason.label == CloseCode::Leaving.reason();
        let notice = if left {
            Notice::PeerLeft { peer: node }
        } else {
            Notice::TunnelDown { peer: node, reason: reason.label, text: reason.text.clone() }
        };
        self.outputs.push_back(Output::Tell(notice));
        let since = peer.tunnel.take().map_or(now.mono, |t| t.claim.since);
        peer.left = left;
        peer.since_unix_ms = now.unix_ms;
        peer.attempt = 0;
        if reason.label == CloseCode::Removed.reason() {
            peer.dialer.unwelcome(now.mono, &mut self.rng);
        } else {
            peer.dialer.down(since, now.mono, &mut self.rng);
        }
        peer.reason = Some(reason);
    }

    pub(super) fn dial_failed(&mut self, target: Target, endpoint: &str, reason: Reason, now: Now) {
        let (dialer, shown, name) = match &target {
            Target::Seed(seed) => match self.members.seeds.get_mut(seed) {
                Some(s) => (&mut s.dialer, &mut s.reason, seed.as_str()),
                None => return,
            },
            Target::Node(node) => match self.members.peers.get_mut(node) {
                // it has dialled us meanwhile
                Some(p) if p.tunnel.is_some() => return p.dialer.up(),
                Some(p) => (&mut p.dialer, &mut p.reason, node.as_str()),
                None => return,
            },
        };
        if reason.label == CloseCode::Removed.reason() {
            dialer.unwelcome(now.mono, &mut self.rng);
        } else {
            dialer.failed(now.mono, &mut self.rng);
        }
        if shown.as_ref() == Some(&reason) {
            debug!(peer = name, endpoint, reason = reason.label, text = reason.text, "dial failed again");
        } else {
            self.outputs.push_back(Output::Tell(Notice::DialFailed {
                peer: name.to_owned(),
                endpoint: endpoint.to_owned(),
                reason: reason.label,
                text: reason.text.clone(),
            }));
        }
        *shown = Some(reason.clone());
        *self.counts.handshake_failures.entry(reason.label).or_default() += 1;
        let Target::Node(node) = target else { return };
        if reason.label == CloseCode::Leaving.reason()
            && let Some(peer) = self.members.peers.get_mut(&node)
        {
            peer.left = true;
        }
        // an unnamed seed's endpoint may have passed to another node
        if reason.label == CloseCode::Name.reason()
            && let Some(seed) = self.members.seeds.get_mut(endpoint)
            && !seed.pinned
            && seed.node.as_ref() == Some(&node)
        {
            seed.node = None;
            seed.dialer = Dialer::new(now.mono);
            seed.dialer.failed(now.mono, &mut self.rng);
        }
    }

    pub(super) fn accept_failed(
        &mut self,
        endpoint: SocketAddr,
        node: Option<NodeId>,
        reason: Reason,
        now: Now,
    ) {
        // the dialer has found another way to us
        let quiet = [CloseCode::Superseded.reason(), CloseCode::Abandoned.reason()];
        if quiet.contains(&reason.label) {
            return;
        }
        let key = SocketAddr::new(endpoint.ip(), 0);
        let known = self.members.strangers.get(&key).is_some_and(|s| s.reason == reason);
        if known {
            debug!(%endpoint, reason = reason.label, text = reason.text, "refused again");
        } else {
            let (node, text) = (node.clone(), reason.text.clone());
            self.tell(Notice::ConnectionRefused { endpoint, node, reason: reason.label, text });
        }
        *self.counts.handshake_failures.entry(reason.label).or_default() += 1;
        self.members.refused(endpoint, Stranger { node, reason, unix_ms: now.unix_ms });
    }

    pub(super) fn close(&mut self, conn: ConnId, code: CloseCode, text: String) {
        self.outputs.push_back(Output::Close { conn, code, text });
    }

    /// An authenticated peer breaks the protocol.
    pub(super) fn breach(&mut self, conn: ConnId, text: String, now: Now) {
        *self.counts.handshake_failures.entry(CloseCode::Protocol.reason()).or_default() += 1;
        self.drop_tunnel(conn, CloseCode::Protocol, text, now);
    }

    /// Closes a tunnel that is up, and remembers why.
    pub(super) fn drop_tunnel(&mut self, conn: ConnId, code: CloseCode, text: String, now: Now) {
        let reason = Reason { label: code.reason(), text: text.clone() };
        self.tunnel_closed(conn, reason, now);
        self.close(conn, code, text);
    }

    pub(super) fn close_expired(&mut self, now: Now) {
        let unix = (now.unix_ms / 1000) as i64;
        let expired: Vec<(ConnId, NodeId)> = self
            .members
            .peers
            .iter()
            .filter_map(|(node, peer)| {
                let tunnel = peer.tunnel.as_ref()?;
                (tunnel.identity.not_after < unix).then(|| (tunnel.conn, node.clone()))
            })
            .collect();
        if expired.is_empty() {
            return;
        }
        for (conn, node) in expired {
            self.drop_tunnel(conn, CloseCode::Expired, format!("the certificate of {node} has expired"), now);
        }
        self.refresh(now);
    }

    /// Probes say something new of a tunnel's other end. The tunnel stays: it may be a moment of theirs, and what does not
    /// leave the mesh has no better way.
    pub(super) fn liveness(&mut self, conn: ConnId, change: Change, now: Now) {
        // who probes us is answered; what we think of it is of no use
        let Some(node) = self.members.conns.get(&conn).filter(|_| self.probed.contains_key(&conn)).cloned()
        else {
            return;
        };
        let Some(peer) = self.members.peers.get_mut(&node) else { return };
        let Some(tunnel) = peer.tunnel.as_mut().filter(|tunnel| tunnel.conn == conn) else { return };
        let was = tunnel.silent.is_some();
        tunnel.silent = match change {
            Change::Silent(silence) => Some(now.mono.checked_sub(silence).unwrap_or(now.mono)),
            Change::Alive | Change::Unknown => None,
        };
        if let Change::Silent(silence) = change {
            self.tell(Notice::PeerSilent { peer: node, elapsed_ms: silence.as_millis() as u64 });
        } else if was {
            self.tell(Notice::PeerHeard { peer: node });
        }
    }

    pub(super) fn tunnel_mut(&mut self, conn: ConnId) -> Option<&mut Tunnel> {
        let node = self.members.conns.get(&conn)?;
        self.members.peers.get_mut(node)?.tunnel.as_mut().filter(|t| t.conn == conn)
    }
}
