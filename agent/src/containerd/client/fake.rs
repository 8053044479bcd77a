//! A containerd that only pulls: the runtime interface's images on a real socket, with an answer of the test's choice.

use std::path::Path;
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use larder_proto::cri::image_service_server::{ImageService, ImageServiceServer};
use larder_proto::cri::{
    Image, ImageStatusRequest, ImageStatusResponse, ListImagesRequest, ListImagesResponse, PullImageRequest,
    PullImageResponse, RemoveImageRequest, RemoveImageResponse,
};
use tokio::net::UnixListener;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};

/// What a pull does: gets the image's name.
pub(crate) type OnPull = Box<dyn Fn(String) -> BoxFuture<'static, Result<(), Status>> + Send + Sync>;

/// The state that tests look at.
#[derive(Default)]
pub(crate) struct Held {
    pub(crate) images: Mutex<Vec<String>>,
    pub(crate) pulls: Mutex<Vec<String>>,
}

struct Fake {
    held: Arc<Held>,
    on_pull: OnPull,
}

/// Serves until the handle is dropped.
pub(crate) fn serve(socket: &Path, held: Arc<Held>, on_pull: OnPull) -> AbortOnDropHandle<()> {
    let listener = UnixListener::bind(socket).unwrap();
    let service = ImageServiceServer::new(Fake { held, on_pull });
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            let serve = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
            connections.spawn(async move { drop(serve.await) });
        }
    }))
}

fn name(spec: Option<larder_proto::cri::ImageSpec>) -> String {
    spec.map(|spec| spec.image).unwrap_or_default()
}

#[tonic::async_trait]
impl ImageService for Fake {
    async fn list_images(&self, _: Request<ListImagesRequest>) -> Result<Response<ListImagesResponse>, Status> {
        let images = self.held.images.lock().unwrap();
        let image =
            |tag: &String| Image { id: format!("id of {tag}"), repo_tags: vec![tag.clone()], ..Image::default() };
        Ok(Response::new(ListImagesResponse { images: images.iter().map(image).collect() }))
    }

    async fn image_status(&self, r: Request<ImageStatusRequest>) -> Result<Response<ImageStatusResponse>, Status> {
        let name = name(r.into_inner().image);
        let found = self.held.images.lock().unwrap().contains(&name);
        Ok(Response::new(ImageStatusResponse { image: found.then(Image::default), ..Default::default() }))
    }

    async fn pull_image(&self, r: Request<PullImageRequest>) -> Result<Response<PullImageResponse>, Status> {
        let name = name(r.into_inner().image);
        self.held.pulls.lock().unwrap().push(name.clone());
        (self.on_pull)(name.clone()).await?;
        self.held.images.lock().unwrap().push(name.clone());
        Ok(Response::new(PullImageResponse { image_ref: name }))
    }

    async fn remove_image(&self, r: Request<RemoveImageRequest>) -> Result<Response<RemoveImageResponse>, Status> {
        let name = name(r.into_inner().image);
        self.held.images.lock().unwrap().retain(|held| *held != name && format!("id of {held}") != name);
        Ok(Response::new(RemoveImageResponse {}))
    }
}
