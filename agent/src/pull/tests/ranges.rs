//! Several connections, and readers far ahead.

use std::time::Instant;

use super::*;

/// What a dropped connection may have taken along, in bytes: what the kernel holds on both sides.
const IN_FLIGHT: u64 = 8 * MIB;

#[tokio::test]
async fn where_connections_are_limited_there_are_several() {
    let blob = blob(64);
    let only = Registry::start(&blob).await;
    only.always(Manner { rate: Some(8 * MIB), ..Manner::default() });
    let node = Node::new(&blob, &[&only]);
    let begun = Instant::now();
    node.whole().await.unwrap();
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}, where one connection takes 8 s");
    assert!((4..=8).contains(&only.busiest()), "{}", only.busiest());
    assert!(only.sent() <= 64 * MIB + IN_FLIGHT, "{} MiB were sent", only.sent() / MIB);
}

#[tokio::test]
async fn without_limit_there_is_one() {
    let blob = blob(48);
    let only = Registry::start(&blob).await;
    let node = Node::new(&blob, &[&only]);
    node.whole().await.unwrap();
    assert_eq!(only.asked_once(), 0..48 * MIB);
}

#[tokio::test]
async fn one_of_several_that_fails_is_replaced() {
    let blob = blob(64);
    let (first, second) = (Registry::start(&blob).await, Registry::start(&blob).await);
    first.always(Manner { rate: Some(8 * MIB), cut_at: Some(30 * MIB), ..Manner::default() });
    second.always(Manner { rate: Some(8 * MIB), ..Manner::default() });
    let node = Node::new(&blob, &[&first, &second]);
    node.whole().await.unwrap();
    let sent = first.sent() + second.sent();
    assert!(sent <= 64 * MIB + IN_FLIGHT, "{} MiB were sent", sent / MIB);
}

#[tokio::test]
async fn an_upstream_that_takes_no_more_connections_is_not_left() {
    let blob = blob(32);
    let only = Registry::start(&blob).await;
    only.then(Manner { rate: Some(8 * MIB), ..Manner::default() });
    only.then(Manner { status: Some(503), ..Manner::default() });
    only.always(Manner { rate: Some(8 * MIB), ..Manner::default() });
    let node = Node::new(&blob, &[&only]);
    node.whole().await.unwrap();
    assert!(only.sent() <= 32 * MIB + IN_FLIGHT);
}

#[tokio::test]
async fn a_read_far_ahead_does_not_wait_for_what_lies_before() {
    let blob = blob(48);
    let only = Registry::start(&blob).await;
    only.always(Manner { rate: Some(4 * MIB), ..Manner::default() });
    let node = Node::new(&blob, &[&only]);
    let found = node.fetch(0).await.unwrap();
    let begun = Instant::now();
    let far = async {
        node.part(40 * MIB + 5..40 * MIB + 70_000).await.unwrap();
        node.part(48 * MIB - 1000..48 * MIB).await.unwrap();
        begun.elapsed()
    };
    let (whole, far) = tokio::join!(node.check(found.read(), 0..48 * MIB), far);
    whole.unwrap();
    assert!(far < Duration::from_secs(2), "{far:?}");
    assert!(only.sent() <= 48 * MIB + IN_FLIGHT, "{} MiB were sent", only.sent() / MIB);
}

#[tokio::test]
async fn a_transfer_begins_where_its_first_reader_is() {
    let blob = blob(24);
    let only = Registry::start(&blob).await;
    let node = Node::new(&blob, &[&only]);
    node.part(20 * MIB + 5..20 * MIB + 500).await.unwrap();
    assert_eq!(only.asked()[0].start, 20 * MIB);
    node.whole().await.unwrap();
    assert!(only.sent() <= 24 * MIB + IN_FLIGHT, "{} MiB were sent", only.sent() / MIB);
}

#[tokio::test]
async fn beyond_the_end_the_length_is_told() {
    let blob = blob(8);
    let only = Registry::start(&blob).await;
    let node = Node::new(&blob, &[&only]);
    assert_eq!(node.fetch(100 * MIB).await.unwrap().size, Some(8 * MIB));
}

#[tokio::test]
async fn of_what_is_passed_through_only_what_is_asked_for_is_fetched() {
    let blob = blob(48);
    let only = Registry::start(&blob).await;
    let node = Node::ignoring(&blob, &[&only]);
    let from = 48 * MIB - 70_000;
    let found = node.fetch(from).await.unwrap();
    node.check(found.read_from(from), from..48 * MIB).await.unwrap();
    node.part(30 * MIB + 5..30 * MIB + 500).await.unwrap();
    // The last bytes, by one who doesn't know where they are.
    let found = node.fetch(u64::MAX).await.unwrap();
    assert_eq!(found.size, Some(48 * MIB));
    node.check(found.read_from(from), from..48 * MIB).await.unwrap();
    assert_eq!(only.asked(), [from..48 * MIB, 30 * MIB + 5..30 * MIB + 500, 0..1, from..48 * MIB]);
    assert!(only.sent() < MIB, "{} bytes were sent", only.sent());
    assert_eq!(node.fetch(100 * MIB).await.unwrap().size, Some(48 * MIB), "beyond the end, the length is told");
}

#[tokio::test]
async fn what_is_passed_through_by_a_source_without_ranges_is_right_all_the_same() {
    let blob = blob(4);
    let only = Registry::start(&blob).await;
    only.always(Manner { no_ranges: true, ..Manner::default() });
    let node = Node::ignoring(&blob, &[&only]);
    for part in [3 * MIB + 5..3 * MIB + 500, 100..200, 0..4 * MIB] {
        node.part(part).await.unwrap();
    }
    let found = node.fetch(2 * MIB).await.unwrap();
    node.check(found.read_from(2 * MIB), 2 * MIB..4 * MIB).await.unwrap();
    node.whole().await.unwrap();
}

/// As containerd does with `concurrent_layer_fetch_buffer`.
#[tokio::test]
async fn many_open_ended_reads_of_which_each_reads_a_piece() {
    let blob = blob(48);
    let only = Registry::start(&blob).await;
    let node = Node::new(&blob, &[&only]);
    let piece = async |at: u64| {
        let mut reader = node.fetch(at).await.unwrap().read_from(at);
        let mut read = 0;
        while read < 4 * MIB as usize
            && let Some(bytes) = reader.next().await.unwrap()
        {
            assert!(node.blob[at as usize + read..].starts_with(&bytes));
            read += bytes.len();
        }
    };
    let lane = async |first: u64| {
        for n in (first..12).step_by(3) {
            piece(n * 4 * MIB).await;
        }
    };
    tokio::join!(lane(0), lane(1), lane(2));
    node.stored().await;
    assert!(only.sent() <= 48 * MIB + IN_FLIGHT, "{} MiB were sent", only.sent() / MIB);
}

#[tokio::test]
async fn a_source_without_ranges_serves_in_its_order() {
    let blob = blob(16);
    let only = Registry::start(&blob).await;
    only.always(Manner { no_ranges: true, ..Manner::default() });
    let node = Node::new(&blob, &[&only]);
    node.part(12 * MIB + 5..12 * MIB + 500).await.unwrap();
    node.whole().await.unwrap();
    assert!(only.asked().len() <= 2, "{:?}", only.asked());
}

#[tokio::test]
async fn a_source_that_turns_out_to_know_no_ranges_is_not_asked_twice_for_the_same() {
    let blob = blob(32);
    let only = Registry::start(&blob).await;
    only.always(Manner { no_ranges: true, rate: Some(12 * MIB), ..Manner::default() });
    let node = Node::new(&blob, &[&only]);
    node.whole().await.unwrap();
    assert!(only.sent() <= 32 * MIB + IN_FLIGHT, "{} MiB were sent", only.sent() / MIB);
}
