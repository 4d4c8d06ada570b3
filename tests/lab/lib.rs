//! The lab: virtual hypervisors made of network namespaces.
//!
//! ```text
//!   inet 192.0.2.80 ---- 192.0.2.1  gw  198.51.100.1 (bridge br0)
//!   2001:db8:80::80                     |        |        |
//!                                   ph1 .11   ph2 .12   ph3 .13     eth0: the underlay
//!                                       |        |        |
//!                                   vmnet1    vmnet1    vmnet1      host-only bridges
//!                                    |  |       ...       ...
//!                                  vm1  vm1b                        eth0: one namespace a VM
//! ```
//!
//! [`world`] builds and destroys it, [`node`] runs the real daemon in it, [`capture`] looks at wires,
//! [`serve`] is what answers at the other end. The netns tests and the `mesh-lab` binary use it.
#![expect(clippy::disallowed_methods, reason = "the lab runs in real time")]

pub mod bench;
pub mod capture;
pub mod command;
pub mod delay;
pub mod demo;
mod download;
pub mod node;
pub mod prometheus;
pub mod serve;
pub mod spec;
pub mod steady;
pub mod stream;
pub mod train;
pub mod world;

pub use capture::Capture;
pub use command::Outcome;
pub use spec::{Host, Net, Offer, Plan, Vm};
pub use world::{Lab, wait_until};
