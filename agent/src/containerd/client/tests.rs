use std::sync::Arc;

use tempfile::TempDir;

use super::fake::{self, Held};
use super::*;

fn client(folder: &TempDir) -> Client {
    let socket = folder.path().join("containerd.sock");
    Client::new(&config::Containerd { socket, ..config::Containerd::default() }).unwrap()
}

#[tokio::test]
async fn says_that_there_is_no_socket_or_nobody_at_it() {
    let folder = TempDir::new().unwrap();
    let client = client(&folder);
    assert!(matches!(client.version().await, Err(ClientError::SocketMissing { .. })));
    assert!(matches!(client.process().await, Err(ClientError::SocketMissing { .. })));
    // A socket file stays behind when its process ends.
    drop(std::os::unix::net::UnixListener::bind(client.socket()).unwrap());
    let error = client.version().await.unwrap_err();
    assert!(matches!(error, ClientError::Refused { .. }), "{error}");
    assert!(error.is_unreachable());
}

#[tokio::test]
async fn gives_up_on_a_containerd_that_hangs() {
    let folder = TempDir::new().unwrap();
    let client = client(&folder);
    let _silent = tokio::net::UnixListener::bind(client.socket()).unwrap();
    let deadline = Duration::from_millis(50);
    let error = client.pull("a", None, deadline).await.unwrap_err();
    assert!(
        matches!(error, ClientError::Deadline { call: "CRI PullImage", after, .. } if after == deadline),
        "{error}"
    );
}

#[tokio::test]
async fn connects_again_after_a_restart() {
    let folder = TempDir::new().unwrap();
    let client = client(&folder);
    let held = Arc::new(Held::default());
    held.images.lock().unwrap().push("a".to_owned());
    for _ in 0..2 {
        let serving =
            fake::serve(client.socket(), Arc::clone(&held), Box::new(|_| Box::pin(std::future::ready(Ok(())))));
        assert_eq!(client.list_images().await.unwrap().len(), 1);
        assert!(client.image_status("a").await.unwrap().is_some());
        assert!(client.image_status("b").await.unwrap().is_none());
        serving.abort();
        assert!(serving.await.unwrap_err().is_cancelled());
        std::fs::remove_file(client.socket()).unwrap();
        // The first call may still find the old connection broken; after that the socket is missed.
        let broken = [client.list_images().await, client.list_images().await];
        assert!(matches!(broken[1], Err(ClientError::SocketMissing { .. })), "{broken:?}");
    }
}

#[tokio::test]
async fn tells_what_is_not_served() {
    let folder = TempDir::new().unwrap();
    let client = client(&folder);
    let _serving = fake::serve(client.socket(), Arc::default(), Box::new(|_| Box::pin(std::future::ready(Ok(())))));
    let error = client.cri_status().await.unwrap_err();
    assert!(matches!(error, ClientError::NotServed { call: "CRI Status", .. }), "{error}");
}

#[tokio::test]
async fn refuses_a_namespace_that_cannot_be_sent() {
    let config = config::Containerd { namespaces: vec!["k8s\n".to_owned()], ..config::Containerd::default() };
    assert!(matches!(Client::new(&config), Err(ClientError::Namespace { .. })));
}

#[test]
fn a_password_is_not_printed() {
    let auth = Auth { username: "u".to_owned(), password: "secret".to_owned() };
    assert!(!format!("{auth:?}").contains("secret"));
}
