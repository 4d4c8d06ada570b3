//! Messages to the probing thread. std's channel is not for it: a receiver that meets a half-sent message yields until that is
//! whole, and a real-time thread yields to no sender of lower rank. Here it sleeps.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    messages: VecDeque<T>,
    closed: bool,
}

impl<T> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever sends has one of these behind an `Arc`; the receiver ends with it.
#[derive(Debug)]
pub(super) struct Sender<T>(Arc<Shared<T>>);

/// The thread's end.
#[derive(Debug)]
pub(super) struct Receiver<T>(Arc<Shared<T>>);

pub(super) fn mailbox<T>() -> (Sender<T>, Receiver<T>) {
    let state = Mutex::new(State { messages: VecDeque::new(), closed: false });
    let shared = Arc::new(Shared { state, changed: Condvar::new() });
    (Sender(shared.clone()), Receiver(shared))
}

impl<T> Sender<T> {
    /// Never waits but for somebody who is about to leave.
    pub(super) fn send(&self, message: T) {
        self.0.state().messages.push_back(message);
        self.0.changed.notify_one();
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.changed.notify_one();
    }
}

impl<T> Receiver<T> {
    /// What has come, no more than so many of them, into `taken`; waits for the first no longer than that. `false`: there is no
    /// sender any more.
    pub(super) fn take(&self, taken: &mut Vec<T>, most: usize, patience: Duration) -> bool {
        let state = self.0.state();
        let empty = |state: &mut State<T>| state.messages.is_empty() && !state.closed;
        let waited = self.0.changed.wait_timeout_while(state, patience, empty);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let count = state.messages.len().min(most);
        taken.extend(state.messages.drain(..count));
        !state.closed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn messages_come_in_order_and_bounded_and_the_end_is_told() {
        let (sender, receiver) = mailbox();
        let mut taken = Vec::new();
        let start = Instant::now();
        assert!(receiver.take(&mut taken, 2, Duration::from_millis(20)));
        assert!(taken.is_empty() && start.elapsed() >= Duration::from_millis(20));
        let thread = std::thread::spawn(move || (0..1000).for_each(|number| sender.send(number)));
        while receiver.take(&mut taken, 3, Duration::from_secs(10)) || taken.len() < 1000 {
            assert!(start.elapsed() < Duration::from_secs(10));
        }
        thread.join().unwrap();
        assert_eq!(taken, (0..1000).collect::<Vec<_>>());
    }
}
