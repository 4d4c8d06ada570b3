//! A cable with a delay: two TAP devices, between which frames wait. The kernels that the lab runs on may lack netem.

use std::io::{Read, Write};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// An Ethernet frame of the largest packet a device without offloads hands over.
const LARGEST_FRAME: usize = 65_535 + 14;

/// Frames that may wait in each direction: beyond it the oldest cable is full, and the device drops.
const WAITING: usize = 4096;

/// Makes both devices and passes frames between them, each `delay` late, until it is killed.
pub fn relay(one: &str, other: &str, delay: Duration) -> Result<()> {
    let (read_one, write_one) = tap(one)?.split();
    let (read_other, write_other) = tap(other)?.split();
    let ways = [direction(read_one, write_other, delay), direction(read_other, write_one, delay)];
    for way in ways {
        way.join().map_err(|_| anyhow::anyhow!("a direction of the cable has failed"))?;
    }
    Ok(())
}

fn tap(name: &str) -> Result<tun::Device> {
    let mut config = tun::Configuration::default();
    config.tun_name(name).layer(tun::Layer::L2).up();
    tun::create(&config).with_context(|| format!("make TAP device {name}"))
}

#[expect(clippy::disallowed_methods, reason = "a delay is measured in real time")]
fn direction(mut from: tun::Reader, mut to: tun::Writer, delay: Duration) -> std::thread::JoinHandle<()> {
    let (queue, waiting) = mpsc::sync_channel::<(Instant, Vec<u8>)>(WAITING);
    std::thread::spawn(move || {
        let mut frame = vec![0; LARGEST_FRAME];
        while let Ok(n) = from.read(&mut frame) {
            let _ = queue.try_send((Instant::now() + delay, frame[..n].to_vec()));
        }
    });
    std::thread::spawn(move || {
        for (due, frame) in waiting {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            // a device that is down for a moment loses what comes then, as a cable does
            let _ = to.write(&frame);
        }
    })
}
