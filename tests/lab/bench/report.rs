//! From the times of a stream and a log to one table.

use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::Duration;

use super::scenario::Scenario;
use crate::stream::{Echoed, gap};

/// Notices by which a node says that it has seen the failure.
const DETECTED: [&str; 3] = ["peer_silent", "tunnel_down", "peer_left"];

/// One failure, times in milliseconds.
#[derive(Debug)]
pub(super) struct Run {
    /// Longest time without an answer; `None`: none came any more.
    gap: Option<f64>,
    lost: usize,
    sent: usize,
    /// From the strike until the VM's node noticed.
    detect: Option<f64>,
    /// From there until it had elected another.
    decide: Option<f64>,
    /// From there until the first answer came again.
    install: Option<f64>,
}

fn ms(from: u64, to: u64) -> f64 {
    // as whole numbers first: a float has no nanoseconds of so many years
    to.wrapping_sub(from).cast_signed() as f64 / 1e6
}

impl Run {
    /// `event` and `struck` are when the strike began and was done, `log` what the VM's node wrote meanwhile.
    pub(super) fn new(stream: &[Echoed], event: u64, struck: u64, log: &str) -> Self {
        let found = gap(stream, event);
        let lost = stream.iter().filter(|echoed| echoed.back.is_none());
        // the strike is at the first loss, where there is one: programs that strike take a few milliseconds to start
        let first = lost
            .clone()
            .map(|echoed| echoed.sent)
            .find(|sent| (event..=struck + 1_000_000_000).contains(sent));
        let strike = first.unwrap_or(event);
        // lines that come often are held back by the log's limits: what lies outside the gap is of something else
        let end = found.map_or(u64::MAX, |(_, at)| at);
        let notices: Vec<(u64, String)> =
            log.lines().filter_map(notice).filter(|(at, _)| (event..=end).contains(at)).collect();
        let elected = notices.iter().find(|(_, event)| event == "egress_elected").map(|(at, _)| *at);
        // what is not told as seen has been heard with its decision
        let seen = notices.iter().find(|(_, event)| DETECTED.contains(&event.as_str())).map(|(at, _)| *at);
        let seen = seen.filter(|seen| elected.is_none_or(|elected| *seen <= elected)).or(elected);
        let both = |from: Option<u64>, to: Option<u64>| Some(ms(from?, to?));
        let again = found.map(|(_, at)| at).filter(|_| first.is_some());
        Self {
            gap: found.map(|(gap, _)| gap.as_secs_f64() * 1e3),
            lost: lost.count(),
            sent: stream.len(),
            detect: both(Some(strike), seen),
            decide: both(seen, elected),
            install: both(elected, again),
        }
    }

    pub(super) fn line(&self) -> String {
        let gap = self.gap.map_or("no answer any more".to_owned(), |gap| format!("gap {gap:.1} ms"));
        format!("{gap}, {} of {} lost", self.lost, self.sent)
    }

    fn json(&self) -> Value {
        json!({ "gap_ms": self.gap, "lost": self.lost, "sent": self.sent, "detect_ms": self.detect,
                "decide_ms": self.decide, "install_ms": self.install })
    }
}

/// Time in nanoseconds since 1970 and name of a line of the log.
fn notice(line: &str) -> Option<(u64, String)> {
    let value: Value = serde_json::from_str(line).ok()?;
    Some((nanoseconds(value["timestamp"].as_str()?)?, value["event"].as_str()?.to_owned()))
}

/// `2026-11-24T18:17:23.285889Z`; days by Howard Hinnant's `days_from_civil`.
fn nanoseconds(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let [year, month, day] = <[i64; 3]>::try_from(numbers(date, '-')?).ok()?;
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [hour, minute, second] = <[i64; 3]>::try_from(numbers(clock, ':')?).ok()?;
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year - 719_468;
    let seconds = u64::try_from(((days * 24 + hour) * 60 + minute) * 60 + second).ok()?;
    let fraction: u64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Some(seconds * 1_000_000_000 + fraction)
}

fn numbers(text: &str, between: char) -> Option<Vec<i64>> {
    text.split(between).map(|part| part.parse().ok()).collect()
}

/// All runs of a scenario.
#[derive(Debug)]
pub(super) struct Row {
    scenario: Scenario,
    pub runs: Vec<Run>,
    pub skipped: Option<String>,
    /// Runs that came to nothing, and why.
    pub failed: Vec<String>,
}

/// Median, 99th percentile and greatest, by nearest rank.
fn spread(mut values: Vec<f64>) -> Option<[f64; 3]> {
    values.sort_by(f64::total_cmp);
    let rank = |percent: usize| values.get((values.len() * percent).div_ceil(100).max(1) - 1).copied();
    Some([rank(50)?, rank(99)?, rank(100)?])
}

impl Row {
    pub(super) fn new(scenario: Scenario) -> Self {
        Self { scenario, runs: Vec::new(), skipped: None, failed: Vec::new() }
    }

    fn median(&self, value: fn(&Run) -> Option<f64>) -> String {
        let values = self.runs.iter().filter_map(value).collect();
        spread(values).map_or("-".to_owned(), |[median, ..]| format!("{median:.1}"))
    }

    /// One row of the table.
    pub(super) fn line(&self) -> String {
        let name = self.scenario.about();
        if let Some(why) = &self.skipped {
            return format!("| {name} | skipped: {why} | | | | | |");
        }
        // a gap that did not end is longer than any that did
        let gaps = self.runs.iter().map(|run| run.gap.unwrap_or(f64::INFINITY)).collect();
        let gaps = spread(gaps)
            .map_or("-".to_owned(), |[median, p99, max]| format!("{median:.0} / {p99:.0} / {max:.0}"));
        let lost = spread(self.runs.iter().map(|run| run.lost as f64).collect());
        let lost = lost.map_or("-".to_owned(), |[median, _, max]| format!("{median:.0} / {max:.0}"));
        let failed =
            if self.failed.is_empty() { String::new() } else { format!(", {} failed", self.failed.len()) };
        format!(
            "| {name} | {}{failed} | {gaps} | {lost} | {} | {} | {} |",
            self.runs.len(),
            self.median(|run| run.detect),
            self.median(|run| run.decide),
            self.median(|run| run.install),
        )
    }

    pub(super) fn json(&self) -> Value {
        json!({ "scenario": self.scenario.name(), "skipped": self.skipped, "failed": self.failed,
                "runs": self.runs.iter().map(Run::json).collect::<Vec<_>>() })
    }
}

/// The table.
pub(super) fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| what happens | runs | gap, ms: median / p99 / max | datagrams lost: median / max | detect, ms | decide, ms | \
         first answer, ms |\n|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let _ = writeln!(text, "{}", row.line());
    }
    text
}

/// What a long load has shown.
pub(super) fn load_line(load: &Value) -> String {
    let time = Duration::from_secs(load["seconds"].as_u64().unwrap_or_default());
    format!(
        "{time:?} of four TCP streams at {:.0} Mbit/s: {} nodes called silent, {} leases lost, {} changes of the egress node",
        load["mbit_s"].as_f64().unwrap_or_default(),
        load["peer_silent"],
        load["lease_lost"],
        load["egress_elected"],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_of_the_log_is_the_clock_s() {
        assert_eq!(nanoseconds("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(nanoseconds("2026-11-24T18:17:23.285889Z"), Some(1_795_544_243_285_889_000));
        assert_eq!(nanoseconds("2024-02-29T12:00:00.5Z"), Some(1_709_208_000_500_000_000));
        assert_eq!(nanoseconds("yesterday"), None);
    }

    #[test]
    fn stages_follow_each_other_from_the_first_loss() {
        let start = 1_795_544_243_000_000_000;
        let at = |ms: u64| start + ms * 1_000_000;
        let stream: Vec<Echoed> = (0..1000)
            .map(|i| Echoed { sent: at(i), back: (!(500..650).contains(&i)).then(|| at(i + 1)) })
            .collect();
        let log = "{\"timestamp\":\"2026-11-24T18:17:23.630000Z\",\"event\":\"peer_silent\"}\n\
                   {\"timestamp\":\"2026-11-24T18:17:23.631000Z\",\"event\":\"egress_elected\"}\n";
        let run = Run::new(&stream, at(495), at(499), log);
        assert_eq!((run.gap, run.lost), (Some(151.0), 150));
        assert_eq!((run.detect, run.decide, run.install), (Some(130.0), Some(1.0), Some(20.0)));
        let calm = Run::new(&stream[..400], at(300), at(300), "");
        assert_eq!((calm.gap, calm.lost, calm.detect, calm.install), (Some(1.0), 0, None, None));
    }

    #[test]
    fn ranks_are_nearest() {
        assert_eq!(spread((1..=100).map(f64::from).collect()), Some([50.0, 99.0, 100.0]));
        assert_eq!(spread(vec![3.0, 1.0, 2.0]), Some([2.0, 3.0, 3.0]));
        assert_eq!(spread(vec![]), None);
    }
}
