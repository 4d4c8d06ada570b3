//! What quinn takes for its socket: sends on the shared one, receives what the lanes thread has for it.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use nix::errno::Errno;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::socket::LaneSocket;

/// Bytes that may wait for quinn's task: of connections that are up, and of handshakes. Whoever knocks cannot crowd out who is
/// in.
const MAX_WAITING: usize = 4 << 20;
const MAX_KNOCKING: usize = 512 << 10;

/// What a message costs beside its bytes, at most: tiny ones must not hold many times the bound.
const OVERHEAD: usize = 256;

/// Messages of connections that are up for each one of a handshake, where both wait.
const TURNS: u32 = 8;

/// quinn's side of the socket.
#[derive(Debug)]
pub struct Port {
    socket: Arc<LaneSocket>,
    /// The socket was full at the last try.
    blocked: AtomicBool,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Line,
    knocking: Line,
    /// Messages handed over since the last one of a handshake.
    turn: u32,
    waker: Option<Waker>,
}

impl Queue {
    fn pop(&mut self) -> Option<(RecvMeta, Vec<u8>)> {
        let first = if self.turn < TURNS { &mut self.waiting } else { &mut self.knocking };
        if let Some(message) = first.pop() {
            self.turn = if self.turn < TURNS { self.turn + 1 } else { 0 };
            return Some(message);
        }
        self.turn = 0;
        self.waiting.pop().or_else(|| self.knocking.pop())
    }
}

/// Messages in order, and their bytes.
#[derive(Debug, Default)]
struct Line {
    messages: VecDeque<(RecvMeta, Vec<u8>)>,
    bytes: usize,
}

impl Line {
    fn push(&mut self, meta: RecvMeta, bytes: &[u8], limit: usize) -> bool {
        let cost = bytes.len() + OVERHEAD;
        let fits = self.bytes + cost <= limit;
        if fits {
            self.bytes += cost;
            self.messages.push_back((RecvMeta { len: bytes.len(), ..meta }, bytes.to_vec()));
        }
        fits
    }

    fn pop(&mut self) -> Option<(RecvMeta, Vec<u8>)> {
        let message = self.messages.pop_front()?;
        self.bytes -= message.1.len() + OVERHEAD;
        Some(message)
    }
}

impl Port {
    /// On the shared socket.
    pub fn new(socket: Arc<LaneSocket>) -> Self {
        Self { socket, blocked: AtomicBool::new(false), queue: Mutex::default() }
    }

    /// Gives quinn datagrams of one size (`meta.stride`, the last may be shorter) that are no lane's; `false` when its queue is
    /// full.
    pub fn push(&self, meta: RecvMeta, bytes: &[u8]) -> bool {
        let long_header = bytes.first().is_some_and(|first| first & 0x80 != 0);
        let (taken, waker) = {
            let mut queue = self.queue();
            let (line, limit) = match long_header {
                true => (&mut queue.knocking, MAX_KNOCKING),
                false => (&mut queue.waiting, MAX_WAITING),
            };
            (line.push(meta, bytes, limit), queue.waker.take())
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        taken
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncUdpSocket for Port {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller { port: self, ready: Mutex::new(None) })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match self.socket.try_send(transmit) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.blocked.store(true, Relaxed);
                Err(error)
            }
            Err(error) if error.raw_os_error() != Some(Errno::EMSGSIZE as i32) => {
                // quinn would end its endpoint for an error that is a peer's alone; it sends again what was lost
                tracing::debug!(%error, destination = %transmit.destination, "a QUIC datagram was not sent");
                Ok(())
            }
            // too large: a probe of the path MTU, whose answer this is
            _ => Ok(()),
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut queue = self.queue();
        let mut count = 0;
        for (buffer, meta) in buffers.iter_mut().zip(meta) {
            let message = loop {
                match queue.pop() {
                    // larger than quinn has announced that it takes
                    Some((_, bytes)) if bytes.len() > buffer.len() => {}
                    other => break other,
                }
            };
            let Some((of, bytes)) = message else { break };
            buffer[..bytes.len()].copy_from_slice(&bytes);
            *meta = of;
            count += 1;
        }
        if count == 0 {
            queue.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.state().max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.state().gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.state().may_fragment()
    }
}

/// How long the socket is not tried again where no descriptor is left to wait with.
const NO_DESCRIPTOR: Duration = Duration::from_millis(1);

/// Waits for room in the socket. The runtime hears of it only while somebody waits: a standing registration would wake a thread
/// of it for each train that has left.
struct Poller {
    port: Arc<Port>,
    ready: Mutex<Option<Waiting>>,
}

type Waiting = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

impl std::fmt::Debug for Poller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Poller").finish_non_exhaustive()
    }
}

impl UdpPoller for Poller {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let slot = this.ready.get_mut().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            if !this.port.blocked.load(Relaxed) {
                return Poll::Ready(Ok(()));
            }
            // an error would end the connection's timers with its driver, and leave it as if alive
            let socket = this.port.socket.duplicate().and_then(tokio::net::UdpSocket::from_std);
            *slot = Some(Box::pin(async move {
                match socket {
                    Ok(socket) => socket.writable().await,
                    Err(_) => {
                        tokio::time::sleep(NO_DESCRIPTOR).await;
                        Ok(())
                    }
                }
            }));
        }
        let Some(waiting) = slot else { return Poll::Ready(Ok(())) };
        let Poll::Ready(result) = waiting.as_mut().poll(cx) else { return Poll::Pending };
        *slot = None;
        this.port.blocked.store(false, Relaxed);
        Poll::Ready(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port() -> Port {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        Port::new(Arc::new(LaneSocket::new(socket, crate::config::offloads::Offloads::ALL).unwrap()))
    }

    fn received(port: &Port) -> Vec<Vec<u8>> {
        let mut room = vec![vec![0; 2000]; 32];
        let mut buffers: Vec<_> = room.iter_mut().map(|room| IoSliceMut::new(room)).collect();
        let mut meta = [RecvMeta::default(); 32];
        let mut context = Context::from_waker(Waker::noop());
        match port.poll_recv(&mut context, &mut buffers, &mut meta) {
            Poll::Ready(count) => {
                let count = count.unwrap();
                (0..count).map(|at| room[at][..meta[at].len].to_vec()).collect()
            }
            Poll::Pending => Vec::new(),
        }
    }

    #[test]
    fn who_knocks_cannot_crowd_out_who_is_in() {
        let port = port();
        let meta = RecvMeta { stride: 1200, ..RecvMeta::default() };
        let initial = [0xc0; 1200];
        let taken = (0..10_000).take_while(|_| port.push(meta, &initial)).count();
        assert_eq!(taken, MAX_KNOCKING / (1200 + OVERHEAD));
        assert!(port.push(meta, &[0x40; 100]));
        // and comes first
        assert_eq!(received(&port)[0], [0x40; 100]);
        assert!(port.push(meta, &initial), "there is room again");
        let mut all = 0;
        while !received(&port).is_empty() {
            all += 1;
        }
        assert!(all > 0 && port.push(meta, &initial));
    }

    #[test]
    fn a_flood_of_tiny_datagrams_is_bounded_by_what_it_costs_and_leaves_handshakes_their_turn() {
        let port = port();
        let meta = RecvMeta { stride: 1, ..RecvMeta::default() };
        let taken = (0..1_000_000).take_while(|_| port.push(meta, &[0x40])).count();
        assert_eq!(taken, MAX_WAITING / (1 + OVERHEAD));
        assert!(port.push(meta, &[0xc0]));
        assert!(received(&port).contains(&vec![0xc0]), "among the first 32");
    }

    #[test]
    fn what_is_larger_than_quinn_takes_is_left_out_and_nothing_else() {
        let port = port();
        for len in [10, 3000, 20] {
            assert!(port.push(RecvMeta { stride: len, ..RecvMeta::default() }, &vec![0x40; len]));
        }
        let lens: Vec<usize> = received(&port).iter().map(Vec::len).collect();
        assert_eq!(lens, [10, 20]);
        assert!(received(&port).is_empty());
    }
}
