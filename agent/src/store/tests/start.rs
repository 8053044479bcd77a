//! How long a start takes with 100,000 blobs: measured by
//! `cargo test --release -p larder store::tests::start -- --ignored --nocapture --test-threads=1`.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::fixture::*;
use crate::image::Digest;

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
