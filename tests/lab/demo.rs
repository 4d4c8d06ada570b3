//! `make demo`: the product shown at work in one lab, every claim checked.

use crate::command::Outcome;
use crate::spec::Plan;
use crate::world::{Lab, WEB4};
use anyhow::{Result, bail};
use std::time::Duration;

/// What must not be seen at the gateway in the clear: tcpdump's filter.
const INSIDE: &str = "net 192.168.100.0/24 or net 10.77.0.0/16 or net 203.0.113.0/24";

/// Prints commands with their output and remembers what was not as it should be.
struct Show<'a> {
    lab: &'a Lab,
    failures: Vec<String>,
}

impl Show<'_> {
    fn check(&mut self, what: &str, good: bool) {
        println!("  {} {what}", if good { "ok  " } else { "FAIL" });
        if !good {
            self.failures.push(what.to_owned());
        }
    }

    fn print(&self, place: &str, command: &str, outcome: &Outcome) {
        println!("\n{place}$ {command}");
        for line in outcome.text().lines() {
            println!("  {line}");
        }
    }

    fn vm(&self, vm: &str, command: &str) -> Result<Outcome> {
        let outcome = self.lab.exec(vm, &command.split_whitespace().collect::<Vec<_>>())?;
        self.print(vm, command, &outcome);
        Ok(outcome)
    }

    fn ctl(&self, host: &str, command: &str) -> Result<Outcome> {
        let outcome = self.lab.ctl(host, &command.split_whitespace().collect::<Vec<_>>())?;
        self.print(host, &format!("mesh-ctl {command}"), &outcome);
        Ok(outcome)
    }
}

fn title(text: &str) {
    println!("\n=== {text}");
}

/// Runs the demonstration; an error names what failed.
pub fn run() -> Result<()> {
    title(
        "three hypervisors, all with 192.168.100.0/24 on vmnet1; mesh prefixes 10.77.1-3.0/24; ph3 is egress",
    );
    let plan = Plan::standard("", 3);
    let mut lab = Lab::start(plan)?;
    let mut wire = Some(lab.capture("gw", "br0", INSIDE)?);
    let mut show = Show { lab: &lab, failures: Vec::new() };

    show.ctl("ph1", "peers")?;
    title("VM to VM by mesh address, all directions, although all have the same 192.168.100.10");
    for from in 1..=3 {
        for to in (1..=3).filter(|to| *to != from) {
            let outcome =
                show.vm(&format!("vm{from}"), &format!("ping -n -c 2 -i 0.2 -W 2 10.77.{to}.10"))?;
            show.check(&format!("vm{from} reaches vm{to}"), outcome.ok());
        }
    }
    let outcome = show.vm("vm1", "ping -n -c 2 -i 0.2 -W 2 fd00:77:2::10")?;
    show.check("vm1 reaches vm2 by IPv6", outcome.ok());

    title("a VM's public address from a VM on another host: stays inside");
    let outcome = show.vm("vm1", "ping -n -c 3 -i 0.2 -W 2 203.0.113.12")?;
    show.check("vm1 reaches 203.0.113.12", outcome.ok());
    let outcome = show.vm("pub3", "ping -n -c 3 -i 0.2 -W 2 203.0.113.12")?;
    show.check("public VM to public VM on another host", outcome.ok());
    if let Some(wire) = wire.take() {
        let seen = wire.stop()?;
        println!("\ngw$ tcpdump -n -i br0 {INSIDE}\n  {} packets", seen.lines.len());
        show.check("the gateway saw no packet of this in the clear", seen.lines.is_empty());
    }

    title("public VM and the Internet, both ways, address unchanged");
    let outcome = show.vm("pub1", &format!("curl -sS --noproxy * -m 5 http://{WEB4}/"))?;
    show.check("the web server sees 203.0.113.11", outcome.stdout.trim() == "203.0.113.11");
    let outcome = show.vm("inet", "ping -n -c 2 -i 0.2 -W 2 203.0.113.11")?;
    show.check("the Internet reaches 203.0.113.11", outcome.ok());

    title("a private VM leaves by the egress node's address");
    let outcome = show.vm("vm1", &format!("curl -sS --noproxy * -m 5 http://{WEB4}/"))?;
    show.check("the web server sees 198.51.100.13", outcome.stdout.trim() == "198.51.100.13");
    let outcome = show.ctl("ph1", &format!("trace 192.168.100.10 {WEB4}"))?;
    show.check("mesh-ctl trace tells the journey", outcome.ok() && outcome.stdout.contains("198.51.100.13"));
    show.ctl("ph1", "egress")?;

    title("hop by hop");
    let outcome = show.vm("vm1", "traceroute -n -q 1 -w 2 10.77.2.10")?;
    let hops = ["192.168.100.1", "10.77.2.1", "10.77.2.10"];
    show.check(
        "traceroute shows gateway, remote host, remote VM",
        hops.iter().all(|h| outcome.stdout.contains(h)),
    );

    title("how it looks to the operator");
    let outcome = show.ctl("ph1", "status")?;
    show.check("status is fine", outcome.ok());
    show.ctl("ph1", "networks")?;
    show.ctl("ph1", "routes")?;
    let metrics = lab.metrics("ph1");
    println!("\nph1$ curl -s http://127.0.0.1:9650/metrics | grep -E 'peer_up|network_.*bytes|rtt'");
    let wanted =
        ["mesh_peer_up", "mesh_network_transmit_bytes_total", "mesh_peer_rtt_seconds", "mesh_egress_active"];
    for line in metrics.lines().filter(|line| wanted.iter().any(|name| line.starts_with(name))) {
        println!("  {line}");
    }
    show.check("metrics tell that both peers are up", lab.metric("ph1", "mesh_peer_up", "") >= 2.0);

    let failures = show.failures;
    title("stopping all nodes");
    for host in lab.host_names() {
        let took = lab.stop_node(&host)?;
        println!("  {host} stopped in {:.1} s", took.as_secs_f64());
        if took > Duration::from_secs(10) {
            bail!("{host} took {took:?} to stop");
        }
    }
    drop(lab);
    if failures.is_empty() {
        println!("\ndemo: everything as promised");
        return Ok(());
    }
    bail!("demo: not as promised: {}", failures.join("; "))
}

/// Prints how to get into a lab that was left running.
pub fn how_to_enter(lab: &Lab) {
    let prefix = &lab.plan.prefix;
    println!("the lab is up; logs and files: {}", lab.dir().display());
    for host in &lab.plan.hosts {
        println!(
            "  ip netns exec {prefix}-{0} mesh-ctl --socket {1} peers",
            host.name,
            lab.file(&host.name, "node.sock").display()
        );
    }
    for vm in &lab.plan.vms {
        println!("  ip netns exec {prefix}-{} bash    # on {}: {}", vm.name, vm.host, vm.addresses.join(" "));
    }
    println!("the Internet: {prefix}-inet (192.0.2.80), the gateway: {prefix}-gw; remove all: make lab-down");
}
