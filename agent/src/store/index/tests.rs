use super::super::boot::Boot;
use super::super::disk::RealDisk;
use super::super::provenance::Provenance;
use super::super::record::{State, TagRecord};
use super::super::space::Standing;
use super::*;
use crate::image::{MediaType, Tag};

fn index(path: Option<PathBuf>) -> (Index, Option<std::thread::JoinHandle<()>>) {
    let metrics = Metrics::default();
    let space = Arc::new(Space::new("/".into(), Standing::Writable, metrics.clone()));
    let index = Index::open(Arc::new(RealDisk), path, space, metrics);
    let writer = std::thread::spawn({
        let index = index.clone();
        move || index.write_until_stopped()
    });
    (index, Some(writer))
}

fn stop((index, writer): (Index, Option<std::thread::JoinHandle<()>>)) {
    index.stop();
    writer.unwrap().join().unwrap();
}

fn record(size: u64) -> BlobRecord {
    let provenance = Provenance::default();
    BlobRecord { size, state: State::Unsynced(Boot::numbered(1)), hold: Hold::Own, media_type: None, provenance }
}

fn digest(n: u64) -> Digest {
    Digest::of(&n.to_le_bytes())
}

fn put(index: &Index, n: u64, used: u64) {
    index.update(&digest(n), |_| Change::Put(record(n), Some([n as u32].into())));
    index.set_used(&digest(n), used);
}

#[test]
fn changes_are_seen_before_while_and_after_they_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index.redb");
    let running = index(Some(path.clone()));
    let index_now = &running.0;
    put(index_now, 5, 1);
    for flushed in [false, true] {
        assert!(!flushed || index_now.flush());
        let row = index_now.row(&digest(5)).unwrap();
        assert_eq!((row.record.size, &*row.checksums), (5, &[5][..]));
    }
    // A record alone leaves the checksums that are written.
    index_now.update(&digest(5), |known| Change::Put(BlobRecord { state: State::Synced, ..known.unwrap() }, None));
    assert_eq!(index_now.row(&digest(5)).unwrap().record.state, State::Synced);
    assert_eq!(index_now.totals().0, Totals { blobs: 1, bytes: 5, shared_bytes: 0 });
    index_now.update(&digest(6), |_| Change::Drop);
    stop(running);

    let running = index(Some(path));
    assert_eq!(&*running.0.row(&digest(5)).unwrap().checksums, [5]);
    assert_eq!(running.0.totals().0, Totals { blobs: 1, bytes: 5, shared_bytes: 0 });
    running.0.update(&digest(5), |_| Change::Drop);
    assert!(running.0.record(&digest(5)).is_none());
    assert!(running.0.flush());
    assert!(running.0.row(&digest(5)).is_none());
    assert_eq!(running.0.totals().0, Totals::default());
    stop(running);
}

#[test]
fn a_scan_goes_over_everything_once() {
    let running = index(None);
    for n in 0..1000 {
        put(&running.0, n, 1);
    }
    let (mut after, mut seen) = (None, 0);
    loop {
        let batch = running.0.scan(after.as_ref(), 77);
        let Some(last) = batch.last() else { break };
        assert!(after.is_none_or(|after| batch.iter().all(|entry| entry.digest > after)));
        after = Some(last.digest);
        seen += batch.len();
    }
    assert_eq!(seen, 1000);
    stop(running);
}

#[test]
fn a_change_of_what_is_known_leaves_when_it_was_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index.redb");
    let running = index(Some(path.clone()));
    put(&running.0, 1, 9);
    stop(running);
    // Nobody writes: what is changed stays pending.
    let metrics = Metrics::default();
    let space = Arc::new(Space::new("/".into(), Standing::Writable, metrics.clone()));
    let index = Index::open(Arc::new(RealDisk), Some(path), space, metrics);
    index.update(&digest(1), |known| Change::Put(BlobRecord { state: State::Synced, ..known.unwrap() }, None));
    let entries = index.scan(None, 10);
    assert!(matches!(&entries[..], [Entry { used: 9, record, .. }] if record.state == State::Synced));
}

#[test]
fn repositories_go_with_their_blob() {
    let running = index(None);
    let index = &running.0;
    let registry: Registry = "ghcr.io".parse().unwrap();
    put(index, 1, 1);
    put(index, 2, 1);
    for n in 0..300 {
        index.add_repository(&digest(1), &registry, &format!("a/b{n}").parse().unwrap());
    }
    index.add_repository(&digest(2), &registry, &"c".parse().unwrap());
    assert_eq!(index.repositories(&digest(2)), [(registry, "c".parse().unwrap())]);
    assert!(index.flush());
    assert_eq!(index.repositories(&digest(1)).len(), 256, "bounded");
    assert_eq!(index.repositories(&digest(2)).len(), 1);
    index.update(&digest(1), |_| Change::Drop);
    assert!(index.flush());
    assert_eq!(index.repositories(&digest(1)).len(), 0);
    assert_eq!(index.repositories(&digest(2)).len(), 1);
    stop(running);
}

#[test]
fn the_tags_longest_unconfirmed_are_forgotten() {
    let running = index(None);
    let index = &running.0;
    let (registry, repository): (Registry, Repository) = ("r.test".parse().unwrap(), "a".parse().unwrap());
    let tag = |n: u64| format!("t{n}").parse::<Tag>().unwrap();
    for n in 0..70_000 {
        let record = TagRecord { digest: digest(1), media_type: MediaType::octet_stream(), size: 1, confirmed_at: n };
        index.record_tag(&registry, &repository, &tag(n), record);
        if n % 4000 == 0 {
            assert!(index.flush());
        }
    }
    assert!(index.flush());
    assert!(index.tag(&registry, &repository, &tag(0)).is_none());
    assert!(index.tag(&registry, &repository, &tag(69_999)).is_some());
    stop(running);
}

#[test]
fn an_index_of_another_version_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index.redb");
    {
        let database = redb::Database::create(&path).unwrap();
        let write = database.begin_write().unwrap();
        let meta = redb::TableDefinition::<&[u8], &[u8]>::new("meta");
        write.open_table(meta).unwrap().insert(&b"schema"[..], &99_u32.to_le_bytes()[..]).unwrap();
        write.commit().unwrap();
    }
    let running = index(Some(path.clone()));
    put(&running.0, 1, 1);
    assert!(running.0.flush());
    assert!(path.with_extension("redb.unreadable").exists());
    stop(running);
}

#[test]
fn a_batch_that_was_not_written_goes_under_what_came_since() {
    let (mut older, mut newer) = (Batch::default(), Batch::default());
    older.put(&digest(1), record(1), Some([1].into()));
    older.put(&digest(2), record(2), Some([2].into()));
    older.used.insert(digest(2), 7);
    older.put(&digest(3), record(3), None);
    newer.put(&digest(1), BlobRecord { state: State::Synced, ..record(1) }, None);
    newer.drop_blob(&digest(2));
    newer.put_under(&older);
    assert!(
        matches!(&newer.blobs[&digest(1)], RowChange::Put(record, Some(sums)) if record.state == State::Synced && **sums == [1])
    );
    assert!(matches!(&newer.blobs[&digest(2)], RowChange::Drop));
    assert!(newer.used.is_empty());
    assert!(matches!(&newer.blobs[&digest(3)], RowChange::Put(..)));
}
