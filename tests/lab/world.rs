//! Building and destroying the world: namespaces, bridges, wires, routes; and damage to them on purpose.

use crate::capture::Capture;
use crate::command::{self, Outcome, line, must, run};
use crate::node::Nodes;
use crate::spec::{Host, Plan, Vm};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The web server of the lab's Internet.
pub const WEB4: &str = "192.0.2.80";
/// The same by IPv6.
pub const WEB6: &str = "2001:db8:80::80";
/// The gateway's address on the underlay.
pub const GATEWAY: &str = "198.51.100.1";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A running lab. Dropping it removes everything.
#[derive(Debug)]
pub struct Lab {
    /// What it was built from.
    pub plan: Plan,
    pub(crate) nodes: Nodes,
    dir: PathBuf,
    children: Vec<Child>,
    captures: u32,
    keep: bool,
}

/// Polls until the condition holds; `false` when the time is over.
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Host part of an underlay address, also the number in names: 11 for the first.
fn number(index: usize) -> usize {
    index + 11
}

/// The family flag of `ip` for an address or prefix.
pub(crate) fn family(address: &str) -> &'static str {
    if address.contains(':') { "-6" } else { "-4" }
}

fn bare(address: &str) -> &str {
    address.split('/').next().unwrap_or(address)
}

fn directory(prefix: &str) -> PathBuf {
    std::env::temp_dir().join(format!("mesh-lab-{prefix}"))
}

/// Names of all namespaces on this machine.
fn namespaces() -> Result<Vec<String>> {
    let text = must(None, &["ip", "netns", "list"])?;
    Ok(text.lines().filter_map(|l| l.split_whitespace().next()).map(str::to_owned).collect())
}

/// Ends every process in the lab's namespaces, deletes the namespaces and the directory.
pub fn remove(prefix: &str) -> Result<()> {
    let start = format!("{prefix}-");
    for ns in namespaces()?.iter().filter(|ns| ns.starts_with(&start)) {
        for pid in must(None, &["ip", "netns", "pids", ns])?.split_whitespace() {
            if let Ok(pid) = pid.parse() {
                // It may be gone by itself in the meantime.
                let _ = command::signal(pid, "KILL");
            }
        }
        // Another test process may have swept the same leftovers in this moment.
        let _ = run(None, &["ip", "netns", "del", ns])?;
    }
    let _ = std::fs::remove_dir_all(directory(prefix));
    Ok(())
}

/// Removes labs whose process was killed before it could clean up.
fn sweep() -> Result<()> {
    for ns in namespaces()? {
        let Some(rest) = ns.strip_prefix("mesh-") else { continue };
        let Some((pid, rest)) = rest.split_once('x') else { continue };
        let Some((count, _)) = rest.split_once('-') else { continue };
        let number = pid.parse::<u32>().is_ok() && count.parse::<u32>().is_ok();
        if number && !Path::new("/proc").join(pid).exists() {
            remove(&format!("mesh-{pid}x{count}"))?;
        }
    }
    Ok(())
}

impl Lab {
    /// Builds the world of a plan and issues certificates; no node is started.
    pub fn build(plan: Plan) -> Result<Self> {
        let mut lab = Self::wires(plan)?;
        lab.prepare_nodes()?;
        Ok(lab)
    }

    /// Builds the world and starts every node.
    pub fn start(plan: Plan) -> Result<Self> {
        let mut lab = Self::build(plan)?;
        for name in lab.host_names() {
            lab.start_node(&name)?;
        }
        lab.wait_connected(Duration::from_secs(20))?;
        Ok(lab)
    }

    /// Builds only namespaces and wires: no certificates, no nodes.
    pub fn wires(mut plan: Plan) -> Result<Self> {
        if must(None, &["id", "-u"])?.trim() != "0" {
            bail!("the lab makes network namespaces: run it as root");
        }
        if plan.prefix.is_empty() {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            plan.prefix = format!("mesh-{}x{count}", std::process::id());
        }
        sweep()?;
        remove(&plan.prefix)?;
        let dir = directory(&plan.prefix);
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let mut lab =
            Self { plan, nodes: Nodes::default(), dir, children: Vec::new(), captures: 0, keep: false };
        lab.outside()?;
        for (index, host) in lab.plan.hosts.clone().iter().enumerate() {
            lab.host(index, host)?;
        }
        for vm in lab.plan.vms.clone() {
            lab.vm(&vm)?;
        }
        lab.serve("inet")?;
        Ok(lab)
    }

    /// Leaves the lab running when this value is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// The namespace of a host, a VM, `gw` or `inet`.
    pub fn ns(&self, name: &str) -> String {
        format!("{}-{name}", self.plan.prefix)
    }

    /// Where logs, certificates and captures are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Names of all hosts.
    pub fn host_names(&self) -> Vec<String> {
        self.plan.hosts.iter().map(|host| host.name.clone()).collect()
    }

    /// A host's underlay address (of the family the plan chose).
    pub fn underlay(&self, host: &str) -> String {
        let index = self.plan.hosts.iter().position(|h| h.name == host).unwrap_or_default();
        if self.plan.underlay6 { self.underlay6(index) } else { self.underlay4(index) }
    }

    fn underlay4(&self, index: usize) -> String {
        format!("198.51.100.{}", number(index))
    }

    fn underlay6(&self, index: usize) -> String {
        format!("2001:db8:100::{}", number(index))
    }

    fn add_namespace(&self, name: &str) -> Result<String> {
        let ns = self.ns(name);
        line(None, &format!("ip netns add {ns}"))?;
        line(None, &format!("ip -n {ns} link set lo up"))?;
        // Addresses are unique by construction; without this IPv6 is deaf for the first second or two.
        for key in ["all", "default"] {
            line(Some(&ns), &format!("sysctl -qw net.ipv6.conf.{key}.accept_dad=0"))?;
            line(Some(&ns), &format!("sysctl -qw net.ipv4.conf.{key}.rp_filter=0"))?;
        }
        // A new namespace may inherit this from the machine; every host starts as a host.
        line(Some(&ns), "sysctl -qw net.ipv4.ip_forward=0")?;
        Ok(ns)
    }

    /// The Internet, the gateway and the underlay bridge.
    fn outside(&self) -> Result<()> {
        let inet = self.add_namespace("inet")?;
        let gw = self.add_namespace("gw")?;
        line(None, &format!("ip -n {gw} link add inet0 type veth peer name eth0 netns {inet}"))?;
        for (ns, dev, addresses) in [
            (&gw, "inet0", ["192.0.2.1/24", "2001:db8:80::1/64"]),
            (&inet, "eth0", ["192.0.2.80/24", "2001:db8:80::80/64"]),
        ] {
            for address in addresses {
                line(None, &format!("ip -n {ns} addr add {address} dev {dev}"))?;
            }
            line(None, &format!("ip -n {ns} link set {dev} up"))?;
        }
        line(None, &format!("ip -n {inet} route add default via 192.0.2.1"))?;
        line(None, &format!("ip -n {inet} route add default via 2001:db8:80::1"))?;
        line(None, &format!("ip -n {gw} link add br0 type bridge forward_delay 0"))?;
        line(None, &format!("ip -n {gw} addr add {GATEWAY}/24 dev br0"))?;
        line(None, &format!("ip -n {gw} addr add 2001:db8:100::1/64 dev br0"))?;
        line(None, &format!("ip -n {gw} link set br0 up"))?;
        line(Some(&gw), "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")?;
        line(Some(&gw), "sysctl -qw net.ipv4.conf.all.send_redirects=0")?;
        Ok(())
    }

    fn host(&self, index: usize, host: &Host) -> Result<()> {
        let ns = self.add_namespace(&host.name)?;
        let gw = self.ns("gw");
        let port = format!("p-{}", host.name);
        line(None, &format!("ip -n {gw} link add {port} type veth peer name eth0 netns {ns}"))?;
        line(None, &format!("ip -n {gw} link set {port} master br0 up"))?;
        for address in [format!("{}/24", self.underlay4(index)), format!("{}/64", self.underlay6(index))] {
            line(None, &format!("ip -n {ns} addr add {address} dev eth0"))?;
        }
        line(None, &format!("ip -n {ns} link set eth0 up"))?;
        self.default_routes(&ns)?;
        for net in &host.nets {
            let bridge = &net.bridge;
            line(None, &format!("ip -n {ns} link add {bridge} type bridge forward_delay 0"))?;
            for gateway in &net.gateways {
                line(None, &format!("ip -n {ns} addr add {gateway} dev {bridge}"))?;
            }
            line(None, &format!("ip -n {ns} link set {bridge} up"))?;
            for prefix in net.announce.iter().filter(|prefix| !prefix.starts_with('{')) {
                let via = if prefix.contains(':') { self.underlay6(index) } else { self.underlay4(index) };
                line(None, &format!("ip -n {gw} {} route replace {prefix} via {via}", family(prefix)))?;
            }
        }
        let mode = host.rp_filter;
        line(
            Some(&ns),
            &format!("sysctl -qw net.ipv4.conf.all.rp_filter={mode} net.ipv4.conf.default.rp_filter={mode}"),
        )?;
        if !host.ruleset.is_empty() {
            let file = self.dir.join(format!("{}.nft", host.name));
            std::fs::write(&file, &host.ruleset)?;
            must(Some(&ns), &["nft", "-f", &file.to_string_lossy()])?;
        }
        Ok(())
    }

    fn default_routes(&self, ns: &str) -> Result<()> {
        line(None, &format!("ip -n {ns} route replace default via {GATEWAY}"))?;
        line(None, &format!("ip -n {ns} -6 route replace default via 2001:db8:100::1 dev eth0")).map(drop)
    }

    fn vm(&self, vm: &Vm) -> Result<()> {
        let ns = self.add_namespace(&vm.name)?;
        let host = self.ns(&vm.host);
        let port = format!("v-{}", vm.name);
        line(None, &format!("ip -n {host} link add {port} type veth peer name eth0 netns {ns}"))?;
        line(None, &format!("ip -n {host} link set {port} master {} up", vm.bridge))?;
        for address in &vm.addresses {
            line(None, &format!("ip -n {ns} addr add {address} dev eth0"))?;
        }
        line(None, &format!("ip -n {ns} link set eth0 up"))?;
        let net = self.plan.hosts.iter().find(|h| h.name == vm.host);
        let Some(net) = net.and_then(|h| h.nets.iter().find(|n| n.bridge == vm.bridge)) else {
            bail!("vm {} is plugged into {} {}, which the plan does not have", vm.name, vm.host, vm.bridge)
        };
        for gateway in &net.gateways {
            let mut route = format!("ip -n {ns} {} route add default via {}", family(gateway), bare(gateway));
            if let Some(source) = vm.source.as_ref().filter(|source| family(source) == family(gateway)) {
                route.push_str(&format!(" src {source}"));
            }
            line(None, &route)?;
        }
        Ok(())
    }

    /// Runs a command in a namespace to its end.
    pub fn exec(&self, name: &str, args: &[&str]) -> Result<Outcome> {
        run(Some(&self.ns(name)), args)
    }

    /// `exec` for a shell line.
    pub fn sh(&self, name: &str, script: &str) -> Result<Outcome> {
        self.exec(name, &["sh", "-c", script])
    }

    /// Starts a command that goes on; it ends with the lab. Gives its process id.
    pub fn spawn(&mut self, name: &str, args: &[&str]) -> Result<u32> {
        let log = self.dir.join(format!("{name}.log"));
        let child = command::spawn(&self.ns(name), args, &[], &log)?;
        let pid = child.id();
        self.children.push(child);
        Ok(pid)
    }

    /// Starts the lab's servers (HTTP 80, TCP sink 5001, UDP echo 5002) and waits until they listen.
    pub fn serve(&mut self, name: &str) -> Result<()> {
        let tool = crate::node::tool()?;
        self.spawn(name, &[&tool.to_string_lossy(), "serve"])?;
        let ns = self.ns(name);
        let listens = || run(Some(&ns), &["ss", "-lnu"]).is_ok_and(|o| o.stdout.contains(":5002"));
        if !wait_until(Duration::from_secs(5), listens) {
            bail!("the servers in {name} do not listen: {}", self.log(name));
        }
        Ok(())
    }

    /// What a namespace's background commands have printed.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.join(format!("{name}.log"))).unwrap_or_default()
    }

    /// Three quick pings; are all answered?
    pub fn ping(&self, from: &str, to: &str) -> bool {
        self.exec(from, &["ping", "-n", "-c", "3", "-i", "0.2", "-W", "1", to]).is_ok_and(|o| o.ok())
    }

    /// Pings until one is answered, up to a limit.
    pub fn ping_within(&self, limit: Duration, from: &str, to: &str) -> bool {
        wait_until(limit, || self.exec(from, &["ping", "-n", "-c", "1", "-W", "1", to]).is_ok_and(|o| o.ok()))
    }

    /// Fetches the web server's answer (the address it sees) from a VM, from a source where one is given.
    pub fn web(&self, from: &str, url_host: &str, source: Option<&str>) -> Option<String> {
        let host = if url_host.contains(':') { format!("[{url_host}]") } else { url_host.to_owned() };
        let url = format!("http://{host}/");
        let mut args = vec!["curl", "-sS", "--noproxy", "*", "-m", "5", &url];
        if let Some(source) = source {
            args.extend(["--interface", source]);
        }
        let outcome = self.exec(from, &args).ok()?;
        outcome.ok().then(|| outcome.stdout.trim().to_owned())
    }

    /// Sends so many bytes of TCP to the sink of a VM and compares checksums.
    pub fn transfer(&self, from: &str, to: &str, bytes: u64) -> Result<Outcome> {
        let tool = crate::node::tool()?;
        self.exec(from, &[&tool.to_string_lossy(), "send", to, &bytes.to_string()])
    }

    /// Starts a capture with tcpdump's filter language.
    pub fn capture(&mut self, name: &str, interface: &str, filter: &str) -> Result<Capture> {
        self.captures += 1;
        let file = self.dir.join(format!("capture-{}.pcap", self.captures));
        Capture::start(&self.ns(name), interface, filter, file)
    }

    /// Pulls a host's underlay cable.
    pub fn cut_cable(&self, host: &str) -> Result<()> {
        line(None, &format!("ip -n {} link set p-{host} down", self.ns("gw"))).map(drop)
    }

    /// Plugs it in again.
    pub fn mend_cable(&self, host: &str) -> Result<()> {
        line(None, &format!("ip -n {} link set p-{host} up", self.ns("gw")))?;
        // The kernel drops a route by the gateway only where the host's own link went down; be sure.
        self.default_routes(&self.ns(host))
    }

    /// The host's power fails: process and cable at once.
    pub fn power_cut(&mut self, host: &str) -> Result<()> {
        self.cut_cable(host)?;
        self.kill_node(host)
    }

    /// Larger packets on the host's cable vanish without a word, as behind a tunnel whose ICMP is filtered.
    pub fn underlay_mtu(&self, host: &str, mtu: u32) -> Result<()> {
        // The rule has to see what a wire would carry: nobody may send superpackets.
        for sender in self.host_names().iter().map(String::as_str).chain(["inet"]) {
            let args = ["ethtool", "-K", "eth0", "tso", "off", "gso", "off", "tx-udp-segmentation", "off"];
            must(Some(&self.ns(sender)), &args)?;
        }
        self.drop_on_cable("mtu", host, &format!("meta length > {mtu}"))
    }

    /// Drops so many percent of what comes from and goes to a host.
    pub fn loss(&self, host: &str, percent: u32) -> Result<()> {
        // nft refuses a comparison that is always true or always false.
        match percent {
            0 => line(Some(&self.ns("gw")), &format!("nft delete table bridge loss-{host}")).map(drop),
            100.. => self.drop_on_cable("loss", host, "meta length > 0"),
            _ => self.drop_on_cable("loss", host, &format!("numgen random mod 100 < {percent}")),
        }
    }

    /// Replaces one of our drop rules on both directions of a host's cable.
    fn drop_on_cable(&self, kind: &str, host: &str, matching: &str) -> Result<()> {
        let table = format!("{kind}-{host}");
        let rules = format!(
            "table bridge {table}\ndelete table bridge {table}\ntable bridge {table} {{\n\
             chain from {{\ntype filter hook prerouting priority 0\niifname \"p-{host}\" {matching} counter drop\n}}\n\
             chain to {{\ntype filter hook postrouting priority 0\noifname \"p-{host}\" {matching} counter drop\n}}\n}}\n"
        );
        must(Some(&self.ns("gw")), &["nft", &rules]).map(drop)
    }

    /// Makes a host's cable longer: frames are so late in each direction. Once for a host.
    pub fn delay(&mut self, host: &str, late: Duration) -> Result<()> {
        let (near, far, bridge, gw) =
            (format!("d-{host}"), format!("e-{host}"), format!("q-{host}"), self.ns("gw"));
        let tool = crate::node::tool()?.to_string_lossy().into_owned();
        self.spawn("gw", &[&tool, "delay", &near, &far, &late.as_millis().to_string()])?;
        let made = wait_until(Duration::from_secs(5), || {
            line(None, &format!("ip -n {gw} link show {near}")).is_ok()
                && line(None, &format!("ip -n {gw} link show {far}")).is_ok()
        });
        anyhow::ensure!(made, "the delayed cable of {host} is not there");
        for text in [
            format!("ip -n {gw} link add {bridge} type bridge forward_delay 0"),
            format!("ip -n {gw} link set {near} master {bridge} up"),
            format!("ip -n {gw} link set {far} master br0 up"),
            format!("ip -n {gw} link set p-{host} master {bridge}"),
            format!("ip -n {gw} link set {bridge} up"),
        ] {
            line(None, &text)?;
        }
        Ok(())
    }

    /// Limits what a host receives and sends to a rate (`100mbit`).
    pub fn rate(&self, host: &str, rate: &str) -> Result<()> {
        for (ns, dev) in [(self.ns(host), "eth0".to_owned()), (self.ns("gw"), format!("p-{host}"))] {
            let text = format!("tc qdisc replace dev {dev} root tbf rate {rate} burst 64kb latency 50ms");
            line(Some(&ns), &text)?;
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in self.host_names() {
                let log = self.log(&name);
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines.len().saturating_sub(25);
                eprintln!(
                    "--- last lines of {name}'s log\n{}",
                    lines.get(tail..).unwrap_or_default().join("\n")
                );
            }
        }
        if self.keep {
            return;
        }
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.nodes.kill_all();
        if let Err(error) = remove(&self.plan.prefix) {
            eprintln!("the lab {} was not removed: {error:#}", self.plan.prefix);
        }
    }
}
