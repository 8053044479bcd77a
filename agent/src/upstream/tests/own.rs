//! The agent's own credentials: of several the one that opens it, and programs that know them and are slow or fail.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use prometheus_client::encoding::text::encode;
use tempfile::TempDir;

use super::credentials::{basic, bearer, challenge};
use super::server::{Act, Server, answer, ok};
use super::*;
use crate::image::Access;
use crate::upstream::Lack;

const HELPER: &str = "docker-credential-vault";

/// Files of credentials, and one helper, which starts where they are.
struct Files(TempDir);

impl Files {
    fn new(helper: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(HELPER);
        fs::write(&path, format!("#!/bin/sh\ncd '{}'\n{helper}\n", dir.path().display())).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        Self(dir)
    }

    fn write(&self, name: &str, text: &str) -> std::path::PathBuf {
        fs::write(self.0.path().join(name), text).unwrap();
        self.0.path().join(name)
    }

    /// A file with one password for a server.
    fn password(&self, name: &str, of: &Server, password: &str) -> std::path::PathBuf {
        let entry = format!(r#"{{"username":"me","password":"{password}"}}"#);
        self.write(name, &format!(r#"{{"auths":{{"{}":{entry}}}}}"#, of.address))
    }

    /// An upstream whose credentials the helper knows.
    fn by_helper(&self, server: &Server) -> UpstreamConfig {
        let file = self.write("helper.json", r#"{"credsStore":"vault"}"#);
        UpstreamConfig { insecure: true, credentials: Some(file), ..at(&server.url()) }
    }

    fn config(&self, upstreams: Vec<UpstreamConfig>) -> Config {
        let mut config = config(upstreams);
        config.credentials.helpers_dir = Some(self.0.path().to_owned());
        config
    }

    fn upstreams(&self, upstreams: Vec<UpstreamConfig>) -> Upstreams {
        Upstreams::guarded_by(address::refused, &self.config(upstreams)).unwrap()
    }
}

fn plain(server: &Server) -> UpstreamConfig {
    UpstreamConfig { insecure: true, ..at(&server.url()) }
}

async fn ask(upstream: &Upstream, grant: &Grant) -> Result<Access, ErrorKind> {
    let answer = upstream.blob(grant, &repository(), &digest(), Part::WHOLE).await;
    answer.map(|answer| answer.access).map_err(|e| e.kind().clone())
}

/// Wants a password, by name.
async fn basic_of(password: &'static str) -> Server {
    let opens = basic(&format!("me:{password}"));
    Server::plain(move |head| if head.contains(&opens) { ok("hello") } else { challenge("Basic realm=x") }).await
}

#[tokio::test]
async fn what_opens_to_anybody_waits_for_no_helper() {
    let files = Files::new("touch started; sleep 1000");
    let server = Server::plain(|_| ok("hello")).await;
    let upstreams = files.upstreams(vec![files.by_helper(&server)]);
    for _ in 0..2 {
        assert_eq!(ask(&upstreams.of(&registry())[0], &Grant::Anonymous).await, Ok(Access::Authorized));
    }
    assert!(!files.0.path().join("started").exists());
}

#[tokio::test]
async fn a_helper_that_hangs_is_no_fault_of_the_upstreams() {
    let files = Files::new("sleep 1000");
    let (mirror, other) = (basic_of("x").await, Server::plain(|_| ok("hello")).await);
    let upstreams = files.upstreams(vec![files.by_helper(&mirror), plain(&other)]);
    let chain = upstreams.of(&registry());
    for _ in 0..3 {
        let late = ErrorKind::Credentials(Lack::Late(HELPER.to_owned()));
        assert_eq!(ask(&chain[0], &Grant::Anonymous).await, Err(late));
        assert!(chain[0].is_available(), "{:?}", chain[0].state());
    }
    assert_eq!(ask(&chain[0], &Grant::None).await, Err(ErrorKind::Unauthorized), "the caller may know more");
    let error = chain[0].state().last_error.unwrap();
    assert!(
        error.text.ends_with("no credentials for it: docker-credential-vault has not answered yet"),
        "{}",
        error.text
    );
    let first = chain.first(|_| false, |upstream| async move { ask_of(&upstream).await }).await;
    assert!(Arc::ptr_eq(&first.unwrap().0, &chain[1]));
}

async fn ask_of(upstream: &Upstream) -> Result<(), UpstreamError> {
    upstream.blob(&Grant::Anonymous, &repository(), &digest(), Part::WHOLE).await.map(drop)
}

#[tokio::test]
async fn a_race_that_is_lost_for_a_helper_is_no_fault_of_the_upstreams() {
    let files = Files::new("sleep 1000");
    let (mirror, other) = (basic_of("x").await, Server::plain(|_| ok("hello")).await);
    let mut config = files.config(vec![files.by_helper(&mirror), plain(&other)]);
    // The other is asked long before this helper is given up.
    config.mirror.header_timeout = Span(Duration::from_secs(60));
    let upstreams = Upstreams::guarded_by(address::refused, &config).unwrap();
    let chain = upstreams.of(&registry());
    // By a challenge, and before one.
    for _ in 0..2 {
        let (first, ()) = chain.first(|_| false, |upstream| async move { ask_of(&upstream).await }).await.unwrap();
        assert!(Arc::ptr_eq(&first, &chain[1]));
        assert!(chain[0].is_available(), "{:?}", chain[0].state());
    }
    assert_eq!(mirror.seen().len(), 1, "it is not probed either");
}

#[tokio::test]
async fn one_that_says_nothing_is_down_whatever_credentials_there_are() {
    let files = Files::new(r#"echo '{"Username":"me","Secret":"right"}'"#);
    let right = basic("me:right");
    let mirror = Server::plain(move |head| match () {
        () if head.contains("/app/blobs/") && head.contains(&right) => ok("hello"),
        () if head.contains("/silent/") || head.contains(" /v2/ ") => vec![Act::Hang],
        () => challenge("Basic realm=x"),
    })
    .await;
    let other = Server::plain(|_| ok("hello")).await;
    let upstreams = files.upstreams(vec![files.by_helper(&mirror), plain(&other)]);
    let chain = upstreams.of(&registry());
    assert_eq!(ask(&chain[0], &Grant::Anonymous).await, Ok(Access::Authorized));
    let silent = "acme/silent".parse().unwrap();
    let first = chain.first(
        |_| false,
        |upstream| {
            let silent = &silent;
            async move { upstream.blob(&Grant::Anonymous, silent, &digest(), Part::WHOLE).await.map(drop) }
        },
    );
    assert!(Arc::ptr_eq(&first.await.unwrap().0, &chain[1]));
    assert!(!chain[0].is_available());
}

#[tokio::test]
async fn a_helper_that_fails_keeps_nobody_from_what_is_public() {
    let files = Files::new("exit 3");
    let server = Server::plain(|head| match () {
        () if head.contains("GET /token") => ok(r#"{"token":"anybodys"}"#),
        () if head.contains("Bearer anybodys") && head.contains("/public/") => ok("hello"),
        () if head.contains("Bearer anybodys") && head.contains("/hidden/") => answer("404 No", &[], ""),
        () => bearer(head),
    })
    .await;
    let upstreams = files.upstreams(vec![files.by_helper(&server)]);
    let chain = upstreams.of(&registry());
    let ask = async |repository: &str| {
        let answer = chain[0].blob(&Grant::Anonymous, &repository.parse().unwrap(), &digest(), Part::WHOLE).await;
        answer.map(|answer| answer.access).map_err(|e| e.kind().clone())
    };
    let failed = ErrorKind::Credentials(Lack::Failed(HELPER.to_owned()));
    assert_eq!(ask("public/app").await, Ok(Access::Anonymous));
    assert_eq!(ask("private/app").await, Err(failed.clone()));
    assert_eq!(ask("hidden/app").await, Err(failed), "as anybody, nobody knows whether it is there");
    assert!(chain[0].is_available());
}

#[tokio::test]
async fn of_several_the_one_that_opens_it_is_found_and_kept_to() {
    let right = basic("me:right");
    for refusal in ["401 No", "403 No"] {
        let right = right.clone();
        let server = Server::plain(move |head| match () {
            () if head.contains(&right) => ok("hello"),
            () if head.contains("authorization") => answer(refusal, &[("WWW-Authenticate", "Basic realm=x")], ""),
            () => challenge("Basic realm=x"),
        })
        .await;
        several(server, &basic("me:wrong")).await;
    }
    let server = Server::plain(|head| match () {
        () if head.contains("POST /token") && head.contains("password=right") => ok(r#"{"token":"good"}"#),
        () if head.contains("POST /token") => ok(r#"{"token":"of no use"}"#),
        () if head.contains("authorization: Bearer good\r\n") => ok("hello"),
        () => bearer(head),
    })
    .await;
    several(server, "password=wrong").await;
}

async fn several(server: Server, wrong: &str) {
    let files = Files::new("exit 3");
    let (first, second) = (files.password("1.json", &server, "wrong"), files.password("2.json", &server, "right"));
    let mut config = files.config(vec![plain(&server)]);
    config.credentials.docker_config = vec![first.clone(), second.clone()];
    let upstreams = Upstreams::guarded_by(address::refused, &config).unwrap();
    let own = upstreams.own_grant(&registry(), &repository()).await.unwrap();
    for _ in 0..3 {
        assert_eq!(ask(&upstreams.of(&registry())[0], &own).await, Ok(Access::Authorized));
    }
    assert_eq!(server.count(wrong), 1, "accounts are locked for wrong passwords");

    // The upstream's own file goes first, and isn't all that there is.
    let mut config = files.config(vec![UpstreamConfig { credentials: Some(first), ..plain(&server) }]);
    config.credentials.docker_config = vec![second];
    let upstreams = Upstreams::guarded_by(address::refused, &config).unwrap();
    let own = upstreams.own_grant(&registry(), &repository()).await.unwrap();
    for _ in 0..3 {
        assert_eq!(ask(&upstreams.of(&registry())[0], &own).await, Ok(Access::Authorized));
    }
    assert_eq!(server.count(wrong), 2);
    let without = ask(&upstreams.of(&registry())[0], &Grant::Anonymous).await;
    assert!(matches!(without, Err(ErrorKind::Unauthorized | ErrorKind::Denied)), "{without:?}");
}

#[tokio::test]
async fn not_everything_is_tried() {
    let files = Files::new("exit 3");
    let server = basic_of("another").await;
    let mut config = files.config(vec![plain(&server)]);
    let all = (0..6).map(|n| files.password(&format!("{n}.json"), &server, &format!("wrong-{n}")));
    config.credentials.docker_config = all.collect();
    let upstreams = Upstreams::guarded_by(address::refused, &config).unwrap();
    let own = upstreams.own_grant(&registry(), &repository()).await.unwrap();
    assert_eq!(ask(&upstreams.of(&registry())[0], &own).await, Err(ErrorKind::Unauthorized));
    let shown: Vec<usize> = (0..6).map(|n| server.count(&basic(&format!("me:wrong-{n}")))).collect();
    assert_eq!(shown, [1, 1, 1, 1, 0, 0]);
}

#[tokio::test]
async fn an_upstreams_helper_is_counted_and_asked_once_for_all() {
    let files = Files::new(r#"echo run >> runs; echo '{"Username":"me","Secret":"right"}'"#);
    let server = basic_of("right").await;
    let mut config = files.config(vec![files.by_helper(&server)]);
    config.registries[0].name = server.address.to_string().parse().unwrap();
    config.credentials.docker_config = vec![files.write("all.json", r#"{"credsStore":"vault"}"#)];
    let registry = config.registries[0].name.clone();
    let upstreams = Upstreams::guarded_by(address::refused, &config).unwrap();
    assert_eq!(ask(&upstreams.of(&registry)[0], &Grant::Anonymous).await, Ok(Access::Authorized));
    let mut metrics = prometheus_client::registry::Registry::default();
    upstreams.keyring().register(&mut metrics);
    let mut text = String::new();
    encode(&mut text, &metrics).unwrap();
    let counted = format!(r#"larder_credential_runs_total{{program="{HELPER}",result="ok"}} 1"#);
    assert!(text.contains(&counted), "{text}");
    assert!(upstreams.own_grant(&registry, &repository()).await.is_some());
    assert_eq!(fs::read_to_string(files.0.path().join("runs")).unwrap(), "run\n");
}
