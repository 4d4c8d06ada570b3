//! An egress node that is taken out of use, over virtual time.

use super::*;
use crate::control::drain::{FlowCount, Timeouts, Tracked};
use crate::forward::fib::Egress;

const SECOND: Duration = Duration::from_secs(1);

impl World {
    /// ph1 uses ph2, and ph3 where there are so many.
    fn with_carriers(count: usize) -> Self {
        let mut world = Self::new();
        let names: Vec<String> = (2..count + 2).map(|n| format!("ph{n}")).collect();
        let order: Vec<&str> = names.iter().map(String::as_str).collect();
        world.start(1, &[], listed(&order), false);
        for n in 2..count + 2 {
            world.start(n, &[1], none(), true);
        }
        world.run(3 * SECOND);
        world
    }

    fn drain(&mut self, deadline: Duration) -> mesh_proto::api::EgressDrain {
        let now = self.now();
        let answer = self.nodes.get_mut("ph2").unwrap().control.egress_drain(deadline, now).unwrap();
        self.settle();
        answer
    }

    fn state(&self) -> String {
        self.nodes["ph2"].control.drain().state
    }

    fn count(&mut self, others: u64, own: u64) {
        self.input("ph2", Input::FlowsCounted(Ok(FlowCount { others, own })));
        self.settle();
    }

    /// How ph1 sees ph2: its flows stay; they have outlived it.
    fn holds_and_drained(&self) -> (bool, bool) {
        let spec = self.spec("ph1");
        let ph2 = Egress::Peer(self.nodes["ph1"].control.members.peers[&"ph2".parse::<NodeId>().unwrap()].ix);
        (spec.egress_holds.iter().any(|(_, held)| *held == ph2), spec.egress_drained.contains(&ph2))
    }
}

#[test]
fn new_flows_go_elsewhere_at_once_and_those_in_progress_have_until_the_deadline() {
    let mut world = World::with_carriers(2);
    assert_eq!((world.elected("ph1"), world.holds_and_drained()), (Some("ph2"), (true, false)));
    let answer = world.drain(10 * SECOND);
    assert_eq!((answer.state.as_str(), answer.warnings.len()), ("draining", 0));
    assert_eq!((world.elected("ph1"), world.holds_and_drained()), (Some("ph3"), (true, false)));
    assert_eq!(world.counting, Some(true));
    world.count(2, 1);
    world.run(9 * SECOND);
    assert_eq!((world.state().as_str(), world.nodes["ph2"].control.drain().flows), ("draining", Some(3)));
    world.run(2 * SECOND);
    assert_eq!((world.state().as_str(), world.holds_and_drained()), ("drained", (false, true)));
    assert_eq!(world.counting, Some(false));
    let [forget] = &world.forgot[..] else { panic!("{:?}", world.forgot) };
    assert_eq!((forget.mark, forget.stay.as_slice()), (0x5000_0000, &[][..]));
    assert!(matches!(world.told["ph2"].last(), Some(Notice::EgressDrained { count: Some(3) })));
    // a drained node is of no use, also where nobody else is
    world.kill("ph3");
    world.run(2 * SECOND);
    assert_eq!(world.elected("ph1"), None);
    let now = world.now();
    world.nodes.get_mut("ph2").unwrap().control.egress_resume(now).unwrap();
    world.settle();
    assert_eq!((world.elected("ph1"), world.state().as_str()), (Some("ph2"), "in use"));
}

#[test]
fn a_drain_is_over_when_no_flow_is_left_and_everybody_has_heard_of_it() {
    let mut world = World::with_carriers(2);
    world.drain(600 * SECOND);
    world.count(0, 0);
    assert_eq!(world.state(), "draining", "a new flow may be on its way still");
    world.run(SECOND);
    world.count(0, 1);
    assert_eq!(world.state(), "draining", "the node's own VMs count as well");
    world.count(0, 0);
    assert_eq!(world.state(), "drained");
}

#[test]
fn what_cannot_be_counted_has_until_the_deadline() {
    let mut world = World::with_carriers(2);
    world.drain(10 * SECOND);
    world.input("ph2", Input::FlowsCounted(Err("no such module".into())));
    world.run(9 * SECOND);
    assert_eq!(world.state(), "draining");
    world.run(2 * SECOND);
    assert_eq!(world.state(), "drained");
}

#[test]
fn the_last_egress_node_is_used_while_it_drains_and_its_operator_is_warned() {
    let mut world = World::with_carriers(1);
    let answer = world.drain(10 * SECOND);
    assert_eq!(answer.warnings.len(), 1);
    assert_eq!(world.elected("ph1"), Some("ph2"), "better than nothing");
    world.run(11 * SECOND);
    assert_eq!(world.elected("ph1"), None);
}

#[test]
fn a_node_without_an_offer_has_nothing_to_drain() {
    let mut world = World::with_carriers(1);
    let now = world.now();
    let refused = world.nodes.get_mut("ph1").unwrap().control.egress_drain(SECOND, now).unwrap_err();
    assert!(refused.contains("offers no egress"), "{refused}");
}

#[test]
fn drained_is_kept_over_a_restart_and_a_hand_over_is_not() {
    let mut world = World::with_carriers(2);
    world.drain(SECOND);
    world.kill("ph2");
    world.run(2 * SECOND);
    world.start(2, &[1], none(), true);
    world.run(2 * SECOND);
    assert_eq!((world.state().as_str(), world.elected("ph1")), ("drained", Some("ph3")));
    let notes = world.nodes["ph2"].control.status(world.now()).notes;
    assert!(notes.iter().any(|note| note.contains("egress resume")), "{notes:?}");

    let mut world = World::with_carriers(2);
    world.input("ph2", Input::Stop);
    world.count(1, 0);
    assert_eq!(world.state(), "draining");
    world.kill("ph2");
    world.start(2, &[1], none(), true);
    assert_eq!(world.state(), "in use");
}

#[test]
fn a_stop_hands_over_what_it_carries_to_a_standby_and_waits_for_nothing_else() {
    // flows of others: until they end, and then as long as packets are on their way
    let mut world = World::with_carriers(2);
    world.input("ph2", Input::Stop);
    world.count(2, 0);
    assert_eq!((world.elected("ph1"), world.gone.len()), (Some("ph3"), 0));
    world.run(2 * SECOND);
    world.count(0, 4);
    assert_eq!(world.gone, [Duration::from_millis(300)]);
    assert_eq!(world.holds_and_drained(), (false, true));

    // they do not end
    let mut world = World::with_carriers(2);
    world.input("ph2", Input::Stop);
    world.count(2, 0);
    world.run(6 * SECOND);
    assert_eq!(
        (world.gone.as_slice(), world.state().as_str()),
        (&[Duration::from_millis(300)][..], "drained")
    );

    // nobody could take them; there are none; nobody knows
    let mut world = World::with_carriers(1);
    world.input("ph2", Input::Stop);
    world.settle();
    assert_eq!((world.gone.as_slice(), world.counting), (&[Duration::ZERO][..], Some(false)));
    for counted in [Ok(FlowCount { others: 0, own: 7 }), Err("why".to_owned())] {
        let mut world = World::with_carriers(2);
        world.input("ph2", Input::Stop);
        world.input("ph2", Input::FlowsCounted(counted));
        world.settle();
        assert_eq!((world.gone.as_slice(), world.elected("ph1")), (&[Duration::ZERO][..], Some("ph2")));
    }
    // so many that they cannot be counted in time
    let mut world = World::with_carriers(2);
    world.input("ph2", Input::Stop);
    world.run(SECOND);
    assert_eq!((world.elected("ph1"), world.gone.len()), (Some("ph3"), 0), "they are handed over");
    world.run(6 * SECOND);
    assert_eq!(world.gone, [Duration::from_millis(300)]);
}

/// Linux's defaults.
const TIMEOUTS: Timeouts = Timeouts { tcp_time_wait: 120, udp: 30, udp_stream: 120, icmp: 30, generic: 600 };

#[test]
fn a_node_whose_own_network_leaves_local_counts_the_flows_of_others_and_deletes_none_of_its_own() {
    let mut world = World::new();
    world.start(1, &[], listed(&["ph2", "ph3"]), false);
    world.start(2, &[1], EgressChoice::Local, true);
    world.start(3, &[1], none(), true);
    world.run(3 * SECOND);
    world.drain(10 * SECOND);
    let watch = world.watch.clone().unwrap();
    assert_eq!(watch.marks, [0x5000_0000], "flows of others have this mark as well");
    let from = |source: &str| Tracked {
        source: source.parse().unwrap(),
        protocol: 6,
        tcp_state: Some(3),
        assured: true,
        left: 300,
    };
    let all = ["10.77.1.10", "192.168.100.10", "192.168.100.11"].map(from);
    assert_eq!(watch.count(all, &TIMEOUTS), FlowCount { others: 1, own: 0 });
    world.run(12 * SECOND);
    assert_eq!(world.state(), "drained");
    let [forget] = &world.forgot[..] else { panic!("{:?}", world.forgot) };
    assert!(forget.has("10.77.1.10".parse().unwrap(), 6));
    assert!(!forget.has("192.168.100.10".parse().unwrap(), 6), "its own VMs' flows go on: {forget:?}");
}

#[test]
fn a_connection_is_in_progress_until_tcp_has_closed_or_others_are_quiet() {
    let source = "10.77.1.10".parse().unwrap();
    for (protocol, tcp_state, assured, left, wanted) in [
        (6, Some(1), false, 119, true),
        (6, Some(3), true, 1, true),
        (6, Some(6), true, 29, true),
        (6, Some(7), true, 119, true),
        (6, Some(7), true, 117, true),
        (6, Some(7), true, 116, false),
        (6, Some(8), true, 9, false),
        (6, None, true, 9, false),
        (17, None, false, 29, true),
        (17, None, false, 20, false),
        (17, None, true, 118, true),
        (17, None, true, 29, false),
        (1, None, false, 30, true),
        (1, None, false, 20, false),
        (47, None, false, 599, true),
    ] {
        let tracked = Tracked { source, protocol, tcp_state, assured, left };
        assert_eq!(tracked.in_progress(&TIMEOUTS), wanted, "{tracked:?}");
    }
}
