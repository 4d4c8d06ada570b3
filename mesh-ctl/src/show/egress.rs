//! Egress as text: who carries, who could, and what happened last.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use mesh_proto::api;

use super::{Rows, WIDTH, clean, join, or_dash, table, wrap};

/// Who carries which destination; then who could.
pub(crate) fn egress(answer: &api::EgressAnswer) -> String {
    let row = |e: &api::Egress| {
        let nodes = if e.elected_nodes.is_empty() { or_dash(&e.elected) } else { join(&e.elected_nodes) };
        let (network, destination) = (e.network.clone(), e.destination.to_string());
        [network, destination, e.state.clone(), nodes, e.reason.clone().unwrap_or_default()]
    };
    let rows: Vec<_> = answer.egress.iter().map(row).collect();
    let mut out = table(["NETWORK", "DESTINATION", "STATE", "NODE", "REASON"], &rows, Rows::Folded);
    let candidates = answer.egress.iter().flat_map(|e| e.candidates.iter().map(move |c| (e, c)));
    let rows: Vec<_> = candidates
        .map(|(e, c)| {
            let (state, since, flows) = (c.state.clone(), c.since.clone(), c.flows.to_string());
            let reason = c.reason.clone().unwrap_or_default();
            [e.network.clone(), e.destination.to_string(), c.node.clone(), state, since, flows, reason]
        })
        .collect();
    if !rows.is_empty() {
        let header = ["NETWORK", "DESTINATION", "CANDIDATE", "STATE", "SINCE", "FLOWS", "REASON"];
        out.push_str(&format!("\n{}", table(header, &rows, Rows::Folded)));
    }
    let forced: BTreeSet<_> =
        answer.egress.iter().filter_map(|e| Some((&e.network, e.forced.as_ref()?))).collect();
    for (network, node) in forced {
        let text =
            format!("an operator named {node} for network {network}: `mesh-ctl egress use auto` undoes it");
        _ = writeln!(out, "\n{}", wrap(&clean(&text), WIDTH - 2).join("\n  "));
    }
    for e in &answer.egress {
        let Some(last) = &e.last_failover else { continue };
        let outage = last.duration_seconds.map(|s| format!(", {s:.3} s without egress")).unwrap_or_default();
        let text = format!(
            "last failover of {} to {}: {} from {} to {} ({}){outage}",
            e.network,
            e.destination,
            last.at,
            or_dash(&last.from),
            or_dash(&last.to),
            last.cause
        );
        _ = writeln!(out, "\n{}", wrap(&clean(&text), WIDTH - 2).join("\n  "));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_carry_the_trouble_of_those_that_do_not_and_the_last_failover_are_shown_in_a_hundred_columns()
    {
        let long = "hypervisor-with-a-long-name-in-rack-17-of-the-second-hall";
        let candidate = |node: &str, state: &str, reason: Option<&str>| api::Candidate {
            node: node.into(),
            state: state.into(),
            reason: reason.map(str::to_owned),
            since: "2027-01-15T08:00:00Z".into(),
            held_down_until: None,
            flows: 1234,
        };
        let answer = api::EgressAnswer {
            schema: api::SCHEMA,
            egress: vec![api::Egress {
                network: "customers-of-the-second-hall".into(),
                destination: "2001:db8:1234:5678::/64".parse().unwrap(),
                state: "standby".into(),
                reason: Some(format!(
                    "{long} has failed again and again: held down until 2027-01-15T08:05:00Z"
                )),
                elected: Some("ph2".into()),
                elected_nodes: vec!["ph2".into(), "ph3".into()],
                forced: Some("ph2".into()),
                candidates: vec![
                    candidate(long, "held_down", Some("has failed again and again")),
                    candidate("ph2", "alive", None),
                    candidate("ph3", "alive", None),
                ],
                last_failover: Some(api::Failover {
                    at: "2027-01-15T08:00:00.25Z".into(),
                    cause: "liveness".into(),
                    from: Some(long.into()),
                    to: Some("ph2".into()),
                    duration_seconds: Some(0.15),
                }),
            }],
        };
        let shown = egress(&answer);
        for part in
            ["ph2, ph3", "an operator named ph2", "held_down", "1234", "liveness", "0.150 s without egress"]
        {
            let words = shown.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(words.contains(part), "{part}: {shown}");
        }
        let wide: Vec<&str> = shown.lines().filter(|line| line.chars().count() > WIDTH).collect();
        assert!(wide.is_empty(), "{wide:#?}");
        // an older daemon tells less
        let old = serde_json::json!({"schema": 1, "egress": [{"network": "default", "destination": "0.0.0.0/0",
            "state": "active", "reason": null, "elected": "ph3", "candidates": [{"node": "ph3", "state": "alive"}]}]});
        let old: api::EgressAnswer = serde_json::from_value(old).unwrap();
        assert!(egress(&old).contains("ph3"));
    }
}
