//! Conversations that go on while something happens: a steady echo that misses nothing, a connection that waits for its end.

use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use crate::serve::{ECHO, SINK};

/// How long answers are waited for after the last question.
const AFTER: Duration = Duration::from_millis(500);

/// Sends a numbered datagram every millisecond from one port, and prints how many were not answered, and the longest time
/// between two answers.
pub fn echo(to: &str, seconds: u64) -> Result<()> {
    let address = SocketAddr::new(to.parse().with_context(|| format!("address {to}"))?, ECHO);
    let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(AFTER))?;
    let count = u32::try_from(seconds * 1000)?;
    let listener = socket.try_clone()?;
    let heard = thread::spawn(move || {
        let mut heard = vec![false; count as usize];
        let (mut last, mut gap) = (Instant::now(), Duration::ZERO);
        let mut buffer = [0; 64];
        let mut left = count;
        while left > 0 {
            let length = match listener.recv(&mut buffer) {
                Ok(length) => length,
                // an ICMP error: what comes after it counts
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => continue,
                Err(_) if last.elapsed() > Duration::from_secs(3) => break,
                Err(_) => continue,
            };
            let number =
                buffer.get(..length).and_then(|b| b.first_chunk::<4>()).map(|b| u32::from_be_bytes(*b));
            if let Some(place) = number.and_then(|n| heard.get_mut(n as usize))
                && !*place
            {
                *place = true;
                left -= 1;
                gap = gap.max(last.elapsed());
                last = Instant::now();
            }
        }
        (left, gap)
    });
    let start = Instant::now();
    for number in 0..count {
        let due = start + Duration::from_millis(u64::from(number));
        thread::sleep(due.saturating_duration_since(Instant::now()));
        // refused for a moment: its answer will be missed
        let _ = socket.send(&number.to_be_bytes());
    }
    let Ok((lost, gap)) = heard.join() else { bail!("the listener died") };
    println!("sent {count}, lost {lost}, longest gap {} ms", gap.as_millis());
    Ok(())
}

/// Opens a connection to a sink and says nothing more; prints how and when it ends.
pub fn hold(to: &str, seconds: u64) -> Result<()> {
    let address = SocketAddr::new(to.parse().with_context(|| format!("address {to}"))?, SINK);
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))
        .with_context(|| format!("connect {address}"))?;
    stream.write_all(&1_000_000_u64.to_be_bytes())?;
    println!("connected");
    stream.set_read_timeout(Some(Duration::from_secs(seconds)))?;
    let start = Instant::now();
    let end = match stream.read(&mut [0; 32]) {
        Ok(count) => format!("{count} bytes"),
        Err(error) => format!("{:?}", error.kind()),
    };
    println!("ended with {end} after {} ms", start.elapsed().as_millis());
    Ok(())
}
