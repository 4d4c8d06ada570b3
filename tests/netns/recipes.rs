//! What docs/recipes/ tells to type, typed: a VM with two network cards, and jails with addresses of their own inside a VM.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run in real time and fail by panic"
)]

use lab::command::{line, must};
use lab::world::{WEB4, wait_until};
use lab::{Lab, Plan};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(5);

/// The operator's NAT for the first card of VMs; the second one is in the mesh's bridge.
const NAT: &str = "table ip nat {\n chain post {\n  type nat hook postrouting priority srcnat; policy accept;\n  ip saddr 10.0.2.0/24 oifname \"eth0\" masquerade\n }\n}\n";

/// What libvirt has in its forward chain for a network without `<forward>`, on our bridge.
const ISOLATED: &str = "table ip filter {\n chain LIBVIRT_FWX {\n  iifname \"vmnet1\" oifname \"vmnet1\" counter accept\n }\n \
    chain LIBVIRT_FWI {\n  oifname \"vmnet1\" counter reject\n }\n chain LIBVIRT_FWO {\n  iifname \"vmnet1\" counter reject\n }\n \
    chain FORWARD {\n  type filter hook forward priority filter; policy accept;\n  counter jump LIBVIRT_FWX\n  \
    counter jump LIBVIRT_FWI\n  counter jump LIBVIRT_FWO\n }\n}\n";

/// The same for `<forward mode="nat"/>`, with its translation.
const NATTED: &str = "table ip filter {\n chain LIBVIRT_FWI {\n  oifname \"vmnet1\" ip daddr 192.168.100.0/24 ct state established,related counter accept\n  \
    oifname \"vmnet1\" counter reject\n }\n chain LIBVIRT_FWO {\n  iifname \"vmnet1\" ip saddr 192.168.100.0/24 counter accept\n  \
    iifname \"vmnet1\" counter reject\n }\n chain FORWARD {\n  type filter hook forward priority filter; policy accept;\n  \
    counter jump LIBVIRT_FWI\n  counter jump LIBVIRT_FWO\n }\n}\n\
    table ip nat {\n chain POSTROUTING {\n  type nat hook postrouting priority srcnat; policy accept;\n  \
    ip saddr 192.168.100.0/24 ip daddr != 192.168.100.0/24 counter masquerade\n }\n}\n";

/// Gives a VM of ph1 a second card, `nat0`, whose gateway ph1 itself translates, and the default route by it.
fn nat_card(lab: &Lab, vm: &str, address: &str) {
    let (host, ns) = (lab.ns("ph1"), lab.ns(vm));
    line(None, &format!("ip -n {host} link add n-{vm} type veth peer name nat0 netns {ns}")).unwrap();
    line(None, &format!("ip -n {host} link set n-{vm} master nat-br up")).unwrap();
    line(None, &format!("ip -n {ns} addr add {address} dev nat0")).unwrap();
    line(None, &format!("ip -n {ns} link set nat0 up")).unwrap();
    line(None, &format!("ip -n {ns} route replace default via 10.0.2.2 dev nat0")).unwrap();
    // as distributions have it: an answer has to leave by the card that the question came in by
    lab.exec(vm, &["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1"]).unwrap();
}

fn two_cards() -> Lab {
    let mut lab = Lab::build(Plan::standard("", 2).with("ph1", |host| host.ruleset(NAT))).unwrap();
    let bridge = "ip link add nat-br type bridge forward_delay 0 && ip addr add 10.0.2.2/24 dev nat-br && \
                  ip link set nat-br up && sysctl -qw net.ipv4.conf.nat-br.forwarding=1 net.ipv4.conf.eth0.forwarding=1";
    assert!(lab.sh("ph1", bridge).unwrap().ok());
    nat_card(&lab, "vm1", "10.0.2.15/24");
    nat_card(&lab, "pub1", "10.0.2.16/24");
    for host in ["ph1", "ph2"] {
        lab.start_node(host).unwrap();
    }
    lab.wait_connected(Duration::from_secs(10)).unwrap();
    for vm in ["vm1", "pub1", "vm2"] {
        lab.serve(vm).unwrap();
    }
    lab
}

fn seen(lab: &Lab, from: &str, to: &str, source: Option<&str>) -> String {
    lab.web(from, to, source).unwrap_or_else(|| "no answer".into())
}

#[test]
fn with_two_cards_mesh_traffic_takes_the_host_only_one_and_the_rest_the_other() {
    let mut lab = two_cards();
    assert_eq!(seen(&lab, "vm1", "10.77.2.10", None), "no answer", "without a route it takes the first card");
    lab.exec("vm1", &["ip", "route", "add", "10.77.0.0/16", "via", "192.168.100.1"]).unwrap();
    assert!(lab.ping_within(SOON, "vm1", "10.77.2.10"));
    // the source is the host-only card's address, by the mesh's name for it
    assert_eq!(seen(&lab, "vm1", "10.77.2.10", None), "10.77.1.10");
    assert_eq!(seen(&lab, "vm2", "10.77.1.10", None), "10.77.2.10", "and it can be asked");
    let wire = lab.capture("ph1", "vmnet1", &format!("host {WEB4}")).unwrap();
    assert_eq!(
        seen(&lab, "vm1", WEB4, None),
        "198.51.100.11",
        "the Internet by the host's NAT, not by the egress node"
    );
    assert_eq!(wire.stop().unwrap().lines.len(), 0, "nothing of it by the host-only card");
    // bound to the first card's address, a packet leaves by the second and is refused: the segment does not own it
    let wire = lab.capture("vm1", "nat0", "icmp[icmptype] == icmp-unreach and icmp[icmpcode] == 13").unwrap();
    assert_eq!(seen(&lab, "vm1", "10.77.2.10", Some("10.0.2.15")), "no answer");
    assert!(!wire.stop().unwrap().lines.is_empty(), "the host says that it is prohibited");
    // what the recipe says to look at
    let trace = lab.ctl("ph1", &["trace", "192.168.100.10", "10.77.2.10"]).unwrap();
    assert!(trace.ok() && trace.stdout.contains("10.77.1.10"), "{}", trace.text());
    let other = lab.ctl("ph1", &["trace", "10.0.2.15", "10.77.2.10"]).unwrap();
    assert_eq!(other.code, Some(1), "{}", other.text());
}

#[test]
fn a_public_address_on_the_second_card_answers_by_that_card() {
    let lab = two_cards();
    for route in ["10.77.0.0/16", "203.0.113.0/24"] {
        let add = ["ip", "route", "add", route, "via", "192.168.100.1", "src", "203.0.113.11"];
        assert!(lab.exec("pub1", &add).unwrap().ok());
    }
    assert!(lab.ping_within(SOON, "vm2", "203.0.113.11"), "the mesh is answered by the routes alone");
    assert_eq!(
        seen(&lab, "inet", "203.0.113.11", None),
        "no answer",
        "the answer would leave by the first card"
    );
    for rule in [
        "ip route add default via 192.168.100.1 dev eth0 table 100",
        "ip rule add from 203.0.113.11 lookup 100",
    ] {
        assert!(lab.sh("pub1", rule).unwrap().ok(), "{rule}");
    }
    assert_eq!(seen(&lab, "inet", "203.0.113.11", None), "192.0.2.80", "asked from the Internet");
    assert_eq!(
        seen(&lab, "pub1", WEB4, Some("203.0.113.11")),
        "203.0.113.11",
        "asking by its public address"
    );
    assert_eq!(seen(&lab, "pub1", WEB4, None), "198.51.100.11", "by default still by NAT");
    assert_eq!(seen(&lab, "pub1", "10.77.2.10", None), "203.0.113.11");
    assert_eq!(seen(&lab, "vm2", "203.0.113.11", None), "10.77.2.10");
}

#[test]
fn jails_are_reached_by_aliases_and_by_a_prefix_that_their_vm_routes() {
    let routed = "{ prefix = \"203.0.113.64/29\", via = \"192.168.100.14\" }";
    let plan = Plan::standard("", 2).with("ph2", |mut host| {
        host.nets[0].announce.extend(["203.0.113.41/32".into(), "203.0.113.42/32".into(), routed.into()]);
        host
    });
    let mut lab = Lab::start(plan).unwrap();
    // jails that share the VM's network stack: an alias each; one has an address of the local subnet
    for alias in ["203.0.113.41/32", "203.0.113.42/32", "192.168.100.50/32"] {
        lab.exec("pub2", &["ip", "addr", "add", alias, "dev", "eth0"]).unwrap();
    }
    // a jail with a network stack of its own, behind the VM, which routes
    let (vm, jail) = (lab.ns("pub2"), lab.ns("jail"));
    for text in [
        format!("ip netns add {jail}"),
        format!("ip -n {vm} link add epair0a type veth peer name epair0b netns {jail}"),
        format!("ip -n {vm} addr add 203.0.113.65/29 dev epair0a"),
        format!("ip -n {vm} link set epair0a up"),
        format!("ip -n {jail} addr add 203.0.113.66/29 dev epair0b"),
        format!("ip -n {jail} link set epair0b up"),
        format!("ip -n {jail} link set lo up"),
        format!("ip -n {jail} route add default via 203.0.113.65"),
    ] {
        line(None, &text).unwrap();
    }
    must(Some(&vm), &["sysctl", "-qw", "net.ipv4.ip_forward=1"]).unwrap();
    for name in ["pub2", "jail", "vm1"] {
        lab.serve(name).unwrap();
    }
    let wire = lab.capture("gw", "br0", "net 203.0.113.0/24 or net 10.77.0.0/16").unwrap();
    for to in ["203.0.113.41", "203.0.113.42", "203.0.113.66", "10.77.2.50"] {
        assert!(lab.ping_within(SOON, "vm1", to), "from another host to {to}");
        assert_eq!(seen(&lab, "vm1", to, None), "10.77.1.10", "{to}");
        assert!(lab.ping_within(SOON, "vm2", to), "from the same host to {to}");
    }
    // each speaks by its own address, as a jail that has only that one does
    for (from, source, seen_as) in [
        ("pub2", "203.0.113.41", "203.0.113.41"),
        ("pub2", "203.0.113.42", "203.0.113.42"),
        ("pub2", "192.168.100.50", "10.77.2.50"),
        ("jail", "203.0.113.66", "203.0.113.66"),
    ] {
        assert_eq!(seen(&lab, from, "10.77.1.10", Some(source)), seen_as, "{from} as {source}");
    }
    assert!(wire.stop().unwrap().lines.is_empty(), "none of it by the gateway");
    // what the recipe says to look at
    for address in ["203.0.113.41", "203.0.113.66"] {
        let route = lab.ctl("ph1", &["route", "get", address]).unwrap();
        assert!(
            route.ok() && route.stdout.contains("ph2") && route.stdout.contains("installed"),
            "{}",
            route.text()
        );
    }
    // an address that is announced and that no jail has: nobody answers, and the mesh still sends it there
    assert!(!wait_until(Duration::from_secs(1), || lab.ping("vm1", "203.0.113.67")));
    assert!(lab.ctl("ph1", &["route", "get", "203.0.113.67"]).unwrap().ok());
}

#[test]
fn the_rules_of_libvirt_networks_are_named_and_can_be_stepped_over() {
    for (rules, setting, passes) in [
        (ISOLATED, "report", false),
        (ISOLATED, "insert", true),
        (NATTED, "report", false),
        (NATTED, "insert", true),
    ] {
        let plan = Plan::standard("", 2)
            .with("ph1", |h| h.ruleset(rules).extra(&format!("foreign_chains = \"{setting}\"")));
        let mut lab = Lab::start(plan).unwrap();
        lab.serve("vm2").unwrap();
        let asked = lab.ping_within(SOON, "vm2", "10.77.1.10");
        let told = wait_until(2 * SOON, || {
            lab.ctl("ph1", &["status"])
                .is_ok_and(|s| s.ok() == passes && s.text().contains("FORWARD") != passes)
        });
        assert!(told, "{setting}: {}", lab.ctl("ph1", &["status"]).unwrap().text());
        assert_eq!(asked, passes, "{setting}: from another host\n{rules}");
        let out = passes || rules == NATTED;
        assert_eq!(lab.ping_within(SOON, "vm1", "10.77.2.10"), out, "{setting}: to another host\n{rules}");
        if out {
            assert_eq!(
                seen(&lab, "vm1", "10.77.2.10", None),
                "10.77.1.10",
                "not translated by libvirt's rule"
            );
        }
    }
}
