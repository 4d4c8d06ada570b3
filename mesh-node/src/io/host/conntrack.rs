//! Deletes tracked connections by mark: those of an egress role that was lost.

use futures_util::StreamExt as _;
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use rtnetlink::packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::proto;
use rtnetlink::sys::SocketAddr;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;

use super::HostError;
use crate::control::host::MARK_MASK;

/// `CTA_MARK_MASK` of the kernel's nfnetlink_conntrack.h; the crate does not know it.
pub(super) const MARK_MASK_ATTRIBUTE: u16 = 21;

/// Deletes every connection with this mark of ours, of both families. The kernel does the selecting.
pub async fn delete_marked(mark: u32) -> Result<(), HostError> {
    let failed = |why: String| HostError::Netlink { what: "delete tracked connections".to_owned(), why };
    let (connection, handle, _) =
        proto::new_connection::<NetfilterMessage>(NETLINK_NETFILTER).map_err(HostError::Socket)?;
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(connection);
    let mask = DefaultNla::new(MARK_MASK_ATTRIBUTE, MARK_MASK.to_be_bytes().to_vec());
    let delete =
        ConntrackMessage::Delete(vec![ConntrackAttribute::CtaMark(mark), ConntrackAttribute::Other(mask)]);
    let message = NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0), delete);
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK;
    let request = NetlinkMessage::new(header, NetlinkPayload::from(message));
    let mut answers = handle.request(request, SocketAddr::new(0, 0)).map_err(|e| failed(e.to_string()))?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload
            && error.code.is_some()
        {
            return Err(failed(error.to_io().to_string()));
        }
    }
    Ok(())
}
