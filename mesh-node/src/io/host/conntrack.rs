//! Tracked connections of the kernel: those with a mark of ours, or all of them, and their end.

use std::net::IpAddr;

use futures_util::StreamExt as _;
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Tuple};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use rtnetlink::packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla as _,
};
use rtnetlink::proto::{self, ConnectionHandle};
use rtnetlink::sys::SocketAddr;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;

use super::HostError;
use crate::control::host::MARK_MASK;

/// `CTA_ZONE` and `CTA_MARK_MASK` of the kernel's nfnetlink_conntrack.h; the crate does not know them. The zone is a part of
/// what names a connection.
const ZONE_ATTRIBUTE: u16 = 18;
const MARK_MASK_ATTRIBUTE: u16 = 21;

/// Kernel's `ENOENT`: the connection has ended meanwhile.
const GONE: i32 = -2;

/// A connection as the kernel lists it.
pub(super) struct Connection {
    family: NetfilterProtoFamily,
    /// All that is said of it.
    pub(super) attributes: Vec<ConntrackAttribute>,
}

/// Addresses of a packet of it, in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
}

/// Of a connection's attributes: of its first packet, and of the answers.
pub(super) fn ends(attributes: &[ConntrackAttribute]) -> Option<(Ends, Ends)> {
    let (mut original, mut reply) = (None, None);
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => original = ends_of(tuple),
            ConntrackAttribute::CtaTupleReply(tuple) => reply = ends_of(tuple),
            _ => {}
        }
    }
    Some((original?, reply?))
}

fn ends_of(tuple: &[Tuple]) -> Option<Ends> {
    let (mut from, mut to) = (None, None);
    for part in tuple {
        let Tuple::Ip(addresses) = part else { continue };
        for address in addresses {
            match address {
                IPTuple::SourceAddress(source) => from = Some(*source),
                IPTuple::DestinationAddress(destination) => to = Some(*destination),
                _ => {}
            }
        }
    }
    Some(Ends { source: from?, destination: to? })
}

/// Of a connection's attributes: its transport protocol.
pub(super) fn protocol(attributes: &[ConntrackAttribute]) -> Option<u8> {
    transport(attributes).map(|(protocol, _)| protocol)
}

/// The same, and its ports, source first, where it has such.
pub(super) fn transport(attributes: &[ConntrackAttribute]) -> Option<(u8, Option<(u16, u16)>)> {
    let tuples = attributes.iter().filter_map(|attribute| match attribute {
        ConntrackAttribute::CtaTupleOrig(tuple) => Some(tuple),
        _ => None,
    });
    let parts = tuples.flatten().filter_map(|part| match part {
        Tuple::Proto(parts) => Some(parts),
        _ => None,
    });
    let (mut protocol, mut source, mut destination) = (None, None, None);
    for part in parts.flatten() {
        match part {
            ProtoTuple::Protocol(number) => protocol = Some(u8::from(*number)),
            ProtoTuple::SourcePort(port) => source = Some(*port),
            ProtoTuple::DestinationPort(port) => destination = Some(*port),
            _ => {}
        }
    }
    Some((protocol?, source.zip(destination)))
}

/// What names a connection to the kernel.
fn names(attribute: &ConntrackAttribute) -> bool {
    match attribute {
        ConntrackAttribute::CtaTupleOrig(_) => true,
        ConntrackAttribute::Other(other) => other.kind() == ZONE_ATTRIBUTE,
        _ => false,
    }
}

/// Every connection, or those with this mark of ours, of both families. The kernel does the selecting.
pub(super) async fn list(mark: Option<u32>) -> Result<Vec<Connection>, HostError> {
    let get = ConntrackMessage::Get(mark.map(of_mark).unwrap_or_default());
    let mut found = Vec::new();
    let all = NetfilterProtoFamily::Unspec;
    Table::open("list tracked connections")?
        .request(all, get, NLM_F_DUMP, |message| {
            if let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner {
                found.push(Connection { family: message.header.family, attributes });
            }
        })
        .await?;
    Ok(found)
}

/// Deletes these.
pub(super) async fn delete(connections: impl IntoIterator<Item = Connection>) -> Result<(), HostError> {
    let table = Table::open(DELETE)?;
    for Connection { family, attributes } in connections {
        let delete = ConntrackMessage::Delete(attributes.into_iter().filter(names).collect());
        table.request(family, delete, NLM_F_ACK, |_| {}).await?;
    }
    Ok(())
}

/// Deletes every connection with this mark of ours, of both families.
pub async fn delete_marked(mark: u32) -> Result<(), HostError> {
    let delete = ConntrackMessage::Delete(of_mark(mark));
    Table::open(DELETE)?.request(NetfilterProtoFamily::Unspec, delete, NLM_F_ACK, |_| {}).await
}

/// Deletes those with this mark of which this is true: where they began, and their transport protocol.
pub async fn delete_marked_if(mark: u32, is_it: impl Fn(IpAddr, u8) -> bool) -> Result<(), HostError> {
    let all = list(Some(mark)).await?;
    let chosen = |connection: &Connection| {
        let (original, _) = ends(&connection.attributes)?;
        Some(is_it(original.source, protocol(&connection.attributes)?))
    };
    delete(all.into_iter().filter(|connection| chosen(connection).unwrap_or(false))).await
}

const DELETE: &str = "delete tracked connections";

fn of_mark(mark: u32) -> Vec<ConntrackAttribute> {
    let mask = DefaultNla::new(MARK_MASK_ATTRIBUTE, MARK_MASK.to_be_bytes().to_vec());
    vec![ConntrackAttribute::CtaMark(mark), ConntrackAttribute::Other(mask)]
}

/// A socket to the kernel's table of connections.
struct Table {
    handle: ConnectionHandle<NetfilterMessage>,
    /// Drives the socket; ends with this.
    _driver: tokio::task::JoinSet<()>,
    /// What for, should it fail.
    what: &'static str,
}

impl Table {
    fn open(what: &'static str) -> Result<Self, HostError> {
        let (connection, handle, _) =
            proto::new_connection::<NetfilterMessage>(NETLINK_NETFILTER).map_err(HostError::Socket)?;
        let mut driver = tokio::task::JoinSet::new();
        driver.spawn(connection);
        Ok(Self { handle, _driver: driver, what })
    }

    async fn request(
        &self,
        family: NetfilterProtoFamily,
        message: ConntrackMessage,
        flags: u16,
        mut take: impl FnMut(NetfilterMessage),
    ) -> Result<(), HostError> {
        let failed = |why: String| HostError::Netlink { what: self.what.to_owned(), why };
        let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        let answers = self.handle.request(request, SocketAddr::new(0, 0));
        let mut answers = answers.map_err(|e| failed(e.to_string()))?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => take(message),
                NetlinkPayload::Error(error) if error.code.is_some_and(|code| code.get() != GONE) => {
                    return Err(failed(error.to_io().to_string()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_named_by_its_first_tuple_and_its_zone() {
        let original =
            ConntrackAttribute::CtaTupleOrig(vec![Tuple::Ip(vec![IPTuple::SourceAddress(IpAddr::from([
                192, 168, 100, 10,
            ]))])]);
        let zone = ConntrackAttribute::Other(DefaultNla::new(ZONE_ATTRIBUTE, vec![0, 7]));
        let reply = ConntrackAttribute::CtaTupleReply(vec![]);
        let all = vec![original.clone(), reply, ConntrackAttribute::CtaMark(7), zone.clone()];
        assert_eq!(all.into_iter().filter(names).collect::<Vec<_>>(), [original, zone]);
    }
}
