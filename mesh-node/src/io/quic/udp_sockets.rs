//! What the kernel holds for our UDP sockets, and what it dropped there: the first place where a busy host loses a peer's packets, and
//! one that no count of ours can see.

use std::collections::BTreeSet;
use std::fs;

/// Of this process's UDP sockets together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UdpSockets {
    /// Bytes that wait to be sent, as the kernel counts them: with its own headers.
    pub to_send: u64,
    /// Bytes that wait for us to receive them.
    pub received: u64,
    /// Datagrams dropped so far.
    pub dropped: u64,
}

/// As they are now; udp(7), proc(5).
pub fn udp_sockets() -> UdpSockets {
    let ours = our_sockets();
    let mut all = UdpSockets::default();
    for table in ["/proc/self/net/udp", "/proc/self/net/udp6"] {
        all.add(&fs::read_to_string(table).unwrap_or_default(), &ours);
    }
    all
}

/// Inodes of the sockets that this process has open.
fn our_sockets() -> BTreeSet<u64> {
    let Ok(open) = fs::read_dir("/proc/self/fd") else { return BTreeSet::new() };
    let inode = |path: std::path::PathBuf| {
        let name = path.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned();
        name.parse().ok()
    };
    open.flatten().filter_map(|entry| inode(fs::read_link(entry.path()).ok()?)).collect()
}

impl UdpSockets {
    /// The sockets of a table whose inode is among ours.
    fn add(&mut self, table: &str, ours: &BTreeSet<u64>) {
        for line in table.lines() {
            let fields: Vec<_> = line.split_whitespace().collect();
            let [_, _, _, _, queues, _, _, _, _, inode, .., drops] = fields[..] else { continue };
            if !inode.parse().is_ok_and(|inode| ours.contains(&inode)) {
                continue;
            }
            let hexadecimal = |text| u64::from_str_radix(text, 16).unwrap_or_default();
            if let Some((to_send, received)) = queues.split_once(':') {
                self.to_send += hexadecimal(to_send);
                self.received += hexadecimal(received);
            }
            self.dropped += drops.parse().unwrap_or(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn our_sockets_alone_are_counted() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n \
             1234: 0100007F:122A 00000000:0000 07 00000A00:000C0001 00:00000000 00000000     0        0 4711 2 0000000000000000 17\n \
             1235: 0100007F:122B 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4712 2 0000000000000000 5\n";
        let of = |inodes: &[u64]| {
            let mut found = UdpSockets::default();
            found.add(table, &inodes.iter().copied().collect());
            found
        };
        let first = UdpSockets { to_send: 0xa00, received: 0xc_0001, dropped: 17 };
        assert_eq!(of(&[4711]), first);
        assert_eq!(of(&[4711, 4712]), UdpSockets { dropped: 22, ..first });
        assert_eq!(of(&[]), UdpSockets::default());
    }

    #[test]
    fn a_socket_that_nobody_reads_holds_what_its_buffer_does_and_drops_the_rest() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = socket.local_addr().unwrap();
        let before = udp_sockets();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..20_000 {
            let _ = sender.send_to(&[0; 1400], to);
        }
        let after = udp_sockets();
        assert!(after.dropped > before.dropped && after.received > before.received + 100_000, "{after:?}");
    }
}
