//! A real registry: Debian's docker-registry on a loopback port.

mod push;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::{Folder, Http, Image, Process, free_port, tool, until};

/// docker-registry with its storage in a folder of its own.
#[derive(Debug)]
pub struct Registry {
    process: Option<Process>,
    port: u16,
    http: Http,
    folder: Folder,
}

impl Registry {
    /// An empty one, running.
    pub async fn start() -> Result<Self> {
        let folder = Folder::new()?;
        let port = free_port()?;
        let config = format!(
            "version: 0.1\n\
             log: {{ level: info, accesslog: {{ disabled: false }} }}\n\
             storage: {{ filesystem: {{ rootdirectory: {} }}, delete: {{ enabled: true }} }}\n\
             http: {{ addr: '127.0.0.1:{port}' }}\n",
            folder.path().join("storage").display(),
        );
        std::fs::write(folder.path().join("config.yml"), config)?;
        let mut registry = Self { process: None, port, http: Http::new(), folder };
        registry.start_again().await?;
        Ok(registry)
    }

    /// Ends it: connections are refused. What was pushed stays.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Runs it again after [`Registry::stop`].
    pub async fn start_again(&mut self) -> Result<()> {
        let arguments = ["serve".into(), self.folder.path().join("config.yml")];
        self.process =
            Some(Process::start(&tool("docker-registry/usr/bin/docker-registry")?, arguments, &[], self.log())?);
        let url = format!("{}/v2/", self.url());
        until("docker-registry answers", Duration::from_secs(20), async || self.http.get(&url).await.ok()).await?;
        Ok(())
    }

    /// `127.0.0.1:…`
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `http://127.0.0.1:…`
    pub fn url(&self) -> String {
        format!("http://{}", self.host())
    }

    /// Pushes an image under a tag.
    pub async fn push(&self, image: &Image, repository: &str, tag: &str) -> Result<()> {
        push::push(&self.http, &self.url(), image, repository, tag).await
    }

    /// Removes the manifest of this digest, and with it every tag that points at it.
    pub async fn delete(&self, repository: &str, digest: &str) -> Result<()> {
        let url = format!("{}/v2/{repository}/manifests/{digest}", self.url());
        self.http
            .send(http::Method::DELETE, &url, &[], bytes::Bytes::new())
            .await?
            .expect(http::StatusCode::ACCEPTED)?;
        Ok(())
    }

    /// How many requests of this method it has answered whose path contains `path`, by its own access log.
    pub fn count(&self, method: &str, path: &str) -> usize {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let requests = log.lines().filter_map(|line| line.split('"').nth(1)?.split_once(' '));
        requests.filter(|(how, what)| *how == method && what.contains(path)).count()
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }
}
