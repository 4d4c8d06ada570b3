//! Metrics for Prometheus: plain data in, the text format out, served on an address of the operator's choice.
//!
//! Nothing is registered anywhere: each scrape renders what the node counts anyway, so a peer that is gone leaves no stale
//! series behind. Names are the operator's contract; receive and transmit are meant as in node_exporter.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use futures_util::future::BoxFuture;
use prometheus::TextEncoder;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use tokio::net::TcpListener;

use super::notices::tell;
use crate::notice::Notice;

/// An address that does not exist yet (an interface that comes up later) is tried again after this.
const BIND_AGAIN: Duration = Duration::from_secs(1);

/// The text format: <https://prometheus.io/docs/instrumenting/exposition_formats/>.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All that is told.
#[derive(Debug, Clone, Default)]
pub struct MetricsInput {
    /// Of the daemon.
    pub version: String,
    /// Of its sources.
    pub revision: String,
    /// This node.
    pub node: String,
    /// Whether the configuration was accepted when last read.
    pub reload_successful: bool,
    /// Number of peers in each state; all states, so that none is missing.
    pub peers_by_state: Vec<(&'static str, u64)>,
    /// Each peer.
    pub peers: Vec<PeerMetrics>,
    /// Each network.
    pub networks: Vec<NetworkMetrics>,
    /// Direction, reason, packets; all pairs from the start.
    pub drops: Vec<(&'static str, &'static str, u64)>,
    /// Reason, count; all reasons from the start.
    pub handshake_failures: Vec<(String, u64)>,
    /// How long handshakes that succeeded took.
    pub handshakes: Durations,
    /// Target of a probe, and whether the last one was answered.
    pub probes: Vec<(String, bool)>,
    /// Role (`node`, `ca`), seconds since 1970.
    pub certificate_expiry: Vec<(&'static str, i64)>,
    /// Revoked certificates known.
    pub revocations: u64,
}

/// A peer's numbers: inner packets, as this node sees them.
#[derive(Debug, Clone, Default)]
pub struct PeerMetrics {
    /// Its name.
    pub peer: String,
    /// Whether its tunnel is up.
    pub up: bool,
    /// Round-trip time, if up.
    pub rtt_seconds: Option<f64>,
    /// Largest inner packet, if up.
    pub path_mtu_bytes: Option<u32>,
    /// From the peer.
    pub receive_bytes: u64,
    /// From the peer.
    pub receive_packets: u64,
    /// To the peer.
    pub transmit_bytes: u64,
    /// To the peer.
    pub transmit_packets: u64,
}

/// A network's numbers.
#[derive(Debug, Clone, Default)]
pub struct NetworkMetrics {
    /// Its name.
    pub network: String,
    /// From the mesh.
    pub receive_bytes: u64,
    /// From the mesh.
    pub receive_packets: u64,
    /// To the mesh.
    pub transmit_bytes: u64,
    /// To the mesh.
    pub transmit_packets: u64,
    /// Packets whose addresses were mapped, from VM to mesh.
    pub mapped_outbound: u64,
    /// The same, from mesh to VM.
    pub mapped_inbound: u64,
    /// Number of routes in each state.
    pub routes_by_state: Vec<(String, u64)>,
    /// Egress nodes, and whether each is the one in use.
    pub egress_active: Vec<(String, bool)>,
    /// Times that another egress node took over because the tunnel to the former was gone.
    pub egress_failovers: u64,
}

/// Observed durations.
#[derive(Debug, Clone, Default)]
pub struct Durations {
    /// Upper bound in seconds, and how many took at most that long.
    pub buckets: Vec<(f64, u64)>,
    /// Sum of all.
    pub sum_seconds: f64,
    /// Number of all.
    pub count: u64,
}

/// Serves `GET /metrics` for good; `render` is asked at each scrape. An address that cannot be bound is tried again and again:
/// a node must run without its metrics.
pub async fn serve<R>(address: SocketAddr, render: R) -> io::Result<()>
where
    R: Fn() -> BoxFuture<'static, String> + Clone + Send + Sync + 'static,
{
    let listener = bind(address).await;
    tell(Notice::MetricsServed { address });
    axum::serve(listener, router(render)).await
}

fn router<R>(render: R) -> Router
where
    R: Fn() -> BoxFuture<'static, String> + Clone + Send + Sync + 'static,
{
    let scrape = move || {
        let text = render();
        async move { ([(CONTENT_TYPE, TEXT_FORMAT)], text.await) }
    };
    Router::new().route("/metrics", get(scrape))
}

async fn bind(address: SocketAddr) -> TcpListener {
    let mut warned = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) if !warned => {
                warned = true;
                tell(Notice::MetricsWaiting { address, error: error.to_string() });
            }
            Err(_) => {}
        }
        tokio::time::sleep(BIND_AGAIN).await;
    }
}

/// Labels of one series, and its value.
type Sample<'a> = (Vec<(&'static str, &'a str)>, f64);

/// One name with all its series.
fn family<'a>(
    name: &str,
    help: &str,
    kind: MetricType,
    samples: impl IntoIterator<Item = Sample<'a>>,
) -> MetricFamily {
    let metrics = samples.into_iter().map(|(labels, value)| {
        let mut metric = Metric::from_label(labels.into_iter().map(label).collect());
        if kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        metric
    });
    named(name, help, kind, metrics.collect())
}

fn named(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn label((name, value): (&str, &str)) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

fn gauge<'a>(name: &str, help: &str, samples: impl IntoIterator<Item = Sample<'a>>) -> MetricFamily {
    family(name, help, MetricType::GAUGE, samples)
}

fn counter<'a>(name: &str, help: &str, samples: impl IntoIterator<Item = Sample<'a>>) -> MetricFamily {
    family(name, help, MetricType::COUNTER, samples)
}

fn alone(value: f64) -> [Sample<'static>; 1] {
    [(Vec::new(), value)]
}

fn truth(value: bool) -> f64 {
    f64::from(u8::from(value))
}

/// The text of a scrape.
pub fn exposition(input: &MetricsInput) -> String {
    let mut families = node_families(input);
    families.extend(peer_families(&input.peers));
    families.extend(network_families(&input.networks));
    families.extend(process::families());
    // the encoder refuses a name without series, as of peers where there are none
    families.retain(|family| !family.get_metric().is_empty());
    TextEncoder::new().encode_to_string(&families).unwrap_or_else(|error| {
        tell(Notice::MetricsUnwritable { error: error.to_string() });
        String::new()
    })
}

fn node_families(input: &MetricsInput) -> Vec<MetricFamily> {
    let build = vec![("version", input.version.as_str()), ("revision", input.revision.as_str())];
    let peers = input.peers_by_state.iter().map(|&(state, n)| (vec![("state", state)], n as f64));
    let drops = input
        .drops
        .iter()
        .map(|&(direction, reason, n)| (vec![("direction", direction), ("reason", reason)], n as f64));
    let failures =
        input.handshake_failures.iter().map(|(reason, n)| (vec![("reason", reason.as_str())], *n as f64));
    let probes = input.probes.iter().map(|(target, ok)| (vec![("target", target.as_str())], truth(*ok)));
    let expiry = input.certificate_expiry.iter().map(|&(role, at)| (vec![("role", role)], at as f64));
    vec![
        gauge("mesh_build_info", "Version and revision of the daemon; always 1.", [(build, 1.0)]),
        gauge("mesh_node_info", "Name of this node; always 1.", [(vec![("node", input.node.as_str())], 1.0)]),
        gauge(
            "mesh_config_last_reload_successful",
            "Whether the configuration was accepted when last read.",
            alone(truth(input.reload_successful)),
        ),
        gauge("mesh_peers", "Peers by state.", peers),
        counter("mesh_dropped_packets_total", "Packets dropped, by direction and reason.", drops),
        counter("mesh_handshake_failures_total", "Handshakes that failed, by reason.", failures),
        durations(
            "mesh_handshake_duration_seconds",
            "How long handshakes that succeeded took.",
            &input.handshakes,
        ),
        gauge("mesh_egress_probe_success", "Whether the last probe of an egress was answered.", probes),
        gauge("mesh_certificate_expiry_timestamp_seconds", "When a certificate in use ends.", expiry),
        gauge("mesh_revocations", "Revoked certificates known.", alone(input.revocations as f64)),
    ]
}

fn durations(name: &str, help: &str, observed: &Durations) -> MetricFamily {
    let buckets = observed.buckets.iter().map(|&(bound, count)| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(bound);
        bucket.set_cumulative_count(count);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_sum(observed.sum_seconds);
    histogram.set_sample_count(observed.count);
    let mut metric = Metric::default();
    metric.set_histogram(histogram);
    named(name, help, MetricType::HISTOGRAM, vec![metric])
}

fn peer_families(peers: &[PeerMetrics]) -> Vec<MetricFamily> {
    let each = |value: fn(&PeerMetrics) -> Option<f64>| {
        peers.iter().filter_map(move |p| Some((vec![("peer", p.peer.as_str())], value(p)?)))
    };
    vec![
        gauge("mesh_peer_up", "Whether the tunnel to a peer is up.", each(|p| Some(truth(p.up)))),
        gauge("mesh_peer_rtt_seconds", "Round-trip time to a peer.", each(|p| p.rtt_seconds)),
        gauge(
            "mesh_peer_path_mtu_bytes",
            "Largest inner packet on the path to a peer.",
            each(|p| p.path_mtu_bytes.map(f64::from)),
        ),
        counter(
            "mesh_peer_receive_bytes_total",
            "Bytes of inner packets from a peer.",
            each(|p| Some(p.receive_bytes as f64)),
        ),
        counter(
            "mesh_peer_receive_packets_total",
            "Inner packets from a peer.",
            each(|p| Some(p.receive_packets as f64)),
        ),
        counter(
            "mesh_peer_transmit_bytes_total",
            "Bytes of inner packets to a peer.",
            each(|p| Some(p.transmit_bytes as f64)),
        ),
        counter(
            "mesh_peer_transmit_packets_total",
            "Inner packets to a peer.",
            each(|p| Some(p.transmit_packets as f64)),
        ),
    ]
}

fn network_families(networks: &[NetworkMetrics]) -> Vec<MetricFamily> {
    let each = |value: fn(&NetworkMetrics) -> u64| {
        networks.iter().map(move |n| (vec![("network", n.network.as_str())], value(n) as f64))
    };
    let mapped = networks.iter().flat_map(|n| {
        [("outbound", n.mapped_outbound), ("inbound", n.mapped_inbound)].map(|(direction, packets)| {
            (vec![("network", n.network.as_str()), ("direction", direction)], packets as f64)
        })
    });
    let routes = networks.iter().flat_map(|n| {
        n.routes_by_state.iter().map(|(state, count)| {
            (vec![("network", n.network.as_str()), ("state", state.as_str())], *count as f64)
        })
    });
    let active = networks.iter().flat_map(|n| {
        n.egress_active.iter().map(|(node, active)| {
            (vec![("network", n.network.as_str()), ("node", node.as_str())], truth(*active))
        })
    });
    let failovers = networks
        .iter()
        .map(|n| (vec![("network", n.network.as_str()), ("cause", "tunnel")], n.egress_failovers as f64));
    vec![
        counter(
            "mesh_network_receive_bytes_total",
            "Bytes a network received from the mesh.",
            each(|n| n.receive_bytes),
        ),
        counter(
            "mesh_network_receive_packets_total",
            "Packets a network received from the mesh.",
            each(|n| n.receive_packets),
        ),
        counter(
            "mesh_network_transmit_bytes_total",
            "Bytes a network sent to the mesh.",
            each(|n| n.transmit_bytes),
        ),
        counter(
            "mesh_network_transmit_packets_total",
            "Packets a network sent to the mesh.",
            each(|n| n.transmit_packets),
        ),
        counter("mesh_mapped_packets_total", "Packets whose addresses were mapped, by direction.", mapped),
        gauge("mesh_routes", "Routes of a network by state.", routes),
        gauge("mesh_egress_active", "Whether an egress node is the one in use.", active),
        counter("mesh_egress_failovers_total", "Times another egress node took over, by cause.", failovers),
    ]
}

/// What every Prometheus client tells of its process; proc(5).
mod process {
    use std::fs;

    use super::{MetricFamily, alone, counter, gauge};

    /// Unit of times in /proc/PID/stat: USER_HZ, which the kernel keeps at this on every architecture we run on.
    const TICKS_PER_SECOND: f64 = 100.0;

    pub(super) fn families() -> Vec<MetricFamily> {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
        let started = boot_time(&boot).zip(start_ticks(&stat)).map(|(boot, ticks)| boot + ticks);
        let open = fs::read_dir("/proc/self/fd").map(|entries| entries.count() as f64).ok();
        let told = [
            cpu_seconds(&stat).map(|v| {
                counter("process_cpu_seconds_total", "User and system CPU time spent in seconds.", alone(v))
            }),
            resident_bytes(&status)
                .map(|v| gauge("process_resident_memory_bytes", "Resident memory size in bytes.", alone(v))),
            open.map(|v| gauge("process_open_fds", "Number of open file descriptors.", alone(v))),
            started.map(|v| {
                let help = "Start time of the process since unix epoch in seconds.";
                gauge("process_start_time_seconds", help, alone(v))
            }),
        ];
        told.into_iter().flatten().collect()
    }

    /// Field `number` of /proc/PID/stat, from 3 on. The second, the command, may hold blanks and parentheses.
    fn field(stat: &str, number: usize) -> Option<f64> {
        let (_, behind) = stat.rsplit_once(')')?;
        behind.split_ascii_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
    }

    pub(super) fn cpu_seconds(stat: &str) -> Option<f64> {
        Some((field(stat, 14)? + field(stat, 15)?) / TICKS_PER_SECOND)
    }

    pub(super) fn start_ticks(stat: &str) -> Option<f64> {
        Some(field(stat, 22)? / TICKS_PER_SECOND)
    }

    pub(super) fn resident_bytes(status: &str) -> Option<f64> {
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(kib.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? * 1024.0)
    }

    pub(super) fn boot_time(stat: &str) -> Option<f64> {
        stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

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
                receive_bytes: 7,
                ..PeerMetrics::default()
            }],
            networks: vec![NetworkMetrics {
                network: "default".into(),
                routes_by_state: vec![("installed".into(), 2)],
                egress_active: vec![("ph2".into(), true)],
                ..NetworkMetrics::default()
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
            "mesh_network_receive_bytes_total{network=\"default\"} 0",
            "mesh_network_receive_packets_total{network=\"default\"} 0",
            "mesh_network_transmit_bytes_total{network=\"default\"} 0",
            "mesh_network_transmit_packets_total{network=\"default\"} 0",
            "mesh_dropped_packets_total{direction=\"outbound\",reason=\"no_route\"} 0",
            "mesh_mapped_packets_total{network=\"default\",direction=\"inbound\"} 0",
            "mesh_routes{network=\"default\",state=\"installed\"} 2",
            "mesh_handshake_failures_total{reason=\"unknown_ca\"} 0",
            "mesh_handshake_duration_seconds_bucket{le=\"+Inf\"} 1",
            "mesh_egress_active{network=\"default\",node=\"ph2\"} 1",
            "mesh_egress_failovers_total{network=\"default\",cause=\"tunnel\"} 0",
            "mesh_egress_probe_success{target=\"192.0.2.1\"} 1",
            "mesh_certificate_expiry_timestamp_seconds{role=\"node\"} 1790000000",
            "mesh_revocations 0",
        ] {
            assert!(text.lines().any(|line| line == series), "{series} is missing in\n{text}");
        }
        for name in
            ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds"]
        {
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
        assert_eq!(process::resident_bytes("Name:\tx\nVmRSS:\t   12 kB\n"), Some(12_288.0));
    }

    #[tokio::test]
    async fn only_the_metrics_path_answers_and_in_the_text_format() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let temp = tempfile::tempdir().unwrap();
        let socket = temp.path().join("metrics.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let app = router(|| Box::pin(async { "mesh_revocations 0\n".to_owned() }));
        let server = tokio::spawn(async move { axum::serve(listener, app).await });
        for (path, status) in [("/metrics", "200"), ("/", "404")] {
            let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
            let ask = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(ask.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
            assert_eq!(answer.contains("text/plain; version=0.0.4"), status == "200", "{answer}");
        }
        server.abort();
    }
}
