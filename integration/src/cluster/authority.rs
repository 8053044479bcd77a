//! Whom the members of a cluster believe, and certificates that they shouldn't.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rcgen::{CertificateParams, Issuer, KeyPair, SanType, date_time_ymd};

use crate::{Folder, agent};

/// A cluster's certificate authority, as `larder certs` makes it.
#[derive(Debug)]
pub struct Authority {
    folder: Folder,
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
        let folder = Folder::new()?;
        let output = Command::new(agent::program()?).args(["certs", "--dir"]).arg(folder.path()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "larder certs: {}", said.trim());
        Ok(Self { folder })
    }

    /// Its certificate, and its key.
    pub fn files(&self) -> Files {
        Files { certificate: self.folder.path().join("ca.pem"), key: self.folder.path().join("ca.key") }
    }

    /// Writes the certificate of a node into a folder, by the 32 digits of its number; one that `expired` did so years
    /// ago.
    pub fn issue(&self, folder: &Path, node: &str, expired: bool) -> Result<Files> {
        let own = self.files();
        let (certificate, key) = (std::fs::read_to_string(own.certificate)?, std::fs::read_to_string(own.key)?);
        let issuer = Issuer::from_ca_cert_pem(&certificate, KeyPair::from_pem(&key).context("ca.key")?)?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.subject_alt_names.push(SanType::URI(format!("larder://node/{node}").try_into()?));
        if expired {
            (params.not_before, params.not_after) = (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 1, 1));
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;
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
