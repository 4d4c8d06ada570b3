//! The kernel of a namespace of its own is brought to a state of two networks, disturbed, repaired and left as found.
//! Needs root; elsewhere the test says so and passes. The test runs itself again inside the namespace.

use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use mesh_node::control::host::lease::without_elements;
use mesh_node::control::host::{
    HostAnnounced, HostEgress, HostNetwork, HostOut, HostState, MeshRoute, UNDERLAY_MARK, egress_mark,
};
use mesh_node::forward::fib::Expose;
use mesh_node::io::host::{HostSync, conntrack, links, routes, watch};
use mesh_proto::Prefix;

const INSIDE: &str = "MESH_TEST_HOST_STATE_INSIDE";

/// Runs a program; its output on success.
fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).stdin(Stdio::null()).output().expect("sh runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {error}");
    String::from_utf8(output.stdout).expect("text")
}

struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

#[test]
fn kernel_state_is_applied_repaired_and_removed_without_a_trace() {
    if let Ok(names) = std::env::var(INSIDE) {
        let (out, vm) = names.split_once(' ').expect("two names");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        return runtime.expect("runtime").block_on(async {
            let limit = Duration::from_secs(60);
            tokio::time::timeout(limit, inside(out, vm)).await.expect("done within a minute");
        });
    }
    if run("id -u").trim() != "0" {
        eprintln!("skipped: needs root to make a network namespace");
        return;
    }
    // This host, what is beyond its uplink, and a VM.
    let [namespace, outside, vm] = ["", "-out", "-vm"].map(|part| {
        let name = format!("mesh-host-{}{part}", std::process::id());
        run(&format!("ip netns add {name}"));
        Namespace(name)
    });
    let test = std::env::current_exe().expect("own path");
    let status = Command::new("ip")
        .args(["netns", "exec", &namespace.0])
        .arg(test)
        .args(["--exact", "kernel_state_is_applied_repaired_and_removed_without_a_trace", "--nocapture"])
        .env(INSIDE, format!("{} {}", outside.0, vm.0))
        .status()
        .expect("ip runs");
    assert!(status.success());
}

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn state() -> HostState {
    let route = |prefix: &str, mtu, mesh| MeshRoute { prefix: prefix.parse().expect("prefix"), mtu, mesh };
    let announced = |prefix: &str, via: Option<&str>| HostAnnounced {
        prefix: prefix.parse().expect("prefix"),
        via: via.map(address),
        internet_own: true,
    };
    let subnet = |prefix: &str, gateway: &str| (prefix.parse().expect("prefix"), address(gateway));
    HostState {
        networks: vec![
            HostNetwork {
                slot: 0,
                name: "default".parse().expect("name"),
                tun: "mesh0".into(),
                segment: "vmnet1".into(),
                subnets: vec![subnet("192.168.100.0/24", "192.168.100.1"), subnet("fd64::/64", "fd64::1")],
                announced: vec![
                    announced("203.0.113.14/32", None),
                    announced("203.0.113.144/29", Some("192.168.100.14")),
                    announced("2001:db8::14/128", None),
                ],
                routes: vec![
                    route("10.77.1.0/24", Some(1400), true),
                    route("10.77.2.0/24", Some(1380), true),
                    route("10.77.3.0/24", None, true),
                    route("fd77:1::/64", Some(1400), true),
                    route("fd77:2::/64", Some(1380), true),
                    route("203.0.113.14/32", Some(1400), false),
                    route("203.0.113.144/29", Some(1400), false),
                    route("2001:db8::14/128", Some(1400), false),
                ],
                out: HostOut::Tunnel {
                    destinations: vec![
                        (Prefix::default_route(true), Some(1380)),
                        (Prefix::default_route(false), Some(1380)),
                        (prefix("198.18.0.0/15"), None),
                        (prefix("2001:db8:7::/48"), None),
                    ],
                },
                offer: Some(HostEgress {
                    interface: Some("eth0".into()),
                    snat: vec![address("203.0.113.1"), address("2001:db8::1")],
                }),
                fallback: None,
                own: Default::default(),
                expose: vec![Expose::Icmp, Expose::Tcp(22), Expose::Udp(53)],
            },
            HostNetwork {
                slot: 1,
                name: "blue".parse().expect("name"),
                tun: "mesh1".into(),
                segment: "br.blue".into(),
                subnets: vec![subnet("10.88.1.0/24", "10.88.1.1")],
                announced: vec![],
                routes: vec![
                    route("10.88.1.0/24", Some(1400), true),
                    route("10.88.2.0/24", Some(1400), true),
                ],
                out: HostOut::Local(HostEgress { interface: None, snat: vec![] }),
                offer: None,
                fallback: None,
                own: Default::default(),
                expose: vec![Expose::All],
            },
        ],
        uplinks: vec!["eth0".into()],
        connected: vec![
            ("eth0".into(), "203.0.113.0/24".parse().expect("prefix")),
            ("eth0".into(), "2001:db8::/64".parse().expect("prefix")),
        ],
        foreign_chains: Default::default(),
        lease_term: Default::default(),
        tun_mtu: 1500,
    }
}

/// All that could be left behind. Neighbours of the kernel's own making are none of it.
fn snapshot() -> String {
    // Of rules with one priority only those of one selector have an order that means anything.
    let mut rules: Vec<String> =
        ["ip -4 rule", "ip -6 rule"].map(run).iter().flat_map(|t| t.lines()).map(str::to_owned).collect();
    rules.sort_by(|a, b| a.split(" lookup ").next().cmp(&b.split(" lookup ").next()));
    let rest = run("ip -4 route show table all; ip -6 route show table all; nft -s list ruleset; \
         ip neigh show proxy; cd /proc/sys/net; \
         grep -r . ipv4/conf/*/forwarding ipv4/conf/*/src_valid_mark ipv6/conf/*/force_forwarding \
         ipv6/conf/*/forwarding ipv6/conf/*/proxy_ndp ipv6/conf/*/accept_ra ipv4/ip_forward");
    // nobody renews a lease here: it runs out
    format!("{}\n{}", rules.join("\n"), without_elements(&rest))
}

/// Shows the lines that only one has.
fn assert_same(now: &str, then: &str, when: &str) {
    let only = |a: &str, b: &str| -> Vec<String> {
        a.lines().filter(|line| !b.lines().any(|other| other == *line)).map(str::to_owned).collect()
    };
    assert!(now == then, "{when}\nmore: {:#?}\nless: {:#?}", only(now, then), only(then, now));
}

fn assert_has(text: &str, wanted: &[&str]) {
    // The tools leave blanks at the end and pad within.
    let squeezed: Vec<String> =
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for line in wanted {
        assert!(squeezed.iter().any(|have| have.starts_with(line)), "{line}\nis not in\n{text}");
    }
}

/// Beyond the uplink: a gateway that is also a host of the Internet and one of a private network. A VM with a private
/// and an announced address on the first segment, and one on the second.
fn build_neighbours(out: &str, vm: &str) {
    run(&format!(
        "ip link set far netns {out}; ip -n {out} link set far up; ip -n {out} link set lo up
         ip -n {out} addr add 203.0.113.254/24 dev far; ip -n {out} addr add 2001:db8::fe/64 dev far nodad
         ip -n {out} addr add 192.0.2.1/32 dev lo; ip -n {out} addr add 172.20.0.1/32 dev lo
         ip -n {out} route add 192.168.100.0/24 via 203.0.113.1
         ip link add v1 type veth peer name e1 netns {vm} && ip link set v1 master vmnet1 up
         ip link add v2 type veth peer name e2 netns {vm} && ip link set v2 master br.blue up
         ip -n {vm} link set lo up; ip -n {vm} link set e1 up; ip -n {vm} link set e2 up
         ip -n {vm} addr add 192.168.100.2/24 dev e1; ip -n {vm} addr add 203.0.113.14/32 dev e1
         ip -n {vm} addr add 2001:db8::14/128 dev e1 nodad; ip -n {vm} addr add fd64::2/64 dev e1 nodad
         ip -n {vm} -6 route add default via fd64::1 src 2001:db8::14
         ip -n {vm} addr add 10.88.1.2/24 dev e2; ip -n {vm} addr add 172.31.9.9/32 dev e2
         ip -n {vm} route add default via 192.168.100.1 table 10
         ip -n {vm} route add default via 10.88.1.1 table 20
         ip -n {vm} rule add from 192.168.100.2 table 10; ip -n {vm} rule add from 203.0.113.14 table 10
         ip -n {vm} rule add from 10.88.1.2 table 20; ip -n {vm} rule add from 172.31.9.9 table 20"
    ));
}

/// What passes and what does not, with the strictest reverse-path filter.
fn traffic(out: &str, vm: &str) {
    run("for d in all eth0 vmnet1 br.blue; do echo 1 > /proc/sys/net/ipv4/conf/$d/rp_filter; done");
    let ping = |ns: &str, options: &str| {
        run(&format!("ip netns exec {ns} ping -c 2 -i 0.2 -W 1 {options} 2>&1; true"))
    };
    let passes = |ns: &str, options: &str| {
        let answer = ping(ns, options);
        assert!(answer.contains("bytes from"), "{options}: {answer}");
    };
    let refused = |ns: &str, options: &str, how: &str| {
        let answer = ping(ns, options);
        assert!(!answer.contains("bytes from") && answer.contains(how), "{options}: {answer}");
    };
    // An announced address, both ways, by the host's own uplink.
    passes(vm, "-I 203.0.113.14 192.0.2.1");
    passes(out, "203.0.113.14");
    passes(out, "2001:db8::14");
    // "local": masqueraded, but not into private networks.
    passes(vm, "-I 10.88.1.2 192.0.2.1");
    refused(vm, "-I 10.88.1.2 172.20.0.1", "Destination Net Unreachable");
    // A destination whose egress node is gone.
    refused(vm, "-I 192.168.100.2 198.18.0.1", "Destination Net Unreachable");
    refused(vm, "-I fd64::2 2001:db8:7::1", "No route");
    // Neither forged, nor from one segment into the other, nor into a segment from the uplink.
    refused(vm, "-I 172.31.9.9 192.0.2.1", "");
    refused(vm, "-I 203.0.113.14 10.88.1.3", "Destination Host Unreachable");
    refused(out, "192.168.100.2", "");
    // A mesh prefix whose owner is gone.
    refused(vm, "-I 192.168.100.2 10.77.3.1", "Destination Host Unreachable");
    // The host itself.
    passes(vm, "-I 192.168.100.2 192.168.100.1");
    assert!(run("ping -c 1 -W 1 192.168.100.2").contains("bytes from"));
    assert!(run("ping -c 1 -W 1 192.0.2.1").contains("bytes from"));
}

async fn inside(out: &str, vm: &str) {
    run("ip link set lo up
         ip link add eth0 type veth peer name far && ip link set eth0 up
         ip addr add 203.0.113.1/24 dev eth0 && ip addr add 2001:db8::1/64 dev eth0 nodad
         ip route add default via 203.0.113.254 && ip route add default via 2001:db8::fe
         for b in vmnet1 br.blue; do
           ip link add $b type bridge && ip link set $b up
         done
         ip addr add 192.168.100.1/24 dev vmnet1 && ip addr add fd64::1/64 dev vmnet1 nodad
         ip addr add 10.88.1.1/24 dev br.blue
         ip tuntap add mesh0 mode tun && ip tuntap add mesh1 mode tun
         echo 1 > /proc/sys/net/ipv6/conf/mesh0/addr_gen_mode
         echo 1 > /proc/sys/net/ipv6/conf/mesh1/addr_gen_mode
         ip link set mesh0 up && ip link set mesh1 up");
    build_neighbours(out, vm);
    // The kernel's own routes of new links come a little later.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = snapshot();
    let directory = tempfile::tempdir().expect("directory");
    let mut host = HostSync::open(directory.path()).await.expect("open");
    assert_eq!(host.clean_leftovers().await.expect("clean"), Vec::<String>::new());
    let state = state();
    assert_eq!(host.apply(&state).await.expect("apply"), Vec::<String>::new());
    applied(directory.path());
    looked_up(&host).await;
    traffic(out, vm);
    tracked_connections_go_by_mark().await;

    let settled = snapshot();
    assert_eq!(host.apply(&state).await.expect("again"), Vec::<String>::new());
    assert_same(&snapshot(), &settled, "a second time changes nothing");
    repaired(&mut host, &state, &settled).await;
    foreign(&mut host, &state).await;

    // A killed run: another takes its place.
    drop(host);
    let mut host = HostSync::open(directory.path()).await.expect("open");
    assert!(!host.clean_leftovers().await.expect("clean").is_empty());
    assert_same(&snapshot(), &before, "nothing is left of a killed run");
    host.apply(&state).await.expect("apply");
    assert_same(&snapshot(), &settled, "applied anew");

    // An uplink nobody needs is closed again.
    let mut quiet = state.clone();
    quiet.networks[0].offer = None;
    quiet.networks[0].announced.clear();
    quiet.networks[1].out = HostOut::None;
    host.apply(&quiet).await.expect("apply");
    assert_eq!(run("cat /proc/sys/net/ipv4/conf/eth0/forwarding").trim(), "0");
    assert!(!run("ip rule").contains("blackhole"));
    host.apply(&state).await.expect("apply");

    host.remove_all(true).await.expect("block");
    let routes = run("ip route show table 5501");
    assert!(routes.contains("unreachable 10.77.2.0/24") && !routes.contains("mesh0"), "{routes}");
    host.remove_all(false).await.expect("remove");
    assert_same(&snapshot(), &before, "removed");
    assert!(!directory.path().join("sysctl.json").exists());
}

fn applied(state_dir: &Path) {
    let rules = run("ip rule");
    let (mark, underlay) = (egress_mark(0), UNDERLAY_MARK);
    assert_has(
        &rules,
        &[
            &format!("5500: from all fwmark {underlay:#x}/0xff000000 lookup main proto 171"),
            &format!("5510: from all fwmark {mark:#x}/0xff000000 iif mesh0 lookup main"),
            "5511: from all iif mesh1 lookup 5505",
            "5520: from all fwmark 0x51000000/0xff000000 iif br.blue lookup main",
            "5531: from 203.0.113.14 iif vmnet1 lookup 5500",
            "5532: from 192.168.100.0/24 iif vmnet1 lookup 5503",
            "5532: from 192.168.100.0/24 iif vmnet1 unreachable",
            "5533: from all iif vmnet1 prohibit",
            "5539: from 192.168.100.0/24 iif lo unreachable",
            "5538: from 192.168.100.1 iif lo goto 5540",
            "5540: from all nop",
            "5552: from 0.0.0.0 iif lo lookup 5501",
            "5559: from all iif eth0 blackhole",
        ],
    );
    assert!(!rules.contains("unresolved"), "{rules}");
    let rules = run("ip -6 rule");
    assert_has(
        &rules,
        &["5551: from ::/1 iif lo goto 5560", "5552: from all iif lo lookup 5501", "5560: from all nop"],
    );
    assert!(!rules.contains("unresolved"), "{rules}");
    assert_has(
        &run("ip route show table all"),
        &[
            "10.77.2.0/24 dev mesh0 table 5501 proto 171 scope link src 192.168.100.1 metric 1024 mtu 1380",
            "10.77.2.0/24 dev mesh0 table 5501 proto 171 scope link src 192.168.100.1 metric 1024 linkdown mtu 1380",
        ][usize::from(run("ip route show table 5501").contains("linkdown"))..][..1],
    );
    assert_has(&run("ip route show table 5501"), &["unreachable 10.77.3.0/24 proto 171 metric 4278198272"]);
    assert_has(&run("ip route show table 5502"), &["203.0.113.144/29 via 192.168.100.14 dev vmnet1"]);
    assert_has(&run("ip -6 route show table 5503"), &["throw default dev lo proto 171 metric 4278198272"]);
    assert_has(&run("ip neigh show proxy"), &["203.0.113.14 dev eth0 proxy", "2001:db8::14 dev eth0 proxy"]);
    let table = run("nft list table inet mesh");
    assert!(table.contains("snat ip to 203.0.113.1") && table.contains("masquerade"), "{table}");
    for device in ["mesh0", "vmnet1", "br.blue", "eth0"] {
        let value = std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{device}/forwarding"));
        assert_eq!(value.expect("sysctl").trim(), "1", "{device}");
    }
    assert!(state_dir.join("sysctl.json").exists());
}

async fn tracked_connections_go_by_mark() {
    // Not every kernel has this file.
    let tracked = || std::fs::read_to_string("/proc/net/nf_conntrack").unwrap_or_default();
    let count = |mark: u32| tracked().matches(&format!("mark={mark} ")).count();
    let before = count(egress_mark(1));
    assert!(before > 0 || tracked().is_empty(), "{}", tracked());
    conntrack::delete_marked(egress_mark(0)).await.expect("none of this mark");
    assert_eq!(count(egress_mark(1)), before);
    conntrack::delete_marked(egress_mark(1)).await.expect("those of the second network");
    assert_eq!(count(egress_mark(1)), 0);
}

async fn looked_up(host: &HostSync) {
    let found = links::interface_addresses(host.handle(), "vmnet1").await.expect("addresses");
    assert!(found.contains(&(address("192.168.100.1"), 24)) && found.contains(&(address("fd64::1"), 64)));
    let up = routes::default_uplink(host.handle(), true).await.expect("uplink");
    assert_eq!(up, Some(("eth0".to_owned(), Some(address("203.0.113.254")))));
    let up = routes::default_uplink(host.handle(), false).await.expect("uplink");
    assert_eq!(up.map(|(name, _)| name), Some("eth0".to_owned()));
}

async fn repaired(host: &mut HostSync, state: &HostState, settled: &str) {
    let (sender, mut changed) = tokio::sync::mpsc::channel(1);
    let watcher = tokio::spawn(watch::watch(sender));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let disturbances = [
        ("ip route flush table 5501", true),
        ("ip -6 route flush table 5501", true),
        // As a flush of everything does; the host's own rules are not ours to bring back.
        ("ip rule flush; ip rule add pref 32766 lookup main; ip rule add pref 32767 lookup default", true),
        ("ip rule del pref 5531 table 5500", true),
        ("ip route replace 10.77.2.0/24 dev mesh0 table 5501 proto 171 metric 1024 mtu 9000", true),
        ("nft flush ruleset", false),
        ("nft flush chain inet mesh post", false),
        ("echo 0 > /proc/sys/net/ipv4/conf/vmnet1/forwarding", false),
    ];
    for (disturbance, told) in disturbances {
        while changed.try_recv().is_ok() {}
        run(disturbance);
        if told {
            let second = Duration::from_secs(1);
            tokio::time::timeout(second, changed.recv()).await.expect(disturbance).expect("still watching");
        } else {
            tokio::time::sleep(Duration::from_millis(600)).await;
        }
        assert_eq!(host.apply(state).await.expect("repair").len(), 1, "{disturbance}");
        assert_same(&snapshot(), settled, disturbance);
    }
    // The device goes, its refusals answer; it comes back, so do its routes.
    run("ip link del mesh0");
    assert!(host.apply(state).await.is_err(), "an absent device is told");
    assert!(run("ip route get 10.77.2.1 2>&1; true").contains("No route to host"));
    run("ip tuntap add mesh0 mode tun");
    host.apply(state).await.expect("repair");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(run("ip -o addr show dev mesh0").is_empty(), "no link-local address");
    assert!(run("ip route show table 5501").contains("10.77.2.0/24 dev mesh0"));
    watcher.abort();
}

async fn foreign(host: &mut HostSync, state: &HostState) {
    assert!(host.foreign_chains(state).await.expect("chains").is_empty());
    run(
        "nft 'add table inet fw; add chain inet fw transit { type filter hook forward priority 0; policy drop; }; \
         add rule inet fw transit ct state established,related accept'",
    );
    let found = host.foreign_chains(state).await.expect("chains");
    assert_eq!(found.len(), 2, "{found:?}");
    host.insert_into_foreign(&found).await.expect("insert");
    assert!(host.foreign_chains(state).await.expect("chains").is_empty());
    run("nft delete table inet fw");
}
