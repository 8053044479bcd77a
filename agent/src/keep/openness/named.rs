use std::collections::{HashMap, HashSet};

use crate::containerd::inventory::Inventory;
use crate::image::{Digest, Registry, Repository};
use crate::keep::Catalog;
use crate::pull::{Kind, Place};

/// Where blobs may be asked for.
#[derive(Default)]
pub(super) struct Named {
    pub(super) places: HashMap<Digest, HashSet<Place>>,
    /// By which requests; both where nobody says.
    pub(super) kinds: HashMap<Digest, Kind>,
    /// An image of each repository.
    pub(super) targets: HashMap<Place, Digest>,
}

impl Named {
    /// By what containerd says, and by the images that are known.
    pub(super) fn of(inventory: Option<&Inventory>, catalog: &Catalog) -> Self {
        let mut named = Self::default();
        for content in inventory.into_iter().flat_map(|inventory| inventory.contents.values()) {
            named.places.entry(content.digest).or_default().extend(content.sources.iter().map(source));
        }
        for image in inventory.into_iter().flat_map(|inventory| &inventory.images) {
            let sources = named.places.get(&image.target).into_iter().flatten().cloned();
            let places: Vec<Place> = sources.chain(image.names.iter().map(Place::from)).collect();
            named.targets.extend(places.into_iter().map(|place| (place, image.target)));
            named.kinds.insert(image.target, Kind::Manifest);
        }
        for known in &catalog.images {
            let place = Place::from(&known.name);
            named.targets.entry(place.clone()).or_insert(known.target);
            // What isn't here yet may be by the time that the store is asked.
            for part in &known.parts {
                let is_manifest = part.digest == known.target || part.media_type.is_manifest();
                named.kinds.insert(part.digest, if is_manifest { Kind::Manifest } else { Kind::Blob });
                named.places.entry(part.digest).or_default().insert(place.clone());
            }
        }
        named
    }
}

fn source((registry, repository): &(Registry, Repository)) -> Place {
    Place { registry: registry.clone(), repository: repository.clone() }
}
