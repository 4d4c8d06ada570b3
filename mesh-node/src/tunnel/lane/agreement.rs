//! When a lane is made, announced and used: one state machine a connection, the same on both sides.
//!
//! ```text
//!  A: can receive lane n --- LaneReady n --->  B: makes lane n too, can receive it
//!     sends on lane n    <-- LaneReady n ----     sends on lane n, since A can receive it
//! ```
//!
//! Whoever has used half of a lane begins with the next one; both may at once. A side sends on a lane only after the other
//! has said that it can receive it, and receives on the lane before until that has had time to run empty: nothing is lost.

use super::LaneId;
use super::cipher::Cipher;
use super::keys::{Lane, Ratchet};
use super::open::Opener;
use super::seal::Sealer;

/// What is to be done, in order.
#[derive(Debug)]
pub enum Step {
    /// Be able to receive the lane; the one before it ends a while later.
    Receive {
        /// The lane.
        number: u32,
        /// What its packets to us bear.
        id: LaneId,
        /// Opens them.
        opener: Box<Opener>,
    },
    /// Tell the peer that we can.
    Announce(u32),
    /// Send on the lane from now on.
    Send {
        /// The lane.
        number: u32,
        /// Protects its packets.
        sealer: Sealer,
    },
}

/// The peer announced a lane whose turn it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("lane {0} was announced out of turn")]
pub struct OutOfTurn(pub u32);

/// One connection's lanes.
#[derive(Debug)]
pub struct Agreement {
    ratchet: Ratchet,
    started: bool,
    /// Lanes made.
    made: u32,
    /// Lanes the peer can receive.
    ready: u32,
    /// The newest lane's sending end, until the peer is ready.
    waiting: Option<Sealer>,
}

impl Agreement {
    /// Nothing is made yet.
    pub fn new(ratchet: Ratchet) -> Self {
        Self { ratchet, started: false, made: 0, ready: 0, waiting: None }
    }

    /// What the lanes are protected with.
    pub fn cipher(&self) -> Cipher {
        self.ratchet.cipher()
    }

    /// This node is able to take packets from the peer.
    pub fn start(&mut self) -> Vec<Step> {
        let first = !std::mem::replace(&mut self.started, true);
        if first { self.make() } else { Vec::new() }
    }

    /// Half of a lane's packets have been sent.
    pub fn handle_half_used(&mut self, number: u32) -> Vec<Step> {
        let newest = number + 1 == self.made;
        if newest && self.waiting.is_none() { self.make() } else { Vec::new() }
    }

    /// The peer can receive a lane.
    pub fn handle_ready(&mut self, number: u32) -> Result<Vec<Step>, OutOfTurn> {
        // one at a time, and never further than one lane ahead of ours
        if number != self.ready || number > self.made {
            return Err(OutOfTurn(number));
        }
        self.ready += 1;
        if number == self.made {
            return Ok(if self.started { self.make() } else { Vec::new() });
        }
        let sealer = self.waiting.take();
        Ok(sealer.map(|sealer| Step::Send { number, sealer }).into_iter().collect())
    }

    fn make(&mut self) -> Vec<Step> {
        let Lane { number, sealer, opener, id } = self.ratchet.next_lane();
        self.made += 1;
        let mut steps = vec![Step::Receive { number, id, opener: Box::new(opener) }, Step::Announce(number)];
        if self.ready == self.made {
            steps.push(Step::Send { number, sealer });
        } else {
            self.waiting = Some(sealer);
        }
        steps
    }
}
