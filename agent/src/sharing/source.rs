use bytes::Bytes;

use crate::image::{Access, Digest, Registry};
use crate::peers::{BlobOf, Head, Parted};
use crate::pull::{Ended, NotShared, Pull, Shared};

/// Where what peers read comes from: [`Pull`], or something smaller in a test.
pub trait Source: Clone + Send + Sync + 'static {
    /// One blob on its way out.
    type Reading: Reading;

    /// A blob for a peer whose own transfer is for `registry` and runs as `access`: the bytes from `from` on, to `end` or
    /// to the blob's. See [`Pull::share`].
    fn share(
        &self,
        digest: &Digest,
        registry: &Registry,
        access: Access,
        from: u64,
        end: Option<u64>,
    ) -> impl Future<Output = Result<Self::Reading, NotShared>> + Send;

    /// Whether a blob that is here, or on its way, is known as one of that repository. See [`Pull::knows`].
    fn knows(&self, of: &BlobOf) -> impl Future<Output = bool> + Send;
}

/// A blob on its way to a peer. See [`Shared`].
pub trait Reading: Send + 'static {
    /// What is said before the bytes.
    fn head(&self) -> &Head;

    /// Every byte of the blob before this one is here.
    fn frontier(&self) -> u64;

    /// The next bytes; `None` when all that was asked for has been given. Cancelling it loses nothing.
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, Ended>> + Send;

    /// Whoever reads it needs no more than is here by now: nothing is to wait for more.
    fn hurry(&mut self) {}

    /// What is known of the whole, once all has been given.
    fn parted(&mut self) -> impl Future<Output = Parted> + Send;
}

impl Source for Pull {
    type Reading = Shared;

    async fn share(
        &self,
        digest: &Digest,
        registry: &Registry,
        access: Access,
        from: u64,
        end: Option<u64>,
    ) -> Result<Shared, NotShared> {
        Self::share(self, digest, registry, access, from, end).await
    }

    async fn knows(&self, of: &BlobOf) -> bool {
        Self::knows(self, of).await
    }
}

impl Reading for Shared {
    fn head(&self) -> &Head {
        Self::head(self)
    }

    fn frontier(&self) -> u64 {
        Self::frontier(self)
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Ended> {
        Self::next(self).await
    }

    fn hurry(&mut self) {
        Self::hurry(self);
    }

    async fn parted(&mut self) -> Parted {
        Self::parted(self).await
    }
}
