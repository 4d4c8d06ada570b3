//! How an egress node tells whether its uplink carries.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

/// Between two probes of a target, where `probe_interval` is not written.
pub const DEFAULT_INTERVAL: Duration = Duration::from_millis(500);
/// Unanswered probes in a row by which a target is down, where `probe_count` is not written.
pub const DEFAULT_COUNT: u32 = 3;
/// The highest `probe_count`.
pub const MAX_COUNT: u32 = 20;

/// What shows whether an uplink carries. Equal ones, of two `[[egress]]`, are one uplink.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct UplinkConfig {
    /// The interface.
    pub interface: String,
    /// Sources of the probes, at most one a family; a family without one takes the interface's address.
    pub snat: Vec<IpAddr>,
    /// What must answer, all of it; empty: the state of the link decides alone.
    pub probe: Vec<ProbeTarget>,
    /// Between two probes of a target, and how long each waits at most.
    pub probe_interval: Duration,
    /// So many unanswered probes in a row, and a target is down.
    pub probe_count: u32,
}

/// Something beyond the uplink that must answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeTarget {
    /// By an echo (RFC 792, RFC 4443).
    Echo(IpAddr),
    /// By accepting a TCP connection to `host:port`.
    Tcp(String),
}

impl fmt::Display for ProbeTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Echo(address) => address.fmt(f),
            Self::Tcp(endpoint) => write!(f, "tcp://{endpoint}"),
        }
    }
}

/// It names no target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no target: give an address such as \"198.51.100.1\", or \"tcp://host:port\"")]
pub struct NoTarget;

impl FromStr for ProbeTarget {
    type Err = NoTarget;

    fn from_str(text: &str) -> Result<Self, NoTarget> {
        if let Some(endpoint) = text.strip_prefix("tcp://") {
            return super::endpoint(endpoint).map(|e| Self::Tcp(e.to_owned())).map_err(|_| NoTarget);
        }
        let address: IpAddr = text.parse().map_err(|_| NoTarget)?;
        if address.is_unspecified() || address.is_multicast() {
            Err(NoTarget)
        } else {
            Ok(Self::Echo(address))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_addresses_and_tcp_endpoints_and_nothing_else() {
        for good in [
            "198.51.100.1",
            "2001:db8::1",
            "tcp://192.0.2.80:80",
            "tcp://[2001:db8::1]:443",
            "tcp://a.example:1",
        ] {
            assert_eq!(good.parse::<ProbeTarget>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "a.example",
            "0.0.0.0",
            "224.0.0.1",
            "::",
            "tcp://a.example",
            "tcp://2001:db8::1:0",
            "udp://1.2.3.4:5",
            "1.2.3.4:5",
        ] {
            assert_eq!(bad.parse::<ProbeTarget>(), Err(NoTarget), "{bad}");
        }
    }
}
