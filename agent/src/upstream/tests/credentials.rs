//! Credentials, the caller's and the agent's own: to whom they go, and to whom never.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::server::{Act, Server, answer, ok};
use super::*;
use crate::image::Access;
use crate::upstream::{Chain, Credentials};

fn alice() -> Grant {
    Grant::Credentials(Arc::new(Credentials::password("alice", "wonder land").unwrap()))
}

pub(super) fn basic(pair: &str) -> String {
    format!("authorization: Basic {}\r\n", STANDARD.encode(pair))
}

fn host(head: &str) -> &str {
    head.lines().find_map(|line| line.strip_prefix("host: ")).unwrap()
}

pub(super) fn challenge(text: &str) -> Vec<Act> {
    answer("401 Unauthorized", &[("WWW-Authenticate", text)], r#"{"errors":[]}"#)
}

pub(super) fn bearer(head: &str) -> Vec<Act> {
    challenge(&format!(r#"Bearer realm="http://{}/token",service="test""#, host(head)))
}

/// A registry with a token server at `/token`, which says of each request for a token what `token` says.
async fn registry(token: impl Fn(&str) -> Vec<Act> + Send + Sync + 'static) -> Server {
    Server::plain(move |head| match () {
        () if head.contains(" /token") => token(head),
        () if head.contains("authorization: Bearer good\r\n") => ok("hello"),
        () => bearer(head),
    })
    .await
}

async fn ask(room: &Room, grant: &Grant) -> Result<Access, ErrorKind> {
    let answer = room.upstream.blob(grant, &repository(), &digest(), Part::from(0)).await;
    let answer = answer.map_err(|e| e.kind().clone())?;
    assert_eq!(answer.body.whole(1 << 10).await.unwrap().as_ref(), b"hello");
    Ok(answer.access)
}

#[tokio::test]
async fn by_post_as_oauth2_has_it() {
    let server = registry(|_| ok(r#"{"access_token":"good","expires_in":300}"#)).await;
    let room = Room::of(&server.url());
    assert_eq!(ask(&room, &alice()).await, Ok(Access::Authorized));
    assert_eq!(ask(&room, &alice()).await, Ok(Access::Authorized));
    let seen = server.seen();
    assert_eq!(seen.len(), 4, "one challenge, one token, two blobs");
    assert!(seen[1].starts_with("POST /token HTTP/1.1\r\n"));
    let expected = "service=test&client_id=larder&scope=repository%3Aacme%2Fapp%3Apull&grant_type=password\
                    &username=alice&password=wonder+land";
    assert!(seen[1].ends_with(expected), "{}", seen[1]);
}

#[tokio::test]
async fn by_get_where_post_is_not_known() {
    for status in ["400 No", "401 No", "404 No", "405 No"] {
        let server = registry(move |head| match () {
            () if head.starts_with("POST") => answer(status, &[], ""),
            () if head.contains(&basic("alice:wonder land")) => ok(r#"{"token":"good"}"#),
            () => ok(r#"{"token":"anonymous"}"#),
        })
        .await;
        assert_eq!(ask(&Room::of(&server.url()), &alice()).await, Ok(Access::Authorized), "{status}");
        assert_eq!(server.count("GET /token?service=test&scope=repository%3Aacme%2Fapp%3Apull "), 1, "{status}");
    }
    let broken = registry(|_| answer("503 Busy", &[], "")).await;
    let kind = ask(&Room::of(&broken.url()), &alice()).await.unwrap_err();
    assert!(matches!(kind, ErrorKind::Server(_)), "{kind:?}");
    assert_eq!(broken.count("GET /token"), 0, "what is broken is not asked in another way");
}

#[tokio::test]
async fn identity_tokens_are_exchanged() {
    let server = registry(|head| match () {
        () if head.ends_with("&grant_type=refresh_token&refresh_token=long%2Blived") => ok(r#"{"token":"good"}"#),
        () => answer("401 No", &[], ""),
    })
    .await;
    let room = Room::of(&server.url());
    let grant = |token| Grant::Credentials(Arc::new(Credentials::identity_token(token).unwrap()));
    assert_eq!(ask(&room, &grant("long+lived")).await, Ok(Access::Authorized));
    assert_eq!(ask(&room, &grant("another")).await, Err(ErrorKind::Unauthorized));
    assert_eq!(server.count("GET /token"), 0);
}

#[tokio::test]
async fn basic_is_sent_at_once_the_second_time() {
    let server = Server::plain(|head| match () {
        () if head.contains(&basic("alice:wonder land")) => ok("hello"),
        () => challenge(r#"Basic realm="x""#),
    })
    .await;
    let room = Room::of(&server.url());
    assert_eq!(ask(&room, &alice()).await, Ok(Access::Authorized));
    assert_eq!(ask(&room, &alice()).await, Ok(Access::Authorized));
    assert_eq!(server.seen().len(), 3);
    assert_eq!(ask(&room, &Grant::Anonymous).await, Err(ErrorKind::Unauthorized));
    let mallory = Grant::Credentials(Arc::new(Credentials::password("mallory", "x").unwrap()));
    assert_eq!(ask(&room, &mallory).await, Err(ErrorKind::Unauthorized));
    assert_eq!(server.count(&basic("mallory:x")), 1, "accounts are locked for wrong passwords");
}

#[tokio::test]
async fn credentials_are_never_answered_by_an_anonymous_token() {
    let server = registry(|head| match () {
        () if head.starts_with("POST") || head.contains("authorization: Basic") => answer("401 No", &[], ""),
        () => ok(r#"{"token":"good"}"#),
    })
    .await;
    let room = Room::of(&server.url());
    assert_eq!(ask(&room, &Grant::Anonymous).await, Ok(Access::Anonymous));
    assert_eq!(ask(&room, &alice()).await, Err(ErrorKind::Unauthorized));
    let with_token = server.count("authorization: Bearer good\r\n");
    assert_eq!(with_token, 1, "the anonymous token that is at hand stays unused");
    assert_eq!(ask(&room, &Grant::None).await, Err(ErrorKind::Unauthorized));
    assert_eq!(server.count("authorization: Bearer good\r\n"), with_token, "and nothing is spent on nobody");
    assert_eq!(server.count("GET /token"), 2);
}

#[tokio::test]
async fn what_asks_for_nothing_is_told_nothing() {
    let server = Server::plain(|_| ok("hello")).await;
    assert_eq!(ask(&Room::of(&server.url()), &alice()).await, Ok(Access::Anonymous));
    assert_eq!(server.count("authorization"), 0);
}

#[tokio::test]
async fn never_along_a_redirect() {
    let elsewhere = Server::plain(|_| ok(r#"{"token":"good"}"#)).await;
    let url = format!("{}/token", elsewhere.url());
    let server = registry(move |_| answer("307 Go", &[("Location", &url)], "")).await;
    // With a guard that would let it go there.
    let room = Room::of_world(&server.url(), None, true);
    let kind = ask(&room, &alice()).await.unwrap_err();
    assert!(matches!(kind, ErrorKind::Protocol(_)), "{kind:?}");
    assert_eq!(elsewhere.connections(), 0);

    let server = Server::plain({
        let url = format!("{}/blob", elsewhere.url());
        move |head| match () {
            () if head.contains("authorization: Basic") => answer("307 Go", &[("Location", &url)], ""),
            () => challenge("Basic realm=x"),
        }
    })
    .await;
    let room = Room::of_world(&server.url(), None, true);
    let _ = room.upstream.blob(&alice(), &repository(), &digest(), Part::from(0)).await;
    assert_eq!(elsewhere.count("authorization"), 0);
}

#[tokio::test]
async fn never_to_a_realm_that_nobody_vouches_for() {
    let elsewhere = Server::plain(|_| ok(r#"{"token":"good"}"#)).await;
    let realm = format!(r#"Bearer realm="{}/token""#, elsewhere.url());
    let server = Server::plain(move |_| challenge(&realm)).await;
    let kind = ask(&Room::of(&server.url()), &alice()).await.unwrap_err();
    assert!(matches!(kind, ErrorKind::Forbidden(_)), "{kind:?}");
    assert_eq!(elsewhere.connections(), 0, "plain HTTP, at an address that the configuration doesn't name");
}

#[tokio::test]
async fn a_token_that_ended_or_is_refused_is_replaced_with_the_same_credentials() {
    let number = Arc::new(AtomicUsize::new(0));
    let tokens = Arc::clone(&number);
    let server = Server::plain(move |head| {
        if head.starts_with("POST /token") {
            let token = tokens.fetch_add(1, Ordering::SeqCst) + 1;
            return ok(&format!(r#"{{"token":"{token}","expires_in":300}}"#));
        }
        let current = tokens.load(Ordering::SeqCst);
        let refused_once = current == 1 && head.contains("range: bytes=3-");
        let good = head.contains(&format!("authorization: Bearer {current}\r\n"));
        if good && !refused_once { ok("hello") } else { bearer(head) }
    })
    .await;
    let room = Room::of(&server.url());
    assert_eq!(ask(&room, &alice()).await, Ok(Access::Authorized));
    let refused = room.upstream.blob(&alice(), &repository(), &digest(), Part::from(3)).await;
    assert_eq!(refused.unwrap().access, Access::Authorized);
    assert_eq!(number.load(Ordering::SeqCst), 2);
    assert_eq!(server.count("password=wonder+land"), 2);
}

/// A registry, and a mirror before it, that open to a password each; and the agent's file, in which both may stand.
struct Pair {
    upstreams: Upstreams,
    registry: Registry,
    origin: Server,
    mirror: Server,
    dir: tempfile::TempDir,
}

impl Pair {
    async fn new(of_mirror: Option<&str>) -> Self {
        let wants = |password: &str| {
            let opens = basic(&format!("me:{password}"));
            Server::plain(move |head| if head.contains(&opens) { ok("hello") } else { challenge("Basic realm=x") })
        };
        let (origin, mirror) = (wants("origins").await, wants("mirrors").await);
        let dir = tempfile::tempdir().unwrap();
        let registry: Registry = origin.address.to_string().parse().unwrap();
        let insecure = |server: &Server| UpstreamConfig { insecure: true, ..at(&server.url()) };
        let mut first = insecure(&mirror);
        if let Some(text) = of_mirror {
            let file = dir.path().join("mirror.json");
            std::fs::write(&file, text.replace("MIRROR", &mirror.address.to_string())).unwrap();
            first.credentials = Some(file);
        }
        let mut config = config(vec![first, insecure(&origin)]);
        config.registries[0].name = registry.clone();
        config.credentials.docker_config = vec![dir.path().join("config.json")];
        let upstreams = Upstreams::guarded_by(address::refused, &config).unwrap();
        Self { upstreams, registry, origin, mirror, dir }
    }

    /// Writes the agent's file: passwords by host.
    fn write(&self, auths: &[(SocketAddr, &str)]) {
        let auth =
            |(host, password): &(SocketAddr, &str)| format!(r#""{host}":{{"username":"me","password":"{password}"}}"#);
        let auths: Vec<String> = auths.iter().map(auth).collect();
        std::fs::write(self.dir.path().join("config.json"), format!(r#"{{"auths":{{{}}}}}"#, auths.join(","))).unwrap();
    }

    fn chain(&self) -> Chain {
        self.upstreams.of(&self.registry)
    }

    async fn own(&self) -> Option<Grant> {
        self.upstreams.own_grant(&self.registry, &repository()).await
    }

    /// What mirror and registry say.
    async fn ask(&self, grant: &Grant) -> [Result<Access, ErrorKind>; 2] {
        let chain = self.chain();
        let ask = async |upstream: &Upstream| {
            let answer = upstream.blob(grant, &repository(), &digest(), Part::WHOLE).await;
            answer.map(|answer| answer.access).map_err(|e| e.kind().clone())
        };
        [ask(&chain[0]).await, ask(&chain[1]).await]
    }

    /// Whether a password has come to where it doesn't belong.
    fn is_told_elsewhere(&self) -> bool {
        self.mirror.count(&basic("me:origins")) > 0 || self.origin.count(&basic("me:mirrors")) > 0
    }
}

#[tokio::test]
async fn the_agents_own_go_to_the_host_that_they_are_meant_for() {
    let pair = Pair::new(None).await;
    assert_eq!(pair.own().await, None);
    pair.write(&[(pair.mirror.address, "mirrors"), (pair.origin.address, "origins")]);
    until_some(async || pair.own().await).await;
    let own = pair.own().await.unwrap();
    assert_eq!(pair.ask(&own).await, [Ok(Access::Authorized), Ok(Access::Authorized)]);
    for upstream in pair.chain().iter() {
        assert!(upstream.is_shown_credentials(&own) && !upstream.is_shown_credentials(&Grant::Anonymous));
        let one = pair.upstreams.own_grant_at(std::slice::from_ref(upstream), &repository()).await.unwrap();
        let opened = pair.ask(&one).await.map(|said| said.is_ok());
        assert_eq!(opened, [!upstream.is_origin(), upstream.is_origin()], "for one host alone");
    }
    assert!(!pair.is_told_elsewhere());
}

#[tokio::test]
async fn a_mirror_is_never_told_its_registrys_password() {
    let pair = Pair::new(None).await;
    pair.write(&[(pair.origin.address, "origins")]);
    let own = until_some(async || pair.own().await).await;
    assert_eq!(pair.ask(&own).await, [Err(ErrorKind::Unauthorized), Ok(Access::Authorized)]);
    assert!(!pair.chain()[0].is_shown_credentials(&own));
    assert_eq!(pair.mirror.count("authorization"), 0);
}

#[tokio::test]
async fn what_the_configuration_has_for_an_upstream_goes_before_what_its_host_is_known_by() {
    let pair = Pair::new(Some(r#"{"auths":{"MIRROR":{"username":"me","password":"mirrors"}}}"#)).await;
    pair.write(&[(pair.mirror.address, "old"), (pair.origin.address, "origins")]);
    let own = until_some(async || pair.own().await).await;
    assert_eq!(pair.ask(&own).await, [Ok(Access::Authorized), Ok(Access::Authorized)]);
    assert_eq!(pair.mirror.count(&basic("me:old")), 0);
    // A caller's own, which it brought for whomever it is asked of, takes the place of neither.
    assert_eq!(pair.ask(&alice()).await, [Err(ErrorKind::Unauthorized), Err(ErrorKind::Unauthorized)]);
    assert!(!pair.is_told_elsewhere());
}

/// Waits until there is something.
async fn until_some<T>(mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(found) = found().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("it never was")
}
