//! What mesh nodes, and `mesh-ctl`, must agree on: names, certificates, records, wire formats and packet views.
//!
//! The promise of this crate: no I/O, no clock, no unsafe code, and no panic on foreign bytes.
#![forbid(unsafe_code)]

pub mod api;
pub mod codec;
pub mod frame;
pub mod hello;
pub mod id;
pub mod identity;
pub mod ip;
pub mod limits;
pub mod liveness;
pub mod prefix;
pub mod record;
pub mod suggest;
pub mod trace;

pub use id::{MeshId, NetworkName, NodeId};
pub use prefix::Prefix;
