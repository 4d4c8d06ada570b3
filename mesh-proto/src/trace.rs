//! How nodes follow a packet that is not sent: one asks each node on the way what it would do with it.
//!
//! The asker leads: an answer says where the packet goes from there, and the asker puts the next question itself. A node that
//! is asked asks nobody.

use std::net::IpAddr;

use bincode::{Decode, Encode};

use crate::limits::{MAX_TRACE_HOPS, MAX_TRACE_TEXT};
use crate::{NetworkName, NodeId};

/// What the packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Protocol {
    /// An echo, of ICMP or ICMPv6 as the addresses are.
    Icmp,
    /// TCP, to this port of the one who was asked first.
    Tcp(u16),
    /// UDP, likewise.
    Udp(u16),
}

/// The packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// What it carries.
    pub protocol: Protocol,
    /// The answer to a packet that went the other way: an echo reply, or of a connection that is open.
    pub reply: bool,
}

/// Where on its way the packet is.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Stage {
    /// A VM of the node asked sends it, or the node's host itself.
    Segment,
    /// It comes out of the tunnel from this node.
    Tunnel(NodeId),
    /// An answer from the Internet, at an uplink of the node asked. What the source address was before source NAT:
    /// connection tracking puts it back.
    Uplink(IpAddr),
    /// There is no packet yet: which address do others use for `destination`, as a VM of the node asked has it?
    Name,
}

/// A question to one node.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct TraceRequest {
    /// Chosen by the asker.
    pub id: u64,
    /// The network; needed where more than one would fit, and for a packet from a tunnel.
    pub network: Option<NetworkName>,
    /// Where the packet is.
    pub stage: Stage,
    /// The packet.
    pub packet: Packet,
}

/// One line of a packet's journey.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct TraceHop {
    /// Whether a VM, the node's host, or somebody outside does it.
    pub place: Place,
    /// Source address as the packet leaves this hop.
    pub source: IpAddr,
    /// Destination address as the packet leaves this hop.
    pub destination: IpAddr,
    /// Device of the host on which it can be seen.
    pub device: Option<String>,
    /// What was done.
    pub action: String,
    /// The packet ends here.
    pub refused: bool,
}

/// Who acts in a hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Place {
    /// A VM of the node.
    Vm,
    /// The node's host.
    Host,
    /// Somebody behind the node's uplink.
    Internet,
}

/// Where the packet is after the hops of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum TraceEnd {
    /// In the tunnel to this node.
    Tunnel(NodeId),
    /// At a VM of the node, or at its host itself.
    Arrived,
    /// Out of the mesh. The source address before source NAT.
    Outside(IpAddr),
    /// The answer to [`Stage::Name`].
    Address(IpAddr),
    /// Refused, and why.
    Refused(String),
    /// The question makes no sense to this node, and why.
    Unanswerable(String),
}

/// The journey on one node.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct TraceReply {
    /// Of the request.
    pub id: u64,
    /// The network it is in.
    pub network: Option<NetworkName>,
    /// In order.
    pub hops: Vec<TraceHop>,
    /// What comes next.
    pub end: TraceEnd,
}

impl TraceReply {
    /// Its texts cut to what [`Self::is_bounded`] takes: a name of the host's (a chain, a table) may be long, and whoever
    /// sends more breaks the protocol.
    pub fn clipped(mut self) -> Self {
        let clip = |text: &mut String| {
            let fits = |at: &usize| text.is_char_boundary(*at);
            let end = (0..=MAX_TRACE_TEXT.min(text.len())).rev().find(fits);
            text.truncate(end.unwrap_or(0));
        };
        self.hops.truncate(MAX_TRACE_HOPS);
        for hop in &mut self.hops {
            clip(&mut hop.action);
            hop.device.iter_mut().for_each(clip);
        }
        if let TraceEnd::Refused(text) | TraceEnd::Unanswerable(text) = &mut self.end {
            clip(text);
        }
        self
    }

    /// Whether it is no larger than an answer may be.
    pub fn is_bounded(&self) -> bool {
        let short = |text: &str| text.len() <= MAX_TRACE_TEXT;
        self.hops.len() <= MAX_TRACE_HOPS
            && self.hops.iter().all(|h| short(&h.action) && h.device.as_deref().is_none_or(short))
            && match &self.end {
                TraceEnd::Refused(text) | TraceEnd::Unanswerable(text) => short(text),
                TraceEnd::Tunnel(_) | TraceEnd::Arrived | TraceEnd::Outside(_) | TraceEnd::Address(_) => true,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    fn hop(action: &str) -> TraceHop {
        TraceHop {
            place: Place::Host,
            source: "10.77.1.10".parse().unwrap(),
            destination: "fd00:77:2::10".parse().unwrap(),
            device: Some("vmnet1".into()),
            action: action.into(),
            refused: false,
        }
    }

    fn reply(hops: usize, text: usize) -> TraceReply {
        let end = TraceEnd::Refused("x".repeat(text));
        TraceReply { id: 7, network: Some("default".parse().unwrap()), hops: vec![hop("maps"); hops], end }
    }

    #[test]
    fn requests_and_replies_survive_the_wire() {
        let packet = Packet {
            source: "10.77.1.10".parse().unwrap(),
            destination: "192.0.2.80".parse().unwrap(),
            protocol: Protocol::Tcp(443),
            reply: true,
        };
        let stages = [
            Stage::Segment,
            Stage::Tunnel("ph1".parse().unwrap()),
            Stage::Uplink("10.77.1.10".parse().unwrap()),
            Stage::Name,
        ];
        for stage in stages {
            let request = TraceRequest { id: 1, network: None, stage, packet };
            assert_eq!(codec::decode::<TraceRequest>(&codec::encode(&request)).unwrap(), request);
        }
        let reply = reply(3, 10);
        assert_eq!(codec::decode::<TraceReply>(&codec::encode(&reply)).unwrap(), reply);
    }

    #[test]
    fn an_answer_that_is_too_long_is_told_from_one_that_is_not() {
        assert!(reply(MAX_TRACE_HOPS, MAX_TRACE_TEXT).is_bounded());
        assert!(!reply(MAX_TRACE_HOPS + 1, 1).is_bounded());
        assert!(!reply(1, MAX_TRACE_TEXT + 1).is_bounded());
        let mut long = reply(1, 1);
        long.hops[0].action = "x".repeat(MAX_TRACE_TEXT + 1);
        assert!(!long.is_bounded());
    }

    #[test]
    fn what_is_clipped_is_no_longer_too_long() {
        let mut long = reply(MAX_TRACE_HOPS + 1, 0);
        long.hops[0].action = "é".repeat(MAX_TRACE_TEXT);
        long.end = TraceEnd::Refused(format!("x{}", "é".repeat(MAX_TRACE_TEXT)));
        assert!(!long.is_bounded());
        assert!(long.clipped().is_bounded());
        let short = reply(1, 10);
        assert_eq!(short.clone().clipped(), short);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(body in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = codec::decode::<TraceRequest>(&body);
            if let Ok(reply) = codec::decode::<TraceReply>(&body) {
                let _ = reply.is_bounded();
            }
        }
    }
}
