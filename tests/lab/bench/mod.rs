//! `make bench-egress`: for how long a VM's Internet is away when its egress node fails, in each way that it can. A report; it
//! asserts nothing.
//!
//! ```text
//!   vm1 -- ph1 ==tunnels== ph2 -- up0 --+
//!                      === ph3 -- up0 --+-- gw -- inet (echo)
//! ```
//! The uplinks are cables of their own, so that one can be cut while the tunnels stay. Whoever carries is struck; the other one
//! takes over, and is struck in the next run.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::stream;
use crate::world::WEB4;
use report::{Row, Run};
use scenario::{Scenario, Skipped};
use world::World;

mod report;
mod scenario;
mod world;

/// A stream is struck after so long.
const BEFORE: Duration = Duration::from_millis(1000);

/// Between two looks of a long load.
const MINUTE: Duration = Duration::from_secs(60);

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Runs of each scenario.
    #[arg(long, default_value_t = 100)]
    runs: usize,
    /// These scenarios alone: calm, power, cable, target, freeze, drain, term.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Seconds of four-stream TCP load, in which a failover would be a false alarm.
    #[arg(long, default_value_t = 0)]
    load: u64,
    /// Where the results go.
    #[arg(long, default_value = "target/bench/egress.json")]
    json: PathBuf,
}

/// Runs it all, prints one table and writes the results.
pub fn run(options: &Options) -> Result<()> {
    let chosen = Scenario::chosen(&options.only)?;
    let mut world = World::start()?;
    let idle = world.idle_cpu(Duration::from_secs(10))?;
    println!("idle, probing: {:.2} % of a core for each of the three daemons", idle * 100.0);
    let mut rows = Vec::new();
    for scenario in chosen {
        let row = scenario_runs(&mut world, scenario, options.runs)?;
        println!("{}", row.line());
        rows.push(row);
    }
    let load = if options.load > 0 { Some(load(&mut world, options.load)?) } else { None };
    println!("\n{}", report::table(&rows));
    if let Some(load) = &load {
        println!("{}", report::load_line(load));
    }
    let results = json!({
        "runs": options.runs,
        "idle_cpu_of_a_core": idle,
        "scenarios": rows.iter().map(Row::json).collect::<Vec<_>>(),
        "load": load,
    });
    write(&options.json, &results)
}

fn write(file: &Path, results: &Value) -> Result<()> {
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    std::fs::write(file, serde_json::to_string_pretty(results)?)
        .with_context(|| format!("write {}", file.display()))?;
    println!("every single run: {}", file.display());
    Ok(())
}

fn scenario_runs(world: &mut World, scenario: Scenario, runs: usize) -> Result<Row> {
    let mut row = Row::new(scenario);
    for number in 1..=runs {
        world.ready()?;
        match one(world, scenario) {
            Ok(Ok(run)) => {
                eprintln!("{} {number}/{runs}: {}", scenario.name(), run.line());
                row.runs.push(run);
            }
            Ok(Err(Skipped(why))) => {
                row.skipped = Some(why);
                return Ok(row);
            }
            // one run that comes to nothing must not cost the others
            Err(error) => {
                eprintln!("{} {number}/{runs}: {error:#}", scenario.name());
                row.failed.push(format!("{error:#}"));
                if row.failed.len() > runs / 4 + 3 {
                    bail!("{} fails again and again: {error:#}", scenario.name());
                }
                world.rebuild()?;
            }
        }
    }
    Ok(row)
}

/// Strikes once in the middle of a stream.
fn one(world: &mut World, scenario: Scenario) -> Result<Result<Run, Skipped>> {
    if let Some(skipped) = scenario.refused(world)? {
        return Ok(Err(skipped));
    }
    let victim = world.elected()?.context("nobody carries")?;
    let file = world.lab.dir().join("stream");
    let _ = std::fs::remove_file(&file);
    let seen = world.lab.log("ph1").len();
    world.stream(WEB4, BEFORE + scenario.takes(), &file)?;
    std::thread::sleep(BEFORE);
    let event = stream::clock();
    scenario.strike(world, &victim)?;
    let struck = stream::clock();
    let written = crate::wait_until(BEFORE + scenario.takes() + Duration::from_secs(10), || file.exists());
    scenario.mend(world, &victim)?;
    if !written {
        bail!("the stream did not end");
    }
    let log = world.lab.log("ph1");
    let log = log.get(seen..).unwrap_or_default();
    Ok(Ok(Run::new(&stream::read(&file)?, event, struck, log)))
}

/// Four TCP streams through the egress node, on the same cores as all the daemons.
fn load(world: &mut World, seconds: u64) -> Result<Value> {
    world.ready()?;
    let before = world.alarms();
    world.lab.spawn("inet", &["timeout", &(seconds + 60).to_string(), "iperf3", "-s", "-p", "5201"])?;
    let mut left = seconds;
    let (mut bytes, mut slices) = (0.0, 0u32);
    while left > 0 {
        let slice = left.min(MINUTE.as_secs());
        left -= slice;
        let time = slice.to_string();
        let args = ["iperf3", "-J", "-c", WEB4, "-p", "5201", "-P", "4", "-t", &time];
        // the server may not listen yet
        let mut answer = Value::Null;
        crate::wait_until(Duration::from_secs(5), || {
            answer = world.lab.exec("vm1", &args).map(|outcome| outcome.json()).unwrap_or_default();
            answer["end"]["sum_received"]["bytes"].is_number()
        });
        bytes += answer["end"]["sum_received"]["bytes"].as_f64().context("iperf3 did not run")?;
        slices += 1;
        eprintln!("load: {left} s left, alarms so far {:?}", world.alarms().since(&before));
    }
    let alarms = world.alarms().since(&before);
    Ok(json!({
        "seconds": seconds,
        "slices": slices,
        "mbit_s": bytes * 8e-6 / seconds as f64,
        "peer_silent": alarms.silent,
        "lease_lost": alarms.leases,
        "egress_elected": alarms.elected,
    }))
}
