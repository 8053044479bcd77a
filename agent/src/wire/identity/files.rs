//! The files as they are on disk, and what changes when they do.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::SystemTime;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::IdentityError;

/// More than any bundle of authorities has.
const MAX: u64 = 1 << 20;

/// What changes when a file is replaced or written. `None` for one that can't be looked at.
pub(super) type Stamp = Option<(u64, u64, SystemTime)>;

pub(super) fn stamp(path: &Path) -> Stamp {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.len(), metadata.modified().ok()?))
}

/// At least one certificate.
pub(super) fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let pem = read(key, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|e| invalid(key, path, e.to_string()))?;
    if found.is_empty() {
        return Err(invalid(key, path, "it has no certificate (BEGIN CERTIFICATE)"));
    }
    Ok(found)
}

/// At least one private key.
pub(super) fn private_keys(key: &'static str, path: &Path) -> Result<Vec<PrivateKeyDer<'static>>, IdentityError> {
    let pem = read(key, path)?;
    let found: Result<Vec<_>, _> = PrivateKeyDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|e| invalid(key, path, e.to_string()))?;
    if found.is_empty() {
        return Err(invalid(key, path, "it has no private key (BEGIN PRIVATE KEY)"));
    }
    Ok(found)
}

/// Says that everybody can read what nobody else should.
pub(super) fn warn_if_open(key: &'static str, path: &Path) {
    if let Ok(metadata) = fs::metadata(path)
        && metadata.mode() & 0o004 != 0
    {
        let mode = format!("{:04o}", metadata.mode() & 0o7777);
        tracing::warn!(key, path = %path.display(), mode, "everybody on this node can read this secret; make it 0600");
    }
}

pub(super) fn invalid(key: &'static str, path: &Path, reason: impl Into<String>) -> IdentityError {
    IdentityError::Invalid { key, path: path.to_owned(), reason: reason.into() }
}

pub(super) fn read(key: &'static str, path: &Path) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let mut bytes = Zeroizing::new(Vec::new());
    fs::File::open(path)
        .and_then(|file| file.take(MAX + 1).read_to_end(&mut bytes))
        .map_err(|source| IdentityError::Unreadable { key, path: path.to_owned(), source })?;
    if bytes.len() as u64 > MAX {
        return Err(invalid(key, path, "it is larger than 1 MiB"));
    }
    Ok(bytes)
}
