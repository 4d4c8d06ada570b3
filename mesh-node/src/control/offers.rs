//! How this node's own offers of egress are: what it tells of them to those who would use them.

use std::collections::BTreeMap;

use mesh_proto::record::{Condition, UplinkFault};

use super::drain::Drain;
use crate::config::EgressConfig;

/// What keeps own offers from being used.
#[derive(Debug, Default)]
pub struct Offers {
    /// Uplinks that do not carry, by interface: what is wrong, and milliseconds from the last proof that it carried until
    /// that was found.
    faults: BTreeMap<String, (UplinkFault, u32)>,
    /// The operator, or a stop, takes all of them out of use.
    pub drain: Drain,
}

impl Offers {
    /// What is told of an offer.
    pub fn condition(&self, offer: &EgressConfig) -> Condition {
        let uplink = match self.faults.get(&offer.interface) {
            Some((fault, for_ms)) => Condition::UplinkDown { fault: *fault, for_ms: *for_ms },
            None => Condition::Healthy,
        };
        // the worse of both
        uplink.max(self.drain.condition())
    }
}
