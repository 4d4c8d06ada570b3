//! What `mesh-ctl trace` is told.

use std::net::IpAddr;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use mesh_proto::{NetworkName, NodeId, api};

/// The command line of a trace.
#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    /// Address of a VM on this node, as the VM sees it, or NODE/ADDRESS
    from: Spot,
    /// Where the packet goes: a mesh prefix address, a public one, any other, or NODE/ADDRESS as a VM there has it
    to: Spot,
    /// What the packet carries
    #[arg(short, long, value_name = "PROTOCOL", default_value = "icmp")]
    protocol: Protocol,
    /// Destination port
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    dport: Option<u16>,
    /// Follow the answer as well
    #[arg(long = "return")]
    back: bool,
    /// The network, where more than one would fit
    #[arg(long, value_name = "N")]
    network: Option<NetworkName>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Protocol {
    Icmp,
    Tcp,
    Udp,
}

/// An address, and the node it is on where that is told.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Spot {
    node: Option<NodeId>,
    address: IpAddr,
}

impl FromStr for Spot {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (node, address) = match text.split_once('/') {
            Some((node, address)) => (Some(node.parse().map_err(|e| format!("node {e}"))?), address),
            None => (None, text),
        };
        let address = address.parse().map_err(|_| {
            format!("{address:?} is not an address: write it as 10.77.2.5 or ph2/192.168.100.5")
        })?;
        Ok(Self { node, address })
    }
}

impl TraceArgs {
    /// The network that was named, which has to be one of the node's where the journey begins there.
    pub(crate) fn network(&self) -> Option<&NetworkName> {
        self.network.as_ref().filter(|_| self.from.node.is_none())
    }

    /// What a look at each argument alone does not find.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        if self.from.address.is_ipv4() != self.to.address.is_ipv4() {
            return Err("FROM and TO are of two families: give two IPv4 or two IPv6 addresses");
        }
        match (self.protocol, self.dport) {
            (Protocol::Icmp, Some(_)) => Err("icmp has no ports: add -p tcp or -p udp"),
            (Protocol::Tcp | Protocol::Udp, None) => Err("a port is missing: add --dport PORT"),
            (Protocol::Icmp, None) | (Protocol::Tcp | Protocol::Udp, Some(_)) => Ok(()),
        }
    }

    /// As the node is asked.
    pub(crate) fn ask(&self) -> api::TraceAsk {
        let protocol = match self.protocol {
            Protocol::Icmp => "icmp",
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        api::TraceAsk {
            network: self.network.as_ref().map(ToString::to_string),
            from: self.from.address,
            from_node: self.from.node.as_ref().map(ToString::to_string),
            to: self.to.address,
            to_node: self.to.node.as_ref().map(ToString::to_string),
            protocol: Some(protocol.into()),
            dport: self.dport,
            back: self.back,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_have_its_node_before_it() {
        let spot: Spot = "ph2/fd64::10".parse().unwrap();
        assert_eq!((spot.node.unwrap().as_str(), spot.address), ("ph2", "fd64::10".parse().unwrap()));
        let spot: Spot = "192.168.100.10".parse().unwrap();
        assert_eq!((spot.node, spot.address), (None, "192.168.100.10".parse().unwrap()));
        for bad in ["", "/", "ph2/", "/10.0.0.1", "10.0.0.0/24", "ph2/ten", "ph2/10.0.0.1/24"] {
            assert!(bad.parse::<Spot>().is_err(), "{bad}");
        }
    }
}
