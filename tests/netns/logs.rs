//! What an operator is told: the log and its level, the event stream, and how little of it a stranger can cause.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run in real time and fail by panic"
)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab::command::signal;
use lab::world::wait_until;
use lab::{Lab, Plan};
use serde_json::Value;

/// A running `mesh-ctl monitor` whose lines are read by a thread, so that a test may wait for one.
struct Monitor {
    child: Child,
    lines: std::sync::mpsc::Receiver<Value>,
}

impl Monitor {
    /// Starts it and waits for its first line.
    fn start(lab: &Lab, host: &str) -> Self {
        let program = lab::node::binary("mesh-ctl").unwrap();
        let mut command = Command::new(program);
        command.arg("--socket").arg(lab.file(host, "node.sock")).arg("monitor");
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (told, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let line: Value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if told.send(line).is_err() {
                    return;
                }
            }
        });
        let mut monitor = Self { child, lines };
        let first = monitor.next(Duration::from_secs(5)).expect("a first line");
        assert_eq!((&first["event"], &first["fields"]["node"]), (&"monitor_started".into(), &host.into()));
        monitor
    }

    fn next(&mut self, limit: Duration) -> Option<Value> {
        self.lines.recv_timeout(limit).ok()
    }

    /// The next line of an event about a peer.
    fn wait(&mut self, event: &str, peer: &str, limit: Duration) -> Value {
        let end = Instant::now() + limit;
        while let Some(line) = self.next(end.saturating_duration_since(Instant::now())) {
            if line["event"] == event && line["fields"]["peer"] == peer {
                return line;
            }
        }
        panic!("no {event} of {peer} within {limit:?}");
    }

    fn status(&mut self) -> Option<i32> {
        let mut status = None;
        wait_until(Duration::from_secs(5), || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.expect("it has ended").code()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_monitor_tells_of_a_peer_that_goes_and_comes_and_ends_with_its_node() {
    let mut lab = Lab::start(Plan::standard("", 2)).unwrap();
    let mut monitor = Monitor::start(&lab, "ph1");
    lab.kill_node("ph2").unwrap();
    let down = monitor.wait("tunnel_down", "ph2", Duration::from_secs(10));
    assert_eq!((&down["schema"], &down["level"]), (&1.into(), &"warn".into()), "{down}");
    assert!(down["time"].as_str().unwrap().ends_with('Z'), "{down}");
    assert!(down["remedy"].as_str().unwrap().contains("mesh-ctl peer show"), "{down}");
    assert!(!down["fields"]["text"].as_str().unwrap().is_empty(), "{down}");
    lab.start_node("ph2").unwrap();
    let up = monitor.wait("tunnel_up", "ph2", Duration::from_secs(10));
    assert_eq!(up["fields"]["endpoint"].as_str().unwrap().split(':').next(), Some("198.51.100.12"), "{up}");

    let mut other = Monitor::start(&lab, "ph1");
    signal(other.child.id(), "INT").unwrap();
    assert_eq!(other.status(), Some(0), "Ctrl-C is no failure");

    lab.stop_node("ph2").unwrap();
    monitor.wait("peer_left", "ph2", Duration::from_secs(5));
    let took = lab.stop_node("ph1").unwrap();
    assert!(took < Duration::from_secs(3), "a monitor does not keep the node: {took:?}");
    assert_eq!(monitor.status(), Some(3), "the node has gone");
    let after = lab.ctl("ph1", &["monitor"]).unwrap();
    assert_eq!(after.code, Some(3), "{}", after.text());
}

#[test]
fn a_monitor_ends_when_nobody_reads_it_even_if_nothing_happens() {
    let lab = Lab::start(Plan::standard("", 1)).unwrap();
    let mut monitor = Command::new(lab::node::binary("mesh-ctl").unwrap())
        .arg("--socket")
        .arg(lab.file("ph1", "node.sock"))
        .arg("monitor")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(monitor.stdout.take().unwrap());
    let mut first = String::new();
    out.read_line(&mut first).unwrap();
    assert!(first.contains("monitor_started"), "{first}");
    drop(out);
    let mut status = None;
    wait_until(Duration::from_secs(5), || {
        status = monitor.try_wait().unwrap();
        status.is_some()
    });
    let _ = monitor.kill();
    let _ = monitor.wait();
    assert_eq!(status.expect("it has ended by itself").code(), Some(0));
}

/// Asks the control socket over a connection that stays open; gives status and body.
fn http(
    stream: &mut BufReader<UnixStream>,
    method: &str,
    path: &str,
    kind: &str,
    body: &str,
) -> (u16, String, String) {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: node\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.get_mut().write_all(format!("{head}{body}").as_bytes()).unwrap();
    let (mut status, mut length, mut told) = (0, 0, String::new());
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let line = line.trim_end().to_lowercase();
        if let Some(rest) = line.strip_prefix("http/1.1 ") {
            status = rest[..3].parse().unwrap();
        } else if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().unwrap();
        } else if let Some(value) = line.strip_prefix("content-type: ") {
            told = value.to_owned();
        } else if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    (status, told, String::from_utf8(body).unwrap())
}

fn connect(socket: &Path) -> BufReader<UnixStream> {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    BufReader::new(stream)
}

#[test]
fn a_reader_that_does_not_read_is_told_what_it_missed_and_keeps_nobody_waiting() {
    let lab = Lab::start(Plan::standard("", 1)).unwrap();
    let socket = lab.file("ph1", "node.sock");
    let mut slow = connect(&socket);
    slow.get_mut().write_all(b"GET /v1/events HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
    let mut line = String::new();
    while !line.contains("monitor_started") {
        line.clear();
        slow.read_line(&mut line).unwrap();
    }
    // each is an event, which root alone can cause and so is not limited; more than socket and queue hold
    let mut asking = connect(&socket);
    let begun = Instant::now();
    for n in 0..5000 {
        let body = format!("{{\"filter\":\"info,mesh_node::part{n}=info\"}}");
        let (status, _, text) = http(&mut asking, "PUT", "/v1/log-level", "application/json", &body);
        assert_eq!(status, 200, "{text}");
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    let missed = loop {
        line.clear();
        assert!(slow.read_line(&mut line).unwrap() > 0, "the stream goes on");
        if let Ok(event) = serde_json::from_str::<Value>(&line)
            && event["event"] == "lagged"
        {
            break event["fields"]["missed"].as_u64().unwrap();
        }
    };
    assert!((1..5000).contains(&missed), "{missed}");
    // and it goes on with the newest
    while !line.contains("part4999") {
        line.clear();
        assert!(slow.read_line(&mut line).unwrap() > 0, "the newest event comes");
    }
}

#[test]
fn the_log_level_is_changed_while_the_node_runs_and_nonsense_is_refused() {
    let mut lab = Lab::start(Plan::standard("", 2)).unwrap();
    // the start of the lab sets RUST_LOG
    let shown = lab.ctl("ph1", &["log-level"]).unwrap();
    assert_eq!((shown.code, shown.stdout.trim()), (Some(0), "info"), "{}", shown.text());
    assert!(!lab.log("ph1").contains("\"DEBUG\""), "{}", lab.log("ph1"));
    let set = lab.ctl("ph1", &["log-level", "info,mesh_node=debug"]).unwrap();
    assert!(set.ok() && set.stdout.contains("mesh_node=debug"), "{}", set.text());
    lab.kill_node("ph2").unwrap();
    let debug = |lab: &Lab| lab.log("ph1").lines().any(|l| l.contains("\"DEBUG\"") && l.contains("\"dial\""));
    assert!(wait_until(Duration::from_secs(10), || debug(&lab)), "{}", lab.log("ph1"));

    let refused = lab.ctl("ph1", &["log-level", "debgu"]).unwrap();
    assert_eq!(refused.code, Some(1), "{}", refused.text());
    assert!(
        refused.stderr.contains("debgu") && refused.stderr.contains("error, warn, info"),
        "{}",
        refused.text()
    );
    let shown = lab.ctl("ph1", &["--json", "log-level"]).unwrap().json();
    assert!(shown["filter"].as_str().unwrap().contains("mesh_node=debug"), "unchanged: {shown}");

    // whoever may open the socket may read, and not change
    let file = lab.file("ph1", "node.sock").to_string_lossy().into_owned();
    let open =
        format!("chmod 666 {file}; d={file}; while [ \"$d\" != / ]; do d=$(dirname $d); chmod o+x $d; done");
    lab.sh("ph1", &open).unwrap();
    let ctl = lab.dir().join("mesh-ctl").to_string_lossy().into_owned();
    std::fs::copy(lab::node::binary("mesh-ctl").unwrap(), &ctl).unwrap();
    let nobody = |args: &[&str]| {
        let mut words =
            vec!["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", &ctl, "--socket", &file];
        words.extend(args);
        lab.exec("ph1", &words).unwrap()
    };
    let shown = nobody(&["log-level"]);
    assert!(shown.ok() && shown.stdout.contains("mesh_node=debug"), "{}", shown.text());
    let refused = nobody(&["log-level", "trace"]);
    assert_eq!(refused.code, Some(1), "{}", refused.text());
    assert!(refused.stderr.contains("root"), "{}", refused.text());

    lab.kill_node("ph1").unwrap();
    lab.start_node("ph1").unwrap();
    let shown = lab.ctl("ph1", &["log-level"]).unwrap();
    assert_eq!(shown.stdout.trim(), "info", "not kept over a restart");
}

#[test]
fn what_the_control_socket_refuses_is_a_problem_document_that_says_why() {
    let lab = Lab::start(Plan::standard("", 1)).unwrap();
    let mut asking = connect(&lab.file("ph1", "node.sock"));
    for (method, path, kind, body, status) in [
        ("DELETE", "/v1/status", "text/plain", "", 405),
        ("PUT", "/v1/log-level", "text/plain", "debug", 415),
        ("PUT", "/v1/log-level", "application/json", "{", 400),
        ("PUT", "/v1/log-level", "application/json", "{\"level\":\"debug\"}", 422),
        ("GET", "/v1/routes/get?address=ten", "text/plain", "", 400),
        ("GET", "/v1/nothing", "text/plain", "", 404),
    ] {
        let (got, told, text) = http(&mut asking, method, path, kind, body);
        assert_eq!((got, told.as_str()), (status, "application/problem+json"), "{method} {path}: {text}");
        let problem: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(problem["status"], status, "{text}");
        assert!(problem["title"].as_str().unwrap().len() > 10, "{text}");
    }
}

/// Lines of an event in a log or a stream, and how many it says were held back.
fn counted(lines: impl IntoIterator<Item = Value>, event: &str) -> (u64, u64) {
    lines.into_iter().fold((0, 0), |(lines, held), line| {
        let of = |line: &Value| line["of"].as_str().or(line["fields"]["of"].as_str()) == Some(event);
        let count = line["count"].as_u64().or(line["fields"]["count"].as_u64()).unwrap_or(0);
        match line["event"].as_str() {
            Some(it) if it == event => (lines + 1, held + line["suppressed"].as_u64().unwrap_or(0)),
            Some("suppressed") if of(&line) => (lines, held + count),
            _ => (lines, held),
        }
    })
}

fn log_lines(lab: &Lab, host: &str) -> Vec<Value> {
    lab.log(host).lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn strangers_who_knock_without_end_cost_few_lines_and_are_counted() {
    let mut lab = Lab::build(Plan::standard("", 2)).unwrap();
    let ctl = lab::node::binary("mesh-ctl").unwrap().to_string_lossy().into_owned();
    let other = lab.dir().join("other-ca").to_string_lossy().into_owned();
    lab::command::must(None, &[&ctl, "ca", "init", "--name", "lab", "--dir", &other]).unwrap();
    let ours = std::fs::read_to_string(lab.file("ph2", "ca.pem")).unwrap();
    lab.issue("ph2", &other).unwrap();
    let theirs = std::fs::read_to_string(lab.file("ph2", "ca.pem")).unwrap();
    std::fs::write(lab.file("ph2", "ca.pem"), format!("{theirs}{ours}")).unwrap();
    lab.start_node("ph1").unwrap();
    let mut monitor = Monitor::start(&lab, "ph1");
    // each time from another address, since the same refusal of the same address is told once anyway
    let config = lab.config("ph2").unwrap();
    for n in 101..121 {
        let address = format!("198.51.100.{n}");
        lab.exec("ph2", &["ip", "addr", "add", &format!("{address}/24"), "dev", "eth0"]).unwrap();
        let text = config.replace("listen = \"0.0.0.0:", &format!("listen = \"{address}:"));
        std::fs::write(lab.file("ph2", "node.toml"), text).unwrap();
        lab.start_node("ph2").unwrap();
        std::thread::sleep(Duration::from_millis(300));
        lab.kill_node("ph2").unwrap();
    }
    // and noise, of all lengths, half of it dressed as QUIC's first packet
    let noise = "for i in $(seq 40); do for n in 20 100 1200 1400; do { head -c $n /dev/urandom; } \
                 >/dev/udp/198.51.100.11/4650; { printf '\\300\\0\\0\\0\\1'; head -c $n /dev/urandom; } \
                 >/dev/udp/198.51.100.11/4650; done; done";
    lab.exec("inet", &["bash", "-c", noise]).unwrap();
    let failures = lab.metric("ph1", "mesh_handshake_failures_total", "");
    assert!(failures >= 18.0, "they did knock: {failures}");
    let end = Instant::now() + Duration::from_secs(20);
    let mut told = Vec::new();
    while let Some(line) = monitor.next(end.saturating_duration_since(Instant::now())) {
        let last = line["event"] == "suppressed";
        told.push(line);
        if last {
            break;
        }
    }
    let (lines, held) = counted(told, "connection_refused");
    assert!((10..=16).contains(&lines), "{lines} lines");
    assert!(lines + held >= 18, "{lines} lines, and {held} held back, of {failures}");
    let log = log_lines(&lab, "ph1");
    assert_eq!(
        counted(log.clone(), "connection_refused"),
        (lines, held),
        "the log tells what the stream tells"
    );
    let line = log.iter().find(|line| line["event"] == "connection_refused").unwrap();
    assert!(line["remedy"].as_str().unwrap().contains("ca show"), "{line}");
    assert!(line["endpoint"].as_str().unwrap().starts_with("198.51.100.101:"), "{line}");
    assert!(lab.log("ph1").lines().count() < 60, "{}", lab.log("ph1"));
}

#[test]
fn a_peer_that_restarts_without_end_costs_few_lines_and_each_is_counted() {
    const ROUNDS: u64 = 24;
    let mut lab = Lab::start(Plan::standard("", 2)).unwrap();
    let mut monitor = Monitor::start(&lab, "ph1");
    for _ in 0..ROUNDS {
        lab.kill_node("ph2").unwrap();
        lab.start_node("ph2").unwrap();
        assert!(wait_until(Duration::from_secs(5), || lab.peers_up("ph2") == ["ph1"]));
    }
    let end = Instant::now() + Duration::from_secs(25);
    let mut told = Vec::new();
    let all = |told: &[Value]| {
        let (lines, held) = counted(told.to_vec(), "tunnel_up");
        lines + held
    };
    // what was held back of others is told as well, in its own time
    while all(&told) < ROUNDS {
        told.push(monitor.next(end.saturating_duration_since(Instant::now())).expect("the rest is told"));
    }
    let (lines, held) = counted(told, "tunnel_up");
    assert!((1..ROUNDS).contains(&lines) && held > 0, "{lines} lines and {held} held back");
}

#[test]
fn a_node_whose_stderr_is_the_journals_writes_entries_with_fields() {
    let mut lab = Lab::build(Plan::standard("", 1)).unwrap();
    let socket = lab.dir().join("journal.sock").to_string_lossy().into_owned();
    let journal = UnixDatagram::bind(&socket).unwrap();
    journal.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let stderr = lab.dir().join("stderr").to_string_lossy().into_owned();
    let program = lab::node::binary("mesh-node").unwrap().to_string_lossy().into_owned();
    let config = lab.file("ph1", "node.toml").to_string_lossy().into_owned();
    // a /run of its own, where this test is the journal; a command in a namespace has its own mounts
    let script = format!(
        "mount -t tmpfs run /run && mkdir -p /run/systemd/journal && ln -s {socket} /run/systemd/journal/socket && \
         : >{stderr} && JOURNAL_STREAM=$(stat -c %d:%i {stderr}) exec {program} run --config {config} 2>>{stderr}"
    );
    let pid = lab.spawn("ph1", &["sh", "-c", &script]).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut entries = String::new();
    while !entries.contains("MESH_EVENT=metrics_served\n") {
        let len = journal.recv(&mut buffer).expect("the journal receives the start");
        entries.push_str(&String::from_utf8_lossy(&buffer[..len]));
    }
    assert!(entries.contains("MESSAGE=mesh-node starts node=ph1 mesh=lab "), "{entries}");
    for field in ["PRIORITY=6\n", "SYSLOG_IDENTIFIER=mesh-node\n", "MESH_EVENT=starting\n", "MESH_NODE=ph1\n"]
    {
        assert!(entries.contains(field), "{field}: {entries}");
    }
    let twice = std::fs::read_to_string(&stderr).unwrap();
    assert!(twice.is_empty(), "nothing is written twice: {twice}");
    signal(pid, "TERM").unwrap();
    while !entries.contains("MESH_EVENT=stopped\n") {
        let len = journal.recv(&mut buffer).expect("the journal receives the stop");
        entries.push_str(&String::from_utf8_lossy(&buffer[..len]));
    }
}
