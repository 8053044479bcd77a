//! `kill -9` at any instant: a child process stores and adopts as fast as it can, and dies.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::fixture::*;
use crate::image::Digest;

const DIR: &str = "LARDER_TEST_KILLED_STORE";

fn theirs(dir: &Path) -> Theirs {
    Theirs::new(dir.join("containerd"))
}

/// The child: not a test by itself. Says the digest of each blob that was stored, or adopted.
#[test]
#[ignore = "run by kill_at_any_instant"]
fn child() {
    let Some(dir) = env::var_os(DIR) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (store, theirs) = (open(&Path::new(&dir).join("larder")), theirs(dir.as_ref()));
        let first = rand::random::<u64>();
        for n in 0.. {
            let bytes = content(first.wrapping_add(n), 20_000 + (n as usize % 7) * 250_000);
            let digest = Digest::of(&bytes);
            // Stored, stored and then containerd's too, containerd's alone.
            let said = match n % 4 {
                0 | 1 => {
                    arrive(&store, &bytes).await;
                    "stored"
                }
                _ => "adopted",
            };
            if n % 4 != 0 {
                theirs.commit(&bytes);
                store.adopt(&digest, theirs.found(&digest)).await.unwrap();
            }
            if n % 4 == 3 {
                theirs.remove(&digest);
                store.released(&[digest]).await;
            }
            let mut out = std::io::stdout().lock();
            writeln!(out, "{said} {digest}").unwrap();
            out.flush().unwrap();
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_at_any_instant() {
    let dir = tempfile::tempdir().unwrap();
    let mut said: Vec<(Digest, bool)> = Vec::new();
    for round in 0..7_u64 {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "store::tests::kill::child", "--ignored", "--nocapture", "--test-threads=1"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let blob_in = |line: String| {
            let stored = line.split_once("stored ").map(|(_, digest)| (digest.parse().unwrap(), true));
            stored.or_else(|| line.split_once("adopted ").map(|(_, digest)| (digest.parse().unwrap(), false)))
        };
        said.push(lines.by_ref().map_while(Result::ok).find_map(blob_in).expect("the child stores something"));
        // From right after a blob to past a write of the index.
        let after = Duration::from_millis(round * round * 45 + rand::random_range(0..40));
        let killer = tokio::task::spawn_blocking(move || {
            std::thread::sleep(after);
            child.kill().unwrap();
            child.wait().unwrap();
        });
        said.extend(lines.map_while(Result::ok).filter_map(blob_in));
        killer.await.unwrap();
        is_as_it_was_said(dir.path(), &said).await;
    }
    let adopted = said.iter().filter(|(_, stored)| !stored).count();
    println!("{} blobs were stored, {adopted} adopted", said.len() - adopted);
}

/// Opens the store that was left, and compares it with what its process said, and with what is on the disk.
async fn is_as_it_was_said(dir: &Path, said: &[(Digest, bool)]) {
    let root = dir.join("larder");
    let store = open(&root);
    for (digest, _) in said {
        let blob = store.blob(digest).await.unwrap_or_else(|| panic!("{digest} was taken in"));
        read(&blob).await;
    }
    until_mended(&store, &root).await;
    let (mut own, mut shared) = (0, 0);
    for file in fs::read_dir(root.join("blobs/sha256")).unwrap() {
        let file = file.unwrap();
        let digest = format!("sha256:{}", file.file_name().into_string().unwrap()).parse().unwrap();
        let blob = store.blob(&digest).await.expect("only whole blobs have that name");
        read(&blob).await;
        let metadata = file.metadata().unwrap();
        *(if metadata.nlink() > 1 { &mut shared } else { &mut own }) += metadata.len();
        // The label of a file that gave way went with it; the next adoption says it again.
        if said.contains(&(digest, true)) && metadata.nlink() == 1 {
            assert!(blob.provenance().is_public(), "where it came from is known");
        }
    }
    let usage = store.usage().await.unwrap();
    assert_eq!((usage.bytes, usage.shared_bytes), (own, shared));
    let left: Vec<_> = fs::read_dir(root.join("ingest")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("adopt-")), "{left:?}");
    let theirs = theirs(dir);
    for file in fs::read_dir(&theirs.dir).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(rustix::fs::listxattr(&path, &mut [0_u8; 256][..]), Ok(0), "nothing was done to {path:?}");
    }
    store.close().await;
}
