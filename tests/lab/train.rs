//! UDP as a VM with segmentation offload sends it: trains that leave in one call (`UDP_SEGMENT`), to the lab's echo.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;
use sha2::{Digest, Sha256};

use crate::serve::ECHO;

/// Datagrams in a train.
const TRAIN: usize = 16;

/// Times that a train of which something is lost is sent again: UDP may lose.
const TRIES: usize = 5;

/// Sends trains of datagrams of `size` bytes to an echo, and compares checksums of all that was sent and came back.
pub fn trains(to: &str, count: u32, size: usize) -> Result<()> {
    let address = SocketAddr::new(to.parse().with_context(|| format!("address {to}"))?, ECHO);
    let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    setsockopt(&socket, UdpGsoSegment, &i32::try_from(size)?).context("set UDP_SEGMENT")?;
    let (mut sent, mut came) = (Sha256::new(), Sha256::new());
    for number in 0..count {
        let train: Vec<u8> = (0..TRAIN).flat_map(|place| datagram(number, place, size)).collect();
        sent.update(&train);
        came.update(echo(&socket, &train, number, size)?);
    }
    if sent.finalize() != came.finalize() {
        bail!("checksums differ after {count} trains of {TRAIN} times {size} bytes");
    }
    println!("{count} trains of {TRAIN} datagrams of {size} bytes, same SHA-256");
    Ok(())
}

/// Says which it is; the rest does not repeat.
fn datagram(train: u32, place: usize, size: usize) -> Vec<u8> {
    let mut noise = u64::from(train) << 32 | place as u64 | 0x9e37_0000_0000_0000;
    let mut bytes = [train.to_be_bytes(), (place as u32).to_be_bytes()].concat();
    while bytes.len() < size {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        bytes.extend_from_slice(&noise.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// What came back of one train, in the order in which it was sent.
fn echo(socket: &UdpSocket, train: &[u8], number: u32, size: usize) -> Result<Vec<u8>> {
    let mut places: Vec<Option<Vec<u8>>> = vec![None; TRAIN];
    let mut buffer = vec![0; 65_536];
    for _ in 0..TRIES {
        socket.send(train).context("send a train")?;
        while places.iter().any(Option::is_none) {
            let Ok(length) = socket.recv(&mut buffer) else { break };
            let Some((head, _)) = buffer.split_first_chunk::<8>().filter(|_| length == size) else {
                bail!("{length} bytes came back of a datagram of {size}");
            };
            let head = u64::from_be_bytes(*head);
            // an answer to an earlier train may be late
            if head >> 32 == u64::from(number)
                && let Some(place) = places.get_mut((head & 0xffff_ffff) as usize)
            {
                *place = buffer.get(..length).map(<[u8]>::to_vec);
            }
        }
        if places.iter().all(Option::is_some) {
            return Ok(places.into_iter().flatten().flatten().collect());
        }
    }
    bail!("train {number} did not come back whole in {TRIES} tries")
}
