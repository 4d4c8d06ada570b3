//! The `ca` commands: make a CA, sign certificates, show what one allows. They need no node.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use mesh_proto::identity::{Ca, Grants, Identity, IssueRequest, NodeKey, PublicKeySource, rfc3339};
use mesh_proto::{MeshId, NetworkName, NodeId, Prefix, api};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};
use x509_parser::pem::Pem;

/// A certificate is valid at once on hosts whose clocks are this much behind the CA's.
const CLOCK_SLACK_SECONDS: i64 = 300;

const DAY_SECONDS: i64 = 86_400;

const SECRET: u32 = 0o600;
const PUBLIC: u32 = 0o644;

/// Commands on certificates.
#[derive(Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// Make a mesh CA: D/ca.pem and D/ca.key; keep the key offline
    #[command(after_help = "Example:\n  mesh-ctl ca init --name prod --dir /root/mesh-ca")]
    Init(Init),
    /// Sign a node's certificate: D/NODE.pem and, without --csr, D/NODE.key
    #[command(
        after_help = "Examples:\n  mesh-ctl ca issue ph1 --prefix 10.77.1.0/24 --dir /root/mesh-ca\n  \
        mesh-ctl ca issue ph2 --prefix 10.77.2.0/24 blue=10.88.2.0/24 --announce 203.0.113.0/24 --egress"
    )]
    Issue(Issue),
    /// Show whose a certificate is, until when, and what it allows
    #[command(after_help = "Example:\n  mesh-ctl ca show /etc/mesh/node.pem")]
    Show {
        /// A certificate (PEM): a node's or a CA's
        file: PathBuf,
    },
}

/// What `ca show` prints: a certificate, or all of a file that has several.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Shown {
    /// One.
    One(Certificate),
    /// In the order of the file.
    Several {
        /// `SCHEMA`.
        schema: u32,
        /// All of them.
        certificates: Vec<Certificate>,
    },
}

/// Whose certificate, and until when.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Certificate {
    /// A node's.
    Node(NodeCertificate),
    /// A CA's.
    Ca(CaCertificate),
}

/// A node's certificate.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct NodeCertificate {
    /// `SCHEMA`.
    schema: u32,
    /// `node`.
    kind: &'static str,
    /// `valid`, `not_yet_valid` or `expired`.
    state: &'static str,
    /// Why it is not valid.
    reason: Option<&'static str>,
    /// Valid from.
    not_before: String,
    /// Valid until.
    not_after: String,
    /// Whose.
    node: String,
    /// Of which mesh.
    mesh: String,
    /// Whether it may carry others' traffic out of the mesh.
    egress: bool,
    /// Groups of the node.
    groups: Vec<String>,
    /// What it may announce, by network.
    networks: Vec<Allowance>,
}

/// What may be announced in a network.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Allowance {
    /// The network.
    name: String,
    /// These, or any part of them.
    prefixes: Vec<Prefix>,
}

/// A CA's certificate.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct CaCertificate {
    /// `SCHEMA`.
    schema: u32,
    /// `ca`.
    kind: &'static str,
    /// `valid`, `not_yet_valid` or `expired`.
    state: &'static str,
    /// Why it is not valid.
    reason: Option<&'static str>,
    /// Valid from.
    not_before: String,
    /// Valid until.
    not_after: String,
    /// Of which mesh.
    mesh: String,
}

/// `ca init`.
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Name of the mesh
    #[arg(long, value_name = "MESH", default_value = "mesh")]
    pub(crate) name: MeshId,
    /// Where to write; made if missing
    #[arg(long, value_name = "D", default_value = ".")]
    pub(crate) dir: PathBuf,
    /// How long the CA is valid
    #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub(crate) days: u32,
}

/// `ca issue`.
#[derive(Debug, Args)]
pub(crate) struct Issue {
    /// Name of the node
    pub(crate) node: NodeId,
    /// Mesh prefixes the node may announce, in network NETWORK or else in `default`
    #[arg(long, required = true, num_args = 1.., value_name = "[NETWORK=]P")]
    pub(crate) prefix: Vec<Allowed>,
    /// Public addresses that may be behind the node
    #[arg(long, num_args = 1.., value_name = "[NETWORK=]P")]
    pub(crate) announce: Vec<Allowed>,
    /// Allow it to carry others' traffic out of the mesh
    #[arg(long)]
    pub(crate) egress: bool,
    /// How long the certificate is valid
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub(crate) days: u32,
    /// Where the CA is, and where to write
    #[arg(long, value_name = "D", default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Sign this request's key (PEM), made on the node itself
    #[arg(long, value_name = "FILE")]
    pub(crate) csr: Option<PathBuf>,
}

/// A prefix, and the network it is allowed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Allowed {
    network: NetworkName,
    prefix: Prefix,
}

impl std::str::FromStr for Allowed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (network, prefix) = text.split_once('=').unwrap_or(("default", text));
        Ok(Self {
            network: network.parse().map_err(|e| format!("network {e}"))?,
            prefix: prefix.parse().map_err(|e: mesh_proto::prefix::PrefixError| e.to_string())?,
        })
    }
}

/// Makes a CA.
pub(crate) fn init(init: &Init, now: i64) -> anyhow::Result<String> {
    let (cert, key) = (init.dir.join("ca.pem"), init.dir.join("ca.key"));
    for file in [&cert, &key] {
        if file.symlink_metadata().is_ok() {
            bail!(
                "{} exists: a CA is never overwritten; choose another --dir or move it away",
                file.display()
            );
        }
    }
    fs::create_dir_all(&init.dir).with_context(|| format!("make {}", init.dir.display()))?;
    let ca = Ca::init(&init.name, now - CLOCK_SLACK_SECONDS, init.days)?;
    create(&key, &ca.key_pem(), SECRET)?;
    create(&cert, ca.cert_pem(), PUBLIC)?;
    Ok(format!(
        "mesh {}: wrote {}, and {} (keep it offline; it signs every node)\n",
        init.name,
        cert.display(),
        key.display()
    ))
}

/// Signs a certificate.
pub(crate) fn issue(issue: &Issue, now: i64) -> anyhow::Result<String> {
    let Issue { node, dir, .. } = issue;
    if node.as_str() == "ca" {
        bail!("a node cannot be named ca: its files would be the CA's; choose another name");
    }
    let read = |file: &Path| fs::read_to_string(file).with_context(|| format!("read {}", file.display()));
    let remedy = "make a CA with `mesh-ctl ca init`, or name its directory with --dir";
    let ca_pem = read(&dir.join("ca.pem")).context(remedy)?;
    let ca = Ca::from_pem(&ca_pem, &read(&dir.join("ca.key")).context(remedy)?)?;
    let mut grants = Grants { egress: issue.egress, ..Grants::default() };
    for allowed in issue.prefix.iter().chain(&issue.announce) {
        grants.allow(&allowed.network, allowed.prefix);
    }
    let csr = issue.csr.as_deref().map(read).transpose()?;
    let key = if csr.is_none() { Some(NodeKey::generate()?) } else { None };
    let public_key = match (&csr, &key) {
        (Some(csr), _) => PublicKeySource::Csr(csr),
        (None, Some(key)) => PublicKeySource::Key(key),
        (None, None) => bail!("no key to certify"),
    };
    let not_after = now.saturating_add(i64::from(issue.days) * DAY_SECONDS);
    let pem = ca.issue(&IssueRequest {
        node: node.clone(),
        grants,
        public_key,
        not_before: now - CLOCK_SLACK_SECONDS,
        not_after,
    })?;
    let mut told = String::new();
    if let Some(key) = key {
        let file = dir.join(format!("{node}.key"));
        replace(&file, &key.to_pem()?, SECRET)?;
        told = format!(", and {} (give it to the node alone)", file.display());
    }
    let file = dir.join(format!("{node}.pem"));
    replace(&file, &pem, PUBLIC)?;
    let until = rfc3339(not_after);
    let mut told =
        format!("node {node} of mesh {}, until {until}: wrote {}{told}\n", ca.mesh(), file.display());
    if ca_ends(&ca_pem).is_some_and(|ends| ends < not_after) {
        told.push_str("note: the CA ends before this certificate, which then is no longer believed\n");
    }
    Ok(told)
}

fn ca_ends(pem: &str) -> Option<i64> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    Some(pem.parse_x509().ok()?.validity().not_after.timestamp())
}

/// What the certificates of a file say, as one object.
pub(crate) fn show(file: &Path, now: i64) -> anyhow::Result<Value> {
    let bytes = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let mut shown = Vec::new();
    for pem in Pem::iter_from_buffer(&bytes) {
        let pem = pem.with_context(|| format!("{} is not a PEM file", file.display()))?;
        if pem.label == "CERTIFICATE" {
            shown.push(show_one(&pem, now).with_context(|| format!("{}", file.display()))?);
        }
    }
    match shown.len() {
        0 => bail!("{} has no certificate: give a node's NODE.pem or a ca.pem", file.display()),
        1 => Ok(json!(Shown::One(shown.swap_remove(0)))),
        _ => Ok(json!(Shown::Several { schema: api::SCHEMA, certificates: shown })),
    }
}

fn show_one(pem: &Pem, now: i64) -> anyhow::Result<Certificate> {
    let cert = pem.parse_x509().context("certificate cannot be read")?;
    let (from, until) = (cert.validity().not_before.timestamp(), cert.validity().not_after.timestamp());
    let (state, reason) = if now < from {
        ("not_yet_valid", Some("its time has not come: check this host's clock"))
    } else if now > until {
        ("expired", Some("its time is over: issue a new one"))
    } else {
        ("valid", None)
    };
    let (schema, not_before, not_after) = (api::SCHEMA, rfc3339(from), rfc3339(until));
    if cert.is_ca() {
        let name = cert.subject().iter_common_name().next().and_then(|n| n.as_str().ok());
        let mesh = name.context("CA certificate has no name")?.to_owned();
        return Ok(Certificate::Ca(CaCertificate {
            schema,
            kind: "ca",
            state,
            reason,
            not_before,
            not_after,
            mesh,
        }));
    }
    let identity = Identity::from_certificate(&pem.contents)?;
    let networks = identity.grants.networks.iter().map(|(name, grants)| Allowance {
        name: name.to_string(),
        prefixes: grants.iter().map(|g| g.prefix).collect(),
    });
    Ok(Certificate::Node(NodeCertificate {
        schema,
        kind: "node",
        state,
        reason,
        not_before,
        not_after,
        node: identity.node.to_string(),
        mesh: identity.mesh.to_string(),
        egress: identity.grants.egress,
        groups: identity.grants.groups.iter().map(ToString::to_string).collect(),
        networks: networks.collect(),
    }))
}

/// Writes a file that must not exist.
fn create(file: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let write = || {
        let mut out = OpenOptions::new().write(true).create_new(true).mode(mode).open(file)?;
        out.write_all(text.as_bytes())?;
        out.sync_all()
    };
    write().with_context(|| format!("write {}", file.display()))
}

/// Writes a file beside its place and moves it there, so that no reader sees half of it, and a key's mode is right from the
/// first byte.
fn replace(file: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let mut beside = file.as_os_str().to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = PathBuf::from(beside);
    create(&beside, text, mode)?;
    fs::rename(&beside, file).with_context(|| format!("write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const NOW: i64 = 1_790_000_000;

    fn init_in(dir: &Path) -> anyhow::Result<String> {
        init(&Init { name: "prod".parse().unwrap(), dir: dir.to_owned(), days: 3650 }, NOW)
    }

    fn issue_for(node: &str, dir: &Path, csr: Option<PathBuf>) -> anyhow::Result<String> {
        let one = |text: &str| vec![text.parse().unwrap()];
        issue(
            &Issue {
                node: node.parse().unwrap(),
                prefix: one("10.77.1.0/24"),
                announce: one("blue=203.0.113.0/24"),
                egress: true,
                days: 365,
                dir: dir.to_owned(),
                csr,
            },
            NOW,
        )
    }

    #[test]
    fn a_prefix_is_in_default_unless_a_network_is_named() {
        let parse = |text: &str| text.parse::<Allowed>();
        let plain = parse("10.77.1.0/24").unwrap();
        assert_eq!((plain.network.as_str(), plain.prefix.to_string()), ("default", "10.77.1.0/24".into()));
        let named = parse("blue=fd77:1::/64").unwrap();
        assert_eq!((named.network.as_str(), named.prefix.to_string()), ("blue", "fd77:1::/64".into()));
        assert!(parse("10.77.1.7/24").unwrap_err().contains("10.77.1.0/24"));
        for bad in ["", "=10.0.0.0/8", "Blue=10.0.0.0/8", "blue=", "a=b=10.0.0.0/8"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_ca_is_made_once_and_its_certificates_show_what_they_allow() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("new/ca");
        init_in(&dir).unwrap();
        let before = fs::read(dir.join("ca.key")).unwrap();
        assert!(init_in(&dir).unwrap_err().to_string().contains("never overwritten"));
        assert_eq!(fs::read(dir.join("ca.key")).unwrap(), before);
        issue_for("ph1", &dir, None).unwrap();
        for (file, mode) in [("ca.key", 0o600), ("ph1.key", 0o600)] {
            assert_eq!(fs::metadata(dir.join(file)).unwrap().permissions().mode() & 0o777, mode, "{file}");
        }
        let shown = show(&dir.join("ph1.pem"), NOW).unwrap();
        assert_eq!(shown["schema"], 1);
        assert_eq!((&shown["node"], &shown["mesh"]), (&json!("ph1"), &json!("prod")));
        assert_eq!((&shown["egress"], &shown["state"]), (&json!(true), &json!("valid")));
        let networks = json!([
            { "name": "blue", "prefixes": ["203.0.113.0/24"] },
            { "name": "default", "prefixes": ["10.77.1.0/24"] },
        ]);
        assert_eq!(shown["networks"], networks);
        assert_eq!(shown["not_before"], json!(rfc3339(NOW - 300)));
        assert_eq!(show(&dir.join("ph1.pem"), NOW + 366 * DAY_SECONDS).unwrap()["state"], "expired");
        let ca = show(&dir.join("ca.pem"), NOW).unwrap();
        assert_eq!((&ca["kind"], &ca["mesh"]), (&json!("ca"), &json!("prod")));
        assert!(show(&dir.join("ph1.key"), NOW).is_err());
    }

    #[test]
    fn a_signing_request_gets_a_certificate_and_no_key() {
        let temp = tempfile::tempdir().unwrap();
        init_in(temp.path()).unwrap();
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let file = temp.path().join("ph2.csr");
        fs::write(&file, csr).unwrap();
        issue_for("ph2", temp.path(), Some(file)).unwrap();
        assert!(temp.path().join("ph2.pem").exists() && !temp.path().join("ph2.key").exists());
    }

    #[test]
    fn a_node_cannot_take_the_ca_s_files_and_a_missing_ca_is_told_with_the_remedy() {
        let temp = tempfile::tempdir().unwrap();
        let error = issue_for("ph1", temp.path(), None).unwrap_err();
        assert!(format!("{error:#}").contains("mesh-ctl ca init"));
        init_in(temp.path()).unwrap();
        assert!(issue_for("ca", temp.path(), None).is_err());
    }
}
