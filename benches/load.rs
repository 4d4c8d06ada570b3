//! Offers UDP packets and counts those that arrive: many more small ones than iperf3 can (`sendmmsg`, `recvmmsg`), in one
//! or several flows, as fast as the path takes them or paced.
//!
//! ```text
//! mesh-load receive PORT --seconds S           prints {"got": N, "seconds": T}
//! mesh-load send ADDRESS PORT --length L       prints {"sent": N, "kpps": R, "late": N}
//! ```
#![allow(clippy::disallowed_methods, reason = "a load generator has a clock")]

use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout, SndBufForce};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg, setsockopt};
use nix::sys::time::TimeVal;

/// Packets of one call.
const BATCH: usize = 64;

/// What a socket may hold: the meter itself should lose nothing.
const BUFFER: usize = 4 << 20;

/// A pause this long after the first packet is the end.
const SILENCE: i64 = 700_000;

/// A paced sender that was kept from running makes up for at most this much: a burst of more is another test.
const MAX_ARREARS: f64 = 0.004;

#[derive(Parser)]
#[command(about = "Offers UDP packets, and counts those that arrive")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Counts what arrives, until it stops.
    Receive {
        port: u16,
        /// Give up when nothing has come by then, or stop while something still does.
        #[arg(long, default_value_t = 10.0)]
        seconds: f64,
    },
    /// Sends packets.
    Send {
        address: Ipv4Addr,
        port: u16,
        /// Bytes of payload.
        #[arg(long, default_value_t = 64)]
        length: usize,
        /// Packets a second; 0: as many as go.
        #[arg(long, default_value_t = 0.0)]
        rate: f64,
        #[arg(long, default_value_t = 4.0)]
        seconds: f64,
        /// Source ports to send from in turn: flows.
        #[arg(long, default_value_t = 1)]
        flows: usize,
        /// Between two bursts of a paced sender, microseconds.
        #[arg(long, default_value_t = 200)]
        burst_us: u64,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().what {
        What::Receive { port, seconds } => receive(port, Duration::from_secs_f64(seconds)),
        What::Send { address, port, length, rate, seconds, flows, burst_us } => {
            let load = Load { length, rate, flows, burst: Duration::from_micros(burst_us) };
            send(SocketAddrV4::new(address, port), &load, Duration::from_secs_f64(seconds))
        }
    }
}

fn receive(port: u16, limit: Duration) -> anyhow::Result<()> {
    let socket =
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("bind port {port}"))?;
    setsockopt(&socket, RcvBufForce, &BUFFER).context("a large receive buffer needs root")?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::new(0, SILENCE))?;
    let mut buffers = vec![[0u8; 2048]; BATCH];
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let start = Instant::now();
    let (mut got, mut first, mut last) = (0u64, start, start);
    while start.elapsed() < limit {
        let mut slices: Vec<[IoSliceMut<'_>; 1]> = buffers.iter_mut().map(|b| [IoSliceMut::new(b)]).collect();
        let result = recvmmsg(socket.as_raw_fd(), &mut headers, &mut slices, MsgFlags::MSG_WAITFORONE, None);
        match result.map(Iterator::count) {
            Ok(count) => {
                last = Instant::now();
                if got == 0 {
                    first = last;
                }
                got += count as u64;
            }
            Err(Errno::EAGAIN) if got > 0 => break,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error).context("receive"),
        }
    }
    println!("{}", serde_json::json!({ "got": got, "seconds": (last - first).as_secs_f64() }));
    Ok(())
}

struct Load {
    length: usize,
    rate: f64,
    flows: usize,
    burst: Duration,
}

fn send(to: SocketAddrV4, load: &Load, time: Duration) -> anyhow::Result<()> {
    let sockets = (0..load.flows.max(1)).map(|_| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(to)?;
        setsockopt(&socket, SndBufForce, &BUFFER)?;
        Ok(socket)
    });
    let sockets: Vec<UdpSocket> = sockets.collect::<anyhow::Result<_>>().context("open sockets")?;
    let payload = vec![0u8; load.length];
    let slices: Vec<[IoSlice<'_>; 1]> = (0..BATCH).map(|_| [IoSlice::new(&payload)]).collect();
    let connected: [Option<SockaddrIn>; BATCH] = [None; BATCH];
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let start = Instant::now();
    let (mut sent, mut late, mut turn) = (0u64, 0u64, 0usize);
    loop {
        let at = start.elapsed();
        if at >= time {
            break;
        }
        let mut due = BATCH as u64;
        if load.rate > 0.0 {
            due = ((at.as_secs_f64() * load.rate) as u64).saturating_sub(sent + late);
            let most = (load.rate * MAX_ARREARS) as u64 + 1;
            late += due.saturating_sub(most);
            due = due.min(most);
        }
        while due > 0 {
            let count = due.min(BATCH as u64) as usize;
            let socket = &sockets[turn % sockets.len()];
            turn += 1;
            let flags = MsgFlags::empty();
            match sendmmsg(socket.as_raw_fd(), &mut headers, &slices[..count], connected, [], flags) {
                Ok(results) => {
                    let went = results.count() as u64;
                    sent += went;
                    due -= went.min(due);
                }
                // the path refuses for a moment: that, too, is offered load
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EINTR | Errno::ECONNREFUSED) => due = 0,
                Err(error) => return Err(error).context("send"),
            }
        }
        if load.rate > 0.0 {
            std::thread::sleep((at + load.burst).saturating_sub(start.elapsed()));
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let kpps = sent as f64 / seconds / 1e3;
    println!("{}", serde_json::json!({ "sent": sent, "seconds": seconds, "kpps": kpps, "late": late }));
    Ok(())
}
