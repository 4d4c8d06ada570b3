//! What a rule's conditions say to one known packet: addresses, protocol, ports, state.

use std::net::IpAddr;

use mesh_proto::Prefix;
use mesh_proto::trace::Protocol;
use serde_json::Value;

use super::{names, text};

/// One packet, as a firewall sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// What it carries.
    pub protocol: Protocol,
    /// Of a connection that is known already.
    pub reply: bool,
}

/// What connection tracking calls the packet.
pub(super) fn state_of(flow: Option<&Flow>) -> &'static str {
    if flow.is_some_and(|flow| flow.reply) { "established" } else { "new" }
}

/// Whether a condition on addresses, protocol or ports holds; `None`: it is on something else, or in words not known here.
pub(super) fn flow_matches(flow: &Flow, matching: &Value) -> Option<bool> {
    let (left, right) = (&matching["left"], &matching["right"]);
    let equal = match text(matching, "op") {
        "==" | "in" => true,
        "!=" => false,
        _ => return None,
    };
    let v4 = flow.destination.is_ipv4();
    let (protocol, port) = match flow.protocol {
        Protocol::Icmp if v4 => ("icmp", None),
        Protocol::Icmp => ("ipv6-icmp", None),
        Protocol::Tcp(port) => ("tcp", Some(port)),
        Protocol::Udp(port) => ("udp", Some(port)),
    };
    if let Some(key) = left["meta"]["key"].as_str() {
        let value = match key {
            "l4proto" => protocol,
            "nfproto" => {
                if v4 {
                    "ipv4"
                } else {
                    "ipv6"
                }
            }
            "protocol" => {
                if v4 {
                    "ip"
                } else {
                    "ip6"
                }
            }
            _ => return None,
        };
        let right_names = names(right);
        let known = !right_names.is_empty() && right_names.iter().all(|n| !n.starts_with('@'));
        return known.then(|| {
            right_names.iter().any(|n| *n == value || (value == "ipv6-icmp" && *n == "icmpv6")) == equal
        });
    }
    let (header, field) = (left["payload"]["protocol"].as_str()?, left["payload"]["field"].as_str()?);
    match (header, field) {
        ("ip", _) if !v4 => Some(false),
        ("ip6", _) if v4 => Some(false),
        ("ip" | "ip6", "saddr") => Some(holds_address(right, flow.source)? == equal),
        ("ip" | "ip6", "daddr") => Some(holds_address(right, flow.destination)? == equal),
        ("ip", "protocol") | ("ip6", "nexthdr") => Some(names(right).contains(&protocol) == equal),
        ("tcp" | "udp" | "icmp" | "icmpv6", _)
            if header != protocol && (header, protocol) != ("icmpv6", "ipv6-icmp") =>
        {
            Some(false)
        }
        // the service's port is where the first packet goes to, and where its answer comes from
        ("tcp" | "udp" | "th", "dport") if !flow.reply => Some(holds_port(right, port?)? == equal),
        ("tcp" | "udp" | "th", "sport") if flow.reply => Some(holds_port(right, port?)? == equal),
        ("icmp" | "icmpv6", "type") => {
            let kind = if flow.reply { "echo-reply" } else { "echo-request" };
            Some(names(right).contains(&kind) == equal)
        }
        _ => None,
    }
}

/// Whether an address is one of these: an address, a prefix, a range or a set of them.
fn holds_address(right: &Value, address: IpAddr) -> Option<bool> {
    any_of(right, &|one| {
        if let Some(text) = one.as_str() {
            return Some(text.parse::<IpAddr>().ok()? == address);
        }
        if let Some(prefix) = one.get("prefix") {
            let len = u8::try_from(prefix["len"].as_u64()?).ok()?;
            return Some(Prefix::covering(text(prefix, "addr").parse().ok()?, len).ok()?.contains(address));
        }
        let [from, to] = one.get("range")?.as_array()?.as_slice() else { return None };
        let (from, to): (IpAddr, IpAddr) = (from.as_str()?.parse().ok()?, to.as_str()?.parse().ok()?);
        Some(from <= address && address <= to)
    })
}

fn holds_port(right: &Value, port: u16) -> Option<bool> {
    any_of(right, &|one| {
        if let Some(number) = one.as_u64() {
            return Some(number == u64::from(port));
        }
        let [from, to] = one.get("range")?.as_array()?.as_slice() else { return None };
        Some((from.as_u64()?..=to.as_u64()?).contains(&u64::from(port)))
    })
}

/// One that is not understood makes the whole unknown.
fn any_of(right: &Value, holds: &dyn Fn(&Value) -> Option<bool>) -> Option<bool> {
    match right.get("set").unwrap_or(right) {
        Value::Array(items) => {
            let found: Option<Vec<bool>> = items.iter().map(holds).collect();
            found.map(|found| found.contains(&true))
        }
        one => holds(one),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn flow(protocol: Protocol, reply: bool) -> Flow {
        let (source, destination) = ("10.77.1.10".parse().unwrap(), "192.168.100.10".parse().unwrap());
        Flow { source, destination, protocol, reply }
    }

    fn payload(protocol: &str, field: &str, op: &str, right: Value) -> Value {
        json!({ "op": op, "left": { "payload": { "protocol": protocol, "field": field } }, "right": right })
    }

    #[test]
    fn conditions_on_addresses_ports_and_protocols_are_judged_for_the_very_packet() {
        let https = flow(Protocol::Tcp(443), false);
        let prefix = |addr: &str, len: u8| json!({ "prefix": { "addr": addr, "len": len } });
        for (matching, holds) in [
            (payload("tcp", "dport", "==", json!(443)), Some(true)),
            (payload("tcp", "dport", "!=", json!(443)), Some(false)),
            (payload("th", "dport", "==", json!({ "set": [80, { "range": [400, 500] }] })), Some(true)),
            (payload("tcp", "dport", "==", json!({ "range": [1, 442] })), Some(false)),
            (payload("tcp", "dport", "==", json!("@ports")), None),
            (payload("tcp", "sport", "==", json!(443)), None),
            (payload("udp", "dport", "==", json!(443)), Some(false)),
            (payload("ip", "saddr", "==", prefix("10.77.0.0", 16)), Some(true)),
            (payload("ip", "daddr", "==", prefix("10.77.0.0", 16)), Some(false)),
            (payload("ip", "daddr", "==", json!("192.168.100.10")), Some(true)),
            (payload("ip", "daddr", "==", json!({ "set": ["192.168.100.9", "@more"] })), None),
            (payload("ip", "saddr", "==", json!({ "range": ["10.77.1.1", "10.77.1.9"] })), Some(false)),
            (payload("ip6", "daddr", "==", json!("fd64::10")), Some(false)),
            (payload("ip", "protocol", "==", json!("tcp")), Some(true)),
            (payload("ip", "ttl", "==", json!(1)), None),
            (json!({ "op": "==", "left": { "meta": { "key": "l4proto" } }, "right": "udp" }), Some(false)),
            (
                json!({ "op": "==", "left": { "meta": { "key": "l4proto" } }, "right": { "set": ["tcp", "udp"] } }),
                Some(true),
            ),
            (json!({ "op": "==", "left": { "meta": { "key": "nfproto" } }, "right": "ipv6" }), Some(false)),
            (json!({ "op": "==", "left": { "meta": { "key": "iifname" } }, "right": "eth0" }), None),
            (
                json!({ "op": "<", "left": { "payload": { "protocol": "tcp", "field": "dport" } }, "right": 1024 }),
                None,
            ),
        ] {
            assert_eq!(flow_matches(&https, &matching), holds, "{matching}");
        }
    }

    #[test]
    fn an_answer_comes_from_the_port_and_is_no_request() {
        let answer = flow(Protocol::Tcp(443), true);
        assert_eq!(flow_matches(&answer, &payload("tcp", "sport", "==", json!(443))), Some(true));
        assert_eq!(flow_matches(&answer, &payload("tcp", "dport", "==", json!(443))), None);
        let echo = |reply| {
            flow_matches(&flow(Protocol::Icmp, reply), &payload("icmp", "type", "==", json!("echo-request")))
        };
        assert_eq!((echo(false), echo(true)), (Some(true), Some(false)));
        assert_eq!((state_of(Some(&answer)), state_of(None)), ("established", "new"));
    }
}
