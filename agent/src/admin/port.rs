//! How the doors that speak HTTP/1.1 over TCP take their callers.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// To send a request's head; also how long a connection may idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// Serves connections, so many at a time, until `stop`; each by a service of its own.
pub(super) async fn serve<S>(listener: TcpListener, most: usize, stop: CancellationToken, service: impl Fn() -> S)
where
    S: Service<Request<Incoming>, Response = Response<Full<Bytes>>, Error = Infallible> + Send + 'static,
    S::Future: Send + 'static,
{
    let places = Arc::new(Semaphore::new(most));
    let connections = TaskTracker::new();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let (Ok((stream, _)), Ok(place)) = (accepted, Arc::clone(&places).try_acquire_owned()) else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let (service, stop) = (service(), stop.clone());
        connections.spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            // How it ends is the caller's affair.
            let _ = stop.run_until_cancelled(connection).await;
            drop(place);
        });
    }
    connections.close();
    connections.wait().await;
}
