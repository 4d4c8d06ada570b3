//! Who carries the Internet traffic of a network, by real nodes: failures one after the other, flapping, a split, preemption,
//! fallback, spreading.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run in real time and fail by panic"
)]

use lab::world::{WEB4, WEB6, wait_until};
use lab::{Lab, Plan};
use std::collections::BTreeMap;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(8);

/// Hosts ph1 to phN; the last three (or two) carry the Internet traffic of all, the last one first. Each has an address of its
/// own, by which the web server tells them apart.
fn plan(hosts: usize, egress: usize, rules: &str) -> Plan {
    let order: Vec<String> = (0..egress).map(|i| format!("ph{}", hosts - i)).collect();
    let mut plan = Plan::standard("", hosts).each_net(|_, net| {
        net.egress.clone_from(&order);
        *net = std::mem::take(net).extra(rules);
    });
    for standby in order.iter().skip(1) {
        let address = format!("198.51.100.1{}", &standby[2..]);
        plan = plan.with(standby, |host| host.offer("default", &[&address], 100));
    }
    plan
}

fn lab(hosts: usize, egress: usize, rules: &str) -> Lab {
    let lab = Lab::start(plan(hosts, egress, rules)).unwrap();
    assert!(
        wait_until(SOON, || states(&lab, "ph1").len() == egress
            && states(&lab, "ph1").values().all(|s| s == "alive")),
        "{:?}",
        states(&lab, "ph1")
    );
    lab
}

/// The first destination's line of `mesh-ctl egress`.
fn answer(lab: &Lab, host: &str) -> serde_json::Value {
    lab.ctl(host, &["--json", "egress"]).unwrap().json()["egress"][0].clone()
}

/// How the candidates stand, as a host sees them.
fn states(lab: &Lab, host: &str) -> BTreeMap<String, String> {
    let list = answer(lab, host)["candidates"].as_array().cloned().unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    list.iter().map(|c| (text(&c["node"]), text(&c["state"]))).collect()
}

fn elected(lab: &Lab, host: &str) -> String {
    answer(lab, host)["elected"].as_str().unwrap_or_default().to_owned()
}

/// Whether the web server comes to see a VM with this address.
fn leaves_by(lab: &Lab, vm: &str, address: &str) -> bool {
    wait_until(SOON, || {
        let args = ["curl", "-sS", "--noproxy", "*", "-m", "1", &format!("http://{WEB4}/")];
        lab.exec(vm, &args).is_ok_and(|o| o.stdout.trim() == address)
    })
}

fn failovers(lab: &Lab, host: &str, cause: &str) -> u64 {
    lab.metric(host, "mesh_egress_failovers_total", &format!("cause=\"{cause}\"")) as u64
}

/// A download ends, and is what was sent; `host` is whose log tells why not.
fn arrives_whole(lab: &Lab, file: &str, bytes: u64, host: &str) {
    assert!(wait_until(Duration::from_secs(60), || lab.output(file).contains("done")));
    assert!(
        lab.output(file).contains(&lab.sum_of(bytes)),
        "{}{}",
        lab.output(&format!("{file}.err")),
        lab.log(host)
    );
}

#[test]
fn the_third_carries_when_two_have_died_and_nobody_s_traffic_is_refused_at_once_until_one_returns() {
    let mut lab = lab(4, 3, "");
    assert!(leaves_by(&lab, "vm1", "198.51.100.14"));
    lab.power_cut("ph4").unwrap();
    assert!(leaves_by(&lab, "vm1", "198.51.100.13"), "{}", lab.log("ph1"));
    lab.power_cut("ph3").unwrap();
    assert!(leaves_by(&lab, "vm1", "198.51.100.12"), "{}", lab.log("ph1"));
    // on a busy machine the last one may seem gone for a moment as well
    let last = answer(&lab, "ph1")["last_failover"].clone();
    assert_eq!(last["to"].as_str(), Some("ph2"), "{last}");
    assert!(["liveness", "tunnel", "returned"].contains(&last["cause"].as_str().unwrap()), "{last}");
    let outage = last["duration_seconds"].as_f64().unwrap();
    assert!(outage < 3.0 && (outage > 0.1 || last["cause"] == "returned"), "{last}");
    assert!(
        lab.metric("ph1", "mesh_egress_failover_duration_seconds_count", "default") >= 4.0,
        "two, each family"
    );
    lab.kill_node("ph2").unwrap();
    assert!(wait_until(SOON, || answer(&lab, "ph1")["state"] == "none"), "{}", answer(&lab, "ph1"));
    let refused = lab.exec("vm1", &["ping", "-n", "-c", "2", "-W", "2", WEB4]).unwrap();
    assert!(!refused.ok() && refused.stdout.contains("From 192.168.100.1"), "{}", refused.text());
    let status = lab.ctl("ph1", &["status"]).unwrap();
    assert!(status.code == Some(1) && status.stdout.contains("is healthy: private VMs are refused"));
    lab.start_node("ph2").unwrap();
    assert!(leaves_by(&lab, "vm1", "198.51.100.12"), "{}", lab.log("ph1"));
    assert!(failovers(&lab, "ph1", "none") >= 1 && failovers(&lab, "ph1", "returned") >= 1);
    let table = lab.ctl("ph1", &["egress"]).unwrap().stdout;
    assert!(table.contains("returned") && table.lines().all(|l| l.chars().count() <= 100), "{table}");
}

#[test]
fn an_egress_node_that_flaps_is_held_down_and_shown_so() {
    let lab = lab(3, 2, "");
    assert!(leaves_by(&lab, "vm1", "198.51.100.13"));
    for round in 1..=3 {
        lab.cut_cable("ph3").unwrap();
        assert!(wait_until(SOON, || states(&lab, "ph1")["ph3"] == "silent"), "{round}");
        lab.mend_cable("ph3").unwrap();
        let back = if round == 1 { "alive" } else { "held_down" };
        assert!(
            wait_until(SOON, || states(&lab, "ph1")["ph3"] == back),
            "{round}: {:?}",
            states(&lab, "ph1")
        );
    }
    assert_eq!(elected(&lab, "ph1"), "ph2");
    let shown = answer(&lab, "ph1")["candidates"][0].clone();
    assert!(shown["held_down_until"].is_string() && shown["since"].is_string(), "{shown}");
    let table = lab.ctl("ph1", &["egress"]).unwrap().stdout;
    assert!(table.contains("held_down") && table.contains("again and again"), "{table}");
    assert!(lab.ctl("ph1", &["status"]).unwrap().stdout.contains("held down until"));
    assert!(lab.log("ph1").contains("\"event\":\"egress_held_down\""), "{}", lab.log("ph1"));
    // the operator's word goes before it
    assert!(lab.ctl("ph1", &["egress", "use", "ph3"]).unwrap().ok());
    assert!(leaves_by(&lab, "vm1", "198.51.100.13"));
    assert!(lab.ctl("ph1", &["egress", "use", "auto"]).unwrap().ok());
    // and it is over in time: two failures make 10 s, three 20 s
    assert!(wait_until(Duration::from_secs(30), || states(&lab, "ph1")["ph3"] == "alive"));
}

#[test]
fn egress_nodes_that_lose_each_other_move_nobody_and_all_with_the_same_view_elect_the_same() {
    let lab = lab(4, 2, "");
    for vm in ["vm1", "vm2"] {
        assert!(leaves_by(&lab, vm, "198.51.100.14"), "{vm}");
    }
    let rules = "table bridge split {\n chain between {\n  type filter hook forward priority 0\n  \
        iifname \"p-ph3\" oifname \"p-ph4\" drop\n  iifname \"p-ph4\" oifname \"p-ph3\" drop\n }\n}\n";
    assert!(lab.exec("gw", &["nft", rules]).unwrap().ok());
    assert!(wait_until(SOON, || states(&lab, "ph3")["ph4"] != "alive"), "{:?}", states(&lab, "ph3"));
    assert!(leaves_by(&lab, "vm3", "198.51.100.13"), "it has itself");
    for _ in 0..10 {
        for host in ["ph1", "ph2"] {
            assert_eq!(elected(&lab, host), "ph4", "{host}");
            assert!(states(&lab, host).values().all(|state| state == "alive"), "{host}");
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    assert!(lab.exec("gw", &["nft", "delete", "table", "bridge", "split"]).unwrap().ok());
    // and what all see moves all
    lab.freeze("ph4").unwrap();
    for host in ["ph1", "ph2", "ph3"] {
        assert!(wait_until(SOON, || elected(&lab, host) == "ph3"), "{host}: {}", answer(&lab, host));
    }
    lab.thaw("ph4").unwrap();
}

#[test]
fn preemption_moves_back_once_after_its_delay() {
    let lab = lab(3, 2, "egress_preempt = \"2s\"");
    assert!(leaves_by(&lab, "vm1", "198.51.100.13"));
    lab.freeze("ph3").unwrap();
    assert!(wait_until(SOON, || elected(&lab, "ph1") == "ph2"), "{}", answer(&lab, "ph1"));
    lab.thaw("ph3").unwrap();
    assert!(wait_until(SOON, || states(&lab, "ph1")["ph3"] == "alive"));
    assert_eq!(elected(&lab, "ph1"), "ph2", "not at once");
    assert!(wait_until(SOON, || elected(&lab, "ph1") == "ph3"), "{}", answer(&lab, "ph1"));
    assert!(leaves_by(&lab, "vm1", "198.51.100.13"));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(
        (elected(&lab, "ph1").as_str(), failovers(&lab, "ph1", "preempt")),
        ("ph3", 2),
        "once for each family"
    );
}

#[test]
fn a_network_falls_back_to_its_own_host_and_no_private_source_leaves_on_the_way() {
    let mut lab = lab(3, 2, "egress_fallback = \"local\"");
    assert!(leaves_by(&lab, "vm1", "198.51.100.13"));
    let wire = lab.capture("gw", "br0", "src net 192.168.0.0/16 or src net 10.0.0.0/8").unwrap();
    // a flow that goes on through every change
    lab.spawn("vm1", &["timeout", "60", "ping", "-n", "-i", "0.05", WEB4]).unwrap();
    lab.kill_node("ph3").unwrap();
    lab.kill_node("ph2").unwrap();
    assert!(leaves_by(&lab, "vm1", "198.51.100.11"), "{}", lab.log("ph1"));
    assert_eq!(answer(&lab, "ph1")["state"], "fallback");
    assert!(failovers(&lab, "ph1", "fallback") >= 1);
    let status = lab.ctl("ph1", &["status"]).unwrap();
    assert!(status.code == Some(1) && status.stdout.contains("leave by this host"), "{}", status.text());
    let table = lab.ctl("ph1", &["trace", "192.168.100.10", WEB4]).unwrap();
    assert!(table.ok() && table.stdout.contains("198.51.100.11"), "{}", table.text());
    let goes_on = |lab: &Lab| {
        let answers = || lab.log("vm1").matches("bytes from").count();
        let before = answers();
        wait_until(SOON, || answers() > before + 5)
    };
    assert!(goes_on(&lab), "the flow is mapped anew");
    lab.start_node("ph2").unwrap();
    assert!(leaves_by(&lab, "vm1", "198.51.100.12"), "{}", lab.log("ph1"));
    assert!(goes_on(&lab), "and once more");
    let seen = wire.stop().unwrap();
    assert!(seen.lines.is_empty(), "private sources at the gateway: {:?}", seen.lines.first());
    // by a reload it is refused instead
    lab.kill_node("ph2").unwrap();
    assert!(leaves_by(&lab, "vm1", "198.51.100.11"));
    let config = lab.file("ph1", "node.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("egress_fallback = \"local\"", "")).unwrap();
    assert!(lab.ctl("ph1", &["reload"]).unwrap().ok());
    assert!(wait_until(SOON, || !lab.ping("vm1", WEB4)), "{}", answer(&lab, "ph1"));
    assert_eq!(answer(&lab, "ph1")["state"], "none");
}

#[test]
fn an_egress_node_whose_own_vms_fall_back_and_return_ends_no_flow_of_others() {
    let plan = plan(3, 2, "").each_net(|host, net| {
        if host == "ph3" {
            net.egress = vec!["ph2".into()];
            *net = std::mem::take(net).extra("egress_fallback = \"local\"");
        }
    });
    let mut lab = Lab::start(plan).unwrap();
    assert!(leaves_by(&lab, "vm1", "198.51.100.13") && leaves_by(&lab, "vm3", "198.51.100.12"));
    lab.download("vm1", "file", 40_000_000, "2M");
    lab.kill_node("ph2").unwrap();
    assert!(leaves_by(&lab, "vm3", "198.51.100.13"), "{}", lab.log("ph3"));
    // by its own host while that works, also after somebody else carries again
    lab.download("vm3", "own", 20_000_000, "2M");
    std::thread::sleep(Duration::from_secs(1));
    lab.start_node("ph2").unwrap();
    assert!(leaves_by(&lab, "vm3", "198.51.100.12"), "{}", lab.log("ph3"));
    assert!(!lab.output("own").contains("done"), "the download was not over before the return");
    assert!(!lab.output("file").contains("done"), "the download was not over before the fallback");
    arrives_whole(&lab, "own", 20_000_000, "ph3");
    arrives_whole(&lab, "file", 40_000_000, "ph3");
}

#[test]
fn a_destination_whose_egress_node_is_gone_is_refused_and_does_not_leave_by_another() {
    const OTHER: &str = "192.0.2.101";
    let plan = plan(3, 2, "").with("ph2", |mut host| {
        host.offers[0].extra = "destination = [\"192.0.2.80/32\"]\n".into();
        host
    });
    let mut lab = Lab::start(plan).unwrap();
    assert!(leaves_by(&lab, "vm1", "198.51.100.12"), "the longer prefix decides: {}", lab.log("ph1"));
    assert!(lab.sh("inet", &format!("ip addr add {OTHER}/32 dev eth0")).unwrap().ok());
    assert!(lab.ping("vm1", OTHER), "the rest leaves by ph3");
    lab.kill_node("ph2").unwrap();
    let refused = || lab.exec("vm1", &["ping", "-n", "-c", "1", "-W", "1", WEB4]).unwrap().stdout;
    assert!(wait_until(SOON, || refused().contains("Destination Net Unreachable")), "{}", refused());
    assert!(lab.ping("vm1", OTHER), "{}", lab.log("ph1"));
    let counted = lab.exec("ph1", &["nft", "list", "counter", "inet", "mesh", "no_egress"]).unwrap().stdout;
    assert!(!counted.contains("packets 0 "), "{counted}");
    lab.start_node("ph2").unwrap();
    assert!(leaves_by(&lab, "vm1", "198.51.100.12"), "{}", lab.log("ph1"));
}

#[test]
fn ipv6_follows_by_address_and_by_masquerade() {
    let plan = plan(3, 2, "").with("ph3", |mut host| {
        host.offers[0].snat = vec!["198.51.100.13".into(), "2001:db8:100::13".into()];
        host
    });
    let mut lab = Lab::start(plan).unwrap();
    let sees = |lab: &Lab, address: &str| {
        wait_until(SOON, || {
            let args = ["curl", "-gsS", "--noproxy", "*", "-m", "1", &format!("http://[{WEB6}]/")];
            lab.exec("vm1", &args).is_ok_and(|o| o.stdout.trim() == address)
        })
    };
    assert!(wait_until(SOON, || states(&lab, "ph1").values().all(|state| state == "alive")));
    assert!(sees(&lab, "2001:db8:100::13"), "by the address given");
    lab.power_cut("ph3").unwrap();
    assert!(sees(&lab, "2001:db8:100::12"), "by the uplink's own");
    assert!(leaves_by(&lab, "vm1", "198.51.100.12"));
    lab.kill_node("ph2").unwrap();
    let refused = || lab.exec("vm1", &["ping", "-n", "-c", "1", "-W", "1", WEB6]).unwrap().stdout;
    assert!(wait_until(SOON, || refused().contains("No route")), "{}", refused());
}

/// By which address the web server sees a VM, for each of many destinations.
fn ways(lab: &Lab, vm: &str, destinations: &[String]) -> BTreeMap<String, String> {
    let urls: Vec<String> = destinations.iter().map(|d| format!("http://{d}/")).collect();
    let mut args = vec!["curl", "-sS", "--noproxy", "*", "-m", "10"];
    args.extend(urls.iter().map(String::as_str));
    let seen = lab.exec(vm, &args).unwrap();
    destinations.iter().cloned().zip(seen.stdout.lines().map(str::to_owned)).collect()
}

#[test]
fn flows_are_spread_over_two_egress_nodes_and_the_loss_of_one_moves_its_own_alone() {
    let mut lab = lab(3, 2, "egress_balance = true");
    let destinations: Vec<String> = (101..=140).map(|n| format!("192.0.2.{n}")).collect();
    let add: Vec<String> = destinations.iter().map(|d| format!("ip addr add {d}/32 dev eth0")).collect();
    assert!(lab.sh("inet", &add.join(" && ")).unwrap().ok());
    assert!(leaves_by(&lab, "vm1", "198.51.100.12") || leaves_by(&lab, "vm1", "198.51.100.13"));
    let shown = answer(&lab, "ph1");
    assert_eq!(shown["elected_nodes"], serde_json::json!(["ph3", "ph2"]), "{shown}");
    let before = ways(&lab, "vm1", &destinations);
    let by = |ways: &BTreeMap<String, String>, address: &str| ways.values().filter(|w| *w == address).count();
    let (two, three) = (by(&before, "198.51.100.12"), by(&before, "198.51.100.13"));
    assert_eq!(two + three, destinations.len(), "{before:?}");
    assert!(two >= 5 && three >= 5, "{two} and {three} of {}", destinations.len());
    lab.power_cut("ph3").unwrap();
    assert!(wait_until(SOON, || answer(&lab, "ph1")["elected_nodes"] == serde_json::json!(["ph2"])));
    let after = ways(&lab, "vm1", &destinations);
    assert!(after.values().all(|way| way == "198.51.100.12"), "{after:?}");
    lab.mend_cable("ph3").unwrap();
    lab.start_node("ph3").unwrap();
    assert!(wait_until(SOON, || answer(&lab, "ph1")["elected_nodes"] == serde_json::json!(["ph3", "ph2"])));
    assert_eq!(ways(&lab, "vm1", &destinations), before, "who has which flow depends on names alone");
}

#[test]
fn a_restart_of_the_sending_node_moves_no_flow_from_an_egress_node_that_works() {
    let mut lab = Lab::start(plan(3, 2, "")).unwrap();
    assert!(leaves_by(&lab, "vm1", "198.51.100.13"), "{}", lab.log("ph1"));
    lab.kill_node("ph3").unwrap();
    assert!(leaves_by(&lab, "vm1", "198.51.100.12"), "{}", lab.log("ph1"));
    lab.start_node("ph3").unwrap();
    assert!(wait_until(SOON * 2, || states(&lab, "ph1").get("ph3").is_some_and(|state| state == "alive")));
    lab.download("vm1", "file", 8_000_000, "1M");
    std::thread::sleep(Duration::from_secs(2));
    lab.kill_node("ph1").unwrap();
    lab.start_node("ph1").unwrap();
    arrives_whole(&lab, "file", 8_000_000, "ph1");
    assert!(
        leaves_by(&lab, "vm1", "198.51.100.12"),
        "ph3 is preferred, and had failed: {}",
        answer(&lab, "ph1")
    );
}
