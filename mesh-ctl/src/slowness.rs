//! `status --verbose`: why a node may be slow, as text for people.

use std::fmt::Write as _;

use mesh_proto::api::{Pace, Performance, Queue, TunOffloads, WorkerPace};

use crate::show::{Rows, WIDTH, bytes, clean, list, rtt, table, wrap};

fn share(value: f64) -> String {
    format!("{:.0}%", value * 100.0)
}

fn figure(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |v| format!("{v:.1}"))
}

fn number(value: Option<u64>) -> String {
    value.map_or_else(|| "-".into(), |v| v.to_string())
}

fn words(all: &[(bool, &str)]) -> String {
    let word = |(there, word): &(bool, &str)| if *there { (*word).to_owned() } else { format!("no {word}") };
    all.iter().map(word).collect::<Vec<_>>().join(", ")
}

fn worker(worker: &WorkerPace, pace: &Pace, time: &str) -> [String; 8] {
    [
        worker.worker.clone(),
        worker.network.clone().unwrap_or_else(|| "all".into()),
        time.to_owned(),
        share(pace.busy_share),
        share(pace.waiting_share),
        pace.packets.to_string(),
        figure(pace.packets_per_batch),
        figure(pace.packets_per_call),
    ]
}

fn queue(queue: &Queue) -> [String; 6] {
    [
        queue.queue.clone(),
        number(queue.depth),
        number(queue.limit),
        queue.unit.clone(),
        queue.dropped.to_string(),
        queue.dropped_since_start.to_string(),
    ]
}

/// Advice first, then the figures.
pub(crate) fn show(found: &Performance) -> String {
    let time = format!("{:.1} s", found.interval_seconds);
    let mut out = format!("\nWhy it may be slow: figures of {time}, asked for just now\n");
    if found.advice.is_empty() {
        _ = writeln!(out, "  no figure stands out");
    }
    for line in &found.advice {
        for (i, part) in wrap(&clean(line), WIDTH - 4).iter().enumerate() {
            _ = writeln!(out, "  {}{part}", if i == 0 { "- " } else { "  " });
        }
    }
    let workers: Vec<_> = found
        .workers
        .iter()
        .flat_map(|w| [worker(w, &w.interval, &time), worker(w, &w.since_start, "start")])
        .collect();
    let header = ["WORKER", "NETWORK", "SINCE", "BUSY", "WAITING", "PACKETS", "PER BATCH", "PER CALL"];
    _ = write!(out, "\n{}", table(header, &workers, Rows::Folded));
    let peers: Vec<_> = found
        .peers
        .iter()
        .map(|p| {
            [
                p.peer.clone(),
                p.transport.clone(),
                rtt(p.rtt_seconds),
                p.path_mtu_bytes.to_string(),
                p.datagrams.to_string(),
                figure(p.datagrams_per_send),
                p.lost_packets.to_string(),
                bytes(p.send_buffer_bytes),
            ]
        })
        .collect();
    if !peers.is_empty() {
        let header = ["PEER", "TRANSPORT", "RTT", "MTU", "DATAGRAMS", "PER SEND", "LOST", "WAITING"];
        _ = write!(out, "\n{}", table(header, &peers, Rows::Folded));
    }
    let queues: Vec<_> = found.queues.iter().map(queue).collect();
    let header = ["QUEUE", "DEPTH", "LIMIT", "OF", "DROPPED", "SINCE START"];
    _ = write!(out, "\n{}\n", table(header, &queues, Rows::Folded));
    let tun = |t: &TunOffloads| words(&[(t.csum, "csum"), (t.tso, "tso"), (t.uso, "uso")]);
    let offloads: Vec<(&str, String)> = found.tuns.iter().map(|t| (t.tun.as_str(), tun(t))).collect();
    let socket = ("UDP socket", words(&[(found.socket.gso, "gso"), (found.socket.gro, "gro")]));
    out + "offloads in use\n" + &list(&[offloads, vec![socket]].concat())
}

#[cfg(test)]
mod tests {
    use mesh_proto::api::PeerPace;

    use super::*;

    #[test]
    fn advice_comes_first_and_no_line_is_wider_than_a_terminal() {
        let pace = Pace {
            packets: u64::MAX / 1_000_000,
            busy_share: 1.0,
            waiting_share: 0.123,
            packets_per_batch: Some(123.45),
            packets_per_call: None,
        };
        let found = Performance {
            interval_seconds: 1.0004,
            workers: vec![WorkerPace {
                worker: "mesh-out-63".into(),
                network: Some("customers-of-the-second-hall".into()),
                direction: "outbound".into(),
                interval: pace,
                since_start: pace,
            }],
            tuns: vec![TunOffloads {
                tun: "mesh-default".into(),
                csum: true,
                tso: true,
                ..TunOffloads::default()
            }],
            peers: vec![PeerPace {
                peer: "hypervisor-with-a-long-name-in-rack-17-of-the-second-hall".into(),
                transport: "datagram".into(),
                datagrams: 1_000_000_000_000,
                datagrams_per_send: Some(9.96),
                ..PeerPace::default()
            }],
            queues: vec![Queue {
                queue: "inbound".into(),
                depth: Some(3),
                limit: Some(8),
                ..Queue::default()
            }],
            advice: vec!["word ".repeat(50)],
            ..Performance::default()
        };
        let text = show(&found);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part}: {text}"));
        assert!(at("- word") < at("WORKER") && at("WORKER") < at("QUEUE"));
        assert!(text.contains("csum, tso, no uso") && text.contains("no gso, no gro"), "{text}");
        assert!(text.contains("123.5") && text.contains("100%") && text.contains("12%"), "{text}");
        assert!(text.contains("10.0") && text.contains("figures of 1.0 s"), "{text}");
        assert!(show(&Performance::default()).contains("no figure stands out"));
    }
}
