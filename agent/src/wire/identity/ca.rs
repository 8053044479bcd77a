//! The cluster's authority itself: made once, rotated seldom, by hand.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData as _,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use super::authority::ROLLOUT;

const LIFE: Duration = Duration::days(3650);
/// How far behind a node's clock may be when the first authority is made.
const SLACK: Duration = Duration::DAY;

/// A cluster's authorities and their keys, as PEM. The first is the newest.
#[derive(Debug)]
pub struct ClusterCa {
    certificates: String,
    keys: Zeroizing<String>,
}

/// Why there is no (other) authority.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The library refused.
    #[error("no authority can be made")]
    Make(#[from] rcgen::Error),
    /// What was read isn't a set of authorities and their keys.
    #[error("{0}")]
    Invalid(&'static str),
    /// The others are still needed.
    #[error(
        "the newest authority was made {} minutes ago; nodes turn to it after an hour: leave the others for {} more",
        .age.whole_minutes(), .left.whole_minutes() + 1
    )]
    TooEarly {
        /// Since when the newest one is.
        age: Duration,
        /// For how long the others are still needed.
        left: Duration,
    },
}

impl ClusterCa {
    /// An authority for ten years.
    ///
    /// # Errors
    /// When the library refuses.
    pub fn make() -> Result<Self, CaError> {
        Self::begun_at(OffsetDateTime::now_utc() - SLACK)
    }

    /// Takes what was made before.
    ///
    /// # Errors
    /// When a part has none of what it should have, or no certificate belongs to the first key.
    pub fn from_pem(certificates: String, keys: String) -> Result<Self, CaError> {
        let read = Self { certificates, keys: Zeroizing::new(keys) };
        read.newest()?;
        Ok(read)
    }

    /// A new authority before these.
    ///
    /// # Errors
    /// When the library refuses.
    pub fn rotated(self) -> Result<Self, CaError> {
        self.rotated_at(OffsetDateTime::now_utc())
    }

    /// As [`Self::rotated`], at another time: its age tells nodes whether all of them know it already.
    pub(in crate::wire) fn rotated_at(self, begins: OffsetDateTime) -> Result<Self, CaError> {
        let new = Self::begun_at(begins)?;
        let certificates = joined(&new.certificates, &self.certificates);
        let keys = Zeroizing::new(joined(&new.keys, &self.keys));
        Ok(Self { certificates, keys })
    }

    /// The newest alone.
    ///
    /// # Errors
    /// When nodes may not have turned to it yet.
    pub fn retired(self, now: OffsetDateTime) -> Result<Self, CaError> {
        let (certificate, key, begins) = self.newest()?;
        // Twice: clocks may differ, and nodes look again when certificates are due.
        let (age, left): (Duration, Duration) = (now - begins, begins + 2 * ROLLOUT - now);
        if left.is_positive() {
            return Err(CaError::TooEarly { age, left });
        }
        let (certificates, keys) = (certificate.to_owned(), Zeroizing::new(key.to_owned()));
        Ok(Self { certificates, keys })
    }

    /// The certificates, as PEM.
    #[must_use]
    pub fn certificates(&self) -> &str {
        &self.certificates
    }

    /// The private keys, as PEM.
    #[must_use]
    pub fn keys(&self) -> &str {
        &self.keys
    }

    fn begun_at(begins: OffsetDateTime) -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // Told apart by name: in logs, and where a certificate's signer is looked for.
        let name = format!("Larder peers {:08x}", rand::random::<u32>());
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = begins;
        params.not_after = begins + LIFE;
        let certificates = params.self_signed(&key)?.pem();
        Ok(Self { certificates, keys: Zeroizing::new(key.serialize_pem()) })
    }

    /// The first key, the certificate that belongs to it, and since when that is.
    fn newest(&self) -> Result<(&str, &str, OffsetDateTime), CaError> {
        let invalid = CaError::Invalid;
        let key = blocks(&self.keys).next().ok_or(invalid("there is no private key in it"))?;
        let der = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| invalid("its first key can't be read"))?;
        let public = KeyPair::try_from(&der)?.subject_public_key_info();
        for block in blocks(&self.certificates) {
            let der = CertificateDer::from_pem_slice(block.as_bytes());
            let der = der.map_err(|_| invalid("a certificate in it can't be read"))?;
            let (_, parsed) =
                x509_parser::parse_x509_certificate(&der).map_err(|_| invalid("a certificate in it can't be read"))?;
            if parsed.public_key().raw == public {
                return Ok((block, key, parsed.validity().not_before.to_datetime()));
            }
        }
        Err(invalid("no certificate belongs to its first key"))
    }
}

/// The parts of a PEM file, byte for byte: other keys are derived from a key as it stands.
fn blocks(pem: &str) -> impl Iterator<Item = &str> {
    let mut rest = pem;
    std::iter::from_fn(move || {
        let begin = rest.find("-----BEGIN ")?;
        let end = begin + rest[begin..].find("-----END ")?;
        let end = rest[end..].find('\n').map_or(rest.len(), |newline| end + newline + 1);
        let block = &rest[begin..end];
        rest = &rest[end..];
        Some(block)
    })
}

fn joined(first: &str, rest: &str) -> String {
    let newline = if first.ends_with('\n') { "" } else { "\n" };
    format!("{first}{newline}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_one_comes_first_and_the_others_go_in_time() {
        let first = ClusterCa::make().unwrap();
        let (certificate, key) = (first.certificates().to_owned(), first.keys().to_owned());
        let both = ClusterCa::from_pem(certificate.clone(), key.clone()).unwrap().rotated().unwrap();
        assert!(both.certificates().ends_with(&certificate) && both.keys().ends_with(&key));
        assert_eq!(blocks(both.certificates()).count(), 2);
        let newest = both.newest().unwrap().0.to_owned();
        assert_ne!(newest, certificate);

        let now = OffsetDateTime::now_utc();
        let copy = || ClusterCa::from_pem(both.certificates().to_owned(), both.keys().to_owned()).unwrap();
        let early = copy().retired(now + Duration::minutes(90)).unwrap_err().to_string();
        assert!(early.contains("leave the others for 30 more"), "{early}");
        let alone = copy().retired(now + Duration::hours(3)).unwrap();
        assert_eq!(alone.certificates(), newest);
        assert_eq!(blocks(alone.keys()).count(), 1);
        assert!(alone.newest().is_ok());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (one, other) = (ClusterCa::make().unwrap(), ClusterCa::make().unwrap());
        for (certificates, keys) in [
            (one.certificates(), other.keys()),
            (one.certificates(), ""),
            ("", one.keys()),
            (one.keys(), one.keys()),
            (one.certificates(), "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
        ] {
            assert!(ClusterCa::from_pem(certificates.to_owned(), keys.to_owned()).is_err());
        }
    }
}
