//! Deletes tracked connections of own VMs that left by another egress node, which carries them no more: tracked anew, with their next
//! packet, they leave by this host and are mapped.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use mesh_proto::ip::{Fragment, Packet, transport};
use tokio::sync::mpsc;

use super::{HostError, conntrack};
use crate::control::host::AWAY_MARK;
use crate::io::notices::tell;
use crate::notice::Notice;

/// How many are deleted in a go, and the pause between two: each lists the table.
const AT_ONCE: usize = 64;
const PAUSE: Duration = Duration::from_millis(50);

/// Flows to begin anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moved {
    /// Of the VM.
    pub source: IpAddr,
    /// On the Internet.
    pub destination: IpAddr,
    /// Transport protocol.
    pub protocol: u8,
    /// Where it has such, and the packet says so; without them all flows between the two are meant.
    pub ports: Option<(u16, u16)>,
}

impl Moved {
    /// That of a packet as the VM sent it.
    pub fn of(packet: &[u8]) -> Option<Self> {
        let view = Packet::parse(packet).ok()?;
        let layout = view.layout();
        let has_ports = matches!(layout.protocol, transport::TCP | transport::UDP);
        let ports = has_ports && layout.fragment != Fragment::Later;
        let ports = packet.get(layout.transport..)?.first_chunk::<4>().filter(|_| ports);
        let ports = ports.map(|[a, b, c, d]| (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])));
        let (source, destination, protocol) = (view.source(), view.destination(), layout.protocol);
        Some(Self { source, destination, protocol, ports })
    }
}

/// Deletes what it is told of, until nobody tells any more.
pub async fn forget(mut told: mpsc::Receiver<Moved>) {
    let mut batch = Vec::new();
    let mut failed = false;
    while told.recv_many(&mut batch, AT_ONCE).await > 0 {
        let done = delete(&batch.drain(..).collect()).await;
        // their packets go on asking
        if let (Err(error), false) = (&done, failed) {
            tell(Notice::FlowsStay { error: error.to_string() });
        }
        failed = done.is_err();
        tokio::time::sleep(PAUSE).await;
    }
}

async fn delete(moved: &BTreeSet<Moved>) -> Result<(), HostError> {
    let all = conntrack::list(Some(AWAY_MARK)).await?;
    let is_one = |connection: &conntrack::Connection| {
        let (original, _) = conntrack::ends(&connection.attributes)?;
        let (protocol, ports) = conntrack::transport(&connection.attributes)?;
        let (source, destination) = (original.source, original.destination);
        let each = [ports, None].map(|ports| Moved { source, destination, protocol, ports });
        Some(each.iter().any(|one| moved.contains(one)))
    };
    conntrack::delete(all.into_iter().filter(|connection| is_one(connection) == Some(true))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_told_by_its_ports_where_its_packet_has_them() {
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 192, 168, 100, 10, 192, 0, 2, 80];
        packet.extend([0x12, 0x34, 0, 53, 0, 8, 0, 0]);
        let moved = Moved::of(&packet).unwrap();
        assert_eq!((moved.source, moved.ports), ([192, 168, 100, 10].into(), Some((0x1234, 53))));
        packet[6..8].copy_from_slice(&[0, 9]);
        assert_eq!(Moved::of(&packet).unwrap().ports, None, "not the first fragment");
        packet[6..8].copy_from_slice(&[0, 0]);
        packet[9] = 1;
        assert_eq!(Moved::of(&packet).unwrap().ports, None, "an echo");
        assert_eq!(Moved::of(&packet[..19]), None);
    }
}
