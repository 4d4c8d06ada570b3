//! How a packet's verdict gets at the flows of its network, which others may be at as well.

use super::Flows;

/// Lends the flows of a network.
pub trait FlowAccess {
    /// For as long as `look` takes: one flow is looked up, and nothing is waited for. Once for a packet that goes to the Internet,
    /// once more where that flow is to be forgotten, and not at all for others.
    fn flows<T>(&mut self, look: impl FnOnce(&mut Flows) -> T) -> T;
}

/// Flows that nobody else is at.
impl FlowAccess for Flows {
    fn flows<T>(&mut self, look: impl FnOnce(&mut Flows) -> T) -> T {
        look(self)
    }
}
