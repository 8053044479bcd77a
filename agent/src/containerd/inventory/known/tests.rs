use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::*;

const NAMESPACE: &str = "k8s.io";
const MIRROR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7439);

fn digest(n: u8) -> Digest {
    Digest::of(&[n])
}

fn at(second: u64) -> Option<SystemTime> {
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(second))
}

fn record(name: &str, target: u8, updated: u64) -> ImageRecord {
    ImageRecord {
        namespace: NAMESPACE.into(),
        text: name.to_owned(),
        name: name.parse().ok(),
        target: digest(target),
        media_type: MediaType::new("application/vnd.oci.image.index.v1+json").unwrap(),
        is_pinned: false,
        updated: at(updated),
    }
}

/// A container of a Pod.
fn container(id: &str, image: &str, created: u64) -> Container {
    Container {
        namespace: NAMESPACE.into(),
        id: id.to_owned(),
        image: image.to_owned(),
        shown: format!("shop/web/{id}"),
        is_of_pod: true,
        is_sandbox: false,
        created: at(created),
    }
}

fn take(known: &mut Known, images: &[ImageRecord], containers: &[Container]) {
    let running = Some(containers.iter().map(key).collect());
    let (images, containers) = (Some(images.to_vec()), Some(containers.to_vec()));
    known.take(Listing { images, containers, running, ..Listing::default() }, Tasks::new());
}

/// Targets with their names and users.
fn images(known: &Known) -> Vec<(Digest, Vec<String>, Vec<String>)> {
    let inventory = known.inventory();
    let texts = |names: &[ImageName]| names.iter().map(ToString::to_string).collect();
    let users = |users: &[ImageUser]| users.iter().map(|user| user.name.clone()).collect();
    let mut all: Vec<_> =
        inventory.images.iter().map(|image| (image.target, texts(&image.names), users(&image.users))).collect();
    all.sort_by_key(|(target, ..)| (1..9).find(|n| digest(*n) == *target));
    all
}

#[test]
fn names_of_one_target_are_one_image() {
    let by_digest = format!("reg.test/app@{}", digest(1));
    let mut known = Known::new(MIRROR);
    let mut pinned = record(&digest(101).to_string(), 1, 1);
    pinned.is_pinned = true;
    let odd = record("overlaybd:///x y", 1, 1);
    take(&mut known, &[record("reg.test/app:v1", 1, 1), record(&by_digest, 1, 1), pinned, odd], &[]);
    assert_eq!(images(&known), [(digest(1), vec!["reg.test/app:v1".to_owned(), by_digest], vec![])]);
    assert!(known.inventory().images[0].is_pinned);
}

/// As kube-image-keeper has written them: one image with the same under its own name, and used under either.
#[test]
fn names_by_way_of_the_mirror_are_the_images_own() {
    let mut known = Known::new(MIRROR);
    let [own, old] = ["reg.test/app:v1", "localhost:7439/reg.test/app:v1"];
    let (other, gone) = (format!("{old}5"), format!("localhost:7439/reg.test/gone@{}", digest(3)));
    take(
        &mut known,
        &[record(own, 1, 1), record(old, 1, 1), record(&other, 2, 1)],
        &[
            container("a", old, 2),
            container("b", own, 2),
            container("c", &gone, 2),
            container("d", "localhost:7439/x.y/z", 2),
        ],
    );
    let used = |users: &[&str]| users.iter().map(|user| format!("shop/web/{user}")).collect::<Vec<_>>();
    assert_eq!(
        images(&known),
        [
            (digest(1), vec![own.to_owned()], used(&["a", "b"])),
            (digest(2), vec!["reg.test/app:v15".to_owned()], vec![]),
            (digest(3), vec![format!("reg.test/gone@{}", digest(3))], used(&["c"])),
        ]
    );
    let strays = known.inventory().strays;
    assert_eq!(strays[0].image.as_ref().map(ToString::to_string).as_deref(), Some("x.y/z:latest"));
}

#[test]
fn an_image_without_names_is_there_and_used_by_its_id() {
    let mut known = Known::new(MIRROR);
    let id = digest(101).to_string();
    take(&mut known, &[record(&id, 1, 1)], &[container("a", &id, 2)]);
    assert_eq!(images(&known), [(digest(1), vec![], vec!["shop/web/a".to_owned()])]);
}

#[test]
fn the_canary_is_no_image_of_the_node() {
    let mut known = Known::new(MIRROR);
    let id = digest(101).to_string();
    take(&mut known, &[record("larder.invalid/canary:0", 1, 1), record(&id, 1, 1)], &[]);
    assert!(images(&known).is_empty());
}

#[test]
fn a_container_stays_with_the_image_that_it_was_made_from() {
    let mut known = Known::new(MIRROR);
    let a = container("a", "reg.test/app:v1", 2);
    take(&mut known, &[record("reg.test/app:v1", 1, 1)], std::slice::from_ref(&a));
    // The tag moves, and a second container is made.
    let b = container("b", "reg.test/app:v1", 4);
    take(&mut known, &[record("reg.test/app:v1", 2, 3)], &[a.clone(), b.clone()]);
    let by_digest = format!("reg.test/app@{}", digest(1));
    let (old, new) = (vec!["shop/web/a".to_owned()], vec!["shop/web/b".to_owned()]);
    let v1 = vec!["reg.test/app:v1".to_owned()];
    assert_eq!(images(&known), [(digest(1), vec![by_digest], old), (digest(2), v1.clone(), new.clone())]);
    // The tag goes too: nobody else has taken it over, so it is still the name of what it meant last.
    take(&mut known, &[], &[a, b]);
    let left = images(&known);
    assert_eq!((&left[1].1, &left[1].2), (&v1, &new));
    take(&mut known, &[], &[]);
    assert!(images(&known).is_empty());
}

#[test]
fn another_container_under_the_same_id_is_another() {
    let mut known = Known::new(MIRROR);
    take(&mut known, &[record("reg.test/app:v1", 1, 1)], &[container("a", "reg.test/app:v1", 2)]);
    take(&mut known, &[record("reg.test/app:v1", 2, 3)], &[container("a", "reg.test/app:v1", 4)]);
    assert_eq!(images(&known).len(), 1);
    assert_eq!(images(&known)[0].0, digest(2));
}

#[test]
fn where_a_tag_has_moved_since_the_id_decides() {
    let moved = record("reg.test/app:v1", 2, 9);
    let old = record(&digest(101).to_string(), 1, 1);
    let mut known = Known::new(MIRROR);
    take(&mut known, &[moved.clone(), old], &[container("a", "reg.test/app:v1", 2)]);
    assert!(known.needs_ids());
    // Until it is told, the name is the best guess.
    assert_eq!(images(&known)[1].2, ["shop/web/a"]);
    known.learn_ids(&HashMap::from([("a".to_owned(), digest(101))]));
    assert!(!known.needs_ids());
    assert_eq!(images(&known)[0].2, ["shop/web/a"]);
    assert!(images(&known)[1].2.is_empty());

    let mut known = Known::new(MIRROR);
    take(&mut known, &[moved], &[container("a", "reg.test/app:v1", 2)]);
    known.learn_ids(&HashMap::from([("a".to_owned(), digest(101))]));
    let inventory = known.inventory();
    assert!(inventory.images[0].users.is_empty());
    assert_eq!(inventory.strays[0].config, Some(digest(101)));
    assert_eq!(inventory.strays[0].image, "reg.test/app:v1".parse().ok());
    assert!(!known.needs_ids(), "asked once");
}

#[test]
fn where_nobody_knows_the_id_the_name_decides() {
    let mut known = Known::new(MIRROR);
    take(&mut known, &[record("reg.test/app:v1", 2, 9)], &[container("a", "reg.test/app:v1", 2)]);
    known.learn_ids(&HashMap::new());
    assert_eq!(images(&known)[0].2, ["shop/web/a"]);
    assert!(!known.needs_ids());
}

#[test]
fn a_name_with_a_digest_needs_no_record() {
    let mut known = Known::new(MIRROR);
    let name = format!("reg.test/app@{}", digest(1));
    take(&mut known, &[], &[container("a", &name, 2)]);
    assert_eq!(images(&known), [(digest(1), vec![name], vec!["shop/web/a".to_owned()])]);
}

#[test]
fn sandboxes_pin_and_tasks_tell_what_runs() {
    let mut known = Known::new(MIRROR);
    let sandbox = Container { is_sandbox: true, shown: "shop/web".to_owned(), ..container("s", "reg.test/pause:3", 2) };
    let containers = [sandbox, container("a", "reg.test/app:v1", 2)];
    take(&mut known, &[record("reg.test/pause:3", 1, 1), record("reg.test/app:v1", 2, 1)], &containers);
    known.take(Listing::default(), Tasks::from([(key(&containers[1]), false)]));
    let inventory = known.inventory();
    let image = |target| inventory.images.iter().find(|image| image.target == digest(target)).unwrap();
    assert!(image(1).is_pinned && !image(2).is_pinned);
    assert!(!image(1).users[0].is_stopped && image(2).users[0].is_stopped);
    known.take(Listing::default(), Tasks::from([(key(&containers[1]), true)]));
    assert!(known.inventory().images.iter().all(|image| !image.users[0].is_stopped));
}

#[test]
fn what_cannot_be_told_to_have_stopped_runs() {
    let mut known = Known::new(MIRROR);
    let (images, containers) = (Some(vec![record("a.test/a:1", 1, 1)]), Some(vec![container("a", "a.test/a:1", 2)]));
    known.take(Listing { images, containers, ..Listing::default() }, Tasks::new());
    assert!(!known.inventory().images[0].users[0].is_stopped);
}
