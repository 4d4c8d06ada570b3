//! Answers as text for people.

use std::fmt::Write as _;

use mesh_proto::api;
use serde_json::Value;

mod egress;
mod layout;

pub(crate) use self::egress::egress;
pub(crate) use self::layout::{Rows, WIDTH, clean, list, table, wrap};

fn or_dash<T: ToString>(value: &Option<T>) -> String {
    value.as_ref().map_or_else(|| "-".into(), T::to_string)
}

fn join<T: ToString>(values: &[T]) -> String {
    if values.is_empty() {
        return "-".into();
    }
    values.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

pub(crate) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") }
}

pub(crate) fn rtt(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "-".into(), |s| format!("{:.2} ms", s * 1000.0))
}

/// Why something is not in its good state: in words if there are some.
fn why(reason: &Option<String>, detail: &Option<String>) -> String {
    detail.as_ref().or(reason.as_ref()).cloned().unwrap_or_default()
}

/// Where an echo goes; before the first one.
pub(crate) fn ping_path(ping: &api::Ping) -> String {
    let mut parts = vec![clean(&ping.target)];
    if let Some(network) = &ping.network {
        parts.push(format!("in network {}", clean(network)));
    }
    match (&ping.node, &ping.endpoint) {
        (Some(node), Some(endpoint)) => {
            let transport = ping.transport.as_deref().unwrap_or("tunnel");
            parts.push(format!("by {} at {endpoint} ({})", clean(node), clean(transport)));
        }
        (Some(node), None) => parts.push(format!("on this node, {}", clean(node))),
        _ => {}
    }
    if let Some(mtu) = ping.path_mtu_bytes {
        parts.push(format!("path MTU {mtu} bytes"));
    }
    wrap(&parts.join(", "), WIDTH - 2).join("\n  ") + "\n"
}

/// One echo.
pub(crate) fn ping_echo(number: usize, seconds: Option<f64>) -> String {
    match seconds {
        Some(_) => format!("echo {number}: {}\n", rtt(seconds)),
        None => format!("echo {number}: no answer\n"),
    }
}

/// After the last echo.
pub(crate) fn ping_summary(ping: &api::Ping) -> String {
    let mut out = String::new();
    let heard: Vec<f64> = ping.rtts_seconds.iter().flatten().copied().collect();
    if !ping.rtts_seconds.is_empty() {
        _ = writeln!(out, "{} of {} answered", heard.len(), ping.rtts_seconds.len());
    }
    if !heard.is_empty() {
        let (least, most) = heard.iter().fold((f64::MAX, 0.0_f64), |(a, b), v| (a.min(*v), b.max(*v)));
        let mean = heard.iter().sum::<f64>() / heard.len() as f64;
        let [least, mean, most] = [least, mean, most].map(|v| rtt(Some(v)));
        _ = writeln!(out, "round trip: least {least}, mean {mean}, most {most}");
    }
    if let Some(largest) = ping.largest_bytes {
        _ = writeln!(out, "largest packet answered: {largest} bytes");
    }
    if let Some(reason) = &ping.reason {
        for part in wrap(&clean(reason), WIDTH) {
            _ = writeln!(out, "{part}");
        }
    }
    out
}

/// Verdict first, then its reasons, then key by key.
pub(crate) fn reload(report: &api::Reload) -> String {
    let mut out = match (report.state.as_str(), report.changes.len()) {
        ("applied", 0) => "applied: nothing differs from the configuration in effect\n".to_owned(),
        ("rejected", _) => "rejected: nothing was applied\n".to_owned(),
        (state, _) => format!("{}\n", clean(state)),
    };
    for line in report.reason.iter().flat_map(|reason| reason.lines()) {
        for (i, part) in wrap(&clean(line), WIDTH - 4).iter().enumerate() {
            _ = writeln!(out, "  {}{part}", if i == 0 { "- " } else { "  " });
        }
    }
    let change = |change: &api::ReloadChange| {
        let difference = match (&change.before, &change.after) {
            (None, Some(after)) => format!("added {after}").trim_end().to_owned(),
            (Some(before), None) => format!("removed {before}").trim_end().to_owned(),
            (before, after) => format!("{} -> {}", or_dash(before), or_dash(after)),
        };
        [change.key.clone(), change.state.clone(), difference]
    };
    if !report.changes.is_empty() {
        let rows: Vec<_> = report.changes.iter().map(change).collect();
        out.push_str(&table(["KEY", "STATE", "CHANGE"], &rows, Rows::Folded));
    }
    out
}

/// Verdict first, then reasons, then notes.
pub(crate) fn status(status: &api::Status, color: bool) -> String {
    let state = clean(&status.state);
    let verdict = match (color, state.as_str()) {
        (false, _) => state,
        (true, "ok") => format!("\x1b[32m{state}\x1b[0m"),
        (true, _) => format!("\x1b[31m{state}\x1b[0m"),
    };
    let mut out = format!("{verdict}: node {} of mesh {}\n", clean(&status.node), clean(&status.mesh));
    for (mark, lines) in [("- ", &status.reasons), ("note: ", &status.notes)] {
        for line in lines {
            for (i, part) in wrap(&clean(line), WIDTH - 2 - mark.len()).iter().enumerate() {
                let mark = if i == 0 { mark.to_owned() } else { " ".repeat(mark.len()) };
                _ = writeln!(out, "  {mark}{part}");
            }
        }
    }
    out.push_str(&list(&[
        ("peers", format!("{} up, {} down", status.peers_up, status.peers_down)),
        ("certificate", format!("until {}", status.certificate_expires)),
        ("version", status.version.clone()),
    ]));
    out
}

/// All peers.
pub(crate) fn peers(peers: &api::Peers) -> String {
    let rows: Vec<_> = peers
        .peers
        .iter()
        .map(|p| {
            [
                p.name.clone(),
                p.state.clone(),
                or_dash(&p.endpoint),
                rtt(p.rtt_seconds),
                or_dash(&p.path_mtu_bytes),
                bytes(p.receive_bytes),
                bytes(p.transmit_bytes),
                why(&p.reason, &p.detail),
            ]
        })
        .collect();
    let header = ["NAME", "STATE", "ENDPOINT", "RTT", "MTU", "RECEIVED", "SENT", "REASON"];
    table(header, &rows, Rows::Folded)
}

/// One peer.
pub(crate) fn peer(p: &api::Peer) -> String {
    let mut entries = vec![("peer", p.name.clone()), ("state", format!("{} since {}", p.state, p.since))];
    if p.reason.is_some() || p.detail.is_some() {
        let reason = p.reason.as_ref().map(|r| format!(" ({r})")).filter(|_| p.detail.is_some());
        entries.push(("reason", why(&p.reason, &p.detail) + &reason.unwrap_or_default()));
    }
    entries.extend([
        ("endpoint", or_dash(&p.endpoint)),
        ("endpoints", join(&p.endpoints)),
        ("origin", p.origin.clone()),
        ("rtt", rtt(p.rtt_seconds)),
        ("path mtu", or_dash(&p.path_mtu_bytes)),
        ("transport", transport(p)),
        ("certificate", p.certificate_expires.as_ref().map_or_else(|| "-".into(), |t| format!("until {t}"))),
        ("received", format!("{} packets, {}", p.receive_packets, bytes(p.receive_bytes))),
        ("sent", format!("{} packets, {}", p.transmit_packets, bytes(p.transmit_bytes))),
    ]);
    entries.extend(p.networks.iter().map(|n| ("network", n.clone())));
    list(&entries)
}

fn transport(p: &api::Peer) -> String {
    let Some(lane) = &p.lane else { return or_dash(&p.transport) };
    let refused = match lane.refused_packets {
        0 => String::new(),
        refused => format!(", {refused} refused"),
    };
    let unheard = match lane.unheard_ports.as_slice() {
        [] => String::new(),
        ports => format!("; does not hear us on UDP {}", join(ports)),
    };
    format!(
        "{} ({}, lane {}, {:.0} s old, {} packets left; from the peer {} lost, {} reordered{refused}{unheard})",
        or_dash(&p.transport),
        lane.cipher,
        lane.number,
        lane.age_seconds,
        lane.packets_left,
        lane.lost_packets,
        lane.reordered_packets,
    )
}

/// All networks.
pub(crate) fn networks(networks: &api::Networks) -> String {
    let rows: Vec<_> = networks
        .networks
        .iter()
        .map(|n| {
            [
                n.name.clone(),
                n.interface.clone(),
                n.tun.clone(),
                join(&n.subnets),
                n.nodes.to_string(),
                n.egress.clone(),
                if n.announced.is_empty() {
                    join(&n.prefixes)
                } else {
                    format!("{}; announced {}", join(&n.prefixes), join(&n.announced))
                },
            ]
        })
        .collect();
    let header = ["NAME", "INTERFACE", "TUN", "SUBNETS", "NODES", "EGRESS", "PREFIXES"];
    table(header, &rows, Rows::Folded)
}

/// Routes of all or of one network.
pub(crate) fn routes(routes: &[api::Route]) -> String {
    let rows: Vec<_> = routes
        .iter()
        .map(|r| {
            [
                r.network.clone(),
                r.prefix.to_string(),
                r.node.clone(),
                r.kind.clone(),
                r.state.clone(),
                or_dash(&r.mtu),
                r.reason.clone().unwrap_or_default(),
            ]
        })
        .collect();
    table(["NETWORK", "PREFIX", "NODE", "KIND", "STATE", "MTU", "REASON"], &rows, Rows::Folded)
}

/// The routes to one address.
pub(crate) fn route_get(found: &api::RouteGet) -> String {
    let mut out = match &found.reason {
        Some(reason) if found.routes.is_empty() => {
            format!("no route to {}: {}\n", found.address, clean(reason))
        }
        _ => routes(&found.routes),
    };
    let row = |check: &api::RouteCheck| {
        [check.network.clone(), check.step.clone(), check.state.clone(), check.text.clone()]
    };
    let rows: Vec<_> = found.checks.iter().map(row).collect();
    if !rows.is_empty() {
        out.push_str(&format!(
            "\n{}",
            table(["NETWORK", "STEP", "STATE", "BY, OR WHY NOT"], &rows, Rows::Folded)
        ));
    }
    out
}

/// A packet's journey: one line a hop, however long.
pub(crate) fn trace(trace: &api::Trace) -> String {
    let rows: Vec<_> = trace
        .hops
        .iter()
        .map(|h| {
            let (source, destination) = (h.source.to_string(), h.destination.to_string());
            [h.hop.to_string(), h.host.clone(), source, destination, h.action.clone()]
        })
        .collect();
    let mut out = table(["HOP", "HOST", "SOURCE", "DESTINATION", "ACTION"], &rows, Rows::OneLine);
    if let Some(reason) = &trace.reason {
        for (i, part) in wrap(&clean(&format!("{}: {reason}", trace.state)), WIDTH - 2).iter().enumerate() {
            _ = writeln!(out, "{}{part}", if i == 0 { "" } else { "  " });
        }
    }
    out
}

/// What `ca show` read.
pub(crate) fn certificate(shown: &Value) -> String {
    if let Some(several) = shown["certificates"].as_array() {
        return several.iter().map(certificate).collect::<Vec<_>>().join("\n");
    }
    let text = |key: &str| shown[key].as_str().unwrap_or("-").to_owned();
    let mut entries = Vec::new();
    if shown["kind"] == "ca" {
        entries.push(("ca of mesh", text("mesh")));
    } else {
        entries.extend([("node", text("node")), ("mesh", text("mesh"))]);
    }
    entries.push(("validity", format!("{} to {}", text("not_before"), text("not_after"))));
    let reason = shown["reason"].as_str().map(|r| format!(": {r}")).unwrap_or_default();
    entries.push(("state", text("state") + &reason));
    let strings = |value: &Value| {
        let values = value.as_array().map(Vec::as_slice).unwrap_or_default();
        join(&values.iter().filter_map(Value::as_str).collect::<Vec<_>>())
    };
    let mut networks = String::new();
    if shown["kind"] == "node" {
        entries.push(("egress", if shown["egress"] == true { "allowed" } else { "not allowed" }.into()));
        entries.push(("groups", strings(&shown["groups"])));
        for network in shown["networks"].as_array().into_iter().flatten() {
            let name = network["name"].as_str().unwrap_or("-");
            _ = writeln!(networks, "may announce in {name}: {}", strings(&network["prefixes"]));
        }
        if networks.is_empty() {
            networks.push_str("may announce nothing\n");
        }
    }
    list(&entries) + &networks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_one_line_a_hop_under_its_header() {
        let hop = |hop, host: &str| api::Hop {
            hop,
            host: host.into(),
            source: "fd77:1::5".parse().unwrap(),
            destination: "fd77:2::5".parse().unwrap(),
            action: "source translated ".repeat(8),
            node: "ph1".into(),
            device: None,
            direction: "forward".into(),
            state: "passes".into(),
        };
        let trace_of = |reason: Option<String>| api::Trace {
            schema: 1,
            state: if reason.is_some() { "refused" } else { "arrives" }.into(),
            reason,
            network: None,
            hops: vec![hop(1, "vm"), hop(2, "ph1")],
        };
        let text = trace(&trace_of(None));
        assert_eq!(text.lines().count(), 3, "{text}");
        let header: Vec<_> = text.lines().next().unwrap_or_default().split_whitespace().collect();
        assert_eq!(header, ["HOP", "HOST", "SOURCE", "DESTINATION", "ACTION"]);
        assert!(trace(&trace_of(Some("no route".into()))).ends_with("refused: no route\n"));
    }

    #[test]
    fn status_tells_the_verdict_then_reasons_then_notes() {
        let told = status(
            &api::Status {
                schema: 1,
                node: "ph1".into(),
                mesh: "prod".into(),
                version: "0.1.0".into(),
                state: "degraded".into(),
                reasons: vec!["peer ph2 is down".into()],
                notes: vec!["TUN offload is off".into()],
                certificate_expires: "2027-01-01T00:00:00Z".into(),
                peers_up: 1,
                peers_down: 1,
                performance: None,
            },
            false,
        );
        let lines: Vec<_> = told.lines().collect();
        assert_eq!(lines[0], "degraded: node ph1 of mesh prod");
        assert_eq!(lines[1], "  - peer ph2 is down");
        assert_eq!(lines[2], "  note: TUN offload is off");
        assert_eq!(lines[3], "peers:       1 up, 1 down");
    }

    #[test]
    fn sizes_and_times_are_for_people() {
        assert_eq!((bytes(0), bytes(1023), bytes(1536)), ("0 B".into(), "1023 B".into(), "1.5 KiB".into()));
        assert_eq!((rtt(None), rtt(Some(0.00123))), ("-".into(), "1.23 ms".into()));
    }
}
