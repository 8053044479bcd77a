//! Who may pull what, as those say who keep it for all.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::node::{PATIENCE, World};
use crate::image::{Digest, Registry, Repository};
use crate::peers::{BlobOf, Right};
use crate::upstream::{Credentials, Grant};

fn place() -> (Registry, Repository) {
    ("reg.test".parse().unwrap(), "acme/app".parse().unwrap())
}

fn login(user: &str) -> Grant {
    Grant::Credentials(Arc::new(Credentials::password(user, "secret").unwrap()))
}

/// More than once: on a busy machine a call may be late.
async fn tell(world: &World, number: usize, who: &Grant, right: Right) {
    let (registry, repository) = place();
    for _ in 0..3 {
        world.nodes[number].peers.tell_right(who, &registry, &repository, right).await;
    }
}

async fn said(world: &World, number: usize, who: &Grant) -> Option<Right> {
    let (registry, repository) = place();
    world.nodes[number].peers.right(who, &registry, &repository).await.map(|kept| kept.right)
}

/// Until these nodes say so.
async fn all_say(world: &World, numbers: Range<usize>, who: &Grant, right: Right) {
    let said = async {
        for number in numbers {
            while said(world, number, who).await != Some(right) {
                sleep(Duration::from_millis(20)).await;
            }
        }
    };
    timeout(PATIENCE, said).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_was_told_all_know_until_it_is_taken_back() {
    let world = World::new(7);
    tell(&world, 0, &login("alice"), Right::Opened).await;
    all_say(&world, 0..7, &login("alice"), Right::Opened).await;
    for number in 0..7 {
        assert_eq!(said(&world, number, &login("mallory")).await, None);
        assert_eq!(said(&world, number, &Grant::Anonymous).await, None, "nothing is kept of who shows nothing");
    }
    let (registry, other) = (place().0, "acme/other".parse().unwrap());
    assert_eq!(world.nodes[1].peers.right(&login("alice"), &registry, &other).await, None);
    // By whichever node the registry was asked.
    tell(&world, 3, &login("alice"), Right::Refused).await;
    all_say(&world, 0..7, &login("alice"), Right::Refused).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_survives_most_of_those_that_keep_it() {
    let world = World::new(7);
    tell(&world, 0, &login("alice"), Right::Opened).await;
    all_say(&world, 0..7, &login("alice"), Right::Opened).await;
    // Whichever two: one of three is left.
    world.nodes[1].kill();
    world.nodes[2].kill();
    world.are_up(&[0, 3, 4, 5, 6]);
    all_say(&world, 0..1, &login("alice"), Right::Opened).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_those_that_never_opened_it_nothing_is_kept() {
    let world = World::new(3);
    tell(&world, 0, &login("mallory"), Right::Refused).await;
    for number in 0..3 {
        assert_eq!(said(&world, number, &login("mallory")).await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_is_remembered_nothing_is_told_or_kept() {
    let world = World::remembering(3, Duration::ZERO);
    tell(&world, 0, &login("alice"), Right::Opened).await;
    for number in 0..3 {
        assert_eq!(said(&world, number, &login("alice")).await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_a_blob_says_whether_it_is_of_a_repository() {
    let world = World::new(2);
    let (registry, repository) = place();
    let of = |digest| BlobOf { registry: registry.clone(), repository: repository.clone(), digest };
    let (here, gone) = (Digest::of(b"here"), Digest::of(b"gone"));
    world.nodes[1].shelf.begin(here, 4);
    let known = async {
        while !world.nodes[0].peers.knows(world.nodes[1].node, &of(here)).await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, known).await.unwrap();
    assert!(!world.nodes[0].peers.knows(world.nodes[1].node, &of(gone)).await);
}
