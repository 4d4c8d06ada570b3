//! The lab of the bench, and what is done to it.

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::time::Duration;

use crate::command::{line, must, run};
use crate::node::{binary, tool};
use crate::spec::Plan;
use crate::world::{Lab, WEB4, wait_until};

/// Both that carry, with the third byte of their uplinks' networks.
const CARRIERS: [(&str, u8); 2] = [("ph2", 2), ("ph3", 3)];

/// Until all is well again between two runs.
const RECOVERY: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub(super) struct World {
    pub lab: Lab,
    /// The daemon tests its uplink.
    pub probes: bool,
}

/// Notices of all nodes that a quiet mesh has none of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Alarms {
    pub silent: usize,
    pub leases: usize,
    pub elected: usize,
}

impl Alarms {
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            silent: self.silent - before.silent,
            leases: self.leases - before.leases,
            elected: self.elected - before.elected,
        }
    }
}

impl World {
    pub(super) fn start() -> Result<Self> {
        let mut plan = Plan::standard("", 3).each_net(|_, net| net.egress = vec!["ph3".into(), "ph2".into()]);
        for (host, net) in CARRIERS {
            plan = plan.with(host, |mut planned| {
                planned.offers.clear();
                planned.offer("default", &[&format!("198.18.{net}.2")], 100)
            });
        }
        let mut world = Self { lab: Lab::build(plan)?, probes: true };
        let gw = world.lab.ns("gw");
        for (host, net) in CARRIERS {
            let ns = world.lab.ns(host);
            line(None, &format!("ip -n {gw} link add u-{host} type veth peer name up0 netns {ns}"))?;
            line(None, &format!("ip -n {gw} addr add 198.18.{net}.1/30 dev u-{host}"))?;
            line(None, &format!("ip -n {ns} addr add 198.18.{net}.2/30 dev up0"))?;
            line(None, &format!("ip -n {ns} link set up0 up"))?;
            world.uplink(host, "up")?;
            world.probes = world.probes && world.configure(host, true)?;
        }
        for (host, _) in CARRIERS {
            let accepted = world.configure(host, world.probes)?;
            anyhow::ensure!(accepted, "the configuration of {host} is refused");
        }
        for host in world.lab.host_names() {
            world.lab.start_node(&host)?;
        }
        world.lab.wait_connected(Duration::from_secs(20))?;
        Ok(world)
    }

    /// A world that is beyond repair is built anew.
    pub(super) fn rebuild(&mut self) -> Result<()> {
        *self = Self::start()?;
        Ok(())
    }

    /// Writes a carrier's file: it leaves by its own cable, and tests it where this can be written. Says whether it is accepted.
    fn configure(&self, host: &str, probes: bool) -> Result<bool> {
        let own = "interface = \"up0\"";
        let own = if probes { format!("{own}\nprobe = [\"{WEB4}\"]") } else { own.to_owned() };
        let text = self.lab.config(host)?.replace("interface = \"eth0\"", &own);
        let file = self.lab.file(host, "node.toml");
        std::fs::write(&file, text)?;
        let program = binary("mesh-node")?.to_string_lossy().into_owned();
        let args = [program.as_str(), "check", "--config", &file.to_string_lossy()];
        Ok(run(Some(&self.lab.ns(host)), &args)?.ok())
    }

    /// Waits until somebody carries and both could.
    pub(super) fn ready(&mut self) -> Result<()> {
        if wait_until(RECOVERY, || self.well()) {
            return Ok(());
        }
        // what has failed often may be held down for long: who looks anew holds nothing against anybody
        self.lab.kill_node("ph1")?;
        self.lab.start_node("ph1")?;
        if !wait_until(RECOVERY, || self.well()) {
            bail!("the mesh does not recover: {}", self.lab.ctl("ph1", &["egress"])?.text());
        }
        Ok(())
    }

    fn well(&self) -> bool {
        let Ok(answer) = self.lab.ctl("ph1", &["--json", "egress"]) else { return false };
        let answer = answer.json();
        let candidates = answer["egress"][0]["candidates"].as_array().cloned().unwrap_or_default();
        candidates.iter().filter(|c| c["state"] == "alive").count() == CARRIERS.len()
            && self.lab.web("vm1", WEB4, None).is_some()
    }

    pub(super) fn elected(&self) -> Result<Option<String>> {
        let answer = self.lab.ctl("ph1", &["--json", "egress"])?.json();
        Ok(answer["egress"][0]["elected"].as_str().map(str::to_owned))
    }

    /// An order that has to be obeyed.
    pub(super) fn ask(&self, host: &str, words: &[&str]) -> Result<()> {
        let outcome = self.lab.ctl(host, words)?;
        anyhow::ensure!(outcome.ok(), "mesh-ctl {} on {host}: {}", words.join(" "), outcome.text());
        Ok(())
    }

    /// Starts the stream of the VM.
    pub(super) fn stream(&mut self, to: &str, time: Duration, file: &Path) -> Result<()> {
        let (tool, time) = (tool()?, time.as_millis().to_string());
        let words = [&tool.to_string_lossy(), "stream", to, &time, &file.to_string_lossy()];
        self.lab.spawn("vm1", &words).map(drop)
    }

    /// The uplink's cable, at its far end.
    pub(super) fn uplink(&self, host: &str, state: &str) -> Result<()> {
        line(None, &format!("ip -n {} link set u-{host} {state}", self.lab.ns("gw")))?;
        if state == "up" { self.default_route(host) } else { Ok(()) }
    }

    /// Both cables in one instant.
    pub(super) fn cables(&self, host: &str, state: &str) -> Result<()> {
        let both = format!("link set p-{host} {state}\\nlink set u-{host} {state}\\n");
        let gw = self.lab.ns("gw");
        must(None, &["sh", "-c", &format!("printf '{both}' | ip -n {gw} -batch -")])?;
        if state == "up" { self.default_route(host) } else { Ok(()) }
    }

    fn default_route(&self, host: &str) -> Result<()> {
        let net = CARRIERS.iter().find(|(name, _)| *name == host).context("no carrier")?.1;
        let ns = self.lab.ns(host);
        line(None, &format!("ip -n {ns} route replace default via 198.18.{net}.1 dev up0")).map(drop)
    }

    /// Lets all that comes by an uplink vanish behind it.
    pub(super) fn swallow(&self, host: &str, on: bool) -> Result<()> {
        let gw = self.lab.ns("gw");
        let rules = format!(
            "table ip dead-{host} {{ chain in {{ type filter hook prerouting priority -300; iifname \"u-{host}\" drop; }}; }}"
        );
        let words = if on { rules } else { format!("delete table ip dead-{host}") };
        must(Some(&gw), &["nft", &words]).map(drop)
    }

    pub(super) fn alarms(&self) -> Alarms {
        let count = |event: &str| -> usize {
            let told = format!("\"event\":\"{event}\"");
            self.lab.host_names().iter().map(|host| self.lab.log(host).matches(&told).count()).sum()
        };
        Alarms {
            silent: count("peer_silent"),
            leases: count("lease_lost"),
            elected: count("egress_elected") + count("egress_lost"),
        }
    }

    /// What the daemons need while nothing passes, as a part of one core each.
    pub(super) fn idle_cpu(&mut self, time: Duration) -> Result<f64> {
        self.ready()?;
        let used = || -> Result<f64> {
            let mut ticks = 0.0;
            for host in self.lab.host_names() {
                let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.lab.pid(&host)?))?;
                // user and system time are the 14th and 15th field, proc_pid_stat(5); the name may have spaces
                let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(2);
                ticks += fields.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>();
            }
            Ok(ticks)
        };
        let per_second: f64 = must(None, &["getconf", "CLK_TCK"])?.trim().parse()?;
        let before = used()?;
        std::thread::sleep(time);
        let daemons = self.lab.host_names().len() as f64;
        Ok((used()? - before) / per_second / time.as_secs_f64() / daemons)
    }
}
