//! Wrong bytes: who got them fails once, and it is found out who sent them.

use super::*;
use crate::pull::blame::Sender;

#[tokio::test]
async fn who_broke_a_digest_is_not_asked_for_it_again() {
    let blob = blob(8);
    let (first, second) = (Registry::start(&blob).await, Registry::start(&blob).await);
    first.always(Manner { wrong_byte: Some(7 * MIB + 5), ..Manner::default() });
    let node = Node::new(&blob, &[&first, &second]);
    assert_eq!(node.whole().await, Err(EndedShort), "its last chunk is wrong, and isn't given");
    node.whole().await.unwrap();
    assert_eq!(first.asked().len(), 1);
    assert!(node.is_stored().await);
}

#[tokio::test]
async fn with_bytes_of_several_it_is_found_out_who_sent_the_wrong_ones() {
    let blob = blob(8);
    let (first, second) = (Registry::start(&blob).await, Registry::start(&blob).await);
    first.always(Manner { wrong_byte: Some(7 * MIB + 3), ..Manner::default() });
    second.then(Manner { cut_at: Some(2 * MIB), ..Manner::default() });
    let node = Node::new(&blob, &[&second, &first]);
    assert_eq!(node.whole().await, Err(EndedShort));
    node.whole().await.unwrap();
    assert_eq!(second.asked().last(), Some(&(0..8 * MIB)), "one alone gave all of it");
}

/// Two from the beginning and one from far ahead, all at once: who got wrong bytes fails once, who got right ones never.
#[tokio::test]
async fn readers_at_once_fail_once_each() {
    let blob = blob(16);
    let (first, second) = (Registry::start(&blob).await, Registry::start(&blob).await);
    // Slow enough that all three are there when it breaks the digest.
    first.always(Manner { wrong_byte: Some(15 * MIB + 5), rate: Some(16 * MIB), ..Manner::default() });
    let node = Node::new(&blob, &[&first, &second]);
    let ahead = 9 * MIB..10 * MIB;
    let (one, other, part) = tokio::join!(node.whole(), node.whole(), node.part(ahead.clone()));
    assert_eq!((one, other), (Err(EndedShort), Err(EndedShort)), "the last chunk is wrong, and isn't given");
    part.expect("what it asked for was right");
    let (one, other, part) = tokio::join!(node.whole(), node.whole(), node.part(ahead));
    assert_eq!((one, other), (Ok(()), Ok(())));
    part.unwrap();
    assert!(node.is_stored().await);
}

#[tokio::test]
async fn one_that_breaks_a_digest_and_is_alone_is_verified_first() {
    let blob = blob(8);
    let only = Registry::start(&blob).await;
    only.then(Manner { wrong_byte: Some(7 * MIB + 3), ..Manner::default() });
    let node = Node::new(&blob, &[&only]);
    assert_eq!(node.whole().await, Err(EndedShort));
    only.then(Manner { wrong_byte: Some(3), ..Manner::default() });
    node.whole().await.expect("nothing wrong went out, so it was fetched once more");
}

#[tokio::test]
async fn a_reader_that_got_nothing_yet_doesn_t_notice() {
    let blob = blob(3);
    let (first, second) = (Registry::start(&blob).await, Registry::start(&blob).await);
    first.always(Manner { wrong_byte: Some(5), ..Manner::default() });
    let node = Node::new(&blob, &[&first, &second]);
    node.whole().await.unwrap();
}

#[tokio::test]
async fn past_the_disk_the_end_of_the_blob_is_proven_though_more_comes() {
    let (blob, more) = (blob(8), blob(4));
    let only = Registry::start(&[blob.clone(), more].concat().into()).await;
    let node = Node::new(&blob, &[&only]);
    node.learn_size();
    node.store.note_write_error(&std::io::ErrorKind::StorageFull.into());
    for (wrong_byte, result) in [(Some(8 * MIB - 3), Err(EndedShort)), (None, Ok(()))] {
        only.always(Manner { no_length: true, wrong_byte, ..Manner::default() });
        let found = node.fetch(0).await.unwrap();
        assert_eq!(found.size, Some(8 * MIB), "its manifest says so");
        assert_eq!(node.check(found.read(), 0..8 * MIB).await, result);
    }
    assert!(!node.is_stored().await);
}

#[tokio::test]
async fn nobody_continues_what_was_wrong() {
    let blob = blob(8);
    let only = Registry::start(&blob).await;
    only.then(Manner { wrong_byte: Some(7 * MIB + 3), ..Manner::default() });
    let node = Node::new(&blob, &[&only]);
    assert_eq!(node.whole().await, Err(EndedShort));
    assert!(matches!(node.fetch(5 * MIB).await, Err(PullError::Poisoned)));
    node.part(5 * MIB..6 * MIB).await.expect("a part continues nothing");
    assert!(matches!(node.fetch(5 * MIB).await, Err(PullError::Poisoned)));
    node.whole().await.unwrap();
    assert!(node.fetch(5 * MIB).await.is_ok(), "all of it was given, so nobody has a wrong beginning");
}

#[tokio::test]
async fn who_begins_anew_in_pieces_gets_them_all() {
    let blob = blob(8);
    let (first, second) = (Registry::start(&blob).await, Registry::start(&blob).await);
    first.always(Manner { wrong_byte: Some(7 * MIB + 3), ..Manner::default() });
    let node = Node::new(&blob, &[&first, &second]);
    assert_eq!(node.whole().await, Err(EndedShort));
    drop(node.fetch(0).await.unwrap());
    assert!(matches!(node.fetch(4 * MIB).await, Err(PullError::Poisoned)), "to read is not yet to begin in pieces");
    node.pull.begins_anew(&node.wanted.digest);
    let rest = node.fetch(4 * MIB).await.unwrap();
    assert_eq!(node.check(rest.read_from(4 * MIB), 4 * MIB..8 * MIB).await, Ok(()));
}

#[tokio::test]
async fn who_broke_a_digest_spoils_nothing_while_the_other_is_gone_for_a_moment() {
    let blob = blob(8);
    let (first, second) = (Registry::start(&blob).await, Registry::start(&blob).await);
    first.always(Manner { wrong_byte: Some(7 * MIB + 5), ..Manner::default() });
    let node = Node::new(&blob, &[&first, &second]);
    assert_eq!(node.whole().await, Err(EndedShort), "its last chunk is wrong, and isn't given");
    second.then(Manner { cut_at: Some(5 * MIB), ..Manner::default() });
    for _ in 0..2 {
        second.then(Manner { status: Some(503), ..Manner::default() });
    }
    node.whole().await.unwrap();
    assert_eq!(first.asked().len(), 1);
    assert_eq!(second.asked().last(), Some(&(5 * MIB..8 * MIB)));
}

#[tokio::test]
async fn who_broke_a_digest_is_asked_again_where_the_others_have_nothing() {
    let blob = blob(8);
    let (first, second) = (Registry::start(&blob).await, Registry::start(&blob).await);
    first.then(Manner { wrong_byte: Some(7 * MIB + 5), ..Manner::default() });
    second.always(Manner { status: Some(404), ..Manner::default() });
    let node = Node::new(&blob, &[&first, &second]);
    assert_eq!(node.whole().await, Err(EndedShort));
    node.whole().await.expect("it has come round");
    assert_eq!(first.asked().len(), 2);
}

#[tokio::test]
async fn a_suspect_is_asked_after_one_that_may_be_trusted() {
    let blob = blob(8);
    let (first, second) = (Registry::start(&blob).await, Registry::start(&blob).await);
    // All of it, as a suspect's would have to be waited for, would come too late.
    first.always(Manner { rate: Some(MIB), ..Manner::default() });
    let node = Node::with(&blob, &[&first, &second], "reply_deadline = \"2s\"");
    node.pull.0.blame.broke(&Sender::of(&node.upstream(&first)), Digest::of(b"another"));
    let begun = std::time::Instant::now();
    let found = node.fetch(0).await.expect("the second answers at once");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    node.check(found.read(), 0..8 * MIB).await.unwrap();
    assert_eq!((first.asked().len(), second.asked().len()), (0, 1));
}
