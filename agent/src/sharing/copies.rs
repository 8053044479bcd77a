use larder_proto::peers::copies_server;
use larder_proto::peers::{WantReply, WantRequest};
use tonic::{Request, Response, Status};

use super::caller_of;
use crate::peers::Directory;

/// What others want to be here.
pub(super) struct Door(Directory);

impl Door {
    pub(super) const fn new(directory: Directory) -> Self {
        Self(directory)
    }
}

#[tonic::async_trait]
impl copies_server::Copies for Door {
    async fn want(&self, request: Request<WantRequest>) -> Result<Response<WantReply>, Status> {
        let from = caller_of(&request)?;
        self.0.want(from, request.into_inner())?;
        Ok(Response::new(WantReply {}))
    }
}
