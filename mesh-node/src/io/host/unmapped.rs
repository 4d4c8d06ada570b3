//! Deletes tracked connections that leave this host without NAT and should not.

use std::net::IpAddr;

use futures_util::StreamExt as _;
use mesh_proto::Prefix;
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, Tuple};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla as _,
};
use rtnetlink::proto;
use rtnetlink::sys::SocketAddr;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;

use super::HostError;
use crate::control::host::HostState;
use crate::control::host::ruleset::leaves_locally;

/// `CTA_ZONE` of the kernel's nfnetlink_conntrack.h: a part of what names a connection.
const ZONE_ATTRIBUTE: u16 = 18;

/// Kernel's `ENOENT`: the connection has ended meanwhile.
const GONE: i32 = -2;

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
    let failed = |why: String| HostError::Netlink { what: "delete tracked connections".to_owned(), why };
    let (connection, handle, _) =
        proto::new_connection::<NetfilterMessage>(NETLINK_NETFILTER).map_err(HostError::Socket)?;
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(connection);
    let request = |family, message, flags| {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message);
        NetlinkMessage::new(header, NetlinkPayload::from(message))
    };
    let all = request(NetfilterProtoFamily::Unspec, ConntrackMessage::Get(Vec::new()), NLM_F_DUMP);
    let mut found = Vec::new();
    let mut answers = handle.request(all, SocketAddr::new(0, 0)).map_err(|e| failed(e.to_string()))?;
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::InnerMessage(NetfilterMessage {
                header,
                inner: NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)),
                ..
            }) => found.extend(unmapped(attributes, &leaves).map(|key| (header.family, key))),
            NetlinkPayload::Error(error) if error.code.is_some() => {
                return Err(failed(error.to_io().to_string()));
            }
            _ => {}
        }
    }
    for (family, key) in found {
        let delete = request(family, ConntrackMessage::Delete(key), NLM_F_ACK);
        let mut answers = handle.request(delete, SocketAddr::new(0, 0)).map_err(|e| failed(e.to_string()))?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some_and(|code| code.get() != GONE)
            {
                return Err(failed(error.to_io().to_string()));
            }
        }
    }
    Ok(())
}

/// What names the connection, if it is one of those.
fn unmapped(
    attributes: Vec<ConntrackAttribute>,
    leaves: &impl Fn(IpAddr, IpAddr) -> bool,
) -> Option<Vec<ConntrackAttribute>> {
    let mut original = None;
    let mut reply = None;
    for attribute in &attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => original = ends(tuple),
            ConntrackAttribute::CtaTupleReply(tuple) => reply = ends(tuple),
            _ => {}
        }
    }
    // where it goes is told by who answers: a destination that was changed on the way (a proxy of the user's on this host) may
    // be no longer outside
    let ((source, _), (destination, answered)) = (original?, reply?);
    let names = |attribute: &ConntrackAttribute| match attribute {
        ConntrackAttribute::CtaTupleOrig(_) => true,
        ConntrackAttribute::Other(other) => other.kind() == ZONE_ATTRIBUTE,
        _ => false,
    };
    (answered == source && leaves(source, destination))
        .then(|| attributes.into_iter().filter(names).collect())
}

/// Source and destination.
fn ends(tuple: &[Tuple]) -> Option<(IpAddr, IpAddr)> {
    let mut found = (None, None);
    for part in tuple.iter().filter_map(|part| match part {
        Tuple::Ip(parts) => Some(parts),
        _ => None,
    }) {
        for address in part {
            match address {
                IPTuple::SourceAddress(source) => found.0 = Some(*source),
                IPTuple::DestinationAddress(destination) => found.1 = Some(*destination),
                _ => {}
            }
        }
    }
    Some((found.0?, found.1?))
}

#[cfg(test)]
mod tests {
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
        assert_eq!(unmapped(of("192.168.100.1"), &leaves), None, "a proxy on this host");
        assert!(unmapped(of("192.0.2.80"), &leaves).is_some());
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
        let key = unmapped(of("192.168.100.10"), &|_, _| true).unwrap();
        assert_eq!(key, [ConntrackAttribute::CtaTupleOrig(tuple("192.168.100.10", "192.0.2.80"))]);
        assert_eq!(unmapped(of("198.51.100.11"), &|_, _| true), None);
        assert_eq!(unmapped(of("192.168.100.10"), &|_, to| to.is_ipv6()), None);
        assert_eq!(unmapped(vec![], &|_, _| true), None);
    }
}
