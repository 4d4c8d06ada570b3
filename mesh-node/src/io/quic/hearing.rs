//! Whether all that peers have sent to our UDP socket has been read. A node that did not run, or not the thread that reads, has
//! heard nothing: that is its own silence, not its peers'.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::io::atomic_instant::AtomicInstant;

/// Not read for so long, with more waiting than one call takes: the socket's buffer may have been full, and what came then is
/// lost. At 1.8 Gb/s it is full after 9 ms.
const GAP: Duration = Duration::from_millis(20);

/// What is known of a socket's reader.
#[derive(Debug)]
pub struct Hearing {
    /// To look at: the same socket.
    socket: Option<UdpSocket>,
    /// The reader has taken all that it was offered.
    idle: AtomicBool,
    /// When the reader was served last, and until when it was deaf; at first when it was made.
    served: AtomicInstant,
    deaf_until: AtomicInstant,
}

impl Hearing {
    /// Of the reader of a socket; without one, of a reader that misses nothing.
    pub fn new(socket: Option<UdpSocket>) -> Self {
        Self {
            socket,
            idle: AtomicBool::new(true),
            served: AtomicInstant::default(),
            deaf_until: AtomicInstant::default(),
        }
    }

    /// The reader has asked for as many messages as there is `room` for, and gets so many; `None`: it has to wait.
    pub fn served(&self, count: Option<usize>, room: usize) {
        let now = Instant::now();
        let before = self.served.replace(now);
        self.idle.store(count.is_none(), Relaxed);
        let full = count.is_some_and(|count| count >= room);
        if full && now.saturating_duration_since(before) >= GAP {
            self.deaf_until.set(now);
        }
    }

    /// Nothing waits, neither in the kernel nor with the reader.
    pub fn has_read_all(&self) -> bool {
        let empty = |socket: &UdpSocket| {
            // the socket does not block; what is looked at stays
            socket.peek(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
        };
        self.idle.load(Relaxed) && self.socket.as_ref().is_none_or(empty)
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
        let hearing = Hearing::new(Some(socket.try_clone().unwrap()));
        assert!(hearing.has_read_all());
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        assert!(!hearing.has_read_all() && !hearing.has_read_all(), "looking takes nothing");
        socket.recv(&mut [0; 4]).unwrap();
        hearing.served(Some(1), 32);
        assert!(!hearing.has_read_all(), "read, and not passed on");
        hearing.served(None, 32);
        assert!(hearing.has_read_all());
    }

    #[test]
    fn a_reader_that_returns_to_a_full_socket_was_deaf() {
        let hearing = Hearing::new(None);
        let never = hearing.deaf_until();
        hearing.served(None, 32);
        std::thread::sleep(GAP);
        hearing.served(Some(31), 32);
        assert_eq!(hearing.deaf_until(), never, "it was asleep");
        std::thread::sleep(GAP);
        hearing.served(Some(32), 32);
        assert!(hearing.deaf_until() >= never + 2 * GAP);
    }
}
