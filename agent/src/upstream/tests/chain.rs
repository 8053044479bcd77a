//! Several upstreams: in which order they are asked, and what one that fails costs.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use jiff::Timestamp;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use super::server::{Act, Server, answer, ok, raw};
use super::*;
use crate::upstream::Chain;

fn rooms(urls: &[String]) -> (Upstreams, Chain) {
    let upstreams = urls.iter().map(|url| UpstreamConfig { insecure: true, ..at(url) }).collect();
    let upstreams = Upstreams::new(&config(upstreams)).unwrap();
    let chain = upstreams.of(&registry());
    (upstreams, chain)
}

/// Which upstream answered, by its place in the configuration.
async fn ask(chain: &Chain) -> Result<usize, Vec<Arc<UpstreamError>>> {
    let answered = chain.first(UpstreamError::is_answer, |upstream| async move {
        upstream.head_manifest(&Grant::Anonymous, &repository(), &reference()).await
    });
    let (upstream, _) = answered.await?;
    Ok(chain.iter().position(|other| Arc::ptr_eq(other, &upstream)).unwrap())
}

fn places(chain: &Chain) -> Vec<usize> {
    let place = |upstream: &Arc<Upstream>| chain.iter().position(|other| Arc::ptr_eq(other, upstream)).unwrap();
    chain.in_order().iter().map(place).collect()
}

/// A URL where nobody listens.
fn refusing() -> String {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    format!("http://127.0.0.1:{port}")
}

/// The value of a metric of one upstream. `None` while it has none.
fn shown(metrics: &Registry, name: &str, upstream: &Server) -> Option<i64> {
    let mut text = String::new();
    encode(&mut text, metrics).unwrap();
    let start = format!("{name}{{upstream=\"{}\"", upstream.address);
    let line = text.lines().find(|line| line.starts_with(&start))?;
    Some(line.rsplit_once(' ').unwrap().1.parse().unwrap())
}

fn metrics(room: &Upstreams) -> Registry {
    let mut metrics = Registry::default();
    room.metrics().register(&mut metrics);
    metrics
}

/// A server that does what `script` says while it is broken, and gives manifests otherwise.
async fn mended(script: impl Fn() -> Vec<Act> + Send + Sync + 'static) -> (Server, Arc<AtomicBool>) {
    let is_broken = Arc::new(AtomicBool::new(true));
    let broken = Arc::clone(&is_broken);
    let server = Server::plain(move |_| if broken.load(Ordering::SeqCst) { script() } else { ok("") }).await;
    (server, is_broken)
}

#[tokio::test]
async fn one_that_refuses_is_asked_once() {
    let well = Server::plain(|_| ok("")).await;
    let (_room, chain) = rooms(&[refusing(), well.url()]);
    assert_eq!(places(&chain), [0, 1]);
    for _ in 0..10 {
        assert_eq!(ask(&chain).await.unwrap(), 1);
        assert_eq!(places(&chain), [1, 0]);
    }
    let down = chain[0].state().down.unwrap();
    assert!(down.reason.ends_with("connection refused"), "{}", down.reason);
    assert!(!chain[0].is_available() && chain[1].is_available());
    assert_eq!(well.seen().len(), 10);
}

#[tokio::test]
async fn a_probe_finds_it_when_it_is_back() {
    let (first, is_broken) = mended(|| answer("503 Busy", &[], "")).await;
    let well = Server::plain(|_| ok("")).await;
    let (room, chain) = rooms(&[first.url(), well.url()]);
    let metrics = metrics(&room);
    let up = || shown(&metrics, "larder_upstream_up", &first);
    let down_since = || shown(&metrics, "larder_upstream_down_since_timestamp_seconds", &first);
    assert_eq!((up(), down_since()), (Some(1), Some(0)));
    let begun = Timestamp::now().as_second();
    for _ in 0..5 {
        assert_eq!(ask(&chain).await.unwrap(), 1);
    }
    assert_eq!(first.count("HEAD"), 3, "three in a row are enough");
    assert_eq!(up(), Some(0));
    assert!((begun..=Timestamp::now().as_second()).contains(&down_since().unwrap()));
    // It goes on being probed while it isn't back.
    first.wait_until(|seen| seen.iter().filter(|head| head.starts_with("GET /v2/ ")).count() == 2).await;
    assert!(!chain[0].is_available());
    is_broken.store(false, Ordering::SeqCst);
    until(|| chain[0].is_available()).await;
    assert!(chain[0].state().down.is_none());
    assert_eq!((up(), down_since()), (Some(1), Some(0)));
    let mut text = String::new();
    encode(&mut text, &metrics).unwrap();
    let changed: Vec<&str> =
        text.lines().filter(|line| line.contains("transitions_total") && !line.ends_with(" 0")).collect();
    let line =
        |labels| format!("larder_upstream_breaker_transitions_total{{upstream=\"{}\",{labels}}} 1", first.address);
    assert_eq!(changed.len(), 2, "{changed:#?}");
    for labels in ["to=\"open\",reason=\"server\"", "to=\"closed\",reason=\"probe\""] {
        assert!(changed.contains(&line(labels).as_str()), "{changed:#?}");
    }
    assert_eq!(ask(&chain).await.unwrap(), 0);
}

#[tokio::test]
async fn a_silent_one_is_raced_and_then_left_alone() {
    let (first, is_broken) = mended(|| vec![Act::Hang]).await;
    let well = Server::plain(|_| ok("")).await;
    let (_room, chain) = rooms(&[first.url(), well.url()]);
    let began = Instant::now();
    assert_eq!(ask(&chain).await.unwrap(), 1);
    assert!(began.elapsed() < Duration::from_secs(2), "not the whole header_timeout");
    for _ in 0..10 {
        assert_eq!(ask(&chain).await.unwrap(), 1);
    }
    assert_eq!(first.count("HEAD"), 1, "what followed cost nothing");
    // The probe meets silence too.
    until(|| chain[0].state().down.is_some()).await;
    is_broken.store(false, Ordering::SeqCst);
    until(|| chain[0].is_available()).await;
    assert_eq!(ask(&chain).await.unwrap(), 0);
}

#[tokio::test]
async fn one_that_is_slow_once_is_not_given_up() {
    let (first, is_broken) = {
        let is_slow = Arc::new(AtomicBool::new(false));
        let slow = Arc::clone(&is_slow);
        let server = Server::plain(move |head| {
            if slow.load(Ordering::SeqCst) && head.starts_with("HEAD") { vec![Act::Hang] } else { ok("") }
        });
        (server.await, is_slow)
    };
    let well = Server::plain(|_| ok("")).await;
    let (_room, chain) = rooms(&[first.url(), well.url()]);
    for _ in 0..5 {
        assert_eq!(ask(&chain).await.unwrap(), 0);
    }
    assert!(well.seen().is_empty(), "nobody is raced who answers as usual");
    is_broken.store(true, Ordering::SeqCst);
    assert_eq!(ask(&chain).await.unwrap(), 1);
    is_broken.store(false, Ordering::SeqCst);
    // A probe that is answered is enough: its breaker never opened.
    until(|| chain[0].is_available()).await;
    assert!(chain[0].state().down.is_none());
    assert_eq!(ask(&chain).await.unwrap(), 0);
    // Again and again is another matter, whatever probes say.
    is_broken.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        until(|| chain[0].is_available()).await;
        assert_eq!(ask(&chain).await.unwrap(), 1);
    }
    assert!(chain[0].state().down.is_some());
}

/// What is slow for one is as usual for another: no wait that is the same for all does both.
#[tokio::test]
async fn each_is_waited_for_by_its_own_history() {
    const USUAL: Duration = Duration::from_millis(300);
    let delayed = |first: Duration, then: Duration| async move {
        let asked = AtomicUsize::new(0);
        Server::plain(move |head| {
            let is_request = head.starts_with("HEAD");
            let is_late = is_request && asked.fetch_add(1, Ordering::SeqCst) >= 5;
            let time = if is_late { then } else { first };
            std::iter::once(Act::Wait(time)).chain(ok("")).collect()
        })
        .await
    };
    // The one that takes its time takes longer than the quick one does, and isn't raced all the same.
    let (slow, quick) =
        (delayed(USUAL, Duration::from_millis(800)).await, delayed(Duration::ZERO, Duration::from_millis(600)).await);
    for (first, winner) in [(slow, 0), (quick, 1)] {
        let well = Server::plain(|_| ok("")).await;
        let (_room, chain) = rooms(&[first.url(), well.url()]);
        for _ in 0..5 {
            assert_eq!(ask(&chain).await.unwrap(), 0);
        }
        assert!(well.seen().is_empty());
        assert_eq!(ask(&chain).await.unwrap(), winner);
        assert_eq!(well.count("HEAD"), winner, "asked besides the first, or not");
        assert_eq!(first.count("HEAD"), 6);
    }
}

#[tokio::test]
async fn the_only_one_gets_all_the_time_there_is() {
    let first = Server::plain(|_| vec![Act::Hang]).await;
    let (_room, chain) = rooms(&[first.url()]);
    let errors = ask(&chain).await.unwrap_err();
    assert_eq!(*errors[0].kind(), ErrorKind::Timeout(HEADER));
    assert!(chain[0].state().down.is_some());
    // The last resort is to ask it all the same.
    ask(&chain).await.unwrap_err();
    assert_eq!(first.count("HEAD"), 2);
}

#[tokio::test]
async fn what_decides_ends_the_asking() {
    let gone = Server::plain(|_| answer("404 Gone", &[], "")).await;
    let broken = Server::plain(|_| answer("500 Broken", &[], "")).await;
    let never = Server::plain(|_| ok("")).await;
    let (_room, chain) = rooms(&[broken.url(), gone.url(), never.url()]);
    let kinds: Vec<_> = ask(&chain).await.unwrap_err().iter().map(|e| e.kind().label()).collect();
    assert_eq!(kinds, ["server", "not_found"]);
    assert!(never.seen().is_empty());
    let all = chain.first(|_| false, |upstream| async move { Err::<(), _>(upstream.wrong_answer("no")) }).await;
    assert_eq!(all.unwrap_err().len(), 3);
    // In a task of its own, as transfers ask.
    let (task, grant) = (chain.clone(), Arc::new(Grant::Anonymous));
    let asked = tokio::spawn(async move {
        let (repository, digest) = (&repository(), &digest());
        let ask = |upstream: Arc<Upstream>| {
            let grant = Arc::clone(&grant);
            async move { upstream.head_blob(&grant, repository, digest).await }
        };
        task.first(UpstreamError::is_answer, ask).await.map(|(upstream, _)| upstream)
    });
    assert_eq!(asked.await.unwrap().unwrap_err().last().unwrap().upstream(), gone.address.to_string());
    let empty = Chain::default().first(|_| true, |_| async { Ok(()) }).await;
    assert!(empty.unwrap_err().is_empty());
}

#[tokio::test]
async fn too_many_requests_are_a_rest() {
    let requests = Arc::new(AtomicUsize::new(0));
    let first = Server::plain(|_| answer("429 Slow", &[("Retry-After", "7000")], "")).await;
    let (second, is_broken) = mended(|| answer("503 Busy", &[], "")).await;
    is_broken.store(false, Ordering::SeqCst);
    let (room, chain) = rooms(&[first.url(), second.url()]);
    let metrics = metrics(&room);
    let rests_until = || shown(&metrics, "larder_upstream_rests_until_timestamp_seconds", &first);
    assert_eq!(rests_until(), Some(0));
    for _ in 0..3 {
        assert_eq!(ask(&chain).await.unwrap(), 1);
        requests.fetch_add(1, Ordering::SeqCst);
    }
    assert_eq!(first.seen().len(), 1);
    let state = chain[0].state();
    let rest = state.rests_until.unwrap().duration_since(Timestamp::now());
    assert_eq!(rests_until(), Some(state.rests_until.unwrap().as_second()));
    assert!((3590..=3600).contains(&rest.as_secs()), "an hour at most: {rest}");
    assert!(state.down.is_none() && !chain[0].is_available() && !chain[0].allows_background());
    // When nobody else has it, the one at rest is asked all the same.
    is_broken.store(true, Ordering::SeqCst);
    ask(&chain).await.unwrap_err();
    assert_eq!(first.seen().len(), 2);
}

#[tokio::test]
async fn the_quota_is_read_from_answers() {
    let remaining = Arc::new(AtomicUsize::new(21));
    let left = Arc::clone(&remaining);
    let server = Server::plain(move |_| {
        let left = format!("{};w=21600", left.load(Ordering::SeqCst));
        answer("200 OK", &[("RateLimit-Limit", "100;w=21600"), ("RateLimit-Remaining", &left)], "")
    })
    .await;
    let (room, chain) = rooms(&[server.url()]);
    let metrics = metrics(&room);
    let quota = || {
        let [limit, remaining] = ["limit", "remaining"].map(|name| format!("larder_upstream_ratelimit_{name}"));
        (shown(&metrics, &limit, &server), shown(&metrics, &remaining, &server))
    };
    assert_eq!(quota(), (None, None));
    ask(&chain).await.unwrap();
    assert!(chain[0].allows_background());
    assert_eq!(quota(), (Some(100), Some(21)));
    remaining.store(20, Ordering::SeqCst);
    ask(&chain).await.unwrap();
    assert!(chain[0].is_available() && !chain[0].allows_background());
    assert_eq!(chain[0].state().quota.unwrap().remaining, 20);
    assert_eq!(quota(), (Some(100), Some(20)));
    // Who isn't asked can't say that there is more again.
    let (record, now) = (&chain[0].exchange.record, Instant::now());
    assert!(record.is_near_its_limit(now + Duration::from_secs(3500)));
    assert!(!record.is_near_its_limit(now + Duration::from_secs(3700)));
}

#[tokio::test]
async fn bodies_that_break_off_open_it_too() {
    let cut = Server::plain(|head| {
        if head.starts_with("HEAD") || head.starts_with("GET /v2/ ") {
            return ok("");
        }
        vec![raw("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"), Act::Close]
    })
    .await;
    let (_room, chain) = rooms(&[cut.url(), refusing()]);
    for expected in [true, true, false] {
        assert_eq!(ask(&chain).await.unwrap(), 0, "heads are no proof");
        let answer = chain[0].blob(&Grant::Anonymous, &repository(), &digest(), Part::WHOLE).await.unwrap();
        answer.body.whole(100).await.unwrap_err();
        assert_eq!(chain[0].is_available(), expected);
    }
}

#[tokio::test]
async fn who_asks_no_more_ends_the_probes() {
    let (room, chain) = rooms(&[refusing()]);
    ask(&chain).await.unwrap_err();
    until(|| room.running() == 1).await;
    room.close().await;
    assert_eq!(room.running(), 0);
}
