//! What the mesh expects of this host's kernel for a packet, and whether the kernel does it.

use std::net::IpAddr;

use mesh_proto::trace::{Place, TraceEnd, TraceHop, TraceReply};
use serde_json::Value;

use super::plan::Plan;
use crate::control::host::BASE_PRIORITY;
use crate::control::host::foreign::{self, Flow, Hook};

/// Where a packet enters the routing of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// The host itself sends it.
    Host,
    /// From this device.
    Device(String),
    /// From the device by which the host reaches this address outside.
    UplinkTo(IpAddr),
}

/// What the kernel has to do with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// Send it by this device.
    Device(String),
    /// Take it for the host itself.
    Local,
    /// Send it by an uplink: this one where named, else any but `inside`, the devices of the mesh.
    Uplink {
        /// `interface` of `[[egress]]`.
        named: Option<String>,
        /// Segments and TUN devices.
        inside: Vec<String>,
    },
    /// Not send it anywhere but into this TUN, where it is dropped.
    NothingBut(String),
}

/// A question to the kernel's routing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    /// Where the packet enters.
    pub incoming: Incoming,
    /// The packet at this point.
    pub flow: Flow,
    /// The mark it has.
    pub mark: u32,
    /// What the mesh relies on.
    pub expect: Expect,
    /// The device of the mesh, or the segment, that a firewall has to let pass.
    pub ours: String,
    /// The destination is nobody's in the mesh: it may be an address of the host.
    pub local_is_fine: bool,
    /// Ask as well for the address that masquerading would take.
    pub masquerade: bool,
}

/// What the kernel would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// Send it.
    Sent {
        /// By this device.
        device: String,
        /// Found in this table.
        table: u32,
    },
    /// Take it for itself.
    Local,
    /// Refuse it: the kernel's word.
    Refused(String),
}

/// The kernel's answer to a look-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The device it enters by, where it is one.
    pub incoming: Option<String>,
    /// What becomes of it.
    pub route: Route,
    /// The address that masquerading takes.
    pub masquerade: Option<IpAddr>,
}

/// The answer to the trace: the plan as far as the kernel follows it. `answers` has one entry a leg, with one entry a
/// look-up; `firewall` is nft's listing.
pub fn settle(plan: Plan, id: u64, answers: &[Vec<Answer>], firewall: Option<&Value>) -> TraceReply {
    let Plan { node, network, packet, legs, mut end } = plan;
    let mut hops: Vec<TraceHop> = Vec::new();
    for (i, (leg, looked_up)) in legs.into_iter().zip(answers).enumerate() {
        let mut hop = leg.hop;
        // it does not leave this hop: the addresses are those it came with
        let came = hops.last().map_or((packet.source, packet.destination), |h| (h.source, h.destination));
        let refusal = leg.lookups.iter().zip(looked_up).find_map(|(lookup, answer)| {
            let dropped = || firewall.and_then(|f| dropped(lookup, answer, f));
            match judge(lookup, answer) {
                None => dropped(),
                Some(Refusal::Local) => dropped().or(Some(Refusal::Local)),
                refusal => refusal,
            }
        });
        let stop = match refusal {
            // an address of the host that is none of the mesh: the kernel knows it, and takes it first
            Some(Refusal::Local) => Some(("this host itself".to_owned(), TraceEnd::Arrived)),
            Some(Refusal::No { label, text }) => {
                Some((format!("refused: {label}"), TraceEnd::Refused(format!("{node}: {text}"))))
            }
            None => None,
        };
        if let Some((action, ended)) = stop {
            (hop.source, hop.destination) = came;
            (hop.place, hop.device, hop.action) = (Place::Host, None, action);
            hop.refused = ended != TraceEnd::Arrived;
            hops.push(hop);
            end = ended;
            break;
        }
        if hop.place == Place::Internet {
            // it is the next hop that knows where the packet comes in
            hop.device = answers.get(i + 1).and_then(|a| a.first()?.incoming.clone());
        }
        for (lookup, answer) in leg.lookups.iter().zip(looked_up) {
            if let (Expect::Uplink { .. }, Route::Sent { device, .. }) = (&lookup.expect, &answer.route) {
                hop.device = Some(device.clone());
                if hop.place == Place::Host && !hop.refused {
                    hop.action = format!("{}, leaves by {device}", hop.action);
                }
            }
            if lookup.masquerade
                && let Some(source) = answer.masquerade
            {
                hop.source = source;
            }
        }
        hops.push(hop);
    }
    TraceReply { id, network, hops, end }
}

/// Why a packet does not go on as planned.
enum Refusal {
    /// It is for the host itself.
    Local,
    /// It does not go on.
    No {
        /// In a word.
        label: &'static str,
        /// With the remedy.
        text: String,
    },
}

/// Why this host does not do what the mesh relies on, by its routing or by a chain of somebody else's; with the remedy.
pub fn objection(lookup: &Lookup, answer: &Answer, firewall: Option<&Value>) -> Option<String> {
    let found = judge(lookup, answer).or_else(|| dropped(lookup, answer, firewall?))?;
    match found {
        Refusal::Local => Some("the kernel takes it for an address of this host".to_owned()),
        Refusal::No { text, .. } => Some(text),
    }
}

/// Why the kernel does not do what the mesh relies on.
fn judge(lookup: &Lookup, answer: &Answer) -> Option<Refusal> {
    let wanted = match (&lookup.expect, &answer.route) {
        (Expect::Device(wanted), Route::Sent { device, .. }) if wanted == device => return None,
        (Expect::Local, Route::Local) => return None,
        (Expect::NothingBut(tun), Route::Sent { device, .. }) if tun == device => return None,
        (Expect::NothingBut(_), Route::Refused(_)) => return None,
        (_, Route::Local) if lookup.local_is_fine => return Some(Refusal::Local),
        (Expect::Uplink { named, inside }, Route::Sent { device, .. })
            if named.as_ref().map_or(!inside.contains(device), |named| named == device) =>
        {
            return None;
        }
        (Expect::Device(device), _) => format!("the mesh needs it sent by {device}"),
        (Expect::Local, _) => "the mesh needs it taken for this host".to_owned(),
        (Expect::Uplink { named: Some(named), .. }, _) => {
            format!("`interface` of [[egress]] is {named}")
        }
        (Expect::Uplink { named: None, .. }, _) => "it has to leave by an uplink".to_owned(),
        (Expect::NothingBut(_), _) => "the mesh refuses it, so that it leaks".to_owned(),
    };
    let (label, found) = match &answer.route {
        Route::Sent { device, table } => {
            ("diverted", format!("the kernel sends it by {device} (table {table})"))
        }
        Route::Local => ("diverted", "the kernel takes it for an address of this host".to_owned()),
        Route::Refused(word) => ("kernel", format!("the kernel refuses it ({word})")),
    };
    Some(Refusal::No { label, text: format!("{found}, and {wanted}: {}", remedy(lookup, answer)) })
}

fn remedy(lookup: &Lookup, answer: &Answer) -> String {
    let mut command = format!("ip route get {} from {}", lookup.flow.destination, lookup.flow.source);
    if let Some(device) = &answer.incoming {
        command += &format!(" iif {device}");
    }
    if lookup.mark != 0 {
        command += &format!(" mark {:#x}", lookup.mark);
    }
    match answer.route {
        Route::Sent { .. } | Route::Local => format!(
            "`{command}` shows it; look with `ip rule` for a rule before {BASE_PRIORITY}, and remove it or except the mesh"
        ),
        Route::Refused(_) => {
            format!("`{command}` shows it; `mesh-ctl status` tells what is wrong with our routes")
        }
    }
}

/// A chain of somebody else's that drops it.
fn dropped(lookup: &Lookup, answer: &Answer, firewall: &Value) -> Option<Refusal> {
    let (iif, oif) = match (&answer.incoming, &answer.route) {
        (Some(iif), Route::Sent { device, .. }) => (iif.as_str(), device.as_str()),
        (Some(iif), Route::Local) => (iif.as_str(), ""),
        (None, Route::Sent { device, .. }) => ("", device.as_str()),
        (None, Route::Local) | (_, Route::Refused(_)) => return None,
    };
    let inside = match (iif, oif) {
        ("", _) => Hook::Output,
        (_, "") => Hook::Input,
        _ => Hook::Forward,
    };
    // before SNAT is undone, an answer has an address that is not looked up here
    let before = !iif.is_empty() && !matches!(lookup.incoming, Incoming::UplinkTo(_));
    let hooks = [
        before.then_some((Hook::Prerouting, (iif, ""))),
        Some((inside, (iif, oif))),
        (!oif.is_empty()).then_some((Hook::Postrouting, ("", oif))),
    ];
    let dropping = |(hook, way)| foreign::dropping(firewall, hook, way, &lookup.flow, &lookup.ours);
    let chain = hooks.into_iter().flatten().find_map(dropping)?;
    let name = format!("chain {} of table {} {}", chain.chain, chain.family, chain.table);
    let way = [iif, oif].into_iter().filter(|d| !d.is_empty()).collect::<Vec<_>>().join(" to ");
    let text = format!("{name} drops it ({way}); to let it pass: {}", chain.command());
    Some(Refusal::No { label: "firewall", text })
}
