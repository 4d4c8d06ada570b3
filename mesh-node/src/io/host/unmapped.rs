//! Deletes tracked connections that leave this host without NAT and should not.

use std::net::IpAddr;

use mesh_proto::Prefix;
use netlink_packet_netfilter::conntrack::ConntrackAttribute;

use super::{HostError, conntrack};
use crate::control::host::HostState;
use crate::control::host::ruleset::leaves_locally;

/// Deletes every connection without source NAT from the segments of these networks to what leaves by this host.
pub(super) async fn delete_unmapped(state: &HostState, slots: &[u8]) -> Result<(), HostError> {
    let networks = state.networks.iter().filter(|network| slots.contains(&network.slot));
    let subnets: Vec<Prefix> =
        networks.flat_map(|network| network.subnets.iter().map(|(subnet, _)| *subnet)).collect();
    if subnets.is_empty() {
        return Ok(());
    }
    let leaves = |from: IpAddr, to: IpAddr| {
        subnets.iter().any(|subnet| subnet.contains(from)) && leaves_locally(state, to)
    };
    let all = conntrack::list(None).await?;
    conntrack::delete(all.into_iter().filter(|connection| unmapped(&connection.attributes, &leaves))).await
}

/// Whether it is one of those.
fn unmapped(attributes: &[ConntrackAttribute], leaves: &impl Fn(IpAddr, IpAddr) -> bool) -> bool {
    let Some((original, reply)) = conntrack::ends(attributes) else { return false };
    // where it goes is told by who answers: a destination that was changed on the way (a proxy of the user's on this host) may
    // be no longer outside
    reply.destination == original.source && leaves(original.source, reply.source)
}

#[cfg(test)]
mod tests {
    use netlink_packet_netfilter::conntrack::{IPTuple, Tuple};

    use super::*;

    fn tuple(source: &str, destination: &str) -> Vec<Tuple> {
        let ends = [
            IPTuple::SourceAddress(source.parse().unwrap()),
            IPTuple::DestinationAddress(destination.parse().unwrap()),
        ];
        vec![Tuple::Ip(ends.to_vec())]
    }

    #[test]
    fn a_flow_that_somebody_redirects_to_a_private_address_does_not_leave() {
        let inside: Prefix = "192.168.100.0/24".parse().unwrap();
        let leaves = |_, to| !inside.contains(to);
        let of = |answering: &str| {
            vec![
                ConntrackAttribute::CtaTupleOrig(tuple("192.168.100.10", "192.0.2.80")),
                ConntrackAttribute::CtaTupleReply(tuple(answering, "192.168.100.10")),
            ]
        };
        assert!(!unmapped(&of("192.168.100.1"), &leaves), "a proxy on this host");
        assert!(unmapped(&of("192.0.2.80"), &leaves));
    }

    #[test]
    fn a_flow_whose_answers_come_to_the_private_address_is_one_and_a_mapped_one_is_none() {
        let of = |answers_to: &str| {
            vec![
                ConntrackAttribute::CtaTupleOrig(tuple("192.168.100.10", "192.0.2.80")),
                ConntrackAttribute::CtaTupleReply(tuple("192.0.2.80", answers_to)),
                ConntrackAttribute::CtaMark(7),
            ]
        };
        assert!(unmapped(&of("192.168.100.10"), &|_, _| true));
        assert!(!unmapped(&of("198.51.100.11"), &|_, _| true));
        assert!(!unmapped(&of("192.168.100.10"), &|_, to| to.is_ipv6()));
        assert!(!unmapped(&[], &|_, _| true));
    }
}
