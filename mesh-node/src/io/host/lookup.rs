//! Asks the kernel what it would do with a packet (`ip route get` by rtnetlink), and nft for everybody's rules. Changes nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use mesh_proto::trace::Protocol;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType};
use rtnetlink::Handle;
use serde_json::Value;

use super::routes::ip;
use super::{HostError, links, nft};
use crate::control::host::UNDERLAY_MARK;
use crate::control::trace::kernel::{Answer, Expect, Incoming, Lookup, Route};

/// What the kernel and nft said.
#[derive(Debug, Default)]
pub struct Lookups {
    /// An entry a leg, in it one a look-up.
    pub answers: Vec<Vec<Answer>>,
    /// nft's listing, where it could be had.
    pub firewall: Option<Value>,
}

impl Lookups {
    /// Asks for all of them.
    pub async fn carry_out(wanted: &[&[Lookup]]) -> Result<Self, HostError> {
        if wanted.iter().all(|leg| leg.is_empty()) {
            return Ok(Self { answers: vec![Vec::new(); wanted.len()], firewall: None });
        }
        let (connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().map_err(HostError::Socket)?;
        let mut driver = tokio::task::JoinSet::new();
        driver.spawn(connection);
        let names = links::links(&handle).await?;
        let kernel = Kernel {
            handle,
            indices: names.iter().map(|(name, link)| (name.clone(), link.index)).collect(),
            names: names.into_iter().map(|(name, link)| (link.index, name)).collect(),
        };
        let mut answers = Vec::new();
        for leg in wanted {
            let mut of_leg = Vec::new();
            for lookup in *leg {
                of_leg.push(kernel.answer(lookup).await?);
            }
            answers.push(of_leg);
        }
        let firewall = match nft::everything().await {
            Ok(listing) => Some(listing),
            Err(error) => {
                tracing::debug!(%error, "a trace without the host's firewall");
                None
            }
        };
        Ok(Self { answers, firewall })
    }
}

struct Kernel {
    handle: Handle,
    indices: BTreeMap<String, u32>,
    names: BTreeMap<u32, String>,
}

/// A route as the kernel tells it.
struct Found {
    route: Route,
    source: Option<IpAddr>,
}

impl Kernel {
    async fn answer(&self, lookup: &Lookup) -> Result<Answer, HostError> {
        let flow = &lookup.flow;
        let incoming = match &lookup.incoming {
            Incoming::Host => None,
            Incoming::Device(device) => Some(device.clone()),
            Incoming::UplinkTo(address) => match self.towards(*address, None).await?.route {
                Route::Sent { device, .. } => Some(device),
                // the reason is that of the look-up for the address outside
                route @ (Route::Local | Route::Refused(_)) => {
                    return Ok(Answer { incoming: None, route, masquerade: None });
                }
            },
        };
        let mut attributes = vec![RouteAttribute::Source(address(flow.source))];
        if let Some(device) = &incoming {
            let Some(index) = self.indices.get(device) else {
                return Err(HostError::NoInterface(device.clone()));
            };
            attributes.push(RouteAttribute::Iif(*index));
        }
        if lookup.mark != 0 {
            attributes.push(RouteAttribute::Mark(lookup.mark));
        }
        let (number, port) = match flow.protocol {
            Protocol::Icmp => (if flow.destination.is_ipv4() { 1 } else { 58 }, None),
            Protocol::Tcp(port) => (6, Some(port)),
            Protocol::Udp(port) => (17, Some(port)),
        };
        attributes.push(RouteAttribute::IpProto(number));
        attributes.extend(port.map(|port| match flow.reply {
            true => RouteAttribute::Sport(port),
            false => RouteAttribute::Dport(port),
        }));
        let route = self.get(flow.destination, attributes).await?.route;
        let device = match (&lookup.expect, &route) {
            (Expect::Uplink { .. }, Route::Sent { device, .. }) if lookup.masquerade => Some(device),
            _ => None,
        };
        let masquerade = match device {
            Some(device) => self.towards(flow.destination, Some(device)).await?.source,
            None => None,
        };
        Ok(Answer { incoming, route, masquerade })
    }

    /// How the host itself reaches an address outside, with the source it takes.
    async fn towards(&self, to: IpAddr, device: Option<&String>) -> Result<Found, HostError> {
        let mut attributes = vec![RouteAttribute::Mark(UNDERLAY_MARK)];
        attributes.extend(device.and_then(|d| self.indices.get(d)).map(|index| RouteAttribute::Oif(*index)));
        self.get(to, attributes).await
    }

    async fn get(&self, to: IpAddr, mut attributes: Vec<RouteAttribute>) -> Result<Found, HostError> {
        let mut message = RouteMessage::default();
        let (family, len) =
            if to.is_ipv4() { (AddressFamily::Inet, 32) } else { (AddressFamily::Inet6, 128) };
        message.header.address_family = family;
        message.header.destination_prefix_length = len;
        if attributes.iter().any(|a| matches!(a, RouteAttribute::Source(_))) {
            message.header.source_prefix_length = len;
        }
        if to.is_ipv4() {
            // IPv6 tells the table unasked, and refuses the flag
            message.header.flags = RouteFlags::LookupTable;
        }
        attributes.insert(0, RouteAttribute::Destination(address(to)));
        message.attributes = attributes;
        let mut stream = std::pin::pin!(self.handle.route().get(message).execute());
        match stream.try_next().await {
            Ok(Some(message)) => Ok(self.parse(&message)),
            Ok(None) => Err(HostError::Netlink { what: format!("look up {to}"), why: "no answer".into() }),
            // an error is the answer: it is what the packet would meet
            Err(rtnetlink::Error::NetlinkError(error)) => {
                let word = match -error.raw_code() {
                    libc::EHOSTUNREACH => "unreachable".to_owned(),
                    libc::ENETUNREACH => "unreachable, or no route".to_owned(),
                    libc::EACCES => "prohibited".to_owned(),
                    libc::EINVAL => "dropped: a blackhole, or the reverse path filter".to_owned(),
                    libc::EXDEV => "dropped by the reverse path filter".to_owned(),
                    _ => error.to_io().to_string(),
                };
                Ok(Found { route: Route::Refused(word), source: None })
            }
            Err(error) => Err(HostError::netlink(&format!("look up {to}"), &error)),
        }
    }

    fn parse(&self, message: &RouteMessage) -> Found {
        let (mut device, mut table, mut source) = (None, u32::from(message.header.table), None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(index) => device = self.names.get(index).cloned(),
                RouteAttribute::Table(number) => table = *number,
                RouteAttribute::PrefSource(address) => source = ip(address),
                _ => {}
            }
        }
        let route = match (message.header.kind, device) {
            (RouteType::Local, _) => Route::Local,
            (RouteType::Unicast, Some(device)) => Route::Sent { device, table },
            (RouteType::Unreachable, _) => Route::Refused("unreachable".into()),
            (RouteType::Prohibit, _) => Route::Refused("prohibited".into()),
            (RouteType::BlackHole, _) => Route::Refused("a blackhole".into()),
            (kind, _) => Route::Refused(format!("{kind:?}").to_lowercase()),
        };
        Found { route, source }
    }
}

fn address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(a) => RouteAddress::Inet(a),
        IpAddr::V6(a) => RouteAddress::Inet6(a),
    }
}
