use std::sync::Arc;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;

use super::authority::{Authority, Issued};
use super::secret::Secrets;
use super::{IdentityError, Own, Paths, files, trust};
use crate::image::NodeId;

/// What the files hold.
#[derive(Debug, Clone)]
pub(super) struct Material {
    ca: Arc<[CertificateDer<'static>]>,
    source: Source,
    secrets: Option<Secrets>,
}

/// Where the certificate comes from that this node shows.
#[derive(Debug, Clone)]
enum Source {
    Issued(Arc<[Authority]>),
    Given { key: Arc<CertifiedKey>, issuer: String, ends: OffsetDateTime },
}

/// What this node shows its peers, and the secrets that go with it.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) key: Arc<CertifiedKey>,
    pub(super) ends: OffsetDateTime,
    /// Who signed it.
    pub(super) issuer: String,
    /// When the authority itself ends, where this node knows.
    pub(super) authority_ends: Option<OffsetDateTime>,
    pub(super) secrets: Secrets,
    /// By which of the authorities it was issued, and when.
    issued: Option<(usize, OffsetDateTime)>,
}

impl Material {
    pub(super) fn read(paths: &Paths) -> Result<Self, IdentityError> {
        let ca = files::certificates("ca", &paths.ca)?;
        let source = match &paths.own {
            Own::Issued { key } => Source::Issued(Authority::read(key, &ca)?.into()),
            Own::Given { cert, key } => {
                let chain = files::certificates("cert", cert)?;
                let private = files::private_keys("cert_key", key)?.swap_remove(0);
                let wrong = |reason: String| files::invalid("cert_key", key, reason);
                let (issuer, ends) = trust::issuer(&chain[0])
                    .ok_or_else(|| files::invalid("cert", cert, "its first certificate can't be read"))?;
                let key = CertifiedKey::from_der(chain, private, &default_provider())
                    .map_err(|e| wrong(format!("it does not go with {}: {e}", cert.display())))?;
                Source::Given { key: Arc::new(key), issuer, ends }
            }
        };
        let secrets = paths.secret.as_deref().map(Secrets::read).transpose()?;
        Ok(Self { ca: ca.into(), source, secrets })
    }

    /// The certificates to trust.
    pub(super) fn ca(&self) -> &[CertificateDer<'static>] {
        &self.ca
    }

    /// The node that a given certificate names, if it does.
    pub(super) fn named(&self) -> Option<NodeId> {
        match &self.source {
            Source::Issued(_) => None,
            Source::Given { key, .. } => key.cert.first().and_then(trust::named),
        }
    }

    /// What this node shows from now on.
    pub(super) fn show(&self, node: NodeId, now: OffsetDateTime) -> Result<Shown, IdentityError> {
        match &self.source {
            Source::Issued(authorities) => {
                let at = Authority::signer(authorities, now);
                // At least one was read.
                let signer = &authorities[at];
                let Issued { key, ends } = signer.issue(node, now)?;
                let others = authorities.iter().enumerate().filter(|(n, _)| *n != at).map(|(_, a)| a.secret());
                Ok(Shown {
                    key: Arc::new(key),
                    ends,
                    issuer: signer.name().to_owned(),
                    authority_ends: Some(signer.ends()),
                    secrets: self.secrets.clone().unwrap_or_else(|| Secrets::new(signer.secret(), others)),
                    issued: Some((at, now)),
                })
            }
            Source::Given { key, issuer, ends } => Ok(Shown {
                key: Arc::clone(key),
                ends: *ends,
                issuer: issuer.clone(),
                authority_ends: None,
                // A configuration without `secret` is refused where it is read.
                secrets: self.secrets.clone().ok_or(IdentityError::Off)?,
                issued: None,
            }),
        }
    }

    /// Whether it is time to show another one.
    pub(super) fn is_due(&self, shown: &Shown, now: OffsetDateTime) -> bool {
        match (&self.source, shown.issued) {
            (Source::Issued(authorities), Some((signer, made))) => {
                Authority::is_due(made, now) || Authority::signer(authorities, now) != signer
            }
            _ => false,
        }
    }
}
