use std::sync::Arc;

use larder_proto::peers::images_server;
use larder_proto::peers::{ImagesReply, ImagesRequest};
use tonic::{Request, Response, Status};

use super::caller_of;

/// What this node says of the images that it runs.
pub type Told = Arc<dyn Fn() -> ImagesReply + Send + Sync>;

/// The images that run here.
pub(super) struct Door(Option<Told>);

impl Door {
    pub(super) const fn new(told: Option<Told>) -> Self {
        Self(told)
    }
}

#[tonic::async_trait]
impl images_server::Images for Door {
    async fn list(&self, request: Request<ImagesRequest>) -> Result<Response<ImagesReply>, Status> {
        caller_of(&request)?;
        match &self.0 {
            Some(told) => Ok(Response::new(told())),
            None => Err(Status::unimplemented("this node doesn't watch its images")),
        }
    }
}
