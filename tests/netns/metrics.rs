//! What an operator measures: the books add up under real traffic, series go with their peer, and a real Prometheus answers
//! the queries of docs/metrics.md.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run in real time and fail by panic"
)]

use lab::command::must;
use lab::prometheus::{Scrape, program};
use lab::world::{WEB4, wait_until};
use lab::{Lab, Plan};
use std::time::Duration;

/// A scrape of a node whose packets have come to rest, and what the kernel says of its TUN device: packets that it gave to
/// us, and those it could not.
fn at_rest(lab: &Lab, host: &str) -> (Scrape, f64, f64) {
    let workers = |s: &Scrape| s.sum("mesh_worker_receive_packets_total", &[]);
    let device = || {
        let json = lab.exec(host, &["ip", "-s", "-j", "link", "show", "mesh-default"]).unwrap().json();
        let counts = &json[0]["stats64"]["tx"];
        (counts["packets"].as_f64().unwrap(), counts["dropped"].as_f64().unwrap())
    };
    for _ in 0..50 {
        let (before, given) = (lab.scrape(host), device());
        std::thread::sleep(Duration::from_millis(200));
        let after = lab.scrape(host);
        if workers(&before) == workers(&after) && given == device() {
            return (after, given.0, given.1);
        }
    }
    panic!("the packets of {host} do not come to rest");
}

fn adds_up(lab: &Lab, host: &str) -> Scrape {
    let (scrape, given, refused) = at_rest(lab, host);
    let sum = |name: &str, labels: &[(&str, &str)]| scrape.sum(name, labels);
    let came = |direction| sum("mesh_worker_receive_packets_total", &[("direction", direction)]);
    let dropped = |direction| sum("mesh_dropped_packets_total", &[("direction", direction)]);
    let transmit = sum("mesh_network_transmit_packets_total", &[]);
    let hairpin = sum("mesh_network_hairpin_packets_total", &[]);
    assert_eq!(came("outbound"), transmit + hairpin + dropped("outbound"), "{host}: outbound: {scrape:?}");
    let receive = sum("mesh_network_receive_packets_total", &[]);
    assert_eq!(came("inbound"), receive + dropped("inbound"), "{host}: inbound: {scrape:?}");
    assert_eq!(transmit, sum("mesh_peer_transmit_packets_total", &[]), "{host}");
    assert_eq!(sum("mesh_network_transmit_bytes_total", &[]), sum("mesh_peer_transmit_bytes_total", &[]));
    assert_eq!(came("inbound"), sum("mesh_peer_receive_packets_total", &[]), "{host}");
    // the kernel's own count of what we read, and of what it could not give us
    let reads = sum("mesh_worker_superpackets_total", &[("direction", "outbound")]);
    assert_eq!(reads, given, "{host}: reads and what the kernel gave");
    assert_eq!(sum("mesh_tun_dropped_packets_total", &[("direction", "outbound")]), refused, "{host}");
    scrape
}

#[test]
fn packets_in_are_packets_out_and_drops_on_every_node_under_real_traffic() {
    let mut lab = Lab::start(Plan::standard("", 3)).unwrap();
    for (from, to) in
        [("vm1", "10.77.2.10"), ("vm1", WEB4), ("vm3", WEB4), ("pub1", "203.0.113.12"), ("vm2", "10.77.3.10")]
    {
        assert!(lab.ping_within(Duration::from_secs(5), from, to), "{from} to {to}");
    }
    // a neighbour on the same host by its mesh address; one of no VM, and a broadcast address of the segment behind it
    assert!(lab.ping("vm1", "10.77.1.14"));
    for to in ["10.77.2.99", "10.77.2.255"] {
        assert!(!lab.ping("vm1", to), "{to}");
    }
    lab.exec("vm1", &["ip", "addr", "add", "10.77.3.10/32", "dev", "eth0"]).unwrap();
    lab.exec("vm1", &["ping", "-n", "-c", "3", "-i", "0.2", "-W", "1", "-I", "10.77.3.10", "10.77.2.10"])
        .unwrap();
    // bulk by superpackets, then small packets as fast as they come, both ways at once
    lab.spawn("vm2", &["iperf3", "-s"]).unwrap();
    assert!(wait_until(Duration::from_secs(5), || {
        lab.exec("vm1", &["iperf3", "-c", "10.77.2.10", "-t", "3"]).is_ok_and(|o| o.ok())
    }));
    let flood = ["iperf3", "-u", "-b", "0", "-l", "64", "--bidir", "-t", "2", "-c", "10.77.2.10"];
    let flooded = lab.exec("vm1", &flood).unwrap();
    assert!(flooded.ok(), "{}", flooded.text());
    let down = lab.sh("vm1", &format!("curl -sS --noproxy '*' -m 20 http://{WEB4}/bytes/5000000 | wc -c"));
    assert_eq!(down.unwrap().stdout.trim(), "5000000");

    for host in ["ph1", "ph2", "ph3"] {
        let scrape = adds_up(&lab, host);
        let sum = |name: &str, labels: &[(&str, &str)]| scrape.sum(name, labels);
        if host == "ph1" {
            let packets = sum("mesh_worker_receive_packets_total", &[("direction", "outbound")]);
            let reads = sum("mesh_worker_superpackets_total", &[("direction", "outbound")]);
            assert!(packets > reads, "bulk data is read in superpackets: {packets} in {reads}");
            assert!(sum("mesh_network_hairpin_packets_total", &[]) >= 6.0, "three pings and their answers");
            let internet = sum("mesh_egress_receive_bytes_total", &[("node", "ph3")]);
            assert!(internet > 5_000_000.0, "{internet}");
            assert!(sum("mesh_egress_transmit_packets_total", &[("node", "ph3")]) > 10.0);
            assert!(sum("mesh_worker_busy_seconds_total", &[]) > 0.1);
        }
        if host == "ph2" {
            let dropped =
                sum("mesh_dropped_packets_total", &[("direction", "inbound"), ("reason", "not_routable")]);
            assert_eq!(dropped, 3.0, "the pings of a broadcast address");
        }
        if host == "ph3" {
            // its own VM leaves by it too
            for way in ["transmit", "receive"] {
                let own = sum(&format!("mesh_egress_{way}_packets_total"), &[("node", "ph3")]);
                assert!((1.0..100.0).contains(&own), "{way} {own}");
            }
            assert!(sum("mesh_egress_carried_receive_bytes_total", &[]) > 5_000_000.0);
            assert!(sum("mesh_egress_carried_transmit_packets_total", &[]) > 10.0);
        }
    }

    // a node that has no time to read: the kernel drops at the device, and both say how much
    lab.freeze("ph2").unwrap();
    let burst = "for i in $(seq 3000); do echo x >/dev/udp/10.77.1.10/9; done";
    lab.exec("vm2", &["bash", "-c", burst]).unwrap();
    let noise = "p=$(printf %01400d 0); for i in $(seq 4000); do echo $p >/dev/udp/198.51.100.12/4650; done";
    lab.exec("gw", &["bash", "-c", noise]).unwrap();
    lab.thaw("ph2").unwrap();
    let late = adds_up(&lab, "ph2");
    assert!(
        late.sum("mesh_socket_dropped_datagrams_total", &[]) > 0.0,
        "nor the socket's buffer what came to it"
    );
    let dropped = late.sum("mesh_tun_dropped_packets_total", &[("direction", "outbound")]);
    assert!(dropped > 1000.0, "a queue of 500 does not hold 3000: {dropped}");
    lab.wait_connected(Duration::from_secs(10)).unwrap();

    // a peer that dies under a flood
    let stream = ["iperf3", "-u", "-b", "50M", "-l", "500", "-t", "5", "-c", "10.77.2.10"];
    lab.spawn("vm1", &stream).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    lab.kill_node("ph2").unwrap();
    std::thread::sleep(Duration::from_secs(5));
    for host in ["ph1", "ph3"] {
        adds_up(&lab, host);
    }
}

#[test]
fn a_peers_series_go_when_it_is_removed_and_every_counter_is_there_before_it_came() {
    let plan = Plan::standard("", 2).with("ph1", |h| h.seeds(&[])).with("ph2", |h| h.seeds(&["ph1"]));
    let mut lab = Lab::build(plan).unwrap();
    lab.start_node("ph1").unwrap();
    assert!(wait_until(Duration::from_secs(5), || lab.scrape("ph1").has("mesh_build_info")));
    let alone = lab.scrape("ph1");
    for metric in listed() {
        let of_somebody = metric.starts_with("mesh_peer_")
            || ["mesh_egress_active", "mesh_egress_pinned_flows", "mesh_egress_probe_success"]
                .contains(&metric.as_str())
            || ["mesh_egress_transmit", "mesh_egress_receive"].iter().any(|start| metric.starts_with(start));
        let histogram = alone.has(&format!("{metric}_bucket"));
        assert_eq!(alone.has(&metric) || histogram, !of_somebody, "{metric}");
    }
    for direction in ["outbound", "inbound"] {
        assert_eq!(alone.sum("mesh_worker_receive_packets_total", &[("direction", direction)]), 0.0);
    }
    assert!(alone.values_of("reason").contains(&"queue_full"));

    lab.start_node("ph2").unwrap();
    lab.wait_connected(Duration::from_secs(10)).unwrap();
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10"));
    let with = lab.scrape("ph1");
    assert_eq!((with.values_of("peer"), with.values_of("node")), (vec!["ph2"], vec!["ph1", "ph2"]));
    assert!(with.sum("mesh_peer_receive_packets_total", &[("peer", "ph2")]) > 0.0);
    let removed = lab.ctl("ph1", &["peer", "remove", "ph2"]).unwrap();
    assert!(removed.ok(), "{}", removed.text());
    let without = lab.scrape("ph1");
    assert_eq!((without.values_of("peer"), without.values_of("node")), (vec![], vec!["ph1"]));
    assert!(!lab.metrics("ph1").contains("ph2"));
    // what is not a peer's stays, and is still the same labels
    let closed = |s: &Scrape, label: &str| -> Vec<String> {
        s.values_of(label).into_iter().map(str::to_owned).collect()
    };
    for label in ["reason", "direction", "state", "network", "worker", "role", "cause"] {
        assert_eq!(closed(&alone, label), closed(&without, label), "{label}");
    }
}

/// Names in the list of docs/metrics.md.
fn listed() -> Vec<String> {
    let names: Vec<String> = document()
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(name, _)| name.to_owned()))
        .collect();
    assert!(names.len() > 40);
    names
}

fn repository() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn document() -> String {
    std::fs::read_to_string(repository().join("docs/metrics.md")).unwrap()
}

/// Each query of docs/metrics.md, and of README.md, with the line of words before it.
fn queries() -> Vec<(String, String)> {
    let text = document() + &std::fs::read_to_string(repository().join("README.md")).unwrap();
    let mut found = Vec::new();
    for (at, _) in text.match_indices("```promql\n") {
        let words = text[..at].trim_end().lines().last().unwrap_or_default();
        let query = text[at..].split("```").nth(1).unwrap().trim_start_matches("promql").trim();
        found.push((words.trim_end_matches(':').to_owned(), query.to_owned()));
    }
    found
}

#[test]
fn promtool_finds_nothing_wrong_with_the_metrics_and_the_alerts() {
    let lab = Lab::start(Plan::standard("", 2)).unwrap();
    let promtool = program("promtool").unwrap();
    let file = lab.dir().join("metrics.txt");
    let text = lab.metrics("ph1");
    assert!(text.contains("mesh_peer_up{peer=\"ph2\"} 1"), "{text}");
    std::fs::write(&file, text).unwrap();
    let script = format!("{promtool} check metrics < {}", file.display());
    let said = must(None, &["sh", "-c", &format!("{script} 2>&1")]).unwrap();
    assert_eq!(said.trim(), "", "promtool check metrics");
    let alerts = repository().join("deploy/alerts.yml");
    let said = must(None, &[&promtool, "check", "rules", &alerts.to_string_lossy()]).unwrap();
    assert!(said.contains("SUCCESS"), "{said}");
}

/// A mesh with something to tell: ph2 is the standby egress and its certificate ends in ten days; ph1's cable carries
/// little.
fn troubled() -> Lab {
    let plan = Plan::standard("", 3)
        .each_net(|_, net| net.egress = vec!["ph3".into(), "ph2".into()])
        .with("ph2", |host| host.offer("default", &["198.51.100.12"], 200));
    let mut lab = Lab::build(plan).unwrap();
    let ca = lab.dir().join("ca");
    for end in ["pem", "key"] {
        std::fs::remove_file(ca.join(format!("ph2.{end}"))).unwrap();
    }
    let ctl = lab::node::binary("mesh-ctl").unwrap().to_string_lossy().into_owned();
    let words = "ca issue ph2 --prefix 10.77.2.0/24 --prefix fd00:77:2::/64 --announce 203.0.113.0/24 --egress --days 10 --dir";
    let mut args: Vec<&str> = vec![&ctl];
    args.extend(words.split(' '));
    let dir = ca.to_string_lossy().into_owned();
    args.push(&dir);
    must(None, &args).unwrap();
    std::fs::copy(ca.join("ph2.pem"), lab.file("ph2", "node.pem")).unwrap();
    std::fs::copy(ca.join("ph2.key"), lab.file("ph2", "node.key")).unwrap();
    lab.underlay_mtu("ph1", 1320).unwrap();
    // but scrapes by TCP have to pass
    let small = "ip route replace 198.51.100.0/24 dev br0 scope link src 198.51.100.1 advmss 1200";
    assert!(lab.sh("gw", small).unwrap().ok());
    for host in lab.host_names() {
        lab.open_metrics(&host).unwrap();
        lab.start_node(&host).unwrap();
    }
    lab.wait_connected(Duration::from_secs(20)).unwrap();
    lab
}

#[test]
fn a_real_prometheus_answers_every_query_of_the_document_and_sees_every_alert_s_condition() {
    let mut lab = troubled();
    let rules = repository().join("deploy/alerts.yml");
    lab.start_prometheus(&rules.to_string_lossy()).unwrap();
    // traffic for a minute: mesh, Internet, and what is dropped at the far end
    for to in ["10.77.2.10", WEB4, "10.77.2.255"] {
        lab.spawn("vm1", &["ping", "-n", "-i", "0.1", to]).unwrap();
    }
    lab.spawn("vm2", &["ping", "-n", "-i", "0.1", WEB4]).unwrap();
    std::thread::sleep(Duration::from_secs(10));
    lab.stop_node("ph2").unwrap();
    lab.start_node("ph2").unwrap();
    lab.wait_connected(Duration::from_secs(5)).unwrap();
    std::thread::sleep(Duration::from_secs(20));
    assert!(lab.ping_within(Duration::from_secs(5), "vm1", "10.77.2.10") && lab.ping("vm1", WEB4));
    lab.kill_node("ph3").unwrap();
    std::thread::sleep(Duration::from_secs(30));

    let prometheus = lab.prometheus();
    let queries = queries();
    assert!(queries.len() >= 15, "{}", queries.len());
    let mut seen = Vec::new();
    for (words, query) in &queries {
        let result = prometheus.query(query).unwrap();
        let good = result.iter().filter(|(_, value)| value.is_finite()).count();
        assert!(good > 0, "{words}: {query} gives {result:?}");
        println!("{words}: {} series, the first {:?}", result.len(), result[0]);
        seen.extend(result.into_iter().map(|(labels, value)| (query.clone(), labels, value)));
    }
    // and what they say is so
    let has = |start: &str, label: &str, is: &str, fits: &dyn Fn(f64) -> bool| {
        let found = seen.iter().any(|(query, labels, value)| {
            query.starts_with(start) && labels.get(label).is_some_and(|l| l == is) && fits(*value)
        });
        assert!(found, "{start} {label}={is}: {seen:#?}");
    };
    let positive = |value: f64| value > 0.0;
    has("mesh_peer_up == 0", "peer", "ph3", &|value| value == 0.0);
    has("sum by (instance, direction, reason)", "reason", "not_routable", &|value| {
        (2.0..20.0).contains(&value)
    });
    has("sum by (instance, reason) (increase(mesh_handshake", "reason", "timeout", &positive);
    has("mesh_egress_destinations", "state", "standby", &positive);
    has(
        "sum by (instance, network) (increase(mesh_egress_failovers",
        "instance",
        "198.51.100.11:9650",
        &positive,
    );
    has("mesh_egress_active == 1", "node", "ph2", &positive);
    has("mesh_certificate_expiry", "instance", "198.51.100.12:9650", &|value| {
        (9.0 * 86_400.0..=10.0 * 86_400.0).contains(&value)
    });
    has("mesh_peer_path_mtu_bytes", "instance", "198.51.100.11:9650", &|value| {
        (1100.0..1320.0).contains(&value)
    });
    has("sum by (instance, peer) (rate(mesh_peer_transmit", "peer", "ph2", &positive);

    let alerts = prometheus.alerts().unwrap();
    assert_eq!(alerts.len(), std::fs::read_to_string(&rules).unwrap().matches("- alert: ").count());
    for (name, _, wrong) in &alerts {
        assert_eq!(*wrong, None, "{name} cannot be evaluated");
    }
    for (name, state, _) in &alerts {
        let expected = [
            "MeshNodeDown",
            "MeshPeerDown",
            "MeshRoutesUnreachable",
            "MeshEgressStandby",
            "MeshCertificateEnds",
            "MeshPathMtuLow",
        ];
        assert_eq!(state != "inactive", expected.contains(&name.as_str()), "{name} is {state}: {alerts:?}");
    }
}
