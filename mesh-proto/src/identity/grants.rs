//! What a certificate allows: lines of text in its private extension.
//!
//! ```text
//! v1
//! node=ph1
//! network=default prefix=10.77.1.0/24 le 32
//! role=egress
//! group=rack-7
//! ```

use std::collections::BTreeMap;
use std::fmt;

use crate::{NetworkName, NodeId, Prefix};

/// A prefix, of which any part down to length `le` may be announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PrefixGrant {
    /// The prefix.
    pub prefix: Prefix,
    /// Longest length of a part.
    pub le: u8,
}

/// What a certificate allows. The default is nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    /// By network.
    pub networks: BTreeMap<NetworkName, Vec<PrefixGrant>>,
    /// May carry others' traffic to other networks.
    pub egress: bool,
    /// Groups it belongs to.
    pub groups: Vec<String>,
}

/// A line that is not of the grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("grants, line {line}: {text:?} is not understood")]
pub struct GrantsError {
    line: usize,
    text: String,
}

impl Grants {
    /// Allows a prefix and every part of it.
    pub fn allow(&mut self, network: &NetworkName, prefix: Prefix) {
        let le = if prefix.is_v4() { 32 } else { 128 };
        self.networks.entry(network.clone()).or_default().push(PrefixGrant { prefix, le });
    }

    /// Whether `prefix` may be announced in `network`.
    pub fn allows(&self, network: &NetworkName, prefix: &Prefix) -> bool {
        self.granting(network, prefix).is_some()
    }

    /// By what `prefix` may be announced in `network`.
    pub fn granting(&self, network: &NetworkName, prefix: &Prefix) -> Option<&PrefixGrant> {
        let grants = self.networks.get(network).map_or(&[][..], Vec::as_slice);
        grants.iter().find(|g| g.prefix.covers(prefix) && prefix.len() <= g.le)
    }

    /// As the extension's text.
    pub fn to_text(&self, node: &NodeId) -> String {
        format!("v1\nnode={node}\n{self}")
    }

    /// From the extension's text: of which node, and what.
    pub fn parse(text: &str) -> Result<(NodeId, Self), GrantsError> {
        let refuse =
            |(i, line): (usize, &str)| GrantsError { line: i + 1, text: line.chars().take(80).collect() };
        let mut lines = text.lines().enumerate();
        match lines.next() {
            Some((_, "v1")) => {}
            other => return Err(refuse(other.unwrap_or((0, "")))),
        }
        let mut node = None;
        let mut grants = Self::default();
        for (i, line) in lines {
            let understood = match line.split_once('=') {
                Some(("node", name)) => name.parse().ok().map(|name| node = Some(name)),
                Some(("network", rest)) => parse_network(rest).map(|(network, grant)| {
                    grants.networks.entry(network).or_default().push(grant);
                }),
                Some(("role", "egress")) => {
                    grants.egress = true;
                    Some(())
                }
                Some(("group", group)) if !group.is_empty() => {
                    grants.groups.push(group.to_owned());
                    Some(())
                }
                _ => None,
            };
            understood.ok_or_else(|| refuse((i, line)))?;
        }
        Ok((node.ok_or_else(|| refuse((0, "no node=")))?, grants))
    }
}

fn parse_network(rest: &str) -> Option<(NetworkName, PrefixGrant)> {
    let (network, rest) = rest.split_once(" prefix=")?;
    let (prefix, le) = rest.split_once(" le ")?;
    let (prefix, le): (Prefix, u8) = (prefix.parse().ok()?, le.parse().ok()?);
    let max = if prefix.is_v4() { 32 } else { 128 };
    (prefix.len() <= le && le <= max).then_some((network.parse().ok()?, PrefixGrant { prefix, le }))
}

impl fmt::Display for Grants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (network, grants) in &self.networks {
            for grant in grants {
                writeln!(f, "network={network} prefix={} le {}", grant.prefix, grant.le)?;
            }
        }
        if self.egress {
            writeln!(f, "role=egress")?;
        }
        self.groups.iter().try_for_each(|group| writeln!(f, "group={group}"))
    }
}

/// A DER UTF8String (tag 0x0c) with nothing behind it.
pub(super) fn from_der(der: &[u8]) -> Option<(NodeId, Grants)> {
    let (&[tag, first], rest) = der.split_first_chunk::<2>()?;
    let (len, text) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (len, text) = rest.split_at_checked(usize::from(first & 0x0f))?;
            (len.iter().fold(0, |n, b| n << 8 | usize::from(*b)), text)
        }
        _ => return None,
    };
    if tag != 0x0c || text.len() != len {
        return None;
    }
    Grants::parse(std::str::from_utf8(text).ok()?).ok()
}

pub(super) fn to_der(text: &str) -> Vec<u8> {
    let len = text.len();
    let mut der = match len {
        0..=0x7f => vec![0x0c, len as u8],
        0x80..=0xff => vec![0x0c, 0x81, len as u8],
        0x100..=0xffff => vec![0x0c, 0x82, (len >> 8) as u8, len as u8],
        _ => vec![0x0c, 0x83, (len >> 16) as u8, (len >> 8) as u8, len as u8],
    };
    der.extend_from_slice(text.as_bytes());
    der
}
