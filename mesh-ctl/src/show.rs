//! Answers as text for people: plain columns, two spaces apart, at most `WIDTH` wide.

use std::fmt::Write as _;

use mesh_proto::api;
use serde_json::Value;

mod egress;

pub(crate) use self::egress::egress;

/// Fits a terminal beside another, and a mail.
pub(crate) const WIDTH: usize = 100;

/// The last column keeps at least this much, so that reasons and lists stay readable ...
const LEAST_LAST: usize = 24;

/// ... and this much, where otherwise a name or an address before it would be broken.
const LEAST_LAST_OF_ALL: usize = 12;

/// What a column before it keeps, or its header's width if that is more.
const LEAST: usize = 8;

/// Text from the mesh must not steer the terminal.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn or_dash<T: ToString>(value: &Option<T>) -> String {
    value.as_ref().map_or_else(|| "-".into(), T::to_string)
}

fn join<T: ToString>(values: &[T]) -> String {
    if values.is_empty() {
        return "-".into();
    }
    values.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

/// Words in lines of at most `width`; a longer word has a line of its own.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let Some(line) = lines.last_mut() else { break };
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// A cell in lines of at most `width`: a longer word is broken, after a mark where there is one.
fn fold(text: &str, width: usize) -> Vec<String> {
    if text.chars().count() <= width {
        return vec![text.to_owned()];
    }
    let mut lines = Vec::new();
    for line in wrap(text, width) {
        let mut rest: Vec<char> = line.chars().collect();
        while rest.len() > width {
            let mark = rest[..width].iter().rposition(|c| "-.:/,".contains(*c)).map(|i| i + 1);
            let tail = rest.split_off(mark.filter(|at| *at > width / 2).unwrap_or(width));
            lines.push(std::mem::replace(&mut rest, tail).into_iter().collect());
        }
        lines.push(rest.into_iter().collect());
    }
    lines
}

/// Whether a table's rows may take several lines.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    Folded,
    OneLine,
}

/// Widths that fit: the last column gives first, then the widest that has a space to break at, and only then is a word
/// broken. `words` are the longest words.
fn fit<const N: usize>(header: [&str; N], natural: [usize; N], words: [usize; N]) -> [usize; N] {
    let mut widths = natural;
    let mut shrink = |least: &dyn Fn(usize) -> usize| {
        while widths.iter().sum::<usize>() + 2 * (N - 1) > WIDTH {
            let gives = (0..N).filter(|i| widths[*i] > least(*i).max(header[*i].len()));
            let Some(i) = gives.max_by_key(|i| widths[*i]) else { break };
            widths[i] -= 1;
        }
    };
    let last = |i: usize| i == N - 1;
    shrink(&|i| if last(i) { LEAST_LAST } else { natural[i] });
    shrink(&|i| if last(i) { natural[i] } else { words[i] });
    shrink(&|i| if last(i) { LEAST_LAST_OF_ALL } else { natural[i] });
    shrink(&|i| if last(i) { natural[i] } else { LEAST });
    widths
}

pub(crate) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]], how: Rows) -> String {
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| clean(cell))).collect();
    let mut widths = header.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    if how == Rows::Folded {
        let word = |cell: &String| cell.split_whitespace().map(|w| w.chars().count()).max().unwrap_or(0);
        let words = std::array::from_fn(|i| rows.iter().map(|row| word(&row[i])).max().unwrap_or(0));
        widths = fit(header, widths, words);
    }
    let mut out = String::new();
    let header = header.map(str::to_owned);
    for row in std::iter::once(&header).chain(&rows) {
        let cells: Vec<Vec<String>> = row.iter().zip(widths).map(|(cell, width)| fold(cell, width)).collect();
        for i in 0..cells.iter().map(Vec::len).max().unwrap_or(0) {
            let mut line = String::new();
            for (cell, width) in cells.iter().zip(widths) {
                let part = cell.get(i).map_or("", String::as_str);
                _ = write!(line, "{part:width$}  ");
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
    }
    out
}

/// `key: value` lines, the values aligned.
pub(crate) fn list(entries: &[(&str, String)]) -> String {
    let width = entries.iter().map(|(key, _)| key.len() + 1).max().unwrap_or(0);
    let mut out = String::new();
    for (key, value) in entries {
        for (i, part) in wrap(&clean(value), WIDTH - width - 1).iter().enumerate() {
            let key = if i == 0 { format!("{key}:") } else { String::new() };
            _ = writeln!(out, "{}", format!("{key:width$} {part}").trim_end());
        }
    }
    out
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
    format!(
        "{} ({}, lane {}, {:.0} s old, {} packets left; from the peer {} lost, {} reordered{refused})",
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
    fn columns_are_two_spaces_apart_and_the_last_is_wrapped() {
        let rows = [["ph1".to_owned(), "word ".repeat(30)], ["a-longer-name".to_owned(), String::new()]];
        let text = table(["NAME", "REASON"], &rows, Rows::Folded);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "NAME           REASON");
        assert!(lines[1].starts_with("ph1            word"));
        assert!(lines[2].starts_with("               word"));
        assert_eq!(lines[3], "a-longer-name");
        assert!(lines.iter().all(|l| l.len() <= WIDTH && l.trim_end() == *l), "{text}");
    }

    #[test]
    fn long_names_and_ipv6_addresses_fit_and_nothing_of_them_is_lost() {
        let name = "hypervisor-with-a-long-name-in-rack-17-of-the-second-hall";
        let address = "[2001:db8:1234:5678:9abc:def0:1234:5678]:4650";
        let reason = "the peer has not answered for a while; is UDP open between the hosts?";
        let mut row = [name, "dialing", address, "12.34 ms", "1380", "1023.9 MiB", "1023.9 MiB", reason];
        let header = ["NAME", "STATE", "ENDPOINT", "RTT", "MTU", "RECEIVED", "SENT", "REASON"];
        for _ in 0..2 {
            let text = table(header, &[row.map(str::to_owned)], Rows::Folded);
            assert!(text.lines().all(|l| l.chars().count() <= WIDTH), "{text}");
            let column = |from: usize, to: usize| {
                text.lines()
                    .skip(1)
                    .map(|l| l.get(from..to.min(l.len())).unwrap_or_default().trim())
                    .collect()
            };
            let at = |name: &str| text.find(name).unwrap_or_default();
            let names: String = column(0, at("STATE"));
            let endpoints: String = column(at("ENDPOINT"), at("RTT"));
            assert_eq!((names.as_str(), endpoints.as_str()), (name, address), "{text}");
            row[7] = "";
        }
    }

    #[test]
    fn an_endpoint_that_fits_is_not_broken_for_the_sake_of_a_reason() {
        let row = |cells: [&str; 8]| cells.map(str::to_owned);
        let there = "198.51.100.14:4650";
        let rows = [
            row(["ph2", "up", "198.51.100.12:4650", "34.74 ms", "1432", "2.4 KiB", "2.4 KiB", ""]),
            row([there, "dialing", there, "-", "-", "0 B", "0 B", "nothing heard in time"]),
        ];
        let header = ["NAME", "STATE", "ENDPOINT", "RTT", "MTU", "RECEIVED", "SENT", "REASON"];
        let text = table(header, &rows, Rows::Folded);
        assert!(text.lines().all(|l| l.chars().count() <= WIDTH), "{text}");
        assert_eq!(text.matches(there).count(), 2, "{text}");
    }

    #[test]
    fn text_from_the_mesh_does_not_steer_the_terminal() {
        let rows = [["\x1b[2Jph1".to_owned(), "a\nb".to_owned()]];
        assert_eq!(table(["A", "B"], &rows, Rows::Folded), "A        B\n [2Jph1  a b\n");
    }

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
