//! Whether all that peers have sent to our UDP socket has been read. A node that did not run, or not the thread that reads, has
//! heard nothing: that is its own silence, not its peers'.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::io::atomic_instant::AtomicInstant;

/// Not read for so long, with at least this many messages waiting: the socket's buffer may have been full, and what came then is
/// lost. At 1.8 Gb/s it is full after 9 ms.
const GAP: Duration = Duration::from_millis(20);
const MANY: usize = 32;

const NO_GAP: usize = usize::MAX;

/// What is known of a socket's reader.
#[derive(Debug)]
pub struct Hearing {
    /// To look at: the same socket.
    socket: Option<UdpSocket>,
    /// Reads what this reader passes on.
    next: Option<Arc<Hearing>>,
    /// The reader has taken all that it was offered.
    idle: AtomicBool,
    /// Messages taken since it returned after a gap; `NO_GAP`: it has emptied the socket since.
    after_gap: AtomicUsize,
    /// When the reader was served last, and until when it was deaf; at first when it was made.
    served: AtomicInstant,
    deaf_until: AtomicInstant,
}

impl Hearing {
    /// Of the reader of a socket; without one, of a reader that misses nothing. `next` reads what that one passes on.
    pub fn new(socket: Option<UdpSocket>, next: Option<Arc<Self>>) -> Self {
        Self {
            socket,
            next,
            idle: AtomicBool::new(true),
            after_gap: AtomicUsize::new(NO_GAP),
            served: AtomicInstant::default(),
            deaf_until: AtomicInstant::default(),
        }
    }

    /// The reader is given so many messages; `None`: it has to wait.
    pub fn served(&self, count: Option<usize>) {
        let now = Instant::now();
        let before = self.served.replace(now);
        self.idle.store(count.is_none(), Relaxed);
        let Some(count) = count else {
            return self.after_gap.store(NO_GAP, Relaxed);
        };
        let gap = now.saturating_duration_since(before) >= GAP;
        let so_far = if gap { 0 } else { self.after_gap.load(Relaxed) };
        let taken = so_far.saturating_add(count);
        self.after_gap.store(taken, Relaxed);
        if so_far != NO_GAP && taken >= MANY {
            self.deaf_until.set(now);
            self.after_gap.store(NO_GAP, Relaxed);
        }
    }

    /// Nothing waits, neither in the kernel nor with a reader.
    pub fn has_read_all(&self) -> bool {
        let empty = |socket: &UdpSocket| {
            // the socket does not block; what is looked at stays
            socket.peek(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
        };
        let passed_on = self.next.as_ref().is_none_or(|next| next.has_read_all());
        self.idle.load(Relaxed) && passed_on && self.socket.as_ref().is_none_or(empty)
    }

    /// Until when this node may have missed what was sent to it; long ago: never.
    pub fn deaf_until(&self) -> Instant {
        self.deaf_until.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_in_the_socket_or_with_its_reader_is_unread() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let hearing = Hearing::new(Some(socket.try_clone().unwrap()), None);
        assert!(hearing.has_read_all());
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        assert!(!hearing.has_read_all() && !hearing.has_read_all(), "looking takes nothing");
        socket.recv(&mut [0; 4]).unwrap();
        hearing.served(Some(1));
        assert!(!hearing.has_read_all(), "read, and not passed on");
        hearing.served(None);
        assert!(hearing.has_read_all());
    }

    #[test]
    fn what_was_passed_on_is_unread_until_the_next_reader_has_it() {
        let next = Arc::new(Hearing::new(None, None));
        let hearing = Hearing::new(None, Some(next.clone()));
        assert!(hearing.has_read_all());
        next.served(Some(1));
        assert!(!hearing.has_read_all());
        next.served(None);
        assert!(hearing.has_read_all());
    }

    #[test]
    fn a_reader_that_returns_to_a_full_socket_was_deaf() {
        for at_once in [4, 32] {
            let hearing = Hearing::new(None, None);
            let never = hearing.deaf_until();
            let read = |messages: usize| {
                hearing.served(None);
                std::thread::sleep(GAP);
                for _ in 0..messages / at_once {
                    hearing.served(Some(at_once));
                }
                hearing.served(Some(messages % at_once));
            };
            read(MANY - 1);
            assert_eq!(hearing.deaf_until(), never, "it was asleep");
            hearing.served(None);
            (0..10).for_each(|_| hearing.served(Some(at_once)));
            assert_eq!(hearing.deaf_until(), never, "it has been there all the time");
            read(MANY);
            assert!(hearing.deaf_until() >= never + 2 * GAP, "{at_once} a call");
        }
    }
}
