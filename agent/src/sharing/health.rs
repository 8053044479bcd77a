use larder_proto::peers::health_server;
use larder_proto::peers::{HealthReply, HealthRequest};
use tonic::{Request, Response, Status};

use super::caller_of;
use crate::peers::Peers;

/// Whether this agent serves, and what it is.
pub(super) struct Door(Peers);

impl Door {
    pub(super) const fn new(peers: Peers) -> Self {
        Self(peers)
    }
}

#[tonic::async_trait]
impl health_server::Health for Door {
    async fn check(&self, request: Request<HealthRequest>) -> Result<Response<HealthReply>, Status> {
        caller_of(&request)?;
        Ok(Response::new(HealthReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.0.node().as_bytes().to_vec(),
            zone: self.0.zone().as_str().to_owned(),
        }))
    }
}
