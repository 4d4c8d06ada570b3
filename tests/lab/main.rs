//! `mesh-lab`: the demonstration, a lab to play with, and the servers and clients used inside it.

use anyhow::Result;
use clap::{Parser, Subcommand};
use lab::{Lab, Plan, bench, delay, demo, serve, steady, stream, train, world};

#[derive(Parser)]
#[command(version, about = "Virtual hypervisors in network namespaces, with the real mesh-node")]
struct Arguments {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Three hypervisors, shown at work, then removed.
    Demo,
    /// Build the demo's world and leave it running.
    Up {
        /// How many hypervisors.
        #[arg(long, default_value_t = 3)]
        hosts: usize,
        /// Namespaces and wires only: no nodes.
        #[arg(long)]
        bare: bool,
    },
    /// Remove it.
    Down,
    /// The lab's servers: HTTP 80, TCP sink 5001, UDP echo 5002.
    Serve,
    /// A cable between two TAP devices, on which frames are late.
    Delay {
        /// One device.
        one: String,
        /// The other.
        other: String,
        /// How late.
        milliseconds: u64,
    },
    /// Send bytes to a TCP sink and compare checksums.
    Send {
        /// Address of the sink.
        to: String,
        /// How many bytes.
        bytes: u64,
    },
    /// How long the Internet is away when an egress node fails: see benches/README.md.
    BenchEgress(bench::Options),
    /// Send a datagram each millisecond to a UDP echo and write down when each was sent and came back.
    Stream {
        /// Address of the echo.
        to: String,
        /// For how long.
        milliseconds: u64,
        /// Where to.
        file: std::path::PathBuf,
    },
    /// Send datagrams to a UDP echo.
    Udp {
        /// Address of the echo.
        to: String,
        /// How many.
        #[arg(default_value_t = 100)]
        count: u32,
        /// Payload size of each.
        #[arg(default_value_t = 1000)]
        size: usize,
        /// Fail when fewer come back.
        #[arg(long, default_value_t = 98)]
        percent: u32,
    },
    /// Ask a UDP echo every millisecond, and count what is not answered.
    Echo {
        /// Address of the echo.
        to: String,
        /// For how long.
        seconds: u64,
    },
    /// Hold a TCP connection without a word, and tell how it ends.
    Hold {
        /// Address of the sink.
        to: String,
        /// At most so long.
        seconds: u64,
    },
    /// Send trains of datagrams, each train in one call, to a UDP echo and compare checksums.
    Trains {
        /// Address of the echo.
        to: String,
        /// How many.
        count: u32,
        /// Payload size of each datagram.
        size: usize,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Verb::Demo => demo::run(),
        Verb::Up { hosts, bare } => {
            let plan = Plan::standard("lab", hosts.clamp(2, 9));
            let mut lab = if bare { Lab::wires(plan)? } else { Lab::start(plan)? };
            lab.keep();
            demo::how_to_enter(&lab);
            Ok(())
        }
        Verb::Down => world::remove("lab"),
        Verb::Serve => serve::serve(),
        Verb::Delay { one, other, milliseconds } => {
            delay::relay(&one, &other, std::time::Duration::from_millis(milliseconds))
        }
        Verb::Echo { to, seconds } => steady::echo(&to, seconds),
        Verb::Hold { to, seconds } => steady::hold(&to, seconds),
        Verb::BenchEgress(options) => bench::run(&options),
        Verb::Stream { to, milliseconds, file } => {
            stream::run(&to, std::time::Duration::from_millis(milliseconds), &file)
        }
        Verb::Send { to, bytes } => serve::send(&to, bytes),
        Verb::Udp { to, count, size, percent } => serve::datagrams(&to, count, size, percent),
        Verb::Trains { to, count, size } => train::trains(&to, count, size),
    }
}
