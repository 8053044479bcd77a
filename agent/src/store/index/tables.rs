use std::sync::Arc;

use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction};

use super::batch::{Batch, RowChange};
use super::{Entry, Totals};
use crate::image::{Digest, Registry, Repository, Tag};
use crate::store::aside::step_aside;
use crate::store::record::{BlobRecord, Openness, TagRecord, digest_of, key, seal, unseal};
use crate::store::records::Records;

type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// `schema`: the version of what is below, as a little-endian number; `totals`: blobs, bytes of our own, shared bytes.
const META: Definition = Definition::new("meta");
/// Digest → [`BlobRecord`].
const BLOBS: Definition = Definition::new("blobs");
/// Digest → a CRC-32 for each chunk, little-endian, and one of all these. Apart from the records, so that a walk over
/// them doesn't read it.
const CHECKSUMS: Definition = Definition::new("checksums");
/// Digest → when it was last used, in milliseconds since 1970.
const USED: Definition = Definition::new("used");
/// Digest and repository → nothing.
const REPOSITORIES: Definition = Definition::new("repositories");
/// Registry, repository and tag → [`TagRecord`].
const TAGS: Definition = Definition::new("tags");

/// Registry and repository → [`Openness`].
const OPENNESS: Definition = Definition::new("openness");
/// Keyed hash → when it last held, in seconds since 1970.
const REMEMBERED: Definition = Definition::new("remembered");

/// Records of those who keep theirs here: name → sealed JSON.
const IMAGES: Definition = Definition::new("images");
const CHECKS: Definition = Definition::new("checks");
const BUDGETS: Definition = Definition::new("budgets");
const RIGHTS: Definition = Definition::new("rights");

/// A table that is younger than the index is made by the first write.
const ALL: [Definition; 12] =
    [META, BLOBS, CHECKSUMS, USED, REPOSITORIES, TAGS, OPENNESS, REMEMBERED, IMAGES, CHECKS, BUDGETS, RIGHTS];

/// Raised whenever the meaning of a table changes; an index of another version is rebuilt.
const SCHEMA: u32 = 2;
/// How many tags are remembered; the longest unconfirmed go first.
const MOST_TAGS: u64 = 65_536;
/// How many repositories' openness is remembered, and how many keyed hashes.
const MOST_RIGHTS: u64 = 65_536;
/// How many repositories are remembered for one blob.
const MOST_REPOSITORIES: usize = 256;

pub(super) type Result<T> = std::result::Result<T, redb::Error>;

/// Makes the tables of a new database, or says whether an older one has them as they are now. Writes nothing to an
/// older one: the disk may be full.
pub(super) fn prepare(database: &Database) -> Result<bool> {
    let schema = match database.begin_read()?.open_table(META) {
        Ok(meta) => meta.get(b"schema".as_slice())?.map(|version| version.value().to_vec()),
        Err(redb::TableError::TableDoesNotExist(_)) => None,
        Err(error) => return Err(error.into()),
    };
    if let Some(schema) = schema {
        return Ok(schema == SCHEMA.to_le_bytes());
    }
    let write = database.begin_write()?;
    for table in ALL {
        write.open_table(table)?;
    }
    write.open_table(META)?.insert(b"schema".as_slice(), SCHEMA.to_le_bytes().as_slice())?;
    finish(write)?;
    Ok(true)
}

/// Commits so that the database opens at once after a crash: without it, opening walks the whole file.
fn finish(mut write: WriteTransaction) -> Result<()> {
    write.set_quick_repair(true);
    Ok(write.commit()?)
}

pub(super) fn apply(database: &Database, batch: &Batch, totals: Totals) -> Result<()> {
    let write = database.begin_write()?;
    {
        let (mut blobs, mut checksums) = (write.open_table(BLOBS)?, write.open_table(CHECKSUMS)?);
        let (mut used, mut repositories) = (write.open_table(USED)?, write.open_table(REPOSITORIES)?);
        // In the order of the tables, in which neighbours share a page: redb's cache holds few of them.
        let mut blob_changes: Vec<_> = batch.blobs.iter().collect();
        blob_changes.sort_unstable_by_key(|(digest, _)| **digest);
        for (digest, change) in blob_changes {
            let key = key(digest);
            match change {
                RowChange::Put(record, sums) => {
                    if let Some(sealed) = seal(record) {
                        blobs.insert(key.as_slice(), sealed.as_slice())?;
                    }
                    if let Some(sums) = sums {
                        checksums.insert(key.as_slice(), pack(sums).as_slice())?;
                    }
                }
                RowChange::Drop => {
                    blobs.remove(key.as_slice())?;
                    checksums.remove(key.as_slice())?;
                    used.remove(key.as_slice())?;
                    let (from, to) = under(&key);
                    repositories.retain_in(from.as_slice()..to.as_slice(), |_, _| false)?;
                }
            }
        }
        let mut uses: Vec<_> = batch.used.iter().collect();
        uses.sort_unstable();
        for (digest, time) in uses {
            let key = key(digest);
            // A use can outlive its blob in the queue.
            if blobs.get(key.as_slice())?.is_some() {
                used.insert(key.as_slice(), time.to_le_bytes().as_slice())?;
            }
        }
        for (digest, of) in &batch.repositories {
            let digest = key(digest);
            let (from, to) = under(&digest);
            let known = repositories.range(from.as_slice()..to.as_slice())?.count();
            for (registry, repository) in of.iter().take(MOST_REPOSITORIES.saturating_sub(known)) {
                let key = repository_key(&digest, registry, repository);
                repositories.insert(key.as_slice(), [].as_slice())?;
            }
        }
        let mut tags = write.open_table(TAGS)?;
        for (key, record) in &batch.tags {
            if let Some(sealed) = seal(record) {
                tags.insert(key.as_slice(), sealed.as_slice())?;
            }
        }
        if tags.len()? > MOST_TAGS {
            forget_oldest(&mut tags, |sealed| unseal::<TagRecord>(sealed).map_or(0, |tag| tag.confirmed_at))?;
        }
        let (mut openness, mut remembered) = (write.open_table(OPENNESS)?, write.open_table(REMEMBERED)?);
        for (key, found) in &batch.openness {
            if let Some(sealed) = seal(found) {
                openness.insert(key.as_slice(), sealed.as_slice())?;
            }
        }
        if openness.len()? > MOST_RIGHTS {
            forget_oldest(&mut openness, |sealed| unseal::<Openness>(sealed).map_or(0, |found| found.found_at))?;
        }
        if batch.forget_before > 0 {
            remembered.retain(|_, at| time(at) >= batch.forget_before)?;
        }
        for (hash, at) in &batch.remembered {
            match at {
                Some(at) => drop(remembered.insert(hash.as_slice(), at.to_le_bytes().as_slice())?),
                None => drop(remembered.remove(hash.as_slice())?),
            }
        }
        if remembered.len()? > MOST_RIGHTS {
            forget_oldest(&mut remembered, time)?;
        }
        for ((of, name), value) in &batch.records {
            let mut table = write.open_table(table_of(*of))?;
            match value {
                Some(value) => drop(table.insert(name.as_bytes(), &**value)?),
                None => drop(table.remove(name.as_bytes())?),
            }
        }
        let mut meta = write.open_table(META)?;
        let totals = [totals.blobs, totals.bytes, totals.shared_bytes].map(u64::to_le_bytes).concat();
        meta.insert(b"totals".as_slice(), totals.as_slice())?;
    }
    finish(write)
}

/// Drops a sixteenth, so that it is not done again at once. For a table that is not small.
fn forget_oldest(table: &mut redb::Table<'_, &'static [u8], &'static [u8]>, age: fn(&[u8]) -> u64) -> Result<()> {
    let mut times = Vec::new();
    for row in table.iter()? {
        times.push(age(row?.1.value()));
    }
    let sixteenth = times.len() / 16;
    let (_, &mut limit, _) = times.select_nth_unstable(sixteenth);
    table.retain(|_, value| age(value) > limit)?;
    Ok(())
}

/// A time as it lies in a table; 0 for what is none.
fn time(value: &[u8]) -> u64 {
    value.try_into().map_or(0, u64::from_le_bytes)
}

/// Copies everything into another database, over what it has.
pub(super) fn copy(from: &Database, to: &Database) -> Result<()> {
    let (read, write) = (from.begin_read()?, to.begin_write()?);
    for definition in ALL {
        let mut target = write.open_table(definition)?;
        let source = match read.open_table(definition) {
            Err(redb::TableError::TableDoesNotExist(_)) => continue,
            opened => opened?,
        };
        for row in source.iter()? {
            let (key, value) = row?;
            target.insert(key.value(), value.value())?;
        }
    }
    finish(write)
}

pub(super) fn totals(database: &Database) -> Result<Totals> {
    let totals = get(database, META, b"totals")?;
    let number = |at: usize| Some(u64::from_le_bytes(totals.as_deref()?.get(at..at + 8)?.try_into().ok()?));
    Ok(Totals { blobs: number(0).unwrap_or(0), bytes: number(8).unwrap_or(0), shared_bytes: number(16).unwrap_or(0) })
}

pub(super) fn record(database: &Database, digest: &Digest) -> Result<Option<BlobRecord>> {
    Ok(get(database, BLOBS, &key(digest))?.as_deref().and_then(unseal))
}

pub(super) fn has_blob(database: &Database, digest: &Digest) -> Result<bool> {
    Ok(get(database, BLOBS, &key(digest))?.is_some())
}

pub(super) fn checksums(database: &Database, digest: &Digest) -> Result<Option<Arc<[u32]>>> {
    Ok(get(database, CHECKSUMS, &key(digest))?.as_deref().and_then(unpack))
}

pub(super) fn used(database: &Database, digest: &Digest) -> Result<Option<u64>> {
    Ok(get(database, USED, &key(digest))?.and_then(|time| Some(u64::from_le_bytes(time.try_into().ok()?))))
}

pub(super) fn tag(database: &Database, key: &[u8]) -> Result<Option<TagRecord>> {
    Ok(get(database, TAGS, key)?.as_deref().and_then(unseal))
}

pub(super) fn openness(database: &Database, key: &[u8]) -> Result<Option<Openness>> {
    Ok(get(database, OPENNESS, key)?.as_deref().and_then(unseal))
}

pub(super) fn remembered(database: &Database, hash: &[u8; 32]) -> Result<Option<u64>> {
    Ok(get(database, REMEMBERED, hash)?.as_deref().map(time))
}

pub(super) fn has_repository(
    database: &Database,
    digest: &Digest,
    registry: &Registry,
    repository: &Repository,
) -> Result<bool> {
    Ok(get(database, REPOSITORIES, &repository_key(&key(digest), registry, repository))?.is_some())
}

pub(super) fn repositories(database: &Database, digest: &Digest) -> Result<Vec<(Registry, Repository)>> {
    let key = key(digest);
    let (from, to) = under(&key);
    let table = database.begin_read()?.open_table(REPOSITORIES)?;
    let mut found = Vec::new();
    for row in table.range(from.as_slice()..to.as_slice())? {
        let (name, _) = row?;
        let text = name.value().get(key.len()..).and_then(|name| str::from_utf8(name).ok());
        let parsed = text.and_then(|text| {
            let (registry, repository) = text.split_once('\0')?;
            Some((registry.parse().ok()?, repository.parse().ok()?))
        });
        found.extend(parsed);
    }
    Ok(found)
}

/// The first `limit` blobs after `after`, in the order of their digests; fewer only at the end.
pub(super) fn scan(database: &Database, after: Option<&Digest>, limit: usize) -> Result<Vec<Entry>> {
    let after = after.map(key).unwrap_or_default();
    let beyond = (std::ops::Bound::Excluded(after.as_slice()), std::ops::Bound::Unbounded);
    let read = database.begin_read()?;
    let (blobs, used) = (read.open_table(BLOBS)?, read.open_table(USED)?);
    // Both tables are in the order of digests.
    let mut times = used.range::<&[u8]>(beyond)?;
    let mut next = times.next().transpose()?;
    let mut found = Vec::with_capacity(limit.min(4096));
    for row in blobs.range::<&[u8]>(beyond)? {
        let (key, sealed) = row?;
        while next.as_ref().is_some_and(|(of, _)| of.value() < key.value()) {
            next = times.next().transpose()?;
        }
        let used = next.as_ref().filter(|(of, _)| of.value() == key.value()).map_or(0, |(_, at)| time(at.value()));
        let (Some(digest), Some(record)) = (digest_of(key.value()), unseal(sealed.value())) else { continue };
        found.push(Entry { digest, record, used });
        if found.len().is_multiple_of(64) {
            step_aside();
        }
        if found.len() >= limit {
            break;
        }
    }
    Ok(found)
}

/// When each was last used; 0 for never.
pub(super) fn used_of(database: &Database, digests: &[Digest]) -> Result<Vec<u64>> {
    let table = database.begin_read()?.open_table(USED)?;
    let used = |digest| Ok(table.get(key(digest).as_slice())?.map_or(0, |at| time(at.value())));
    digests.iter().map(used).collect()
}

/// The record of each, where there is one.
pub(super) fn records_of(database: &Database, digests: &[Digest]) -> Result<Vec<Option<BlobRecord>>> {
    let table = database.begin_read()?.open_table(BLOBS)?;
    let record = |digest| Ok(table.get(key(digest).as_slice())?.and_then(|sealed| unseal(sealed.value())));
    digests.iter().map(record).collect()
}

/// Somebody's records of one kind, by name.
pub(super) fn records(database: &Database, of: Records) -> Result<Vec<(String, Vec<u8>)>> {
    let table = match database.begin_read()?.open_table(table_of(of)) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        opened => opened?,
    };
    let mut found = Vec::new();
    for row in table.iter()? {
        let (name, value) = row?;
        if let Ok(name) = str::from_utf8(name.value()) {
            found.push((name.to_owned(), value.value().to_vec()));
        }
    }
    Ok(found)
}

/// How many records of one kind there are, and whether one of them has this name.
pub(super) fn count_records(database: &Database, of: Records, name: &str) -> Result<(u64, bool)> {
    let table = match database.begin_read()?.open_table(table_of(of)) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok((0, false)),
        opened => opened?,
    };
    Ok((table.len()?, table.get(name.as_bytes())?.is_some()))
}

const fn table_of(records: Records) -> Definition {
    match records {
        Records::Images => IMAGES,
        Records::Checks => CHECKS,
        Records::Budgets => BUDGETS,
        Records::Rights => RIGHTS,
    }
}

pub(super) fn tags(read: &redb::ReadTransaction) -> Result<Vec<(Vec<u8>, TagRecord)>> {
    let mut tags = Vec::new();
    for row in read.open_table(TAGS)?.iter()? {
        let (key, sealed) = row?;
        tags.extend(unseal(sealed.value()).map(|tag| (key.value().to_vec(), tag)));
    }
    Ok(tags)
}

fn get(database: &Database, table: Definition, key: &[u8]) -> Result<Option<Vec<u8>>> {
    let table = match database.begin_read()?.open_table(table) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        opened => opened?,
    };
    Ok(table.get(key)?.map(|value| value.value().to_vec()))
}

/// The keys that start with a digest: from the digest alone to the digest and a byte that is in no name.
fn under(digest: &[u8]) -> (Vec<u8>, Vec<u8>) {
    (digest.to_vec(), [digest, &[0xff]].concat())
}

/// Names have no NUL, so the parts can't run together.
fn repository_key(digest: &[u8], registry: &Registry, repository: &Repository) -> Vec<u8> {
    [digest, registry.as_str().as_bytes(), &[0], repository.as_str().as_bytes()].concat()
}

pub(super) fn place_key(registry: &Registry, repository: &Repository) -> Vec<u8> {
    [registry.as_str(), repository.as_str()].join("\0").into_bytes()
}

pub(super) fn tag_key(registry: &Registry, repository: &Repository, tag: &Tag) -> Vec<u8> {
    [registry.as_str(), repository.as_str(), tag.as_str()].join("\0").into_bytes()
}

fn pack(checksums: &[u32]) -> Vec<u8> {
    let mut bytes: Vec<u8> = checksums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
    let all = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&all.to_le_bytes());
    bytes
}

fn unpack(bytes: &[u8]) -> Option<Arc<[u32]>> {
    let (body, all) = bytes.split_last_chunk::<4>()?;
    let sound = body.len().is_multiple_of(4) && crc32fast::hash(body) == u32::from_le_bytes(*all);
    sound.then(|| body.as_chunks::<4>().0.iter().map(|sum| u32::from_le_bytes(*sum)).collect())
}
