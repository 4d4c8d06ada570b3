//! From the configuration file to what the node starts with: certificates and interfaces are looked at, nothing is changed.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use mesh_proto::identity::{Identity, NodeKey, TrustRoots};
use mesh_proto::limits::MAX_NETWORKS;
use mesh_proto::{NetworkName, Prefix};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::config::document::Document;
use crate::config::{self, Config, ConfigError, EgressChoice, EgressConfig, NetworkConfig};
use crate::control::Trust;
use crate::control::event::{LocalNetwork, LocalNode, Now};
use crate::forward::fib::NetworkIx;
use crate::io;
use crate::io::host::addresses::HostAddresses;
use crate::io::host::links::InterfaceAddress;
use crate::io::quic::tls::Credentials;

/// What a configuration comes to once certificates and interfaces have been looked at.
pub struct Prepared {
    pub(crate) config: Config,
    /// As it is in effect.
    pub(crate) document: Document,
    /// As it is written.
    pub(crate) in_file: Document,
    pub(crate) numbers: Numbers,
    pub(crate) local: LocalNode,
    pub(crate) trust: Trust,
    pub(crate) credentials: Credentials,
}

/// Numbers of the networks. Packets under way bear them, and so do routing tables: a network keeps its number as long as
/// the node runs, also when it goes and comes back, and no other network gets it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Numbers(Vec<NetworkName>);

impl Numbers {
    fn of(&mut self, network: &NetworkName) -> Option<NetworkIx> {
        let known = self.0.iter().position(|name| name == network);
        let number = known.unwrap_or_else(|| {
            self.0.push(network.clone());
            self.0.len() - 1
        });
        (number < MAX_NETWORKS).then_some(NetworkIx(number as u8))
    }
}

/// What a running node holds on to when its configuration is read anew.
pub(crate) struct Running {
    pub(crate) config: Config,
    pub(crate) document: Document,
    pub(crate) numbers: Numbers,
    pub(crate) identity: Identity,
}

/// Reads and checks everything; changes nothing. Every error of the file at once.
pub async fn prepare(path: &Path) -> anyhow::Result<Prepared> {
    prepare_for(path, None).await
}

/// The same for a node that runs: what counts at the next start only is as it was.
pub(crate) async fn prepare_for(path: &Path, running: Option<&Running>) -> anyhow::Result<Prepared> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let (mut config, mut errors) = Config::read(&text, path);
    let in_file = Document::new(&text);
    let mut document = in_file.clone();
    if let Some(running) = running {
        config.node.keep(&running.config.node);
        document = document.in_effect(&running.document);
    }
    let mut numbers = running.map(|running| running.numbers.clone()).unwrap_or_default();
    let now = io::now();
    let host = HostAddresses::read().await.context("read the host's addresses")?;
    let credentials = credentials(&config, now);
    let identity = credentials.as_ref().ok().map(|(_, _, identity)| identity);
    let mut told = |table, error: String| {
        let line = config::key_line(&text, table, &error);
        errors.0.push(ConfigError { path: path.to_owned(), line, text: error });
    };
    let networks = look_at_networks(&config, &host, identity, &mut numbers, &mut told);
    look_at_egress(&config, &host, identity, &mut told);
    if !errors.0.is_empty() {
        errors.0.sort_by_key(|e| e.line);
        let rest = credentials.err().map(|e| format!("\n{e:#}")).unwrap_or_default();
        bail!("{errors}{rest}");
    }
    let (credentials, key, identity) = credentials?;
    if let Some(Running { identity: own, .. }) = running
        && (&own.node, &own.mesh) != (&identity.node, &identity.mesh)
    {
        bail!(
            "{} names {} of mesh {}, this node is {} of mesh {}: restart it to change its name",
            config.node.certificate.display(),
            identity.node,
            identity.mesh,
            own.node,
            own.mesh
        );
    }
    let local = LocalNode {
        endpoints: endpoints(&config, &networks, &host),
        generation: now.unix_ms,
        egress: config.egress.clone(),
        connected: connected(&host),
        links: links(&networks, &host),
        expose: config.node.expose.clone(),
        seeds: config.peers.iter().map(|p| (p.endpoint.clone(), p.name.clone())).collect(),
        uplinks: uplinks(&config, &host),
        underlay_mtu: underlay_mtu(&config, &networks, &host),
        mtu: config.node.mtu,
        foreign_chains: config.node.foreign_chains,
        probe: config.node.probe,
        probes: config.peers.iter().filter_map(|p| Some((p.endpoint.clone(), p.probe?))).collect(),
        identity,
        networks,
    };
    let trust = Trust { chain: credentials.chain.clone(), key, roots: credentials.roots.clone() };
    Ok(Prepared { config, document, in_file, numbers, local, trust, credentials })
}

/// Interfaces and certificate against the networks of the file.
fn look_at_networks(
    config: &Config,
    host: &HostAddresses,
    identity: Option<&Identity>,
    numbers: &mut Numbers,
    told: &mut impl FnMut(usize, String),
) -> Vec<LocalNetwork> {
    let mut networks: Vec<LocalNetwork> = Vec::new();
    let mut refused: Vec<(usize, &str, &NetworkName, Prefix)> = Vec::new();
    for network in &config.networks {
        let NetworkConfig { name, interface, line, .. } = network;
        let Some(ix) = numbers.of(name) else {
            let text = "has no number left: more than 64 networks since the node started; restart it";
            told(*line, format!("name = {name}: {text}"));
            continue;
        };
        let Some(addresses) = host.of(interface) else {
            told(
                *line,
                format!(
                    "interface = {interface:?}: does not exist; create the bridge first (`ip link` lists what is there)"
                ),
            );
            continue;
        };
        let resolved = match network.resolve(&addresses) {
            Ok(resolved) => resolved,
            Err(found) => {
                found.into_iter().for_each(|e| told(*line, e));
                continue;
            }
        };
        if let Some(identity) = identity {
            let mapped = resolved.maps.iter().map(|(_, p)| ("prefix", *p));
            let claims = mapped.chain(network.announce.iter().map(|a| ("announce", a.prefix)));
            let beyond = claims.filter(|(_, prefix)| !identity.grants.allows(name, prefix));
            refused.extend(beyond.map(|(key, prefix)| (*line, key, name, prefix)));
        }
        for (subnet, _) in &resolved.maps {
            for other in &networks {
                // two that are both written in the file were compared there
                let written = |n: &NetworkConfig| !n.subnets.is_empty();
                let theirs = config.networks.iter().find(|n| n.name == other.name);
                if written(network) && theirs.is_some_and(written) {
                    continue;
                }
                if let Some((clash, _)) = other.maps.iter().find(|(s, _)| s.overlaps(subnet)) {
                    told(
                        *line,
                        format!(
                            "subnet = {subnet}: overlaps {clash} of network {} on this host; give one of them another subnet",
                            other.name
                        ),
                    );
                }
            }
            for announced in network.announce.iter().filter(|a| a.prefix.overlaps(subnet)) {
                told(
                    *line,
                    format!(
                        "announce = {}: lies in the local subnet {subnet}, which is reached by its mesh prefix; remove it",
                        announced.prefix
                    ),
                );
            }
        }
        networks.push(LocalNetwork {
            ix,
            name: name.clone(),
            interface: interface.clone(),
            tun: tun_name(ix, name.as_str()),
            maps: resolved.maps,
            gateways: resolved.subnets_with_gateway,
            announce: network.announce.clone(),
            egress: network.egress.clone(),
            egress_rules: network.egress_rules,
        });
    }
    if let Some(identity) = identity {
        let claims: Vec<_> = refused.iter().map(|(_, key, name, prefix)| (*key, *name, *prefix)).collect();
        let command = issue_command(config, identity, &claims);
        for (line, key, name, prefix) in refused {
            let file = config.node.certificate.display();
            told(
                line,
                format!(
                    "{key} = {prefix}: not allowed by {file} in network {name}; issue one that does: `{command}`"
                ),
            );
        }
    }
    networks.sort_by_key(|network| network.ix.0);
    networks
}

/// Whether the file asks for a right: to carry others' traffic. "local" is this host's own affair.
fn carries_others(config: &Config, egress: &EgressConfig) -> bool {
    let others =
        |n: &NetworkName| config.networks.iter().any(|c| c.name == *n && c.egress != EgressChoice::Local);
    egress.networks.iter().any(others)
}

/// What makes a certificate that allows these claims as well as all that the present one does.
fn issue_command(config: &Config, identity: &Identity, claims: &[(&str, &NetworkName, Prefix)]) -> String {
    let Identity { node, grants, .. } = identity;
    let held =
        grants.networks.iter().flat_map(|(n, grants)| grants.iter().map(move |g| ("prefix", n, g.prefix)));
    let mut command = format!("mesh-ctl ca issue {node}");
    for (key, name, prefix) in held.chain(claims.iter().copied()) {
        command += &match name.as_str() {
            "default" => format!(" --{key} {prefix}"),
            name => format!(" --{key} {name}={prefix}"),
        };
    }
    if grants.egress || config.egress.iter().any(|egress| carries_others(config, egress)) {
        command += " --egress";
    }
    command
}

/// Interfaces and certificate against the egress of the file.
fn look_at_egress(
    config: &Config,
    host: &HostAddresses,
    identity: Option<&Identity>,
    told: &mut impl FnMut(usize, String),
) {
    for egress in &config.egress {
        let others = carries_others(config, egress);
        if let Some(identity) = identity.filter(|i| others && !i.grants.egress) {
            let (file, command) = (config.node.certificate.display(), issue_command(config, identity, &[]));
            told(egress.line, format!("[[egress]]: not allowed by {file}; issue one that does: `{command}`"));
        }
        if host.of(&egress.interface).is_none() {
            told(
                egress.line,
                format!("interface = {:?}: does not exist; `ip link` lists what is there", egress.interface),
            );
        }
    }
}

fn credentials(config: &Config, now: Now) -> anyhow::Result<(Credentials, NodeKey, Identity)> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    let node = &config.node;
    let roots = TrustRoots::from_pem(&read(&node.ca)?).with_context(|| node.ca.display().to_string())?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read(&node.certificate)?)
        .collect::<Result<_, _>>()
        .map_err(|e| anyhow::anyhow!("{}: {e}", node.certificate.display()))?;
    let unix = UnixTime::since_unix_epoch(Duration::from_millis(now.unix_ms));
    let identity = roots
        .verify(&chain, unix)
        .with_context(|| format!("{} against {}", node.certificate.display(), node.ca.display()))?;
    let pem = String::from_utf8(read(&node.key)?).with_context(|| node.key.display().to_string())?;
    let key = NodeKey::from_pem(&pem).with_context(|| node.key.display().to_string())?;
    if !identity.verify_signature(b"", b"key check", &key.sign(b"", b"key check")) {
        bail!("{} is not the key of {}", node.key.display(), node.certificate.display());
    }
    let credentials = Credentials { chain, key: key.private_key_der(), roots: Arc::new(roots) };
    Ok((credentials, key, identity))
}

/// A device name has at most 15 characters.
fn tun_name(ix: NetworkIx, network: &str) -> String {
    let name = format!("mesh-{network}");
    if name.len() <= 15 {
        return name;
    }
    let mut name = format!("mesh{}-{network}", ix.0);
    name.truncate(15);
    name
}

/// Where others find us: `advertise`; or the listen address; or every global address that is no segment's.
pub(crate) fn endpoints(config: &Config, networks: &[LocalNetwork], host: &HostAddresses) -> Vec<SocketAddr> {
    if !config.node.advertise.is_empty() {
        return config.node.advertise.clone();
    }
    let listen = config.node.listen;
    if !listen.ip().is_unspecified() {
        return vec![listen];
    }
    let mut found: Vec<SocketAddr> =
        underlay(config, networks, host).map(|a| SocketAddr::new(a.address, listen.port())).collect();
    found.sort();
    found.dedup();
    found
}

/// The addresses on which peers are met: the listen address; or every global address that is no segment's.
fn underlay<'a>(
    config: &Config,
    networks: &'a [LocalNetwork],
    host: &'a HostAddresses,
) -> impl Iterator<Item = &'a InterfaceAddress> {
    let listen = config.node.listen.ip();
    let of_segment = |interface: &str, address: IpAddr| {
        networks.iter().any(|n| {
            n.interface == interface
                || n.tun == interface
                || n.maps.iter().any(|(a, b)| a.contains(address) || b.contains(address))
                || n.announce.iter().any(|a| a.prefix.contains(address))
        })
    };
    host.all().iter().filter(move |a| {
        let any =
            a.global && (a.address.is_ipv4() || listen.is_ipv6()) && !of_segment(&a.interface, a.address);
        if listen.is_unspecified() { any } else { a.address == listen }
    })
}

/// What the widest of their interfaces carries; Ethernet's 1,500 where there is none yet.
fn underlay_mtu(config: &Config, networks: &[LocalNetwork], host: &HostAddresses) -> u32 {
    underlay(config, networks, host).filter_map(|a| host.mtu(&a.interface)).max().unwrap_or(1500)
}

/// This host's addresses, singly, and the networks it is connected to.
fn connected(host: &HostAddresses) -> Vec<Prefix> {
    let mut prefixes = Vec::new();
    for address in host.all() {
        prefixes.push(Prefix::host(address.address));
        prefixes.extend(address.network());
    }
    prefixes.sort();
    prefixes.dedup();
    prefixes
}

/// Connected networks by device, segments and loopback excepted.
fn links(networks: &[LocalNetwork], host: &HostAddresses) -> Vec<(String, Prefix)> {
    let ours = |device: &str| networks.iter().any(|n| n.interface == device || n.tun == device);
    let outside = host.global().filter(|a| !ours(&a.interface));
    let mut found: Vec<(String, Prefix)> =
        outside.filter_map(|a| Some((a.interface.clone(), a.network()?))).collect();
    found.sort();
    found.dedup();
    found
}

fn uplinks(config: &Config, host: &HostAddresses) -> Vec<String> {
    let mut found: Vec<String> =
        host.uplinks().iter().cloned().chain(config.egress.iter().map(|e| e.interface.clone())).collect();
    found.sort();
    found.dedup();
    found
}
