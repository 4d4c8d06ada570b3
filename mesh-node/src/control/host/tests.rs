//! A host with two networks: one with translation, announced addresses and an egress offer, one with "local" egress.

use std::collections::BTreeSet;

use mesh_proto::Prefix;
use proptest::prelude::*;

use super::foreign::{foreign_chains, inserted_rules};
use super::routes::{Route, RouteKind, route_changes, routes};
use super::rules::{Action, Rule, Selector, rule_changes, rules};
use super::ruleset::ruleset;
use super::sysctls::sysctls;
use super::*;
use crate::forward::fib::Expose;

fn p(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn state() -> HostState {
    let announced = |prefix: &str, via: Option<&str>, internet_own| HostAnnounced {
        prefix: p(prefix),
        via: via.map(|via| via.parse().unwrap()),
        internet_own,
    };
    let route = |prefix: &str, mtu, mesh| MeshRoute { prefix: p(prefix), mtu, mesh };
    HostState {
        networks: vec![
            HostNetwork {
                slot: 0,
                name: "default".parse().unwrap(),
                tun: "mesh0".into(),
                segment: "vmnet1".into(),
                subnets: vec![(p("192.168.100.0/24"), "192.168.100.1".parse().unwrap())],
                announced: vec![
                    announced("203.0.113.14/32", None, true),
                    announced("203.0.113.16/29", Some("192.168.100.14"), false),
                ],
                routes: vec![
                    route("10.77.1.0/24", Some(1400), true),
                    route("10.77.2.0/24", Some(1380), true),
                    route("10.77.3.0/24", None, true),
                    route("203.0.113.14/32", Some(1400), false),
                    route("203.0.113.16/29", Some(1400), false),
                ],
                fallback: None,
                out: HostOut::Tunnel { destinations: vec![(Prefix::default_route(true), Some(1380))] },
                offer: Some(HostEgress {
                    interface: Some("eth0".into()),
                    snat: vec!["198.51.100.11".parse().unwrap()],
                }),
                own: Default::default(),
                expose: vec![Expose::Icmp, Expose::Tcp(22)],
            },
            HostNetwork {
                slot: 1,
                name: "blue".parse().unwrap(),
                tun: "mesh1".into(),
                segment: "br.blue".into(),
                subnets: vec![
                    (p("10.88.1.0/24"), "10.88.1.1".parse().unwrap()),
                    (p("fd88:1::/64"), "fd88:1::1".parse().unwrap()),
                ],
                announced: vec![],
                routes: vec![
                    route("10.88.1.0/24", Some(1400), true),
                    route("fd88:1::/64", Some(1200), true),
                    route("fd88:2::/64", Some(1200), true),
                ],
                fallback: None,
                out: HostOut::Local(HostEgress { interface: None, snat: vec![] }),
                offer: None,
                own: Default::default(),
                expose: vec![Expose::All],
            },
        ],
        uplinks: vec!["eth0".into()],
        connected: vec![("eth0".into(), p("203.0.113.0/24"))],
        foreign_chains: Default::default(),
        lease_term: Default::default(),
        tun_mtu: 1500,
    }
}

fn at(rules: &[Rule], v4: bool, class: u32) -> Vec<String> {
    let here = rules.iter().filter(|r| r.selector.v4 == v4 && r.selector.priority == BASE_PRIORITY + class);
    here.map(|Rule { selector: s, action }| {
        let mut text = String::new();
        if let Some(iif) = &s.iif {
            text += &format!("iif {iif} ");
        }
        if let Some(mark) = s.mark {
            text += &format!("mark {mark:x} ");
        }
        if let Some(from) = s.from {
            text += &format!("from {from} ");
        }
        if let Some(to) = s.to {
            text += &format!("to {to} ");
        }
        format!("{text}{action:?}")
    })
    .collect()
}

#[test]
fn every_class_of_rules_stands_at_its_priority() {
    let list = rules(&state(), &BTreeSet::from([(true, "eth0".to_owned())]));
    assert_eq!(at(&list, true, 0), ["mark f5000000 Table(254)"]);
    assert_eq!(at(&list, true, 10), ["iif mesh0 mark 50000000 Table(254)"]);
    assert_eq!(at(&list, true, 11), ["iif mesh0 Table(5502)", "iif mesh1 Table(5505)"]);
    assert_eq!(
        at(&list, true, 20),
        ["mark 50000000 to 203.0.113.16/29 Table(5502)", "iif br.blue mark 51000000 Table(254)"]
    );
    assert_eq!(at(&list, true, 21), ["mark 50000000 Table(5501)", "mark 51000000 Table(5504)"]);
    assert_eq!(at(&list, false, 22), ["iif lo mark 51000000 Table(254)"]);
    assert_eq!(at(&list, false, 23), ["mark 51000000 Table(5505)"]);
    assert_eq!(
        at(&list, true, 30),
        [
            "iif vmnet1 from 192.168.100.0/24 Table(5501)",
            "iif vmnet1 from 203.0.113.14/32 Table(5501)",
            "iif vmnet1 from 203.0.113.16/29 Table(5501)",
            "iif br.blue from 10.88.1.0/24 Table(5504)",
        ]
    );
    assert_eq!(
        at(&list, true, 31),
        ["iif vmnet1 from 203.0.113.14/32 Table(5500)", "iif vmnet1 from 203.0.113.14/32 Table(254)"]
    );
    assert!(at(&list, true, 32).contains(&"iif vmnet1 from 203.0.113.16/29 Table(5503)".to_owned()));
    for out in list.iter().filter(|rule| rule.action == Action::Table(5503)) {
        let same: Vec<_> = list.iter().filter(|rule| rule.selector == out.selector).collect();
        assert_eq!(
            same.last().unwrap().action,
            Action::Unreachable,
            "what nobody carries ends here: {out:?}"
        );
    }
    assert_eq!(at(&list, true, 33), ["iif vmnet1 Prohibit", "iif br.blue Prohibit"]);
    assert_eq!(at(&list, false, 33), ["iif br.blue Prohibit"], "a network without IPv6 leaves it alone");
    assert_eq!(at(&list, true, 38)[0], "iif lo from 192.168.100.1/32 Goto(5540)");
    assert!(at(&list, true, 40).contains(&"to 203.0.113.16/29 Table(5502)".to_owned()));
    assert_eq!(at(&list, true, 52)[0], "iif lo from 0.0.0.0/32 Table(5501)");
    assert_eq!(at(&list, true, 59), ["iif eth0 Blackhole"]);
    assert_eq!(at(&list, false, 51), ["iif lo from ::/1 Goto(5560)", "iif lo from 8000::/1 Goto(5560)"]);
    assert_eq!(at(&list, false, 52), ["iif lo Table(5504)"]);
    assert_eq!(
        (at(&list, true, 60).len(), at(&list, false, 60).len(), at(&list, false, 59).len()),
        (0, 1, 0)
    );
}

#[test]
fn a_host_without_ipv6_in_any_network_gets_no_ipv6_rules_and_routes() {
    let mut state = state();
    state.networks.truncate(1);
    assert!(rules(&state, &BTreeSet::new()).iter().all(|rule| rule.selector.v4));
    assert!(routes(&state).iter().all(|route| route.prefix.is_v4()));
    assert!(sysctls(&state).iter().all(|sysctl| sysctl.path[1] == "ipv4"));
}

#[test]
fn each_way_into_the_mesh_has_a_refusal_beneath() {
    let list = routes(&state());
    let find = |table: u32, prefix: &str| -> Vec<RouteKind> {
        let here = list.iter().filter(|route| route.table == table && route.prefix == p(prefix));
        here.map(|route| route.kind.clone()).collect()
    };
    let sent = |dev: &str, via: Option<&str>, src: &str, mtu| RouteKind::Unicast {
        dev: dev.into(),
        via: via.map(|via| via.parse().unwrap()),
        src: Some(src.parse().unwrap()),
        mtu,
    };
    let gw = "192.168.100.1";
    assert_eq!(find(5501, "10.77.2.0/24"), [sent("mesh0", None, gw, Some(1380)), RouteKind::Unreachable]);
    assert_eq!(find(5501, "10.77.3.0/24"), [RouteKind::Unreachable]);
    assert_eq!(find(5501, "192.168.100.0/24"), [sent("vmnet1", None, gw, None)]);
    assert_eq!(find(5502, "203.0.113.14/32"), [sent("vmnet1", None, gw, None)]);
    assert_eq!(find(5502, "203.0.113.16/29"), [sent("vmnet1", Some("192.168.100.14"), gw, None)]);
    assert_eq!(find(5503, "0.0.0.0/0"), [sent("mesh0", None, gw, Some(1380)), RouteKind::Throw]);
    assert_eq!(find(5506, "0.0.0.0/0"), [RouteKind::Throw]);
    assert_eq!(find(5500, "10.88.1.0/24"), [RouteKind::Unreachable]);
    // Untranslated: the segment wins over the tunnel. And no IPv6 route has less than 1280.
    assert_eq!(find(5504, "10.88.1.0/24")[0], sent("br.blue", None, "10.88.1.1", None));
    assert_eq!(find(5504, "fd88:2::/64")[0], sent("mesh1", None, "fd88:1::1", Some(1280)));
}

#[test]
fn the_ruleset_holds_marks_clamps_guards_and_nat() {
    let text = ruleset(&state());
    for line in [
        "set mesh4 { type ipv4_addr; flags interval; auto-merge; elements = { 10.77.1.0/24, 10.77.2.0/24, 10.77.3.0/24, 10.88.1.0/24 }; }",
        "ct direction reply ct mark & 0xff000000 == 0x50000000 meta mark set meta mark & 0x00ffffff | 0x50000000",
        "iifname \"mesh0\" ct direction original ip daddr != { 192.168.100.0/24, 203.0.113.14/32, 203.0.113.16/29 } meta mark",
        "ip daddr != @all4 meta mark set meta mark & 0x00ffffff | 0x51000000",
        "oifname \"mesh1\" tcp flags syn tcp option maxseg size set rt mtu",
        "oifname \"mesh1\" ip6 daddr { fd88:1::/64, fd88:2::/64 } tcp flags syn tcp option maxseg size set 1140",
        "iifname \"mesh1\" ip6 saddr { fd88:1::/64, fd88:2::/64 } tcp flags syn tcp option maxseg size set 1140",
        "iifname \"eth0\" ip saddr @mesh4 counter name spoofed drop",
        "iifname \"mesh0\" tcp dport 22 accept",
        "iifname \"mesh0\" counter name refused drop",
        "oifname \"br.blue\" icmp type redirect counter name redirects drop",
        "oifname \"eth0\" meta nfproto ipv4 meta mark & 0xff000000 == 0x50000000 snat ip to 198.51.100.11",
        "0x51000000 masquerade",
        "oifname \"mesh0\" meta nfproto ipv4 snat ip to ip saddr",
    ] {
        assert!(text.contains(line), "{line}\nis not in\n{text}");
    }
    assert!(!text.contains("203.0.113.14, "), "announced prefixes are not guarded against:\n{text}");
}

#[test]
fn what_is_carried_for_others_needs_a_lease_and_nothing_else_does() {
    let mut state = state();
    let text = ruleset(&state);
    for line in [
        "set lease { type mark; flags dynamic,timeout; size 256; elements = { 0x50000000 timeout 187ms }; }",
        "meta mark { 0x50000000 } meta mark @lease update @lease { meta mark timeout 187ms } drop",
        "iifname \"mesh0\" meta mark & 0xff000000 == 0x50000000 meta mark & 0xff000000 != @lease counter name no_lease drop",
        "oifname \"mesh0\" meta mark & 0xff000000 == 0x50000000 meta mark & 0xff000000 != @lease counter name no_lease drop",
    ] {
        assert!(text.contains(line), "{line}\nis not in\n{text}");
    }
    assert_eq!(
        text.matches("counter name no_lease").count(),
        2,
        "blue leaves for its own VMs alone:\n{text}"
    );
    state.networks[0].offer = None;
    let text = ruleset(&state);
    assert!(!text.contains("@lease") && state.lease().marks.is_empty(), "{text}");
}

#[test]
fn the_uplink_forwards_only_where_something_needs_it() {
    let mut state = state();
    let up = |state: &HostState| sysctls(state).iter().filter(|s| s.path[3] == "eth0").count();
    assert_eq!(up(&state), 3, "IPv4 forwarding, src_valid_mark, IPv6 force_forwarding");
    assert_eq!(state.proxy_neighbours().len(), 1);
    state.networks[0].offer = None;
    state.networks[0].announced.clear();
    state.networks[1].out = HostOut::None;
    assert_eq!(up(&state), 0);
    assert!(state.proxy_neighbours().is_empty());
}

#[test]
fn a_forward_policy_of_drop_is_named_unless_it_lets_us_pass() {
    let listing = |rules: &str| -> serde_json::Value {
        let chain =
            r#"{"chain":{"family":"inet","table":"fw","name":"fwd","hook":"forward","policy":"drop"}}"#;
        serde_json::from_str(&format!(r#"{{"nftables":[{chain}{rules}]}}"#)).unwrap()
    };
    let rule = |expr: &str, comment: &str| {
        format!(
            r#",{{"rule":{{"family":"inet","table":"fw","chain":"fwd","handle":7,"comment":"{comment}","expr":[{expr},{{"accept":null}}]}}}}"#
        )
    };
    let device = |key: &str, name: &str| {
        format!(r#"{{"match":{{"op":"==","left":{{"meta":{{"key":"{key}"}}}},"right":"{name}"}}}}"#)
    };
    let mut state = state();
    state.networks.truncate(1);
    let found = foreign_chains(&listing(""), &state);
    assert_eq!(found.len(), 1);
    assert_eq!(
        found[0].command(),
        "nft 'insert rule inet fw fwd iifname \"mesh0\" accept comment \"mesh-node\"; \
         insert rule inet fw fwd oifname \"mesh0\" accept comment \"mesh-node\"'"
    );
    let established =
        r#"{"match":{"op":"in","left":{"ct":{"key":"state"}},"right":["established","related"]}}"#;
    let only_replies = listing(&rule(established, ""));
    assert_eq!(foreign_chains(&only_replies, &state).len(), 1);
    let map = r#",{"rule":{"family":"inet","table":"fw","chain":"fwd","expr":[{"vmap":{"key":{"ct":{"key":"state"}},
        "data":{"set":[["established",{"accept":null}],["invalid",{"drop":null}]]}}}]}}"#;
    assert_eq!(foreign_chains(&listing(map), &state).len(), 1);
    assert!(foreign_chains(&listing(&map.replace("established", "new")), &state).is_empty());
    assert_eq!(foreign_chains(&listing(&rule(r#"{"xt":null}"#, "")), &state).len(), 1);
    let one_way = listing(&rule(&device("iifname", "mesh0"), ""));
    assert_eq!(foreign_chains(&one_way, &state).len(), 1);
    let both = listing(
        &(rule(&device("iifname", "mesh*"), "mesh-node") + &rule(&device("oifname", "mesh0"), "mesh-node")),
    );
    assert!(foreign_chains(&both, &state).is_empty());
    assert_eq!(inserted_rules(&both), ["delete rule inet fw fwd handle 7"; 2]);
}

#[test]
fn a_network_that_goes_or_comes_last_leaves_the_rules_of_the_others_alone() {
    let both = state();
    let mut one = both.clone();
    one.networks.truncate(1);
    let rules = |state| rules(state, &BTreeSet::new());
    let of_one = rules(&one);
    let (remove, add) = rule_changes(&of_one, &rules(&both));
    assert!(!remove.is_empty() && remove.iter().all(|rule| !of_one.contains(rule)), "{remove:?}");
    assert_eq!(add, []);
    let (remove, add) = rule_changes(&rules(&both), &of_one);
    assert_eq!(remove, []);
    assert!(!add.is_empty() && add.iter().all(|rule| !of_one.contains(rule)), "{add:?}");
}

fn forward_chain(policy: &str, rules: &[serde_json::Value]) -> serde_json::Value {
    use serde_json::json;
    let chain = json!({ "chain": { "family": "inet", "table": "fw", "name": "fwd", "hook": "forward", "policy": policy } });
    let rules = rules
        .iter()
        .map(|expr| json!({ "rule": { "family": "inet", "table": "fw", "chain": "fwd", "expr": expr } }));
    json!({ "nftables": std::iter::once(chain).chain(rules).collect::<Vec<_>>() })
}

#[test]
fn a_chain_that_may_let_us_pass_by_a_set_with_a_name_is_not_accused() {
    use serde_json::json;
    let mut state = state();
    state.networks.truncate(1);
    let device =
        json!({ "match": { "op": "==", "left": { "meta": { "key": "iifname" } }, "right": "@lan" } });
    let by_device = forward_chain("drop", &[json!([device, { "accept": null }])]);
    assert_eq!(foreign_chains(&by_device, &state), []);
    let by_state = json!([{ "vmap": { "key": { "ct": { "key": "state" } }, "data": "@states" } }]);
    assert_eq!(foreign_chains(&forward_chain("drop", &[by_state]), &state), []);
}

#[test]
fn a_chain_that_drops_only_what_leaves_by_the_egress_is_named() {
    use serde_json::json;
    let mut state = state();
    state.networks.truncate(1);
    let network = &state.networks[0];
    let uplink = network.offer.as_ref().and_then(|o| o.interface.clone()).unwrap();
    let device = |key: &str, name: &str| json!({ "match": { "op": "==", "left": { "meta": { "key": key } }, "right": name } });
    let way = |iif: &str, oif: &str, verdict: &str| json!([device("iifname", iif), device("oifname", oif), { verdict: null }]);
    let (segment, tun) = (network.segment.clone(), network.tun.clone());
    let rules = [way(&segment, &tun, "accept"), way(&tun, &segment, "accept")];
    let found = foreign_chains(&forward_chain("drop", &rules), &state);
    assert_eq!(found.iter().map(|c| c.tun.as_str()).collect::<Vec<_>>(), [tun.as_str()]);
    let refused = forward_chain("accept", &[way(&tun, &uplink, "drop")]);
    assert_eq!(foreign_chains(&refused, &state).len(), 1);
    state.networks[0].offer = None;
    assert_eq!(foreign_chains(&refused, &state), []);
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let any_action = prop_oneof![
        (0u32..3).prop_map(Action::Table),
        prop::sample::select(vec![Action::Nop, Action::Prohibit, Action::Unreachable]),
    ];
    (0u32..3, any::<bool>(), any_action).prop_map(|(priority, v4, action)| Rule {
        selector: Selector { priority, v4, iif: None, mark: None, from: None, to: None },
        action,
    })
}

fn any_route() -> impl Strategy<Value = Route> {
    (0u32..3, 0u8..3, prop::option::of(1280u32..1283)).prop_map(|(table, len, mtu)| Route {
        table,
        prefix: Prefix::covering("0.0.0.0".parse().unwrap(), len).unwrap(),
        kind: match mtu {
            None => RouteKind::Unreachable,
            mtu => RouteKind::Unicast { dev: "t".into(), via: None, src: None, mtu },
        },
    })
}

/// What the kernel holds: of equal rules one, in order of appending within a priority.
fn held(rules: Vec<Rule>) -> Vec<Rule> {
    let mut list: Vec<Rule> = Vec::new();
    for rule in rules {
        if !list.contains(&rule) {
            list.push(rule);
        }
    }
    list.sort_by_key(|rule| (rule.selector.v4, rule.selector.priority));
    list
}

proptest! {
    #[test]
    fn rule_changes_make_of_any_rules_the_wanted_ones(
        desired in prop::collection::vec(any_rule(), 0..12),
        actual in prop::collection::vec(any_rule(), 0..12),
    ) {
        let (desired, mut actual) = (held(desired), held(actual));
        let (remove, add) = rule_changes(&desired, &actual);
        actual.retain(|rule| !remove.contains(rule));
        actual.extend(add);
        let actual = held(actual);
        prop_assert_eq!(rule_changes(&desired, &actual), (vec![], vec![]));
        prop_assert_eq!(actual, desired);
    }

    #[test]
    fn route_changes_make_of_any_routes_the_wanted_ones(
        desired in prop::collection::vec(any_route(), 0..12),
        actual in prop::collection::vec(any_route(), 0..12),
    ) {
        let map = |routes: Vec<Route>| -> std::collections::BTreeMap<_, _> {
            routes.into_iter().map(|route| (route.key(), route)).collect()
        };
        let (desired, mut actual) = (map(desired), map(actual));
        let values = |map: &std::collections::BTreeMap<_, Route>| map.values().cloned().collect::<Vec<_>>();
        let (install, remove) = route_changes(&values(&desired), &values(&actual));
        for route in remove {
            actual.remove(&route.key());
        }
        actual.extend(map(install));
        prop_assert_eq!(actual, desired);
    }
}

#[test]
fn a_destination_with_nobody_is_refused_whoever_carries_a_shorter_one() {
    let mut state = state();
    let (narrow, wide) = (p("198.18.0.0/15"), Prefix::default_route(true));
    let kinds = |state: &HostState| {
        let out = routes(state).into_iter().filter(|route| route.table == 5503);
        let out = out.filter(|route| [narrow, wide].contains(&route.prefix));
        out.map(|route| (route.prefix, route.kind == RouteKind::Throw)).collect::<Vec<_>>()
    };
    state.networks[0].out = HostOut::Tunnel { destinations: vec![(wide, Some(1380)), (narrow, None)] };
    let mut all = kinds(&state);
    all.sort();
    assert_eq!(all, [(wide, false), (wide, true), (narrow, true)]);
    let text = ruleset(&state);
    assert!(text.contains("jump closed0"), "{text}");
    assert!(
        text.contains(
            "\t\tip daddr 198.18.0.0/15 counter name no_egress return\n\t\tip daddr 0.0.0.0/0 return\n"
        ),
        "{text}"
    );
    // and the other way round
    state.networks[0].out = HostOut::Tunnel { destinations: vec![(narrow, Some(1380)), (wide, None)] };
    let mut all = kinds(&state);
    all.sort();
    assert_eq!(all, [(wide, true), (narrow, false)]);
    let text = ruleset(&state);
    assert!(
        text.contains(
            "\t\tip daddr 198.18.0.0/15 return\n\t\tip daddr 0.0.0.0/0 counter name no_egress return\n"
        ),
        "{text}"
    );
    state.networks[0].out = HostOut::Tunnel { destinations: vec![(wide, Some(1380))] };
    assert!(!ruleset(&state).contains("closed0"), "nothing is refused");
}
