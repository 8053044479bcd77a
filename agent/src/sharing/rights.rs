use larder_proto::peers::rights_server;
use larder_proto::peers::{KnowsReply, KnowsRequest, RightNoted, RightReply, RightRequest, RightTold};
use tonic::{Request, Response, Status};

use super::caller_of;
use super::source::Source;
use crate::peers::{Directory, messages};

/// Who may pull what, as registries said last.
pub(super) struct Door<S> {
    directory: Directory,
    source: S,
}

impl<S> Door<S> {
    pub(super) const fn new(directory: Directory, source: S) -> Self {
        Self { directory, source }
    }
}

#[tonic::async_trait]
impl<S: Source> rights_server::Rights for Door<S> {
    async fn tell(&self, request: Request<RightTold>) -> Result<Response<RightNoted>, Status> {
        let from = caller_of(&request)?;
        self.directory.tell_right(from, request.get_ref()).await?;
        Ok(Response::new(RightNoted {}))
    }

    async fn ask(&self, request: Request<RightRequest>) -> Result<Response<RightReply>, Status> {
        caller_of(&request)?;
        Ok(Response::new(self.directory.right(request.get_ref()).await?))
    }

    async fn knows(&self, request: Request<KnowsRequest>) -> Result<Response<KnowsReply>, Status> {
        caller_of(&request)?;
        let of = messages::knows(request.get_ref())?;
        Ok(Response::new(KnowsReply { knows: self.source.knows(&of).await }))
    }
}
