//! Tells notices: to the log, and to those who read `mesh-ctl monitor`. As the log it writes to, there is one a process, so that
//! a packet thread and the tear-down can tell as well as the control loop.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use mesh_proto::api::Event;
use tokio::sync::broadcast;

use super::now;
use crate::notice::Notice;
use crate::notice::limits::{Limits, QUIET};

/// Notices kept for a reader that is behind. A loss of all peers at once is some hundred.
pub const BEHIND: usize = 1024;

/// A notice as it was told.
#[derive(Debug, Clone)]
pub struct Told {
    notice: Arc<Notice>,
    suppressed: u64,
    unix_ms: u64,
}

impl Told {
    /// As a line of the event stream.
    pub fn event(&self) -> Event {
        self.notice.event(self.suppressed, self.unix_ms)
    }
}

struct Hub {
    limits: Mutex<Limits>,
    readers: broadcast::Sender<Told>,
}

static HUB: LazyLock<Hub> =
    LazyLock::new(|| Hub { limits: Mutex::default(), readers: broadcast::channel(BEHIND).0 });

/// Tells a notice, unless its kind has been told too often.
pub fn tell(notice: Notice) {
    let now = now();
    let admitted = HUB.limits.lock().unwrap_or_else(PoisonError::into_inner).admit(&notice, now.mono);
    let Some(suppressed) = admitted else { return };
    notice.log(suppressed);
    // nobody listens: no failure
    let _ = HUB.readers.send(Told { notice: Arc::new(notice), suppressed, unix_ms: now.unix_ms });
}

/// What is told from here on; a reader that falls more than `BEHIND` behind loses the oldest and learns how many.
pub fn subscribe() -> broadcast::Receiver<Told> {
    HUB.readers.subscribe()
}

/// For good: tells how many were held back, once they have stopped coming.
pub async fn settle() {
    loop {
        tokio::time::sleep(SETTLE).await;
        let quiet = HUB.limits.lock().unwrap_or_else(PoisonError::into_inner).settle(now().mono);
        quiet.into_iter().for_each(tell);
    }
}

/// At a stop: tells how many were held back, quiet or not.
pub fn settle_at_once() {
    let rest = HUB.limits.lock().unwrap_or_else(PoisonError::into_inner).settle(now().mono + QUIET);
    rest.into_iter().for_each(tell);
}

/// How often it is looked whether it has become quiet.
const SETTLE: Duration = Duration::from_millis(QUIET.as_millis() as u64 / 4);
