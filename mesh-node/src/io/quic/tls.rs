//! TLS 1.3, both sides with certificates; `mesh_proto::identity` says whom a certificate proves.
//!
//! No session resumption and no early data: a resumed session skips the certificate checks.

use std::sync::Arc;

use anyhow::Context as _;
use mesh_proto::identity::{IdentityError, TrustRoots};
use mesh_proto::limits::ALPN;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

/// What this node shows, and whom it believes.
#[derive(Debug)]
pub struct Credentials {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// The mesh's CAs.
    pub roots: Arc<TrustRoots>,
}

impl Credentials {
    /// The node's own certificate.
    pub fn leaf(&self) -> anyhow::Result<CertificateDer<'static>> {
        self.chain.first().cloned().context("no certificate in the node's file")
    }
}

/// Name in SNI. The dialer reads the peer's name from its certificate: a seed's name is not known beforehand.
pub const SERVER_NAME: &str = "node.mesh";

fn provider() -> Arc<CryptoProvider> {
    // the feature `prefer-post-quantum` puts X25519MLKEM768 first
    Arc::new(aws_lc_rs::default_provider())
}

/// For incoming connections.
pub fn server_config(c: &Credentials) -> anyhow::Result<quinn::ServerConfig> {
    let verifier = Arc::new(PeerVerifier::new(c));
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(c.chain.clone(), c.key.clone_key())?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?)))
}

/// For outgoing connections.
pub fn client_config(c: &Credentials) -> anyhow::Result<quinn::ClientConfig> {
    let verifier = Arc::new(PeerVerifier::new(c));
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(c.chain.clone(), c.key.clone_key())?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.resumption = Resumption::disabled();
    tls.enable_early_data = false;
    Ok(quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?)))
}

/// The check of the server's certificate alone, for a client that shows none.
#[cfg(test)]
pub(super) fn verifier_for_test(c: &Credentials) -> Arc<dyn ServerCertVerifier> {
    Arc::new(PeerVerifier::new(c))
}

/// The same check for both sides: chain to a CA of the mesh, in its time. Names are compared after the handshake, where a
/// refusal can say in words what was expected.
#[derive(Debug)]
struct PeerVerifier {
    roots: Arc<TrustRoots>,
    provider: Arc<CryptoProvider>,
}

impl PeerVerifier {
    fn new(c: &Credentials) -> Self {
        Self { roots: c.roots.clone(), provider: provider() }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let chain: Vec<CertificateDer<'_>> =
            std::iter::once(leaf).chain(intermediates).map(|c| CertificateDer::from(c.as_ref())).collect();
        self.roots.verify(&chain, now).map(drop).map_err(|e| {
            rustls::Error::InvalidCertificate(match e {
                // a CA of the same name with another key is another CA: two `ca init` of one mesh
                IdentityError::UnknownIssuer | IdentityError::BadSignature => CertificateError::UnknownIssuer,
                IdentityError::Expired { .. } => CertificateError::Expired,
                IdentityError::NotYetValid { .. } => CertificateError::NotValidYet,
                _ => CertificateError::BadEncoding,
            })
        })
    }

    fn verify_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn refuse_tls12(&self) -> rustls::Error {
        rustls::Error::General("TLS 1.2 is not spoken here".into())
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(leaf, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(self.refuse_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(leaf, intermediates, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(self.refuse_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
