//! The cluster's certificate authority, and who its parts are.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};

/// Signs the certificates of servers and clients, and writes them into a folder.
#[derive(Debug)]
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    folder: PathBuf,
}

/// A certificate and its key, as files and as they are.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    pub(super) der: CertificateDer<'static>,
    pub(super) key_der: PrivateKeyDer<'static>,
}

impl Authority {
    pub(super) fn new(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(DnType::CommonName, "kubernetes");
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        std::fs::write(folder.join("ca.pem"), certificate.pem())?;
        std::fs::write(folder.join("ca.key"), key.serialize_pem())?;
        let certificate = certificate.der().clone();
        Ok(Self { issuer: Issuer::new(params, key), certificate, folder: folder.to_owned() })
    }

    /// A certificate for a server at these names and addresses, and for a client that is this user of this group.
    pub(super) fn issue(&self, user: &str, group: &str, names: &[&str], addresses: &[IpAddr]) -> Result<Identity> {
        let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        params.distinguished_name.push(DnType::CommonName, user);
        params.distinguished_name.push(DnType::OrganizationName, group);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let name = user.replace(':', "-");
        let [cert_path, key_path] = ["pem", "key"].map(|kind| self.folder.join(format!("{name}.{kind}")));
        std::fs::write(&cert_path, certificate.pem())?;
        std::fs::write(&key_path, key.serialize_pem())?;
        Ok(Identity {
            certificate: cert_path,
            key: key_path,
            der: certificate.der().clone(),
            key_der: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        })
    }

    /// The authority's certificate, as a file.
    pub(super) fn ca(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// The authority's key, as a file.
    pub(super) fn key(&self) -> PathBuf {
        self.folder.join("ca.key")
    }

    pub(super) fn der(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Writes how a user reaches the apiserver; returns the file.
    pub(super) fn kubeconfig(&self, server: &str, user: &str, group: &str) -> Result<PathBuf> {
        let identity = self.issue(user, group, &[], &[])?;
        let config = kubeconfig(server, &self.ca(), &identity);
        let path = identity.certificate.with_extension("kubeconfig");
        // JSON is YAML.
        std::fs::write(&path, config.to_string()).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

fn kubeconfig(server: &str, ca: &Path, user: &Identity) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "it", "cluster": { "server": server, "certificate-authority": ca } }],
        "users": [{
            "name": "it",
            "user": { "client-certificate": user.certificate, "client-key": user.key },
        }],
        "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "it" } }],
        "current-context": "it",
    })
}
