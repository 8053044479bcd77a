use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

use super::takeover;
use crate::peers::{Candidate, JoinError, Membership, Part, Peers, Port};
use crate::wire::Identity;

/// How soon it is tried again. Files may come after the agent, or be half replaced when it starts.
const AGAIN: Duration = Duration::from_secs(3);
/// How long the agent's start waits for the first attempt, so that its first pull has peers.
const FIRST: Duration = Duration::from_secs(1);

/// Joins the cluster, if one is configured, as soon as that works: one that can't be joined is no reason not to serve. Peers
/// come to the port that is given then, so it is to be served.
pub(super) async fn join(candidate: Candidate, has_waited: bool) -> (Membership, oneshot::Receiver<(Peers, Port)>) {
    let (joins, joined) = oneshot::channel();
    if !candidate.config.is_on() {
        return (Membership::off(), joined);
    }
    let (told, membership) = Membership::begin();
    let (tasks, stop) = (candidate.tasks.clone(), candidate.ends.stop.clone());
    tasks.spawn(stop.run_until_cancelled_owned(async move {
        let (peers, port) = until_joined(&candidate, has_waited, &told).await;
        told.send_replace(Part::Joined(peers.clone()));
        // Nobody takes it when the agent ends.
        let _ = joins.send((peers, port));
    }));
    let _ = timeout(FIRST, membership.tried()).await;
    (membership, joined)
}

async fn until_joined(candidate: &Candidate, mut has_waited: bool, told: &watch::Sender<Part>) -> (Peers, Port) {
    let (mut identity, mut said) = (None, None);
    loop {
        let why = match attempt(candidate, &mut identity, has_waited).await {
            Ok(joined) => return joined,
            Err(error) => chain(&error),
        };
        has_waited = false;
        if said.as_ref() != Some(&why) {
            tracing::error!(error = why, "no peers: each blob comes from upstream; it is tried again until it works");
            candidate.grants.stand_alone();
            told.send_replace(Part::Apart(Some(why.clone())));
            said = Some(why);
        }
        sleep(AGAIN).await;
    }
}

/// Nothing waits for it: a disk that hangs holds up nobody, and isn't asked a second time meanwhile.
async fn attempt(
    candidate: &Candidate,
    opened: &mut Option<Arc<Identity>>,
    has_waited: bool,
) -> Result<(Peers, Port), JoinError> {
    let identity = match opened {
        Some(identity) => identity,
        None => {
            let (config, dir) = (candidate.config.clone(), candidate.dir.clone());
            match tokio::task::spawn_blocking(move || Identity::open(&config, &dir)).await {
                Ok(identity) => opened.insert(identity?),
                // Only a runtime that ends cancels it.
                Err(_) => return pending().await,
            }
        }
    };
    takeover::bind(has_waited, || Peers::join(candidate, Arc::clone(identity))).await
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
