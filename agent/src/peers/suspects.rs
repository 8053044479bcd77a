//! Upstreams that sent wrong bytes to some node. Others hear of it before they give on what comes from there, whatever they
//! read: the owners of an upstream's name know.

use futures_util::future::join_all;

use super::{Backing, Inner, Peers};
use crate::cluster::directory::bucket_of_upstream;

impl Peers {
    /// An upstream sent wrong bytes to this node: both owners of its name are told. Takes two seconds at most.
    pub async fn tell_suspect(&self, upstream: &str) {
        match &self.0 {
            Backing::Cluster(inner) => inner.tell_suspect(upstream).await,
            #[cfg(test)]
            Backing::Script(script) => script.told_suspect(upstream),
        }
    }

    /// Whether an upstream sent wrong bytes to any node within the hour, as the owners of its name say. What they say costs
    /// time at the worst: what comes from there is verified before it goes out. Takes some seconds at most.
    pub async fn is_suspect(&self, upstream: &str) -> bool {
        match &self.0 {
            Backing::Cluster(inner) => inner.is_suspect(upstream).await,
            #[cfg(test)]
            Backing::Script(script) => script.is_suspect(upstream),
        }
    }
}

impl Inner {
    async fn tell_suspect(&self, upstream: &str) {
        let owners = self.ring().owners(bucket_of_upstream(upstream));
        let told = owners.iter().map(|owner| async move {
            if let Err(error) = self.ask_suspect(owner, upstream, true).await {
                tracing::debug!(upstream, %owner, %error, "an owner isn't told who sent wrong bytes");
            }
        });
        join_all(told).await;
    }

    async fn is_suspect(&self, upstream: &str) -> bool {
        for owner in self.ring().owners(bucket_of_upstream(upstream)).iter() {
            match self.ask_suspect(owner, upstream, false).await {
                Ok(is_suspect) => return is_suspect,
                Err(error) => tracing::debug!(upstream, %owner, %error, "an owner doesn't say who sends wrong bytes"),
            }
        }
        false
    }
}
