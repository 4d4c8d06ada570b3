//! What comes beside packets on a connection: echoes and probes. The reader task takes them out.

use std::sync::Arc;

use bytes::Bytes;

use super::echo::Echoes;
use crate::control::event::ConnId;
use crate::io::liveness::{Heard, Prober};

/// Where they go.
#[derive(Debug, Default, Clone)]
pub struct Aside {
    /// Those that wait for an answer.
    pub echoes: Arc<Echoes>,
    /// When anything came last.
    pub heard: Arc<Heard>,
    probes: Option<(ConnId, Prober)>,
}

impl Aside {
    /// Of a connection whose probes go there.
    pub fn new(conn: ConnId, prober: Prober) -> Self {
        Self { probes: Some((conn, prober)), ..Self::default() }
    }

    /// Handles a frame that is no packet; `false` if it is one, or nonsense. Called for every frame: it looks at two bytes of a
    /// packet's.
    pub fn took(&self, connection: &quinn::Connection, frame: &Bytes) -> bool {
        let probed =
            || self.probes.as_ref().is_some_and(|(conn, prober)| prober.took(*conn, &self.heard, frame));
        self.echoes.took(connection, frame) || probed()
    }
}
