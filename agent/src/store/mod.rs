//! Blobs on disk, and the index of them.
//!
//! ```text
//! <dir>/blobs/<algorithm>/<hex>   whole and verified: the truth; containerd's own file where it has it too
//! <dir>/ingest/                   arriving, one pair of files a blob
//! <dir>/trash/                    out of service, about to be unlinked
//! <dir>/index.redb                what is known of each blob, and tags: a cache of the truth, rebuilt when lost
//! <dir>/private.key               the key of the hashes by which it is remembered who could pull what
//! <dir>/lock                      one process at a time
//! ```
//!
//! Three rules carry everything. A blob comes into `blobs/` by one rename, after its digest was proven. A reply never
//! waits for an fsync: a blob whose fsync is not yet known to have happened is hashed again before its first use after
//! a crash of the machine (after a crash of the process alone, the page cache has it). And every chunk is held against
//! the checksum from its commit before a byte of it goes out.
//!
//! What containerd holds is linked in, and so costs no disk twice; see [`Store::adopt`].
//!
//! A disk that is full, read-only, broken or absent turns storing off; it never fails a read of what can be read.
//!
//! Threads: `larder-index` writes the index about once a second, `larder-sync` brings blobs to the disk, `larder-mend`
//! compares index and disk after a start and looks after the folder from then on. They end with the last [`Store`].

mod adopt;
mod arrive;
mod aside;
mod audit;
mod blob;
mod boot;
mod bounds;
mod buffers;
mod disk;
mod errors;
mod events;
mod handle;
mod hands;
mod holding;
mod index;
mod ingest;
mod label;
mod layout;
mod lock;
mod locks;
mod lookup;
mod mend;
mod metrics;
mod provenance;
mod reader;
mod record;
mod records;
mod release;
mod remove;
mod rights;
mod scrub;
mod secret;
mod shelves;
mod space;
mod syncer;
mod traces;
mod verify;

#[cfg(test)]
mod tests;

pub use adopt::{Adopted, Found};
pub use aside::{aside, rest_from};
pub use audit::{Audit, Condition, Listed};
pub use blob::Blob;
pub use bounds::{Bounds, DiskUse, Excess, Reason, Usage};
pub use errors::{AdoptError, CommitError, IngestError, OpenError, ReadError};
pub use events::{Event, Events};
pub use handle::{Options, Store};
pub use hands::Stuck;
pub use holding::{Held, Holding};
pub use ingest::{Ingest, Mismatch, Origin, Verified};
pub use metrics::Metrics;
pub use provenance::Provenance;
pub use reader::BlobReader;
pub use record::TagRecord;
pub use records::Records;
pub use scrub::{Scrub, Scrubbed};
pub use secret::Secret;
pub use traces::{Hold, has_lock, traces};
pub use verify::Proof;

/// The unit of checksums, reads and transfers, in bytes. The last chunk of a blob may be shorter.
pub const CHUNK: u64 = 1 << 20;

/// How many chunks a blob of `size` bytes has.
const fn chunks(size: u64) -> u64 {
    size.div_ceil(CHUNK)
}
