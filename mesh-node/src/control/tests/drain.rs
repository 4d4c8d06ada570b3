//! An egress node that is taken out of use, over virtual time.

use super::*;
use crate::control::drain::{FlowCount, Timeouts, Tracked, Whose};
use crate::control::uplink::Report;
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
    let Whose::AllBut { stay, .. } = &forget.whose else { panic!("{forget:?}") };
    assert_eq!((forget.mark, stay.as_slice()), (0x5000_0000, &[][..]));
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

    // nobody could take them; there are none
    let mut world = World::with_carriers(1);
    world.input("ph2", Input::Stop);
    world.settle();
    assert_eq!((world.gone.as_slice(), world.counting), (&[Duration::ZERO][..], Some(false)));
    let mut world = World::with_carriers(2);
    world.input("ph2", Input::Stop);
    world.count(0, 7);
    assert_eq!((world.gone.as_slice(), world.elected("ph1")), (&[Duration::ZERO][..], Some("ph2")));
    // nobody knows; so many that they cannot be counted in time
    for counted in [Some(Err("why".to_owned())), None] {
        let mut world = World::with_carriers(2);
        world.input("ph2", Input::Stop);
        counted.into_iter().for_each(|counted| world.input("ph2", Input::FlowsCounted(counted)));
        world.run(SECOND);
        assert_eq!((world.elected("ph1"), world.gone.len()), (Some("ph3"), 0), "they are handed over");
        world.run(6 * SECOND);
        assert_eq!(world.gone, [Duration::from_millis(300)]);
    }
}

#[test]
fn who_carries_to_a_part_only_is_no_standby_for_the_rest() {
    let mut world = World::with_carriers(2);
    let some = "203.0.113.0/24".parse().unwrap();
    let roots = world.roots.clone();
    world.reload("ph3", &roots, |local| local.egress[0].destination = vec![some]);
    world.settle();
    let warnings = world.drain(10 * SECOND).warnings;
    assert!(warnings[0].contains("no other node carries network default at present"), "{warnings:?}");
    let roots = world.roots.clone();
    world.reload("ph2", &roots, |local| {
        local.egress[0].destination = vec![some, "0.0.0.0/0".parse().unwrap()]
    });
    let warnings = world.nodes["ph2"].control.drain().warnings;
    assert!(warnings[0].contains("network default to 0.0.0.0/0 at present"), "{warnings:?}");

    let mut world = World::with_carriers(2);
    let roots = world.roots.clone();
    world.reload("ph3", &roots, |local| local.egress[0].destination = vec![some]);
    world.settle();
    world.input("ph2", Input::Stop);
    world.settle();
    assert_eq!(world.gone, [Duration::ZERO], "nothing to wait for");
}

#[test]
fn own_unmapped_vms_leave_a_dead_uplink_once_somebody_else_carries() {
    let uplink = |fault| Input::Uplink {
        uplink: uplink::of("eth0", &[]),
        report: Report { fault, since_unix_ms: START_UNIX, text: "no link".into(), targets: vec![] },
    };
    let down = || uplink(Some((mesh_proto::record::UplinkFault::Link, 10)));
    let mut world = World::new();
    world.start(2, &[], listed(&["ph2", "ph3"]), true);
    world.start(3, &[2], none(), true);
    let roots = world.roots.clone();
    world.reload("ph2", &roots, |local| local.networks[0].maps[0].0 = local.networks[0].maps[0].1);
    world.run(3 * SECOND);
    world.input("ph3", down());
    world.settle();
    world.input("ph2", down());
    world.settle();
    assert_eq!(world.forgot, [], "there is no other way");
    world.input("ph3", uplink(None));
    world.run(2 * SECOND);
    let [forget] = &world.forgot[..] else { panic!("{:?}", world.forgot) };
    let (other, own) = ("10.77.1.10".parse().unwrap(), "10.77.2.10".parse().unwrap());
    assert!(forget.has(own, 6) && !forget.has(other, 6), "others know best: {forget:?}");
    world.run(2 * SECOND);
    assert_eq!(world.forgot.len(), 1, "once");
}

/// How far ph2 is on its way out.
#[derive(Debug, Clone, Copy)]
enum Phase {
    InUse,
    Draining,
    Drained,
    /// It stops, and asks for its flows.
    Asked,
    HandsOver,
    Gone,
}

#[derive(Debug, Clone, Copy)]
enum Happens {
    Drain,
    Resume,
    Count(u64, u64),
    Uncounted,
    Later,
    Stop,
}

impl World {
    fn at(phase: Phase) -> Self {
        let mut world = Self::with_carriers(2);
        match phase {
            Phase::InUse => {}
            Phase::Draining => drop(world.drain(10 * SECOND)),
            Phase::Drained | Phase::Gone => {
                world.drain(SECOND);
            }
            Phase::Asked => world.input("ph2", Input::Stop),
            Phase::HandsOver => {
                world.input("ph2", Input::Stop);
                world.count(1, 0);
            }
        }
        if !matches!(phase, Phase::Asked) {
            world.run(2 * SECOND);
        }
        if matches!(phase, Phase::Gone) {
            world.input("ph2", Input::Stop);
        }
        world.settle();
        world
    }

    /// `false`: refused.
    fn happens(&mut self, event: Happens) -> bool {
        let now = self.now();
        let control = &mut self.nodes.get_mut("ph2").unwrap().control;
        let done = match event {
            Happens::Drain => control.egress_drain(10 * SECOND, now).is_ok(),
            Happens::Resume => control.egress_resume(now).is_ok(),
            Happens::Count(others, own) => {
                self.count(others, own);
                true
            }
            Happens::Uncounted => {
                self.input("ph2", Input::FlowsCounted(Err("why".into())));
                true
            }
            Happens::Later => {
                self.run(20 * SECOND);
                true
            }
            Happens::Stop => {
                self.input("ph2", Input::Stop);
                true
            }
        };
        self.settle();
        done
    }
}

#[test]
fn every_phase_of_a_drain_and_every_event() {
    use Happens::{Count, Drain, Later, Resume, Stop, Uncounted};
    use Phase::{Asked, Drained, Draining, Gone, HandsOver, InUse};
    // the word for the state, whether the node may stop, whether it was done
    let expected = |phase, event| match (phase, event) {
        (InUse, Drain) => ("draining", false, true),
        (InUse, _) => ("in use", false, true),
        (Draining, Resume) => ("in use", false, true),
        (Draining, Count(0, 0) | Later) => ("drained", false, true),
        (Draining, _) => ("draining", false, true),
        (Drained, Resume) => ("in use", false, true),
        (Drained, Stop) => ("drained", true, true),
        (Drained, _) => ("drained", false, true),
        (Asked, Drain | Resume) => ("in use", false, false),
        (Asked, Count(0, _)) => ("in use", true, true),
        (Asked, Count(..) | Uncounted) => ("draining", false, true),
        (Asked, Later) => ("drained", true, true),
        (Asked, Stop) => ("in use", false, true),
        (HandsOver, Drain | Resume) => ("draining", false, false),
        // what is its own has lost its node in any case
        (HandsOver, Count(0, _) | Later) => ("drained", true, true),
        (HandsOver, _) => ("draining", false, true),
        (Gone, Drain | Resume) => ("drained", true, false),
        (Gone, _) => ("drained", true, true),
    };
    for phase in [InUse, Draining, Drained, Asked, HandsOver, Gone] {
        for event in [Drain, Resume, Count(0, 0), Count(1, 0), Count(0, 1), Uncounted, Later, Stop] {
            let mut world = World::at(phase);
            let done = world.happens(event);
            let found = (world.state(), !world.gone.is_empty(), done);
            let (state, gone, done) = expected(phase, event);
            assert_eq!(found, (state.to_owned(), gone, done), "{phase:?}, {event:?}");
        }
    }
}

/// Linux's defaults.
const TIMEOUTS: Timeouts = Timeouts {
    tcp_established: 432_000,
    tcp_in_doubt: 300,
    tcp_time_wait: 120,
    udp: 30,
    udp_stream: 120,
    icmp: 30,
    generic: 600,
};

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
        left: 431_999,
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
        (6, Some(3), true, 432_000 - 7440, true),
        (6, Some(3), true, 432_000 - 7441, false),
        (6, Some(3), true, 301, false),
        (6, Some(3), true, 300, true),
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
