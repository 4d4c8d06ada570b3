//! The other end of the lab's conversations: a web server that tells whom it sees, a TCP sink that answers
//! with a checksum, a UDP echo; and their clients.

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

/// The web server's port.
pub const HTTP: u16 = 80;
/// The TCP sink's port.
pub const SINK: u16 = 5001;
/// The UDP echo's port.
pub const ECHO: u16 = 5002;

const PATIENCE: Duration = Duration::from_secs(30);

/// Runs all three servers for ever, on both families.
pub fn serve() -> Result<()> {
    let http = TcpListener::bind(("::", HTTP)).context("bind HTTP")?;
    let sink = TcpListener::bind(("::", SINK)).context("bind sink")?;
    let echo = UdpSocket::bind(("::", ECHO)).context("bind echo")?;
    // several thousand datagrams a second, and daemons of high rank on the same processors: it must lose none of them by itself
    nix::sys::socket::setsockopt(&echo, nix::sys::socket::sockopt::RcvBufForce, &(8 << 20))?;
    thread::spawn(move || accept(&http, web));
    thread::spawn(move || accept(&sink, checksum));
    let mut buffer = vec![0; 65_536];
    loop {
        let (length, from) = echo.recv_from(&mut buffer)?;
        // A refused answer is the client's affair.
        let _ = echo.send_to(buffer.get(..length).unwrap_or_default(), from);
    }
}

fn accept(listener: &TcpListener, handle: fn(TcpStream) -> Result<()>) {
    for stream in listener.incoming().flatten() {
        thread::spawn(move || {
            let _ = stream.set_read_timeout(Some(PATIENCE));
            if let Err(error) = handle(stream) {
                eprintln!("{error:#}");
            }
        });
    }
}

/// Answers `/` with the client's address and `/bytes/N` with N bytes.
fn web(mut stream: TcpStream) -> Result<()> {
    let peer = stream.peer_addr()?.ip().to_canonical();
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    eprintln!("{peer} {}", request.trim());
    let path = request.split_whitespace().nth(1).unwrap_or("/");
    let body = match path.strip_prefix("/bytes/").and_then(|n| n.parse().ok()) {
        Some(count) => vec![b'x'; count],
        None => format!("{peer}\n").into_bytes(),
    };
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    stream.write_all(&body)?;
    Ok(())
}

/// Reads a length and so many bytes, answers with their SHA-256.
fn checksum(mut stream: TcpStream) -> Result<()> {
    let mut length = [0; 8];
    stream.read_exact(&mut length)?;
    let mut left = u64::from_be_bytes(length);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 65_536];
    while left > 0 {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            bail!("the sender closed with {left} bytes missing");
        }
        hash.update(buffer.get(..count).unwrap_or_default());
        left = left.saturating_sub(count as u64);
    }
    stream.write_all(&hash.finalize())?;
    Ok(())
}

/// Sends so many bytes that do not repeat to a sink and compares checksums.
pub fn send(to: &str, bytes: u64) -> Result<()> {
    let address = SocketAddr::new(to.parse().with_context(|| format!("address {to}"))?, SINK);
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))
        .with_context(|| format!("connect {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let start = Instant::now();
    stream.write_all(&bytes.to_be_bytes())?;
    let mut hash = Sha256::new();
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    let mut left = bytes;
    while left > 0 {
        let mut block = Vec::with_capacity(65_536);
        while block.len() < 65_536 {
            // xorshift64: cheap, and no block is like another.
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            block.extend_from_slice(&noise.to_le_bytes());
        }
        block.truncate(usize::try_from(left).unwrap_or(usize::MAX).min(block.len()));
        hash.update(&block);
        stream.write_all(&block).with_context(|| format!("send to {address} with {left} bytes left"))?;
        left -= block.len() as u64;
    }
    let mut answer = [0; 32];
    stream.read_exact(&mut answer).context("read the sink's checksum")?;
    if answer.as_slice() != hash.finalize().as_slice() {
        bail!("checksums differ after {bytes} bytes");
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{bytes} bytes, same SHA-256 at both ends, {:.0} Mbit/s", bytes as f64 * 8e-6 / seconds);
    Ok(())
}

/// Sends datagrams to an echo, one after the other, and fails unless so many percent come back unchanged.
pub fn datagrams(to: &str, count: u32, size: usize, percent: u32) -> Result<()> {
    let address = SocketAddr::new(to.parse().with_context(|| format!("address {to}"))?, ECHO);
    let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut good = 0;
    let mut buffer = vec![0; 65_536];
    for index in 0..count {
        let sent: Vec<u8> =
            (0..size).map(|at| (at as u32).wrapping_mul(31).wrapping_add(index) as u8).collect();
        socket.send(&sent)?;
        if socket.recv(&mut buffer).is_ok_and(|n| buffer.get(..n) == Some(&sent)) {
            good += 1;
        }
    }
    println!("{good} of {count} datagrams of {size} bytes came back unchanged");
    if good * 100 < count * percent {
        bail!("only {good} of {count} datagrams came back");
    }
    Ok(())
}
