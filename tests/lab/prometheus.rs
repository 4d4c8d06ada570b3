//! Prometheus beside the lab: reads one scrape, finds the real programs, runs one server and asks it.

use crate::world::{Lab, wait_until};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// One scrape, parsed.
#[derive(Debug, Clone, PartialEq)]
pub struct Scrape(Vec<(String, BTreeMap<String, String>, f64)>);

impl Scrape {
    /// From the text format. Label values of ours hold neither commas nor quotes.
    pub fn parse(text: &str) -> Self {
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let pairs = labels.trim_end_matches('}').split(',').filter_map(|pair| pair.split_once('='));
            let labels = pairs.map(|(k, v)| (k.to_owned(), v.trim_matches('"').to_owned())).collect();
            Some((name.to_owned(), labels, value.parse().ok()?))
        };
        Self(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    /// The sum of a metric's series that have these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |had: &BTreeMap<String, String>| {
            labels.iter().all(|(k, v)| had.get(*k).is_some_and(|value| value == v))
        };
        self.0.iter().filter(|(n, had, _)| n == name && fits(had)).map(|(.., value)| value).sum()
    }

    /// Whether there is a series of this name.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(n, ..)| n == name)
    }

    /// Values that a label has, over all series.
    pub fn values_of(&self, label: &str) -> Vec<&str> {
        let mut values: Vec<&str> =
            self.0.iter().filter_map(|(_, labels, _)| labels.get(label)).map(String::as_str).collect();
        values.sort_unstable();
        values.dedup();
        values
    }
}

/// `prometheus` or `promtool`: the machine's, or what tests/deps.sh has unpacked into the target directory.
pub fn program(name: &str) -> Result<String> {
    let path = std::env::var("PATH").unwrap_or_default();
    // a test is in target/debug/deps
    let exe = std::env::current_exe()?;
    let unpacked = exe.ancestors().nth(3).map(|target| target.join("tools/prometheus/usr/bin"));
    let places = path.split(':').map(PathBuf::from).chain(unpacked);
    let found = places.map(|dir| dir.join(name)).find(|file| file.is_file());
    let found = found.with_context(|| format!("no {name} here: run `tests/deps.sh test`"))?;
    Ok(found.to_string_lossy().into_owned())
}

/// Where the server listens, in the namespace it runs in.
const ADDRESS: &str = "127.0.0.1:9090";

/// A running Prometheus in the gateway's namespace, from which it reaches every host's underlay address.
#[derive(Debug)]
pub struct Prometheus<'a> {
    lab: &'a Lab,
}

impl Lab {
    /// A scrape of a host's node.
    pub fn scrape(&self, host: &str) -> Scrape {
        Scrape::parse(&self.metrics(host))
    }

    /// Makes a host's node serve its metrics on all its addresses. Before it is started.
    pub fn open_metrics(&self, host: &str) -> Result<()> {
        let file = self.file(host, "node.toml");
        let text = std::fs::read_to_string(&file)?.replace("\"127.0.0.1:9650\"", "\"0.0.0.0:9650\"");
        Ok(std::fs::write(file, text)?)
    }

    /// Starts a Prometheus that scrapes every host each second and evaluates the rules of a file.
    pub fn start_prometheus(&mut self, rules: &str) -> Result<()> {
        let targets: Vec<String> =
            self.host_names().iter().map(|host| format!("\"{}:9650\"", self.underlay(host))).collect();
        let config = format!(
            "global:\n  scrape_interval: 1s\n  scrape_timeout: 1s\n  evaluation_interval: 1s\n\
             rule_files: [\"{rules}\"]\n\
             scrape_configs:\n  - job_name: mesh-node\n    static_configs:\n      - targets: [{}]\n",
            targets.join(", ")
        );
        let file = self.dir().join("prometheus.yml");
        std::fs::write(&file, config)?;
        let args = [
            program("prometheus")?,
            format!("--config.file={}", file.display()),
            format!("--storage.tsdb.path={}", self.dir().join("prometheus").display()),
            format!("--web.listen-address={ADDRESS}"),
        ];
        self.spawn("gw", &args.iter().map(String::as_str).collect::<Vec<_>>())?;
        let ready = || self.prometheus().get("/api/v1/status/buildinfo", None).is_ok();
        if !wait_until(Duration::from_secs(20), ready) {
            bail!("prometheus does not answer: {}", self.log("gw"));
        }
        Ok(())
    }

    /// The one that [`Lab::start_prometheus`] has started.
    pub fn prometheus(&self) -> Prometheus<'_> {
        Prometheus { lab: self }
    }
}

impl Prometheus<'_> {
    fn get(&self, path: &str, query: Option<&str>) -> Result<Value> {
        let url = format!("http://{ADDRESS}{path}");
        let mut args = vec!["curl", "-sS", "--noproxy", "*", "-m", "5", "-G", &url];
        let query = query.map(|q| format!("query={q}"));
        if let Some(query) = &query {
            args.extend(["--data-urlencode", query]);
        }
        let answer = self.lab.exec("gw", &args)?;
        let json = answer.json();
        if json["status"] != "success" {
            bail!("{path} {query:?}: {}", answer.text().trim());
        }
        Ok(json["data"].clone())
    }

    /// Evaluates a query now: labels and value of each series.
    pub fn query(&self, query: &str) -> Result<Vec<(BTreeMap<String, String>, f64)>> {
        let data = self.get("/api/v1/query", Some(query))?;
        let series = data["result"].as_array().context("a vector")?;
        let one = |series: &Value| {
            let labels = series["metric"].as_object()?;
            let labels =
                labels.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect();
            Some((labels, series["value"][1].as_str()?.parse().ok()?))
        };
        series.iter().map(|s| one(s).with_context(|| format!("a series: {s}"))).collect()
    }

    /// Each alert's name, its state (`inactive`, `pending`, `firing`), and what is wrong with its rule.
    pub fn alerts(&self) -> Result<Vec<(String, String, Option<String>)>> {
        let data = self.get("/api/v1/rules", None)?;
        let groups = data["groups"].as_array().context("groups")?;
        let rules = groups.iter().filter_map(|g| g["rules"].as_array()).flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let wrong = |rule: &Value| (rule["health"] != "ok").then(|| rule.to_string());
        Ok(rules.map(|rule| (text(&rule["name"]), text(&rule["state"]), wrong(rule))).collect())
    }
}
