use std::os::unix::fs::MetadataExt;

use tracing::debug;

use super::handle::Store;
use super::index::Change;
use super::label::Label;
use super::locks::held;
use super::record::{BlobRecord, Hold};
use super::shelves::Shelves;
use crate::image::Digest;

/// How many blobs are watched until containerd has unlinked them.
const MOST_WATCHED: usize = 16_384;

impl Store {
    /// Notes that containerd doesn't hold these any more, or is about to remove them: what was left in place is gone;
    /// what was linked counts as ours alone once containerd's name of it is away, which is looked after for as long as it
    /// takes. After a start, this is to be told of everything shared that containerd doesn't list.
    pub async fn released(&self, digests: &[Digest]) {
        let digests = digests.to_vec();
        self.run(move |shelves| {
            for digest in &digests {
                shelves.release(digest);
            }
            shelves.show_totals();
        })
        .await;
    }
}

impl Shelves {
    fn release(&self, digest: &Digest) {
        let _name = self.hold_name(digest);
        let Some(record) = self.index.record(digest) else { return };
        match record.hold {
            Hold::Own => {}
            Hold::InPlace(_) => {
                self.index.update(digest, |_| Change::Drop);
                self.open.forget(digest);
            }
            // Its extents tell nobody whose they are: containerd's word is all there is.
            Hold::Cloned => self.index.update(digest, own),
            Hold::Linked => {
                if !self.settle_hold(digest, record.hold) {
                    let mut watched = held(&self.released);
                    if watched.len() < MOST_WATCHED {
                        watched.insert(*digest);
                    }
                }
            }
        }
    }

    /// Looks again at what containerd was about to remove.
    pub(super) fn look_after_released(&self) {
        let watched: Vec<Digest> = held(&self.released).iter().copied().collect();
        for digest in &watched {
            if self.recount(digest) {
                held(&self.released).remove(digest);
            }
        }
        if !watched.is_empty() {
            self.show_totals();
        }
    }

    /// Compares what is known of whose a blob is with its file; whether it is not, or no longer, linked.
    pub(super) fn recount(&self, digest: &Digest) -> bool {
        let _name = self.hold_name(digest);
        self.index.record(digest).is_none_or(|record| self.settle_hold(digest, record.hold))
    }

    /// Under the lock of its name: makes the record say what the file does, where names can tell. Whether it is not, or no
    /// longer, linked.
    pub(super) fn settle_hold(&self, digest: &Digest, hold: Hold) -> bool {
        let Ok(Some((file, metadata))) = self.layout.open_blob(digest) else { return true };
        match (hold, metadata.nlink()) {
            (Hold::Own, 2..) => {
                self.index.update(digest, linked);
                false
            }
            (Hold::Linked, 0 | 1) => {
                debug!(%digest, "containerd gave up a blob: it is ours alone");
                let mut label = Label::default();
                self.index.update(digest, |known| {
                    label = known.as_ref().map(Label::of).unwrap_or_default();
                    own(known)
                });
                label.write(&*self.disk, &file);
                true
            }
            (Hold::Linked, _) => false,
            (Hold::Own | Hold::Cloned | Hold::InPlace(_), _) => true,
        }
    }
}

fn own(known: Option<BlobRecord>) -> Change {
    known.map_or(Change::Keep, |record| Change::Put(BlobRecord { hold: Hold::Own, ..record }, None))
}

fn linked(known: Option<BlobRecord>) -> Change {
    known.map_or(Change::Keep, |record| Change::Put(BlobRecord { hold: Hold::Linked, ..record }, None))
}
