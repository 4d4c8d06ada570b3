//! The configuration is read anew while the node runs: all of it is checked first, then all of it is applied, or none.

use std::path::Path;

use mesh_proto::api::{Reload, ReloadChange, SCHEMA};
use mesh_proto::identity::rfc3339;
use tokio::sync::oneshot;

use crate::config::document::{Change, Document};
use crate::control::event::{Input, LocalNetwork, Reloaded};
use crate::control_loop::kernel_follows;
use crate::io::notices::tell;
use crate::io::quic;
use crate::io::quic::connection::Event;
use crate::io::quic::tls::Credentials;
use crate::node::Node;
use crate::notice::Notice;
use crate::prepare::{Prepared, Running, prepare_for};

const APPLIED: &str = "applied";
const NEEDS_RESTART: &str = "needs restart";
const REJECTED: &str = "rejected";

impl Node {
    /// Reads the file anew; tells what came of it, key by key.
    pub(crate) async fn reload(&mut self) -> Reload {
        let path = self.running.config.path.clone();
        let report = match self.try_reload(&path).await {
            Ok(changes) => applied(changes),
            Err(error) => {
                self.tell(Event::Input(Input::Reload(Err(())))).await;
                self.rejected(&path, format!("{error:#}"))
            }
        };
        log(&report);
        report
    }

    async fn try_reload(&mut self, path: &Path) -> anyhow::Result<Vec<Change>> {
        let prepared = prepare_for(path, Some(&self.running)).await?;
        let mut changes = self.running.document.changes(&prepared.in_file);
        self.looked_at(&prepared, &mut changes);
        // what may fail comes first, and is undone where it does
        let added = prepared.local.networks.iter().try_for_each(|network| self.devices.add(network));
        let client = match added.and_then(|()| {
            let largest = quic::datagram::udp_payload(prepared.local.underlay_mtu);
            let transport = quic::offloads::transport(&prepared.config.node, largest);
            quic::endpoint::renew(&self.quic, &prepared.credentials, transport)
        }) {
            Ok(client) => client,
            Err(error) => {
                self.devices.retain(&self.networks);
                return Err(error);
            }
        };
        let Prepared { config, document, numbers, local, trust, credentials, in_file: _ } = prepared;
        self.networks.clone_from(&local.networks);
        let identity = local.identity.clone();
        let input = Input::Reload(Ok(Box::new(Reloaded { local, trust })));
        let (done, counts) = oneshot::channel();
        let certificate = credentials.leaf()?;
        self.tell(Event::Reload { input, client, certificate, done }).await;
        // a device goes after what the kernel has about it; gone before, it would look like somebody's doing
        if let Ok(number) = counts.await {
            kernel_follows(&mut self.host_applied, number).await;
        }
        self.devices.retain(&self.networks);
        let moved = config.node.metrics != self.running.config.node.metrics;
        self.running = Running { config, document, numbers, identity };
        self.credentials = credentials;
        self.watch_addresses();
        self.watch_uplinks();
        if moved {
            self.serve_metrics();
        }
        Ok(changes)
    }

    /// Changes that do not stand in the file: certificates renewed in place, addresses of an interface.
    fn looked_at(&self, prepared: &Prepared, changes: &mut Vec<Change>) {
        let written = |section: &str, key: Option<&str>, changes: &[Change]| {
            changes.iter().any(|c| c.section == section && (key.is_none() || c.key.as_deref() == key))
        };
        let Credentials { chain, roots, .. } = &self.credentials;
        let expires = |unix: i64| Some(rfc3339(unix));
        if *chain != prepared.credentials.chain && !written("node", Some("certificate"), changes) {
            changes.push(Change {
                section: "node".into(),
                key: Some("certificate".into()),
                before: expires(self.running.identity.not_after),
                after: expires(prepared.local.identity.not_after),
            });
        }
        if *roots != prepared.credentials.roots && !written("node", Some("ca"), changes) {
            changes.push(Change {
                section: "node".into(),
                key: Some("ca".into()),
                before: Some("former certificates".into()),
                after: Some("new certificates".into()),
            });
        }
        for new in &prepared.local.networks {
            let section = format!("network {}", new.name);
            let Some(old) = self.networks.iter().find(|old| old.ix == new.ix) else { continue };
            if (&old.maps, &old.gateways) != (&new.maps, &new.gateways) && !written(&section, None, changes) {
                let key = Some(format!("addresses of {}", new.interface));
                changes.push(Change { section, key, before: gateways(old), after: gateways(new) });
            }
        }
    }

    fn rejected(&self, path: &Path, reason: String) -> Reload {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let changes = match Document::new(&text) {
            unreadable if unreadable == Document::default() => Vec::new(),
            document => self.running.document.changes(&document),
        };
        let changes = changes.into_iter().map(|change| told(change, REJECTED)).collect();
        Reload { schema: SCHEMA, state: REJECTED.into(), reason: Some(reason), changes }
    }

    async fn tell(&self, event: Event) {
        // the control loop is gone at a stop only
        let _ = self.events.send(event).await;
    }
}

fn gateways(network: &LocalNetwork) -> Option<String> {
    Some(network.gateways.iter().map(|(_, address)| address.to_string()).collect::<Vec<_>>().join(", "))
}

fn applied(changes: Vec<Change>) -> Reload {
    let state = |change: &Change| if change.at_start() { NEEDS_RESTART } else { APPLIED };
    let waiting: Vec<String> = changes.iter().filter(|c| c.at_start()).map(Change::name).collect();
    let reason = (!waiting.is_empty())
        .then(|| format!("restart the node for {}: it counts at the start only", waiting.join(", ")));
    Reload {
        schema: SCHEMA,
        state: if waiting.is_empty() { APPLIED } else { NEEDS_RESTART }.into(),
        reason,
        changes: changes
            .into_iter()
            .map(|change| {
                let state = state(&change);
                told(change, state)
            })
            .collect(),
    }
}

fn told(change: Change, state: &str) -> ReloadChange {
    ReloadChange { key: change.name(), before: change.before, after: change.after, state: state.into() }
}

fn log(report: &Reload) {
    let effective = report.changes.iter().filter(|change| change.state != REJECTED);
    for ReloadChange { key, before, after, state } in effective.cloned() {
        tell(Notice::KeyChanged { key, before, after, state });
    }
    tell(match (report.state.as_str(), report.reason.clone()) {
        (REJECTED, error) => Notice::ConfigurationRejected { error: error.unwrap_or_default() },
        (_, Some(text)) => Notice::ConfigurationInPart { text },
        (_, None) => Notice::ConfigurationApplied { count: report.changes.len() as u64 },
    });
}
