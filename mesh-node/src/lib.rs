//! The daemon's parts. `forward` and `control` are pure and decide; `io` has the syscalls, sockets and the clock and
//! makes no choices; the two loops are the only places where deciding meets doing. `node` builds and connects them.
//!
//! ```text
//!        mesh-node/forward, tunnel ◄── control          pure
//!                  ▲    ▲              ▲    ▲
//!                  │    └───── io ─────┘    │           syscalls, sockets, clock
//!             packet_loop             control_loop
//!                       ▲               ▲
//!                       └──── node ─────┘  ◄── main
//! ```

pub mod config;
pub mod control;
pub mod control_loop;
pub mod devices;
pub mod forward;
pub mod io;
pub mod node;
pub mod packet_loop;
pub mod prepare;
mod reload;
pub mod tunnel;
