use larder_proto::peers::directory_server;
use larder_proto::peers::{
    AnnounceReply, AnnounceRequest, AskReply, AskRequest, ReportReply, ReportRequest, SuspectReply, SuspectRequest,
};
use tonic::{Request, Response, Status};

use super::caller_of;
use crate::peers::Directory;

/// Who has what, and who fetches it.
pub(super) struct Door(Directory);

impl Door {
    pub(super) const fn new(directory: Directory) -> Self {
        Self(directory)
    }
}

#[tonic::async_trait]
impl directory_server::Directory for Door {
    async fn ask(&self, request: Request<AskRequest>) -> Result<Response<AskReply>, Status> {
        let from = caller_of(&request)?;
        Ok(Response::new(self.0.ask(from, request.into_inner()).await?))
    }

    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportReply>, Status> {
        let from = caller_of(&request)?;
        Ok(Response::new(self.0.report(from, request.into_inner())?))
    }

    async fn announce(&self, request: Request<AnnounceRequest>) -> Result<Response<AnnounceReply>, Status> {
        let from = caller_of(&request)?;
        Ok(Response::new(self.0.announce(from, request.into_inner())?))
    }

    async fn suspect(&self, request: Request<SuspectRequest>) -> Result<Response<SuspectReply>, Status> {
        let from = caller_of(&request)?;
        Ok(Response::new(self.0.suspect(from, request.into_inner())?))
    }
}
