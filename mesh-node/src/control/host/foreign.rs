//! Other people's forward chains that would drop the mesh's traffic. An accept of ours cannot override their drop at any
//! priority, so they are named, with the command that lets us pass.
//!
//! A walk through each base chain with a packet of a new flow between a segment and its TUN, or from the TUN to the uplink
//! where this node offers egress. What a rule matches is
//! judged in three values; a chain is only named when the packet certainly ends in a drop.

use serde_json::Value;

pub use self::flow::Flow;
use self::flow::{flow_matches, state_of};
use super::HostState;

mod flow;

/// Comment of the rules we put into a foreign chain, by which they are found again.
pub const COMMENT: &str = "mesh-node";
/// Jumps deeper than this end the walk; nft itself allows 16.
const MAX_DEPTH: u8 = 16;

/// A chain that drops our traffic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignChain {
    /// Family of its table.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// The TUN whose traffic it drops.
    pub tun: String,
}

impl ForeignChain {
    /// The nft statements, one a line, that let our traffic pass; `nft -f -` takes them.
    pub fn statements(&self) -> Vec<String> {
        let Self { family, table, chain, tun } = self;
        ["iifname", "oifname"]
            .map(|side| {
                format!("insert rule {family} {table} {chain} {side} \"{tun}\" accept comment \"{COMMENT}\"")
            })
            .to_vec()
    }

    /// What an operator types.
    pub fn command(&self) -> String {
        format!("nft '{}'", self.statements().join("; "))
    }
}

/// Chains of `nft -j list ruleset` that drop traffic between a segment and its TUN, or what others' VMs send to the Internet.
pub fn foreign_chains(listing: &Value, state: &HostState) -> Vec<ForeignChain> {
    let empty = Vec::new();
    let objects = listing["nftables"].as_array().unwrap_or(&empty);
    let mut found = Vec::new();
    for chain in objects.iter().map(|object| &object["chain"]) {
        let (family, table, name) = (text(chain, "family"), text(chain, "table"), text(chain, "name"));
        let ours = family == "inet" && table == "mesh";
        if ours || text(chain, "hook") != "forward" || !matches!(family, "ip" | "ip6" | "inet") {
            continue;
        }
        for network in &state.networks {
            if (family == "ip6" && !network.uses_family(false))
                || (family == "ip" && !network.uses_family(true))
            {
                continue;
            }
            let uplink = network.offer.as_ref().and_then(|offer| offer.interface.as_ref());
            let ways = [(&network.segment, &network.tun), (&network.tun, &network.segment)];
            let mut ways = ways.into_iter().chain(uplink.map(|uplink| (&network.tun, uplink)));
            let dropped = ways.any(|(iif, oif)| {
                let walk = Walk { objects, family, table, iif, oif, flow: None };
                match walk.chain(name, 0) {
                    End::Drop => true,
                    End::Accept | End::Unknown => false,
                    End::Through => text(chain, "policy") == "drop",
                }
            });
            if dropped {
                let (family, table, chain) = (family.to_owned(), table.to_owned(), name.to_owned());
                found.push(ForeignChain { family, table, chain, tun: network.tun.clone() });
            }
        }
    }
    found
}

/// Where in its way through the host a packet is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// As it comes in, before it is routed.
    Prerouting,
    /// For the host itself.
    Input,
    /// Through the host.
    Forward,
    /// From the host itself.
    Output,
    /// As it goes out.
    Postrouting,
}

/// The first of the others' chains that certainly drops this packet on its way from device `iif` to `oif` (`""`: none, at
/// the host's own end). To let it pass, `tun` is to be let pass.
pub fn dropping(
    listing: &Value,
    hook: Hook,
    (iif, oif): (&str, &str),
    flow: &Flow,
    tun: &str,
) -> Option<ForeignChain> {
    let objects = listing["nftables"].as_array()?;
    let hook = match hook {
        Hook::Prerouting => "prerouting",
        Hook::Postrouting => "postrouting",
        Hook::Input => "input",
        Hook::Forward => "forward",
        Hook::Output => "output",
    };
    let mut chains: Vec<&Value> = objects.iter().map(|object| &object["chain"]).collect();
    chains.sort_by_key(|chain| chain["prio"].as_i64());
    chains.into_iter().find_map(|chain| {
        let (family, table, name) = (text(chain, "family"), text(chain, "table"), text(chain, "name"));
        let ours = family == "inet" && table == "mesh";
        let of_family = match family {
            "inet" => true,
            "ip" => flow.destination.is_ipv4(),
            "ip6" => flow.destination.is_ipv6(),
            _ => false,
        };
        if ours || !of_family || text(chain, "hook") != hook {
            return None;
        }
        let walk = Walk { objects, family, table, iif, oif, flow: Some(flow) };
        let drops = match walk.chain(name, 0) {
            End::Drop => true,
            End::Accept | End::Unknown => false,
            End::Through => text(chain, "policy") == "drop",
        };
        let [family, table, chain, tun] = [family, table, name, tun].map(str::to_owned);
        drops.then_some(ForeignChain { family, table, chain, tun })
    })
}

/// The rules of ours in foreign chains, as statements that delete them.
pub fn inserted_rules(listing: &Value) -> Vec<String> {
    let empty = Vec::new();
    let objects = listing["nftables"].as_array().unwrap_or(&empty);
    let rules = objects.iter().map(|object| &object["rule"]).filter(|rule| text(rule, "comment") == COMMENT);
    rules
        .filter_map(|rule| {
            let handle = rule["handle"].as_u64()?;
            let (family, table, chain) = (text(rule, "family"), text(rule, "table"), text(rule, "chain"));
            Some(format!("delete rule {family} {table} {chain} handle {handle}"))
        })
        .collect()
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or("")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Accept,
    Drop,
    /// Nothing decided: the policy does.
    Through,
    /// Depends on what the walk does not know.
    Unknown,
}

/// Whether a rule applies to every packet of ours, to none that counts, or to some.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Applies {
    No,
    Some,
    Yes,
}

struct Walk<'a> {
    objects: &'a [Value],
    family: &'a str,
    table: &'a str,
    iif: &'a str,
    oif: &'a str,
    /// The very packet, where it is known.
    flow: Option<&'a Flow>,
}

impl Walk<'_> {
    fn chain(&self, name: &str, depth: u8) -> End {
        if depth >= MAX_DEPTH {
            return End::Unknown;
        }
        let mut maybe_accepted = false;
        let rules = self.objects.iter().map(|object| &object["rule"]).filter(|rule| {
            text(rule, "family") == self.family
                && text(rule, "table") == self.table
                && text(rule, "chain") == name
        });
        for rule in rules {
            let empty = Vec::new();
            let parts = rule["expr"].as_array().unwrap_or(&empty);
            let applies = parts.iter().map(|part| self.applies(part)).min().unwrap_or(Applies::Yes);
            if applies == Applies::No {
                continue;
            }
            let Some(end) = parts.iter().find_map(|part| self.verdict(part, depth)) else { continue };
            match (end, applies) {
                (End::Through, Applies::Yes) if parts.iter().any(|part| part.get("return").is_some()) => {
                    break;
                }
                (End::Through, _) => {}
                (End::Accept | End::Drop, Applies::Yes) if !maybe_accepted => return end,
                (End::Accept | End::Drop, Applies::Yes) => return End::Unknown,
                (End::Drop, _) => {}
                (End::Accept | End::Unknown, _) => maybe_accepted = true,
            }
        }
        if maybe_accepted { End::Unknown } else { End::Through }
    }

    fn verdict(&self, part: &Value, depth: u8) -> Option<End> {
        let (name, body) = part.as_object()?.iter().next()?;
        match name.as_str() {
            "accept" => Some(End::Accept),
            "drop" | "reject" => Some(End::Drop),
            "return" => Some(End::Through),
            "jump" | "goto" => Some(self.chain(text(body, "target"), depth + 1)),
            "vmap" => Some(self.mapped(body, depth)),
            "queue" => Some(End::Unknown),
            _ => None,
        }
    }

    /// A verdict map on the state of the connection is looked into, where it is written in the rule itself: ours is new.
    /// Others are not followed.
    fn mapped(&self, map: &Value, depth: u8) -> End {
        if map["key"]["ct"]["key"] != "state" {
            return End::Unknown;
        }
        let Some(entries) = map["data"]["set"].as_array() else { return End::Unknown };
        let state = state_of(self.flow);
        let of_new = entries.iter().find(|entry| names(&entry[0]).contains(&state));
        of_new.and_then(|entry| self.verdict(&entry[1], depth)).unwrap_or(End::Through)
    }

    fn applies(&self, part: &Value) -> Applies {
        if let (Some(flow), Some(matching)) = (self.flow, part.get("match"))
            && let Some(matches) = flow_matches(flow, matching)
        {
            return if matches { Applies::Yes } else { Applies::No };
        }
        let Some(matching) = part.get("match") else {
            // A condition in iptables' own form: what it asks (a state, a port) is seldom all of our traffic.
            if let Some(foreign) = part.get("xt") {
                return match text(foreign, "name") {
                    "comment" => Applies::Yes,
                    // what lets answers pass is asked in this form as well
                    _ if self.flow.is_some_and(|flow| flow.reply) => Applies::Some,
                    _ => Applies::No,
                };
            }
            // Rate limits and the like let some through.
            let narrows = ["limit", "quota", "ct count"].iter().any(|key| part.get(*key).is_some());
            return if narrows { Applies::Some } else { Applies::Yes };
        };
        let (left, right) = (&matching["left"], &matching["right"]);
        let equal = match text(matching, "op") {
            "==" | "in" => true,
            "!=" => false,
            _ => return Applies::Some,
        };
        let device = match left["meta"]["key"].as_str() {
            Some("iifname" | "iif") => self.iif,
            Some("oifname" | "oif") => self.oif,
            // One protocol only is not all of our traffic.
            Some("l4proto") if self.flow.is_some() => return Applies::Some,
            Some("l4proto") => return Applies::No,
            Some(_) => return Applies::Some,
            None if left["ct"]["key"] == "state" => {
                return if names(right).contains(&state_of(self.flow)) == equal {
                    Applies::Yes
                } else {
                    Applies::No
                };
            }
            // A new flow of ours is not translated.
            None if left["ct"]["key"] == "status" => return Applies::No,
            None => {
                return match left["payload"]["protocol"].as_str() {
                    // of a known packet, what was not understood above may be so or not
                    _ if self.flow.is_some() => Applies::Some,
                    Some("tcp" | "udp" | "th" | "icmp" | "icmpv6") => Applies::No,
                    _ => Applies::Some,
                };
            }
        };
        // a set with a name of its own is not looked into
        if right.get("set").is_none() && !right.is_string() || names(right).iter().any(|n| n.starts_with('@'))
        {
            return Applies::Some;
        }
        if names(right).iter().any(|name| name_matches(name, device)) == equal {
            Applies::Yes
        } else {
            Applies::No
        }
    }
}

/// A string, a list of them or an anonymous set of them.
fn names(value: &Value) -> Vec<&str> {
    let list = value.get("set").unwrap_or(value);
    match list {
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect(),
        one => one.as_str().into_iter().collect(),
    }
}

/// `virbr*` names every interface that begins so.
fn name_matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |start| name.starts_with(start))
}
