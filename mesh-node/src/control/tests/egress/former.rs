//! What is remembered over a restart, and what is not claimed.

use super::*;

#[test]
fn a_restart_moves_nothing_while_who_carried_still_does() {
    let mut world = World::with_egress(2, EgressRules::default());
    world.flap("ph2");
    assert_eq!(world.elected("ph1"), Some("ph3"), "ph2 has failed");
    for _ in 0..2 {
        world.kill("ph1");
        world.run(SECOND);
        world.start(1, &[2, 3], listed(&["ph2", "ph3"]), false);
        world.run(4 * SECOND);
        assert_eq!((world.standing("ph2"), world.elected("ph1")), ("alive", Some("ph3")));
    }
    // nor is it waited for without end
    world.kill("ph1");
    world.kill("ph3");
    world.start(1, &[2, 3], listed(&["ph2", "ph3"]), false);
    world.run(SECOND);
    assert_eq!((world.standing("ph2"), world.elected("ph1")), ("alive", None));
    world.run(2 * SECOND);
    assert_eq!(world.elected("ph1"), Some("ph2"));
}

#[test]
fn who_is_awaited_after_a_restart_is_no_reason_to_fall_back() {
    let rules = EgressRules { fallback: EgressFallback::Local, ..EgressRules::default() };
    let mut world = World::with_egress(2, rules);
    world.flap("ph2");
    world.kill("ph1");
    world.kill("ph3");
    world.start(1, &[2, 3], listed(&["ph2", "ph3"]), false);
    let roots = world.roots.clone();
    world.reload("ph1", &roots, |local| local.networks[0].egress_rules = rules);
    let fallen = |world: &World| world.nodes["ph1"].control.roles.has_fallen_back(&network());
    world.run(SECOND);
    assert!(!fallen(&world), "ph3 may come");
    world.run(2 * SECOND);
    assert!(!fallen(&world) && world.elected("ph1") == Some("ph2"), "it has not");
}

#[test]
fn an_operator_s_word_for_a_node_that_cannot_carry_is_no_claim_that_it_does() {
    let mut world = World::with_egress(2, EgressRules::default());
    world.uses(Some("ph3"));
    let notes = |world: &World| world.nodes["ph1"].control.status(world.now()).notes.join("\n");
    assert!(notes(&world).contains("ph3 is used because an operator said so"), "{}", notes(&world));
    world.kill("ph3");
    assert!(
        notes(&world).contains("an operator named ph3, which cannot carry at present"),
        "{}",
        notes(&world)
    );
}
