//! `egress drain`: the order to the node, and waiting until it is carried out.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use hyper::Method;
use mesh_proto::api;
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::client::{Failure, ask};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(500);

/// Where drains are asked for and looked at.
const PATH: &str = "/v1/egress/drain";

#[derive(Debug, clap::Args)]
pub(crate) struct DrainArgs {
    /// How long flows in progress may stay: seconds, or a number with s, m or h
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = seconds)]
    deadline: u64,
    /// Wait until no flow is left, or the deadline; Ctrl-C ends the waiting alone
    #[arg(long)]
    wait: bool,
}

/// Drains, and with `--wait` tells how many flows are left until none is.
pub(crate) async fn drain(socket: &Path, args: &DrainArgs, tell: impl Fn(String)) -> Result<Value, Failure> {
    let body = json!(api::EgressDrainAsk { deadline_seconds: args.deadline });
    let mut answer = ask(socket, Method::POST, PATH, Some(body)).await?;
    if !args.wait {
        return Ok(answer);
    }
    let mut told = None;
    loop {
        let drain = api::EgressDrain::deserialize(&answer)
            .context("the node's answer is not understood: are mesh-ctl and mesh-node of one version?")?;
        if drain.state != "draining" {
            break;
        }
        if told.is_none() {
            drain.warnings.iter().for_each(|warning| tell(format!("warning: {warning}\n")));
        }
        if told != Some(drain.flows) {
            tell(match drain.flows {
                Some(flows) => format!("{flows} flows in progress\n"),
                None => "flows in progress are not counted yet\n".to_owned(),
            });
            told = Some(drain.flows);
        }
        tokio::time::sleep(EVERY).await;
        answer = ask(socket, Method::GET, PATH, None).await?;
    }
    Ok(answer)
}

/// For people.
pub(crate) fn show(drain: &api::EgressDrain) -> String {
    let mut out = format!("egress of this node: {}", drain.state);
    if let Some(flows) = drain.flows.filter(|_| drain.state == "draining") {
        _ = write!(out, ", {flows} flows in progress");
    }
    if let Some(reason) = &drain.reason {
        _ = write!(out, ": {reason}");
    }
    out.push('\n');
    for warning in &drain.warnings {
        _ = writeln!(out, "warning: {warning}");
    }
    out
}

fn seconds(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("give seconds, or a number with s, m or h, such as 5m".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "give a number of seconds, such as 300".to_owned())?;
    number.checked_mul(factor).filter(|seconds| *seconds <= 86_400).ok_or("give at most 24h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_read_with_its_unit() {
        for (text, wanted) in [("90", 90), ("90s", 90), ("5m", 300), ("24h", 86_400), ("0", 0)] {
            assert_eq!(seconds(text), Ok(wanted), "{text}");
        }
        for text in ["", "m", "5 m", "5d", "25h", "-1", "99999999999999999999"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn people_are_told_the_state_the_flows_and_the_warnings() {
        let drain = api::EgressDrain {
            schema: api::SCHEMA,
            state: "draining".into(),
            reason: Some("why".into()),
            until: None,
            flows: Some(3),
            warnings: vec!["alone".into()],
        };
        assert_eq!(show(&drain), "egress of this node: draining, 3 flows in progress: why\nwarning: alone\n");
    }
}
