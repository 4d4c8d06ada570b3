//! The queues of one network's TUN.

use std::sync::Arc;

use crate::io::tun::Tun;

/// At least one, and at most one for each worker.
#[derive(Debug, Clone)]
pub(super) struct Queues(Arc<(Arc<Tun>, Vec<Arc<Tun>>)>);

impl Queues {
    /// `None` without a queue.
    pub(super) fn new(queues: Vec<Arc<Tun>>) -> Option<Self> {
        let mut queues = queues.into_iter();
        Some(Self(Arc::new((queues.next()?, queues.collect()))))
    }

    /// How many there are.
    pub(super) fn len(&self) -> u8 {
        self.0.1.len().saturating_add(1).min(usize::from(u8::MAX)) as u8
    }

    /// That of a worker; the last one for a worker that has none of its own.
    pub(super) fn of(&self, worker: u8) -> &Arc<Tun> {
        let (first, more) = &*self.0;
        let place = usize::from(worker).min(more.len());
        place.checked_sub(1).and_then(|place| more.get(place)).unwrap_or(first)
    }

    /// Ends the wait of all their readers.
    pub(super) fn wake(&self) {
        (0..self.len()).for_each(|worker| self.of(worker).wake());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn a_worker_without_a_queue_of_its_own_has_the_last_one() {
        assert!(Queues::new(Vec::new()).is_none());
        let tun = |name| Arc::new(Tun::from_fd(UnixDatagram::pair().unwrap().0.into(), name).unwrap());
        let queues = Queues::new(["0", "1", "2"].map(tun).into()).unwrap();
        assert_eq!(queues.len(), 3);
        assert_eq!([0, 1, 2, 3, 255].map(|worker| queues.of(worker).name()), ["0", "1", "2", "2", "2"]);
        let one = Queues::new(vec![tun("0")]).unwrap();
        assert_eq!([0, 1].map(|worker| one.of(worker).name()), ["0", "0"]);
    }
}
