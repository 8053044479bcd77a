//! Records that others keep here.

use serde::{Deserialize, Serialize};

use super::fixture::*;
use crate::store::Records;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Note {
    text: String,
    at: Option<u64>,
}

fn note(text: &str) -> Note {
    Note { text: text.to_owned(), at: Some(7) }
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_at_once_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert!(store.record(Records::Images, "b", Some(&note("second"))).await);
    assert!(store.record(Records::Images, "a", Some(&note("first"))).await);
    assert!(store.record(Records::Checks, "a", Some(&note("of another kind"))).await);
    let named = |name: &str, text: &str| (name.to_owned(), note(text));
    assert_eq!(store.records::<Note>(Records::Images).await, [named("a", "first"), named("b", "second")]);
    assert!(store.settled().await);
    assert!(store.record(Records::Images, "b", None::<&Note>).await);
    assert!(store.record(Records::Images, "a", Some(&note("again"))).await);
    assert_eq!(store.records::<Note>(Records::Images).await, [named("a", "again")], "before it is written");
    store.close().await;

    let store = open(dir.path());
    assert_eq!(store.records::<Note>(Records::Images).await, [named("a", "again")]);
    assert_eq!(store.records::<Note>(Records::Checks).await.len(), 1);
    assert_eq!(store.records::<u64>(Records::Images).await, [], "what is of another shape is passed over");
    assert!(store.records::<Note>(Records::Budgets).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn bounded_in_number_and_size() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert!(!store.record(Records::Images, "large", Some(&"x".repeat(70_000))).await);
    for n in 0..16_384 {
        assert!(store.record(Records::Images, &n.to_string(), Some(&n)).await, "{n}");
        if n % 4000 == 0 {
            assert!(store.settled().await);
        }
    }
    assert!(store.settled().await);
    assert!(!store.record(Records::Images, "one more", Some(&1)).await);
    assert!(store.record(Records::Images, "7", Some(&8)).await, "what is known can change");
    assert!(store.record(Records::Images, "7", None::<&u64>).await);
    assert!(store.record(Records::Checks, "of another kind", Some(&1)).await);
    assert!(store.settled().await);
    assert!(store.record(Records::Images, "one more", Some(&1)).await);
    assert_eq!(store.records::<u64>(Records::Images).await.len(), 16_384);
}
