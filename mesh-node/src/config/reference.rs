//! Every key of the configuration file, as one table: the walker takes from it what it knows, a reload what it may apply,
//! and docs/configuration.md is written from it. What a value must look like is in `config.rs`.

/// What a reload does with a changed key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnReload {
    /// The running node goes on with the new value.
    Applied,
    /// The new value holds from the next start.
    Restart,
}

/// One key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// The table it stands in: `node`, `peer`, `network`, `egress`; `announce` for a table within that list.
    pub table: &'static str,
    /// Its name.
    pub key: &'static str,
    /// What TOML calls its type.
    pub toml_type: &'static str,
    /// What holds where it is not written, or `required`.
    pub default: &'static str,
    /// What it is for.
    pub meaning: &'static str,
    /// A value as it is written in the file.
    pub example: &'static str,
    /// What a reload does with it.
    pub on_reload: OnReload,
}

/// Default of a key that has to be written.
pub const REQUIRED: &str = "required";

const fn applied(
    table: &'static str,
    key: &'static str,
    toml_type: &'static str,
    default: &'static str,
    example: &'static str,
    meaning: &'static str,
) -> Key {
    Key { table, key, toml_type, default, meaning, example, on_reload: OnReload::Applied }
}

const fn restart(
    table: &'static str,
    key: &'static str,
    toml_type: &'static str,
    default: &'static str,
    example: &'static str,
    meaning: &'static str,
) -> Key {
    Key { table, key, toml_type, default, meaning, example, on_reload: OnReload::Restart }
}

/// All keys, by table, in the order of the documentation.
pub const KEYS: &[Key] = &[
    restart(
        "node",
        "listen",
        "string",
        r#""0.0.0.0:4650""#,
        r#""[::]:4650""#,
        "UDP address and port where peers reach this node; `[::]` listens on IPv4 and IPv6. Port 0 is refused: \
         peers could not find it.",
    ),
    applied(
        "node",
        "metrics",
        "string",
        r#""127.0.0.1:9650""#,
        r#""off""#,
        "TCP address where Prometheus scrapes `/metrics`; \"off\" to disable. It is neither encrypted nor guarded: \
         leave it on loopback or on a management address.",
    ),
    applied(
        "node",
        "ca",
        "string",
        r#""/etc/mesh/ca.pem""#,
        r#""/etc/mesh/ca.pem""#,
        "Certificates of the mesh's CA (PEM); several while the CA is being replaced.",
    ),
    applied(
        "node",
        "certificate",
        "string",
        r#""/etc/mesh/node.pem""#,
        r#""/etc/mesh/node.pem""#,
        "This node's certificate (PEM). It says the node's name and what it may announce.",
    ),
    applied(
        "node",
        "key",
        "string",
        r#""/etc/mesh/node.key""#,
        r#""/etc/mesh/node.key""#,
        "The private key of the certificate (PEM), mode 0600, owned by the node's user.",
    ),
    restart(
        "node",
        "state_dir",
        "string",
        r#""/var/lib/mesh""#,
        r#""/var/lib/mesh""#,
        "What is kept over restarts: peers added at run time, the last known records, who carried egress, former sysctl values. Made \
         if missing.",
    ),
    restart(
        "node",
        "control_socket",
        "string",
        r#""/run/mesh/node.sock""#,
        r#""/run/mesh/node.sock""#,
        "Unix socket where `mesh-ctl` asks; mode 0660, group `mesh` where there is one.",
    ),
    applied(
        "node",
        "advertise",
        "string or list of strings",
        "the listen address, or with a wildcard every global address that is no segment's",
        r#"["198.51.100.11:4650"]"#,
        "Endpoints told to other nodes, where they differ from what this host sees, as behind a static NAT. With several `workers` \
         that has to map the ports after it as well.",
    ),
    restart(
        "node",
        "keepalive",
        "string (duration)",
        r#""1s""#,
        r#""500ms""#,
        "How often a silent tunnel is probed, 100ms to 60s. A dead peer is seen within three of these.",
    ),
    applied(
        "node",
        "probe",
        "table",
        "{ interval = \"50ms\", multiplier = 3 }",
        r#"{ interval = "100ms", multiplier = 5 }"#,
        "How the egress nodes of this host's networks, standbys included, are probed beside the keep-alive. One that is \
         silent for `multiplier` intervals loses its role to a standby.",
    ),
    applied(
        "node",
        "mtu",
        "\"auto\" or integer",
        r#""auto""#,
        "1280",
        "The largest inner packet, 576 to 65000; \"auto\" takes what the path to each peer carries, up to what the interfaces \
         of the underlay do. Raise their MTU before the node starts: it is looked at then.",
    ),
    restart(
        "node",
        "transport",
        "string",
        r#""lanes""#,
        r#""datagram""#,
        "How packets travel: \"lanes\", the fast way, is packets of QUIC's shape with keys of their own, to peers that have \
         \"lanes\" too; \"datagram\", and the way to all others, is QUIC DATAGRAM frames (RFC 9221).",
    ),
    restart(
        "node",
        "lane_packets",
        "integer",
        "4194304",
        "1000000",
        "Packets after which a lane gives way to the next one and its keys are forgotten: 1000 to 4194304, which is half of \
         what AES-GCM may protect with one key (RFC 9001).",
    ),
    restart(
        "node",
        "workers",
        "integer",
        "1",
        "4",
        "Packet workers: 1 to 16. Each has a queue of every TUN, a UDP port (that of `listen`, and those after it) and a pair of \
         threads. Between two nodes as many work as the one with fewer has; with transport \"datagram\" there is one.",
    ),
    restart(
        "node",
        "offloads",
        "string or list of strings",
        r#"["csum", "tso", "uso", "gso", "gro"]"#,
        r#"["csum", "tso", "gso", "gro"]"#,
        "What the kernel may do in larger pieces; leave one out where kernel or card does it wrongly. Of packets read from \
         the TUN: unfinished checksums, TCP superpackets, UDP superpackets (both need \"csum\"); of the UDP socket: \
         several datagrams a send (UDP_SEGMENT), a receive (UDP_GRO).",
    ),
    applied(
        "node",
        "expose",
        "string or list of strings",
        r#"["icmp"]"#,
        r#"["icmp", "tcp/22"]"#,
        "What of this host itself the mesh may reach: \"icmp\", \"tcp/PORT\", \"udp/PORT\", \"all\"; an empty list \
         closes it.",
    ),
    applied(
        "node",
        "on_stop",
        "string",
        r#""remove""#,
        r#""block""#,
        "The routes at a polite stop: \"remove\" takes them out; \"block\" leaves those that refuse until the next \
         start, so that nothing leaves by the gateway in between.",
    ),
    applied(
        "node",
        "foreign_chains",
        "string",
        r#""report""#,
        r#""insert""#,
        "A forward chain of someone else that drops mesh traffic: \"report\" names it in `mesh-ctl status`; \
         \"insert\" puts two accept rules into it.",
    ),
    applied(
        "peer",
        "endpoint",
        "string",
        REQUIRED,
        r#""198.51.100.12:4650""#,
        "Where a member of the mesh is, as ADDRESS:PORT or NAME:PORT. One that is up is enough: the others are \
         learned from it.",
    ),
    applied(
        "peer",
        "name",
        "string",
        "whoever answers with a certificate of the mesh",
        r#""ph2""#,
        "Insist that this node answers there.",
    ),
    applied(
        "peer",
        "probe",
        "table",
        "as [node] says",
        r#"{ interval = "200ms" }"#,
        "How this node is probed, where it is an egress node, as on a path that loses much.",
    ),
    applied(
        "probe",
        "interval",
        "string (duration)",
        r#""50ms""#,
        r#""100ms""#,
        "Between two probes, 10ms to 10s.",
    ),
    applied("probe", "multiplier", "integer", "3", "5", "So many in a row may be missing, 2 to 50."),
    applied(
        "network",
        "name",
        "string",
        REQUIRED,
        r#""default""#,
        "The network's name, the same on all nodes that carry it. Networks are isolated from each other.",
    ),
    applied(
        "network",
        "interface",
        "string",
        REQUIRED,
        r#""vmnet1""#,
        "The host-only bridge or interface of the VMs. It has to exist and to have an address, which is the VMs' \
         gateway.",
    ),
    applied(
        "network",
        "subnet",
        "string or list of strings",
        "read from the interface's addresses",
        r#"["192.168.100.0/24", "fd64::/64"]"#,
        "The addresses that the VMs really have; may be the same on every node.",
    ),
    applied(
        "network",
        "prefix",
        "string or list of strings",
        "equal to `subnet`",
        r#""10.77.1.0/24""#,
        "Mesh prefix: the addresses by which the rest of the mesh reaches these VMs, unique within the network and \
         as long as the subnet. The host part is kept. In a list, one for each subnet of the same family.",
    ),
    applied(
        "network",
        "announce",
        "list of strings or tables",
        "[]",
        r#"["203.0.113.14/32", { prefix = "203.0.113.16/29", via = "192.168.100.14" }]"#,
        "Further addresses reached through this segment, never translated: a VM's public address, a jail's alias. A \
         string is on link; a table says more.",
    ),
    applied(
        "network",
        "egress",
        "string or list of strings",
        r#""none""#,
        r#"["ph3", "ph1"]"#,
        "Where its VMs leave the mesh: names of egress nodes in order of preference; \"auto\", any that offers, by \
         priority; \"local\", this host; \"none\".",
    ),
    applied(
        "network",
        "egress_preempt",
        "false or string (duration)",
        "false",
        r#""30s""#,
        "An egress node earlier in the order takes over from one that works, once it has been healthy for this long, 1s to \
         3600s. Without it, the one in use stays while it works; only one that had not failed, new or resumed, takes its \
         place in the order at once.",
    ),
    applied(
        "network",
        "egress_fallback",
        "string",
        r#""none""#,
        r#""local""#,
        "While no egress node is healthy for any destination: \"none\" refuses with ICMP net unreachable; \"local\" lets the \
         segment's traffic leave by this host, as `egress = \"local\"` does.",
    ),
    applied(
        "network",
        "egress_balance",
        "boolean",
        "false",
        "true",
        "Spread flows over all healthy egress nodes of the best `priority`: those listed in `egress` are then a set. The \
         loss of one moves its flows alone. VMs of an egress node that nothing maps leave by it.",
    ),
    applied("announce", "prefix", "string", REQUIRED, r#""203.0.113.16/29""#, "The prefix to announce."),
    applied(
        "announce",
        "via",
        "string",
        "on link, found by ARP or neighbour discovery",
        r#""192.168.100.14""#,
        "The VM that routes the prefix to what is behind it.",
    ),
    applied(
        "announce",
        "internet",
        "string",
        r#""own""#,
        r#""egress""#,
        "Its Internet traffic: \"own\" by this host's own uplink, address unchanged; \"egress\" by the egress node.",
    ),
    applied(
        "egress",
        "network",
        "string or list of strings",
        REQUIRED,
        r#""default""#,
        "The networks that may leave the mesh here. A network may have one `[[egress]]` on a node.",
    ),
    applied(
        "egress",
        "interface",
        "string",
        REQUIRED,
        r#""eth0""#,
        "The uplink by which their packets leave this host.",
    ),
    applied(
        "egress",
        "snat",
        "string or list of strings",
        r#""masquerade""#,
        r#""198.51.100.11""#,
        "The source address they get, at most one a family; \"masquerade\": the uplink's address at that moment. A \
         family without an address is masqueraded.",
    ),
    applied(
        "egress",
        "destination",
        "string or list of strings",
        "everything but this host, its connected networks and private ranges",
        r#"["0.0.0.0/0"]"#,
        "Destinations carried. A narrower prefix opens what is closed by default, and gives each destination its \
         own egress node.",
    ),
    applied(
        "egress",
        "priority",
        "integer",
        "100",
        "50",
        "Preference among the nodes that offer, for networks with `egress = \"auto\"`; lower wins.",
    ),
    applied(
        "egress",
        "probe",
        "string or list of strings",
        "none: the state of the link alone decides",
        r#"["198.51.100.1", "tcp://192.0.2.80:443"]"#,
        "What must answer beyond the uplink, all of it: addresses by an echo, `tcp://HOST:PORT` by a connection, asked \
         through the interface from the `snat` address, or from the interface's own where the host does not have that one. \
         While one does not, this node is not used for egress.",
    ),
    applied(
        "egress",
        "probe_interval",
        "string (duration)",
        r#""500ms""#,
        r#""200ms""#,
        "Between two probes of a target, 100ms to 60s; also how long each waits for its answer.",
    ),
    applied(
        "egress",
        "probe_count",
        "integer",
        "3",
        "5",
        "So many unanswered probes in a row, 1 to 20, and a target is down; one answer, and it is up.",
    ),
];

/// One key of a table, if there is such a key.
pub fn key(table: &str, key: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.table == table && k.key == key)
}

/// Names of a table's keys.
pub fn names(table: &str) -> Vec<&'static str> {
    KEYS.iter().filter(|k| k.table == table).map(|k| k.key).collect()
}

#[cfg(test)]
mod tests;
