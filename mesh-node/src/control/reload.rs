//! The node's own facts change while it runs: networks, announced addresses, egress, peers of the file, certificate.
//!
//! The generation stays: connections go on, and what they carry is told to peers by `Networks` and a new record.

use mesh_proto::NodeId;
use mesh_proto::hello::{CloseCode, Message, NetworkHandle};

use super::event::{ConnId, LocalNode, Now, Output, Target};
use super::exchange::unix_time;
use super::members::Seed;
use super::sessions::Dialer;
use super::{Control, Trust};
use crate::notice::Notice;

impl Control {
    /// Puts new facts in the place of the old ones; the name stays.
    pub(super) fn reload(&mut self, local: LocalNode, trust: Trust, now: Now) {
        let handles = self.handles();
        let generation = self.local.generation;
        let authority = self.trust.roots != trust.roots;
        self.local = LocalNode { generation, ..local };
        self.trust = trust;
        self.reload_seeds(now);
        if authority {
            self.forget_untrusted(now);
        }
        self.outputs.push_back(Output::Hello(self.hello()));
        if self.handles() != handles {
            // a handshake under way says the old ones: from now on each new tunnel is told as well
            self.renumbered = true;
            let conns: Vec<ConnId> = self.members.conns.keys().copied().collect();
            conns.into_iter().for_each(|conn| self.send_networks(conn));
        }
        self.announce(false, now);
    }

    fn handles(&self) -> Vec<NetworkHandle> {
        self.hello().networks
    }

    pub(super) fn send_networks(&mut self, conn: ConnId) {
        let message = Message::Networks(self.handles());
        self.outputs.push_back(Output::Send { conn, message });
    }

    /// Peers of the file come and go; those added at run time stay.
    fn reload_seeds(&mut self, now: Now) {
        let written = self.local.seeds.clone();
        let gone: Vec<String> = self
            .members
            .seeds
            .iter()
            .filter(|(endpoint, seed)| !seed.runtime && !written.iter().any(|(e, _)| e == *endpoint))
            .map(|(endpoint, _)| endpoint.clone())
            .collect();
        for endpoint in gone {
            self.members.seeds.remove(&endpoint);
            self.outputs.push_back(Output::CancelDial(Target::Seed(endpoint)));
        }
        for (endpoint, name) in written {
            let fresh = |node: Option<NodeId>| Seed {
                pinned: node.is_some(),
                node,
                runtime: false,
                dialer: Dialer::new(now.mono),
                reason: None,
            };
            let seed = self.members.seeds.entry(endpoint.clone()).or_insert_with(|| fresh(name.clone()));
            seed.runtime = false;
            seed.pinned = name.is_some();
            if name.is_some() && seed.node != name {
                self.outputs.push_back(Output::CancelDial(Target::Seed(endpoint)));
                *seed = fresh(name.clone());
            }
            // who is named in the file is wanted
            if let Some(name) = &name {
                self.members.removed.remove(name);
            }
        }
    }

    /// Other CAs count: what only the former ones vouch for goes.
    fn forget_untrusted(&mut self, now: Now) {
        let mut dropped = Vec::new();
        let mut told = Vec::new();
        for (node, peer) in &mut self.members.peers {
            let Some(known) = &peer.record else {
                // nothing of it can be verified anew: a dial does
                dropped.extend(peer.tunnel.as_ref().map(|t| (t.conn, node.clone())));
                continue;
            };
            match known.signed.clone().verify(&self.trust.roots, unix_time(now.unix_ms)) {
                Ok(verified) => peer.record = Some(verified),
                Err(error) => {
                    told.push(Notice::PeerDistrusted { peer: node.clone(), error: error.to_string() });
                    peer.record = None;
                    dropped.extend(peer.tunnel.as_ref().map(|t| (t.conn, node.clone())));
                }
            }
        }
        told.into_iter().for_each(|notice| self.tell(notice));
        for (conn, node) in dropped {
            let text = format!("the CAs have changed, and nothing shows that one of them vouches for {node}");
            self.drop_tunnel(conn, CloseCode::Mesh, text, now);
        }
    }
}
