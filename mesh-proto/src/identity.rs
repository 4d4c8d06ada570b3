//! Certificates: whom one proves, and what it allows. Bytes in, bytes out; the moment is an argument.
//!
//! A certificate is X.509 with an Ed25519 key. Its DNS name `<node>.<mesh>.mesh` is the identity; a URI name repeats it for
//! people. What it allows stands in one private extension, as lines of text that `openssl x509 -text` shows. The extension is
//! not critical: RFC 3779 wants a critical one, but rustls refuses a certificate with a critical extension unknown to it.
//! Without the extension, or if it cannot be read, a certificate allows nothing.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

pub use self::ca::{Ca, IssueRequest, PublicKeySource};
pub use self::grants::{Grants, GrantsError, PrefixGrant};
use crate::{MeshId, NodeId};

mod ca;
mod grants;

/// OID of the extension with the grants, under a private enterprise arc that nobody has been given (RFC 9371).
pub(crate) const GRANTS_OID: &[u64] = &[1, 3, 6, 1, 4, 1, 65_467, 4650, 1];

/// Why a certificate is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// No CA of ours has signed it.
    #[error("certificate is from another CA")]
    UnknownIssuer,
    /// Its time is over.
    #[error("certificate has expired (not after {not_after}): issue a new one with `mesh-ctl ca issue`")]
    Expired {
        /// RFC 3339.
        not_after: String,
    },
    /// Its time has not come.
    #[error("certificate is not valid before {not_before}: check this host's clock")]
    NotYetValid {
        /// RFC 3339.
        not_before: String,
    },
    /// A signature in the chain is wrong.
    #[error("certificate has a bad signature")]
    BadSignature,
    /// It has no name of a mesh node.
    #[error("certificate has no name <node>.<mesh>.mesh")]
    NoName,
    /// Anything else.
    #[error("certificate cannot be used: {0}")]
    Malformed(String),
}

impl IdentityError {
    /// Metric label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnknownIssuer => "unknown_ca",
            Self::Expired { .. } => "certificate_expired",
            Self::NotYetValid { .. } => "certificate_not_yet_valid",
            Self::BadSignature => "bad_signature",
            Self::NoName => "no_name",
            Self::Malformed(_) => "bad_certificate",
        }
    }
}

fn malformed(error: impl std::fmt::Display) -> IdentityError {
    IdentityError::Malformed(error.to_string())
}

/// Seconds since 1970 as RFC 3339.
pub fn rfc3339(unix: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp(unix)
        .ok()
        .and_then(|t| t.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_else(|| unix.to_string())
}

/// Whom a certificate proves, and what it allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The mesh.
    pub mesh: MeshId,
    /// The node.
    pub node: NodeId,
    /// What it may announce.
    pub grants: Grants,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
    public_key: Vec<u8>,
}

impl Identity {
    /// Reads a certificate, without asking who signed it or when.
    pub fn from_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let (rest, cert) = X509Certificate::from_der(der).map_err(malformed)?;
        if !rest.is_empty() {
            return Err(malformed("bytes behind the certificate"));
        }
        let (node, mesh) = name_of(&cert)?;
        let extension =
            cert.extensions().iter().find(|e| e.oid.iter().is_some_and(|o| o.eq(GRANTS_OID.iter().copied())));
        let grants = extension
            .and_then(|e| grants::from_der(e.value))
            .filter(|(named, _)| *named == node)
            .map(|(_, grants)| grants)
            .unwrap_or_default();
        Ok(Self {
            mesh,
            node,
            grants,
            not_before: cert.validity().not_before.timestamp(),
            not_after: cert.validity().not_after.timestamp(),
            public_key: cert.public_key().subject_public_key.data.to_vec(),
        })
    }

    /// Whether `signature` is this identity's, of `context` and `message`.
    pub fn verify_signature(&self, context: &[u8], message: &[u8], signature: &[u8]) -> bool {
        let signed = [context, message].concat();
        UnparsedPublicKey::new(&ED25519, &self.public_key).verify(&signed, signature).is_ok()
    }
}

fn name_of(cert: &X509Certificate<'_>) -> Result<(NodeId, MeshId), IdentityError> {
    let san = cert.subject_alternative_name().map_err(malformed)?.ok_or(IdentityError::NoName)?;
    let mut names = san.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => {
            let mut labels = name.split('.');
            let (node, mesh) = (labels.next()?.parse().ok()?, labels.next()?.parse().ok()?);
            (labels.next() == Some("mesh") && labels.next().is_none()).then_some((node, mesh))
        }
        _ => None,
    });
    names.next().ok_or(IdentityError::NoName)
}

/// The CAs of a mesh.
#[derive(Debug)]
pub struct TrustRoots {
    certificates: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

impl PartialEq for TrustRoots {
    fn eq(&self, other: &Self) -> bool {
        self.certificates == other.certificates
    }
}

impl Eq for TrustRoots {}

impl TrustRoots {
    /// From a file of one or more CA certificates.
    pub fn from_pem(pem: &[u8]) -> Result<Self, IdentityError> {
        let certificates: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(malformed)?;
        if certificates.is_empty() {
            return Err(malformed("no certificate in the file"));
        }
        let anchors = certificates
            .iter()
            .map(|c| anchor_from_trusted_cert(c).map(|a| a.to_owned()))
            .collect::<Result<_, _>>()
            .map_err(malformed)?;
        Ok(Self { certificates, anchors })
    }

    /// The CA certificates.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// Whom a chain (leaf first) proves at `now`: signed by a CA of ours, for both sides of TLS, and within its time.
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Identity, IdentityError> {
        verify_by(&self.anchors, chain, now)
    }

    /// When the last of the CAs ends that vouch for a chain, valid at `now`; seconds since 1970.
    pub fn vouching_until(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Option<i64> {
        let all = self.certificates.iter().zip(self.anchors.chunks(1));
        let vouching = all.filter(|(_, anchor)| verify_by(anchor, chain, now).is_ok());
        let ends = vouching.filter_map(|(certificate, _)| {
            let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
            Some(parsed.validity().not_after.timestamp())
        });
        ends.max()
    }
}

fn verify_by(
    anchors: &[TrustAnchor<'_>],
    chain: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<Identity, IdentityError> {
    let (leaf, intermediates) = chain.split_first().ok_or_else(|| malformed("no certificate"))?;
    let identity = Identity::from_certificate(leaf)?;
    let cert = EndEntityCert::try_from(leaf).map_err(malformed)?;
    for usage in [KeyUsage::client_auth(), KeyUsage::server_auth()] {
        let algorithms = webpki::ALL_VERIFICATION_ALGS;
        cert.verify_for_usage(algorithms, anchors, intermediates, now, usage, None, None).map_err(
            |error| match error {
                webpki::Error::UnknownIssuer => IdentityError::UnknownIssuer,
                webpki::Error::CertExpired { .. } => {
                    IdentityError::Expired { not_after: rfc3339(identity.not_after) }
                }
                webpki::Error::CertNotValidYet { .. } => {
                    IdentityError::NotYetValid { not_before: rfc3339(identity.not_before) }
                }
                webpki::Error::InvalidSignatureForPublicKey => IdentityError::BadSignature,
                other => malformed(format!("{other:?}")),
            },
        )?;
    }
    Ok(identity)
}

/// A node's private key.
pub struct NodeKey {
    pair: Ed25519KeyPair,
    pkcs8: Vec<u8>,
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeKey")
    }
}

impl NodeKey {
    /// A new one.
    pub fn generate() -> Result<Self, IdentityError> {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(malformed)?;
        Self::from_pkcs8(pair.serialize_der())
    }

    fn from_pkcs8(pkcs8: Vec<u8>) -> Result<Self, IdentityError> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&pkcs8)
            .map_err(|e| IdentityError::Malformed(format!("private key: {e}")))?;
        Ok(Self { pair, pkcs8 })
    }

    /// From a PEM file (PKCS#8).
    pub fn from_pem(pem: &str) -> Result<Self, IdentityError> {
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|e| IdentityError::Malformed(format!("private key: {e}")))?;
        Self::from_pkcs8(key.secret_pkcs8_der().to_vec())
    }

    /// As a PEM file.
    pub fn to_pem(&self) -> Result<String, IdentityError> {
        self.rcgen().map(|pair| pair.serialize_pem())
    }

    fn rcgen(&self) -> Result<rcgen::KeyPair, IdentityError> {
        rcgen::KeyPair::try_from(self.pkcs8.as_slice()).map_err(malformed)
    }

    /// Signs `context` and `message`.
    pub fn sign(&self, context: &[u8], message: &[u8]) -> Vec<u8> {
        self.pair.sign(&[context, message].concat()).as_ref().to_vec()
    }

    /// For rustls.
    pub fn private_key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pkcs8.clone()))
    }

    /// The public half.
    pub fn public_key(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }
}

#[cfg(test)]
mod tests;
