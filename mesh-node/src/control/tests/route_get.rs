//! Why an address is reached, or not.

use super::*;

fn checks(world: &World, node: &str, address: &str) -> Vec<(String, String, String)> {
    let answer = world.nodes[node].control.route_get(address.parse().unwrap());
    answer.checks.into_iter().map(|c| (c.step, c.state, c.text)).collect()
}

/// (step, state) of all checks, and all texts together.
fn told(world: &World, node: &str, address: &str) -> (Vec<String>, String) {
    let found = checks(world, node, address);
    let steps = found.iter().map(|(step, state, _)| format!("{step} {state}")).collect();
    (steps, found.into_iter().map(|(_, _, text)| text).collect::<Vec<_>>().join("; "))
}

#[test]
fn a_route_is_explained_by_record_certificate_and_table() {
    let (steps, text) = told(&two_nodes(), "ph1", "10.77.2.10");
    assert_eq!(steps, ["announced yes", "authorised yes", "installed yes"]);
    for words in [
        "10.77.2.0/24 by ph2, record of 20",
        "network=default prefix=10.77.2.0/24 le 32",
        "by mesh-default, tunnel to ph2",
    ] {
        assert!(text.contains(words), "{words} in {text}");
    }
    let (steps, text) = told(&two_nodes(), "ph2", "10.77.2.10");
    assert_eq!(steps, ["announced yes", "authorised yes", "installed yes"]);
    assert!(text.contains("by this node's configuration") && text.contains("through vmnet1"), "{text}");
}

#[test]
fn what_stops_a_route_is_named() {
    let mut world = two_nodes();
    let (steps, text) = told(&world, "ph1", "10.77.9.9");
    assert_eq!(steps, ["announced no"]);
    assert!(text.contains("no record of any node has it"), "{text}");
    let (_, text) = told(&world, "ph2", "192.168.100.5");
    assert!(text.contains("no record"), "{text}");

    world.input("ph1", Input::HostFailed("route 10.77.2.0/24: device is down".into()));
    let (steps, text) = told(&world, "ph1", "10.77.2.10");
    assert_eq!(steps.last().map(String::as_str), Some("installed no"));
    assert!(text.contains("device is down"), "{text}");
    world.input("ph1", Input::HostSynced(Vec::new()));

    world.kill("ph2");
    world.settle();
    let (steps, text) = told(&world, "ph1", "10.77.2.10");
    assert_eq!(steps, ["announced yes", "authorised yes", "installed no"]);
    assert!(text.contains("no tunnel to ph2: nothing heard in time"), "{text}");
}

#[test]
fn a_record_beyond_its_certificate_is_named_with_its_error_until_a_good_one_comes() {
    let mut world = two_nodes();
    let two = &world.nodes["ph2"].control;
    let mut record = two.own.record.clone();
    record.version += 1;
    record.networks[0].prefixes.push("10.99.0.0/24".parse().unwrap());
    let bad = SignedRecord::sign(&record, &two.trust.key, &two.trust.chain);
    let conn = *world.nodes["ph1"].control.members.conns.keys().next().unwrap();
    world.input("ph1", Input::Message { conn, message: Message::Records(vec![bad]) });
    let (steps, text) = told(&world, "ph1", "10.99.0.1");
    assert_eq!(steps, ["announced no"]);
    for words in ["the record of ph2 that has it is refused", "its certificate does not allow", "ca issue"] {
        assert!(text.contains(words), "{words} in {text}");
    }
    let now = world.now();
    world.nodes.get_mut("ph2").unwrap().control.announce(false, now);
    world.run(Duration::from_secs(5));
    let (_, text) = told(&world, "ph1", "10.99.0.1");
    assert!(text.contains("no record of any node has it"), "{text}");
}

#[test]
fn an_announcer_that_has_left_or_was_removed_is_named() {
    let mut world = two_nodes();
    world.input("ph2", Input::Leave);
    world.settle();
    let (_, text) = told(&world, "ph1", "10.77.2.10");
    assert!(text.contains("ph2, which announced it last, has left the mesh"), "{text}");
}
