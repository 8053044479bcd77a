use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::containerd::hosts::disk;
use crate::containerd::hosts::error::NotAdopted;
use crate::image::Digest;

/// The files that hosts name, each read and judged once.
#[derive(Default)]
pub(super) struct Certificates {
    authorities: HashMap<PathBuf, Result<Digest, NotAdopted>>,
}

impl Certificates {
    /// Looks at a file of CAs; what it holds.
    pub(super) fn authorities(&mut self, path: &Path) -> Result<Digest, NotAdopted> {
        if let Some(known) = self.authorities.get(path) {
            return known.clone();
        }
        let judged = read(path).and_then(|pem| {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let added =
                    certificate.map_err(|e| e.to_string()).and_then(|c| roots.add(c).map_err(|e| e.to_string()));
                added.map_err(|why| unusable(path, why))?;
            }
            if roots.is_empty() { Err(unusable(path, "it has no certificate in PEM")) } else { Ok(Digest::of(&pem)) }
        });
        self.authorities.insert(path.to_owned(), judged.clone());
        judged
    }

    /// Looks at a client certificate and its key, which may be in one file; what each holds.
    pub(super) fn client(&self, certificate: &Path, key: &Path) -> Result<[Digest; 2], NotAdopted> {
        let (chain_pem, key_pem) = (read(certificate)?, read(key)?);
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&chain_pem)
            .collect::<Result<_, _>>()
            .map_err(|e| unusable(certificate, e.to_string()))?;
        if chain.is_empty() {
            return Err(unusable(certificate, "it has no certificate in PEM"));
        }
        let der = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|e| unusable(key, e.to_string()))?;
        CertifiedKey::from_der(chain, der, &aws_lc_rs::default_provider()).map_err(|e| unusable(key, e.to_string()))?;
        Ok([Digest::of(&chain_pem), Digest::of(&key_pem)])
    }
}

fn read(path: &Path) -> Result<Vec<u8>, NotAdopted> {
    match disk::read(path) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(unusable(path, "it isn't there")),
        Err(e) => Err(unusable(path, e.with_source())),
    }
}

fn unusable(path: &Path, why: impl Into<String>) -> NotAdopted {
    NotAdopted::Certificate { path: path.to_owned(), why: why.into() }
}
