use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::{debug, warn};

use super::handle::Store;

/// How many records of one kind are kept.
const MOST: usize = 16_384;
/// The most that one may have, in bytes of JSON.
const LARGEST: usize = 64 << 10;

/// What others keep in the store's index, to have it again after a restart. Each kind is by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Records {
    /// The images that this node knows.
    Images,
    /// What upstreams said of images.
    Checks,
    /// What was asked of registries.
    Budgets,
    /// What other nodes told of who may pull what.
    Rights,
}

impl Store {
    /// All records of one kind, in the order of their names. What can't be read as a `T` (of another version, say) is
    /// left out.
    pub async fn records<T: DeserializeOwned + Send + 'static>(&self, of: Records) -> Vec<(String, T)> {
        let records = self.run(move |shelves| {
            let records = shelves.index.records(of).into_iter();
            let read = records.filter_map(|(name, json)| match serde_json::from_slice(&json) {
                Ok(value) => Some((name, value)),
                Err(error) => {
                    debug!(?of, name, %error, "a record of another version is passed over");
                    None
                }
            });
            read.collect()
        });
        records.await.unwrap_or_default()
    }

    /// Keeps a record, or removes it for `None`. It is seen at once, and on the disk within about a second: see
    /// [`Store::settled`]. False when it wasn't taken: there are 16,384 of that kind, it has more than 64 KiB of JSON, or
    /// the disk doesn't answer.
    pub async fn record<T: Serialize>(&self, of: Records, name: &str, value: Option<&T>) -> bool {
        let json = match value.map(serde_json::to_vec).transpose() {
            Ok(Some(json)) if json.len() > LARGEST => {
                warn!(?of, name, bytes = json.len(), "a record is too large to be kept");
                return false;
            }
            Ok(json) => json.map(Arc::from),
            Err(error) => {
                warn!(?of, name, %error, "a record can't be written as JSON");
                return false;
            }
        };
        let key = name.to_owned();
        let taken = self.run(move |shelves| shelves.index.record_as(of, &key, json, MOST)).await;
        if taken == Some(false) {
            warn!(?of, name, most = MOST, "there are too many records for one more");
        }
        taken.unwrap_or(false)
    }

    /// Waits until everything that was recorded so far is on the disk; false when the disk refuses, or takes more than
    /// five seconds.
    pub async fn settled(&self) -> bool {
        self.run(|shelves| shelves.index.flush()).await.unwrap_or(false)
    }
}
