//! The cluster's authorities whose keys are here, and the certificate that this node issues itself.

use std::fmt;
use std::path::Path;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData as _, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use super::{IdentityError, files, trust};
use crate::image::NodeId;

/// The name that every node's certificate has. No node asks for it: which node it is stands beside it.
const NAME: &str = "larder-peer";
const LIFE: Duration = Duration::DAY;
const RENEWED_AFTER: Duration = Duration::hours(12);
/// How far the clocks of two nodes may differ.
const SLACK: Duration = Duration::HOUR;
/// How long a new authority takes to get to every node. Until then it doesn't sign where an older one is at hand: who
/// doesn't know it yet would refuse what it signs.
pub(super) const ROLLOUT: Duration = Duration::HOUR;
/// With less than this left, another one signs.
const LAST_DAYS: Duration = Duration::days(2);

/// An authority with its key.
pub(super) struct Authority {
    certificate: CertificateDer<'static>,
    key: KeyPair,
    secret: Zeroizing<Vec<u8>>,
    name: String,
    begins: OffsetDateTime,
    ends: OffsetDateTime,
}

/// What this node shows its peers.
#[derive(Debug)]
pub(super) struct Issued {
    pub(super) key: CertifiedKey,
    pub(super) ends: OffsetDateTime,
}

impl Authority {
    /// The keys in a file, each with its certificate among those of `ca`, in the file's order.
    pub(super) fn read(path: &Path, ca: &[CertificateDer<'static>]) -> Result<Vec<Self>, IdentityError> {
        let invalid = |reason: String| files::invalid("key", path, reason);
        let mut authorities = Vec::new();
        for key in files::private_keys("key", path)? {
            let secret = Zeroizing::new(key.secret_der().to_vec());
            let key = KeyPair::try_from(&key).map_err(|e| invalid(e.to_string()))?;
            authorities.push(Self::join(key, secret, ca).ok_or_else(|| {
                invalid("no certificate in `ca` belongs to it; both are replaced together".to_owned())
            })?);
        }
        Ok(authorities)
    }

    fn join(key: KeyPair, secret: Zeroizing<Vec<u8>>, ca: &[CertificateDer<'static>]) -> Option<Self> {
        let public = key.subject_public_key_info();
        ca.iter()
            .find_map(|certificate| {
                let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
                (parsed.public_key().raw == public).then(|| {
                    let name = parsed.subject().to_string();
                    let (begins, ends) =
                        (parsed.validity().not_before.to_datetime(), parsed.validity().not_after.to_datetime());
                    (name, begins, ends, certificate.clone())
                })
            })
            .map(|(name, begins, ends, certificate)| Self { certificate, key, secret, name, begins, ends })
    }

    /// Which one signs: the first that every node must know by now, else the first.
    pub(super) fn signer(authorities: &[Self], now: OffsetDateTime) -> usize {
        let is_known = |a: &Self| a.begins + ROLLOUT <= now && now + LAST_DAYS < a.ends;
        authorities.iter().position(is_known).unwrap_or(0)
    }

    /// When a certificate that was issued at `made` is due to be replaced.
    pub(super) fn is_due(made: OffsetDateTime, now: OffsetDateTime) -> bool {
        // A clock that was set back makes it one of the future.
        now >= made + RENEWED_AFTER || now + SLACK / 2 < made
    }

    /// A certificate for this node, and its key, neither of which is ever on a disk.
    pub(super) fn issue(&self, node: NodeId, now: OffsetDateTime) -> Result<Issued, IdentityError> {
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key)?;
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(vec![NAME.to_owned()])?;
        params.subject_alt_names.push(SanType::URI(trust::uri(node).try_into()?));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, NAME);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = now - SLACK;
        params.not_after = (now + LIFE + SLACK).min(self.ends);
        let certificate = params.signed_by(&key, &issuer)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&private)?;
        let key = CertifiedKey::new(vec![certificate.der().clone()], signing);
        Ok(Issued { key, ends: params.not_after })
    }

    /// What the cluster's other keys are derived from.
    pub(super) fn secret(&self) -> &[u8] {
        &self.secret
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) const fn ends(&self) -> OffsetDateTime {
        self.ends
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("name", &self.name).field("ends", &self.ends).finish_non_exhaustive()
    }
}
