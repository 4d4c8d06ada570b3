//! What is known becomes what packets and the kernel see, and what is kept on disk.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_proto::NetworkName;

use super::event::{Now, Output, Saved, Target, TunnelSpec};
use super::{Control, kernel, members, rib};
use crate::forward::fib::NetworkSpec;

impl Control {
    /// Computes anew what packets and the kernel should see, and puts it out where it differs. Packets first: no packet
    /// reaches a TUN before the snapshot can place it. `control_loop` reads from a new tunnel after the kernel has followed.
    pub(super) fn refresh(&mut self, now: Now) {
        for endpoint in self.members.recognise_seeds() {
            self.outputs.push_back(Output::CancelDial(Target::Seed(endpoint)));
        }
        self.elect(now);
        let mut networks: Vec<Option<NetworkSpec>> = Vec::new();
        for network in &self.local.networks {
            let slot = usize::from(network.ix.0);
            networks.resize_with(networks.len().max(slot + 1), || None);
            let elected = self.roles.elections(&network.name);
            networks[slot] = Some(rib::network_spec(&self.local, network, &self.members, elected));
        }
        let tunnels = self.tunnel_specs();
        if self.published.0 != networks || self.published.1 != tunnels {
            self.published.0.clone_from(&networks);
            self.published.1.clone_from(&tunnels);
            self.outputs.push_back(Output::Publish { networks, tunnels });
        }
        self.probe();
        let host = kernel::host_state(&self.local, &self.members, &self.roles, &self.offers);
        if *self.published.2 != host {
            self.published.2 = Arc::new(host);
            self.outputs.push_back(Output::SyncHost(self.published.2.clone()));
        }
        self.own_flows_move();
    }

    /// Egress nodes in use and their standbys are probed: everybody feels when one fails.
    fn probe(&mut self) {
        let wanted = self.members.carriers.iter().filter_map(|node| {
            let conn = self.members.peers.get(node)?.tunnel.as_ref()?.conn;
            let mut seeds = self.members.seeds.iter().filter(|(_, seed)| seed.node.as_ref() == Some(node));
            let own = seeds.find_map(|(endpoint, _)| self.local.probes.get(endpoint));
            Some((conn, *own.unwrap_or(&self.local.probe)))
        });
        let wanted: BTreeMap<_, _> = wanted.collect();
        if wanted != self.probed {
            self.probed.clone_from(&wanted);
            self.outputs.push_back(Output::Probe(wanted));
        }
    }

    /// Tunnels that packets may travel by: those of peers whose record is known. Without it there is nothing to send there and
    /// nothing to accept from there; and who reads from a new tunnel waits for the routes that the record brings, no longer.
    fn tunnel_specs(&self) -> Vec<TunnelSpec> {
        let slots = self.local.networks.iter().map(|n| usize::from(n.ix.0) + 1).max().unwrap_or(0);
        let spec = |peer: &members::Peer| {
            let (tunnel, _) = peer.tunnel.as_ref().zip(peer.record.as_ref())?;
            let theirs =
                |name: &NetworkName| tunnel.hello.networks.iter().find(|n| n.name == *name).map(|n| n.handle);
            let mut handles = vec![None; slots];
            for network in &self.local.networks {
                handles[usize::from(network.ix.0)] = theirs(&network.name);
            }
            Some(TunnelSpec { peer: peer.ix, conn: tunnel.conn, handles })
        };
        self.members.peers.values().filter_map(spec).collect()
    }

    pub(super) fn save(&mut self) {
        let runtime = self.members.seeds.iter().filter(|(_, s)| s.runtime);
        let known = self.members.peers.values().filter_map(|p| p.record.as_ref());
        let saved = Saved {
            peers: runtime.map(|(e, _)| e.clone()).collect(),
            removed: self.members.removed.iter().cloned().collect(),
            egress_used: self.roles.used.clone(),
            egress_drained: self.offers.drain.wanted(),
            egress_elected: self.roles.saved(),
            records: std::iter::once(&self.own).chain(known).map(|r| r.signed.clone()).collect(),
        };
        self.outputs.push_back(Output::Save(saved));
    }
}
