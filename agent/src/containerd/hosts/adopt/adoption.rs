use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::{Adopted, AdoptedFolder, LeftOut, adopted};

/// Tells what the user's files say, at first and when it changes.
pub struct Adoption {
    dir: PathBuf,
    listen: SocketAddr,
    tell: Box<dyn Fn(&Adopted) + Send + Sync>,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    told: Option<Adopted>,
    failure: Option<String>,
}

impl Adoption {
    /// Of the folder `dir`, for a mirror that listens at `listen`: a host that is this mirror is never told. `tell` is
    /// called where [`Self::look`] is.
    pub fn new(dir: PathBuf, listen: SocketAddr, tell: impl Fn(&Adopted) + Send + Sync + 'static) -> Self {
        Self { dir, listen, tell: Box::new(tell), last: Mutex::default() }
    }

    /// Reads the files, and tells what they say if that is news; also when a certificate that they name was renewed.
    /// Blocking: call it where that is allowed. What is left out, and a folder that can't be read, goes to the log,
    /// once; in the second case what was told last still holds.
    pub fn look(&self) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match adopted(&self.dir, self.listen) {
            Ok(now) => {
                last.failure = None;
                if last.told.as_ref() != Some(&now) {
                    say(&now, last.told.as_ref());
                    (self.tell)(&now);
                    last.told = Some(now);
                }
            }
            Err(e) => {
                let failure = e.with_source();
                if last.failure.as_ref() != Some(&failure) {
                    tracing::warn!(
                        error = failure,
                        "the user's own mirrors can't be read; the last that were still hold"
                    );
                }
                last.failure = Some(failure);
            }
        }
    }
}

impl fmt::Debug for Adoption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adoption").field("dir", &self.dir).finish_non_exhaustive()
    }
}

fn say(now: &Adopted, before: Option<&Adopted>) {
    let old = |folder: &AdoptedFolder| {
        before.and_then(|before| before.folders.iter().find(|old| old.target == folder.target))
    };
    for folder in &now.folders {
        let urls = |folder: &AdoptedFolder| folder.upstreams.iter().map(|u| u.url.to_string()).collect::<Vec<_>>();
        if old(folder).map_or_else(Vec::new, urls) != urls(folder) {
            let (registry, file, upstreams) = (folder.target.folder(), folder.file.display(), urls(folder).join(", "));
            tracing::info!(registry, %file, upstreams, "upstreams taken over from the user's own file");
        }
        let is_news = |left: &&LeftOut| old(folder).is_none_or(|old| !old.left_out.contains(left));
        for LeftOut { host, why } in folder.left_out.iter().filter(is_news) {
            let host = host.as_deref().unwrap_or("all");
            tracing::warn!(file = %folder.file.display(), host, %why, "not taken over; containerd asks it after larder");
        }
    }
}
