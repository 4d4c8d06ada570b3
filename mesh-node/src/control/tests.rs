//! N real `Control`s over simulated links in virtual time.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use mesh_proto::identity::{Ca, IssueRequest, PublicKeySource};

use mesh_proto::hello::Message;
use mesh_proto::identity::Identity;
use mesh_proto::limits::{MAX_MESSAGE, MAX_RECORDS_PER_MESSAGE};
use mesh_proto::record::SignedRecord;
use mesh_proto::{MeshId, Prefix};

use super::event::*;
use super::*;
use crate::config::{EgressChoice, EgressConfig};
use crate::forward::fib::{Egress, Expose, NetworkIx};
use crate::notice::limits::Limits;

mod drain;
mod egress;
mod gauges;
mod probing;
mod reload;
mod route_get;

mod trace;
mod uplink;

const START_UNIX: u64 = 1_800_000_000_000;

struct World {
    base: Instant,
    elapsed: Duration,
    ca: Ca,
    roots: Arc<TrustRoots>,
    nodes: BTreeMap<String, Running>,
    saved: BTreeMap<String, Saved>,
    /// connection at a node -> (other node, its number there)
    links: BTreeMap<(String, ConnId), (String, ConnId)>,
    next_conn: u64,
    /// Nodes that cannot be reached.
    cut: Vec<String>,
    /// Dials made, by node.
    dials: BTreeMap<String, usize>,
    /// What handshakes under way say, where not what the node would say.
    hellos: BTreeMap<String, Hello>,
    /// What the operator was told, by node.
    told: BTreeMap<String, Vec<Notice>>,
    /// Answers to questions about packets.
    traced: Vec<Result<mesh_proto::trace::TraceReply, String>>,
    /// Tracked connections are counted, or no longer.
    counting: Option<bool>,
    /// The last thing to be counted.
    watch: Option<crate::control::drain::FlowWatch>,
    /// Marks of tracked connections that were deleted.
    forgot: Vec<crate::control::drain::Forget>,
    /// Nodes that may stop, and after how long.
    gone: Vec<Duration>,
}

struct Running {
    control: Control,
    published: Option<(Vec<Option<NetworkSpec>>, Vec<TunnelSpec>)>,
    host: Option<Arc<HostState>>,
}

fn endpoint(n: usize) -> String {
    format!("198.51.100.{n}:4650")
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin of virtual time")]
    fn new() -> Self {
        let mesh: MeshId = "lab".parse().unwrap();
        let ca = Ca::init(&mesh, (START_UNIX / 1000) as i64 - 100, 3650).unwrap();
        let roots = Arc::new(TrustRoots::from_pem(ca.cert_pem().as_bytes()).unwrap());
        Self {
            base: Instant::now(),
            elapsed: Duration::ZERO,
            ca,
            roots,
            nodes: BTreeMap::new(),
            saved: BTreeMap::new(),
            links: BTreeMap::new(),
            next_conn: 1,
            cut: Vec::new(),
            dials: BTreeMap::new(),
            hellos: BTreeMap::new(),
            told: BTreeMap::new(),
            traced: Vec::new(),
            counting: None,
            watch: None,
            forgot: Vec::new(),
            gone: Vec::new(),
        }
    }

    fn now(&self) -> Now {
        Now { mono: self.base + self.elapsed, unix_ms: START_UNIX + self.elapsed.as_millis() as u64 }
    }

    /// Starts node `phN` with mesh prefix 10.77.N.0/24; `egress` is its preference, `offers` whether it carries others.
    fn start(&mut self, n: usize, seeds: &[usize], egress: EgressChoice, offers: bool) {
        let name = format!("ph{n}");
        let network: NetworkName = "default".parse().unwrap();
        let prefix: Prefix = format!("10.77.{n}.0/24").parse().unwrap();
        let subnet: Prefix = "192.168.100.0/24".parse().unwrap();
        let key = NodeKey::generate().unwrap();
        let mut grants = mesh_proto::identity::Grants::default();
        grants.allow(&network, prefix);
        grants.egress = offers;
        let request = IssueRequest {
            node: name.parse().unwrap(),
            grants,
            public_key: PublicKeySource::Key(&key),
            not_before: (START_UNIX / 1000) as i64 - 60,
            not_after: (START_UNIX / 1000) as i64 + 86_400,
        };
        let pem = self.ca.issue(&request).unwrap();
        use rustls_pki_types::pem::PemObject;
        let chain = vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()];
        let identity = Identity::from_certificate(&chain[0]).unwrap();
        let now = self.now();
        let local = LocalNode {
            identity,
            generation: now.unix_ms,
            endpoints: vec![endpoint(n).parse().unwrap()],
            networks: vec![LocalNetwork {
                ix: NetworkIx(0),
                name: network.clone(),
                interface: "vmnet1".into(),
                tun: "mesh-default".into(),
                maps: vec![(subnet, prefix)],
                gateways: vec![(subnet, "192.168.100.1".parse().unwrap())],
                announce: vec![],
                egress,
                egress_rules: Default::default(),
            }],
            egress: if offers {
                vec![EgressConfig {
                    networks: vec![network],
                    interface: "eth0".into(),
                    snat: vec![],
                    destination: vec![],
                    priority: 100,
                    uplink: uplink::of("eth0", &[]),
                    line: 1,
                }]
            } else {
                vec![]
            },
            connected: vec!["198.51.100.0/24".parse().unwrap()],
            links: vec![("eth0".into(), "198.51.100.0/24".parse().unwrap())],
            expose: vec![Expose::Icmp],
            seeds: seeds.iter().map(|s| (endpoint(*s), None)).collect(),
            uplinks: vec!["eth0".into()],
            underlay_mtu: 1500,
            mtu: None,
            foreign_chains: Default::default(),
            probe: liveness::ProbeParams::DEFAULT,
            probes: BTreeMap::new(),
        };
        let trust = Trust { chain, key, roots: self.roots.clone() };
        let saved = self.saved.get(&name).cloned().unwrap_or_default();
        let control = Control::new(local, trust, saved, n as u64, now).unwrap();
        self.nodes.insert(name, Running { control, published: None, host: None });
    }

    /// Power cut: peers notice after the idle timeout only.
    fn kill(&mut self, name: &str) {
        self.nodes.remove(name);
        let ends: Vec<_> =
            self.links.iter().filter(|(_, (other, _))| other == name).map(|(k, _)| k.clone()).collect();
        for (node, conn) in ends {
            self.links.remove(&(node.clone(), conn));
            let reason = Reason { label: "timeout", text: "nothing heard in time".into() };
            self.input(&node, Input::TunnelClosed { conn, reason });
        }
        self.links.retain(|(node, _), _| node != name);
    }

    fn input(&mut self, node: &str, input: Input) {
        let now = self.now();
        if let Some(running) = self.nodes.get_mut(node) {
            running.control.handle(input, now);
        }
    }

    /// Until nobody has an output left.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let name = self.nodes.keys().cloned().collect::<Vec<_>>();
            let next = name.iter().find_map(|n| {
                let output = self.nodes.get_mut(n)?.control.poll_output()?;
                Some((n.clone(), output))
            });
            let Some((node, output)) = next else { return };
            self.carry_out(&node, output);
        }
        panic!("the nodes do not come to rest");
    }

    fn carry_out(&mut self, node: &str, output: Output) {
        match output {
            Output::CountFlows(watch) => {
                self.counting = Some(watch.is_some());
                self.watch = watch.or(self.watch.take());
            }
            Output::ForgetFlows(forget) => self.forgot.extend(forget),
            Output::Gone { after } => self.gone.push(after),
            Output::Publish { networks, tunnels } => {
                let running = self.nodes.get_mut(node).unwrap();
                let known = |conn: ConnId| {
                    running.published.iter().any(|(_, tunnels)| tunnels.iter().any(|t| t.conn == conn))
                };
                for tunnel in tunnels.iter().filter(|tunnel| !known(tunnel.conn)) {
                    let mut routes = networks.iter().flatten().flat_map(|network| &network.routes);
                    let has_routes = routes.any(|(_, peer)| *peer == tunnel.peer);
                    assert!(
                        has_routes,
                        "{node} would read from a tunnel before the kernel has the routes back"
                    );
                }
                running.published = Some((networks, tunnels));
            }
            Output::SyncHost(host) => self.nodes.get_mut(node).unwrap().host = Some(host),
            Output::Save(saved) => {
                self.saved.insert(node.into(), saved);
            }
            Output::Send { conn, message } => {
                // over the wire, to see that it survives
                let bytes = message.encode();
                let header = bytes[..mesh_proto::codec::HEADER].try_into().unwrap();
                let header = mesh_proto::codec::Header::decode(header).unwrap();
                let message =
                    Message::decode(header.kind, &bytes[mesh_proto::codec::HEADER..]).unwrap().unwrap();
                if let Some((other, theirs)) = self.links.get(&(node.into(), conn)).cloned() {
                    self.input(&other, Input::Message { conn: theirs, message });
                }
            }
            Output::Close { conn, code, text } => {
                if let Some((other, theirs)) = self.links.remove(&(node.into(), conn)) {
                    self.links.remove(&(other.clone(), theirs));
                    let reason = Reason { label: code.reason(), text };
                    self.input(&other, Input::TunnelClosed { conn: theirs, reason: reason.clone() });
                    self.input(node, Input::TunnelClosed { conn, reason });
                }
            }
            Output::Dial { target, endpoint: at, expect } => self.dial(node, target, at, expect),
            // dials of this world end at once
            Output::Tell(notice) => self.told.entry(node.into()).or_default().push(notice),
            Output::TraceWanted { conn, request } => {
                let running = self.nodes.get_mut(node).unwrap();
                let plan = running.control.trace_plan(Some(conn), &request);
                let reply = trace::obeyed(plan, request.id);
                running.control.trace_answer(conn, reply);
            }
            Output::Traced { answer, .. } => self.traced.push(answer),
            Output::CancelDial(_) | Output::Hello(_) | Output::Probe(_) => {}
        }
    }

    fn dial(&mut self, node: &str, target: Target, at: String, expect: Option<NodeId>) {
        *self.dials.entry(node.into()).or_default() += 1;
        let answerer = self
            .nodes
            .iter()
            .find(|(name, running)| {
                running.control.local.endpoints.iter().any(|e| e.to_string() == at)
                    && !self.cut.contains(name)
            })
            .map(|(name, _)| name.clone());
        let Some(other) = answerer.filter(|_| !self.cut.contains(&node.to_owned())) else {
            let reason = Reason { label: "timeout", text: "nothing heard in time".into() };
            return self.input(node, Input::DialFailed { target, endpoint: at, reason });
        };
        if other == node || expect.as_ref().is_some_and(|e| e.as_str() != other) {
            let reason = Reason { label: "name_mismatch", text: String::new() };
            return self.input(node, Input::DialFailed { target, endpoint: at, reason });
        }
        let (a, b) = (ConnId(self.next_conn), ConnId(self.next_conn + 1));
        self.next_conn += 2;
        self.links.insert((node.into(), a), (other.clone(), b));
        self.links.insert((other.clone(), b), (node.into(), a));
        let said = |w: &Self, n: &str| {
            let control = &w.nodes[n].control;
            let hello = w.hellos.get(n).cloned().unwrap_or_else(|| control.hello());
            (hello, control.local.identity.clone())
        };
        let (my_hello, my_identity) = said(self, node);
        let (hello, identity) = said(self, &other);
        let from: SocketAddr = self.nodes[node].control.local.endpoints[0];
        let up = Input::TunnelUp {
            conn: b,
            identity: my_identity,
            endpoint: from,
            dialed: None,
            hello: my_hello,
            took: Duration::ZERO,
        };
        self.input(&other, up);
        let dialed = Some(target);
        self.input(
            node,
            Input::TunnelUp {
                conn: a,
                identity,
                endpoint: at.parse().unwrap(),
                dialed,
                hello,
                took: Duration::ZERO,
            },
        );
    }

    /// Lets virtual time pass, from deadline to deadline.
    fn run(&mut self, time: Duration) {
        let end = self.elapsed + time;
        loop {
            self.settle();
            let now = self.now();
            let next = self.nodes.values().filter_map(|n| n.control.poll_timeout(now)).min();
            let Some(next) = next.map(|n| n.duration_since(self.base)).filter(|n| *n <= end) else { break };
            self.elapsed = next.max(self.elapsed + Duration::from_micros(1));
            let now = self.now();
            for running in self.nodes.values_mut() {
                running.control.handle_timeout(now);
            }
        }
        self.elapsed = end;
        self.settle();
    }

    fn tunnels(&self, node: &str) -> usize {
        self.nodes[node].published.as_ref().map_or(0, |p| p.1.len())
    }

    fn spec(&self, node: &str) -> &NetworkSpec {
        self.nodes[node].published.as_ref().unwrap().0[0].as_ref().unwrap()
    }

    fn elected(&self, node: &str) -> Option<&str> {
        self.nodes[node].control.roles.all().find_map(|(_, e)| e.first()).map(NodeId::as_str)
    }
}

/// `io` has nothing to add.
pub(super) struct Nothing;

impl status::Live for Nothing {
    fn figures(&self, _: ConnId) -> Option<status::Figures> {
        None
    }

    fn traffic(&self, _: crate::forward::fib::PeerIx) -> status::Traffic {
        status::Traffic::default()
    }
}

/// Two nodes that have found each other.
fn two_nodes() -> World {
    let mut world = World::new();
    world.start(1, &[], none(), false);
    world.start(2, &[1], none(), false);
    world.run(Duration::from_secs(2));
    world
}

fn none() -> EgressChoice {
    EgressChoice::None
}

fn listed(nodes: &[&str]) -> EgressChoice {
    EgressChoice::Nodes(nodes.iter().map(|n| n.parse().unwrap()).collect())
}

#[test]
fn nodes_that_know_one_member_learn_of_all_and_connect() {
    let mut world = World::new();
    world.start(1, &[], none(), false);
    for n in 2..=8 {
        world.start(n, &[n - 1], none(), false);
    }
    world.run(Duration::from_secs(5));
    for n in 1..=8 {
        let name = format!("ph{n}");
        assert_eq!(world.tunnels(&name), 7, "{name}");
        assert_eq!(world.spec(&name).routes.len(), 7, "{name}");
    }
}

#[test]
fn both_dialling_at_once_ends_in_one_tunnel_each() {
    let mut world = World::new();
    world.start(1, &[2], none(), false);
    world.start(2, &[1], none(), false);
    world.run(Duration::from_secs(3));
    assert_eq!((world.tunnels("ph1"), world.tunnels("ph2")), (1, 1));
    let (up, conns) = (world.links.len(), world.nodes["ph1"].control.members.conns.len());
    assert_eq!((up, conns), (2, 1), "one connection, two ends");
}

#[test]
fn a_dead_peer_loses_its_routes_but_not_their_shadow_and_is_found_again() {
    let mut world = World::new();
    world.start(1, &[], none(), false);
    world.start(2, &[1], none(), false);
    world.run(Duration::from_secs(2));
    world.kill("ph2");
    world.run(Duration::from_secs(1));
    let route = |w: &World| w.nodes["ph1"].host.as_ref().unwrap().networks[0].routes.clone();
    let dead = route(&world).into_iter().find(|r| r.prefix.to_string() == "10.77.2.0/24").unwrap();
    assert_eq!(dead.mtu, None);
    assert_eq!(world.tunnels("ph1"), 0);
    world.run(Duration::from_secs(60));
    world.start(2, &[], none(), false);
    world.run(Duration::from_secs(3));
    assert_eq!((world.tunnels("ph1"), world.tunnels("ph2")), (1, 1));
    let alive = route(&world).into_iter().find(|r| r.prefix.to_string() == "10.77.2.0/24").unwrap();
    assert!(alive.mtu.is_some());
}

#[test]
fn a_node_starts_from_its_own_state_when_its_seed_is_gone() {
    let mut world = World::new();
    world.start(1, &[], none(), false);
    world.start(2, &[1], none(), false);
    world.start(3, &[1], none(), false);
    world.run(Duration::from_secs(3));
    world.kill("ph1");
    world.kill("ph3");
    world.run(Duration::from_secs(1));
    world.start(3, &[1], none(), false);
    world.run(Duration::from_secs(3));
    assert_eq!(world.tunnels("ph3"), 1, "ph2 is known from disk");
}

#[test]
fn known_prefixes_are_refused_from_the_first_moment_of_a_restart() {
    let mut world = World::new();
    world.start(1, &[], none(), false);
    world.start(2, &[1], none(), false);
    world.run(Duration::from_secs(3));
    world.kill("ph1");
    world.kill("ph2");
    world.start(2, &[1], none(), false);
    world.settle();
    let routes = &world.nodes["ph2"].host.as_ref().unwrap().networks[0].routes;
    let shadow = routes.iter().find(|r| r.prefix.to_string() == "10.77.1.0/24").unwrap();
    assert_eq!(shadow.mtu, None);
}

#[test]
fn a_standby_takes_over_and_keeps_the_role_when_the_first_returns() {
    let mut world = World::new();
    let order = ["ph2", "ph3"];
    world.start(1, &[], listed(&order), false);
    world.start(3, &[1], none(), true);
    world.run(Duration::from_secs(3));
    assert_eq!(world.elected("ph1"), Some("ph3"), "the only one there");
    world.start(2, &[1], none(), true);
    world.run(Duration::from_secs(3));
    assert_eq!(world.elected("ph1"), Some("ph2"), "it had not failed: it had not been there yet");
    world.kill("ph2");
    world.run(Duration::from_secs(1));
    assert_eq!(world.elected("ph1"), Some("ph3"));
    assert_eq!(world.spec("ph1").egress_peers.len(), 2);
    world.start(2, &[1], none(), true);
    world.run(Duration::from_secs(3));
    assert_eq!(world.elected("ph1"), Some("ph3"), "moving back would break flows");
    world.kill("ph3");
    world.kill("ph2");
    world.run(Duration::from_secs(1));
    assert_eq!(world.elected("ph1"), None);
    let host = world.nodes["ph1"].host.clone().unwrap();
    assert!(host.networks[0].destinations(true).iter().all(|(_, mtu)| mtu.is_none()), "refused");
}

#[test]
fn a_standby_is_told_as_one_also_while_the_first_was_never_heard_of_and_after_it_has_left() {
    let mut world = World::new();
    world.start(1, &[], listed(&["ph2", "ph3"]), false);
    world.start(3, &[1], none(), true);
    world.run(Duration::from_secs(3));
    let state = |world: &World| {
        let control = &world.nodes["ph1"].control;
        (control.status(world.now()).state, control.egress(&Nothing).egress[0].state.clone())
    };
    let [standby, well] = [("degraded", "standby"), ("ok", "active")].map(|(a, b)| (a.into(), b.into()));
    assert_eq!(state(&world), standby, "named first, and not there");
    world.start(2, &[1], none(), true);
    world.run(Duration::from_secs(3));
    assert_eq!((world.elected("ph1"), state(&world)), (Some("ph2"), well));
    world.input("ph2", Input::Leave);
    world.settle();
    world.kill("ph2");
    world.run(Duration::from_secs(3));
    assert_eq!((world.elected("ph1"), state(&world)), (Some("ph3"), standby), "left politely, and missed");
}

#[test]
fn an_egress_node_that_was_named_and_offers_nothing_is_never_elected() {
    let mut world = World::new();
    world.start(1, &[], listed(&["ph1", "ph2", "ph3"]), false);
    world.start(2, &[1], none(), false);
    world.start(3, &[1], none(), true);
    world.run(Duration::from_secs(3));
    assert_eq!(world.elected("ph1"), Some("ph3"));
}

#[test]
fn the_operator_s_word_on_egress_goes_before_the_order_while_that_node_lives_and_survives_a_restart() {
    let mut world = World::new();
    let order = ["ph2", "ph3"];
    world.start(1, &[], listed(&order), false);
    world.start(2, &[1], none(), true);
    world.start(3, &[1], none(), true);
    world.run(Duration::from_secs(3));
    let say = |world: &mut World, node: Option<&str>| {
        let now = world.now();
        let control = &mut world.nodes.get_mut("ph1").unwrap().control;
        let done = control.egress_use(node.map(|n| n.parse().unwrap()), None, now);
        world.settle();
        done
    };
    assert!(say(&mut world, Some("ph3")).is_ok());
    assert_eq!(world.elected("ph1"), Some("ph3"));
    let status = world.nodes["ph1"].control.status(world.now());
    assert!(status.notes.iter().any(|n| n.contains("egress use auto")), "{:?}", status.notes);
    world.kill("ph1");
    world.start(1, &[2], listed(&order), false);
    world.run(Duration::from_secs(3));
    assert_eq!(world.elected("ph1"), Some("ph3"), "remembered");
    world.kill("ph3");
    world.run(Duration::from_secs(1));
    assert_eq!(world.elected("ph1"), Some("ph2"), "nobody is left without egress for it");
    world.start(3, &[1], none(), true);
    world.run(Duration::from_secs(5));
    assert_eq!(world.elected("ph1"), Some("ph3"), "also after it had failed");
    assert!(say(&mut world, None).is_ok());
    assert_eq!(world.elected("ph1"), Some("ph2"));
    let refused = say(&mut world, Some("ph33")).unwrap_err();
    assert!(refused.contains("did you mean ph3"), "{refused}");
}

#[test]
fn an_egress_node_carries_its_own_vms_itself() {
    let mut world = World::new();
    world.start(1, &[], listed(&["ph1"]), true);
    world.run(Duration::from_secs(1));
    assert!(world.spec("ph1").egress.iter().all(|(_, via)| via.iter().all(|v| v.egress == Egress::Own)));
    assert_eq!(world.spec("ph1").egress.len(), 1, "no IPv6 in this network");
}

#[test]
fn a_polite_stop_is_no_failure_and_a_removed_peer_stays_away_until_it_is_added_again() {
    let mut world = World::new();
    world.start(1, &[], none(), false);
    world.start(2, &[1], none(), false);
    world.start(3, &[1], none(), false);
    world.run(Duration::from_secs(3));
    world.input("ph3", Input::Leave);
    world.settle();
    world.kill("ph3");
    world.run(Duration::from_secs(2));
    assert!(world.nodes["ph1"].control.members.peers["ph3".parse::<NodeId>().as_ref().unwrap()].left);
    let now = world.now();
    world.nodes.get_mut("ph1").unwrap().control.peer_remove("ph2", now).unwrap();
    world.run(Duration::from_secs(5));
    assert_eq!(world.tunnels("ph1"), 0);
    let now = world.now();
    world.nodes.get_mut("ph1").unwrap().control.peer_add(&endpoint(2), now);
    world.run(Duration::from_secs(5));
    assert_eq!(world.tunnels("ph1"), 1);
    assert_eq!(world.saved["ph1"].peers, [endpoint(2)]);
}

#[test]
fn a_record_beyond_its_certificate_closes_the_tunnel_and_tells_why() {
    let mut world = World::new();
    world.start(1, &[], none(), false);
    world.start(2, &[1], none(), false);
    world.run(Duration::from_secs(2));
    let two = &world.nodes["ph2"].control;
    let mut record = two.own.record.clone();
    record.version += 1;
    record.networks[0].prefixes.push("10.0.0.0/8".parse().unwrap());
    let signed = SignedRecord::sign(&record, &two.trust.key, &two.trust.chain);
    let conn = *world.nodes["ph1"].control.members.conns.keys().next().unwrap();
    world.input("ph1", Input::Message { conn, message: Message::Records(vec![signed]) });
    world.settle();
    let peer = &world.nodes["ph1"].control.members.peers[&"ph2".parse::<NodeId>().unwrap()];
    assert!(peer.reason.as_ref().is_some_and(|r| r.text.contains("10.0.0.0/8")), "{:?}", peer.reason);
    assert_eq!(world.nodes["ph1"].control.counts().handshake_failures["prefix_not_allowed"], 1);
    let other = &world.nodes["ph2"].control.members.peers[&"ph1".parse::<NodeId>().unwrap()];
    assert!(other.reason.as_ref().is_some_and(|r| r.text.contains("10.0.0.0/8")));
}

#[test]
fn handle_timeout_changes_nothing_before_poll_timeout_says_so() {
    let mut world = World::new();
    world.start(1, &[2], none(), false);
    world.settle();
    for _ in 0..50 {
        let now = world.now();
        let Some(due) = world.nodes["ph1"].control.poll_timeout(now) else { break };
        let early = Now { mono: due - Duration::from_micros(1), ..now };
        let control = &mut world.nodes.get_mut("ph1").unwrap().control;
        if early.mono > now.mono {
            control.handle_timeout(early);
            assert!(control.poll_output().is_none(), "something was due that was not announced");
        }
        world.elapsed = due.duration_since(world.base);
        let now = world.now();
        world.nodes.get_mut("ph1").unwrap().control.handle_timeout(now);
        world.settle();
    }
}

#[test]
fn local_egress_uses_its_own_snat_without_the_right_to_carry_others() {
    let mut world = World::new();
    world.start(1, &[], EgressChoice::Local, false);
    let local = &mut world.nodes.get_mut("ph1").unwrap().control.local;
    local.egress = vec![EgressConfig {
        networks: vec!["default".parse().unwrap()],
        interface: "eth0".into(),
        snat: vec!["198.51.100.99".parse().unwrap()],
        destination: vec![],
        priority: 100,
        uplink: uplink::of("eth0", &[]),
        line: 1,
    }];
    world.input("ph1", Input::Endpoints(vec![endpoint(9).parse().unwrap()]));
    world.settle();
    let node = &world.nodes["ph1"];
    let network = &node.host.as_ref().unwrap().networks[0];
    let host::HostOut::Local(egress) = &network.out else { panic!("{:?}", network.out) };
    assert_eq!(egress.snat, ["198.51.100.99".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(network.offer, None);
    assert_eq!(node.control.own.record.networks[0].egress, None);
}

impl World {
    /// Dials that nodes make in a while, by node.
    fn dials_in(&mut self, time: Duration) -> BTreeMap<String, usize> {
        self.dials.clear();
        self.run(time);
        self.dials.clone()
    }

    fn peer_of(&self, node: &str, other: &str) -> &members::Peer {
        &self.nodes[node].control.members.peers[&other.parse::<NodeId>().unwrap()]
    }

    fn only_conn(&self, node: &str) -> ConnId {
        *self.nodes[node].control.members.conns.keys().next().unwrap()
    }
}

#[test]
fn a_removed_node_is_told_why_and_does_not_dial_again_and_again() {
    let mut world = World::new();
    world.start(1, &[], none(), false);
    world.start(2, &[1], none(), false);
    world.run(Duration::from_secs(3));
    let now = world.now();
    world.nodes.get_mut("ph1").unwrap().control.peer_remove("ph2", now).unwrap();
    world.dials.clear();
    for _ in 0..240 {
        // a VM's packets keep asking for the tunnel
        let ix = world.peer_of("ph2", "ph1").ix;
        world.input("ph2", Input::Wanted(ix));
        world.run(Duration::from_millis(250));
    }
    let dials = world.dials.clone();
    assert!(dials["ph2"] <= 10, "{dials:?}");
    let reason = world.peer_of("ph2", "ph1").reason.clone().unwrap();
    assert_eq!(reason.label, "removed");
    assert!(!dials.contains_key("ph1"), "{dials:?}");
}

#[test]
fn a_removed_node_that_is_known_by_hearsay_is_dialled_when_it_is_added_while_it_is_down() {
    let mut world = World::new();
    world.start(1, &[], none(), false);
    world.start(2, &[1], none(), false);
    world.start(3, &[1], none(), false);
    world.run(Duration::from_secs(3));
    let now = world.now();
    world.nodes.get_mut("ph1").unwrap().control.peer_remove("ph2", now).unwrap();
    // ph3 tells of it again
    let control = &mut world.nodes.get_mut("ph2").unwrap().control;
    control.handle(Input::Endpoints(vec![endpoint(2).parse().unwrap(), endpoint(22).parse().unwrap()]), now);
    world.run(Duration::from_secs(1));
    world.kill("ph2");
    let now = world.now();
    world.nodes.get_mut("ph1").unwrap().control.peer_add(&endpoint(2), now);
    world.run(Duration::from_secs(10));
    world.start(2, &[], none(), false);
    world.run(Duration::from_secs(5));
    assert!(world.peer_of("ph1", "ph2").tunnel.is_some());
}

#[test]
fn a_node_that_has_its_own_endpoint_for_a_seed_dials_it_seldom() {
    let mut world = World::new();
    world.start(1, &[1], none(), false);
    let dials = world.dials_in(Duration::from_secs(600));
    assert!(dials["ph1"] <= 500, "{dials:?}");
    let dials = world.dials_in(Duration::from_secs(600));
    assert!(dials["ph1"] <= 90, "{dials:?}");
}

#[test]
fn a_peer_that_breaks_the_protocol_loses_its_tunnel_with_the_reason_on_both_sides() {
    let breaches = [
        Message::Hello(Hello {
            version: 1,
            mesh: "lab".parse().unwrap(),
            node: "ph2".parse().unwrap(),
            generation: 1,
            networks: vec![],
        }),
        Message::Records(vec![
            SignedRecord { certificates: vec![], body: vec![], signature: vec![] };
            MAX_RECORDS_PER_MESSAGE + 1
        ]),
    ];
    for message in breaches {
        let mut world = World::new();
        world.start(1, &[], none(), false);
        world.start(2, &[1], none(), false);
        world.run(Duration::from_secs(2));
        let conn = world.only_conn("ph1");
        world.input("ph1", Input::Message { conn, message });
        world.settle();
        assert_eq!(world.peer_of("ph1", "ph2").reason.as_ref().unwrap().label, "protocol");
        assert_eq!(world.peer_of("ph2", "ph1").reason.as_ref().unwrap().label, "protocol");
        assert_eq!(world.nodes["ph1"].control.counts().handshake_failures["protocol"], 1);
    }
}

#[test]
fn largest_records_are_sent_in_messages_that_the_other_side_takes() {
    let mut world = World::new();
    world.start(1, &[], none(), false);
    world.settle();
    let part = mesh_proto::limits::MAX_RECORD / 2;
    let large =
        SignedRecord { certificates: vec![vec![0; part]], body: vec![0; part], signature: vec![0; 64] };
    let control = &mut world.nodes.get_mut("ph1").unwrap().control;
    control.send_records(ConnId(1), &vec![large; 100]);
    control.send_records(ConnId(1), &vec![control.own.signed.clone(); 200]);
    let mut sent = 0;
    while let Some(output) = control.poll_output() {
        let Output::Send { message, .. } = output else { panic!("{output:?}") };
        let Message::Records(records) = &message else { panic!() };
        sent += records.len();
        assert!(records.len() <= MAX_RECORDS_PER_MESSAGE);
        assert!(message.encode().len() - mesh_proto::codec::HEADER <= MAX_MESSAGE);
    }
    assert_eq!(sent, 300);
}

#[test]
fn a_twin_of_this_node_or_of_a_peer_is_told_and_answered_a_bounded_number_of_times() {
    let mut world = World::new();
    world.start(1, &[], none(), false);
    world.start(2, &[1], none(), false);
    world.run(Duration::from_secs(2));
    let conn = world.only_conn("ph1");
    let one = &world.nodes["ph1"].control;
    let (key, chain) =
        (NodeKey::from_pem(&one.trust.key.to_pem().unwrap()).unwrap(), one.trust.chain.clone());
    let mut record = one.own.record.clone();
    for i in 1..100 {
        record.version += 1000 * i;
        let signed = SignedRecord::sign(&record, &key, &chain);
        world.input("ph1", Input::Message { conn, message: Message::Records(vec![signed]) });
    }
    let answers =
        world.nodes["ph1"].control.outputs.iter().filter(|o| matches!(o, Output::Send { .. })).count();
    assert!(answers <= 20, "{answers}");
    let now = world.now();
    let notes = world.nodes["ph1"].control.status(now).notes;
    assert!(notes.iter().any(|n| n.contains("another node uses the name ph1")), "{notes:?}");
    world.settle();
    few_lines_of(&world, 98, &["own_name_elsewhere"]);

    let two = &world.nodes["ph2"].control;
    let mut record = two.own.record.clone();
    record.endpoints.clear();
    let signed = SignedRecord::sign(&record, &two.trust.key, &two.trust.chain);
    let old = two.own.signed.clone();
    for _ in 0..100 {
        let message = Message::Records(vec![old.clone(), signed.clone(), old.clone()]);
        world.input("ph1", Input::Message { conn, message });
    }
    let notes = world.nodes["ph1"].control.status(now).notes;
    assert!(notes.iter().any(|n| n.contains("two nodes use the name ph2")), "{notes:?}");
    world.settle();
    few_lines_of(&world, 1, &["name_doubled"]);
}

/// Notices of a name that the operator sees of those that a node told, all in one moment.
fn shown(world: &World, node: &str, event: &str) -> (usize, usize) {
    let mut limits = Limits::default();
    let told: Vec<_> = world.told[node].iter().filter(|notice| notice.kind().event == event).collect();
    let shown = told.iter().filter(|notice| limits.admit(notice, world.base).is_some()).count();
    (told.len(), shown)
}

#[test]
fn the_operator_is_told_of_tunnels_and_of_egress_nodes_that_come_and_go() {
    let mut world = World::new();
    world.start(1, &[], EgressChoice::Auto, false);
    world.start(2, &[1], none(), true);
    world.run(Duration::from_secs(2));
    world.kill("ph2");
    world.run(Duration::from_secs(1));
    let events: Vec<&str> = world.told["ph1"].iter().map(|notice| notice.kind().event).collect();
    let place = |event: &str| events.iter().position(|e| *e == event).expect(event);
    assert!(place("tunnel_up") < place("tunnel_down"), "{events:?}");
    assert!(place("egress_elected") < place("egress_lost"), "{events:?}");
    let Notice::EgressElected { from, to, .. } = &world.told["ph1"][place("egress_elected")] else {
        panic!()
    };
    assert_eq!((from.as_ref(), to.as_str()), (None, "ph2"));
}

/// These kinds were told as often as a flood is long; of them, and of all others, the operator sees few lines.
fn few_lines_of(world: &World, flood: usize, events: &[&str]) {
    for event in events {
        let (told, shown) = shown(world, "ph1", event);
        assert!(told >= flood, "the flood arrives: {told} of {event}");
        assert!((1..=20).contains(&shown), "{shown} lines of {event}");
    }
    let kinds: std::collections::BTreeSet<&str> = world.told["ph1"].iter().map(|n| n.kind().event).collect();
    for event in kinds {
        let (_, shown) = shown(world, "ph1", event);
        assert!(shown <= 20, "{shown} lines of {event}");
    }
}

#[test]
fn a_flood_of_refused_strangers_forged_records_and_failing_dials_is_few_lines_to_the_operator() {
    let mut world = World::new();
    world.start(1, &[], none(), false);
    world.start(2, &[1], none(), false);
    world.run(Duration::from_secs(2));
    // strangers, each time with another reason
    for n in 0..1000 {
        let endpoint = SocketAddr::new([203, 0, 113, (n % 250) as u8].into(), 4650);
        let reason = Reason { label: "unknown_ca", text: format!("certificate {n}") };
        world.input("ph1", Input::AcceptFailed { endpoint, node: None, reason });
    }
    // a peer that passes on what is signed by nobody
    let conn = world.only_conn("ph1");
    let mut forged = world.nodes["ph2"].control.own.signed.clone();
    for n in 0..1000 {
        forged.signature[0] = n as u8;
        forged.signature[1] = (n >> 8) as u8;
        let message = Message::Records(vec![forged.clone()]);
        world.input("ph1", Input::Message { conn, message });
    }
    // somebody at a peer's endpoint who answers in other words each time
    world.kill("ph2");
    for n in 0..1000 {
        let reason = Reason { label: "timeout", text: format!("attempt {n}") };
        let target = Target::Node("ph2".parse().unwrap());
        world.input("ph1", Input::DialFailed { target, endpoint: endpoint(2), reason });
    }
    world.settle();
    few_lines_of(&world, 999, &["connection_refused", "record_refused", "dial_failed"]);
}

#[test]
fn a_peer_that_comes_and_goes_without_end_is_few_lines_to_the_operator_as_are_its_egress_roles() {
    let mut world = World::new();
    world.start(1, &[], EgressChoice::Auto, false);
    world.start(2, &[1], none(), true);
    world.run(Duration::from_secs(2));
    let (hello, identity) = {
        let two = &world.nodes["ph2"].control;
        (two.hello(), two.local.identity.clone())
    };
    let old = world.only_conn("ph1");
    let lost = || Reason { label: "timeout", text: "nothing heard in time".into() };
    world.input("ph1", Input::TunnelClosed { conn: old, reason: lost() });
    for n in 0..500 {
        let conn = ConnId(100_000 + n);
        let (hello, identity, endpoint) = (hello.clone(), identity.clone(), endpoint(2).parse().unwrap());
        let took = Duration::ZERO;
        world.input("ph1", Input::TunnelUp { conn, identity, endpoint, dialed: None, hello, took });
        let left = || Reason { label: CloseCode::Leaving.reason(), text: "the node stops".into() };
        let reason = if n % 2 == 0 { lost() } else { left() };
        world.input("ph1", Input::TunnelClosed { conn, reason });
    }
    world.settle();
    few_lines_of(&world, 500, &["tunnel_up"]);
    few_lines_of(&world, 250, &["tunnel_down", "peer_left", "egress_elected", "egress_lost"]);
}

#[test]
fn an_old_record_replayed_by_a_peer_changes_nothing() {
    let mut world = World::new();
    world.start(1, &[], none(), false);
    world.start(2, &[1], none(), false);
    world.run(Duration::from_secs(2));
    let conn = world.only_conn("ph1");
    let two = &world.nodes["ph2"].control;
    let mut record = two.own.record.clone();
    record.version -= 1;
    record.networks.clear();
    let signed = SignedRecord::sign(&record, &two.trust.key, &two.trust.chain);
    let before = world.peer_of("ph1", "ph2").record.as_ref().unwrap().record.clone();
    world.input("ph1", Input::Message { conn, message: Message::Records(vec![signed]) });
    assert_eq!(world.peer_of("ph1", "ph2").record.as_ref().unwrap().record, before);
}

#[test]
fn what_is_not_mapped_leaves_its_own_egress_node_past_the_tun_and_only_where_both_agree() {
    let mut world = World::new();
    world.start(1, &[], listed(&["ph1", "ph2"]), true);
    world.run(Duration::from_secs(1));
    let own = |world: &World| world.nodes["ph1"].host.as_ref().unwrap().networks[0].own.clone();
    assert_eq!(own(&world).sources, [], "its subnet is mapped: the TUN tells the two flows apart");
    let roots = world.roots.clone();
    world.reload("ph1", &roots, |local| local.networks[0].maps[0].0 = local.networks[0].maps[0].1);
    world.settle();
    let own = own(&world);
    let leaves = |to: &str| own.has("10.77.1.10".parse().unwrap(), to.parse().unwrap());
    assert_eq!(["8.8.8.8", "10.9.9.9", "198.51.100.7"].map(leaves), [true, false, false]);
    assert!(!own.has("10.77.2.10".parse().unwrap(), "8.8.8.8".parse().unwrap()), "others come by the TUN");
}
