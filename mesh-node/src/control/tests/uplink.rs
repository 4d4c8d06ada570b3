//! What an egress node tells of its own uplink, and whom.

use mesh_proto::record::{Condition, UplinkFault};

use super::super::uplink::Report;
use super::*;
use crate::config::uplink::UplinkConfig;

pub(super) fn of(interface: &str, targets: &[&str]) -> UplinkConfig {
    UplinkConfig {
        interface: interface.into(),
        snat: vec![],
        probe: targets.iter().map(|t| t.parse().unwrap()).collect(),
        probe_interval: Duration::from_millis(500),
        probe_count: 3,
    }
}

fn report(fault: Option<(UplinkFault, u32)>) -> Report {
    Report { fault, since_unix_ms: START_UNIX, text: "192.0.2.1 does not answer".into(), targets: vec![] }
}

/// What `at` holds as the word of `of`.
fn condition(world: &World, at: &str, of: &str) -> Condition {
    let members = &world.nodes[at].control.members;
    let record = &members.peers[&of.parse().unwrap()].record.as_ref().unwrap().record;
    record.networks[0].egress.as_ref().unwrap().condition
}

#[test]
fn a_dead_uplink_is_in_every_peer_s_hands_at_once_and_in_the_status_and_so_is_its_return() {
    let mut world = World::new();
    let nodes = EgressChoice::Auto;
    world.start(1, &[3], nodes.clone(), false);
    world.start(2, &[3], nodes.clone(), false);
    world.start(3, &[], nodes, true);
    world.settle();
    assert_eq!(condition(&world, "ph1", "ph3"), Condition::Healthy);
    let fault = (UplinkFault::Probe, 1500);
    world.input("ph3", Input::Uplink { uplink: of("eth0", &[]), report: report(Some(fault)) });
    world.settle();
    let down = Condition::UplinkDown { fault: fault.0, for_ms: fault.1 };
    for peer in ["ph1", "ph2"] {
        assert_eq!(condition(&world, peer, "ph3"), down, "{peer}");
    }
    let status = world.nodes["ph3"].control.status(world.now());
    let said = "uplink eth0: 192.0.2.1 does not answer since ";
    assert!(status.state == "degraded" && status.reasons.iter().any(|r| r.starts_with(said)), "{status:?}");
    world.input("ph3", Input::Uplink { uplink: of("eth0", &[]), report: report(None) });
    world.settle();
    assert_eq!(condition(&world, "ph1", "ph3"), Condition::Healthy);
    let told = &world.told["ph3"];
    let count = |wanted: fn(&Notice) -> bool| told.iter().filter(|n| wanted(n)).count();
    assert_eq!(count(|n| matches!(n, Notice::UplinkDown { .. })), 1);
    assert_eq!(count(|n| matches!(n, Notice::UplinkUp { .. })), 1);
}

#[test]
fn an_uplink_with_targets_has_first_to_show_that_it_carries_unless_it_did_so_before_a_reload() {
    let offer = |uplink: UplinkConfig| EgressConfig {
        networks: vec![],
        interface: uplink.interface.clone(),
        snat: vec![],
        destination: vec![],
        priority: 100,
        uplink,
        line: 1,
    };
    let mut world = World::new();
    world.start(1, &[], EgressChoice::None, true);
    let control = |world: &World, uplink| world.nodes["ph1"].control.offers.condition(&offer(uplink));
    let unproven = Condition::UplinkDown { fault: UplinkFault::Probe, for_ms: 0 };
    assert_eq!(control(&world, of("eth0", &[])), Condition::Healthy);
    assert_eq!(control(&world, of("eth0", &["192.0.2.1"])), unproven);
    world.input("ph1", Input::Uplink { uplink: of("eth0", &[]), report: report(None) });
    assert_eq!(control(&world, of("eth0", &["192.0.2.1"])), Condition::Healthy);
    assert_eq!(control(&world, of("eth1", &["192.0.2.1"])), unproven);
    // of an uplink that is not configured nobody wants to know
    world.input("ph1", Input::Uplink { uplink: of("eth1", &["192.0.2.1"]), report: report(None) });
    assert_eq!(control(&world, of("eth1", &["192.0.2.1"])), unproven);
}
