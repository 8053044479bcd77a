use std::convert::Infallible;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::view::Failed;
use super::{Agent, Standing};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// People, not machines, sit at the other end.
const MAX_CONNECTIONS: usize = 16;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Lines of a long answer that wait for who reads them.
const LINES_AHEAD: usize = 64;

/// The command line's socket: root's alone.
pub struct Socket(UnixListener);

impl Socket {
    /// Takes the socket, also one that a dead agent left.
    ///
    /// # Errors
    /// When its folder can't be made or written to, or a living agent has it.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let said = |e: io::Error| io::Error::new(e.kind(), format!("admin.socket {}: {e}", path.display()));
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(said)?;
        }
        let listener = match UnixListener::bind(path) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                if std::os::unix::net::UnixStream::connect(path).is_ok() {
                    return Err(said(e));
                }
                if !std::fs::symlink_metadata(path).map_err(said)?.file_type().is_socket() {
                    return Err(said(e));
                }
                std::fs::remove_file(path).map_err(said)?;
                UnixListener::bind(path).map_err(said)?
            }
            bound => bound.map_err(said)?,
        };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(said)?;
        Ok(Self(listener))
    }

    /// Serves until `stop`. Before the agent has its store, it answers probes alone.
    pub async fn serve(self, standing: watch::Receiver<Standing>, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let connections = TaskTracker::new();
        while let Some(accepted) = stop.run_until_cancelled(self.0.accept()).await {
            let (Ok((stream, _)), Ok(place)) = (accepted, Arc::clone(&places).try_acquire_owned()) else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let (standing, stop) = (standing.clone(), stop.clone());
            connections.spawn(async move {
                stop.run_until_cancelled(connection(stream, standing)).await;
                drop(place);
            });
        }
        connections.close();
        connections.wait().await;
    }
}

async fn connection(stream: UnixStream, standing: watch::Receiver<Standing>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let standing = standing.borrow().clone();
        async move { Ok::<_, Infallible>(answer(&standing, &request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(e) = connection.await {
        tracing::debug!(error = %e, "a connection on the admin socket ended");
    }
}

async fn answer(standing: &Standing, request: &Request<Incoming>) -> Response<Body> {
    let refused = |error: &str| json(StatusCode::SERVICE_UNAVAILABLE, &Failed { error: error.to_owned() });
    match (request.uri().path(), standing.agent()) {
        // That there is an answer is the answer; whether the mirror gives one is watched by the parent process.
        ("/v1/probe/live", _) => json(StatusCode::OK, &()),
        ("/v1/probe/ready", _) => standing.ready().map_or_else(refused, |()| json(StatusCode::OK, &())),
        (_, Some(agent)) => show(agent, request).await,
        (_, None) => refused("this agent doesn't serve yet: it waits for the cache, which another process holds"),
    }
}

async fn show(agent: Arc<Agent>, request: &Request<Incoming>) -> Response<Body> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/v1/status") => json(StatusCode::OK, &agent.status().await),
        (&Method::GET, "/v1/peers") => json(StatusCode::OK, &agent.peers.shown()),
        (&Method::GET, "/v1/images") => json(StatusCode::OK, &agent.images()),
        (&Method::GET, "/v1/images/cluster") => json(StatusCode::OK, &agent.cluster().await),
        (&Method::POST, "/v1/canary") => json(StatusCode::OK, &agent.prove().await),
        (&Method::POST, "/v1/cache/gc") => json(StatusCode::OK, &agent.collect(has(request, "dry_run")).await),
        (&Method::GET, "/v1/cache") => lines(|lines| async move { agent.kept(lines).await }),
        (&Method::GET, "/v1/cache/images") => json(StatusCode::OK, &agent.kept_images().await),
        (&Method::POST, "/v1/prefetch") => {
            let image = value(request, "image").and_then(|name| name.parse().ok());
            lines(|lines| async move { agent.prefetch(image, lines).await })
        }
        (&Method::POST, "/v1/cache/verify") => lines(|lines| async move { agent.verify(lines).await }),
        (method, path) => {
            let error = format!("there is no {method} {path}: agent and command line are of different versions");
            json(StatusCode::NOT_FOUND, &Failed { error })
        }
    }
}

/// What the query says of `key`.
fn value(request: &Request<Incoming>, key: &str) -> Option<String> {
    let query = request.uri().query()?.as_bytes();
    form_urlencoded::parse(query).find(|(name, _)| name == key).map(|(_, value)| value.into_owned())
}

fn has(request: &Request<Incoming>, key: &str) -> bool {
    value(request, key).is_some()
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    // What `view` has are plain structs with string keys, which always have a JSON form.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    let mut response = Response::new(Full::from(bytes).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Where the lines of a long answer go.
pub(super) struct Lines(mpsc::Sender<Bytes>);

impl Lines {
    /// One more line; `false` when nobody reads on.
    pub(super) async fn write(&self, value: &impl Serialize) -> bool {
        let mut line = serde_json::to_vec(value).unwrap_or_default();
        line.push(b'\n');
        self.0.send(line.into()).await.is_ok()
    }
}

/// An answer whose lines are written while it is read. The work ends with its reader.
fn lines<F>(work: impl FnOnce(Lines) -> F) -> Response<Body>
where
    F: Future<Output = ()> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(LINES_AHEAD);
    let work = Some(Box::pin(work(Lines(sender))));
    let frames = stream::unfold((work, receiver), |(mut work, mut receiver)| async move {
        let line = match &mut work {
            Some(running) => tokio::select! {
                biased;
                line = receiver.recv() => line,
                () = running => {
                    work = None;
                    receiver.recv().await
                }
            },
            None => receiver.recv().await,
        };
        line.map(|line| (Ok(Frame::data(line)), (work, receiver)))
    });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}
