use larder_proto::peers::checks_server;
use larder_proto::peers::{GrantReply, GrantRequest, HandOverReply, HandOverRequest, WatchReply, WatchRequest};
use tonic::{Request, Response, Status};

use super::caller_of;
use crate::peers::Directory;

/// Checks of images, made by one for all.
pub(super) struct Door(Directory);

impl Door {
    pub(super) const fn new(directory: Directory) -> Self {
        Self(directory)
    }
}

#[tonic::async_trait]
impl checks_server::Checks for Door {
    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<WatchReply>, Status> {
        let from = caller_of(&request)?;
        Ok(Response::new(self.0.watch(from, request.into_inner())?))
    }

    async fn grant(&self, request: Request<GrantRequest>) -> Result<Response<GrantReply>, Status> {
        caller_of(&request)?;
        Ok(Response::new(self.0.grant_checks(&request.into_inner()).await?))
    }

    async fn hand_over(&self, request: Request<HandOverRequest>) -> Result<Response<HandOverReply>, Status> {
        let from = caller_of(&request)?;
        Ok(Response::new(self.0.hand_over(from, &request.into_inner()).await?))
    }
}
