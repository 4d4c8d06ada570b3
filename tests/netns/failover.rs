//! How soon a dead egress node is seen, and that a live one is not taken for dead.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run in real time and fail by panic"
)]

use lab::world::{WEB4, wait_until};
use lab::{Lab, Plan};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(5);

/// Between two echoes of the measurement.
const STEP: Duration = Duration::from_millis(10);

/// Three hosts; ph3 carries the Internet traffic of all, ph2 stands by.
fn lab() -> Lab {
    let plan = Plan::standard("", 3)
        .each_net(|_, net| net.egress = vec!["ph3".into(), "ph2".into()])
        .with("ph2", |host| host.offer("default", &["198.51.100.12"], 200));
    let lab = Lab::start(plan).unwrap();
    assert!(wait_until(SOON, || lab.web("vm1", WEB4, None).as_deref() == Some("198.51.100.13")));
    assert!(wait_until(SOON, || lab.candidates("ph1").contains("ph2 alive")), "{}", lab.candidates("ph1"));
    lab
}

/// The longest time without an answer from the Internet while `event` happens, and how long it took until the first
/// answer came again.
fn outage(lab: &mut Lab, event: impl FnOnce(&mut Lab)) -> Duration {
    let log = lab.dir().join("echoes").to_string_lossy().into_owned();
    let step = STEP.as_secs_f64().to_string();
    // each echo a flow of its own: what is asked is when new flows have a way again
    let script = format!(
        "exec >{log}; while :; do ping -n -c 1 -W 0.2 {WEB4} >/dev/null && echo $(date +%s%N); sleep {step}; done"
    );
    lab.spawn("vm1", &["sh", "-c", &script]).unwrap();
    let answers = || -> Vec<u128> {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    };
    assert!(wait_until(SOON, || answers().len() > 20), "answers come");
    event(lab);
    std::thread::sleep(Duration::from_secs(4));
    let answers = answers();
    let gap = answers.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    Duration::from_nanos(gap as u64)
}

#[test]
fn the_loss_of_an_egress_node_is_over_before_a_second_is() {
    for how in ["power", "freeze", "cable"] {
        let mut lab = lab();
        let gap = outage(&mut lab, |lab| match how {
            "power" => lab.power_cut("ph3").unwrap(),
            "freeze" => lab.freeze("ph3").unwrap(),
            _ => lab.cut_cable("ph3").unwrap(),
        });
        println!("{how}: {} ms without an answer", gap.as_millis());
        assert!(gap < Duration::from_secs(1), "{how}: {gap:?}, {}", lab.log("ph1"));
        assert!(lab.notices("ph1", "peer_silent") >= 1, "{how}");
        assert_eq!(lab.web("vm1", WEB4, None).as_deref(), Some("198.51.100.12"), "{how}");
        if how == "freeze" {
            lab.thaw("ph3").unwrap();
        }
    }
}

#[test]
fn a_node_that_was_silent_for_a_moment_is_heard_again_and_does_not_take_the_role_back() {
    let lab = lab();
    lab.freeze("ph3").unwrap();
    assert!(wait_until(SOON, || lab.candidates("ph1").contains("ph3 silent")), "{}", lab.candidates("ph1"));
    assert!(wait_until(SOON, || lab.web("vm1", WEB4, None).as_deref() == Some("198.51.100.12")));
    // what does not leave the mesh has no better way, and waits
    assert!(lab.peers_up("ph1").contains(&"ph3".to_owned()), "the tunnel is given up later");
    lab.thaw("ph3").unwrap();
    assert!(wait_until(SOON, || lab.candidates("ph1").contains("ph3 alive")), "{}", lab.candidates("ph1"));
    assert!(lab.ping_within(SOON, "vm1", "10.77.3.10"));
    assert_eq!(
        lab.web("vm1", WEB4, None).as_deref(),
        Some("198.51.100.12"),
        "it has been moved once: enough"
    );
}

#[test]
fn a_busy_host_is_not_taken_for_a_dead_one() {
    let mut lab = lab();
    lab.serve("vm3").unwrap();
    // bulk through the very tunnel that is probed, both packet threads and the runtime at their limit, and the cores shared
    // by others, each in a session of its own: niceness alone counts within one
    for _ in 0..4 {
        lab.spawn("gw", &["setsid", "timeout", "15", "sh", "-c", "while :; do :; done"]).unwrap();
    }
    lab.spawn("vm3", &["timeout", "20", "iperf3", "-s", "-1"]).unwrap();
    let bulk = || lab.exec("vm1", &["timeout", "15", "iperf3", "-c", "10.77.3.10", "-P", "4", "-t", "10"]);
    let done = wait_until(SOON, || bulk().is_ok_and(|o| o.ok()));
    assert!(done, "the load was there");
    for host in ["ph1", "ph2", "ph3"] {
        assert_eq!(lab.notices(host, "peer_silent"), 0, "{host}: {}", lab.log(host));
    }
    assert_eq!(lab.web("vm1", WEB4, None).as_deref(), Some("198.51.100.13"));
}

#[test]
fn a_path_that_loses_much_is_borne_with_the_probes_that_the_operator_gives_it() {
    let plan = Plan::standard("", 2)
        .with("ph1", |host| host.extra("probe = { interval = \"100ms\", multiplier = 20 }"));
    let lab = Lab::start(plan).unwrap();
    assert!(wait_until(SOON, || lab.candidates("ph1") == "ph2 alive"), "{}", lab.candidates("ph1"));
    lab.loss("ph2", 30).unwrap();
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(lab.notices("ph1", "peer_silent"), 0, "{}", lab.log("ph1"));
}
