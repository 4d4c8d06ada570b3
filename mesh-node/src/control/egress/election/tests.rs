use std::slice::from_ref;
use std::time::Duration;

use mesh_proto::record::UplinkFault;
use proptest::prelude::*;

use super::*;
use crate::control::egress::standing::Absence;

const RULES: EgressRules =
    EgressRules { preempt: None, fallback: crate::config::EgressFallback::None, balance: false };

#[expect(clippy::disallowed_methods, reason = "an arbitrary origin of virtual time")]
fn origin() -> Instant {
    // far enough from the machine's start for what lies before it
    Instant::now() + Duration::from_secs(1_000_000)
}

fn name(n: usize) -> NodeId {
    format!("ph{n}").parse().unwrap()
}

fn candidate(n: usize, standing: Standing, at: Instant) -> Candidate {
    Candidate {
        may_hold_flows: false,
        node: name(n),
        standing,
        since: Now { mono: at, unix_ms: 0 },
        carried: at,
        failed: true,
        priority: 100,
        held_until_unix_ms: None,
    }
}

fn elected(candidates: &[Candidate], current: &[NodeId], forced: Option<&NodeId>) -> Vec<NodeId> {
    let now = candidates[0].since.mono;
    elect(candidates, current, forced, &RULES, now).elected
}

/// How good a standing is, said anew.
fn rank(standing: Standing) -> u8 {
    match standing {
        Standing::Alive => 3,
        Standing::HeldDown => 2,
        Standing::Draining => 1,
        Standing::Drained | Standing::UplinkDown(_) | Standing::Silent | Standing::Down(_) => 0,
    }
}

#[test]
fn every_standing_in_every_role_against_every_other() {
    let at = origin();
    let (one, two) = (name(1), name(2));
    for first in Standing::ALL {
        for second in Standing::ALL {
            let both = [candidate(1, first, at), candidate(2, second, at)];
            let better = |tie: &NodeId| match rank(first).cmp(&rank(second)) {
                _ if rank(first).max(rank(second)) == 0 => vec![],
                std::cmp::Ordering::Greater => vec![one.clone()],
                std::cmp::Ordering::Less => vec![two.clone()],
                std::cmp::Ordering::Equal => vec![tie.clone()],
            };
            let case = format!("{first:?}, {second:?}");
            assert_eq!(elected(&both, &[], None), better(&one), "nobody in use: {case}");
            assert_eq!(elected(&both, from_ref(&one), None), better(&one), "the first in use: {case}");
            assert_eq!(elected(&both, from_ref(&two), None), better(&two), "the second in use: {case}");
            for (node, standing) in [(&one, first), (&two, second)] {
                let forced = elected(&both, from_ref(&one), Some(node));
                match standing {
                    Standing::Alive | Standing::HeldDown => {
                        assert_eq!(forced, from_ref(node), "forced: {case}")
                    }
                    _ => assert_eq!(forced, better(&one), "forced and not fit for it: {case}"),
                }
            }
        }
    }
}

#[test]
fn one_that_has_not_failed_takes_its_place_and_one_that_has_waits_for_as_long_as_preemption_asks() {
    let at = origin();
    let mut both = [candidate(1, Standing::Alive, at), candidate(2, Standing::Alive, at)];
    let current = [name(2)];
    assert_eq!(elected(&both, &current, None), current, "it stays while it works");
    both[0].failed = false;
    assert_eq!(elected(&both, &current, None), [name(1)]);
    both[0].failed = true;
    let rules = EgressRules { preempt: Some(Duration::from_secs(30)), ..RULES };
    let ripe = at + Duration::from_secs(30);
    let early = elect(&both, &current, None, &rules, ripe - Duration::from_millis(1));
    assert_eq!(early, Choice { elected: current.to_vec(), again: Some(ripe) });
    assert_eq!(elect(&both, &current, None, &rules, ripe), Choice { elected: vec![name(1)], again: None });
    assert_eq!(elect(&both, &[name(1)], None, &rules, ripe).again, None, "nothing is better than the first");
}

#[test]
fn flows_are_spread_over_all_healthy_ones_of_the_best_priority() {
    let at = origin();
    let mut three: Vec<Candidate> = (1..=3).map(|n| candidate(n, Standing::Alive, at)).collect();
    three[0].priority = 200;
    let rules = EgressRules { balance: true, ..RULES };
    let spread = |three: &[Candidate]| elect(three, &[], None, &rules, at).elected;
    assert_eq!(spread(&three), [name(2), name(3)]);
    three[2].standing = Standing::HeldDown;
    assert_eq!(spread(&three), [name(2)]);
    three[1].standing = Standing::UplinkDown(UplinkFault::Probe);
    assert_eq!(spread(&three), [name(1)], "a worse priority before one that flaps");
    three[0].standing = Standing::Down(Absence::Tunnel);
    assert_eq!(spread(&three), [name(3)]);
    let forced = name(3);
    three[1].standing = Standing::Alive;
    assert_eq!(
        elect(&three, &[], Some(&forced), &rules, at).elected,
        [forced],
        "an operator's word is one node"
    );
}

fn standing() -> impl Strategy<Value = Standing> {
    proptest::sample::select(Standing::ALL.to_vec())
}

fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let at = origin();
    let one = (standing(), 0_u64..100, any::<bool>(), prop_oneof![Just(100_u32), Just(200)]);
    proptest::collection::vec(one, 1..6).prop_map(move |all| {
        let each = all.into_iter().enumerate().map(|(n, (standing, ago, failed, priority))| {
            let since = at.checked_sub(Duration::from_secs(ago)).unwrap();
            Candidate { failed, priority, ..candidate(n, standing, since) }
        });
        each.collect()
    })
}

prop_compose! {
    fn rules()(preempt in proptest::option::of(1_u64..60), balance in any::<bool>()) -> EgressRules {
        EgressRules { preempt: preempt.map(Duration::from_secs), balance, ..RULES }
    }
}

proptest! {
    #[test]
    fn nobody_is_elected_who_does_not_carry_and_nobody_worse_than_another(
        candidates in candidates(),
        current in proptest::option::of(0_usize..6),
        forced in proptest::option::of(0_usize..6),
        rules in rules(),
    ) {
        let now = origin();
        let current: Vec<NodeId> = current.map(name).into_iter().collect();
        let forced = forced.map(name);
        let choice = elect(&candidates, &current, forced.as_ref(), &rules, now);
        // the same knowledge elects the same
        prop_assert_eq!(&elect(&candidates, &current, forced.as_ref(), &rules, now), &choice);
        let best = candidates.iter().map(|c| rank(c.standing)).max().unwrap_or(0);
        prop_assert_eq!(choice.elected.is_empty(), best == 0);
        for node in &choice.elected {
            let found = candidates.iter().find(|c| c.node == *node).unwrap();
            prop_assert!(found.standing.carries());
            if Some(node) != forced.as_ref() {
                prop_assert_eq!(rank(found.standing), best);
            }
        }
        prop_assert!(rules.balance || choice.elected.len() <= 1);
        prop_assert!(choice.again.is_none_or(|at| at > now), "a moment to come");
    }

    #[test]
    fn the_one_in_use_stays_while_it_works_unless_the_rules_name_another(
        candidates in candidates(),
        current in 0_usize..6,
        preempt in proptest::option::of(1_u64..60),
    ) {
        let now = origin();
        let rules = EgressRules { preempt: preempt.map(Duration::from_secs), ..RULES };
        let choice = elect(&candidates, &[name(current)], None, &rules, now);
        let works = candidates.get(current).is_some_and(|c| c.standing == Standing::Alive);
        if let Some(place) = candidates.iter().position(|c| works && choice.elected == [c.node.clone()])
            && place != current
        {
            let taker = &candidates[place];
            prop_assert!(place < current && taker.standing == Standing::Alive);
            let ripe = preempt.is_some_and(|s| now.duration_since(taker.since.mono).as_secs() + 1 >= s);
            prop_assert!(!taker.failed || ripe);
        }
        // and once elected, it is elected again
        let again = elect(&candidates, &choice.elected, None, &rules, now);
        prop_assert_eq!(again.elected, choice.elected);
    }

    /// Each node met the others at moments of its own, and remembers other flows: none of that elects.
    #[test]
    fn nodes_with_the_same_knowledge_elect_the_same(
        candidates in candidates(),
        of_the_other in proptest::collection::vec((0_u64..1000, any::<bool>()), 6),
        current in proptest::option::of(0_usize..6),
        forced in proptest::option::of(0_usize..6),
        balance in any::<bool>(),
    ) {
        let now = origin();
        let rules = EgressRules { balance, ..RULES };
        let (current, forced) = (current.map(name), forced.map(name));
        let others: Vec<Candidate> = candidates.iter().zip(of_the_other).map(|(candidate, (ago, holds))| {
            let at = now.checked_sub(Duration::from_secs(ago)).unwrap();
            let since = Now { mono: at, unix_ms: ago };
            Candidate { since, carried: at, may_hold_flows: holds, ..candidate.clone() }
        }).collect();
        let elect = |all: &[Candidate]| elect(all, current.as_slice(), forced.as_ref(), &rules, now).elected;
        prop_assert_eq!(elect(&candidates), elect(&others));
    }
}
