//! Brings the kernel to a `HostState`: reads what is there, applies the difference. Called on a change of the state, on
//! a message of `watch`, and on a timer (nftables sends no message here). Owns nothing but what carries our protocol
//! number, our nftables table, and the sysctls it remembers.
//!
//! Forwarding goes on last and off first; refusals stand before what they refuse.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rtnetlink::Handle;

use crate::control::host::foreign::{self, ForeignChain};
use crate::control::host::routes::{Route, RouteKind, route_changes, routes as wanted_routes};
use crate::control::host::rules::{Rule, rule_changes, rules as wanted_rules};
use crate::control::host::ruleset::{removal, ruleset};
use crate::control::host::sysctls::{Sysctl, forwarding, sysctls as wanted_sysctls};
use crate::control::host::ways::{Lost, Ways};
use crate::control::host::{AWAY_MARK, HostOut, HostState, egress_mark};
use crate::io::notices::tell;
use crate::notice::Notice;

pub mod addresses;
pub mod conntrack;
pub mod flows;
pub mod lease;
pub mod links;
pub mod lookup;
pub mod moved;
mod nft;
pub mod routes;
mod sysctl;
pub mod task;
mod unmapped;
pub mod watch;

use links::Link;
use sysctl::Sysctls;

/// Our table is looked at no more often than this: each look starts a process.
const NFT_INTERVAL: Duration = Duration::from_millis(500);

/// What keeps the kernel from being as it should.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No netlink socket.
    #[error("open a netlink socket: {0}")]
    Socket(#[source] std::io::Error),
    /// The kernel refused.
    #[error("{what}: {why}")]
    Netlink {
        /// What was asked.
        what: String,
        /// Its answer.
        why: String,
    },
    /// An interface is not there.
    #[error("interface {0:?} does not exist: create it, or correct its name in the configuration")]
    NoInterface(String),
    /// nft refused or is not there.
    #[error("nft {what}: {why}")]
    Nft {
        /// Its arguments.
        what: String,
        /// Its answer.
        why: String,
    },
    /// A sysctl cannot be written.
    #[error("sysctl {}: {why}", path.display())]
    Sysctl {
        /// Which.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The saved sysctls cannot be read or written.
    #[error("state file {}: {why}: check the owner and mode of the state directory", path.display())]
    State {
        /// Which.
        path: PathBuf,
        /// Why not.
        why: String,
    },
}

impl HostError {
    pub(crate) fn netlink(what: &str, error: &rtnetlink::Error) -> Self {
        let why = match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io().to_string(),
            other => other.to_string(),
        };
        Self::Netlink { what: what.to_owned(), why }
    }
}

/// What was brought about last, to tell a repair from a first time.
#[derive(Default)]
struct Applied {
    rules: BTreeSet<Rule>,
    routes: BTreeSet<Route>,
    nft_text: Option<String>,
    nft_listing: Option<String>,
    nft_checked: Option<Instant>,
    /// How each mark leaves.
    egress: BTreeMap<u32, Ways>,
    /// Slots of the networks that leave by this host.
    local: BTreeSet<u8>,
    tuns: BTreeSet<String>,
    /// Whether rules of ours were put into others' chains.
    foreign: bool,
}

/// Owns the netlink socket and the memory of what was changed.
pub struct HostSync {
    handle: Handle,
    /// Drives the socket; ends with this.
    _driver: tokio::task::JoinSet<()>,
    sysctls: Sysctls,
    applied: Applied,
}

impl HostSync {
    /// Opens the socket and reads what an earlier run remembered.
    pub async fn open(state_dir: &Path) -> Result<Self, HostError> {
        let (connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().map_err(HostError::Socket)?;
        let mut driver = tokio::task::JoinSet::new();
        driver.spawn(connection);
        let sysctls = Sysctls::open(state_dir)?;
        Ok(Self { handle, _driver: driver, sysctls, applied: Applied::default() })
    }

    /// For the look-ups of `links`.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Removes what a killed run left; tells what was found.
    pub async fn clean_leftovers(&mut self) -> Result<Vec<String>, HostError> {
        let mut found = self.close_forwarding()?;
        let rules = self.remove_rules().await?;
        let routes = self.remove_routes(|_| true).await?;
        let proxies = self.remove_proxies().await?;
        let counts = [(rules, "rules"), (routes, "routes"), (proxies, "proxy neighbours")];
        found.extend(counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")));
        if nft::own_table().await.is_some() {
            nft::apply(&removal()).await?;
            found.push("nftables table inet mesh".to_owned());
        }
        let inserted = self.remove_foreign().await?;
        if inserted > 0 {
            found.push(format!("{inserted} rules in other forward chains"));
        }
        self.applied = Applied::default();
        Ok(found)
    }

    /// Brings the kernel to `state`. Returns what had been applied before and had to be repaired, in words for the log.
    pub async fn apply(&mut self, state: &HostState) -> Result<Vec<String>, HostError> {
        let mut repaired = Vec::new();
        self.applied.tuns.extend(state.networks.iter().map(|network| network.tun.clone()));
        let sysctls = wanted_sysctls(state);
        // Forwarding no longer wanted goes off before the rules change.
        if self.sysctls.unwanted(&sysctls) {
            self.sysctls.restore(|ours| ours.forwards() && !sysctls.contains(ours))?;
            self.sysctls.restore(|ours| !sysctls.contains(ours))?;
        }
        let closed = self.closed_uplinks(state);
        self.tunnels_up(state).await?;
        let links = links::links(&self.handle).await?;
        let (stale, failed) = self.install_routes(&wanted_routes(state), &links, &mut repaired).await?;
        self.apply_rules(&wanted_rules(state, &closed), &mut repaired).await?;
        self.apply_nft(ruleset(state), &mut repaired).await?;
        for message in stale {
            routes::remove_route(&self.handle, message).await?;
        }
        self.apply_proxies(state, &links).await?;
        self.forget_egress(state).await;
        self.forget_unmapped(state).await;
        let (last, first): (Vec<&Sysctl>, Vec<&Sysctl>) =
            sysctls.iter().partition(|sysctl| sysctl.forwards());
        repaired.extend(self.sysctls.set(first.into_iter())?);
        repaired.extend(self.sysctls.set(last.into_iter())?);
        failed.map_or(Ok(repaired), Err)
    }

    /// Undoes everything, in the order of a stop: forwarding, rules, routes, nftables. With `keep_block` the rules stay
    /// and every route but those by a tunnel, whose refusals then answer.
    ///
    /// A step that fails does not keep the others from being done; the first failure is returned.
    pub async fn remove_all(&mut self, keep_block: bool) -> Result<(), HostError> {
        let mut first = None;
        let mut note = |done: Result<(), HostError>| {
            if let Err(error) = done {
                tell(Notice::TearDownFailed { error: error.to_string() });
                first.get_or_insert(error);
            }
        };
        note(self.close_forwarding().map(drop));
        if keep_block {
            note(self.remove_ways().await);
        } else {
            note(self.remove_rules().await.map(drop));
            note(self.remove_routes(|_| true).await.map(drop));
        }
        note(self.remove_proxies().await.map(drop));
        note(nft::apply(&removal()).await);
        for mark in std::mem::take(&mut self.applied.egress).into_keys().chain([AWAY_MARK]) {
            conntrack::delete_marked(mark).await.unwrap_or_else(|error| tracing::debug!(%error, "conntrack"));
        }
        if self.applied.foreign {
            note(self.remove_foreign().await.map(drop));
        }
        self.applied = Applied::default();
        first.map_or(Ok(()), Err)
    }

    /// Removes the routes by tunnels; refusals stay and answer.
    async fn remove_ways(&mut self) -> Result<(), HostError> {
        let links = links::links(&self.handle).await?;
        let tunnels: BTreeSet<String> = std::mem::take(&mut self.applied.tuns);
        self.remove_routes(|route| match route.map(|route| &route.kind) {
            Some(RouteKind::Unicast { dev, .. }) => tunnels.contains(dev) || !links.contains_key(dev),
            Some(RouteKind::Unreachable | RouteKind::Throw) => false,
            None => true,
        })
        .await
        .map(drop)
    }

    /// Others' forward chains that drop the traffic of `state`.
    pub async fn foreign_chains(&self, state: &HostState) -> Result<Vec<ForeignChain>, HostError> {
        Ok(foreign::foreign_chains(&nft::everything().await?, state))
    }

    /// Puts two accept rules into each of these chains; they go with `remove_all`.
    pub async fn insert_into_foreign(&mut self, chains: &[ForeignChain]) -> Result<(), HostError> {
        for chain in chains {
            self.applied.foreign = true;
            nft::apply(&chain.statements().join("\n")).await?;
        }
        Ok(())
    }

    /// Takes out again what `insert_into_foreign` has put in.
    pub async fn leave_foreign(&mut self) -> Result<(), HostError> {
        if self.applied.foreign {
            self.remove_foreign().await?;
            self.applied.foreign = false;
        }
        Ok(())
    }

    async fn remove_foreign(&mut self) -> Result<usize, HostError> {
        let statements = foreign::inserted_rules(&nft::everything().await?);
        if !statements.is_empty() {
            nft::apply(&statements.join("\n")).await?;
        }
        Ok(statements.len())
    }

    fn close_forwarding(&mut self) -> Result<Vec<String>, HostError> {
        let mut restored = self.sysctls.restore(Sysctl::forwards)?;
        restored.extend(self.sysctls.restore(|_| true)?);
        Ok(restored)
    }

    /// Uplinks that forward because of us alone.
    fn closed_uplinks(&self, state: &HostState) -> BTreeSet<(bool, String)> {
        // IPv6 forwards everywhere by this one, whatever a device says.
        let all_v6 = sysctl::value(&["net", "ipv6", "conf", "all", "forwarding"]).as_deref() == Some("1");
        let mut closed = BTreeSet::new();
        for v4 in [true, false].into_iter().filter(|v4| *v4 || !all_v6) {
            let uplinks = state.forwarding_uplinks(v4).into_iter();
            closed.extend(uplinks.filter(|up| !self.sysctls.was_set(&forwarding(v4, up))).map(|up| (v4, up)));
        }
        closed
    }

    /// Sets each TUN up that is there and down or of another MTU, without an address of its own making.
    async fn tunnels_up(&self, state: &HostState) -> Result<(), HostError> {
        let links = links::links(&self.handle).await?;
        for network in &state.networks {
            if links.get(&network.tun).is_some_and(|link| !link.up || link.mtu != state.tun_mtu) {
                sysctl::no_link_local(&network.tun);
                links::set_link(&self.handle, &network.tun, Some(state.tun_mtu), None).await?;
            }
        }
        Ok(())
    }

    /// Installs what is missing or different. Returns what is to be removed later, and the first route that could not be
    /// installed because of its device: the others stand.
    async fn install_routes(
        &mut self,
        wanted: &[Route],
        links: &BTreeMap<String, Link>,
        repaired: &mut Vec<String>,
    ) -> Result<(Vec<netlink_packet_route::route::RouteMessage>, Option<HostError>), HostError> {
        let mut found = routes::own_routes(&self.handle, true, links).await?;
        found.extend(routes::own_routes(&self.handle, false, links).await?);
        let actual: Vec<Route> = found.iter().filter_map(|(route, _)| route.clone()).collect();
        let (install, remove) = route_changes(wanted, &actual);
        let lost = install.iter().filter(|route| self.applied.routes.contains(route)).count();
        if lost > 0 {
            repaired.push(format!("{lost} routes had been removed or changed"));
        }
        self.applied.routes = wanted.iter().cloned().collect();
        let (refusals, ways): (Vec<&Route>, Vec<&Route>) =
            install.iter().partition(|route| route.kind.is_fallback());
        for route in refusals {
            routes::install_route(&self.handle, route, links).await?;
        }
        let mut failed = None;
        for route in ways {
            if let Err(error) = routes::install_route(&self.handle, route, links).await {
                self.applied.routes.remove(route);
                failed.get_or_insert(error);
            }
        }
        let remove: BTreeSet<Route> = remove.into_iter().collect();
        let stale = found.into_iter().filter(|(route, _)| route.as_ref().is_none_or(|r| remove.contains(r)));
        Ok((stale.map(|(_, message)| message).collect(), failed))
    }

    async fn apply_rules(&mut self, wanted: &[Rule], repaired: &mut Vec<String>) -> Result<(), HostError> {
        let mut found = routes::own_rules(&self.handle, true).await?;
        found.extend(routes::own_rules(&self.handle, false).await?);
        let actual: Vec<Rule> = found.iter().filter_map(|(rule, _)| rule.clone()).collect();
        let (remove, add) = rule_changes(wanted, &actual);
        let remove: BTreeSet<Rule> = remove.into_iter().collect();
        let wanted: BTreeSet<Rule> = wanted.iter().cloned().collect();
        // ours changed: some may be renewed for their order's sake, which nobody else has disturbed
        let renewed = |rule: &Rule| wanted != self.applied.rules && remove.contains(rule);
        let lost = add.iter().filter(|rule| self.applied.rules.contains(rule) && !renewed(rule)).count();
        if lost > 0 {
            repaired.push(format!("{lost} routing rules had been removed or changed"));
        }
        for (rule, message) in found {
            if rule.is_none_or(|rule| remove.contains(&rule)) {
                routes::remove_rule(&self.handle, message).await?;
            }
        }
        for rule in &add {
            routes::add_rule(&self.handle, rule).await?;
        }
        self.applied.rules = wanted;
        Ok(())
    }

    /// Replaces our table when its text changed or it is not as it was left.
    async fn apply_nft(&mut self, text: String, repaired: &mut Vec<String>) -> Result<(), HostError> {
        if self.applied.nft_text.as_ref() == Some(&text) {
            if self.applied.nft_checked.is_some_and(|checked| checked.elapsed() < NFT_INTERVAL) {
                return Ok(());
            }
            self.applied.nft_checked = Some(Instant::now());
            let listing = nft::own_table().await;
            if listing.is_some() && listing == self.applied.nft_listing {
                return Ok(());
            }
            repaired.push("nftables table inet mesh had been removed or changed".to_owned());
        }
        nft::apply(&text).await?;
        self.applied.nft_listing = nft::own_table().await;
        self.applied.nft_checked = Some(Instant::now());
        self.applied.nft_text = Some(text);
        Ok(())
    }

    async fn apply_proxies(
        &self,
        state: &HostState,
        links: &BTreeMap<String, Link>,
    ) -> Result<(), HostError> {
        let wanted = state.proxy_neighbours();
        let wanted: BTreeSet<_> =
            wanted.into_iter().filter_map(|(up, address)| Some((links.get(&up)?.index, address))).collect();
        let actual = routes::own_proxies(&self.handle).await?;
        for (key, message) in &actual {
            if !wanted.contains(key) {
                routes::remove_proxy(&self.handle, message.clone()).await?;
            }
        }
        for (index, address) in wanted.iter().filter(|key| !actual.contains_key(key)) {
            routes::add_proxy(&self.handle, *index, *address).await?;
        }
        Ok(())
    }

    /// Flows of an egress role that was lost, or that leaves another way now, end: their replies would be mapped into nothing, or
    /// what follows would go on from an address that is no longer wanted.
    async fn forget_egress(&mut self, state: &HostState) {
        let leaving = state.networks.iter().map(|network| (egress_mark(network.slot), Ways::of(network)));
        let now: BTreeMap<u32, Ways> = leaving.filter_map(|(mark, ways)| Some((mark, ways?))).collect();
        for (mark, ways) in &self.applied.egress {
            let ended = match ways.lost(now.get(mark)) {
                Lost::Nothing => Ok(()),
                Lost::All => conntrack::delete_marked(*mark).await,
                Lost::Own => conntrack::delete_marked_if(*mark, |source, _| ways.is_own(source)).await,
                Lost::Others => conntrack::delete_marked_if(*mark, |source, _| !ways.is_own(source)).await,
            };
            if let Err(error) = ended {
                tell(Notice::FlowsStay { error: error.to_string() });
            }
        }
        self.applied.egress = now;
    }

    /// Flows of a network that has come to leave by this host, and that began when it did not, are not mapped: they end.
    async fn forget_unmapped(&mut self, state: &HostState) {
        let local = state.networks.iter().filter(|n| matches!(n.out, HostOut::Local(_)));
        let now: BTreeSet<u8> = local.map(|network| network.slot).collect();
        let new: Vec<u8> = now.difference(&self.applied.local).copied().collect();
        if let Err(error) = unmapped::delete_unmapped(state, &new).await {
            tell(Notice::FlowsStay { error: error.to_string() });
        }
        self.applied.local = now;
    }

    async fn remove_rules(&self) -> Result<usize, HostError> {
        let mut count = 0;
        for v4 in [true, false] {
            for (_, message) in routes::own_rules(&self.handle, v4).await? {
                routes::remove_rule(&self.handle, message).await?;
                count += 1;
            }
        }
        Ok(count)
    }

    async fn remove_routes(&self, which: impl Fn(Option<&Route>) -> bool) -> Result<usize, HostError> {
        let links = links::links(&self.handle).await?;
        let mut count = 0;
        for v4 in [true, false] {
            for (route, message) in routes::own_routes(&self.handle, v4, &links).await? {
                if which(route.as_ref()) {
                    routes::remove_route(&self.handle, message).await?;
                    count += 1;
                }
            }
        }
        Ok(count)
    }

    async fn remove_proxies(&self) -> Result<usize, HostError> {
        let found = routes::own_proxies(&self.handle).await?;
        let count = found.len();
        for message in found.into_values() {
            routes::remove_proxy(&self.handle, message).await?;
        }
        Ok(count)
    }
}
