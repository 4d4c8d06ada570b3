//! Who carries what over virtual time: failures, hold-down, preemption, fallback, spreading.

use mesh_proto::record::{Condition, UplinkFault};

use super::*;
use crate::config::{EgressFallback, EgressRules};
use crate::control::egress::election::Candidate;
use crate::forward::fib::EgressVia;

mod answer;
mod former;

const SECOND: Duration = Duration::from_secs(1);

fn network() -> NetworkName {
    "default".parse().unwrap()
}

impl World {
    /// ph1 uses egress nodes ph2 and so on, in this order, by these rules.
    fn with_egress(nodes: usize, rules: EgressRules) -> Self {
        let mut world = Self::new();
        let names: Vec<String> = (2..nodes + 2).map(|n| format!("ph{n}")).collect();
        let order: Vec<&str> = names.iter().map(String::as_str).collect();
        world.start(1, &[], listed(&order), false);
        for n in 2..nodes + 2 {
            world.start(n, &[1], none(), true);
        }
        let roots = world.roots.clone();
        world.reload("ph1", &roots, |local| local.networks[0].egress_rules = rules);
        world.run(3 * SECOND);
        world
    }

    fn all_elected(&self, node: &str) -> Vec<&str> {
        self.nodes[node].control.roles.all().flat_map(|(_, e)| &e.elected).map(NodeId::as_str).collect()
    }

    fn candidate(&self, of: &str) -> &Candidate {
        let roles = &self.nodes["ph1"].control.roles;
        roles.all().flat_map(|(_, e)| &e.candidates).find(|c| c.node.as_str() == of).unwrap()
    }

    fn standing(&self, of: &str) -> &'static str {
        self.candidate(of).standing.as_str()
    }

    /// Probes of ph1 find another node silent, or hear it.
    fn probes(&mut self, of: &str, change: liveness::Change) {
        let peer = &self.nodes["ph1"].control.members.peers[&of.parse::<NodeId>().unwrap()];
        let conn = peer.tunnel.as_ref().unwrap().conn;
        self.input("ph1", Input::Liveness { conn, change });
        self.settle();
    }

    /// Silent for a while after it has carried, and back.
    fn flap(&mut self, of: &str) {
        self.run(Duration::from_millis(100));
        self.probes(of, liveness::Change::Silent(Duration::from_millis(150)));
        self.run(SECOND);
        self.probes(of, liveness::Change::Alive);
    }

    /// An egress node says how it is, to all.
    fn says(&mut self, node: &str, condition: Condition) {
        let now = self.now();
        let control = &mut self.nodes.get_mut(node).unwrap().control;
        let mut record = control.own.record.clone();
        record.version += 1;
        for offer in record.networks.iter_mut().filter_map(|n| n.egress.as_mut()) {
            offer.condition = condition;
        }
        let signed = SignedRecord::sign(&record, &control.trust.key, &control.trust.chain);
        control.own = signed.clone().verify(&control.trust.roots, unix_time(now.unix_ms)).unwrap();
        let conns: Vec<ConnId> = control.members.conns.keys().copied().collect();
        conns.into_iter().for_each(|conn| control.send_records(conn, std::slice::from_ref(&signed)));
        self.settle();
    }

    fn failovers(&self, cause: FailoverCause) -> u64 {
        self.nodes["ph1"].control.counts().egress_failovers.get(&(network(), cause)).copied().unwrap_or(0)
    }

    /// Number and sum of the outages.
    fn outages(&self) -> (u64, Duration) {
        let observed = self.nodes["ph1"].control.counts().egress_outages.get(&network());
        observed.map_or((0, Duration::ZERO), |o| (o.count, Duration::from_secs_f64(o.seconds)))
    }

    fn answer(&self) -> mesh_proto::api::Egress {
        self.nodes["ph1"].control.egress(&Nothing).egress.remove(0)
    }

    fn reasons(&self) -> Vec<String> {
        self.nodes["ph1"].control.status(self.now()).reasons
    }

    fn told_events(&self, event: &str) -> Vec<&Notice> {
        self.told["ph1"].iter().filter(|notice| notice.kind().event == event).collect()
    }

    fn uses(&mut self, node: Option<&str>) {
        let now = self.now();
        let control = &mut self.nodes.get_mut("ph1").unwrap().control;
        control.egress_use(node.map(|n| n.parse().unwrap()), None, now).unwrap();
        self.settle();
    }

    /// Whose flows stay, elected or not.
    fn held(&self) -> Vec<Egress> {
        self.spec("ph1").egress_holds.iter().map(|(_, egress)| *egress).collect()
    }

    fn peer_ix(&self, node: &str) -> Egress {
        Egress::Peer(self.nodes["ph1"].control.members.peers[&node.parse::<NodeId>().unwrap()].ix)
    }
}

const LINK_DOWN: Condition = Condition::UplinkDown { fault: UplinkFault::Link, for_ms: 80 };

#[test]
fn three_egress_nodes_go_one_after_the_other_then_traffic_is_refused_until_one_returns() {
    let mut world = World::with_egress(3, EgressRules::default());
    assert_eq!(world.elected("ph1"), Some("ph2"));
    world.kill("ph2");
    assert_eq!(world.elected("ph1"), Some("ph3"));
    world.probes("ph3", liveness::Change::Silent(Duration::from_millis(150)));
    assert_eq!(world.elected("ph1"), Some("ph4"));
    let (count, seconds) = world.outages();
    assert_eq!(count, 2);
    assert!((150..160).contains(&seconds.as_millis()), "the silence is the outage: {seconds:?}");
    world.says("ph4", LINK_DOWN);
    assert_eq!(world.elected("ph1"), None);
    assert!(world.spec("ph1").egress.iter().all(|(_, via)| via.is_empty()), "refused at once");
    let ways = world.nodes["ph1"].host.as_ref().unwrap().networks[0].destinations(true);
    assert!(ways.iter().all(|(_, mtu)| mtu.is_none()), "{ways:?}");
    assert_eq!(world.answer().state, "none");
    let states: Vec<String> = world.answer().candidates.into_iter().map(|c| c.state).collect();
    assert_eq!(states, ["down", "silent", "uplink_down"]);
    for cause in [FailoverCause::Tunnel, FailoverCause::Liveness, FailoverCause::None] {
        assert_eq!(world.failovers(cause), 1, "{cause:?}");
    }
    let Notice::EgressLost { cause, from, .. } = world.told_events("egress_lost")[0] else { panic!() };
    assert_eq!((*cause, from.as_deref()), (Some("uplink"), Some("ph4")));
    world.run(7 * SECOND);
    world.probes("ph3", liveness::Change::Alive);
    assert_eq!(world.elected("ph1"), Some("ph3"));
    assert_eq!(world.failovers(FailoverCause::Returned), 1);
    let last = world.answer().last_failover.unwrap();
    assert_eq!((last.cause.as_str(), last.from, last.to.as_deref()), ("returned", None, Some("ph3")));
    let outage = last.duration_seconds.unwrap();
    assert!((7.0..7.2).contains(&outage), "from the last proof of the uplink: {outage}");
}

#[test]
fn a_record_s_word_on_the_uplink_moves_the_role_at_once_and_flows_that_can_stay_are_held() {
    let mut world = World::with_egress(2, EgressRules::default());
    let [two, three] = ["ph2", "ph3"].map(|n| world.peer_ix(n));
    assert_eq!(world.held(), [two, three]);
    world.says("ph2", LINK_DOWN);
    assert_eq!(world.elected("ph1"), Some("ph3"));
    assert_eq!(world.held(), [three], "flows of a dead uplink move");
    assert_eq!(world.failovers(FailoverCause::Uplink), 1);
    let (count, seconds) = world.outages();
    assert_eq!((count, seconds.as_millis()), (1, 80), "its own word on how long");
    world.says("ph2", Condition::Healthy);
    assert_eq!(world.elected("ph1"), Some("ph3"), "moving back would break flows");
    assert_eq!(world.held(), [two, three]);
    let reason = world.answer().reason.unwrap();
    assert_eq!(reason, "ph2 had failed: the one elected stays while it is healthy");
}

#[test]
fn a_node_that_drains_gives_the_role_and_keeps_its_flows_and_takes_the_role_back_when_it_is_resumed() {
    let mut world = World::with_egress(2, EgressRules::default());
    let [two, three] = ["ph2", "ph3"].map(|n| world.peer_ix(n));
    world.says("ph2", Condition::Draining);
    assert_eq!(world.elected("ph1"), Some("ph3"));
    assert_eq!(world.held(), [two, three]);
    assert_eq!(world.failovers(FailoverCause::Drain), 1);
    assert_eq!(world.outages(), (1, Duration::ZERO), "nothing was out");
    world.says("ph2", Condition::Drained);
    let spec = world.spec("ph1");
    assert_eq!((&world.held()[..], &spec.egress_drained[..]), (&[three][..], &[two][..]));
    world.says("ph2", Condition::Healthy);
    assert_eq!(world.elected("ph1"), Some("ph2"), "its operator has called it back; it had not failed");
    assert_eq!(world.standing("ph2"), "alive", "and that is no flapping");
    // the only one left keeps new flows while it drains: better than nothing
    world.kill("ph3");
    world.says("ph2", Condition::Draining);
    assert_eq!(world.elected("ph1"), Some("ph2"));
    world.says("ph2", Condition::Drained);
    assert_eq!(world.elected("ph1"), None);
}

#[test]
fn an_egress_node_that_flaps_is_held_down_and_told_and_used_only_where_no_other_is_healthy() {
    let mut world = World::with_egress(2, EgressRules::default());
    world.flap("ph2");
    assert_eq!((world.standing("ph2"), world.elected("ph1")), ("alive", Some("ph3")), "once is no flapping");
    assert!(world.told_events("egress_held_down").is_empty());
    world.flap("ph2");
    assert_eq!(world.standing("ph2"), "held_down");
    let Notice::EgressHeldDown { node, count, until, .. } = world.told_events("egress_held_down")[0] else {
        panic!()
    };
    assert_eq!((node.as_str(), *count), ("ph2", 2));
    assert!(!until.is_empty());
    let candidate = world.answer().candidates.remove(0);
    assert!(candidate.held_down_until.is_some(), "{candidate:?}");
    assert!(candidate.reason.unwrap().contains("held down until"));
    let notes = world.nodes["ph1"].control.status(world.now()).notes;
    assert!(notes.iter().any(|n| n.contains("ph2") && n.contains("held down")), "{notes:?}");
    // no other is healthy
    world.says("ph3", LINK_DOWN);
    assert_eq!(world.elected("ph1"), Some("ph2"));
    world.says("ph3", Condition::Healthy);
    assert_eq!(world.elected("ph1"), Some("ph3"));
    assert_eq!(world.failovers(FailoverCause::HoldDown), 1);
    // ten seconds from the failure, and nothing else happens
    let held = world.candidate("ph2").held_until_unix_ms.unwrap();
    let left = Duration::from_millis(held - world.now().unix_ms);
    assert!(left > 8 * SECOND && left < 10 * SECOND, "{left:?}");
    world.run(left - Duration::from_millis(10));
    assert_eq!(world.standing("ph2"), "held_down");
    world.run(Duration::from_millis(20));
    assert_eq!(world.standing("ph2"), "alive", "by the timer alone");
    for expected in [20_u64, 40, 80, 160, 300, 300] {
        world.run(Duration::from_millis(100));
        world.probes("ph2", liveness::Change::Silent(Duration::from_millis(150)));
        world.probes("ph2", liveness::Change::Alive);
        let held = world.candidate("ph2").held_until_unix_ms.unwrap() - world.now().unix_ms;
        assert_eq!(held, expected * 1000);
    }
    world.run(601 * SECOND);
    assert_eq!(world.standing("ph2"), "alive");
    world.flap("ph2");
    assert_eq!(world.standing("ph2"), "alive", "what lies ten minutes back does not count");
}

#[test]
fn polite_leaving_is_no_flapping() {
    let mut world = World::with_egress(2, EgressRules::default());
    for _ in 0..4 {
        world.input("ph2", Input::Leave);
        world.settle();
        assert_eq!(world.elected("ph1"), Some("ph3"));
        world.kill("ph2");
        world.run(2 * SECOND);
        world.start(2, &[1], none(), true);
        world.run(5 * SECOND);
        assert_eq!(world.standing("ph2"), "alive");
    }
    assert!(world.told_events("egress_held_down").is_empty());
    assert_eq!((world.failovers(FailoverCause::Left), world.failovers(FailoverCause::Tunnel)), (1, 0));
}

#[test]
fn preemption_moves_back_once_after_the_delay_and_a_break_begins_it_anew() {
    let rules = EgressRules { preempt: Some(30 * SECOND), ..EgressRules::default() };
    let mut world = World::with_egress(2, rules);
    world.flap("ph2");
    assert_eq!(world.elected("ph1"), Some("ph3"));
    world.run(20 * SECOND);
    world.flap("ph2");
    // held down for what is left of 10 s, then 30 s without a break
    world.run(38 * SECOND);
    assert_eq!(world.elected("ph1"), Some("ph3"));
    world.run(3 * SECOND);
    assert_eq!(world.elected("ph1"), Some("ph2"));
    assert_eq!(world.failovers(FailoverCause::Preempt), 1);
    world.run(600 * SECOND);
    assert_eq!(world.failovers(FailoverCause::Preempt), 1, "once");
}

#[test]
fn the_operator_s_word_overrides_hold_down_but_not_a_dead_uplink() {
    let mut world = World::with_egress(2, EgressRules::default());
    world.flap("ph2");
    world.flap("ph2");
    assert_eq!(world.standing("ph2"), "held_down");
    world.uses(Some("ph2"));
    assert_eq!(world.elected("ph1"), Some("ph2"));
    assert_eq!(world.failovers(FailoverCause::Operator), 1);
    assert_eq!(world.answer().forced.as_deref(), Some("ph2"));
    world.says("ph2", LINK_DOWN);
    assert_eq!(world.elected("ph1"), Some("ph3"));
    world.says("ph2", Condition::Healthy);
    assert_eq!(world.elected("ph1"), Some("ph2"), "held down, and forced");
    world.says("ph2", Condition::Draining);
    assert_eq!(world.elected("ph1"), Some("ph3"), "its own operator's word is the newer one");
}

#[test]
fn while_nobody_is_healthy_a_network_falls_back_to_this_host_as_a_whole_if_it_may() {
    let rules = EgressRules { fallback: EgressFallback::Local, ..EgressRules::default() };
    let mut world = World::with_egress(2, rules);
    let out = |world: &World| world.nodes["ph1"].host.as_ref().unwrap().networks[0].out.clone();
    let carried = |world: &World| {
        world.nodes["ph1"].host.as_ref().unwrap().networks[0].destinations(true)[0].1.is_some()
    };
    assert!(carried(&world));
    world.kill("ph2");
    world.probes("ph3", liveness::Change::Silent(Duration::from_millis(150)));
    let masquerade = host::HostEgress { interface: None, snat: vec![] };
    assert_eq!(out(&world), host::HostOut::Local(masquerade));
    assert_eq!(world.answer().state, "fallback");
    assert!(world.reasons().iter().any(|r| r.contains("leave by this host")), "{:?}", world.reasons());
    assert_eq!((world.failovers(FailoverCause::Fallback), world.failovers(FailoverCause::None)), (1, 0));
    let last = world.told_events("egress_fallback").len();
    // one at the start, when nobody had been heard yet
    let Notice::EgressFallback { cause, .. } = world.told_events("egress_fallback")[last - 1] else {
        panic!()
    };
    assert_eq!(*cause, "liveness");
    assert!(world.told_events("egress_lost").is_empty(), "it is not lost");
    world.run(5 * SECOND);
    world.probes("ph3", liveness::Change::Alive);
    assert!(carried(&world), "back");
    assert_eq!(world.answer().state, "standby");
    let (_, seconds) = world.outages();
    assert!(seconds < SECOND, "the fallback was no outage: {seconds:?}");
    // undone by a reload while it is in force
    world.probes("ph3", liveness::Change::Silent(Duration::from_millis(150)));
    let roots = world.roots.clone();
    world.reload("ph1", &roots, |local| local.networks[0].egress_rules = EgressRules::default());
    world.settle();
    assert!(matches!(out(&world), host::HostOut::Tunnel { .. }) && !carried(&world), "refused");
}

#[test]
fn flows_are_spread_over_all_that_are_healthy_and_the_loss_of_one_leaves_the_others() {
    let rules = EgressRules { balance: true, ..EgressRules::default() };
    let mut world = World::with_egress(3, rules);
    assert_eq!(world.all_elected("ph1"), ["ph2", "ph3", "ph4"]);
    let (_, via) = &world.spec("ph1").egress[0];
    let keys: std::collections::BTreeSet<u64> = via.iter().map(|v: &EgressVia| v.key).collect();
    assert_eq!((via.len(), keys.len()), (3, 3));
    let before = via.clone();
    world.says("ph3", LINK_DOWN);
    let (_, via) = &world.spec("ph1").egress[0];
    let left: Vec<EgressVia> = before.into_iter().filter(|v| v.egress != world.peer_ix("ph3")).collect();
    assert_eq!(via, &left, "keys stay, so flows do");
    assert_eq!((world.answer().state.as_str(), world.failovers(FailoverCause::Uplink)), ("standby", 1));
    assert!(world.answer().reason.unwrap().contains("ph3 has an uplink without link"));
    world.says("ph3", Condition::Healthy);
    assert_eq!(world.answer().elected_nodes, ["ph2", "ph3", "ph4"]);
    assert_eq!(world.answer().state, "active");
    let sum: u64 = world.nodes["ph1"].control.counts().egress_failovers.values().sum();
    assert_eq!(sum, 1, "one more node is no failover");
}

#[test]
fn nodes_with_the_same_knowledge_elect_the_same() {
    let mut world = World::new();
    for n in 1..=3 {
        world.start(n, &[1], listed(&["ph4", "ph5"]), false);
    }
    world.start(4, &[1], none(), true);
    world.start(5, &[1], none(), true);
    world.run(3 * SECOND);
    for (condition, expected) in [
        (Condition::Healthy, "ph4"),
        (LINK_DOWN, "ph5"),
        (Condition::Healthy, "ph5"),
        (Condition::Drained, "ph5"),
    ] {
        world.says("ph4", condition);
        let elected: Vec<Option<&str>> = ["ph1", "ph2", "ph3"].map(|n| world.elected(n)).to_vec();
        assert_eq!(elected, [Some(expected); 3], "{condition:?}");
    }
}

#[test]
fn each_destination_elects_on_its_own() {
    let mut world = World::new();
    world.start(1, &[], listed(&["ph2", "ph3"]), false);
    world.start(2, &[1], none(), true);
    world.start(3, &[1], none(), true);
    let destinations = |world: &mut World, node: &str, list: &[&str]| {
        let roots = world.roots.clone();
        let list: Vec<Prefix> = list.iter().map(|p| p.parse().unwrap()).collect();
        world.reload(node, &roots, |local| local.egress[0].destination = list);
        world.run(2 * SECOND);
    };
    destinations(&mut world, "ph2", &["0.0.0.0/0"]);
    destinations(&mut world, "ph3", &["0.0.0.0/0", "203.0.113.0/24"]);
    let by = |world: &World| -> Vec<(String, Option<String>)> {
        let all = world.nodes["ph1"].control.egress(&Nothing).egress;
        all.into_iter().map(|e| (e.destination.to_string(), e.elected)).collect()
    };
    let two = |world: &World, a: Option<&str>, b: Option<&str>| {
        let owned = |x: Option<&str>| x.map(str::to_owned);
        assert_eq!(by(world), [("0.0.0.0/0".into(), owned(a)), ("203.0.113.0/24".into(), owned(b))]);
    };
    two(&world, Some("ph2"), Some("ph3"));
    let ph2 = (Prefix::default_route(true), world.peer_ix("ph2"));
    let narrow = ("203.0.113.0/24".parse().unwrap(), world.peer_ix("ph3"));
    let held = &world.spec("ph1").egress_holds;
    assert!(held.contains(&ph2) && held.contains(&narrow) && !held.contains(&(narrow.0, ph2.1)), "{held:?}");
    world.says("ph3", LINK_DOWN);
    two(&world, Some("ph2"), None);
    world.says("ph3", Condition::Healthy);
    world.kill("ph2");
    two(&world, Some("ph3"), Some("ph3"));
    // it is offered no more
    destinations(&mut world, "ph3", &["0.0.0.0/0"]);
    assert_eq!(by(&world), [("0.0.0.0/0".into(), Some("ph3".into()))]);
    let Some(Notice::EgressLost { destination, cause, .. }) = world.told_events("egress_lost").last() else {
        panic!()
    };
    assert_eq!((destination.to_string().as_str(), *cause), ("203.0.113.0/24", Some("left")));
}

#[test]
fn a_role_is_accepted_from_none_but_a_peer_whose_certificate_allows_it() {
    let mut world = World::new();
    world.start(1, &[], EgressChoice::Auto, false);
    world.start(2, &[1], none(), false);
    world.run(2 * SECOND);
    let control = &world.nodes["ph2"].control;
    let mut record = control.own.record.clone();
    record.version += 1;
    let destinations = vec!["0.0.0.0/0".parse().unwrap()];
    record.networks[0].egress =
        Some(mesh_proto::record::EgressOffer { destinations, priority: 1, condition: Condition::Healthy });
    let forged = SignedRecord::sign(&record, &control.trust.key, &control.trust.chain);
    let conn = *world.nodes["ph1"].control.members.conns.keys().next().unwrap();
    world.input("ph1", Input::Message { conn, message: Message::Records(vec![forged]) });
    assert_eq!(world.elected("ph1"), None);
    assert!(world.answer().candidates.is_empty());
    let refused = world.nodes["ph1"].control.counts().records_refused;
    assert_eq!(refused, 1);
}

#[test]
fn the_time_a_candidate_stands_as_it_does_is_kept_until_it_stands_otherwise() {
    let mut world = World::with_egress(1, EgressRules::default());
    let since = world.answer().candidates[0].since.clone();
    world.run(40 * SECOND);
    world.says("ph2", Condition::Healthy);
    assert_eq!(world.answer().candidates[0].since, since);
    world.says("ph2", Condition::Draining);
    let moved = world.answer().candidates[0].since.clone();
    assert!(moved > since, "{moved} after {since}");
}

#[test]
fn in_a_mesh_too_large_for_all_tunnels_those_who_may_carry_have_theirs() {
    let mut world = World::new();
    world.start(2, &[], none(), false);
    world.start(1, &[2], listed(&["ph3"]), false);
    world.start(3, &[2], none(), true);
    let now = world.now();
    for node in ["ph1", "ph3"] {
        let members = &mut world.nodes.get_mut(node).unwrap().control.members;
        for n in 100..100 + members::FULL_MESH {
            members.peer(&format!("ph{n}").parse().unwrap(), now.mono, now.unix_ms);
        }
    }
    world.run(3 * SECOND);
    assert_eq!(
        world.elected("ph1"),
        Some("ph3"),
        "no packet can ask for it: without one elected all are refused"
    );
}

#[test]
fn one_that_is_resumed_takes_its_place_again_even_if_it_was_away_meanwhile() {
    let mut world = World::with_egress(2, EgressRules::default());
    world.kill("ph2");
    assert_eq!(world.elected("ph1"), Some("ph3"));
    world.start(2, &[1], none(), true);
    world.run(3 * SECOND);
    assert_eq!(world.elected("ph1"), Some("ph3"), "it had failed");
    world.says("ph2", Condition::Drained);
    world.says("ph2", Condition::Healthy);
    assert_eq!(world.elected("ph1"), Some("ph2"), "its operator has called it back");
}

#[test]
fn flows_that_may_have_stayed_with_a_former_egress_node_keep_the_mtu_of_its_path() {
    let mut world = World::with_egress(2, EgressRules::default());
    let mtu = |world: &World| {
        world.nodes["ph1"].host.as_ref().unwrap().networks[0].destinations(true)[0].1.unwrap()
    };
    let path = |world: &mut World, of: &str, mtu: u32| {
        let conn = world.nodes["ph1"].control.members.peers[&of.parse::<NodeId>().unwrap()]
            .tunnel
            .as_ref()
            .unwrap()
            .conn;
        world.input("ph1", Input::TunnelMtu { conn, mtu });
        world.settle();
    };
    path(&mut world, "ph2", 1210);
    path(&mut world, "ph3", 1260);
    assert_eq!(mtu(&world), 1210, "a standby that was never elected lowers nothing, and raises nothing");
    world.uses(Some("ph3"));
    assert_eq!((world.elected("ph1"), mtu(&world)), (Some("ph3"), 1210), "flows stay with ph2");
    world.kill("ph2");
    world.settle();
    assert_eq!(mtu(&world), 1260, "none is left there");
}

#[test]
fn a_tunnel_that_gives_way_to_another_at_the_start_is_no_failure_of_its_egress_node() {
    let mut world = World::new();
    world.start(1, &[], listed(&["ph2", "ph3"]), false);
    world.start(3, &[1], none(), true);
    world.run(3 * SECOND);
    assert_eq!(world.elected("ph1"), Some("ph3"));
    world.start(2, &[1], none(), true);
    // both have dialed, and one tunnel goes as soon as it has come, for whatever reason that side learns of
    while world.elected("ph1") != Some("ph2") {
        world.run(Duration::from_millis(10));
    }
    let conn = world.nodes["ph1"].control.members.peers[&"ph2".parse::<NodeId>().unwrap()]
        .tunnel
        .as_ref()
        .unwrap()
        .conn;
    let reason = Reason { label: "protocol", text: "another connection is kept".into() };
    world.input("ph1", Input::TunnelClosed { conn, reason });
    world.settle();
    assert_eq!(world.elected("ph1"), Some("ph3"), "nothing is sent into nothing");
    world.run(3 * SECOND);
    assert_eq!(world.elected("ph1"), Some("ph2"), "and it has its place as soon as the other one is up");
}

#[test]
fn the_news_of_a_dead_uplink_after_a_return_are_no_second_failure() {
    let mut world = World::with_egress(2, EgressRules::default());
    world.probes("ph2", liveness::Change::Silent(Duration::from_millis(150)));
    world.run(SECOND);
    // its record says so since the cable was pulled, and comes by a stream
    world.probes("ph2", liveness::Change::Alive);
    world.says("ph2", LINK_DOWN);
    world.run(SECOND);
    world.says("ph2", Condition::Healthy);
    assert_eq!(world.standing("ph2"), "alive", "one failure holds nobody down");
}
