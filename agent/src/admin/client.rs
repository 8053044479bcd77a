use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::stock::{KeptImages, Prefetching};
use super::view::images::Images;
use super::view::{Checked, Collected, Failed, Kept, Status};
use crate::containerd::canary::Report;
use crate::image::ImageName;
use crate::peers::Shown;

/// To an answer's head. A canary pull is the slowest of them.
const DEADLINE: Duration = Duration::from_secs(60);
/// From one line of a long answer to the next: the largest blob has to be hashed meanwhile.
const LINE_DEADLINE: Duration = Duration::from_secs(300);

/// The other end of the admin socket.
#[derive(Debug, Clone)]
pub struct Client(PathBuf);

/// Why the agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no agent is running: nobody answers at {}", path.display())]
    NoAgent {
        /// The socket.
        path: PathBuf,
    },
    /// The socket is there, and not for us.
    #[error("the agent's socket {} is not for this user: {source}", path.display())]
    Forbidden {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The connection failed.
    #[error("the agent's socket {} fails", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// How.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("the agent does not answer at {}", path.display())]
    Late {
        /// The socket.
        path: PathBuf,
    },
    /// It is alive, and doesn't serve, or can't be counted upon yet; the text says why.
    #[error("{0}")]
    NotServing(String),
    /// The agent could not do it.
    #[error("{0}")]
    Refused(String),
}

impl Client {
    /// For the agent at this socket. Connects with each call.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self(socket.to_owned())
    }

    /// What the agent is doing.
    ///
    /// # Errors
    /// When there is no agent, or it doesn't answer.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.call(Method::GET, "/v1/status").await
    }

    /// Whether the process at this socket is alive: whether it answers.
    ///
    /// # Errors
    /// When there is no agent, or it doesn't answer.
    pub async fn live(&self) -> Result<(), ClientError> {
        self.call(Method::GET, "/v1/probe/live").await
    }

    /// Whether the process at this socket is ready, see [`super::Standing::ready`].
    ///
    /// # Errors
    /// When it isn't, with the reason; when there is no agent, or it doesn't answer.
    pub async fn ready(&self) -> Result<(), ClientError> {
        self.call(Method::GET, "/v1/probe/ready").await
    }

    /// The cluster as the agent sees it; `None` where none is configured.
    ///
    /// # Errors
    /// When there is no agent, or it doesn't answer.
    pub async fn peers(&self) -> Result<Option<Shown>, ClientError> {
        self.call(Method::GET, "/v1/peers").await
    }

    /// The images that are known on this node.
    ///
    /// # Errors
    /// When there is no agent, or it doesn't answer.
    pub async fn images(&self) -> Result<Images, ClientError> {
        self.call(Method::GET, "/v1/images").await
    }

    /// The images that run anywhere in the cluster.
    ///
    /// # Errors
    /// When there is no agent, or it doesn't answer.
    pub async fn cluster_images(&self) -> Result<Images, ClientError> {
        self.call(Method::GET, "/v1/images/cluster").await
    }

    /// Proves now whether containerd comes to us.
    ///
    /// # Errors
    /// When there is no agent, or it doesn't answer.
    pub async fn prove(&self) -> Result<Report, ClientError> {
        self.call(Method::POST, "/v1/canary").await
    }

    /// Brings the store below its low marks, where its bounds are passed; with `dry_run`, says what would go.
    ///
    /// # Errors
    /// When there is no agent, or it doesn't answer.
    pub async fn collect(&self, dry_run: bool) -> Result<Collected, ClientError> {
        self.call(Method::POST, if dry_run { "/v1/cache/gc?dry_run" } else { "/v1/cache/gc" }).await
    }

    /// What is kept, image by image.
    ///
    /// # Errors
    /// When there is no agent, or it doesn't answer.
    pub async fn kept_images(&self) -> Result<KeptImages, ClientError> {
        self.call(Method::GET, "/v1/cache/images").await
    }

    /// Fetches an image into the cache. The last line says what became of it.
    ///
    /// # Errors
    /// When there is no agent, or it stops answering.
    pub async fn prefetch(&self, name: &ImageName, line: impl FnMut(Prefetching)) -> Result<(), ClientError> {
        let query = form_urlencoded::Serializer::new(String::new()).append_pair("image", &name.to_string()).finish();
        self.lines(Method::POST, &format!("/v1/prefetch?{query}"), line).await
    }

    /// What is kept, blob by blob.
    ///
    /// # Errors
    /// When there is no agent, or it stops answering.
    pub async fn kept(&self, row: impl FnMut(Kept)) -> Result<(), ClientError> {
        self.lines(Method::GET, "/v1/cache", row).await
    }

    /// Hashes what is kept, blob by blob.
    ///
    /// # Errors
    /// When there is no agent, or it stops answering.
    pub async fn verify(&self, row: impl FnMut(Checked)) -> Result<(), ClientError> {
        self.lines(Method::POST, "/v1/cache/verify", row).await
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, ClientError> {
        let (mut body, _connection) = self.ask(method, path).await?;
        let mut bytes = Vec::new();
        while let Some(more) = self.next(&mut body).await? {
            bytes.extend_from_slice(&more);
        }
        self.parse(&bytes)
    }

    async fn lines<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        mut row: impl FnMut(T),
    ) -> Result<(), ClientError> {
        let (mut body, _connection) = self.ask(method, path).await?;
        let mut rest = Vec::new();
        while let Some(more) = self.next(&mut body).await? {
            rest.extend_from_slice(&more);
            while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
                match self.parse(&rest[..end])? {
                    Line::Row(line) => row(line),
                    Line::Failed(failed) => return Err(ClientError::Refused(failed.error)),
                }
                rest.drain(..=end);
            }
        }
        Ok(())
    }

    async fn ask(&self, method: Method, path: &str) -> Result<(Incoming, Connection), ClientError> {
        let late = |_| ClientError::Late { path: self.0.clone() };
        timeout(DEADLINE, self.send(method, path)).await.map_err(late)?
    }

    async fn send(&self, method: Method, path: &str) -> Result<(Incoming, Connection), ClientError> {
        let stream = UnixStream::connect(&self.0).await.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoAgent { path: self.0.clone() },
            io::ErrorKind::PermissionDenied => ClientError::Forbidden { path: self.0.clone(), source },
            _ => self.broken(source),
        })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.broken(e))?;
        let connection = Connection(tokio::spawn(async move { drop(connection.await) }));
        let request = Request::builder().method(method).uri(path).header("host", "larder").body(Empty::<Bytes>::new());
        let request = request.map_err(|e| self.broken(e))?;
        let response = sender.send_request(request).await.map_err(|e| self.broken(e))?;
        let status = response.status();
        if status.is_success() {
            return Ok((response.into_body(), connection));
        }
        let body = response.into_body().collect().await.map_err(|e| self.broken(e))?.to_bytes();
        let failed: Failed = self.parse(&body)?;
        Err(match status {
            StatusCode::SERVICE_UNAVAILABLE => ClientError::NotServing(failed.error),
            _ => ClientError::Refused(failed.error),
        })
    }

    async fn next(&self, body: &mut Incoming) -> Result<Option<Bytes>, ClientError> {
        loop {
            let frame = timeout(LINE_DEADLINE, body.frame()).await;
            let Some(frame) = frame.map_err(|_| ClientError::Late { path: self.0.clone() })? else { return Ok(None) };
            if let Ok(bytes) = frame.map_err(|e| self.broken(e))?.into_data() {
                return Ok(Some(bytes));
            }
        }
    }

    fn parse<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(bytes).map_err(|e| self.broken(e))
    }

    fn broken(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Broken { path: self.0.clone(), source: source.into() }
    }
}

/// A line of a long answer.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line<T> {
    Row(T),
    /// Nothing more comes.
    Failed(Failed),
}

/// The task that moves a connection's bytes; ends with it.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}
