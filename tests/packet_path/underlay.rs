//! An underlay between A and B that loses, copies and delays what A sends, as it is told to.

use std::collections::VecDeque;
use std::net::UdpSocket;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use proptest::prelude::*;

use super::*;

/// What becomes of a datagram.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fate {
    Pass,
    Lost,
    Twice,
    /// It comes after so many that were sent later.
    Late(usize),
}

pub(super) fn any_fates(lossy: bool) -> impl Strategy<Value = Vec<Fate>> {
    let fate = prop_oneof![
        4 => Just(Fate::Pass),
        u32::from(lossy) * 2 + 1 => Just(if lossy { Fate::Lost } else { Fate::Pass }),
        1 => Just(Fate::Twice),
        2 => (1usize..6).prop_map(Fate::Late),
    ];
    prop::collection::vec(fate, 1..30)
}

/// Nothing more is sent for so long: what is late comes.
const IDLE: Duration = Duration::from_millis(5);

/// One socket: whoever is not B is A.
pub(super) struct Underlay {
    address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    socket: UdpSocket,
    to: Mutex<Option<SocketAddr>>,
    /// Of one datagram after the other, again and again; empty: all pass.
    fates: Mutex<Vec<Fate>>,
    /// What B was given, and what it was not.
    passed: Mutex<Vec<Vec<u8>>>,
    lost: Mutex<Vec<Vec<u8>>>,
    stop: AtomicBool,
}

impl Underlay {
    pub(super) fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(IDLE)).unwrap();
        let address = socket.local_addr().unwrap();
        let state = Arc::new(State {
            socket,
            to: Mutex::default(),
            fates: Mutex::default(),
            passed: Mutex::default(),
            lost: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let thread = std::thread::spawn({
            let state = state.clone();
            move || state.run()
        });
        Self { address, state, thread: Some(thread) }
    }

    /// Where A has to send, to get to B.
    pub(super) fn before(&self, b: SocketAddr) -> SocketAddr {
        *self.state.to.lock().unwrap() = Some(b);
        self.address
    }

    /// From here on, until the next time.
    pub(super) fn set(&self, fates: Vec<Fate>) {
        *self.state.fates.lock().unwrap() = fates;
    }

    /// Of A, what has come to B and what has not.
    pub(super) fn seen(&self) -> [Vec<Vec<u8>>; 2] {
        [&self.state.passed, &self.state.lost].map(|of| of.lock().unwrap().clone())
    }
}

impl State {
    fn run(&self) {
        let mut buffer = vec![0; 70_000];
        let (mut a, mut number) = (None, 0);
        let mut late: VecDeque<(usize, Vec<u8>)> = VecDeque::new();
        while !self.stop.load(Relaxed) {
            let received = self.socket.recv_from(&mut buffer);
            let b = *self.to.lock().unwrap();
            let Ok((len, from)) = received else {
                late.drain(..).for_each(|(_, datagram)| self.pass(&datagram));
                continue;
            };
            let datagram = &buffer[..len];
            if Some(from) == b {
                let _ = a.map(|a| self.socket.send_to(datagram, a));
                continue;
            }
            a = Some(from);
            let fates = self.fates.lock().unwrap().clone();
            let fate = fates.get(number % fates.len().max(1)).copied().unwrap_or(Fate::Pass);
            number += 1;
            match fate {
                Fate::Pass => self.pass(datagram),
                Fate::Lost => self.lost.lock().unwrap().push(datagram.to_vec()),
                Fate::Twice => (0..2).for_each(|_| self.pass(datagram)),
                Fate::Late(by) => late.push_back((number + by, datagram.to_vec())),
            }
            while let Some(at) = late.iter().position(|(due, _)| *due <= number) {
                let (_, datagram) = late.remove(at).unwrap();
                self.pass(&datagram);
            }
        }
    }

    fn pass(&self, datagram: &[u8]) {
        let Some(b) = *self.to.lock().unwrap() else { return };
        self.passed.lock().unwrap().push(datagram.to_vec());
        self.socket.send_to(datagram, b).unwrap();
    }
}

impl Drop for Underlay {
    fn drop(&mut self) {
        self.state.stop.store(true, Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}
