//! A node's own facts change while it runs.

use super::*;

impl World {
    /// Reads a node's configuration anew, changed like this, with these CAs.
    pub(super) fn reload(
        &mut self,
        node: &str,
        roots: &Arc<TrustRoots>,
        change: impl FnOnce(&mut LocalNode),
    ) {
        let control = &self.nodes[node].control;
        let mut local = control.local.clone();
        // the file knows nothing of a generation
        local.generation = 0;
        change(&mut local);
        let key = NodeKey::from_pem(&control.trust.key.to_pem().unwrap()).unwrap();
        let trust = Trust { chain: control.trust.chain.clone(), key, roots: roots.clone() };
        self.input(node, Input::Reload(Ok(Box::new(Reloaded { local, trust }))));
    }

    fn handles(&self, node: &str) -> &[Option<u8>] {
        &self.nodes[node].published.as_ref().unwrap().1[0].handles
    }
}

/// A second network, with part of the prefix that the node's certificate allows in "default".
fn second(local: &LocalNode, name: &str, ix: u8) -> LocalNetwork {
    LocalNetwork {
        ix: NetworkIx(ix),
        name: name.parse().unwrap(),
        interface: format!("vmnet{ix}"),
        tun: format!("mesh-{name}"),
        maps: vec![],
        gateways: vec![],
        ..local.networks[0].clone()
    }
}

#[test]
fn a_network_that_comes_later_is_carried_by_the_connection_that_is_there() {
    let mut world = two_nodes();
    let roots = world.roots.clone();
    let links: Vec<_> = world.links.keys().cloned().collect();
    world.reload("ph1", &roots, |local| local.networks.push(second(local, "blue", 1)));
    world.settle();
    assert_eq!(world.handles("ph1"), [Some(0), None], "the other one does not carry it yet");
    world.reload("ph2", &roots, |local| local.networks.push(second(local, "blue", 5)));
    world.settle();
    assert_eq!(world.handles("ph1"), [Some(0), Some(5)]);
    assert_eq!(world.handles("ph2"), [Some(0), None, None, None, None, Some(1)]);
    assert_eq!(world.links.keys().cloned().collect::<Vec<_>>(), links, "nobody has dialled anew");
    world.reload("ph2", &roots, |local| drop(local.networks.pop()));
    world.settle();
    assert_eq!(world.handles("ph1"), [Some(0), None]);
}

#[test]
fn a_tunnel_made_with_a_hello_of_before_learns_the_numbers_of_after() {
    let mut world = two_nodes();
    let roots = world.roots.clone();
    world.kill("ph2");
    world.hellos.insert("ph1".into(), world.nodes["ph1"].control.hello());
    world.reload("ph1", &roots, |local| local.networks.push(second(local, "blue", 1)));
    world.start(2, &[1], none(), false);
    world.run(Duration::from_secs(5));
    assert_eq!(world.tunnels("ph1"), 1);
    world.reload("ph2", &roots, |local| local.networks.push(second(local, "blue", 7)));
    world.settle();
    assert_eq!(world.handles("ph1"), [Some(0), Some(7)]);
    assert_eq!(world.handles("ph2").last(), Some(&Some(1)));
}

#[test]
fn an_announced_address_comes_and_goes_at_the_others() {
    let mut world = two_nodes();
    let roots = world.roots.clone();
    let announced: Prefix = "10.77.1.77/32".parse().unwrap();
    let known = |world: &World| world.spec("ph2").routes.iter().any(|(prefix, _)| *prefix == announced);
    assert!(!known(&world));
    let item = crate::config::AnnounceConfig { prefix: announced, via: None, internet_own: true };
    world.reload("ph1", &roots, |local| local.networks[0].announce.push(item));
    world.settle();
    assert!(known(&world));
    world.reload("ph1", &roots, |local| local.networks[0].announce.clear());
    world.settle();
    assert!(!known(&world));
}

#[test]
fn peers_of_the_file_come_and_go_and_those_added_at_run_time_stay() {
    let mut world = World::new();
    world.start(1, &[9], none(), false);
    world.start(2, &[], none(), false);
    let roots = world.roots.clone();
    let now = world.now();
    world.nodes.get_mut("ph1").unwrap().control.peer_add(&endpoint(8), now);
    world.reload("ph1", &roots, |local| local.seeds = vec![(endpoint(2), None)]);
    world.run(Duration::from_secs(5));
    let seeds: Vec<_> = world.nodes["ph1"].control.members.seeds.keys().cloned().collect();
    assert_eq!(seeds, [endpoint(2), endpoint(8)]);
    assert_eq!(world.tunnels("ph1"), 1);
    world.reload("ph1", &roots, |local| local.seeds.clear());
    world.run(Duration::from_secs(5));
    assert_eq!(world.tunnels("ph1"), 1, "a member that is known stays one");
}

#[test]
fn a_name_insisted_on_later_counts_from_the_next_dial() {
    let mut world = World::new();
    world.start(1, &[2], none(), false);
    world.settle();
    let roots = world.roots.clone();
    world.reload("ph1", &roots, |local| local.seeds = vec![(endpoint(2), Some("ph3".parse().unwrap()))]);
    world.start(2, &[], none(), false);
    world.run(Duration::from_secs(5));
    assert_eq!(world.tunnels("ph1"), 0);
}

#[test]
fn peers_of_a_ca_that_no_longer_counts_lose_their_tunnel() {
    let mut world = two_nodes();
    let mesh: MeshId = "lab".parse().unwrap();
    let other = Ca::init(&mesh, (START_UNIX / 1000) as i64 - 100, 3650).unwrap();
    let both = format!("{}{}", other.cert_pem(), world.ca.cert_pem());
    let both = Arc::new(TrustRoots::from_pem(both.as_bytes()).unwrap());
    world.reload("ph1", &both, |_| {});
    world.settle();
    assert_eq!(world.tunnels("ph1"), 1, "a further CA changes nothing");
    // its own certificate is of the old one as well: the node says so, and goes on with the record it has
    let new = Arc::new(TrustRoots::from_pem(other.cert_pem().as_bytes()).unwrap());
    world.reload("ph1", &new, |_| {});
    world.settle();
    assert_eq!(world.tunnels("ph1"), 0);
    assert!(world.nodes["ph2"].published.as_ref().unwrap().1.is_empty(), "the other side hears of it");
}

#[test]
fn a_peer_that_has_sent_no_record_does_not_outlive_its_ca() {
    let mut world = two_nodes();
    world
        .nodes
        .get_mut("ph1")
        .unwrap()
        .control
        .members
        .peers
        .values_mut()
        .for_each(|peer| peer.record = None);
    let mesh: MeshId = "lab".parse().unwrap();
    let other = Ca::init(&mesh, (START_UNIX / 1000) as i64 - 100, 3650).unwrap();
    let new = Arc::new(TrustRoots::from_pem(other.cert_pem().as_bytes()).unwrap());
    world.reload("ph1", &new, |_| {});
    world.settle();
    assert_eq!(world.tunnels("ph1"), 0);
}

#[test]
fn a_rejected_configuration_changes_nothing_but_the_metric() {
    let mut world = two_nodes();
    world.input("ph1", Input::Reload(Err(())));
    assert!(world.nodes["ph1"].control.counts().reload_failed);
    assert!(world.nodes.get_mut("ph1").unwrap().control.poll_output().is_none());
    let roots = world.roots.clone();
    world.reload("ph1", &roots, |_| {});
    assert!(!world.nodes["ph1"].control.counts().reload_failed);
}
