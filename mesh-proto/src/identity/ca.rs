//! The mesh's CA: made once, kept offline, signs node certificates.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CustomExtension, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use time::OffsetDateTime;

use super::{GRANTS_OID, Grants, IdentityError, NodeKey, grants, malformed};
use crate::{MeshId, NodeId};

/// A CA with its key.
#[derive(Debug)]
pub struct Ca {
    mesh: MeshId,
    cert_pem: String,
    key: KeyPair,
}

/// Whose key a certificate is for.
#[derive(Debug)]
pub enum PublicKeySource<'a> {
    /// This key's.
    Key(&'a NodeKey),
    /// That of a signing request (PEM), made on the node itself.
    Csr(&'a str),
}

/// What to certify.
#[derive(Debug)]
pub struct IssueRequest<'a> {
    /// For whom.
    pub node: NodeId,
    /// What it allows.
    pub grants: Grants,
    /// For which key.
    pub public_key: PublicKeySource<'a>,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
}

fn moment(unix: i64) -> Result<OffsetDateTime, IdentityError> {
    OffsetDateTime::from_unix_timestamp(unix).map_err(malformed)
}

impl Ca {
    /// A new CA, valid for `days` from `now` (seconds since 1970). Its common name is the mesh's.
    pub fn init(mesh: &MeshId, now: i64, days: u32) -> Result<Self, IdentityError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(malformed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, mesh.as_str());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = moment(now)?;
        params.not_after = moment(now.saturating_add(i64::from(days) * 86_400))?;
        let cert_pem = params.self_signed(&key).map_err(malformed)?.pem();
        Ok(Self { mesh: mesh.clone(), cert_pem, key })
    }

    /// From its files.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self, IdentityError> {
        let key = KeyPair::from_pem(key_pem).map_err(|e| IdentityError::Malformed(format!("CA key: {e}")))?;
        let (_, pem) = x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()).map_err(malformed)?;
        let cert = pem.parse_x509().map_err(malformed)?;
        if cert.public_key().subject_public_key.data.as_ref() != rcgen::PublicKeyData::der_bytes(&key) {
            return Err(malformed("the CA key is not the CA certificate's"));
        }
        let name = cert.subject().iter_common_name().next().and_then(|n| n.as_str().ok()).unwrap_or_default();
        let mesh = name.parse().map_err(|e| malformed(format!("CA name: {e}")))?;
        Ok(Self { mesh, cert_pem: cert_pem.to_owned(), key })
    }

    /// The mesh.
    pub fn mesh(&self) -> &MeshId {
        &self.mesh
    }

    /// The certificate.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The key: keep it offline.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// Signs a node's certificate (PEM).
    pub fn issue(&self, request: &IssueRequest<'_>) -> Result<String, IdentityError> {
        let IssueRequest { node, grants, public_key, not_before, not_after } = request;
        let mesh = &self.mesh;
        let dns = format!("{node}.{mesh}.mesh");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, dns.as_str());
        params.subject_alt_names = vec![
            SanType::DnsName(dns.as_str().try_into().map_err(malformed)?),
            SanType::URI(format!("mesh://{mesh}/node/{node}").as_str().try_into().map_err(malformed)?),
        ];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = moment(*not_before)?;
        params.not_after = moment(*not_after)?;
        params.use_authority_key_identifier_extension = true;
        let text = grants::to_der(&grants.to_text(node));
        params.custom_extensions = vec![CustomExtension::from_oid_content(GRANTS_OID, text)];
        let issuer = Issuer::from_ca_cert_pem(&self.cert_pem, &self.key).map_err(malformed)?;
        let cert = match public_key {
            PublicKeySource::Key(key) => params.signed_by(&key.rcgen()?, &issuer),
            PublicKeySource::Csr(csr) => {
                // the request proves its key; all else in it is the CA's to say
                let csr = CertificateSigningRequestParams::from_pem(csr).map_err(malformed)?;
                params.signed_by(&csr.public_key, &issuer)
            }
        };
        Ok(cert.map_err(malformed)?.pem())
    }
}
