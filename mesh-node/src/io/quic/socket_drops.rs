//! Datagrams that the kernel dropped at our UDP socket: the first place where a busy host loses a peer's packets, and one
//! that no count of ours can see.

use std::collections::BTreeSet;
use std::fs;

/// Of this process's UDP sockets, so far; udp(7), proc(5).
pub fn socket_drops() -> u64 {
    let ours = our_sockets();
    let tables = ["/proc/self/net/udp", "/proc/self/net/udp6"];
    tables.iter().map(|table| drops_in(&fs::read_to_string(table).unwrap_or_default(), &ours)).sum()
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

/// The last column of the table, of the sockets whose inode is in the tenth.
fn drops_in(table: &str, ours: &BTreeSet<u64>) -> u64 {
    let drops = |line: &str| {
        let mut fields = line.split_whitespace().skip(9);
        let inode = fields.next()?.parse().ok()?;
        ours.contains(&inode).then(|| fields.last()?.parse::<u64>().ok())?
    };
    table.lines().filter_map(drops).sum()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn drops_of_our_sockets_alone_are_counted() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n \
             1234: 0100007F:122A 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0000000000000000 17\n \
             1235: 0100007F:122B 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4712 2 0000000000000000 5\n";
        assert_eq!(drops_in(table, &[4711].into()), 17);
        assert_eq!(drops_in(table, &[4711, 4712].into()), 22);
        assert_eq!(drops_in(table, &BTreeSet::new()), 0);
    }

    #[test]
    fn a_socket_that_nobody_reads_drops_what_its_buffer_does_not_hold() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = socket.local_addr().unwrap();
        let before = socket_drops();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..20_000 {
            let _ = sender.send_to(&[0; 1400], to);
        }
        assert!(socket_drops() > before);
    }
}
