//! What the kernel dropped at TUN devices before, or after, anybody could count it here.

use std::collections::BTreeMap;

/// Packets dropped at a device, as it counts them: a superpacket is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceDrops {
    /// For us to read, and its queue was full.
    pub outbound: u64,
    /// Written by us, and not taken.
    pub inbound: u64,
}

/// Of every device of this network namespace (proc_net_dev(5); a mounted sysfs may be another namespace's).
pub fn device_drops() -> BTreeMap<String, DeviceDrops> {
    parse(&std::fs::read_to_string("/proc/self/net/dev").unwrap_or_default())
}

fn parse(text: &str) -> BTreeMap<String, DeviceDrops> {
    let line = |line: &str| {
        let (name, counts) = line.split_once(':')?;
        let counts: Vec<u64> = counts.split_whitespace().map_while(|n| n.parse().ok()).collect();
        // eight columns as the kernel receives, eight as it transmits; the fourth of each is what was dropped
        let drops = DeviceDrops { outbound: *counts.get(11)?, inbound: *counts.get(3)? };
        Some((name.trim().to_owned(), drops))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_transmits_is_outbound_here() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
             face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
             lo:  172520    2156    0    0    0     0          0         0   172520    2156    0    0    0     0       0          0\n\
             mesh-default: 9 8 7 6 5 4 3 2 1 2 3 44 5 6 7 8\n";
        let drops = parse(text);
        assert_eq!(drops.len(), 2);
        assert_eq!(drops["mesh-default"], DeviceDrops { outbound: 44, inbound: 6 });
        assert!(device_drops().contains_key("lo"));
    }
}
