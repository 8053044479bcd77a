use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use super::certificates::Certificates;
use crate::config::{HostsTarget, UpstreamConfig, UpstreamUrl};
use crate::containerd::hosts::error::NotAdopted;
use crate::containerd::hosts::reading::Fields;
use crate::image::{Digest, Registry};

/// Makes upstreams of the hosts of one file.
pub(super) struct Taking<'a> {
    /// To which names of files are relative.
    folder: &'a Path,
    /// Where we listen: a mirror there is ourselves.
    listen: SocketAddr,
    certificates: &'a mut Certificates,
    files: Vec<(PathBuf, Digest)>,
}

/// An upstream, and what the file says of it that isn't taken over.
pub(super) struct Taken {
    pub(super) upstream: UpstreamConfig,
    pub(super) without: Vec<NotAdopted>,
}

impl<'a> Taking<'a> {
    pub(super) fn new(folder: &'a Path, listen: SocketAddr, certificates: &'a mut Certificates) -> Self {
        Self { folder, listen, certificates, files: vec![] }
    }

    /// The certificate files that were used, with what they hold.
    pub(super) fn into_files(self) -> Vec<(PathBuf, Digest)> {
        self.files
    }

    /// The upstream that a host is, by containerd's rules.
    pub(super) fn upstream(&mut self, host: &str, fields: &Fields, target: &HostsTarget) -> Result<Taken, NotAdopted> {
        let url = url(host, fields, target)?;
        if is_ourselves(&url, self.listen) {
            return Err(NotAdopted::Ourselves);
        }
        if !fields.can("pull") {
            return Err(NotAdopted::NoPull);
        }
        let mut upstream = UpstreamConfig::new(url);
        // containerd asks an `http://` host as it stands, and some versions try HTTPS before that where the file has
        // certificates for it; we take it at its word.
        let is_plain = upstream.url.is_plain();
        upstream.insecure = is_plain || fields.skip_verify;
        upstream.resolve = fields.can("resolve");
        upstream.override_path = fields.override_path;
        let mut without = Vec::new();
        for (name, value) in fields.headers() {
            without.extend(upstream.add_header(name, value).err().map(NotAdopted::Header));
        }
        if is_plain {
            return Ok(Taken { upstream, without });
        }
        for name in fields.authorities() {
            let path = self.folder.join(name);
            let seen = self.certificates.authorities(&path)?;
            self.files.push((path.clone(), seen));
            upstream.ca.push(path);
        }
        let clients = fields.clients();
        if let Some((certificate, key)) = clients.first() {
            let (certificate, key) = (self.folder.join(certificate), self.folder.join(key));
            let seen = self.certificates.client(&certificate, &key)?;
            self.files.extend([(certificate.clone(), seen[0]), (key.clone(), seen[1])]);
            upstream.client_cert = Some(certificate);
            upstream.client_key = Some(key);
        }
        if clients.len() > 1 {
            without.push(NotAdopted::FurtherClients);
        }
        Ok(Taken { upstream, without })
    }
}

/// Where containerd asks for a registry when no file says anything else, and whether it is where everybody would: HTTPS
/// at its own name. A registry on this machine is asked by plain HTTP, unless its port is that of HTTPS. `None` for a
/// name that is no URL's.
pub(super) fn own_address(registry: &Registry) -> Option<(String, bool)> {
    let port = registry.as_str().rsplit_once(':').map(|(_, port)| port).filter(|port| !port.contains(']'));
    let is_local = registry.host() == "localhost" || registry.host().parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    if is_local && port.is_some_and(|port| port != "443") {
        return Some((format!("http://{registry}"), false));
    }
    UpstreamUrl::origin(registry).map(|url| (url.to_string(), true))
}

fn url(host: &str, fields: &Fields, target: &HostsTarget) -> Result<UpstreamUrl, NotAdopted> {
    // As containerd does: what doesn't begin with "http" is a host.
    let text = if host.starts_with("http") { host.to_owned() } else { format!("https://{host}") };
    let url: UpstreamUrl = text.parse().map_err(NotAdopted::Url)?;
    // Docker Hub has several names, and the registry answers at one of them.
    match target {
        HostsTarget::Registry(registry) if is_own_address(&url, fields, registry) => {
            Ok(UpstreamUrl::origin(registry).unwrap_or(url))
        }
        _ => Ok(url),
    }
}

fn is_own_address(url: &UpstreamUrl, fields: &Fields, registry: &Registry) -> bool {
    !url.is_plain()
        && !fields.override_path
        && url.authority().as_str().parse::<Registry>().is_ok_and(|named| named == *registry)
        && url.v2("").is_ok_and(|uri| uri.path() == "/v2/")
}

/// Whether a URL leads to our own port: to ask there would be to ask ourselves, without end.
fn is_ourselves(url: &UpstreamUrl, listen: SocketAddr) -> bool {
    let authority = url.authority();
    let port = authority.port_u16().unwrap_or(if url.is_plain() { 80 } else { 443 });
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let leads_here = match host.parse::<IpAddr>() {
        Ok(ip) if ip.is_loopback() || ip.is_unspecified() || ip == listen.ip() => true,
        // What can be bound is this machine's.
        Ok(ip) => listen.ip().is_unspecified() && UdpSocket::bind((ip, 0)).is_ok(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    };
    port == listen.port() && leads_here
}
