use larder_proto::peers::tags_server;
use larder_proto::peers::{TagReply, TagReport, TagReported, TagRequest};
use tonic::{Request, Response, Status};

use super::caller_of;
use crate::peers::Directory;

/// What tags mean.
pub(super) struct Door(Directory);

impl Door {
    pub(super) const fn new(directory: Directory) -> Self {
        Self(directory)
    }
}

#[tonic::async_trait]
impl tags_server::Tags for Door {
    async fn ask(&self, request: Request<TagRequest>) -> Result<Response<TagReply>, Status> {
        let from = caller_of(&request)?;
        Ok(Response::new(self.0.ask_tag(from, request.into_inner()).await?))
    }

    async fn report(&self, request: Request<TagReport>) -> Result<Response<TagReported>, Status> {
        let from = caller_of(&request)?;
        self.0.report_tag(from, request.into_inner()).await?;
        Ok(Response::new(TagReported {}))
    }

    async fn asking(&self, request: Request<TagReport>) -> Result<Response<TagReported>, Status> {
        let from = caller_of(&request)?;
        self.0.still_asks_tag(from, request.into_inner())?;
        Ok(Response::new(TagReported {}))
    }

    async fn newest(&self, request: Request<TagRequest>) -> Result<Response<TagReply>, Status> {
        caller_of(&request)?;
        Ok(Response::new(self.0.newest_tag(request.into_inner()).await?))
    }
}
