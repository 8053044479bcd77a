//! Sources that end, stall, crawl and refuse on the way.

use std::time::Instant;

use super::*;

#[tokio::test]
async fn another_goes_on_in_the_middle() {
    let blob = blob(16);
    let (first, second) = (Registry::start(&blob).await, Registry::start(&blob).await);
    first.then(Manner { cut_at: Some(5 * MIB + 17), ..Manner::default() });
    let node = Node::new(&blob, &[&first, &second]);
    node.whole().await.unwrap();
    assert_eq!(first.asked().len(), 1);
    assert_eq!(second.asked_once(), 5 * MIB + 17..16 * MIB);
    assert!(node.is_stored().await);
}

#[tokio::test]
async fn one_that_refuses_at_first_is_asked_again_within_the_time() {
    let blob = blob(8);
    let only = Registry::start(&blob).await;
    only.then(Manner { cut_at: Some(3 * MIB), ..Manner::default() });
    for _ in 0..3 {
        only.then(Manner { status: Some(503), ..Manner::default() });
    }
    let node = Node::new(&blob, &[&only]);
    node.whole().await.unwrap();
    assert_eq!(only.asked().last(), Some(&(3 * MIB..8 * MIB)));
}

#[tokio::test]
async fn it_ends_short_when_nobody_goes_on() {
    let blob = blob(8);
    let only = Registry::start(&blob).await;
    only.then(Manner { cut_at: Some(3 * MIB), ..Manner::default() });
    only.always(Manner { status: Some(503), ..Manner::default() });
    let node = Node::with(&blob, &[&only], "resume_within = \"1s\"");
    let begun = Instant::now();
    assert_eq!(node.whole().await, Err(EndedShort));
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(500) && took < Duration::from_secs(3), "{took:?}");
    assert!(only.asked().len() <= 7, "{:?}", only.asked());

    // What came is not fetched again.
    only.always(Manner::default());
    node.whole().await.unwrap();
    assert_eq!(only.asked().last(), Some(&(3 * MIB..8 * MIB)));
}

#[tokio::test]
async fn a_disk_that_hangs_costs_one_wait() {
    let blob = blob(8);
    let only = Registry::start(&blob).await;
    let node = Node::new(&blob, &[&only]);
    node.store.hang();
    node.whole().await.expect("within the reply deadline");
    let begun = Instant::now();
    node.whole().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn with_nothing_received_it_fails_at_once() {
    let blob = blob(8);
    let only = Registry::start(&blob).await;
    only.always(Manner { status: Some(404), ..Manner::default() });
    let node = Node::new(&blob, &[&only]);
    assert!(matches!(node.fetch(0).await, Err(PullError::NotFound(_))));
    assert_eq!(only.asked().len(), 1);
}

#[tokio::test]
async fn with_a_head_and_no_byte_it_fails_at_once_too() {
    let blob = blob(8);
    let only = Registry::start(&blob).await;
    only.always(Manner { cut_at: Some(0), ..Manner::default() });
    let node = Node::new(&blob, &[&only]);
    assert!(matches!(node.fetch(0).await, Err(PullError::NoAnswer(_))));
    assert_eq!(only.asked().len(), 1);
}

#[tokio::test]
async fn a_source_that_falls_silent_is_left_soon_where_there_is_another() {
    let blob = blob(8);
    let (first, second) = (Registry::start(&blob).await, Registry::start(&blob).await);
    first.always(Manner { stall_at: Some(3 * MIB), ..Manner::default() });
    let node = Node::new(&blob, &[&first, &second]);
    let begun = Instant::now();
    node.whole().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!(second.asked_once(), 3 * MIB..8 * MIB);
}

#[tokio::test]
async fn so_is_one_that_falls_silent_in_a_small_blob() {
    let blob = blob(1);
    let (first, second) = (Registry::start(&blob).await, Registry::start(&blob).await);
    first.always(Manner { stall_at: Some(MIB / 2), ..Manner::default() });
    let node = Node::new(&blob, &[&first, &second]);
    let begun = Instant::now();
    node.whole().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_source_that_is_slow_to_answer_is_overtaken() {
    let blob = blob(8);
    let (first, second) = (Registry::start(&blob).await, Registry::start(&blob).await);
    first.always(Manner { wait: Duration::from_secs(60), ..Manner::default() });
    let node = Node::new(&blob, &[&first, &second]);
    let begun = Instant::now();
    node.whole().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_source_that_crawls_is_left_for_a_faster_one() {
    let blob = blob(8);
    let (first, second) = (Registry::start(&blob).await, Registry::start(&blob).await);
    first.always(Manner { rate: Some(20_000), ..Manner::default() });
    let node = Node::new(&blob, &[&first, &second]);
    let begun = Instant::now();
    node.whole().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(second.asked().len(), 1);
}

#[tokio::test]
async fn a_source_without_ranges_is_read_from_the_beginning_when_it_is_the_last() {
    let blob = blob(8);
    let (first, second) = (Registry::start(&blob).await, Registry::start(&blob).await);
    first.then(Manner { cut_at: Some(5 * MIB), ..Manner::default() });
    first.always(Manner { status: Some(500), ..Manner::default() });
    second.always(Manner { no_ranges: true, ..Manner::default() });
    let node = Node::new(&blob, &[&first, &second]);
    node.whole().await.unwrap();
    assert!(second.asked().len() <= 2, "{:?}", second.asked());
}

#[tokio::test]
async fn what_was_left_outlives_one_that_lies_about_the_length() {
    let blob = blob(8);
    let (first, second) = (Registry::start(&blob).await, Registry::start(&blob).await);
    second.then(Manner { cut_at: Some(5 * MIB), ..Manner::default() });
    second.then(Manner { status: Some(500), ..Manner::default() });
    first.always(Manner { status: Some(500), ..Manner::default() });
    let node = Node::with(&blob, &[&first, &second], "resume_within = \"0\"");
    assert_eq!(node.whole().await, Err(EndedShort));
    first.always(Manner { length: Some(7 * MIB), ..Manner::default() });
    node.whole().await.unwrap();
    assert_eq!(second.asked().last(), Some(&(5 * MIB..8 * MIB)));

    // Nobody contradicts: then it was what was left that lied.
    let node = Node::with(&blob, &[&first], "resume_within = \"0\"");
    first.then(Manner { length: Some(7 * MIB), cut_at: Some(5 * MIB), ..Manner::default() });
    first.then(Manner { status: Some(500), ..Manner::default() });
    let found = node.fetch(0).await.unwrap();
    assert_eq!(found.size, Some(7 * MIB));
    assert_eq!(node.check(found.read(), 0..7 * MIB).await, Err(EndedShort));
    first.always(Manner::default());
    node.whole().await.unwrap();
}

#[tokio::test]
async fn what_is_skipped_is_no_progress() {
    let blob = blob(8);
    let only = Registry::start(&blob).await;
    only.always(Manner { no_ranges: true, cut_at: Some(5 * MIB), ..Manner::default() });
    let node = Node::with(&blob, &[&only], "resume_within = \"1s\"");
    let ended = tokio::time::timeout(Duration::from_secs(20), node.whole()).await;
    assert_eq!(ended.expect("it is asked without end"), Err(EndedShort));
}
