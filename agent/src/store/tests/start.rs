//! How long a start takes with 100,000 blobs, and what a look at all of them costs those who pull: measured by
//! `cargo test --release -p larder store::tests::start -- --ignored --nocapture --test-threads=1`.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use super::fixture::*;
use crate::image::Digest;
use crate::store::{Reason, Store};

const BLOBS: u64 = 100_000;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, which takes a minute"]
async fn a_hundred_thousand_blobs() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path());
    for what in ["nothing in the index", "everything in the index", "after a death", "closed in order"] {
        let began = Instant::now();
        let store = open(dir.path());
        let opened = began.elapsed();
        let blob = store.blob(&Digest::of(&4711_u64.to_le_bytes())).await.unwrap();
        read(&blob).await;
        let served = began.elapsed();
        let mut most = Duration::ZERO;
        let mut n = 0;
        while !is_mended(dir.path()) {
            n = (n + 7919) % BLOBS;
            let asked = Instant::now();
            assert!(store.blob(&Digest::of(&n.to_le_bytes())).await.is_some());
            most = most.max(asked.elapsed());
        }
        let mended = began.elapsed();
        let rss = fs::read_to_string("/proc/self/status").unwrap();
        let rss = rss.lines().find(|line| line.starts_with("VmRSS")).unwrap().to_owned();
        println!("{what}: open {opened:?}, first blob {served:?}, mended {mended:?}, slowest blob {most:?}, {rss}");
        assert_eq!(store.usage().await.unwrap().blobs, BLOBS);
        let began = Instant::now();
        let coldest = store.coldest(256, Duration::ZERO).await;
        println!("  the {} coldest in {:?}", coldest.len(), began.elapsed());
        drop(blob);
        store.close().await;
        if what == "everything in the index" {
            // As if it had died.
            fs::write(dir.path().join("index.trial"), b"p").unwrap();
        }
    }
}

fn fill(dir: &Path) {
    drop(open(dir));
    let blobs = dir.join("blobs/sha256");
    for n in 0..BLOBS {
        let bytes = n.to_le_bytes();
        fs::write(blobs.join(Digest::of(&bytes).hex()), bytes).unwrap();
    }
}

/// What the process used of the processor so far.
fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    Duration::from_micros((usage.user_time() + usage.system_time()).num_microseconds() as u64)
}

/// What one who collects asks of the store: a look at everything, and a tenth of it dropped.
async fn collect(store: &Store) {
    let (mut after, mut all, began) = (None, Vec::new(), (Instant::now(), cpu()));
    loop {
        let batch = store.list(after.as_ref(), 1024).await;
        let Some(last) = batch.last() else { break };
        after = Some(last.digest);
        all.extend(batch.iter().map(|listed| listed.digest));
    }
    println!("  listed {} in {:?}, {:?} of CPU", all.len(), began.0.elapsed(), cpu() - began.1);
    let began = (Instant::now(), cpu());
    for some in all.chunks(1024) {
        assert_eq!(store.last_used(some.to_vec()).await.len(), some.len());
        assert!(store.holdings(some.to_vec()).await.iter().all(Option::is_some));
    }
    println!("  asked of each in {:?}, {:?} of CPU", began.0.elapsed(), cpu() - began.1);
    let began = (Instant::now(), cpu());
    let goes: Vec<Digest> = all.into_iter().step_by(10).collect();
    let (_, went) = store.drop_blobs(goes, Reason::Unused).await;
    println!("  dropped {went} in {:?}, {:?} of CPU", began.0.elapsed(), cpu() - began.1);
}

/// Looks for blobs, one after the other with a pause, until `done`; the time that 99 of 100 take at most.
async fn serve(store: &Store, mut done: impl FnMut(usize) -> bool) -> Duration {
    let (mut times, mut n) = (Vec::new(), 0);
    while !done(times.len()) {
        n = (n + 7919) % BLOBS;
        let asked = Instant::now();
        store.blob(&Digest::of(&n.to_le_bytes())).await;
        times.push(asked.elapsed());
        tokio::time::sleep(Duration::from_micros(300)).await;
    }
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, which takes a minute"]
async fn a_collection_beside_serving() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path());
    let store = open(dir.path());
    until("everything is known", || is_mended(dir.path())).await;
    let proving = Instant::now();
    for n in 0..BLOBS {
        store.blob(&Digest::of(&n.to_le_bytes())).await.unwrap();
    }
    println!("proven in {:?}", proving.elapsed());
    assert!(store.settled().await);
    until("they are synced", || !store.shelves().index.is_backed_up()).await;
    println!("alone:");
    let began = cpu();
    collect(&store).await;
    println!("  {:?} of CPU in all", cpu() - began);
    assert!(store.settled().await);

    let quiet = serve(&store, |served| served == 5000).await;
    let collecting = tokio::spawn({
        let store = store.clone();
        async move { collect(&store).await }
    });
    println!("beside serving:");
    let beside = serve(&store, |_| collecting.is_finished()).await;
    println!("99 of 100 blobs are found within {quiet:?}, and within {beside:?} while it is collected");
    store.close().await;
}
