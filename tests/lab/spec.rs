//! What a lab consists of, as plain data: hosts, their networks, VMs.

/// One network's segment on a host.
#[derive(Debug, Clone, Default)]
pub struct Net {
    /// The network's name.
    pub name: String,
    /// The host-only bridge.
    pub bridge: String,
    /// The bridge's addresses with prefix length.
    pub gateways: Vec<String>,
    /// `subnet`, one entry a family.
    pub subnets: Vec<String>,
    /// `prefix`, paired with the subnets.
    pub prefixes: Vec<String>,
    /// `announce`.
    pub announce: Vec<String>,
    /// `egress`.
    pub egress: Vec<String>,
    /// Further lines of the `[[network]]` section.
    pub extra: String,
}

impl Net {
    /// A network on a bridge.
    pub fn new(name: &str, bridge: &str) -> Self {
        Self { name: name.into(), bridge: bridge.into(), ..Self::default() }
    }

    /// Adds a family: the bridge's address (`192.168.100.1/24`), the local subnet, the mesh prefix.
    pub fn subnet(mut self, gateway: &str, subnet: &str, prefix: &str) -> Self {
        self.gateways.push(gateway.into());
        self.subnets.push(subnet.into());
        self.prefixes.push(prefix.into());
        self
    }

    /// Announces a prefix; the gateway of the lab routes it to this host.
    pub fn announce(mut self, prefix: &str) -> Self {
        self.announce.push(prefix.into());
        self
    }

    /// Preferred egress nodes.
    pub fn egress(mut self, nodes: &[&str]) -> Self {
        self.egress = nodes.iter().map(|&node| node.into()).collect();
        self
    }

    /// Further lines for the configuration file.
    pub fn extra(mut self, lines: &str) -> Self {
        self.extra.push_str(lines);
        self.extra.push('\n');
        self
    }
}

/// An `[[egress]]` section.
#[derive(Debug, Clone)]
pub struct Offer {
    /// Which network may leave here.
    pub network: String,
    /// `snat`, one entry a family, or `masquerade`.
    pub snat: Vec<String>,
    /// `priority`.
    pub priority: u32,
    /// Further lines of the section.
    pub extra: String,
}

/// A hypervisor.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// Its name: namespace, node and certificate.
    pub name: String,
    /// Its networks.
    pub nets: Vec<Net>,
    /// Its egress offers.
    pub offers: Vec<Offer>,
    /// Names of the hosts given as `[[peer]]`; `None`: the first two hosts of the lab.
    pub seeds: Option<Vec<String>>,
    /// `net.ipv4.conf.*.rp_filter`.
    pub rp_filter: u8,
    /// Loaded with `nft -f -` before the node starts: the operator's own rules.
    pub ruleset: String,
    /// Further lines of `[node]`.
    pub extra: String,
}

impl Host {
    /// A host without networks.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Adds a network.
    pub fn net(mut self, net: Net) -> Self {
        self.nets.push(net);
        self
    }

    /// Offers egress for a network by a source address.
    pub fn offer(mut self, network: &str, snat: &[&str], priority: u32) -> Self {
        self.offers.push(Offer {
            network: network.into(),
            snat: snat.iter().map(|&s| s.into()).collect(),
            priority,
            extra: String::new(),
        });
        self
    }

    /// The members it is told of.
    pub fn seeds(mut self, names: &[&str]) -> Self {
        self.seeds = Some(names.iter().map(|&name| name.into()).collect());
        self
    }

    /// Strict (1) or loose (2) reverse path filter.
    pub fn rp_filter(mut self, mode: u8) -> Self {
        self.rp_filter = mode;
        self
    }

    /// The operator's own nft rules.
    pub fn ruleset(mut self, rules: &str) -> Self {
        self.ruleset.push_str(rules);
        self
    }

    /// Further lines for `[node]`.
    pub fn extra(mut self, lines: &str) -> Self {
        self.extra.push_str(lines);
        self.extra.push('\n');
        self
    }
}

/// A virtual machine: a namespace with one interface in a host's bridge.
#[derive(Debug, Clone)]
pub struct Vm {
    /// Its name.
    pub name: String,
    /// The host it runs on.
    pub host: String,
    /// The bridge it is plugged into.
    pub bridge: String,
    /// Addresses with prefix length; a /32 or /128 is an alias or a public address.
    pub addresses: Vec<String>,
    /// Source address of its own connections, where not the first.
    pub source: Option<String>,
}

impl Vm {
    /// A VM with its first address.
    pub fn new(name: &str, host: &str, bridge: &str, address: &str) -> Self {
        let addresses = vec![address.into()];
        Self { name: name.into(), host: host.into(), bridge: bridge.into(), addresses, source: None }
    }

    /// A further address.
    pub fn address(mut self, address: &str) -> Self {
        self.addresses.push(address.into());
        self
    }

    /// A public address, used as source of what it starts itself.
    pub fn public(mut self, address: &str) -> Self {
        self.addresses.push(format!("{address}/{}", if address.contains(':') { 128 } else { 32 }));
        self.source = Some(address.into());
        self
    }
}

/// A whole lab before it is built.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Names of namespaces start with this.
    pub prefix: String,
    /// Hosts in order: the first has underlay address .11.
    pub hosts: Vec<Host>,
    /// VMs.
    pub vms: Vec<Vm>,
    /// Endpoints are IPv6 addresses.
    pub underlay6: bool,
}

impl Plan {
    /// An empty plan.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.into(), ..Self::default() }
    }

    /// Adds a host.
    pub fn host(mut self, host: Host) -> Self {
        self.hosts.push(host);
        self
    }

    /// Adds a VM.
    pub fn vm(mut self, vm: Vm) -> Self {
        self.vms.push(vm);
        self
    }

    /// Peers meet over IPv6.
    pub fn underlay6(mut self) -> Self {
        self.underlay6 = true;
        self
    }

    /// Changes one host, for a variation on [`Plan::standard`].
    pub fn with(mut self, host: &str, change: impl FnOnce(Host) -> Host) -> Self {
        if let Some(index) = self.hosts.iter().position(|h| h.name == host) {
            let old = self.hosts.remove(index);
            self.hosts.insert(index, change(old));
        }
        self
    }

    /// Changes the first network of every host.
    pub fn each_net(mut self, mut change: impl FnMut(&str, &mut Net)) -> Self {
        for host in &mut self.hosts {
            if let Some(net) = host.nets.first_mut() {
                change(&host.name, net);
            }
        }
        self
    }

    /// Two hypervisors with networks of their own, 10.50.N.0/24, that nothing maps, and a VM `vmN` (.10) on each. Both carry; ph2 is
    /// preferred.
    pub fn unmapped() -> Self {
        (1..=2).fold(Self::new(""), |plan, i| {
            let (host, four) = (format!("ph{i}"), format!("10.50.{i}"));
            let net = Net::new("default", "vmnet1")
                .subnet(&format!("{four}.1/24"), &format!("{four}.0/24"), &format!("{four}.0/24"))
                .egress(&["ph2", "ph1"]);
            let vm = Vm::new(&format!("vm{i}"), &host, "vmnet1", &format!("{four}.10/24"));
            let host = Host::new(&host).net(net).offer("default", &[&format!("198.51.100.1{i}")], 100);
            plan.host(host).vm(vm)
        })
    }

    /// The world of the demo: `n` hypervisors that all have 192.168.100.0/24, mapped to 10.77.N.0/24 (and
    /// fd64::/64 to fd00:77:N::/64); on each a private VM `vmN` (.10) and a public VM `pubN` (.14,
    /// 203.0.113.1N). The last host is the egress node.
    pub fn standard(prefix: &str, n: usize) -> Self {
        let last = format!("ph{n}");
        let mut plan = Self::new(prefix);
        for i in 1..=n {
            let net = Net::new("default", "vmnet1")
                .subnet("192.168.100.1/24", "192.168.100.0/24", &format!("10.77.{i}.0/24"))
                .subnet("fd64::1/64", "fd64::/64", &format!("fd00:77:{i}::/64"))
                .announce(&format!("203.0.113.1{i}/32"))
                .egress(&[&last]);
            let mut host = Host::new(&format!("ph{i}")).net(net);
            if i == n {
                host = host.offer("default", &[&format!("198.51.100.1{i}")], 100);
            }
            plan = plan
                .host(host)
                .vm(Vm::new(&format!("vm{i}"), &format!("ph{i}"), "vmnet1", "192.168.100.10/24")
                    .address("fd64::10/64"))
                .vm(Vm::new(&format!("pub{i}"), &format!("ph{i}"), "vmnet1", "192.168.100.14/24")
                    .address("fd64::14/64")
                    .public(&format!("203.0.113.1{i}")));
        }
        plan
    }
}
