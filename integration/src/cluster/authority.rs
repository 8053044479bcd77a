//! Whom the members of a cluster believe, and certificates that they shouldn't.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};

/// A cluster's certificate authority.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    key: String,
}

/// Where a certificate and its key were written, as PEM.
#[derive(Debug, Clone)]
pub struct Files {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Authority {
    /// A new one.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "a cluster of the tests");
        let key = KeyPair::generate()?;
        let (certificate, key_pem) = (params.self_signed(&key)?.pem(), key.serialize_pem());
        Ok(Self { issuer: Issuer::new(params, key), certificate, key: key_pem })
    }

    /// Writes its certificate and its key into a folder, which is made.
    pub fn write(&self, folder: &Path) -> Result<Files> {
        write(folder, &self.certificate, &self.key)
    }

    /// Writes the certificate of a node into a folder, by the 32 digits of its number; one that `expired` did so years
    /// ago.
    pub fn issue(&self, folder: &Path, node: &str, expired: bool) -> Result<Files> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.subject_alt_names.push(SanType::URI(format!("larder://node/{node}").try_into()?));
        if expired {
            (params.not_before, params.not_after) = (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 1, 1));
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        write(folder, &certificate.pem(), &key.serialize_pem())
    }
}

fn write(folder: &Path, certificate: &str, key: &str) -> Result<Files> {
    std::fs::create_dir_all(folder)?;
    let files = Files { certificate: folder.join("cert.pem"), key: folder.join("key.pem") };
    std::fs::write(&files.certificate, certificate)?;
    // Without a moment in which others can read it.
    let mut private = std::fs::File::options();
    std::os::unix::fs::OpenOptionsExt::mode(private.write(true).create(true).truncate(true), 0o600);
    std::io::Write::write_all(&mut private.open(&files.key)?, key.as_bytes())?;
    Ok(files)
}
