//! What is contacted at all.

use super::server::{Ca, Server, answer, ok};
use super::*;
use crate::upstream::{Grant, Part};

#[tokio::test]
async fn a_redirect_opens_nothing_on_this_machine() {
    let secret = Server::plain(|_| ok("secret")).await;
    let port = secret.address.port();
    for target in [
        format!("http://127.0.0.1:{port}/"),
        format!("https://127.0.0.1:{port}/"),
        format!("https://localhost:{port}/"),
        format!("https://LOCALHOST:{port}/"),
        format!("https://[::ffff:127.0.0.1]:{port}/"),
        format!("https://[::1]:{port}/"),
        format!("https://0.0.0.0:{port}/"),
        "https://169.254.169.254/latest/meta-data/".to_owned(),
        "http://registry.test/".to_owned(),
    ] {
        let to = target.clone();
        let server = Server::plain(move |_| answer("307 There", &[("Location", &to)], "")).await;
        let error = Room::of(&server.url()).blob(0).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Forbidden(_)), "{target}: {error}");
        assert!(!error.is_answer());
    }
    assert_eq!(secret.connections(), 0);
}

#[tokio::test]
async fn an_image_name_opens_nothing_on_this_machine() {
    let secret = Server::plain(|_| ok("secret")).await;
    let port = secret.address.port();
    let room = Room::of(&secret.url());
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "[::1]"] {
        let registry: Registry = format!("{host}:{port}").parse().unwrap();
        let upstream = Arc::clone(&room.upstreams.of(&registry)[0]);
        let error = upstream.blob(&Grant::Anonymous, &repository(), &digest(), Part::from(0)).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Forbidden(_)), "{host}: {error}");
    }
    // Loopback for the system's resolver, and no name that a certificate could have.
    for host in ["127.1", "2130706433", "0x7f.1"] {
        let registry: Registry = format!("{host}:{port}").parse().unwrap();
        assert!(
            room.upstreams.of(&registry)[0]
                .blob(&Grant::Anonymous, &repository(), &digest(), Part::from(0))
                .await
                .is_err(),
            "{host}"
        );
    }
    assert_eq!(secret.connections(), 0);
    assert_eq!(room.bytes().await.unwrap(), b"secret", "what the configuration names is open");
}

#[tokio::test]
async fn plain_http_is_not_named_by_an_https_url() {
    let ca = Ca::new();
    let server = Server::tls(&ca, |head| {
        let host = head.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
        answer("307 There", &[("Location", &format!("http://{host}/"))], "")
    })
    .await;
    let room = Room::new(address::refused, &server.url(), Some(ca.path()), false);
    let error = room.blob(0).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Forbidden(_)), "{error}");
    assert!(error.to_string().contains("plain HTTP"), "{error}");
}
