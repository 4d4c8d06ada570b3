//! README's table of symptoms: each row broken in the lab, its command run, the cause found in what it says.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run in real time and fail by panic"
)]

use lab::world::{WEB4, wait_until};
use lab::{Lab, Plan};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);
const README: &str = include_str!("../../README.md");

/// The command of a symptom, as README has it.
fn command(symptom: &str) -> String {
    let row = README.lines().find(|line| line.starts_with(&format!("| {symptom} |")));
    let row = row.unwrap_or_else(|| panic!("README has no row {symptom:?}"));
    let cell = row.split('|').nth(2).unwrap().trim();
    cell.trim_matches('`').strip_prefix("mesh-ctl ").unwrap().to_owned()
}

/// What ph1 answers to the command of a symptom, with the names in it replaced, and its exit status.
fn ask(lab: &Lab, symptom: &str, names: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut line = command(symptom);
    for (name, value) in names {
        assert!(line.contains(name), "{line} names {name}");
        line = line.replace(name, value);
    }
    let answer = lab.ctl("ph1", &line.split(' ').collect::<Vec<_>>()).unwrap();
    // without the folding of tables
    (answer.code, answer.text().split_whitespace().collect::<Vec<_>>().join(" "))
}

fn says(lab: &Lab, symptom: &str, names: &[(&str, &str)], words: &[&str]) {
    let mut last = String::new();
    let found = wait_until(SOON, || {
        last = ask(lab, symptom, names).1;
        words.iter().all(|word| last.contains(word))
    });
    assert!(found, "{symptom}: {words:?} in {last}");
}

/// The operator's own firewall.
fn firewall(lab: &Lab, host: &str, statements: &[&str]) {
    for statement in [&["add table inet office"], statements].concat() {
        let done = lab.exec(host, &["nft", statement]).unwrap();
        assert!(done.ok(), "{statement}: {}", done.text());
    }
}

#[test]
fn every_row_of_the_table_is_acted_out_here() {
    let table = README.split("| symptom | ask |").nth(1).unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let source = include_str!("symptoms.rs");
    for row in rows {
        let symptom = row.split('|').nth(1).unwrap().trim();
        let acted = source.matches(&format!("\"{symptom}\"")).count();
        assert!(acted > 0, "nobody acts out {symptom:?}");
    }
}

#[test]
fn a_vm_cannot_reach_another() {
    let row = "a VM cannot reach another";
    let lab = Lab::start(Plan::standard("", 2)).unwrap();
    assert!(lab.ping_within(SOON, "vm1", "10.77.2.10"));
    let there = [("FROM", "192.168.100.10"), ("TO", "10.77.2.10")];
    assert_eq!(ask(&lab, row, &there).0, Some(0));
    // the operator's firewall on the other host
    firewall(
        &lab,
        "ph2",
        &["add chain inet office through { type filter hook forward priority 0; policy drop; }"],
    );
    assert!(!lab.ping("vm1", "10.77.2.10"));
    says(&lab, row, &there, &["ph2", "through", "office"]);
    lab.exec("ph2", &["nft", "delete", "table", "inet", "office"]).unwrap();
    assert!(lab.ping_within(SOON, "vm1", "10.77.2.10"));
    // a routing rule of the operator's that comes first
    let divert =
        "ip route add default via 198.51.100.1 table 100; ip rule add iif vmnet1 lookup 100 pref 100";
    lab.sh("ph1", divert).unwrap();
    assert!(!lab.ping("vm1", "10.77.2.10"));
    says(&lab, row, &there, &["ph1", "eth0"]);
    lab.exec("ph1", &["ip", "rule", "del", "pref", "100"]).unwrap();
    // nobody there
    says(&lab, row, &[("FROM", "192.168.100.10"), ("TO", "10.77.9.9")], &["10.77.9.9"]);
    assert_eq!(ask(&lab, row, &[("FROM", "192.168.100.10"), ("TO", "10.77.9.9")]).0, Some(1));
}

#[test]
fn an_address_is_not_in_the_mesh() {
    let row = "an address is not in the mesh";
    let lab = Lab::start(Plan::standard("", 2)).unwrap();
    assert!(lab.ping_within(SOON, "vm1", "203.0.113.12"));
    let asked = [("ADDRESS", "203.0.113.42")];
    says(&lab, row, &asked, &["no record", "certificate allows it", "add it to `announce`"]);
    says(&lab, row, &[("ADDRESS", "203.0.113.12")], &["203.0.113.12/32 by ph2", "certificate of ph2"]);
    // the operator's rule stands before ours
    let divert =
        "ip route add 203.0.113.12 dev eth0 table 100; ip rule add to 203.0.113.12 lookup 100 pref 100";
    lab.sh("ph1", divert).unwrap();
    says(&lab, row, &[("ADDRESS", "203.0.113.12")], &["kernel", "no", "table 100"]);
    assert_eq!(ask(&lab, row, &[("ADDRESS", "203.0.113.12")]).0, Some(1));
}

#[test]
fn ping_works_and_tcp_hangs() {
    let row = "ping works, TCP hangs";
    let lab = Lab::start(Plan::standard("", 2)).unwrap();
    let mtu = |lab: &Lab| {
        lab.ctl("ph1", &["--json", "peer", "show", "ph2"]).unwrap().json()["peer"]["path_mtu_bytes"].as_u64()
    };
    assert!(wait_until(SOON, || mtu(&lab) > Some(1400)));
    assert!(lab.ping_within(SOON, "vm1", "10.77.2.10"));
    assert_eq!(ask(&lab, row, &[("ADDRESS", "10.77.2.10")]).0, Some(0));
    // behind the tunnel, whose own path is followed: something on the far host that drops what is large without a word
    let hole = "table ip hole { chain f { type filter hook forward priority 10; oifname vmnet1 meta length > 1280 drop; }; }";
    assert!(lab.exec("ph2", &["nft", hole]).unwrap().ok());
    let (code, text) = ask(&lab, row, &[("ADDRESS", "10.77.2.10")]);
    assert_eq!(code, Some(1), "{text}");
    for words in ["4 of 4 answered", "the tunnel believes", "drops larger packets", "mtu ="] {
        assert!(text.contains(words), "{words} in {text}");
    }
}

#[test]
fn it_is_slow() {
    let row = "it is slow";
    let mut lab = Lab::start(Plan::standard("", 2)).unwrap();
    lab.loss("ph2", 40).unwrap();
    // with the default idle timeout of two keep-alives a lossy tunnel may have to come back first
    let mut last = String::new();
    let told = wait_until(Duration::from_secs(90), || {
        let (code, text) = ask(&lab, row, &[("PEER", "ph2")]);
        last = text;
        code == Some(1) && last.contains("no answer") && last.contains("of 20 answered")
    });
    assert!(told, "{last}");
    lab.loss("ph2", 0).unwrap();
    lab.delay("ph1", Duration::from_millis(50)).unwrap();
    lab.wait_connected(SOON).unwrap();
    let (_, text) = ask(&lab, row, &[("PEER", "ph2")]);
    let least = text.split("least ").nth(1).and_then(|t| t.split(' ').next()).unwrap();
    assert!(least.parse::<f64>().unwrap() >= 50.0, "{text}");
}

#[test]
fn no_internet_from_private_vms() {
    let row = "no Internet from private VMs";
    let mut lab = Lab::start(Plan::standard("", 3)).unwrap();
    assert!(wait_until(SOON, || lab.web("vm1", WEB4, None).is_some()));
    says(&lab, row, &[], &["active", "ph3", "alive"]);
    lab.kill_node("ph3").unwrap();
    says(&lab, row, &[], &["none", "ph3", "down", "no candidate is healthy"]);
    let status = lab.ctl("ph1", &["status"]).unwrap();
    assert_eq!(status.code, Some(1));
    assert!(status.stdout.starts_with("degraded"), "{}", status.stdout);
}

#[test]
fn a_peer_is_down() {
    let row = "a peer is down";
    let mut lab = Lab::start(Plan::standard("", 2)).unwrap();
    lab.wait_connected(SOON).unwrap();
    let name = [("NAME", "ph2")];
    // a firewall on the way
    firewall(
        &lab,
        "ph2",
        &[
            "add chain inet office inward { type filter hook input priority 0; }",
            "add rule inet office inward udp dport 4650 drop",
            "add rule inet office inward udp sport 4650 drop",
        ],
    );
    says(&lab, row, &name, &["down", "nothing heard in time", "198.51.100.12:4650"]);
    lab.exec("ph2", &["nft", "delete", "table", "inet", "office"]).unwrap();
    lab.wait_connected(Duration::from_secs(30)).unwrap();
    lab.stop_node("ph2").unwrap();
    says(&lab, row, &name, &["left"]);
}

#[test]
fn a_certificate_is_refused() {
    let row = "a certificate is refused";
    let mut lab = Lab::build(Plan::standard("", 2)).unwrap();
    // a second CA of the same mesh: the classic mistake of running `ca init` twice
    let ctl = lab::node::binary("mesh-ctl").unwrap().to_string_lossy().into_owned();
    let other = lab.dir().join("other-ca").to_string_lossy().into_owned();
    let made = lab.sh("ph2", &format!("{ctl} ca init --name lab --dir {other}")).unwrap();
    assert!(made.ok(), "{}", made.text());
    lab.issue("ph2", &other).unwrap();
    lab.start_node("ph1").unwrap();
    lab.start_node("ph2").unwrap();
    says(&lab, row, &[], &["another CA", "ca.pem"]);
    let file = lab.file("ph2", "node.pem").to_string_lossy().into_owned();
    let shown = lab.ctl("ph2", &["ca", "show", &file]).unwrap();
    assert!(shown.ok() && shown.stdout.contains("ph2"), "{}", shown.text());
}
