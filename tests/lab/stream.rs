//! A UDP stream of 1 kHz to an echo, with the times of each datagram: what a voice call through the mesh would notice.

use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::serve::ECHO;

/// Between two datagrams.
const STEP: Duration = Duration::from_millis(1);

/// After the last datagram: later answers count as lost.
const LINGER: Duration = Duration::from_millis(500);

/// A datagram: when it was sent, and when it came back, in nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echoed {
    /// Sent.
    pub sent: u64,
    /// Back; `None`: lost.
    pub back: Option<u64>,
}

/// Nanoseconds since 1970.
pub fn clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |past| past.as_nanos() as u64)
}

/// Sends for so long and writes one line a datagram: sent, back (0: lost).
pub fn run(to: &str, time: Duration, file: &Path) -> Result<()> {
    let address = SocketAddr::new(to.parse().with_context(|| format!("address {to}"))?, ECHO);
    let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let count = (time.as_nanos() / STEP.as_nanos()) as usize;
    let receiver = {
        let socket = socket.try_clone()?;
        let end = Instant::now() + time + LINGER;
        std::thread::spawn(move || receive(&socket, count, end))
    };
    let mut sent = Vec::with_capacity(count);
    let start = Instant::now();
    for index in 0..count {
        let due = start + STEP * index as u32;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        sent.push(clock());
        // refused where there is no route: a loss like any other
        let _ = socket.send(&(index as u64).to_be_bytes());
    }
    let back = receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))?;
    let mut text = String::with_capacity(count * 40);
    for (sent, back) in sent.iter().zip(back) {
        let _ = writeln!(text, "{sent} {back}");
    }
    // whoever waits for the file finds it whole
    let part = file.with_extension("part");
    std::fs::write(&part, text).with_context(|| format!("write {}", part.display()))?;
    std::fs::rename(&part, file).with_context(|| format!("rename {}", part.display()))
}

fn receive(socket: &UdpSocket, count: usize, end: Instant) -> Vec<u64> {
    let mut back = vec![0; count];
    let mut buffer = [0; 8];
    while Instant::now() < end {
        // an ICMP error is told here as well: the stream goes on
        if socket.recv(&mut buffer).is_ok_and(|length| length == buffer.len())
            && let Some(at) = back.get_mut(u64::from_be_bytes(buffer) as usize)
            && *at == 0
        {
            *at = clock();
        }
    }
    back
}

/// Reads what `run` has written.
pub fn read(file: &Path) -> Result<Vec<Echoed>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let echoed = |line: &str| {
        let (sent, back) = line.split_once(' ')?;
        let back = back.parse().ok()?;
        Some(Echoed { sent: sent.parse().ok()?, back: (back > 0).then_some(back) })
    };
    text.lines().map(|line| echoed(line).with_context(|| format!("{line:?} in {}", file.display()))).collect()
}

/// The longest time without an answer that ended after `event`, and when it ended.
pub fn gap(stream: &[Echoed], event: u64) -> Option<(Duration, u64)> {
    let mut backs: Vec<u64> = stream.iter().filter_map(|echoed| echoed.back).collect();
    backs.sort_unstable();
    let gaps = backs.windows(2).filter_map(|pair| match pair {
        [before, after] if *after > event => Some((Duration::from_nanos(after - before), *after)),
        _ => None,
    });
    gaps.max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_after_the_event_counts() {
        let stream: Vec<Echoed> = [Some(10), Some(900), Some(20_000), None, Some(21_000), Some(26_000), None]
            .into_iter()
            .map(|back| Echoed { sent: 0, back })
            .collect();
        assert_eq!(gap(&stream, 0), Some((Duration::from_nanos(19_100), 20_000)));
        assert_eq!(gap(&stream, 20_500), Some((Duration::from_nanos(5000), 26_000)));
        assert_eq!(gap(&stream, 30_000), None, "no answer came any more");
    }
}
