//! `kill -9` at any instant: a child process stores as fast as it can, and dies.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::fixture::*;
use crate::image::Digest;

const DIR: &str = "LARDER_TEST_KILLED_STORE";

/// The child: not a test by itself. Says the digest of each blob that was stored.
#[test]
#[ignore = "run by kill_at_any_instant"]
fn child() {
    let Some(dir) = env::var_os(DIR) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = open(dir.as_ref());
        let first = rand::random::<u64>();
        for n in 0.. {
            let blob = arrive(&store, &content(first.wrapping_add(n), 20_000 + (n as usize % 7) * 250_000)).await;
            let mut out = std::io::stdout().lock();
            writeln!(out, "stored {}", blob.digest()).unwrap();
            out.flush().unwrap();
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_at_any_instant() {
    let dir = tempfile::tempdir().unwrap();
    let mut stored: Vec<Digest> = Vec::new();
    for round in 0..6_u64 {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "store::tests::kill::child", "--ignored", "--nocapture", "--test-threads=1"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let digest_in = |line: String| line.split_once("stored ").map(|(_, digest)| digest.parse::<Digest>().unwrap());
        stored.push(lines.by_ref().map_while(Result::ok).find_map(digest_in).expect("the child stores something"));
        // From right after a blob to past a write of the index.
        let after = Duration::from_millis(round * round * 45 + rand::random_range(0..40));
        let killer = tokio::task::spawn_blocking(move || {
            std::thread::sleep(after);
            child.kill().unwrap();
            child.wait().unwrap();
        });
        stored.extend(lines.map_while(Result::ok).filter_map(digest_in));
        killer.await.unwrap();

        let store = open(dir.path());
        for digest in &stored {
            let blob = store.blob(digest).await.unwrap_or_else(|| panic!("{digest} was stored"));
            read(&blob).await;
            assert!(blob.provenance().is_public(), "and where it came from is known");
        }
        for file in fs::read_dir(dir.path().join("blobs/sha256")).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            let digest = format!("sha256:{name}").parse().unwrap();
            read(&store.blob(&digest).await.expect("only whole blobs have that name")).await;
        }
        store.close().await;
    }
    println!("{} blobs were stored", stored.len());
}
