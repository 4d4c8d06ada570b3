//! The operator's word on egress: this node carries, whatever the order says, as long as it is alive.

use std::collections::BTreeSet;

use mesh_proto::{NetworkName, NodeId, suggest};

use crate::control::Control;
use crate::control::event::Now;
use crate::notice::Notice;

impl Control {
    /// Forces a node, or with none leaves it to the order again: for one network, or for all that have such a candidate.
    /// Says what was done.
    pub fn egress_use(
        &mut self,
        node: Option<NodeId>,
        network: Option<&NetworkName>,
        now: Now,
    ) -> Result<String, String> {
        let here = |name: &NetworkName| network.is_none_or(|wanted| wanted == name);
        let Some(node) = node else {
            let networks: Vec<NetworkName> = self.roles.used.keys().filter(|n| here(n)).cloned().collect();
            for network in &networks {
                self.roles.used.remove(network);
                self.tell(Notice::EgressFreed { network: network.clone() });
            }
            self.changed(now);
            return Ok(match networks.len() {
                0 => "egress was left to the order already".to_owned(),
                _ => "egress is left to the order again".to_owned(),
            });
        };
        let with =
            self.roles.all().filter(|(name, e)| here(name) && e.candidates.iter().any(|c| c.node == node));
        let networks: BTreeSet<NetworkName> = with.map(|(name, _)| name.clone()).collect();
        if networks.is_empty() {
            let candidates = self.roles.all().filter(|(name, _)| here(name));
            let names = candidates.flat_map(|(_, e)| &e.candidates).map(|c| c.node.as_str());
            let hint = suggest::or_else(node.as_str(), names, "`mesh-ctl egress` lists the candidates");
            return Err(format!("{node} is no egress node for a network here: {hint}"));
        }
        for network in &networks {
            self.roles.used.insert(network.clone(), node.clone());
            self.tell(Notice::EgressForced { network: network.clone(), to: node.clone() });
        }
        self.changed(now);
        let list = networks.iter().map(NetworkName::as_str).collect::<Vec<_>>().join(", ");
        Ok(format!("{node} carries {list} while it is healthy: `mesh-ctl egress use auto` undoes it"))
    }

    fn changed(&mut self, now: Now) {
        self.refresh(now);
        self.save();
        self.handle_timeout(now);
    }
}
