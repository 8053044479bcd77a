//! What is said of blobs that come and go.

use super::fixture::*;
use crate::image::{Access, Registry};
use crate::store::{Event, Provenance, Reason};

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_hears_of_what_comes_widens_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut events = store.events();
    let blob = arrive(&store, &content(1, 3000)).await;
    let digest = *blob.digest();
    let kept = events.next().await.unwrap();
    assert!(matches!(&kept, Event::Kept(of, from) if *of == digest && from.is_public()), "{kept:?}");

    let elsewhere: Registry = "ghcr.io".parse().unwrap();
    store.delivered(&digest, &elsewhere, &repository(), Access::Authorized).await;
    let knows_it = |from: &Provenance| from.iter().any(|(registry, _)| *registry == elsewhere);
    // What else becomes known of it, that it is on the disk say, is told too.
    loop {
        match events.next().await.unwrap() {
            Event::Kept(of, from) if of == digest && knows_it(&from) => break,
            Event::Kept(of, _) if of == digest => {}
            other => panic!("{other:?}"),
        }
    }
    store.drop_blobs(vec![digest], Reason::MaxBytes).await;
    loop {
        match events.next().await.unwrap() {
            Event::Gone(of) if of == digest => break,
            Event::Kept(of, _) if of == digest => {}
            other => panic!("{other:?}"),
        }
    }
}
