//! A remote snapshotter: who asks it to unpack a layer is told that it is mounted already.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use futures_util::stream::{self, BoxStream};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use larder_proto::snapshots::snapshots_server::{Snapshots, SnapshotsServer};
use larder_proto::snapshots::{
    Info, Kind, ListSnapshotsRequest, ListSnapshotsResponse, Nothing, PrepareSnapshotRequest, PrepareSnapshotResponse,
    SnapshotRequest, StatSnapshotResponse, UsageResponse,
};
use tokio::net::UnixListener;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};

/// What containerd calls the snapshot that it is about to unpack a layer into.
const REFERENCE: &str = "containerd.io/snapshot.ref";

/// Takes every layer as mounted from afar, as stargz and SOCI do with those that they can read in pieces: containerd
/// never asks for its bytes. Nothing runs on such a snapshot. Dropped, it is gone.
#[derive(Debug)]
pub struct RemoteSnapshotter {
    socket: PathBuf,
    snapshots: Known,
    _serving: AbortOnDropHandle<()>,
}

/// The snapshots, by name.
type Known = Arc<Mutex<BTreeMap<String, Info>>>;

#[derive(Debug, Clone)]
struct Service(Known);

impl RemoteSnapshotter {
    /// One at a socket of this path, for [`ContainerdConfig::snapshotter`](crate::ContainerdConfig::snapshotter).
    pub fn start(socket: &Path) -> Result<Self> {
        let listener = UnixListener::bind(socket).with_context(|| socket.display().to_string())?;
        let snapshots = Known::default();
        let service = SnapshotsServer::new(Service(Arc::clone(&snapshots)));
        let serve = async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let service = TowerToHyperService::new(service.clone());
                let serve = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
                connections.spawn(async move { drop(serve.await) });
            }
        };
        Ok(Self { socket: socket.to_owned(), snapshots, _serving: AbortOnDropHandle::new(tokio::spawn(serve)) })
    }

    /// Where containerd finds it.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// How many layers are mounted, of whatever image.
    pub fn mounted(&self) -> usize {
        held(&self.snapshots).len()
    }
}

fn held(known: &Known) -> MutexGuard<'_, BTreeMap<String, Info>> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

#[tonic::async_trait]
impl Snapshots for Service {
    type ListStream = BoxStream<'static, Result<ListSnapshotsResponse, Status>>;

    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let PrepareSnapshotRequest { key: name, parent, labels } = request.into_inner();
        if !labels.contains_key(REFERENCE) {
            return Err(Status::unimplemented("nothing runs here"));
        }
        let info = Info { name: name.clone(), parent, kind: Kind::Committed.into(), labels };
        held(&self.0).insert(name, info);
        Err(Status::already_exists("mounted"))
    }

    async fn remove(&self, request: Request<SnapshotRequest>) -> Result<Response<Nothing>, Status> {
        match held(&self.0).remove(&request.into_inner().key) {
            Some(_) => Ok(Response::new(Nothing {})),
            None => Err(Status::not_found("no such snapshot")),
        }
    }

    async fn stat(&self, request: Request<SnapshotRequest>) -> Result<Response<StatSnapshotResponse>, Status> {
        match held(&self.0).get(&request.into_inner().key) {
            Some(info) => Ok(Response::new(StatSnapshotResponse { info: Some(info.clone()) })),
            None => Err(Status::not_found("no such snapshot")),
        }
    }

    async fn list(&self, _: Request<ListSnapshotsRequest>) -> Result<Response<Self::ListStream>, Status> {
        let info = held(&self.0).values().cloned().collect();
        Ok(Response::new(Box::pin(stream::iter([Ok(ListSnapshotsResponse { info })]))))
    }

    async fn usage(&self, _: Request<SnapshotRequest>) -> Result<Response<UsageResponse>, Status> {
        Ok(Response::new(UsageResponse::default()))
    }
}
