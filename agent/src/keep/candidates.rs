//! Which images there are to be looked at, by name.

use std::collections::BTreeMap;

use super::User;
use super::memory::Remembered;
use crate::containerd::inventory::{Inventory, RuntimeImage};
use crate::image::{Digest, ImageName, MediaType, Reference};
use crate::peers::WantedCopies;

/// An image that may be known, before its blobs are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    /// What the name means here.
    pub(super) target: Digest,
    /// That one's type.
    pub(super) media_type: MediaType,
    /// Containers were made from it, or the runtime pins it.
    pub(super) in_use: bool,
    /// containerd has it.
    pub(super) in_runtime: bool,
    /// Who uses it.
    pub(super) used_by: Vec<User>,
    /// When it was last used as far as is remembered, in milliseconds since 1970.
    pub(super) used: Option<u64>,
    /// Until when it is wanted though nothing has used it, in seconds since 1970.
    pub(super) prefetched_until: Option<u64>,
    /// Another node wants it to be here.
    pub(super) is_copy: bool,
}

/// All images: those that containerd has, with the names that people gave them; those that are remembered; and copies.
pub(super) fn candidates(
    inventory: Option<&Inventory>,
    mut remembered: BTreeMap<ImageName, Remembered>,
    copies: &[WantedCopies],
) -> BTreeMap<ImageName, Candidate> {
    let mut found: BTreeMap<ImageName, Candidate> = BTreeMap::new();
    for image in inventory.map_or(&[][..], |inventory| &inventory.images) {
        for name in names(image, inventory) {
            let known = remembered.get(&name).filter(|known| known.target == image.target);
            let candidate = Candidate {
                target: image.target,
                media_type: image.media_type.clone(),
                in_use: image.is_pinned || !image.users.is_empty() || is_run_by_stray(&name, inventory),
                in_runtime: true,
                used_by: image.users.iter().map(User::from).collect(),
                used: known.map(|known| known.used),
                prefetched_until: known.and_then(|known| known.prefetched_until),
                is_copy: false,
            };
            // In two namespaces, a name may mean two images: what is in use counts.
            match found.get_mut(&name) {
                Some(before) if before.target == candidate.target => {
                    before.in_use |= candidate.in_use;
                    before.used_by.extend(candidate.used_by);
                }
                Some(before) if before.in_use || !candidate.in_use => {}
                _ => {
                    found.insert(name, candidate);
                }
            }
        }
    }
    remembered.retain(|name, _| !found.contains_key(name));
    for (name, known) in remembered {
        let in_use = inventory.is_none() && known.in_use || is_run_by_stray(&name, inventory);
        let candidate = Candidate {
            target: known.target,
            media_type: known.media_type,
            in_use,
            in_runtime: false,
            used_by: Vec::new(),
            used: Some(known.used),
            prefetched_until: known.prefetched_until,
            is_copy: false,
        };
        found.insert(name, candidate);
    }
    for WantedCopies { image: name, target, media_type, .. } in copies {
        let candidate = found.entry(name.clone()).or_insert_with(|| Candidate {
            target: *target,
            media_type: media_type.clone(),
            in_use: false,
            in_runtime: false,
            used_by: Vec::new(),
            used: None,
            prefetched_until: None,
            is_copy: true,
        });
        if !candidate.in_runtime && !candidate.in_use {
            candidate.is_copy = true;
            candidate.target = *target;
        }
    }
    found
}

/// The names under which an image is shown: those with a tag; else those with a digest; else what can be made of where
/// containerd had it from. None for one that nobody could pull again.
fn names(image: &RuntimeImage, inventory: Option<&Inventory>) -> Vec<ImageName> {
    let tagged: Vec<_> = image.names.iter().filter(|name| name.tag().is_some()).cloned().collect();
    if !tagged.is_empty() {
        return tagged;
    }
    if !image.names.is_empty() {
        return image.names.clone();
    }
    let content = inventory.and_then(|inventory| inventory.contents.get(&image.target));
    let sources = content.map_or(&[][..], |content| &content.sources);
    let named = sources.iter().map(|(registry, repository)| ImageName {
        registry: registry.clone(),
        repository: repository.clone(),
        reference: Reference::Digest(image.target),
    });
    named.take(1).collect()
}

fn is_run_by_stray(name: &ImageName, inventory: Option<&Inventory>) -> bool {
    inventory.is_some_and(|inventory| inventory.strays.iter().any(|stray| stray.image.as_ref() == Some(name)))
}

impl From<&crate::containerd::inventory::ImageUser> for User {
    fn from(user: &crate::containerd::inventory::ImageUser) -> Self {
        Self { is_stopped: user.is_stopped, name: user.name.clone() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::containerd::client::Content;
    use crate::containerd::inventory::ImageUser;

    fn name(text: &str) -> ImageName {
        text.parse().unwrap()
    }

    fn image(target: &str, names: &[&str], users: &[&str]) -> RuntimeImage {
        RuntimeImage {
            namespace: "k8s.io".into(),
            target: Digest::of(target.as_bytes()),
            media_type: MediaType::octet_stream(),
            names: names.iter().map(|text| name(text)).collect(),
            is_pinned: false,
            users: users
                .iter()
                .map(|user| ImageUser { is_stopped: false, is_sandbox: false, name: (*user).to_owned() })
                .collect(),
        }
    }

    fn remembered(target: &str) -> Remembered {
        let (target, media_type) = (Digest::of(target.as_bytes()), MediaType::octet_stream());
        Remembered { target, media_type, used: 7, prefetched_until: None, in_use: true }
    }

    #[test]
    fn names_that_people_gave_count() {
        let digest = format!("r.test/app@{}", Digest::of(b"one"));
        let images = vec![
            image("one", &["r.test/app:v1", "r.test/app:latest", &digest], &["pod"]),
            image("two", &[&format!("r.test/app@{}", Digest::of(b"two"))], &[]),
            image("three", &[], &[]),
        ];
        let inventory = Inventory { images, ..Inventory::default() };
        let memory = [(name("r.test/app:v1"), remembered("one")), (name("r.test/gone"), remembered("gone"))];
        let found = candidates(Some(&inventory), memory.clone().into(), &[]);
        assert_eq!(found.len(), 4, "{:?}", found.keys());
        let of = |text: &str| &found[&name(text)];
        assert!(of("r.test/app:v1").in_use && of("r.test/app:latest").in_use);
        assert_eq!((of("r.test/app:v1").used, of("r.test/app:latest").used), (Some(7), None));
        assert!(!of("r.test/gone").in_use && !of("r.test/gone").in_runtime, "containerd knows better");
        assert!(candidates(None, memory.into(), &[])[&name("r.test/gone")].in_use, "nobody knows better");
    }

    #[test]
    fn what_is_pinned_is_in_use() {
        let images = vec![RuntimeImage { is_pinned: true, ..image("pause", &["r.test/pause:3"], &[]) }];
        let inventory = Inventory { images, ..Inventory::default() };
        assert!(candidates(Some(&inventory), BTreeMap::new(), &[])[&name("r.test/pause:3")].in_use);
    }

    #[test]
    fn what_has_no_name_is_called_by_where_it_came_from() {
        let target = Digest::of(b"nameless");
        let content = Content::from_repository(target, "r.test", "acme/app");
        let (images, contents) = (vec![image("nameless", &[], &["pod"])], Arc::new([(target, content)].into()));
        let inventory = Inventory { images, contents, ..Inventory::default() };
        let found = candidates(Some(&inventory), BTreeMap::new(), &[]);
        let candidate = &found[&name(&format!("r.test/acme/app@{target}"))];
        assert!(found.len() == 1 && candidate.target == target && candidate.in_use);
    }

    #[test]
    fn what_runs_counts_where_names_collide() {
        let (one, two) = (image("one", &["r.test/app"], &[]), image("two", &["r.test/app"], &["pod"]));
        for images in [vec![one.clone(), two.clone()], vec![two, one]] {
            let inventory = Inventory { images, ..Inventory::default() };
            let memory = [(name("r.test/app"), remembered("zero"))];
            let found = candidates(Some(&inventory), memory.into(), &[]);
            assert_eq!(found[&name("r.test/app")].target, Digest::of(b"two"));
            assert_eq!(found[&name("r.test/app")].used, None, "what is remembered is of another");
        }
    }

    #[test]
    fn a_copy_is_no_better_than_what_runs() {
        let inventory = Inventory { images: vec![image("one", &["r.test/app"], &["pod"])], ..Inventory::default() };
        let copies = ["r.test/app", "r.test/other"].map(|text| {
            let (image, target) = (name(text), Digest::of(b"x"));
            WantedCopies { image, target, media_type: MediaType::octet_stream(), copies: 2 }
        });
        let found = candidates(Some(&inventory), BTreeMap::new(), &copies);
        assert!(!found[&name("r.test/app")].is_copy && found[&name("r.test/other")].is_copy);
    }
}
