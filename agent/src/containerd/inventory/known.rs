//! What is known of containerd, put together: whose names mean what, and who was made from it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::agenda::Tasks;
use super::listing::{Contents, Listing};
use super::{ImageUser, Inventory, RuntimeImage, Stray};
use crate::containerd::canary::Canary;
use crate::containerd::client::{Container, ImageRecord};
use crate::image::{Digest, ImageName, MediaType, Reference};

/// A namespace, and a name or an id in it.
type Key = (Arc<str>, String);
/// A namespace, and what an image's names mean there.
type Target = (Arc<str>, Digest);

#[derive(Debug)]
pub(super) struct Known {
    /// The node's own, by which some images may be named.
    mirror: SocketAddr,
    records: Vec<ImageRecord>,
    containers: Vec<Container>,
    /// `None` until containerd has told.
    running: Option<HashSet<Key>>,
    contents: Contents,
    content_root: Option<PathBuf>,
    origins: HashMap<Key, Origin>,
}

/// What a container was made from. Found once, it is kept for as long as the container is there: its name may be removed, or
/// mean another image tomorrow.
#[derive(Debug)]
struct Origin {
    /// Of the container: another may come under the same id.
    created: Option<SystemTime>,
    image: Option<Image>,
    /// The image's id, where the runtime interface told.
    config: Option<Digest>,
    /// Whether the runtime interface has been asked.
    is_asked: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Image {
    target: Digest,
    media_type: MediaType,
    /// The last that it had.
    names: Vec<ImageName>,
}

impl Known {
    /// Nothing is known yet.
    pub(super) fn new(mirror: SocketAddr) -> Self {
        Self {
            mirror,
            records: Vec::new(),
            containers: Vec::new(),
            running: None,
            contents: Contents::default(),
            content_root: None,
            origins: HashMap::new(),
        }
    }

    pub(super) fn contents(&self) -> &Contents {
        &self.contents
    }

    /// How many images' names, and how many containers.
    pub(super) fn len(&self) -> (usize, usize) {
        (self.records.len(), self.containers.len())
    }

    /// Takes what containerd answered, and what its events said of tasks before it was asked.
    pub(super) fn take(&mut self, listing: Listing, tasks: Tasks) {
        if let Some(running) = &mut self.running {
            for (container, runs) in tasks {
                match runs {
                    true => running.insert(container),
                    false => running.remove(&container),
                };
            }
        }
        let Listing { images, containers, running, contents, content_root } = listing;
        if let Some(mut images) = images {
            for image in &mut images {
                image.name = image.name.take().map(|name| name.behind(self.mirror));
            }
            let before: HashSet<(&str, &str)> = self.records.iter().map(|old| (&*old.namespace, &*old.text)).collect();
            let is_new = |new: &&ImageRecord| !before.contains(&(&*new.namespace, &*new.text));
            images.iter().filter(is_new).for_each(say_if_skipped);
            self.records = images;
        }
        self.containers = containers.unwrap_or(std::mem::take(&mut self.containers));
        self.running = running.or(self.running.take());
        self.contents = contents.unwrap_or(std::mem::take(&mut self.contents));
        self.content_root = content_root.or(self.content_root.take());
        self.find_origins();
    }

    /// Whether the runtime interface may say more: containers of Pods are there of which names can't tell the image.
    pub(super) fn needs_ids(&self) -> bool {
        let lacks = |container: &Container| {
            container.is_of_pod
                && !container.is_sandbox
                && self.origins.get(&key(container)).is_some_and(|origin| origin.image.is_none() && !origin.is_asked)
        };
        self.containers.iter().any(lacks)
    }

    /// Takes what the runtime interface says: the digests of configs by container.
    pub(super) fn learn_ids(&mut self, ids: &HashMap<String, Digest>) {
        for ((_, id), origin) in &mut self.origins {
            origin.is_asked = true;
            origin.config = origin.config.or(ids.get(id).copied());
        }
        self.find_origins();
    }

    fn find_origins(&mut self) {
        let records: HashMap<(&str, &str), &ImageRecord> =
            self.records.iter().map(|record| ((&*record.namespace, &*record.text), record)).collect();
        let names = names(&self.records);
        let mut before = std::mem::take(&mut self.origins);
        for container in &self.containers {
            let key = key(container);
            let known = before.remove(&key).filter(|origin| origin.created == container.created);
            let mut origin =
                known.unwrap_or(Origin { created: container.created, image: None, config: None, is_asked: false });
            if origin.image.is_none() {
                origin.image = origin.find(container, &records, self.mirror);
            }
            if let Some(image) = &mut origin.image
                && let Some(names) = names.get(&(Arc::clone(&container.namespace), image.target))
                && !names.is_empty()
            {
                image.names.clone_from(names);
            }
            self.origins.insert(key, origin);
        }
    }

    /// All of it, in order.
    pub(super) fn inventory(&self) -> Inventory {
        let mut images = self.recorded();
        let mut strays = Vec::new();
        let names: HashMap<(&str, &str), Digest> =
            self.records.iter().map(|record| ((&*record.namespace, &*record.text), record.target)).collect();
        for container in &self.containers {
            let user = self.user(container);
            let Some(origin) = self.origins.get(&key(container)) else { continue };
            let found = origin.image.as_ref().map(|image| image.target);
            // While the runtime interface can't be asked, what the name means now is the best guess.
            let guess = || (!origin.is_asked).then(|| names.get(&(&*container.namespace, &*container.image)).copied());
            let Some(target) = found.or_else(|| guess().flatten()) else {
                let (namespace, image) = (Arc::clone(&container.namespace), name_of(container, self.mirror));
                strays.push(Stray { namespace, image, config: origin.config, user });
                continue;
            };
            let remembered = || self.remembered(&container.namespace, origin.image.as_ref(), target);
            let image = images.entry((Arc::clone(&container.namespace), target)).or_insert_with(remembered);
            image.is_pinned |= user.is_sandbox;
            image.users.push(user);
        }
        let mut images: Vec<RuntimeImage> = images.into_values().collect();
        images.iter_mut().for_each(|image| image.users.sort());
        strays.sort();
        Inventory { images, strays, contents: Arc::clone(&self.contents), content_root: self.content_root.clone() }
    }

    /// The images that have a record, without their users.
    fn recorded(&self) -> BTreeMap<Target, RuntimeImage> {
        let mut names = names(&self.records);
        let mut images: BTreeMap<Target, RuntimeImage> = BTreeMap::new();
        for record in &self.records {
            let target = (Arc::clone(&record.namespace), record.target);
            // Without names there is one that is ours: the canary's.
            let Some(names) = names.get_mut(&target) else { continue };
            let image = images.entry(target).or_insert_with(|| RuntimeImage {
                namespace: Arc::clone(&record.namespace),
                target: record.target,
                media_type: record.media_type.clone(),
                names: std::mem::take(names),
                is_pinned: false,
                users: Vec::new(),
            });
            image.is_pinned |= record.is_pinned;
        }
        images
    }

    /// An image that has no record any more.
    fn remembered(&self, namespace: &Arc<str>, image: Option<&Image>, target: Digest) -> RuntimeImage {
        let taken: HashSet<&ImageName> = self
            .records
            .iter()
            .filter(|record| record.namespace == *namespace)
            .filter_map(|r| r.name.as_ref())
            .collect();
        let before = image.map(|image| image.names.as_slice()).unwrap_or_default();
        let mut names: Vec<ImageName> = before.iter().filter(|name| !taken.contains(name)).cloned().collect();
        // Its name means another image now; by its digest it can still be asked for.
        if names.is_empty()
            && let Some(name) = before.first()
        {
            names.push(ImageName { reference: Reference::Digest(target), ..name.clone() });
        }
        RuntimeImage {
            namespace: Arc::clone(namespace),
            target,
            media_type: image.map_or_else(MediaType::octet_stream, |image| image.media_type.clone()),
            names,
            is_pinned: false,
            users: Vec::new(),
        }
    }

    fn user(&self, container: &Container) -> ImageUser {
        // As long as containerd hasn't told, to think that it runs is the safe side.
        let is_stopped = self.running.as_ref().is_some_and(|running| !running.contains(&key(container)));
        ImageUser { is_stopped, is_sandbox: container.is_sandbox, name: container.shown.clone() }
    }
}

impl Origin {
    fn find(
        &self,
        container: &Container,
        records: &HashMap<(&str, &str), &ImageRecord>,
        mirror: SocketAddr,
    ) -> Option<Image> {
        let record = |name: &str| records.get(&(&*container.namespace, name)).copied();
        if let Some(config) = &self.config {
            return record(&config.to_string()).map(Image::of);
        }
        if let Some(found) = record(&container.image) {
            // Who was asked and doesn't know leaves us with the name.
            let is_settled = self.is_asked || found.name.as_ref().is_some_and(|name| name.digest().is_some());
            return (is_settled || is_sure(found, container)).then(|| Image::of(found));
        }
        // A name with a digest says all, with or without a record.
        let name = name_of(container, mirror)?;
        let target = *name.digest()?;
        Some(Image { target, media_type: MediaType::octet_stream(), names: vec![name] })
    }
}

impl Image {
    fn of(record: &ImageRecord) -> Self {
        let names = record.name.iter().cloned().collect();
        Self { target: record.target, media_type: record.media_type.clone(), names }
    }
}

/// What a container's image was called when it was made; `None` where that is no name.
fn name_of(container: &Container, mirror: SocketAddr) -> Option<ImageName> {
    Some(container.image.parse::<ImageName>().ok()?.behind(mirror))
}

/// Whether the record meant, when the container was made, what it means now; or nobody could tell otherwise.
fn is_sure(record: &ImageRecord, container: &Container) -> bool {
    let is_older = match (record.updated, container.created) {
        (Some(updated), Some(created)) => updated <= created,
        _ => true,
    };
    is_older || !container.is_of_pod || container.is_sandbox
}

/// The names of each target. Of the canary's image there is nothing.
fn names(records: &[ImageRecord]) -> HashMap<Target, Vec<ImageName>> {
    let mut all: HashMap<Target, Vec<ImageName>> = HashMap::new();
    for record in records {
        let names = all.entry((Arc::clone(&record.namespace), record.target)).or_default();
        names.extend(record.name.clone());
    }
    all.retain(|_, names| !names.iter().any(|name| name.registry.as_str() == Canary::REGISTRY));
    all.values_mut().for_each(|names| {
        names.sort_by(|a, b| (a.digest().is_some(), a).cmp(&(b.digest().is_some(), b)));
        names.dedup();
    });
    all
}

fn say_if_skipped(record: &ImageRecord) {
    if record.name.is_none() && record.text.parse::<Digest>().is_err() {
        tracing::debug!(
            namespace = &*record.namespace,
            name = record.text,
            target = %record.target,
            "an image has a name that no registry could have"
        );
    }
}

fn key(container: &Container) -> Key {
    (Arc::clone(&container.namespace), container.id.clone())
}

#[cfg(test)]
mod tests;
