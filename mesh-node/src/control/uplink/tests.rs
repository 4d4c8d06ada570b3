#![expect(clippy::disallowed_methods, reason = "tests take any moment as their origin")]

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn health(targets: usize, count: u32) -> (Health, Now) {
    let config = UplinkConfig {
        interface: "eth0".into(),
        snat: vec![],
        probe: (1..=targets).map(|i| format!("192.0.2.{i}").parse().unwrap()).collect(),
        probe_interval: MS * 500,
        probe_count: count,
    };
    let now = Now { mono: Instant::now(), unix_ms: 1_000_000 };
    (Health::new(config, now.mono), now)
}

fn later(now: Now, ms: u32) -> Now {
    Now { mono: now.mono + MS * ms, unix_ms: now.unix_ms + u64::from(ms) }
}

fn no() -> Result<(), String> {
    Err("no answer".into())
}

#[test]
fn the_link_alone_decides_where_nothing_is_probed() {
    let (mut health, t) = health(0, 3);
    assert_eq!(health.poll_report(t), None, "not known yet");
    health.handle_link(true, t.mono);
    assert_eq!(health.poll_report(t).unwrap().fault, None);
    health.handle_link(false, t.mono);
    let down = health.poll_report(t).unwrap();
    assert_eq!(down.fault, Some((UplinkFault::Link, 0)), "at once");
    health.handle_link(true, t.mono);
    assert_eq!(health.poll_report(t), None, "health has to last");
    assert_eq!(health.poll_timeout(), Some(t.mono + HOLD));
    assert_eq!(health.poll_report(later(t, 1000)).unwrap().fault, None);
    assert_eq!(health.poll_timeout(), None);
}

#[test]
fn a_target_is_down_after_so_many_failures_in_a_row_and_the_outage_counts_from_its_last_answer() {
    let (mut health, t) = health(2, 3);
    health.handle_link(true, t.mono);
    health.handle_probe(0, Ok(()), t.mono);
    assert_eq!(health.poll_report(t), None, "the other is not known yet");
    health.handle_probe(1, Ok(()), t.mono);
    assert_eq!(health.poll_report(t).unwrap().targets, [true, true]);
    for ms in [500, 1000] {
        health.handle_probe(1, no(), later(t, ms).mono);
        assert_eq!(health.poll_report(later(t, ms)), None);
    }
    health.handle_probe(1, no(), later(t, 1500).mono);
    let down = health.poll_report(later(t, 1500)).unwrap();
    assert_eq!(down.fault, Some((UplinkFault::Probe, 1500)));
    assert_eq!(down.targets, [true, false]);
    assert_eq!(down.text, "192.0.2.2 does not answer (no answer)");
    health.handle_probe(1, Ok(()), later(t, 2000).mono);
    assert_eq!(health.poll_report(later(t, 2999)), None);
    assert_eq!(health.poll_report(later(t, 3000)).unwrap().fault, None);
}

#[test]
fn a_link_that_comes_back_has_to_be_shown_to_carry_by_every_target() {
    let (mut health, t) = health(1, 3);
    health.handle_link(true, t.mono);
    health.handle_probe(0, Ok(()), t.mono);
    health.poll_report(t).unwrap();
    health.handle_link(false, t.mono);
    assert_eq!(health.poll_report(t).unwrap().targets, [false]);
    // was under way when the link went
    health.handle_probe(0, Ok(()), t.mono);
    health.handle_link(true, t.mono);
    assert_eq!(health.poll_report(later(t, 5000)).unwrap().fault.map(|f| f.0), Some(UplinkFault::Probe));
    health.handle_probe(0, Ok(()), later(t, 5000).mono);
    assert_eq!(health.poll_report(later(t, 6000)).unwrap().fault, None);
}

proptest! {
    /// Whatever happens: nothing is due before `poll_timeout` says so, faults come at once, health lasts before it is told, and
    /// reports are as few as that allows.
    #[test]
    fn reports_follow_the_rule(
        count in 1_u32..4,
        steps in prop::collection::vec((0_u32..1500, 0_usize..2, any::<bool>(), any::<bool>()), 1..80),
    ) {
        let (mut health, start) = health(2, count);
        let mut now = start;
        let (mut link, mut up, mut failures) = (None, [None, None], [0, 0]);
        let mut told: Option<bool> = None;
        let mut good_since: Option<Instant> = None;
        for (ms, target, is_link, ok) in steps {
            let then = later(now, ms);
            if let Some(due) = health.poll_timeout() && due <= then.mono {
                let at = Now { mono: due.max(now.mono), unix_ms: now.unix_ms };
                prop_assert_eq!(health.poll_report(at).map(|r| r.fault), Some(None));
                prop_assert!(at.mono >= good_since.unwrap() + HOLD);
                told = Some(true);
            } else {
                prop_assert_eq!(health.poll_report(then), None, "nothing was due");
            }
            now = then;
            if is_link {
                health.handle_link(ok, now.mono);
                if link != Some(ok) && !ok {
                    up = [Some(false); 2];
                }
                link = Some(ok);
            } else {
                health.handle_probe(target, if ok { Ok(()) } else { no() }, now.mono);
                if !ok {
                    failures[target] += 1;
                    if failures[target] >= count { up[target] = Some(false); }
                } else if link != Some(false) {
                    failures[target] = 0;
                    up[target] = Some(true);
                }
            }
            let bad = link == Some(false) || (link.is_some() && up.contains(&Some(false)));
            let good = link == Some(true) && up == [Some(true); 2];
            good_since = if good { good_since.or(Some(now.mono)) } else { None };
            if let Some(report) = health.poll_report(now) {
                let healthy = report.fault.is_none();
                prop_assert_eq!((good, bad), (healthy, !healthy));
                if told == Some(false) && healthy {
                    prop_assert!(now.mono >= good_since.unwrap() + HOLD);
                }
                told = Some(healthy);
            }
            if bad { prop_assert_eq!(told, Some(false), "a fault is told at once"); }
        }
    }
}
