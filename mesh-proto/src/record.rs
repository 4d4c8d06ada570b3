//! What one node says of itself, signed with its certificate's key, so that others can pass it on.
//!
//! The signature is over the bytes as received: a value has more than one encoding, so nothing is ever encoded again
//! to be verified. Of two records of one node the higher version wins; at equal versions the smaller bytes, so that
//! all nodes keep the same one. Merging is therefore idempotent and does not depend on order.

use std::net::SocketAddr;

use bincode::{Decode, Encode};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::identity::{Identity, IdentityError, NodeKey, TrustRoots};
use crate::limits::{MAX_NETWORKS, MAX_RECORD};
use crate::{NetworkName, NodeId, Prefix, codec};

/// Prepended to the signed bytes, so that a signature serves for nothing else.
const CONTEXT: &[u8] = b"mesh-record-v1\0";

/// What one node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Record {
    /// Who.
    pub node: NodeId,
    /// Rises with every change, also over restarts.
    pub version: u64,
    /// Where to dial.
    pub endpoints: Vec<SocketAddr>,
    /// Networks the node carries.
    pub networks: Vec<NetworkRecord>,
    /// The node has stopped politely.
    pub leaving: bool,
}

/// One node's part of a network.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct NetworkRecord {
    /// The network.
    pub name: NetworkName,
    /// Mesh prefixes.
    pub prefixes: Vec<Prefix>,
    /// Announced prefixes.
    pub announced: Vec<Prefix>,
    /// Offer to carry the network's traffic to other networks.
    pub egress: Option<EgressOffer>,
}

/// An offer of egress.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct EgressOffer {
    /// What can be reached.
    pub destinations: Vec<Prefix>,
    /// Lower is preferred.
    pub priority: u32,
    /// Whether it can be used at present.
    pub condition: Condition,
}

/// How an egress node is at present, by its own word: a tunnel that is up says nothing of the uplink behind it. From the best
/// to the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
pub enum Condition {
    /// It carries.
    #[default]
    Healthy,
    /// It is about to go: flows in progress stay, new ones go elsewhere.
    Draining,
    /// Its uplink does not carry: no flow has a way through it.
    UplinkDown {
        /// What is wrong with it.
        fault: UplinkFault,
        /// Milliseconds from the last proof that it carried to this word: part of the outage.
        for_ms: u32,
    },
    /// It is drained: no flow stays.
    Drained,
}

/// What is wrong with an uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum UplinkFault {
    /// The interface is down, has no carrier, or is not there.
    Link,
    /// The targets of its probes do not answer.
    Probe,
    /// The node cannot keep its own kernel carrying for others.
    Kernel,
}

/// A record as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SignedRecord {
    /// Leaf first, DER.
    pub certificates: Vec<Vec<u8>>,
    /// A `Record`, encoded.
    pub body: Vec<u8>,
    /// Of `CONTEXT` and `body`.
    pub signature: Vec<u8>,
}

/// A record whose signature, certificate and claims are good.
#[derive(Debug, Clone)]
pub struct VerifiedRecord {
    /// The claims.
    pub record: Record,
    /// Who made them.
    pub identity: Identity,
    /// As it travels on.
    pub signed: SignedRecord,
}

/// Why a record is refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RecordError {
    /// Larger than a record may be.
    #[error("record of {0} bytes is longer than {MAX_RECORD}")]
    TooLong(usize),
    /// Not a record.
    #[error("malformed record: {0}")]
    Malformed(#[from] codec::DecodeError),
    /// The certificate is not good.
    #[error("certificate of the record: {0}")]
    Identity(#[from] IdentityError),
    /// Not signed by the certificate's key.
    #[error("record of {0} has a bad signature")]
    Signature(NodeId),
    /// Signed by somebody else.
    #[error("record of {claimed} is signed by {signer}")]
    Name {
        /// In the record.
        claimed: NodeId,
        /// In the certificate.
        signer: NodeId,
    },
    /// Claims a prefix beyond its certificate.
    #[error("{node} announces {prefix} in network {network}, which its certificate does not allow")]
    Prefix {
        /// Who.
        node: NodeId,
        /// What.
        prefix: Prefix,
        /// Where.
        network: NetworkName,
        /// With all its claims.
        record: Box<Record>,
    },
    /// Offers egress without the right.
    #[error("{node} offers egress for network {network}, which its certificate does not allow")]
    Egress {
        /// Who.
        node: NodeId,
        /// Where.
        network: NetworkName,
        /// With all its claims.
        record: Box<Record>,
    },
}

impl SignedRecord {
    /// Signs a record.
    pub fn sign(record: &Record, key: &NodeKey, chain: &[CertificateDer<'_>]) -> Self {
        let body = codec::encode(record);
        let signature = key.sign(CONTEXT, &body);
        Self { certificates: chain.iter().map(|c| c.to_vec()).collect(), body, signature }
    }

    /// Checks chain, signature, name and every claim.
    pub fn verify(self, roots: &TrustRoots, now: UnixTime) -> Result<VerifiedRecord, RecordError> {
        let size = self.body.len() + self.certificates.iter().map(Vec::len).sum::<usize>();
        if size > MAX_RECORD {
            return Err(RecordError::TooLong(size));
        }
        let chain: Vec<CertificateDer<'_>> =
            self.certificates.iter().map(|c| CertificateDer::from(c.as_slice())).collect();
        let identity = roots.verify(&chain, now)?;
        if !identity.verify_signature(CONTEXT, &self.body, &self.signature) {
            return Err(RecordError::Signature(identity.node));
        }
        let record: Record = codec::decode(&self.body)?;
        if record.node != identity.node {
            return Err(RecordError::Name { claimed: record.node, signer: identity.node });
        }
        record.check_grants(&identity)?;
        Ok(VerifiedRecord { record, identity, signed: self })
    }
}

impl Record {
    /// Every prefix it claims, with its network.
    pub fn claims(&self) -> impl Iterator<Item = (&NetworkName, &Prefix)> {
        self.networks
            .iter()
            .flat_map(|n| n.prefixes.iter().chain(&n.announced).map(move |prefix| (&n.name, prefix)))
    }

    fn check_grants(&self, identity: &Identity) -> Result<(), RecordError> {
        if self.networks.len() > MAX_NETWORKS {
            return Err(RecordError::TooLong(self.networks.len()));
        }
        for network in &self.networks {
            let claims = network.prefixes.iter().chain(&network.announced);
            if let Some(prefix) = claims.into_iter().find(|p| !identity.grants.allows(&network.name, p)) {
                return Err(RecordError::Prefix {
                    node: self.node.clone(),
                    prefix: *prefix,
                    network: network.name.clone(),
                    record: Box::new(self.clone()),
                });
            }
            if network.egress.is_some() && !identity.grants.egress {
                return Err(RecordError::Egress {
                    node: self.node.clone(),
                    network: network.name.clone(),
                    record: Box::new(self.clone()),
                });
            }
        }
        Ok(())
    }
}

impl VerifiedRecord {
    /// Whether this record takes the place of `known`.
    pub fn replaces(&self, known: &Self) -> bool {
        (self.record.version, std::cmp::Reverse(&self.signed.body))
            > (known.record.version, std::cmp::Reverse(&known.signed.body))
    }
}
