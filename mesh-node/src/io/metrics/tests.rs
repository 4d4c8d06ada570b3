use std::collections::BTreeSet;

use super::input::{Durations, EgressMetrics, NetworkMetrics, PeerMetrics, WorkerMetrics};
use super::*;
use crate::forward::counters::{LaneCount, TrafficCount};

fn input() -> MetricsInput {
    MetricsInput {
        version: "0.1.0".into(),
        node: "ph1".into(),
        reload_successful: true,
        peers_by_state: vec![("up", 1), ("down", 0)],
        peers: vec![PeerMetrics {
            peer: "ph2".into(),
            up: true,
            rtt_seconds: Some(0.0005),
            path_mtu_bytes: Some(1400),
            receive: TrafficCount { packets: 0, bytes: 7 },
            lane: LaneCount { lost: 3, forged: 5, ..LaneCount::default() },
            ..PeerMetrics::default()
        }],
        networks: vec![NetworkMetrics {
            network: "default".into(),
            routes_by_state: vec![("installed", 2)],
            egress_failovers: vec![("tunnel", 0)],
            egress_outages: Durations { buckets: vec![(0.2, 1)], sum_seconds: 0.15, count: 1 },
            egress_by_state: vec![("standby", 1)],
            egress: vec![EgressMetrics { node: "ph2".into(), active: true, ..EgressMetrics::default() }],
            ..NetworkMetrics::default()
        }],
        workers: vec![WorkerMetrics {
            worker: "mesh-in".into(),
            direction: "inbound",
            busy_seconds: 0.25,
            ..WorkerMetrics::default()
        }],
        drops: vec![("outbound", "no_route", 0)],
        handshake_failures: vec![("unknown_ca".into(), 0)],
        handshakes: Durations { buckets: vec![(0.1, 1)], sum_seconds: 0.05, count: 1 },
        probes: vec![("192.0.2.1".into(), true)],
        certificate_expiry: vec![("node", 1_790_000_000)],
        ..MetricsInput::default()
    }
}

#[test]
fn names_and_labels_are_the_operator_s_contract() {
    let text = exposition(&input());
    for series in [
        "mesh_build_info{version=\"0.1.0\",revision=\"\"} 1",
        "mesh_node_info{node=\"ph1\"} 1",
        "mesh_config_last_reload_successful 1",
        "mesh_peers{state=\"down\"} 0",
        "mesh_peer_up{peer=\"ph2\"} 1",
        "mesh_peer_rtt_seconds{peer=\"ph2\"} 0.0005",
        "mesh_peer_path_mtu_bytes{peer=\"ph2\"} 1400",
        "mesh_peer_receive_bytes_total{peer=\"ph2\"} 7",
        "mesh_peer_receive_packets_total{peer=\"ph2\"} 0",
        "mesh_peer_transmit_bytes_total{peer=\"ph2\"} 0",
        "mesh_peer_transmit_packets_total{peer=\"ph2\"} 0",
        "mesh_peer_underlay_lost_packets_total{peer=\"ph2\"} 3",
        "mesh_peer_underlay_reordered_packets_total{peer=\"ph2\"} 0",
        "mesh_peer_lane_refused_packets_total{peer=\"ph2\",reason=\"duplicate\"} 0",
        "mesh_peer_lane_refused_packets_total{peer=\"ph2\",reason=\"replayed\"} 0",
        "mesh_peer_lane_refused_packets_total{peer=\"ph2\",reason=\"not_authentic\"} 5",
        "mesh_unknown_lane_datagrams_total 0",
        "mesh_network_receive_bytes_total{network=\"default\"} 0",
        "mesh_network_receive_packets_total{network=\"default\"} 0",
        "mesh_network_transmit_bytes_total{network=\"default\"} 0",
        "mesh_network_transmit_packets_total{network=\"default\"} 0",
        "mesh_dropped_packets_total{direction=\"outbound\",reason=\"no_route\"} 0",
        "mesh_network_hairpin_packets_total{network=\"default\"} 0",
        "mesh_tun_dropped_packets_total{network=\"default\",direction=\"outbound\"} 0",
        "mesh_records_refused_total 0",
        "mesh_socket_dropped_datagrams_total 0",
        "mesh_egress_destinations{network=\"default\",state=\"standby\"} 1",
        "mesh_egress_transmit_packets_total{network=\"default\",node=\"ph2\"} 0",
        "mesh_egress_receive_bytes_total{network=\"default\",node=\"ph2\"} 0",
        "mesh_egress_carried_transmit_packets_total{network=\"default\"} 0",
        "mesh_egress_carried_receive_packets_total{network=\"default\"} 0",
        "mesh_worker_receive_packets_total{worker=\"mesh-in\",direction=\"inbound\"} 0",
        "mesh_worker_busy_seconds_total{worker=\"mesh-in\",direction=\"inbound\"} 0.25",
        "mesh_mapped_packets_total{network=\"default\",direction=\"inbound\"} 0",
        "mesh_routes{network=\"default\",state=\"installed\"} 2",
        "mesh_handshake_failures_total{reason=\"unknown_ca\"} 0",
        "mesh_handshake_duration_seconds_bucket{le=\"+Inf\"} 1",
        "mesh_egress_active{network=\"default\",node=\"ph2\"} 1",
        "mesh_egress_failovers_total{network=\"default\",cause=\"tunnel\"} 0",
        "mesh_egress_failover_duration_seconds_bucket{network=\"default\",le=\"0.2\"} 1",
        "mesh_egress_lease_lost_total 0",
        "mesh_stray_probes_total 0",
        "mesh_egress_probe_success{target=\"192.0.2.1\"} 1",
        "mesh_certificate_expiry_timestamp_seconds{role=\"node\"} 1790000000",
        "mesh_revocations 0",
    ] {
        assert!(text.lines().any(|line| line == series), "{series} is missing in\n{text}");
    }
    for name in [
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_open_fds",
        "process_max_fds",
        "process_start_time_seconds",
    ] {
        assert!(text.lines().any(|line| line.starts_with(&format!("{name} "))), "{name}");
    }
}

#[test]
fn every_name_has_help_and_type_once_and_counters_alone_end_in_total() {
    let text = exposition(&input());
    let told = |mark: &str| -> Vec<String> {
        text.lines().filter_map(|l| l.strip_prefix(mark)).map(str::to_owned).collect()
    };
    let helped: BTreeSet<String> =
        told("# HELP ").iter().filter_map(|l| Some(l.split_once(' ')?.0.to_owned())).collect();
    let types = told("# TYPE ");
    assert_eq!((helped.len(), types.len()), (told("# HELP ").len(), helped.len()));
    for line in &types {
        let (name, kind) = line.split_once(' ').unwrap();
        assert!(helped.contains(name), "{name}");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
    }
}

#[test]
fn a_node_without_peers_and_networks_is_no_error() {
    let text = exposition(&MetricsInput::default());
    assert!(text.contains("mesh_revocations 0\n") && !text.contains("mesh_peer_up"));
}

#[test]
fn a_command_with_blanks_and_parentheses_does_not_shift_the_fields() {
    let mut stat = "7 (a) b (c)) S".to_owned();
    (4..=24).for_each(|n| stat.push_str(&format!(" {}", n * 100)));
    assert_eq!(process::cpu_seconds(&stat), Some(29.0));
    assert_eq!(process::start_ticks(&stat), Some(22.0));
    assert_eq!(process::cpu_seconds("nonsense"), None);
    assert_eq!(process::status_bytes("Name:\tx\nVmRSS:\t   12 kB\n", "VmRSS:"), Some(12_288.0));
    let limits = "Max processes  1  1 processes\nMax open files            1024                 524288               files\n";
    assert_eq!(process::max_fds(limits), Some(1024.0));
    assert_eq!(process::max_fds("Max open files unlimited unlimited files\n"), None);
}

#[tokio::test]
async fn only_the_metrics_path_answers_and_in_the_text_format() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = router(|| Box::pin(async { "mesh_revocations 0\n".to_owned() }));
    let server = tokio::spawn(answer_all(listener, app));
    for (path, status) in [("/metrics", "200"), ("/", "404")] {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let ask = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert_eq!(answer.contains("text/plain; version=0.0.4"), status == "200", "{answer}");
    }
    server.abort();
}

#[tokio::test]
async fn idle_connections_are_few_and_do_not_last() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = router(|| Box::pin(async { "mesh_revocations 0\n".to_owned() }));
    let server = tokio::spawn(answer_all(listener, app));
    let mut idle = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        idle.push(TcpStream::connect(address).await.unwrap());
    }
    let mut scrape = TcpStream::connect(address).await.unwrap();
    scrape.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    let at_once = timeout(CONNECTION_TIME / 5, scrape.read_to_string(&mut answer)).await;
    assert!(at_once.is_err(), "there is room for more than {MAX_CONNECTIONS}: {answer}");
    timeout(2 * CONNECTION_TIME, scrape.read_to_string(&mut answer))
        .await
        .expect("an answer, and its end")
        .unwrap();
    assert!(answer.ends_with("mesh_revocations 0\n"), "{answer}");
    let ended = timeout(CONNECTION_TIME, idle[0].read_to_string(&mut answer)).await;
    ended.expect("an end").unwrap();
    server.abort();
}

/// Where the list stands in the document.
const MARKS: [&str; 2] = ["<!-- list: begin -->\n", "<!-- list: end -->\n"];

/// The list of the document: as the code tells it.
fn list() -> String {
    let mut list = "| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for family in families::all(&input()) {
        let kind = format!("{:?}", family.get_field_type()).to_lowercase();
        let labels: Vec<String> =
            family.get_metric()[0].get_label().iter().map(|l| format!("`{}`", l.name())).collect();
        let (name, help) = (family.name(), family.help());
        list.push_str(&format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", ")));
    }
    list
}

#[test]
fn the_document_lists_every_metric_with_the_code_s_own_words() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (head, rest) = text.split_once(MARKS[0]).unwrap();
    let (listed, tail) = rest.split_once(MARKS[1]).unwrap();
    if std::env::var_os("MESH_WRITE_DOCS").is_some() {
        std::fs::write(path, [head, MARKS[0], &list(), MARKS[1], tail].concat()).unwrap();
        return;
    }
    assert_eq!(
        listed,
        list(),
        "docs/metrics.md: `MESH_WRITE_DOCS=1 cargo test -p mesh-node the_document_lists`"
    );
}
