//! Who is probed, and what silence does.

use super::*;
use crate::config::ProbeParams;

#[test]
fn a_silent_egress_node_loses_its_role_and_keeps_its_tunnel() {
    let mut world = World::new();
    world.start(1, &[], listed(&["ph2", "ph3"]), false);
    world.start(2, &[1], none(), true);
    world.start(3, &[1], none(), true);
    world.start(4, &[1], none(), false);
    world.run(Duration::from_secs(3));
    assert_eq!(world.elected("ph1"), Some("ph2"));
    let conn = |world: &World, node: &str| {
        let peer = &world.nodes["ph1"].control.members.peers[&node.parse::<NodeId>().unwrap()];
        peer.tunnel.as_ref().unwrap().conn
    };
    let (two, four) = (conn(&world, "ph2"), conn(&world, "ph4"));
    let probed: Vec<ConnId> = world.nodes["ph1"].control.probed.keys().copied().collect();
    assert!(probed.contains(&two) && !probed.contains(&four), "those that matter, and no others");
    let silent = liveness::Change::Silent(Duration::from_millis(150));
    world.input("ph1", Input::Liveness { conn: four, change: silent });
    world.input("ph1", Input::Liveness { conn: ConnId(999), change: silent });
    assert_eq!(world.elected("ph1"), Some("ph2"), "nobody's silence counts but a candidate's");
    world.input("ph1", Input::Liveness { conn: two, change: silent });
    assert_eq!(world.elected("ph1"), Some("ph3"));
    assert_eq!(world.tunnels("ph1"), 3, "the tunnel stays");
    let counts = &world.nodes["ph1"].control.counts().egress_failovers;
    let key = ("default".parse().unwrap(), FailoverCause::Liveness);
    assert_eq!((counts.len(), counts[&key]), (1, 1));
    world.input("ph1", Input::Liveness { conn: two, change: liveness::Change::Alive });
    assert_eq!(world.elected("ph1"), Some("ph3"), "moving back would break flows");
}

#[test]
fn a_peer_is_probed_as_its_own_section_says_and_all_others_as_the_node_s() {
    let mut world = World::new();
    world.start(2, &[], none(), true);
    world.start(3, &[], none(), true);
    world.start(1, &[2, 3], listed(&["ph2", "ph3"]), false);
    let own = ProbeParams { interval: Duration::from_millis(100), multiplier: 20 };
    let local = &mut world.nodes.get_mut("ph1").unwrap().control.local;
    local.probes.insert(endpoint(2), own);
    world.run(Duration::from_secs(3));
    let control = &world.nodes["ph1"].control;
    let probed = |node: &str| {
        let peer = &control.members.peers[&node.parse::<NodeId>().unwrap()];
        control.probed[&peer.tunnel.as_ref().unwrap().conn]
    };
    assert_eq!((probed("ph2"), probed("ph3")), (own, ProbeParams::DEFAULT));
}
