//! The real daemon in the lab: certificates, configuration files, starting, stopping, killing, asking.

use crate::command::{self, Outcome, must, run};
use crate::spec::Host;
use crate::world::{Lab, wait_until};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

/// The running daemons by host.
#[derive(Debug, Default)]
pub(crate) struct Nodes(BTreeMap<String, Child>);

impl Nodes {
    pub(crate) fn kill_all(&mut self) {
        for child in self.0.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.0.clear();
    }
}

/// Finds one of the project's programs: in `$MESH_BIN_DIR`, or in the target directory we run from.
pub fn binary(name: &str) -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("MESH_BIN_DIR") {
        let path = PathBuf::from(dir).join(name);
        if path.exists() {
            return Ok(path);
        }
    }
    let exe = std::env::current_exe()?;
    // A test is in target/debug/deps, a program in target/debug.
    let found = exe.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not built: run `cargo build --workspace` or set MESH_BIN_DIR"))
}

/// The `mesh-lab` program itself, which is also the lab's servers and clients.
pub fn tool() -> Result<PathBuf> {
    binary("mesh-lab")
}

fn list(values: &[String]) -> String {
    // an announced prefix may be an inline table
    let quote = |value: &String| if value.starts_with('{') { value.clone() } else { format!("\"{value}\"") };
    let quoted: Vec<String> = values.iter().map(quote).collect();
    format!("[{}]", quoted.join(", "))
}

impl Lab {
    /// A file of a host's node.
    pub fn file(&self, host: &str, name: &str) -> PathBuf {
        self.dir().join(host).join(name)
    }

    fn host_plan(&self, name: &str) -> Result<&Host> {
        self.plan.hosts.iter().find(|h| h.name == name).with_context(|| format!("no host {name} in the plan"))
    }

    /// Makes the CA, every host's certificate and every host's configuration.
    pub(crate) fn prepare_nodes(&mut self) -> Result<()> {
        let ctl = binary("mesh-ctl")?.to_string_lossy().into_owned();
        let ca = self.dir().join("ca").to_string_lossy().into_owned();
        must(None, &[&ctl, "ca", "init", "--name", "lab", "--dir", &ca])?;
        for name in self.host_names() {
            self.issue(&name, &ca)?;
            self.write_config(&name)?;
        }
        Ok(())
    }

    /// Issues a host's certificate by the CA in a directory and puts the files in place.
    pub fn issue(&self, name: &str, ca: &str) -> Result<()> {
        let host = self.host_plan(name)?;
        let ctl = binary("mesh-ctl")?.to_string_lossy().into_owned();
        let mut args: Vec<String> = [&ctl, "ca", "issue", name].iter().map(|s| (*s).to_owned()).collect();
        for net in &host.nets {
            for prefix in &net.prefixes {
                args.extend(["--prefix".into(), format!("{}={prefix}", net.name)]);
            }
            let mut allowed: Vec<&str> = net.announce.iter().map(String::as_str).collect();
            if net.announce.iter().any(|prefix| prefix.starts_with("203.0.113.")) {
                // Any address of the public range: a VM may move here without a new certificate.
                allowed.retain(|prefix| !prefix.starts_with("203.0.113."));
                allowed.push("203.0.113.0/24");
            }
            allowed.retain(|prefix| !prefix.starts_with('{'));
            for prefix in allowed {
                args.extend(["--announce".into(), format!("{}={prefix}", net.name)]);
            }
        }
        if !host.offers.is_empty() {
            args.push("--egress".into());
        }
        args.extend(["--dir".into(), ca.into()]);
        must(None, &args.iter().map(String::as_str).collect::<Vec<_>>())?;
        std::fs::create_dir_all(self.file(name, ""))?;
        let from = PathBuf::from(ca);
        for (source, target) in [
            ("ca.pem".to_owned(), "ca.pem"),
            (format!("{name}.pem"), "node.pem"),
            (format!("{name}.key"), "node.key"),
        ] {
            let source = from.join(source);
            std::fs::copy(&source, self.file(name, target))
                .with_context(|| format!("copy {}", source.display()))?;
        }
        Ok(())
    }

    /// The text of a host's node.toml.
    pub fn config(&self, name: &str) -> Result<String> {
        let host = self.host_plan(name)?;
        let at = |file: &str| self.file(name, file).to_string_lossy().into_owned();
        let any = if self.plan.underlay6 { "[::]" } else { "0.0.0.0" };
        let mut text = format!(
            "[node]\nlisten = \"{any}:4650\"\nmetrics = \"127.0.0.1:9650\"\nca = \"{}\"\ncertificate = \"{}\"\n\
             key = \"{}\"\nstate_dir = \"{}\"\ncontrol_socket = \"{}\"\n{}",
            at("ca.pem"),
            at("node.pem"),
            at("node.key"),
            at("state"),
            at("node.sock"),
            host.extra
        );
        if !host.extra.contains("transport") {
            writeln!(text, "transport = \"{}\"", self.transport())?;
        }
        let seeds = match &host.seeds {
            Some(seeds) => seeds.clone(),
            None => self.host_names().into_iter().take(2).collect(),
        };
        for seed in seeds.iter().filter(|seed| *seed != name) {
            let address = self.underlay(seed);
            let address = if address.contains(':') { format!("[{address}]") } else { address };
            write!(text, "\n[[peer]]\nendpoint = \"{address}:4650\"\n")?;
        }
        for net in &host.nets {
            write!(text, "\n[[network]]\nname = \"{}\"\ninterface = \"{}\"\n", net.name, net.bridge)?;
            writeln!(text, "subnet = {}\nprefix = {}", list(&net.subnets), list(&net.prefixes))?;
            writeln!(text, "announce = {}", list(&net.announce))?;
            match net.egress.as_slice() {
                [one] if ["auto", "local", "none"].contains(&one.as_str()) => {
                    writeln!(text, "egress = \"{one}\"")?;
                }
                nodes => writeln!(text, "egress = {}", list(nodes))?,
            }
            text.push_str(&net.extra);
        }
        for offer in &host.offers {
            write!(text, "\n[[egress]]\nnetwork = \"{}\"\ninterface = \"eth0\"\n", offer.network)?;
            match offer.snat.as_slice() {
                [one] => writeln!(text, "snat = \"{one}\"")?,
                both => writeln!(text, "snat = {}", list(both))?,
            }
            writeln!(text, "priority = {}", offer.priority)?;
            text.push_str(&offer.extra);
        }
        Ok(text)
    }

    /// How packets travel where a test does not say. All tests once more, the other way: MESH_LAB_TRANSPORT=datagram.
    pub fn transport(&self) -> String {
        std::env::var("MESH_LAB_TRANSPORT").unwrap_or_else(|_| "lanes".into())
    }

    /// Writes a host's node.toml from the plan.
    pub fn write_config(&self, name: &str) -> Result<()> {
        std::fs::create_dir_all(self.file(name, "state"))?;
        std::fs::write(self.file(name, "node.toml"), self.config(name)?)?;
        Ok(())
    }

    /// Starts a host's daemon and waits until its control socket answers.
    pub fn start_node(&mut self, name: &str) -> Result<()> {
        let program = binary("mesh-node")?.to_string_lossy().into_owned();
        let config = self.file(name, "node.toml").to_string_lossy().into_owned();
        let level = std::env::var("MESH_LAB_LOG").unwrap_or_else(|_| "info".into());
        let log = self.dir().join(format!("{name}.log"));
        // in a session of its own, as a service manager starts it
        let args = ["setsid", program.as_str(), "run", "--config", &config];
        let mut child = command::spawn(&self.ns(name), &args, &[("RUST_LOG", &level)], &log)?;
        let end = Instant::now() + Duration::from_secs(10);
        let mut answered = false;
        while !answered && Instant::now() < end {
            if let Some(status) = child.try_wait()? {
                bail!("mesh-node on {name} ended with {status}: {}", self.log(name));
            }
            answered = self.ctl(name, &["peers"]).is_ok_and(|o| o.code != Some(3));
            if !answered {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        self.nodes.0.insert(name.to_owned(), child);
        if !answered {
            bail!("mesh-node on {name} does not answer on its socket: {}", self.log(name));
        }
        Ok(())
    }

    /// The process id of a host's daemon.
    pub fn pid(&self, host: &str) -> Result<u32> {
        self.nodes.0.get(host).map(Child::id).with_context(|| format!("no node runs on {host}"))
    }

    /// Is it running (and not ended by itself)?
    pub fn runs(&mut self, host: &str) -> bool {
        self.nodes.0.get_mut(host).is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Stops a daemon politely; it has ten seconds. Gives how long it took.
    pub fn stop_node(&mut self, host: &str) -> Result<Duration> {
        command::signal(self.pid(host)?, "TERM")?;
        self.ended(host)
    }

    /// Waits for the end of a daemon that has been told to stop. Gives how long it took.
    pub fn ended(&mut self, host: &str) -> Result<Duration> {
        let start = Instant::now();
        let Some(mut child) = self.nodes.0.remove(host) else { bail!("no node runs on {host}") };
        let mut status = None;
        let ended = wait_until(Duration::from_secs(10), || {
            status = child.try_wait().ok().flatten();
            status.is_some()
        });
        if !ended {
            child.kill()?;
            child.wait()?;
            bail!("mesh-node on {host} did not stop within 10 s: {}", self.log(host));
        }
        match status {
            Some(status) if status.success() => Ok(start.elapsed()),
            status => bail!("mesh-node on {host} stopped with {status:?}: {}", self.log(host)),
        }
    }

    /// Kills a daemon without warning.
    pub fn kill_node(&mut self, host: &str) -> Result<()> {
        let Some(mut child) = self.nodes.0.remove(host) else { bail!("no node runs on {host}") };
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Stops a daemon in its tracks (SIGSTOP).
    pub fn freeze(&self, host: &str) -> Result<()> {
        command::signal(self.pid(host)?, "STOP")
    }

    /// Lets it go on.
    pub fn thaw(&self, host: &str) -> Result<()> {
        command::signal(self.pid(host)?, "CONT")
    }

    /// Runs mesh-ctl against a host's node.
    pub fn ctl(&self, host: &str, args: &[&str]) -> Result<Outcome> {
        let program = binary("mesh-ctl")?.to_string_lossy().into_owned();
        let socket = self.file(host, "node.sock").to_string_lossy().into_owned();
        let mut words = vec![program.as_str(), "--no-color", "--socket", &socket];
        words.extend(args);
        run(Some(&self.ns(host)), &words)
    }

    /// Names of the peers a host sees in state `up`.
    pub fn peers_up(&self, host: &str) -> Vec<String> {
        let Ok(outcome) = self.ctl(host, &["--json", "peers"]) else { return Vec::new() };
        let json = outcome.json();
        let Some(peers) = json.get("peers").and_then(|p| p.as_array()) else { return Vec::new() };
        let up = peers.iter().filter(|p| p.get("state").and_then(|s| s.as_str()) == Some("up"));
        up.filter_map(|p| p.get("name").or(p.get("node"))?.as_str()).map(str::to_owned).collect()
    }

    /// Waits until every running node sees every other running node up.
    pub fn wait_connected(&self, limit: Duration) -> Result<()> {
        let names: Vec<&String> = self.nodes.0.keys().collect();
        let mut missing = String::new();
        let connected = wait_until(limit, || {
            missing.clear();
            for name in &names {
                let up = self.peers_up(name);
                for other in names.iter().filter(|other| *other != name && !up.contains(other)) {
                    let _ = write!(missing, " {name}-{other}");
                }
            }
            missing.is_empty()
        });
        if !connected {
            let logs: Vec<String> = names.iter().map(|name| format!("{name}: {}", self.log(name))).collect();
            bail!("peers not up within {limit:?}:{missing}\n{}", logs.join("\n"));
        }
        Ok(())
    }

    /// The candidates for the egress of a host's first network, each with its state, in the host's order.
    pub fn candidates(&self, host: &str) -> String {
        let answer = self.ctl(host, &["--json", "egress"]).map(|o| o.json()).unwrap_or_default();
        let list = answer["egress"][0]["candidates"].as_array().cloned().unwrap_or_default();
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let words = list.iter().map(|c| format!("{} {}", text(&c["node"]), text(&c["state"])));
        words.collect::<Vec<_>>().join(", ")
    }

    /// How often a host's log tells of an event.
    pub fn notices(&self, host: &str, event: &str) -> usize {
        self.log(host).matches(&format!("\"event\":\"{event}\"")).count()
    }

    /// A host's metrics as text.
    pub fn metrics(&self, host: &str) -> String {
        let args = ["curl", "-sS", "--noproxy", "*", "-m", "5", "http://127.0.0.1:9650/metrics"];
        self.exec(host, &args).map(|o| o.stdout).unwrap_or_default()
    }

    /// The sum of all samples of a metric whose labels contain a text.
    pub fn metric(&self, host: &str, name: &str, label: &str) -> f64 {
        let text = self.metrics(host);
        let samples = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
        });
        samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}
