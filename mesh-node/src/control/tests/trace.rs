//! Journeys of packets between real `Control`s, over a kernel that does what the mesh relies on, or does not.

use mesh_proto::trace::{Packet, Place, Protocol, Stage, TraceEnd, TraceHop, TraceReply, TraceRequest};
use serde_json::json;

use super::super::trace::journey::{Journey, Wish};
use super::super::trace::kernel::{Answer, Expect, Incoming, Lookup, Route, settle};
use super::super::trace::plan::Plan;
use super::*;
use crate::config::AnnounceConfig;

/// What the kernel says when it does what it should.
fn obey(lookup: &Lookup) -> Answer {
    let incoming = match &lookup.incoming {
        Incoming::Host => None,
        Incoming::Device(device) => Some(device.clone()),
        Incoming::UplinkTo(_) => Some("eth0".to_owned()),
    };
    let sent = |device: &str| Route::Sent { device: device.into(), table: 254 };
    let route = match &lookup.expect {
        Expect::Device(device) => sent(device),
        Expect::Local => Route::Local,
        Expect::Uplink { named, .. } => sent(named.as_deref().unwrap_or("eth0")),
        Expect::NothingBut(_) => Route::Refused("unreachable".into()),
    };
    Answer { incoming, route, masquerade: lookup.masquerade.then(|| "198.51.100.99".parse().unwrap()) }
}

pub(super) fn obeyed(plan: Plan, id: u64) -> TraceReply {
    let answers: Vec<Vec<Answer>> =
        plan.legs.iter().map(|leg| leg.lookups.iter().map(obey).collect()).collect();
    settle(plan, id, &answers, None)
}

fn wish(from: &str, to: &str) -> Wish {
    Wish {
        network: None,
        from_node: None,
        from: from.parse().unwrap(),
        to_node: None,
        to: to.parse().unwrap(),
        protocol: Protocol::Icmp,
        back: true,
    }
}

impl World {
    /// Asks `asked`; `kernel` may change what a node's kernel answers.
    fn trace(
        &self,
        asked: &str,
        wish: Wish,
        kernel: impl Fn(&str, &Lookup, Answer) -> Answer,
    ) -> Result<mesh_proto::api::Trace, String> {
        let mut journey = Journey::new(wish, asked.parse().unwrap());
        for _ in 0..20 {
            let Some(question) = journey.question().cloned() else { return journey.into_trace() };
            let node = question.node.to_string();
            let Some(running) = self.nodes.get(&node) else {
                journey.handle_answer(Err(format!("{node} is silent")));
                continue;
            };
            let plan = running.control.trace_plan(None, &question.request);
            let answer = |l: &Lookup| kernel(&node, l, obey(l));
            let answers: Vec<Vec<Answer>> =
                plan.legs.iter().map(|leg| leg.lookups.iter().map(answer).collect()).collect();
            journey.handle_answer(Ok(settle(plan, 0, &answers, None)));
        }
        panic!("a journey without end");
    }

    fn table(&self, asked: &str, wish: Wish) -> Vec<String> {
        let trace = self.trace(asked, wish, |_, _, answer| answer).unwrap();
        let mut lines: Vec<String> =
            trace.hops.iter().map(|h| format!("{} {} {}", h.host, h.source, h.destination)).collect();
        lines.push(trace.state + &trace.reason.map(|r| format!(": {r}")).unwrap_or_default());
        lines
    }

    fn announce_at(&mut self, node: &str, prefix: &str, internet_own: bool) {
        let now = self.now();
        let control = &mut self.nodes.get_mut(node).unwrap().control;
        let prefix = prefix.parse().unwrap();
        control.local.networks[0].announce.push(AnnounceConfig { prefix, via: None, internet_own });
        control.refresh(now);
    }
}

/// Two nodes; the second offers egress, and both leave by it.
fn two() -> World {
    let mut world = World::new();
    world.start(1, &[], listed(&["ph2"]), false);
    world.start(2, &[1], listed(&["ph2"]), true);
    world.run(Duration::from_secs(2));
    world
}

#[test]
fn a_packet_is_followed_there_and_back() {
    let world = two();
    let expected = [
        "vm 192.168.100.10 10.77.2.20",
        "ph1 10.77.1.10 10.77.2.20",
        "ph2 10.77.1.10 192.168.100.20",
        "vm 10.77.1.10 192.168.100.20",
        "vm 192.168.100.20 10.77.1.10",
        "ph2 10.77.2.20 10.77.1.10",
        "ph1 10.77.2.20 192.168.100.10",
        "vm 10.77.2.20 192.168.100.10",
        "arrives",
    ];
    assert_eq!(world.table("ph1", wish("192.168.100.10", "10.77.2.20")), expected);
    let node = |n: &str| Some(n.parse().unwrap());
    let elsewhere =
        Wish { from_node: node("ph1"), to_node: node("ph2"), ..wish("192.168.100.10", "192.168.100.20") };
    assert_eq!(world.table("ph2", elsewhere), expected);
    let one_way = Wish { back: false, ..wish("192.168.100.10", "10.77.2.20") };
    assert_eq!(world.table("ph1", one_way)[4], "arrives");
}

#[test]
fn what_leaves_by_the_egress_node_comes_back_to_its_sender() {
    let world = two();
    let masqueraded = [
        "vm 192.168.100.10 192.0.2.80",
        "ph1 10.77.1.10 192.0.2.80",
        "ph2 198.51.100.99 192.0.2.80",
        "internet 192.0.2.80 198.51.100.99",
        "ph2 192.0.2.80 10.77.1.10",
        "ph1 192.0.2.80 192.168.100.10",
        "vm 192.0.2.80 192.168.100.10",
        "arrives",
    ];
    assert_eq!(world.table("ph1", wish("192.168.100.10", "192.0.2.80")), masqueraded);
    let own = world.table("ph2", wish("192.168.100.10", "192.0.2.80"));
    assert_eq!(own[1..3], ["ph2 10.77.2.10 192.0.2.80", "ph2 198.51.100.99 192.0.2.80"]);
    assert_eq!(
        own[4..],
        [
            "ph2 192.0.2.80 10.77.2.10",
            "ph2 192.0.2.80 192.168.100.10",
            "vm 192.0.2.80 192.168.100.10",
            "arrives"
        ]
    );
}

#[test]
fn an_announced_address_leaves_by_its_own_host_or_by_the_egress_node_as_configured() {
    let mut world = two();
    world.announce_at("ph1", "203.0.113.11/32", true);
    let own = world.table("ph1", wish("203.0.113.11", "192.0.2.80"));
    assert_eq!(own[1..3], ["ph1 203.0.113.11 192.0.2.80", "internet 192.0.2.80 203.0.113.11"]);
    assert_eq!(own.last().unwrap(), "arrives");
    assert_eq!(own.len(), 6);
    world.announce_at("ph1", "203.0.113.12/32", false);
    let by_egress =
        world.trace("ph1", Wish { back: false, ..wish("203.0.113.12", "192.0.2.80") }, |_, _, a| a);
    let hops = by_egress.unwrap().hops;
    assert!(hops[1].action.contains("tunnel to egress ph2"), "{}", hops[1].action);
}

#[test]
fn a_kernel_that_does_otherwise_is_told_with_table_and_remedy() {
    let world = two();
    let bent = |at: &'static str, route: Route| {
        move |node: &str, lookup: &Lookup, answer: Answer| {
            let here = node == at && !lookup.flow.reply;
            if here { Answer { route: route.clone(), ..answer } } else { answer }
        }
    };
    let to = || wish("192.168.100.10", "10.77.2.20");
    let diverted = Route::Sent { device: "eth1".into(), table: 100 };
    for (at, route, words, hops) in [
        (
            "ph1",
            diverted.clone(),
            "ph1: the kernel sends it by eth1 (table 100), and the mesh needs it sent by mesh-default",
            2,
        ),
        (
            "ph2",
            diverted,
            "ph2: the kernel sends it by eth1 (table 100), and the mesh needs it sent by vmnet1",
            3,
        ),
        ("ph2", Route::Refused("prohibited".into()), "ph2: the kernel refuses it (prohibited)", 3),
        ("ph2", Route::Local, "ph2: the kernel takes it for an address of this host", 3),
    ] {
        let trace = world.trace("ph1", to(), bent(at, route)).unwrap();
        let reason = trace.reason.unwrap();
        assert_eq!((trace.state.as_str(), trace.hops.len()), ("refused", hops), "{reason}");
        assert!(reason.starts_with(words) && reason.contains("`ip route get "), "{reason}");
        let last = trace.hops.last().unwrap();
        assert_eq!((last.host.as_str(), last.state.as_str(), &last.device), (at, "refused", &None));
    }
    let back_only = |node: &str, lookup: &Lookup, answer: Answer| match (node, lookup.flow.reply) {
        ("ph2", true) => Answer { route: Route::Refused("unreachable".into()), ..answer },
        _ => answer,
    };
    let reason = world.trace("ph1", to(), back_only).unwrap().reason.unwrap();
    assert!(reason.starts_with("on the way back: ph2: the kernel refuses it"), "{reason}");
}

#[test]
fn a_leak_past_a_mesh_that_refuses_is_told_as_one() {
    let mut world = World::new();
    world.start(1, &[], none(), false);
    world.run(Duration::from_secs(1));
    let to = || wish("192.168.100.10", "192.0.2.80");
    let reason = world.trace("ph1", to(), |_, _, answer| answer).unwrap().reason.unwrap();
    assert!(reason.contains("nobody announces 192.0.2.80, and network default has no egress"), "{reason}");
    let leaks = |_: &str, _: &Lookup, answer: Answer| Answer {
        route: Route::Sent { device: "eth0".into(), table: 254 },
        ..answer
    };
    let reason = world.trace("ph1", to(), leaks).unwrap().reason.unwrap();
    assert!(reason.contains("sends it by eth0") && reason.contains("leaks"), "{reason}");
}

#[test]
fn the_host_itself_is_reached_as_far_as_expose_says() {
    let world = two();
    let ask = |protocol| Wish { protocol, ..wish("192.168.100.10", "10.77.2.1") };
    assert_eq!(world.table("ph1", ask(Protocol::Icmp)).last().unwrap(), "arrives");
    for (protocol, named) in [(Protocol::Tcp(22), "\"tcp/22\""), (Protocol::Udp(53), "\"udp/53\"")] {
        let trace = world.trace("ph1", ask(protocol), |_, _, answer| answer).unwrap();
        let reason = trace.reason.unwrap();
        assert!(reason.starts_with("ph2: dropped (not_exposed)") && reason.contains(named), "{reason}");
    }
}

#[test]
fn a_node_without_tunnel_and_a_silent_one_are_named() {
    let mut world = two();
    world.kill("ph2");
    let last = |world: &World, to: &str| world.table("ph1", wish("192.168.100.10", to)).pop().unwrap();
    assert!(last(&world, "10.77.2.20").starts_with("refused: ph1: no tunnel to ph2"));
    assert!(
        last(&world, "192.0.2.80")
            .starts_with("refused: ph1: nobody announces 192.0.2.80, and no egress node")
    );
    let mut world = two();
    world.nodes.remove("ph2");
    assert_eq!(last(&world, "10.77.2.20"), "unknown: ph2 is silent");
}

#[test]
fn a_journey_ends_although_nodes_answer_nonsense() {
    let name = |n: &str| n.parse::<NodeId>().unwrap();
    let reply = |end| TraceReply { id: 0, network: None, hops: Vec::new(), end };
    let mut round = Journey::new(wish("192.168.100.10", "10.77.2.20"), name("ph1"));
    let mut asked = 0;
    while round.question().is_some() {
        round.handle_answer(Ok(reply(TraceEnd::Tunnel(name("ph2")))));
        asked += 1;
    }
    assert_eq!((asked, round.into_trace().unwrap().state.as_str()), (8, "unknown"));

    let hop = |source: &str| TraceHop {
        place: Place::Vm,
        source: source.parse().unwrap(),
        destination: "192.168.100.10".parse().unwrap(),
        device: None,
        action: "arrives".into(),
        refused: false,
    };
    let mut strayed = Journey::new(wish("192.168.100.10", "10.77.2.20"), name("ph1"));
    strayed.handle_answer(Ok(reply(TraceEnd::Arrived)));
    let back = TraceReply { hops: vec![hop("10.77.9.9")], ..reply(TraceEnd::Arrived) };
    strayed.handle_answer(Ok(back));
    let trace = strayed.into_trace().unwrap();
    assert_eq!(trace.state, "refused");
    assert!(trace.reason.unwrap().contains("the sender does not take it for one"));
}

#[test]
fn questions_travel_by_the_tunnel_and_only_who_was_asked_may_answer() {
    let mut world = two();
    let request = TraceRequest {
        id: 5,
        network: Some("default".parse().unwrap()),
        stage: Stage::Tunnel("ph1".parse().unwrap()),
        packet: Packet {
            source: "10.77.1.10".parse().unwrap(),
            destination: "10.77.2.20".parse().unwrap(),
            protocol: Protocol::Icmp,
            reply: false,
        },
    };
    let ask = |node: &str| Input::TraceAsk { node: node.parse().unwrap(), request: request.clone() };
    world.input("ph1", ask("ph2"));
    let forged = TraceReply { id: 5, network: None, hops: Vec::new(), end: TraceEnd::Arrived };
    world.input("ph1", Input::Message { conn: ConnId(999), message: Message::TraceReply(forged.clone()) });
    world.settle();
    let [Ok(reply)] = world.traced.as_slice() else { panic!("{:?}", world.traced) };
    assert_eq!((reply.id, reply.hops.len(), &reply.end), (5, 2, &TraceEnd::Arrived));

    world.traced.clear();
    for node in ["ph1", "ph7"] {
        world.input("ph1", ask(node));
    }
    world.settle();
    assert!(
        world.traced.iter().all(|a| a.as_ref().is_err_and(|e| e.contains("knows no node"))),
        "{:?}",
        world.traced
    );
    assert_eq!(world.traced.len(), 2);

    world.traced.clear();
    world.input("ph1", ask("ph2"));
    let conn = world.only_conn("ph1");
    let reason = Reason { label: "timeout", text: "nothing heard in time".into() };
    world.input("ph1", Input::TunnelClosed { conn, reason });
    world.settle();
    let told =
        world.traced.iter().any(|a| a.as_ref().is_err_and(|e| e.contains("the tunnel to ph2 has gone")));
    assert!(told, "{:?}", world.traced);
}

#[test]
fn an_answer_beyond_the_limits_ends_the_tunnel() {
    let mut world = two();
    let conn = world.only_conn("ph1");
    let end = TraceEnd::Refused("x".repeat(mesh_proto::limits::MAX_TRACE_TEXT + 1));
    let reply = TraceReply { id: 1, network: None, hops: Vec::new(), end };
    world.input("ph1", Input::Message { conn, message: Message::TraceReply(reply) });
    world.settle();
    assert_eq!(world.peer_of("ph1", "ph2").reason.as_ref().unwrap().label, "protocol");
}

#[test]
fn an_answer_of_ours_that_is_long_is_cut_and_costs_no_tunnel() {
    let mut world = two();
    let conn = world.only_conn("ph2");
    let text = "a long name ".repeat(mesh_proto::limits::MAX_TRACE_TEXT);
    let reply = TraceReply { id: 1, network: None, hops: Vec::new(), end: TraceEnd::Refused(text) };
    world.nodes.get_mut("ph2").unwrap().control.trace_answer(conn, reply);
    world.settle();
    assert_eq!((world.tunnels("ph1"), world.tunnels("ph2")), (1, 1));
}

#[test]
fn one_peer_has_few_questions_answered_at_once_and_none_about_networks_that_it_does_not_carry() {
    let mut world = two();
    let conn = world.only_conn("ph2");
    let request = |network: &str| TraceRequest {
        id: 1,
        network: Some(network.parse().unwrap()),
        stage: Stage::Segment,
        packet: Packet {
            source: "192.168.100.10".parse().unwrap(),
            destination: "10.77.1.10".parse().unwrap(),
            protocol: Protocol::Icmp,
            reply: false,
        },
    };
    let now = world.now();
    let control = &mut world.nodes.get_mut("ph2").unwrap().control;
    for _ in 0..10 {
        control.trace_requested(conn, request("default"), now);
    }
    let (mut wanted, mut busy) = (0, 0);
    while let Some(output) = control.poll_output() {
        match output {
            Output::TraceWanted { .. } => wanted += 1,
            Output::Send { message: Message::TraceReply(reply), .. } => {
                let TraceEnd::Unanswerable(text) = reply.end else { panic!("{reply:?}") };
                assert!(text.contains("busy"), "{text}");
                busy += 1;
            }
            _ => {}
        }
    }
    assert_eq!((wanted, busy), (4, 6));
    let reply = TraceReply { id: 1, network: None, hops: vec![], end: TraceEnd::Arrived };
    let mut taken = |at: Now| {
        control.trace_answer(conn, reply.clone());
        control.trace_requested(conn, request("default"), at);
        std::iter::from_fn(|| control.poll_output())
            .filter(|o| matches!(o, Output::TraceWanted { .. }))
            .count()
    };
    let in_this_second: usize = (0..100).map(|_| taken(now)).sum();
    assert_eq!(in_this_second, 16, "each has been answered before the next");
    assert_eq!(taken(Now { mono: now.mono + Duration::from_secs(1), ..now }), 1, "in the next second");

    control.local.networks[0].name = "red".parse().unwrap();
    let plan = control.trace_plan(Some(conn), &request("red"));
    let TraceEnd::Unanswerable(text) = plan.end else { panic!("{plan:?}") };
    assert!(text.contains("network red is not on ph2") && plan.legs.is_empty(), "{text}");
    assert!(!matches!(control.trace_plan(None, &request("red")).end, TraceEnd::Unanswerable(_)));
}

#[test]
fn a_firewall_of_the_host_is_asked_about_the_very_packet() {
    let world = two();
    let request = |protocol| TraceRequest {
        id: 1,
        network: Some("default".parse().unwrap()),
        stage: Stage::Tunnel("ph1".parse().unwrap()),
        packet: Packet {
            source: "10.77.1.10".parse().unwrap(),
            destination: "10.77.2.20".parse().unwrap(),
            protocol,
            reply: false,
        },
    };
    let port = json!({ "match": { "op": "==", "left": { "payload": { "protocol": "tcp", "field": "dport" } }, "right": 80 } });
    let listing = json!({ "nftables": [
        { "chain": { "family": "inet", "table": "fw", "name": "fwd", "hook": "forward", "prio": 0, "policy": "accept" } },
        { "rule": { "family": "inet", "table": "fw", "chain": "fwd", "expr": [port, { "drop": null }] } },
    ] });
    let end_of = |listing: &str, protocol| {
        let plan = world.nodes["ph2"].control.trace_plan(None, &request(protocol));
        let answers: Vec<Vec<Answer>> =
            plan.legs.iter().map(|leg| leg.lookups.iter().map(obey).collect()).collect();
        settle(plan, 1, &answers, Some(&serde_json::from_str(listing).unwrap())).end
    };
    let end = |protocol| end_of(&listing.to_string(), protocol);
    assert_eq!((end(Protocol::Icmp), end(Protocol::Tcp(443))), (TraceEnd::Arrived, TraceEnd::Arrived));
    let TraceEnd::Refused(text) = end(Protocol::Tcp(80)) else { panic!() };
    let early = listing.to_string().replace("\"forward\"", "\"prerouting\"");
    assert_eq!(end_of(&early, Protocol::Icmp), TraceEnd::Arrived);
    assert!(matches!(end_of(&early, Protocol::Tcp(80)), TraceEnd::Refused(_)));
    let words =
        "ph2: chain fwd of table inet fw drops it (mesh-default to vmnet1); to let it pass: nft 'insert rule";
    assert!(text.starts_with(words), "{text}");
}

#[test]
fn an_address_of_two_networks_needs_the_network_and_one_of_none_is_told() {
    let mut world = two();
    let now = world.now();
    let control = &mut world.nodes.get_mut("ph1").unwrap().control;
    let mut red = control.local.networks[0].clone();
    (red.ix, red.name) = (NetworkIx(1), "red".parse().unwrap());
    (red.interface, red.tun) = ("vmnet2".into(), "mesh-red".into());
    red.maps = vec![("192.168.100.0/24".parse().unwrap(), "10.88.1.0/24".parse().unwrap())];
    control.local.networks.push(red);
    control.refresh(now);
    let refusal = |wish: Wish| world.trace("ph1", wish, |_, _, answer| answer).unwrap_err();
    let to = || Wish { back: false, ..wish("192.168.100.10", "10.77.2.20") };
    assert!(refusal(to()).contains("is in networks default and red: say which with --network"));
    assert!(refusal(wish("10.9.9.9", "10.77.2.20")).contains("10.9.9.9 is no address behind ph1"));
    let of = |network: &str| Wish { network: Some(network.parse().unwrap()), ..to() };
    assert!(refusal(of("blue")).contains("network blue is not on ph1"));
    assert_eq!(world.table("ph1", of("default")).last().unwrap(), "arrives");
    let red = world.table("ph1", of("red"));
    assert!(red.last().unwrap().starts_with("refused: ph1: nobody announces 10.77.2.20"), "{red:?}");
}
