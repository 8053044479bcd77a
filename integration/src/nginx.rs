//! nginx, to compare with: as a registry that serves files, and as a proxy that stores what it passes on.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::{Folder, Http, Image, Process, free_port, tool, until};

/// One nginx with one worker, that speaks plain HTTP on one port and TLS on another.
#[derive(Debug)]
pub struct Nginx {
    process: Option<Process>,
    port: u16,
    tls_port: u16,
    folder: Folder,
}

impl Nginx {
    /// Serves images as a registry would, from files, by sendfile.
    pub async fn of_files(images: &[(&Image, &str, &str)]) -> Result<Self> {
        let folder = Folder::new()?;
        let content = folder.path().join("content");
        std::fs::create_dir(&content)?;
        let mut locations = String::new();
        for (image, repository, tag) in images {
            for blob in image.blobs().iter().chain(image.manifests()) {
                std::fs::write(content.join(&blob.digest), &blob.bytes)?;
            }
            let manifests = image.manifests().iter().map(|blob| (blob.digest.as_str(), blob));
            for (reference, blob) in manifests.chain([(*tag, image.root())]) {
                let _ = writeln!(
                    locations,
                    "location = /v2/{repository}/manifests/{reference} {{ default_type {}; \
                     add_header Docker-Content-Digest {}; alias {}; }}",
                    blob.media_type,
                    blob.digest,
                    content.join(&blob.digest).display(),
                );
            }
        }
        let _ = writeln!(
            locations,
            "location = /v2/ {{ return 200; }}\n\
             location ~ ^/v2/.+/blobs/(sha256:[0-9a-f]+)$ {{ alias {}/$1; }}",
            content.display(),
        );
        Self::start(folder, &locations).await
    }

    /// Passes requests on to a registry, and keeps the answers.
    pub async fn storing_proxy(upstream: &str) -> Result<Self> {
        let folder = Folder::new()?;
        let locations = format!(
            "location / {{ proxy_pass {upstream}; proxy_http_version 1.1; proxy_set_header Connection ''; \
             proxy_cache blobs; proxy_cache_valid 200 1h; proxy_max_temp_file_size 0; }}"
        );
        Self::start(folder, &locations).await
    }

    async fn start(folder: Folder, locations: &str) -> Result<Self> {
        let (port, tls_port, at) = (free_port()?, free_port()?, folder.path().display());
        let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        std::fs::write(folder.path().join("certificate.pem"), own.cert.pem())?;
        std::fs::write(folder.path().join("key.pem"), own.signing_key.serialize_pem())?;
        let config = format!(
            "daemon off;\nuser root;\nworker_processes 1;\npid {at}/pid;\nerror_log stderr warn;\n\
             events {{ worker_connections 512; }}\n\
             http {{\n\
             access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000;\n\
             client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;\n\
             uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
             proxy_cache_path {at}/cache levels=1:2 keys_zone=blobs:10m use_temp_path=off;\n\
             ssl_certificate {at}/certificate.pem; ssl_certificate_key {at}/key.pem; ssl_protocols TLSv1.3;\n\
             server {{ listen 127.0.0.1:{port}; listen 127.0.0.1:{tls_port} ssl;\n{locations}\n}}\n}}\n"
        );
        std::fs::write(folder.path().join("nginx.conf"), config)?;
        let mut nginx = Self { process: None, port, tls_port, folder };
        nginx.start_again().await?;
        Ok(nginx)
    }

    /// Runs it anew, with nothing stored.
    pub async fn start_again(&mut self) -> Result<()> {
        self.process = None;
        let _ = std::fs::remove_dir_all(self.folder.path().join("cache"));
        let (config, log): (PathBuf, PathBuf) = (self.folder.path().join("nginx.conf"), self.folder.path().join("log"));
        let arguments = ["-c".into(), config, "-p".into(), self.folder.path().to_owned()];
        self.process = Some(Process::start(&tool("nginx/usr/sbin/nginx")?, arguments, &[], log)?);
        let (http, url) = (Http::new(), self.url());
        until("nginx answers", Duration::from_secs(10), async || http.get(&url).await.ok()).await?;
        Ok(())
    }

    /// Its own folder, with the files that it serves or stores.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `http://127.0.0.1:…`
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// `https://127.0.0.1:…`
    pub fn tls_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.tls_port)
    }

    /// The certificate that it shows over TLS, and that is trusted for it.
    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process, to measure it.
    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }
}
