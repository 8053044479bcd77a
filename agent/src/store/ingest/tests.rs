use proptest::prelude::*;

use super::map::RECORD;
use super::*;

fn origin(access: Access) -> Origin {
    Origin { registry: "reg.test".parse().unwrap(), access }
}

fn content(length: usize) -> Bytes {
    (0..length).map(|i| (i * 31 % 251) as u8).collect::<Vec<_>>().into()
}

fn open(dir: &Path, content: &Bytes) -> Arc<Ingest> {
    Arc::new(Ingest::open(dir, Digest::of(content), content.len() as u64, &origin(Access::Anonymous)).unwrap())
}

fn put(ingest: &Ingest, content: &Bytes, from: u64, to: u64) {
    let part = [content.slice(from as usize..to as usize)];
    let skipped = ingest.write(from, &part).unwrap();
    let mut more = ingest.hash(from, if skipped == 0 { &part } else { &[] }).unwrap();
    while more {
        more = ingest.hash(u64::MAX, &[]).unwrap();
    }
}

#[test]
fn in_order() {
    let dir = tempfile::tempdir().unwrap();
    let content = content(2 * CHUNK as usize + 17);
    let ingest = open(dir.path(), &content);
    put(&ingest, &content, 0, 100);
    assert_eq!((ingest.available(0), ingest.available(50), ingest.first_gap(0)), (100, 100, Some(100)));
    put(&ingest, &content, 100, content.len() as u64);
    assert_eq!(ingest.first_gap(0), None);
    assert_eq!(ingest.verify().unwrap().checksums.len(), 3);
}

#[test]
fn gaps() {
    let dir = tempfile::tempdir().unwrap();
    let content = content(5 * CHUNK as usize + 17);
    let size = content.len() as u64;
    let ingest = open(dir.path(), &content);
    assert_eq!(ingest.gap(0), Some(0..size));
    assert_eq!(ingest.gap(CHUNK + 5), Some(CHUNK..size), "from the beginning of the chunk");
    put(&ingest, &content, 0, 100);
    put(&ingest, &content, 2 * CHUNK, 3 * CHUNK + 7);
    assert_eq!(ingest.gap(0), Some(100..2 * CHUNK));
    assert_eq!(ingest.gap(2 * CHUNK), Some(3 * CHUNK + 7..size));
    put(&ingest, &content, 3 * CHUNK + 7, size);
    assert_eq!(ingest.gap(CHUNK), Some(CHUNK..2 * CHUNK));
    assert_eq!(ingest.gap(2 * CHUNK), None);
    assert_eq!(ingest.gap(size), None);
}

#[test]
fn the_hash_of_a_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let content = content(2 * CHUNK as usize);
    let ingest = open(dir.path(), &content);
    put(&ingest, &content, 0, CHUNK + 9);
    let of_beginning = ingest.hash_to(CHUNK + 5).unwrap().finish();
    assert_eq!(of_beginning, Digest::of(&content[..CHUNK as usize + 5]));
    assert!(ingest.hash_to(CHUNK + 10).is_err());
}

#[test]
fn the_empty_blob() {
    let dir = tempfile::tempdir().unwrap();
    let ingest = open(dir.path(), &Bytes::new());
    assert!(ingest.is_whole());
    assert!(ingest.verify().is_ok());
}

#[test]
fn wrong_bytes_are_no_proof() {
    let dir = tempfile::tempdir().unwrap();
    let right = content(1000);
    let ingest = open(dir.path(), &right);
    let wrong = [Bytes::from(vec![0; 1000])];
    ingest.write(0, &wrong).unwrap();
    ingest.hash(0, &wrong).unwrap();
    assert!(ingest.verify().is_err());
    let ingest = open(dir.path(), &right);
    assert!(ingest.verify().is_err(), "nothing arrived");
}

#[test]
fn refuses_gaps_and_what_is_too_long() {
    let dir = tempfile::tempdir().unwrap();
    let content = content(CHUNK as usize + 10);
    let ingest = open(dir.path(), &content);
    assert!(ingest.write(5, &[content.slice(5..10)]).is_err());
    assert!(ingest.write(CHUNK, &[Bytes::from(vec![0; 11])]).is_err());
    assert_eq!(ingest.present(), 0);
}

#[test]
fn what_is_there_stays_and_is_what_is_hashed() {
    let dir = tempfile::tempdir().unwrap();
    let content = content(3 * CHUNK as usize + 10);
    let ingest = open(dir.path(), &content);
    put(&ingest, &content, CHUNK, 2 * CHUNK);
    put(&ingest, &content, 0, 7);
    // A source that starts at the first byte and lies about what is there already.
    let mut lie = content.to_vec();
    lie[3] ^= 1;
    lie[CHUNK as usize + 3] ^= 1;
    let lie = Bytes::from(lie);
    let pieces = [lie.slice(..100), lie.slice(100..2_000_000), lie.slice(2_000_000..)];
    assert_eq!(ingest.write(0, &pieces).unwrap(), CHUNK + 7);
    while ingest.hash(0, &[]).unwrap() {}
    assert_eq!(ingest.verify().unwrap().checksums.len(), 4);
}

#[test]
fn resumes_where_it_stood() {
    let dir = tempfile::tempdir().unwrap();
    let content = content(4 * CHUNK as usize);
    let first = open(dir.path(), &content);
    put(&first, &content, 0, 2 * CHUNK + 5);
    put(&first, &content, 3 * CHUNK, 4 * CHUNK);
    // A byte rots meanwhile.
    first.file().write_all_at(&[0xff], CHUNK + 3).unwrap();
    drop(first);
    let second = open(dir.path(), &content);
    assert_eq!(second.available(0), 0, "nothing counts before it is checked");
    assert_eq!(second.gap(0), Some(0..4 * CHUNK), "nor does anybody leave it out");
    second.recheck().unwrap();
    assert_eq!(second.available(0), CHUNK);
    assert_eq!(second.available(3 * CHUNK), 4 * CHUNK);
    put(&second, &content, CHUNK, 3 * CHUNK);
    assert!(second.verify().is_ok());
}

#[test]
fn what_nobody_checks_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let content = content(3 * CHUNK as usize + 7);
    put(&open(dir.path(), &content), &content, CHUNK, 3 * CHUNK);
    let second = open(dir.path(), &content);
    put(&second, &content, 0, content.len() as u64);
    assert_eq!(second.verify().unwrap().checksums.len(), 4);
}

#[test]
fn what_came_under_authorization_is_continued_for_its_registry_alone() {
    let dir = tempfile::tempdir().unwrap();
    let content = content(2 * CHUNK as usize);
    let size = content.len() as u64;
    let digest = Digest::of(&content);
    let begin = |origin: &Origin| {
        let ingest = Ingest::open(dir.path(), digest, size, origin).unwrap();
        ingest.recheck().unwrap();
        ingest
    };
    put(&begin(&origin(Access::Authorized)), &content, 0, CHUNK);
    assert_eq!(begin(&origin(Access::Authorized)).available(0), CHUNK);
    let other = Origin { registry: "evil.test".parse().unwrap(), access: Access::Authorized };
    assert_eq!(begin(&other).available(0), 0);
    put(&begin(&other), &content, 0, CHUNK);
    assert_eq!(begin(&origin(Access::Anonymous)).available(0), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Chunks in any order, in pieces of any size, and a stop in between: the same blob.
    #[test]
    fn any_order_any_pieces(
        length in 1_usize..(5 << 20),
        order in proptest::collection::vec(any::<proptest::sample::Index>(), 8),
        piece in 1_usize..(2 << 20),
        stop_every in 1_usize..4,
        torn in 0_usize..RECORD,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let content = content(length);
        let mut ingest = open(dir.path(), &content);
        let mut missing: Vec<u64> = (0..(length as u64).div_ceil(CHUNK)).collect();
        for (done, pick) in order.iter().cycle().enumerate() {
            if missing.is_empty() {
                break;
            }
            if done % stop_every == 0 {
                let map = OpenOptions::new().append(true).open(ingest.map_path()).unwrap();
                (&map).write_all(&[7; RECORD][..torn]).unwrap();
                ingest = open(dir.path(), &content);
                ingest.recheck().unwrap();
                prop_assert_eq!(ingest.present().div_ceil(CHUNK) as usize, done);
            }
            let index = missing.swap_remove(pick.index(missing.len()));
            let (mut at, end) = (index * CHUNK, ((index + 1) * CHUNK).min(length as u64));
            while at < end {
                let to = (at + piece as u64).min(end);
                put(&ingest, &content, at, to);
                at = to;
            }
        }
        prop_assert_eq!(ingest.present(), length as u64);
        prop_assert!(ingest.verify().is_ok());
    }
}
