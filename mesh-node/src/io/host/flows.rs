//! Counts tracked connections by mark: those of an egress role that is being handed over.

use std::time::Duration;

use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ProtoInfo, ProtoInfoTCP, Status};
use tokio::sync::mpsc;

use super::{HostError, conntrack};
use crate::control::drain::{FlowCount, FlowWatch, Timeouts, Tracked};
use crate::control::event::Input;
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
        let marked = conntrack::list(Some(*mark)).await?;
        all.extend(marked.iter().filter_map(|connection| tracked(&connection.attributes)));
    }
    Ok(watch.count(all, &timeouts()))
}

fn tracked(attributes: &[ConntrackAttribute]) -> Option<Tracked> {
    let (original, _) = conntrack::ends(attributes)?;
    let protocol = conntrack::protocol(attributes)?;
    let mut found = Tracked { source: original.source, protocol, tcp_state: None, assured: false, left: 0 };
    for attribute in attributes {
        match attribute {
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
    Some(found)
}

fn timeouts() -> Timeouts {
    let read = |name: &str, default: u32| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"));
        text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(default)
    };
    Timeouts {
        tcp_established: read("tcp_timeout_established", 432_000),
        tcp_in_doubt: read("tcp_timeout_unacknowledged", 300).max(read("tcp_timeout_max_retrans", 300)),
        tcp_time_wait: read("tcp_timeout_time_wait", 120),
        udp: read("udp_timeout", 30),
        udp_stream: read("udp_timeout_stream", 120),
        icmp: read("icmp_timeout", 30),
        generic: read("generic_timeout", 600),
    }
}
