//! The list of all notices. `docs/messages.md` is written from it.

use std::net::SocketAddr;

use mesh_proto::{MeshId, NetworkName, NodeId, Prefix};

use super::{Field, Kind, Level, Limit, traced};

/// Filters name it: whatever part of the node a notice comes from, its target is this.
const TARGET: &str = "mesh_node::notice";

macro_rules! log {
    (Info, $($rest:tt)+) => { tracing::info!(target: TARGET, $($rest)+) };
    (Warn, $($rest:tt)+) => { tracing::warn!(target: TARGET, $($rest)+) };
    (Error, $($rest:tt)+) => { tracing::error!(target: TARGET, $($rest)+) };
}

/// Makes `Notice` and `CATALOGUE` of one table, so that neither can lack what the other has.
macro_rules! notices {
    ($(
        $(#[doc = $about:literal])+
        $variant:ident { $($field:ident: $type:ty),* }
        is $event:literal, $level:ident, $limit:ident;
        says $sentence:literal;
        remedy $remedy:literal;
    )+) => {
        /// Something to tell the operator, with its values.
        #[allow(missing_docs, reason = "the meanings of the values are in page::FIELDS, one for all notices")]
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Notice {
            $($(#[doc = $about])+ $variant { $($field: $type),* },)+
        }

        /// All kinds, in the order of the list.
        pub const CATALOGUE: &[Kind] = &[$(Kind {
            event: $event,
            level: Level::$level,
            limit: Limit::$limit,
            sentence: $sentence,
            fields: &[$(stringify!($field)),*],
            about: &[$($about),+],
            remedy: $remedy,
        }),+];

        /// Places in `CATALOGUE`.
        enum Place { $($variant),+ }

        impl Notice {
            /// Its line of the catalogue.
            pub fn kind(&self) -> &'static Kind {
                let place = match self {
                    $(Self::$variant { .. } => Place::$variant,)+
                };
                &CATALOGUE[place as usize]
            }

            /// Its values, in the order of the kind's fields.
            pub(super) fn values(&self) -> Vec<Option<mesh_proto::api::FieldValue>> {
                match self {
                    $(Self::$variant { $($field),* } => vec![$($field.value()),*],)+
                }
            }

            /// Writes it to the log.
            pub fn log(&self, suppressed: u64) {
                let suppressed = (suppressed > 0).then_some(suppressed);
                match self {
                    $(Self::$variant { $($field),* } => {
                        $(let $field = traced($field.value());)*
                        let remedy = (!$remedy.is_empty()).then_some($remedy);
                        log!($level, $($field = $field,)* suppressed, remedy, event = display($event), $sentence);
                    })+
                }
            }
        }
    };
}

notices! {
    /// The node has read its configuration and begins to work.
    Starting { node: NodeId, mesh: MeshId, listen: SocketAddr, endpoints: Vec<SocketAddr>, version: &'static str }
        is "starting", Info, Free;
        says "mesh-node starts";
        remedy "";

    /// The device of a network is there; its packets are carried.
    NetworkUp { network: NetworkName, tun: String, offloads: String }
        is "network_up", Info, Free;
        says "device of a network is up";
        remedy "";

    /// The kernel does not do in larger pieces what it could, or must not: packets are carried, at a higher price each.
    OffloadMissing { device: String, offload: &'static str, text: String }
        is "offload_missing", Info, Free;
        says "an offload is not in use";
        remedy "`mesh-ctl status --verbose` shows those in use; `offloads` in the file switches them";

    /// A further packet worker's packets (`workers`) do not arrive at the UDP port of a peer that they go to. They take the first
    /// worker's way, and this one is tried once a second.
    WorkerUnheard { worker: u64, endpoint: SocketAddr }
        is "worker_unheard", Warn, Together;
        says "a peer does not hear a packet worker at its UDP port: the first worker's way is taken";
        remedy "let UDP from and to the ports `listen` to `listen` + `workers` - 1 of both hosts pass the firewalls between them";

    /// Something in the kernel was left by an earlier run that did not end politely.
    LeftoverRemoved { what: String }
        is "leftover_removed", Info, Free;
        says "left by an earlier run: removed";
        remedy "";

    /// A reload found this difference between the file and what is in effect.
    KeyChanged { key: String, before: Option<String>, after: Option<String>, state: String }
        is "key_changed", Info, Free;
        says "configuration changed";
        remedy "";

    /// The configuration was read anew, and all of it is in effect.
    ConfigurationApplied { count: u64 }
        is "configuration_applied", Info, Free;
        says "configuration applied";
        remedy "";

    /// The configuration was read anew; some keys count at a start only.
    ConfigurationInPart { text: String }
        is "configuration_in_part", Warn, Free;
        says "configuration applied in part";
        remedy "restart the node for the rest: `systemctl restart mesh-node`";

    /// The configuration was read anew and has errors; the node goes on as it was.
    ConfigurationRejected { error: String }
        is "configuration_rejected", Error, Free;
        says "configuration rejected: nothing was applied";
        remedy "mend the file, `mesh-node check`, then `mesh-ctl reload`";

    /// Metrics can be scraped.
    MetricsServed { address: SocketAddr }
        is "metrics_served", Info, Free;
        says "metrics are served";
        remedy "";

    /// The node was told to stop and tells its peers.
    Goodbye {}
        is "goodbye", Info, Free;
        says "saying goodbye";
        remedy "";

    /// Everything of this node in the kernel is removed.
    Stopped {}
        is "stopped", Info, Free;
        says "stopped";
        remedy "";

    /// A tunnel to a peer is up, in the place of an older one if there was one.
    TunnelUp { peer: NodeId, endpoint: SocketAddr, dialed: bool }
        is "tunnel_up", Info, Each;
        says "tunnel up";
        remedy "";

    /// A tunnel has ended without a goodbye of the peer. It is dialled again at once, then at growing intervals.
    TunnelDown { peer: NodeId, reason: &'static str, text: String }
        is "tunnel_down", Warn, Each;
        says "tunnel down";
        remedy "see `mesh-ctl peer show NAME`: is that host up, does its node run, does UDP pass between the two?";

    /// The operator has named the egress node of a network; the order counts again after `mesh-ctl egress use auto`.
    EgressForced { network: NetworkName, to: NodeId }
        is "egress_forced", Info, Free;
        says "egress node forced";
        remedy "";

    /// The egress node of these TCP connections of the network's VMs is drained, and they had not ended: both sides were told by a
    /// RST, so that neither hangs.
    FlowsReset { network: NetworkName, count: u64 }
        is "flows_reset", Warn, Free;
        says "connections by a drained egress node were reset";
        remedy "give the next `mesh-ctl egress drain` a later `--deadline`";

    /// An operator takes this node's egress out of use. Flows in progress stay until they end, but not longer than this.
    EgressDraining { until: String }
        is "egress_draining", Info, Free;
        says "egress of this node is being drained";
        remedy "`mesh-ctl egress resume` undoes it";

    /// The node stops, and other nodes' VMs leave by it: they go to the standby first.
    EgressHandover { count: Option<u64> }
        is "egress_handover", Info, Free;
        says "flows are handed over before the node stops";
        remedy "";

    /// This node's egress is out of use. So many flows were left: those who sent them have reset, or moved, them.
    EgressDrained { count: Option<u64> }
        is "egress_drained", Info, Free;
        says "egress of this node is drained";
        remedy "`mesh-ctl egress resume` takes it into use again";

    /// This node's egress is in use again.
    EgressResumed {}
        is "egress_resumed", Info, Free;
        says "egress of this node is in use again";
        remedy "";

    /// Connections in progress cannot be counted: a drain ends at its deadline.
    FlowsUncounted { error: String }
        is "flows_uncounted", Warn, Together;
        says "connections in progress cannot be counted";
        remedy "is the module nf_conntrack_netlink there?";

    /// The operator has left the egress of a network to the order again.
    EgressFreed { network: NetworkName }
        is "egress_freed", Info, Free;
        says "egress left to the order again";
        remedy "";

    /// An egress node no longer answers probes: a standby takes over. Its tunnel stays until the keep-alive gives it up as well.
    PeerSilent { peer: NodeId, elapsed_ms: u64 }
        is "peer_silent", Warn, Each;
        says "egress node is silent";
        remedy "see `mesh-ctl egress`; is that host up, or so busy that its node does not run? `probe` in [node] may be too strict for the path";

    /// An egress node that was silent is heard again.
    PeerHeard { peer: NodeId }
        is "peer_heard", Info, Each;
        says "egress node is heard again";
        remedy "";

    /// An own uplink does not carry: those who use this node for egress are told at once, and take another.
    UplinkDown { interface: String, text: String, elapsed_ms: u64 }
        is "uplink_down", Warn, Each;
        says "uplink does not carry";
        remedy "look at the interface and its cable, then at the targets: `probe` of its [[egress]] must name what answers through it";

    /// An own uplink carries again.
    UplinkUp { interface: String }
        is "uplink_up", Info, Each;
        says "uplink carries again";
        remedy "";

    /// A peer stopped politely.
    PeerLeft { peer: NodeId }
        is "peer_left", Info, Each;
        says "peer has left";
        remedy "";

    /// A peer, or a configured endpoint, was not reached. Told again only when the reason changes; dialled again all the while.
    DialFailed { peer: String, endpoint: String, reason: &'static str, text: String }
        is "dial_failed", Warn, Each;
        says "dial failed";
        remedy "is the endpoint right, does a node run there, does UDP pass? `mesh-ctl peers` shows the last reason";

    /// Somebody connected and was not let in.
    ConnectionRefused { endpoint: SocketAddr, node: Option<NodeId>, reason: &'static str, text: String }
        is "connection_refused", Warn, Together;
        says "refused a connection";
        remedy "if it is one of yours, compare `mesh-ctl ca show` of its certificate with ours; else let a firewall keep it out";

    /// The operator added an endpoint at run time.
    PeerAdded { endpoint: String }
        is "peer_added", Info, Free;
        says "peer added";
        remedy "";

    /// The operator removed a peer: it is neither dialled nor let in until it is added again.
    PeerRemoved { peer: NodeId }
        is "peer_removed", Info, Free;
        says "peer removed";
        remedy "";

    /// A peer passed on a record that is not valid here: of another authority, expired, or claiming what its certificate does not
    /// allow.
    RecordRefused { from: Option<NodeId>, error: String }
        is "record_refused", Warn, Each;
        says "a record is refused";
        remedy "issue the named node a certificate that allows what it announces, or take the claim out of its node.toml";

    /// After a reload with other CAs nobody vouches for a peer any more: its record and its tunnel go.
    PeerDistrusted { peer: NodeId, error: String }
        is "peer_distrusted", Warn, Each;
        says "the CAs have changed: a peer is no longer trusted";
        remedy "issue it a certificate of a CA in `ca.pem`, or keep the former CA there as well";

    /// A record on disk has become invalid, mostly because its certificate expired; peers send a new one.
    RecordForgotten { error: String }
        is "record_forgotten", Info, Together;
        says "a record on disk is no longer good: forgotten";
        remedy "";

    /// Records signed in this node's name appear that it did not sign.
    OwnNameElsewhere { from: Option<NodeId> }
        is "own_name_elsewhere", Error, Each;
        says "another node uses this node's name";
        remedy "find the other host that has this certificate or name, stop it, and issue it one of its own";

    /// Two different records of one peer have the same version: two hosts run under one name.
    NameDoubled { peer: NodeId }
        is "name_doubled", Error, Each;
        says "two nodes use one name: both records have one version";
        remedy "find the two hosts with this name and issue one of them a certificate of another name";

    /// The node's own record does not stand up to its own certificate, so that peers are not told of changes.
    OwnRecordUnsigned { error: String }
        is "own_record_unsigned", Error, Each;
        says "own record cannot be signed";
        remedy "`mesh-ctl ca show` the node's certificate: renew it if it has expired, then restart the node";

    /// Another egress node carries a destination, or more of them do.
    EgressElected {
        network: NetworkName, destination: Prefix, from: Option<String>, to: String, cause: Option<&'static str>,
        elapsed_ms: Option<u64>
    }
        is "egress_elected", Info, Each;
        says "egress node elected";
        remedy "";

    /// Nobody is left to carry a destination: its traffic is refused.
    EgressLost { network: NetworkName, destination: Prefix, from: Option<String>, cause: Option<&'static str> }
        is "egress_lost", Warn, Each;
        says "no egress node";
        remedy "`mesh-ctl egress` shows the candidates: bring one of them up, or name another in `egress`";

    /// Nobody is left to carry any destination of a network: its traffic leaves by this host, as `egress_fallback = "local"` has it.
    EgressFallback { network: NetworkName, cause: &'static str }
        is "egress_fallback", Warn, Each;
        says "no egress node: this host carries";
        remedy "`mesh-ctl egress` shows the candidates and what is wrong with each";

    /// An egress node has failed again and again: until the time given it is used only where nobody else is left.
    EgressHeldDown { node: NodeId, network: NetworkName, count: u64, until: String }
        is "egress_held_down", Warn, Each;
        says "an egress node that flaps is held down";
        remedy "look at that node's uplink and the path to it; `mesh-ctl egress use` takes it all the same";

    /// A part of this node hangs which decides on everything: it would not learn of a dead uplink, so that its egress role is given up.
    /// Those who use it move to a standby.
    ControlStuck {}
        is "control_stuck", Error, Free;
        says "egress for others is suspended: the control loop does not turn";
        remedy "restart mesh-node if it stays so, and report it with the lines before";

    /// This node did not run for so long that the kernel stopped to carry for others, by itself: their nodes heard no probes, and
    /// have moved their flows to a standby where there was one. It carries again.
    LeaseLost { elapsed_ms: u64 }
        is "lease_lost", Warn, Together;
        says "egress was suspended: this node did not run";
        remedy "look for what stopped it: a suspended or overloaded host, a debugger, swapping; `probe` in [node] says how long a pause is borne";

    /// The kernel cannot be told that this node lives: it does not carry for others. It is tried again all the time.
    LeaseNotRenewed { error: String }
        is "lease_not_renewed", Error, Together;
        says "egress for others is suspended: the lease cannot be renewed";
        remedy "is the device lo up, and may the node send packets with a mark (CAP_NET_ADMIN)? see the error";

    /// The kernel refused a part of what it should have; it is tried again every two seconds.
    KernelFailed { error: String }
        is "kernel_failed", Warn, Each;
        says "kernel state is not as it should be";
        remedy "mend what the error names; `dmesg` and `mesh-ctl status` tell more";

    /// Something of ours had been removed or changed, and was put back.
    KernelRepaired { what: String }
        is "kernel_repaired", Warn, Each;
        says "somebody removed kernel state of ours: put back";
        remedy "find who changes it, mostly a firewall service that flushes the whole ruleset, and keep it from ours";

    /// A chain of the host's own firewall drops traffic between VMs and mesh.
    ForeignChain { chain: String, command: String }
        is "foreign_chain", Warn, Each;
        says "a firewall chain of the host drops mesh traffic";
        remedy "run the command, or set `foreign_chains = \"insert\"` and restart";

    /// The host's firewall could not be looked at for chains that drop mesh traffic.
    FirewallUnreadable { error: String }
        is "firewall_unreadable", Warn, Together;
        says "the host's firewall cannot be read";
        remedy "install nftables; `nft list ruleset` as root shows what is wrong";

    /// With `foreign_chains = "insert"` the rules could not be put in; or, after a reload without it, not taken out.
    AcceptRulesFailed { error: String }
        is "accept_rules_failed", Warn, Together;
        says "accept rules cannot be put into the host's chains, or taken out";
        remedy "change them by hand: `foreign_chains = \"report\"` names the commands in `mesh-ctl status`";

    /// The kernel no longer tells of changed routes, rules and links.
    RoutesUnwatched { error: String }
        is "routes_unwatched", Warn, Free;
        says "changes of routes are not told: they are found by the timer only";
        remedy "restart the node when it suits";

    /// The kernel no longer tells of changed addresses.
    AddressesUnwatched {}
        is "addresses_unwatched", Warn, Free;
        says "addresses of the host are no longer watched: a change is told to peers at the next start only";
        remedy "restart the node after a change of addresses";

    /// Connection tracking would not forget flows that an earlier egress role had mapped.
    FlowsStay { error: String }
        is "flows_stay", Warn, Together;
        says "flows of a lost egress role stay until they time out";
        remedy "`conntrack -F` ends them at once, with all others";

    /// A TUN device cannot be read any more; it is made anew.
    DeviceLost { device: String, error: String }
        is "device_lost", Error, Free;
        says "gave up reading from the device";
        remedy "who deleted it? It is made anew within a second; `mesh-ctl status` tells whether it was";

    /// A TUN device that was deleted could not be made anew; tried again every second, told once.
    DeviceNotMade { error: String }
        is "device_not_made", Error, Free;
        says "a lost device cannot be made anew: trying on";
        remedy "mend what the error names: mostly another device has taken the name";

    /// A bug: a thread that carries packets or probes has ended, and the process with it.
    ThreadDied { thread: String }
        is "thread_died", Error, Free;
        says "a thread of the node ended by a panic, and the node with it";
        remedy "report the lines before this one; the service manager starts the node again";

    /// A file of the state directory could not be read; it is kept aside.
    StateDamaged { error: String }
        is "state_damaged", Warn, Free;
        says "state on disk is damaged";
        remedy "check the disk; `mesh-ctl peer add` again the peers that were added at run time";

    /// The file with the sysctls' former values could not be read: they cannot be restored at a stop.
    SysctlsDamaged { path: String, error: String }
        is "sysctls_damaged", Warn, Free;
        says "saved sysctls are unreadable, kept aside";
        remedy "check the disk; restore forwarding and rp_filter by hand after the node has stopped";

    /// The state directory cannot be written. Tried again every second, told once.
    StateNotSaved { error: String }
        is "state_not_saved", Error, Free;
        says "state is not saved: a restart will not know what has changed";
        remedy "make room on the disk of `state_dir`, or mend what the error names";

    /// At a stop the disk took too long.
    StateSavedTooSlowly {}
        is "state_saved_too_slowly", Warn, Free;
        says "the disk is too slow: the latest state is not saved";
        remedy "check the disk of `state_dir`; peers tell the node anew what it missed";

    /// Somebody without rights holds the socket by which a second node on this host would be noticed.
    HostLockTaken {}
        is "host_lock_taken", Warn, Free;
        says "somebody who is not root holds the lock of this host: started without it";
        remedy "`ss -xlp | grep mesh-node` names the process: end it";

    /// The service manager does not hear that the node is up.
    ServiceManagerDeaf { error: String }
        is "service_manager_deaf", Warn, Free;
        says "systemd is not told";
        remedy "the unit needs `Type=notify` and `NotifyAccess=main`: use the one from deploy/";

    /// The metrics address cannot be used yet; tried again every second, told once.
    MetricsWaiting { address: SocketAddr, error: String }
        is "metrics_waiting", Warn, Free;
        says "metrics cannot be served yet: trying on";
        remedy "is the address this host's, and free? `metrics` in node.toml sets another, or \"off\"";

    /// A bug: the metrics of a scrape could not be written as text.
    MetricsUnwritable { error: String }
        is "metrics_unwritable", Warn, Together;
        says "metrics cannot be written";
        remedy "report it, with the error";

    /// `mesh-ctl` does not reach the node any more; packets are still carried.
    ControlSocketFailed { error: String }
        is "control_socket_failed", Error, Free;
        says "the control socket has failed";
        remedy "restart the node when it suits";

    /// At a stop, the node's decisions did not come to an end in time: peers see a loss instead of a goodbye.
    ControlHangs {}
        is "control_hangs", Warn, Free;
        says "the control loop does not end: going on without its goodbye";
        remedy "nothing now; if it comes again, report it with the lines before";

    /// At a stop, the part that programs the kernel did not come to an end in time.
    HostTaskHangs { died: bool }
        is "host_task_hangs", Warn, Free;
        says "the host task does not end: its state is found anew";
        remedy "nothing now; if it comes again, report it with the lines before";

    /// At a stop, a part of our kernel state could not be removed.
    TearDownFailed { error: String }
        is "tear_down_failed", Warn, Free;
        says "a step of the tear-down failed";
        remedy "start and stop the node once more: it removes what is left";

    /// The operator changed what is logged, until the next start.
    LogFilterSet { filter: String }
        is "log_filter_set", Info, Free;
        says "log filter set";
        remedy "";

    /// RUST_LOG is not a filter: `info` is used instead.
    LogFilterRefused { filter: String, error: String }
        is "log_filter_refused", Warn, Free;
        says "RUST_LOG is refused: logging at info";
        remedy "set RUST_LOG to a level (error, warn, info, debug, trace), or TARGET=LEVEL, with commas between";

    /// Logs were to go to the journal, whose socket does not answer: they are written to stderr as JSON.
    JournalUnreachable { error: String }
        is "journal_unreachable", Warn, Free;
        says "the journal is not reachable: logging JSON to stderr";
        remedy "does systemd-journald run? `--log-format json` or `human` says so without this line";

    /// Notices of a kind came so often that some were held back, and they have stopped coming.
    Suppressed { of: &'static str, subject: Option<String>, count: u64 }
        is "suppressed", Warn, Free;
        says "messages were held back";
        remedy "look at those of the same kind before; `mesh-ctl peers` and the metrics count all of them";

    /// First line of `mesh-ctl monitor`: what happens from here on is told. Not in the log.
    MonitorStarted { node: NodeId }
        is "monitor_started", Info, Free;
        says "monitor started";
        remedy "";

    /// In `mesh-ctl monitor` only: the reader was too slow, and lines were left out here.
    Lagged { missed: u64 }
        is "lagged", Warn, Free;
        says "the reader is too slow: lines are missing";
        remedy "read faster; the node's log has the missing lines";
}
