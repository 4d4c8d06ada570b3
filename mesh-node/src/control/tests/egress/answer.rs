//! What `mesh-ctl egress` gives as the reason.

use super::*;

fn reason(world: &World) -> String {
    world.answer().reason.unwrap_or_default()
}

#[test]
fn who_is_to_take_over_after_a_time_is_not_said_to_stay_away() {
    let rules = EgressRules { preempt: Some(30 * SECOND), ..EgressRules::default() };
    let mut world = World::with_egress(2, rules);
    world.flap("ph2");
    assert_eq!(world.elected("ph1"), Some("ph3"));
    assert_eq!(reason(&world), "ph2 had failed: it takes over once healthy for 30s");
    world.run(31 * SECOND);
    assert_eq!((world.elected("ph1"), reason(&world)), (Some("ph2"), String::new()));
}

#[test]
fn of_nodes_that_share_the_flows_one_that_comes_after_them_is_no_reason() {
    let mut world = World::with_egress(3, EgressRules { balance: true, ..EgressRules::default() });
    let roots = world.roots.clone();
    world.reload("ph1", &roots, |local| local.networks[0].egress = EgressChoice::Auto);
    world.reload("ph4", &roots, |local| local.egress[0].priority = 200);
    world.run(SECOND);
    assert_eq!((world.all_elected("ph1"), reason(&world)), (vec!["ph2", "ph3"], String::new()));
    world.says("ph3", LINK_DOWN);
    assert_eq!(world.all_elected("ph1"), ["ph2"]);
    assert_eq!(reason(&world), "ph3 has an uplink without link");
}

#[test]
fn a_wait_for_who_carried_before_a_restart_is_called_so() {
    let mut world = World::with_egress(2, EgressRules::default());
    world.flap("ph2");
    world.kill("ph1");
    world.kill("ph3");
    world.start(1, &[2, 3], listed(&["ph2", "ph3"]), false);
    world.run(SECOND);
    assert_eq!(world.elected("ph1"), None);
    assert!(reason(&world).contains("before the restart"), "{}", reason(&world));
    world.run(2 * SECOND);
    assert_eq!(world.elected("ph1"), Some("ph2"));
}
