//! What is counted for the metrics is what the answers list.

use super::*;
use crate::control::gauges::PEER_STATES;
use crate::control::status::{Figures, Live, Traffic};
use crate::forward::fib::PeerIx;

struct Still;

impl Live for Still {
    fn figures(&self, _: ConnId) -> Option<Figures> {
        Some(Figures { rtt: Duration::from_millis(3), lane: None })
    }

    fn traffic(&self, peer: PeerIx) -> Traffic {
        Traffic { receive_packets: u64::from(peer.0) + 1, ..Traffic::default() }
    }
}

/// ph1 of a mesh where peers are in several states: ph3 and ph5 up, ph2 down, ph4 has left, nobody at endpoint 9, a stranger
/// refused; ph2 was the first choice of egress.
fn troubled() -> World {
    let mut world = World::new();
    world.start(1, &[9], listed(&["ph2", "ph3"]), false);
    world.start(2, &[1], none(), true);
    world.start(3, &[1], none(), true);
    world.start(4, &[1], none(), false);
    world.start(5, &[1], none(), false);
    world.run(Duration::from_secs(3));
    world.input("ph4", Input::Leave);
    world.settle();
    world.kill("ph4");
    world.kill("ph2");
    let reason = Reason { label: "unknown_ca", text: String::new() };
    let refused = Input::AcceptFailed { endpoint: "192.0.2.9:1".parse().unwrap(), node: None, reason };
    world.input("ph1", refused);
    world.run(Duration::from_secs(30));
    world
}

fn counted<'a>(states: impl Iterator<Item = &'a String>) -> BTreeMap<&'a str, u64> {
    let mut counts = BTreeMap::new();
    states.for_each(|state| *counts.entry(state.as_str()).or_default() += 1);
    counts
}

fn nonzero(counts: &[(&'static str, u64)]) -> BTreeMap<&'static str, u64> {
    counts.iter().copied().filter(|(_, n)| *n > 0).collect()
}

#[test]
fn states_are_counted_as_they_are_listed() {
    let world = troubled();
    let control = &world.nodes["ph1"].control;
    let peers = control.peers(world.now(), &Still).peers;
    let by_state = control.peers_by_state();
    assert_eq!(nonzero(&by_state), counted(peers.iter().map(|p| &p.state)));
    assert_eq!(by_state.map(|(state, _)| state), PEER_STATES);
    assert_eq!(by_state.map(|(_, n)| n), [2, 0, 2, 0, 1, 1], "{peers:?}");

    let network = &control.local_networks()[0];
    let routes = control.routes().routes;
    assert_eq!(nonzero(&control.routes_by_state(network)), counted(routes.iter().map(|r| &r.state)));
    let egress = control.egress(&Still).egress;
    assert_eq!(nonzero(&control.egress_by_state(network)), counted(egress.iter().map(|e| &e.state)));
    assert_eq!(nonzero(&control.egress_by_state(network)), [("standby", 1)].into());
}

#[test]
fn gauges_of_a_peer_are_those_of_its_answer_and_go_when_it_is_removed() {
    let mut world = troubled();
    let now = world.now();
    let control = &mut world.nodes.get_mut("ph1").unwrap().control;
    let listed = control.peers(now, &Still).peers;
    let gauges = control.peer_gauges(&Still);
    assert_eq!(gauges.len(), 4);
    for gauge in gauges {
        let peer = listed.iter().find(|p| p.name == gauge.node.as_str()).unwrap();
        assert_eq!((gauge.up, gauge.rtt_seconds), (peer.state == "up", peer.rtt_seconds));
        assert_eq!(gauge.path_mtu_bytes, peer.path_mtu_bytes);
        assert_eq!(gauge.traffic.receive_packets, peer.receive_packets);
    }
    let names = |control: &Control| -> Vec<String> {
        let network = &control.local_networks()[0];
        let egress = control.egress_gauges(network).into_iter().map(|e| format!("{} {}", e.node, e.active));
        control.peer_gauges(&Still).into_iter().map(|p| p.node.to_string()).chain(egress).collect()
    };
    assert_eq!(names(control), ["ph2", "ph3", "ph4", "ph5", "ph2 false", "ph3 true"]);
    for node in ["ph2", "ph5"] {
        control.peer_remove(node, now).unwrap();
    }
    assert_eq!(names(control), ["ph3", "ph4", "ph3 true"]);
    // hearsay does not bring it back
    world.run(Duration::from_secs(30));
    assert_eq!(names(&world.nodes["ph1"].control), ["ph3", "ph4", "ph3 true"]);
}

#[test]
fn the_certificates_told_are_the_node_s_and_its_ca_s() {
    let mut world = World::new();
    world.start(1, &[], none(), false);
    let start = (START_UNIX / 1000) as i64;
    let told = world.nodes["ph1"].control.certificate_expiry();
    assert_eq!(told, [("node", start + 86_400), ("ca", start - 100 + 3650 * 86_400)]);
}
