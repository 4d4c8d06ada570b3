//! Counts tracked connections by mark: those of an egress role that is being handed over.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use futures_util::StreamExt as _;
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple, Status, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use rtnetlink::packet_core::{
    DefaultNla, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::proto;
use rtnetlink::sys::SocketAddr;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use tokio::sync::mpsc;

use super::HostError;
use super::conntrack::MARK_MASK_ATTRIBUTE;
use crate::control::drain::{FlowCount, FlowWatch, Timeouts, Tracked};
use crate::control::event::Input;
use crate::control::host::MARK_MASK;
use crate::io::quic::connection::Event;

/// Between two counts.
const EVERY: Duration = Duration::from_millis(500);

/// Counts, and tells, until it is aborted or nobody listens.
pub async fn watch(watch: FlowWatch, events: mpsc::Sender<Event>) {
    let mut failed = false;
    loop {
        let counted = count(&watch).await.map_err(|error| error.to_string());
        // what cannot be counted now may be in half a second; it is told once
        let told = failed && counted.is_err();
        failed = counted.is_err();
        if !told && events.send(Event::Input(Input::FlowsCounted(counted))).await.is_err() {
            return;
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn count(watch: &FlowWatch) -> Result<FlowCount, HostError> {
    let mut all = Vec::new();
    for mark in &watch.marks {
        all.extend(marked(*mark).await?);
    }
    Ok(watch.count(all, &timeouts()))
}

/// Every connection with this mark of ours, of both families. The kernel does the selecting.
async fn marked(mark: u32) -> Result<Vec<Tracked>, HostError> {
    let failed = |why: String| HostError::Netlink { what: "list tracked connections".to_owned(), why };
    let (connection, handle, _) =
        proto::new_connection::<NetfilterMessage>(NETLINK_NETFILTER).map_err(HostError::Socket)?;
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(connection);
    let mask = DefaultNla::new(MARK_MASK_ATTRIBUTE, MARK_MASK.to_be_bytes().to_vec());
    let get = ConntrackMessage::Get(vec![ConntrackAttribute::CtaMark(mark), ConntrackAttribute::Other(mask)]);
    let message = NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0), get);
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = NetlinkMessage::new(header, NetlinkPayload::from(message));
    let mut answers = handle.request(request, SocketAddr::new(0, 0)).map_err(|e| failed(e.to_string()))?;
    let mut found = Vec::new();
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::InnerMessage(NetfilterMessage {
                inner: NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)),
                ..
            }) => found.extend(tracked(&attributes)),
            NetlinkPayload::Error(error) if error.code.is_some() => {
                return Err(failed(error.to_io().to_string()));
            }
            _ => {}
        }
    }
    Ok(found)
}

fn tracked(attributes: &[ConntrackAttribute]) -> Option<Tracked> {
    let mut found = Tracked {
        source: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        protocol: 0,
        tcp_state: None,
        assured: false,
        left: 0,
    };
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuples) => {
                for tuple in tuples {
                    match tuple {
                        Tuple::Ip(parts) => parts.iter().for_each(|part| {
                            if let IPTuple::SourceAddress(address) = part {
                                found.source = *address;
                            }
                        }),
                        Tuple::Proto(parts) => parts.iter().for_each(|part| {
                            if let ProtoTuple::Protocol(protocol) = part {
                                found.protocol = u8::from(*protocol);
                            }
                        }),
                        _ => {}
                    }
                }
            }
            ConntrackAttribute::CtaProtoInfo(infos) => {
                for info in infos {
                    let ProtoInfo::TCP(parts) = info else { continue };
                    found.tcp_state = parts.iter().find_map(|part| match part {
                        ProtoInfoTCP::State(state) => Some(*state),
                        _ => None,
                    });
                }
            }
            ConntrackAttribute::CtaStatus(status) => found.assured = status.contains(Status::Assured),
            ConntrackAttribute::CtaTimeout(left) => found.left = *left,
            _ => {}
        }
    }
    (found.protocol != 0).then_some(found)
}

fn timeouts() -> Timeouts {
    let read = |name: &str, default: u32| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"));
        text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(default)
    };
    Timeouts {
        tcp_time_wait: read("tcp_timeout_time_wait", 120),
        udp: read("udp_timeout", 30),
        udp_stream: read("udp_timeout_stream", 120),
        icmp: read("icmp_timeout", 30),
        generic: read("generic_timeout", 600),
    }
}
