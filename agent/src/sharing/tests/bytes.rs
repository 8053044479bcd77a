//! A blob that arrives at a node, for peers to read along.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::watch;

use crate::image::{Access, Digest, MediaType, Registry};
use crate::peers::{BlobOf, Head, Parted};
use crate::pull::{Ended, NotShared};
use crate::sharing::{Reading, Source};

/// What is sent at a time at the most.
const PIECE: usize = 64 << 10;

/// What a node has, or is getting.
#[derive(Clone, Default)]
pub(super) struct Shelf(Arc<Mutex<HashMap<Digest, Arc<Arriving>>>>, Arc<Mutex<HashSet<Digest>>>);

/// A blob of which more and more is there.
pub(super) struct Arriving {
    pub(super) content: Mutex<Vec<u8>>,
    pub(super) size: u64,
    /// Bytes that are there, and whether all of it is proven.
    pub(super) there: watch::Sender<(u64, bool)>,
}

impl Shelf {
    pub(super) fn begin(&self, digest: Digest, size: u64) -> Arc<Arriving> {
        let arriving = Arc::new(Arriving { content: Mutex::default(), size, there: watch::Sender::new((0, false)) });
        self.0.lock().unwrap().insert(digest, Arc::clone(&arriving));
        arriving
    }

    /// Its source hasn't answered, and never will.
    pub(super) fn await_in_vain(&self, digest: Digest) {
        self.1.lock().unwrap().insert(digest);
    }

    /// It is there from the beginning.
    pub(super) fn put(&self, content: &[u8]) -> Digest {
        let digest = Digest::of(content);
        let arriving = self.begin(digest, content.len() as u64);
        arriving.add(content);
        arriving.is_whole();
        digest
    }
}

impl Arriving {
    pub(super) fn add(&self, bytes: &[u8]) -> u64 {
        let mut content = self.content.lock().unwrap();
        content.extend_from_slice(bytes);
        let len = content.len() as u64;
        self.there.send_modify(|(there, _)| *there = len);
        len
    }

    pub(super) fn is_whole(&self) {
        self.there.send_modify(|(_, whole)| *whole = true);
    }

    pub(super) fn frontier(&self) -> u64 {
        self.there.borrow().0
    }
}

pub(super) struct Along {
    arriving: Arc<Arriving>,
    there: watch::Receiver<(u64, bool)>,
    head: Head,
    at: u64,
    end: u64,
}

impl Source for Shelf {
    type Reading = Along;

    async fn share(
        &self,
        digest: &Digest,
        registry: &Registry,
        access: Access,
        from: u64,
        end: Option<u64>,
    ) -> Result<Along, NotShared> {
        if self.1.lock().unwrap().contains(digest) {
            std::future::pending::<()>().await;
        }
        let arriving = self.0.lock().unwrap().get(digest).cloned().ok_or(NotShared::Absent)?;
        let there = arriving.there.subscribe();
        let whole = there.borrow().1;
        let (media_type, registry, size) = (MediaType::octet_stream(), registry.clone(), arriving.size);
        let head = Head { size, media_type, registry, access, whole, sources: vec!["upstream.test".to_owned()] };
        Ok(Along { arriving, there, head, at: from, end: end.unwrap_or(size) })
    }

    async fn knows(&self, of: &BlobOf) -> bool {
        self.0.lock().unwrap().contains_key(&of.digest)
    }
}

impl Reading for Along {
    fn head(&self) -> &Head {
        &self.head
    }

    fn frontier(&self) -> u64 {
        self.arriving.frontier()
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Ended> {
        if self.at >= self.end {
            return Ok(None);
        }
        let at = self.at;
        self.there.wait_for(|(there, _)| *there > at).await.map_err(|_| Ended::Short)?;
        let content = self.arriving.content.lock().unwrap();
        let to = content.len().min(self.end as usize).min(at as usize + PIECE);
        self.at = to as u64;
        Ok(Some(Bytes::copy_from_slice(&content[at as usize..to])))
    }

    async fn parted(&mut self) -> Parted {
        match self.there.wait_for(|(_, whole)| *whole).await {
            Ok(_) => Parted::Held,
            Err(_) => Parted::Unknown,
        }
    }
}
