//! Routes, rules and proxy neighbours of ours in the kernel, read and written by rtnetlink. Ours is what carries our
//! protocol number.

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use mesh_proto::Prefix;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion};

use super::HostError;
use super::links::{self, Link};
use crate::control::host::routes::{Route, RouteKind};
use crate::control::host::rules::{Action, MAIN_TABLE, Rule, Selector};
use crate::control::host::{MARK_MASK, PROTOCOL};

const OURS: RouteProtocol = RouteProtocol::Other(PROTOCOL);

fn family(v4: bool) -> AddressFamily {
    if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(a) => RouteAddress::Inet(a),
        IpAddr::V6(a) => RouteAddress::Inet6(a),
    }
}

pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some(IpAddr::V4(*a)),
        RouteAddress::Inet6(a) => Some(IpAddr::V6(*a)),
        _ => None,
    }
}

/// Routes of a family in all tables; of one protocol where given.
pub(super) async fn dump(
    handle: &Handle,
    v4: bool,
    protocol: Option<RouteProtocol>,
) -> Result<Vec<RouteMessage>, HostError> {
    let mut request = RouteMessage::default();
    request.header.address_family = family(v4);
    // The kernel filters by it only under strict checking; so it is compared again here.
    request.header.protocol = protocol.unwrap_or_default();
    let mut found = Vec::new();
    let mut stream = std::pin::pin!(handle.route().get(request).execute());
    while let Some(message) = stream.try_next().await.map_err(|e| HostError::netlink("list routes", &e))? {
        if protocol.is_none_or(|protocol| message.header.protocol == protocol) {
            found.push(message);
        }
    }
    Ok(found)
}

/// Our routes of a family. What cannot be one of our making (many next hops, say) comes without a `Route`.
pub(super) async fn own_routes(
    handle: &Handle,
    v4: bool,
    links: &BTreeMap<String, Link>,
) -> Result<Vec<(Option<Route>, RouteMessage)>, HostError> {
    let names: BTreeMap<u32, &String> = links.iter().map(|(name, link)| (link.index, name)).collect();
    let messages = dump(handle, v4, Some(OURS)).await?;
    Ok(messages.into_iter().map(|message| (parse_route(&message, &names), message)).collect())
}

fn parse_route(message: &RouteMessage, names: &BTreeMap<u32, &String>) -> Option<Route> {
    let v4 = message.header.address_family == AddressFamily::Inet;
    let mut table = u32::from(message.header.table);
    let mut address = Prefix::default_route(v4).address();
    let (mut via, mut src, mut mtu, mut index, mut metric) = (None, None, None, None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(destination) => address = ip(destination)?,
            RouteAttribute::Gateway(gateway) => via = ip(gateway),
            RouteAttribute::PrefSource(source) => src = ip(source),
            RouteAttribute::Oif(number) => index = Some(*number),
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(value) => Some(*value),
                    _ => None,
                });
            }
            RouteAttribute::MultiPath(_) => return None,
            _ => {}
        }
    }
    let prefix = Prefix::covering(address, message.header.destination_prefix_length).ok()?;
    let kind = match message.header.kind {
        RouteType::Unreachable => RouteKind::Unreachable,
        RouteType::Throw => RouteKind::Throw,
        RouteType::Unicast => RouteKind::Unicast { dev: (*names.get(&index?)?).clone(), via, src, mtu },
        _ => return None,
    };
    let route = Route { table, prefix, kind };
    (route.metric() == metric).then_some(route)
}

fn route_message(route: &Route, links: &BTreeMap<String, Link>) -> Result<RouteMessage, HostError> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.prefix.is_v4());
    message.header.destination_prefix_length = route.prefix.len();
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.header.protocol = OURS;
    message.header.scope = RouteScope::Universe;
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Table(route.table));
    if route.prefix.len() > 0 {
        attributes.push(RouteAttribute::Destination(route_address(route.prefix.address())));
    }
    attributes.push(RouteAttribute::Priority(route.metric()));
    match &route.kind {
        RouteKind::Unreachable => message.header.kind = RouteType::Unreachable,
        RouteKind::Throw => message.header.kind = RouteType::Throw,
        RouteKind::Unicast { dev, via, src, mtu } => {
            message.header.kind = RouteType::Unicast;
            let link = links.get(dev).ok_or_else(|| HostError::NoInterface(dev.clone()))?;
            attributes.push(RouteAttribute::Oif(link.index));
            match via {
                Some(via) => {
                    attributes.push(RouteAttribute::Gateway(route_address(*via)));
                    // Its table need not know the way to the gateway yet.
                    message.header.flags.insert(RouteFlags::Onlink);
                }
                None => message.header.scope = RouteScope::Link,
            }
            attributes.extend(src.map(|src| RouteAttribute::PrefSource(route_address(src))));
            attributes.extend(mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        }
    }
    Ok(message)
}

/// Installs a route, in place of the one with its key.
pub(super) async fn install_route(
    handle: &Handle,
    route: &Route,
    links: &BTreeMap<String, Link>,
) -> Result<(), HostError> {
    let request = handle.route().add(route_message(route, links)?).replace();
    let what = || format!("install route {} in table {}", route.prefix, route.table);
    request.execute().await.map_err(|e| HostError::netlink(&what(), &e))
}

/// Removes a route as the kernel told of it; one that is gone already is none of our concern.
pub(super) async fn remove_route(handle: &Handle, mut message: RouteMessage) -> Result<(), HostError> {
    // What the kernel tells about a route and does not take back in a request.
    message.attributes.retain(|attribute| {
        matches!(
            attribute,
            RouteAttribute::Table(_)
                | RouteAttribute::Destination(_)
                | RouteAttribute::Priority(_)
                | RouteAttribute::Oif(_)
                | RouteAttribute::Gateway(_)
        )
    });
    message.header.flags = RouteFlags::empty();
    ignore_absent("remove route", handle.route().del(message).execute().await)
}

/// Our rules of a family, in the kernel's order.
pub(super) async fn own_rules(
    handle: &Handle,
    v4: bool,
) -> Result<Vec<(Option<Rule>, RuleMessage)>, HostError> {
    let version = if v4 { IpVersion::V4 } else { IpVersion::V6 };
    let mut found = Vec::new();
    let mut stream = std::pin::pin!(handle.rule().get(version).execute());
    while let Some(message) = stream.try_next().await.map_err(|e| HostError::netlink("list rules", &e))? {
        if message.attributes.iter().any(|a| matches!(a, RuleAttribute::Protocol(p) if *p == OURS)) {
            found.push((parse_rule(&message), message));
        }
    }
    Ok(found)
}

fn parse_rule(message: &RuleMessage) -> Option<Rule> {
    let header = &message.header;
    let v4 = header.family == AddressFamily::Inet;
    let mut selector = Selector { priority: 0, v4, iif: None, mark: None, from: None, to: None };
    let (mut table, mut target) = (u32::from(header.table), None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => selector.priority = *number,
            RuleAttribute::Iifname(name) => selector.iif = Some(name.clone()),
            RuleAttribute::FwMark(mark) => selector.mark = Some(*mark),
            RuleAttribute::FwMask(mask) if *mask != MARK_MASK => return None,
            RuleAttribute::Source(source) => selector.from = Prefix::covering(*source, header.src_len).ok(),
            RuleAttribute::Destination(to) => selector.to = Prefix::covering(*to, header.dst_len).ok(),
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Goto(number) => target = Some(*number),
            RuleAttribute::Oifname(_) => return None,
            _ => {}
        }
    }
    let action = match header.action {
        RuleAction::ToTable => Action::Table(table),
        RuleAction::Goto => Action::Goto(target?),
        RuleAction::Nop => Action::Nop,
        RuleAction::Prohibit => Action::Prohibit,
        RuleAction::Blackhole => Action::Blackhole,
        RuleAction::Unreachable => Action::Unreachable,
        _ => return None,
    };
    Some(Rule { selector, action })
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let Selector { priority, v4, iif, mark, from, to } = &rule.selector;
    let mut message = RuleMessage::default();
    message.header.family = family(*v4);
    let attributes = &mut message.attributes;
    attributes.push(RuleAttribute::Priority(*priority));
    attributes.push(RuleAttribute::Protocol(OURS));
    attributes.extend(iif.iter().map(|name| RuleAttribute::Iifname(name.clone())));
    if let Some(mark) = mark {
        attributes.push(RuleAttribute::FwMark(*mark));
        attributes.push(RuleAttribute::FwMask(MARK_MASK));
    }
    if let Some(from) = from {
        message.header.src_len = from.len();
        attributes.push(RuleAttribute::Source(from.address()));
    }
    if let Some(to) = to {
        message.header.dst_len = to.len();
        attributes.push(RuleAttribute::Destination(to.address()));
    }
    message.header.action = match rule.action {
        Action::Nop => RuleAction::Nop,
        Action::Prohibit => RuleAction::Prohibit,
        Action::Blackhole => RuleAction::Blackhole,
        Action::Unreachable => RuleAction::Unreachable,
        Action::Table(table) => {
            attributes.push(RuleAttribute::Table(table));
            RuleAction::ToTable
        }
        Action::Goto(priority) => {
            attributes.push(RuleAttribute::Goto(priority));
            RuleAction::Goto
        }
    };
    message
}

/// Adds a rule; one that is there already is fine.
pub(super) async fn add_rule(handle: &Handle, rule: &Rule) -> Result<(), HostError> {
    let mut request = handle.rule().add();
    *request.message_mut() = rule_message(rule);
    match request.execute().await {
        Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -libc::EEXIST => Ok(()),
        other => other.map_err(|e| HostError::netlink(&format!("add rule {}", rule.selector.priority), &e)),
    }
}

/// Removes a rule as the kernel told of it.
pub(super) async fn remove_rule(handle: &Handle, message: RuleMessage) -> Result<(), HostError> {
    ignore_absent("remove rule", handle.rule().del(message).execute().await)
}

/// Our proxy neighbours: interface index and address.
pub(super) async fn own_proxies(
    handle: &Handle,
) -> Result<BTreeMap<(u32, IpAddr), NeighbourMessage>, HostError> {
    let mut found = BTreeMap::new();
    for v4 in [true, false] {
        let mut stream =
            std::pin::pin!(handle.neighbours().get().set_address_family(family(v4)).proxies().execute());
        while let Some(message) =
            stream.try_next().await.map_err(|e| HostError::netlink("list proxy neighbours", &e))?
        {
            let ours =
                message.attributes.iter().any(|a| matches!(a, NeighbourAttribute::Protocol(p) if *p == OURS));
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => Some(IpAddr::V4(*a)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => Some(IpAddr::V6(*a)),
                _ => None,
            });
            if let (true, Some(address)) = (ours, address) {
                found.insert((message.header.ifindex, address), message);
            }
        }
    }
    Ok(found)
}

/// Answers for an address on a link.
pub(super) async fn add_proxy(handle: &Handle, index: u32, address: IpAddr) -> Result<(), HostError> {
    let mut request = handle.neighbours().add(index, address).flags(NeighbourFlags::Proxy);
    request = request.state(NeighbourState::Permanent);
    request.message_mut().attributes.push(NeighbourAttribute::Protocol(OURS));
    let added = request.replace().execute().await;
    added.map_err(|e| HostError::netlink(&format!("answer for {address}"), &e))
}

/// Does so no more.
pub(super) async fn remove_proxy(handle: &Handle, message: NeighbourMessage) -> Result<(), HostError> {
    ignore_absent("remove proxy neighbour", handle.neighbours().del(message).execute().await)
}

fn ignore_absent(what: &str, result: Result<(), rtnetlink::Error>) -> Result<(), HostError> {
    match result {
        Err(rtnetlink::Error::NetlinkError(e))
            if [libc::ENOENT, libc::ESRCH, libc::ENODEV].iter().any(|code| e.raw_code() == -code) =>
        {
            Ok(())
        }
        other => other.map_err(|e| HostError::netlink(what, &e)),
    }
}

/// The interface and gateway of the main table's default route with the lowest metric.
pub async fn default_uplink(
    handle: &Handle,
    v4: bool,
) -> Result<Option<(String, Option<IpAddr>)>, HostError> {
    let names: BTreeMap<u32, String> =
        links::links(handle).await?.into_iter().map(|(name, link)| (link.index, name)).collect();
    let mut best: Option<(u32, String, Option<IpAddr>)> = None;
    for message in dump(handle, v4, None).await? {
        if message.header.destination_prefix_length != 0 || message.header.kind != RouteType::Unicast {
            continue;
        }
        if let Some((metric, index, gateway)) = main_next_hop(&message)
            && let Some(name) = names.get(&index)
            && best.as_ref().is_none_or(|(lowest, ..)| metric < *lowest)
        {
            best = Some((metric, name.clone(), gateway));
        }
    }
    Ok(best.map(|(_, name, gateway)| (name, gateway)))
}

/// Metric, interface and gateway of a main-table route; of several next hops the first.
fn main_next_hop(message: &RouteMessage) -> Option<(u32, u32, Option<IpAddr>)> {
    let mut table = u32::from(message.header.table);
    let (mut metric, mut index, mut gateway) = (0, None, None);
    let mut attributes: Vec<&RouteAttribute> = message.attributes.iter().collect();
    for attribute in &message.attributes {
        if let RouteAttribute::MultiPath(hops) = attribute
            && let Some(hop) = hops.first()
        {
            index = Some(hop.interface_index);
            attributes.extend(&hop.attributes);
        }
    }
    for attribute in attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Oif(number) => index = Some(*number),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            _ => {}
        }
    }
    (table == MAIN_TABLE).then_some((metric, index?, gateway))
}
