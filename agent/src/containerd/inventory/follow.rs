//! The task that follows containerd.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::agenda::{Agenda, Parts, Tasks};
use super::known::Known;
use super::{Inventory, Metrics, listing};
use crate::containerd::client::{Client, ClientError, Events};

/// After the first failure, the next attempt comes so soon; each further one after twice as long.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// The longest pause where nobody listens: to try costs nothing.
const RETRY_ABSENT: Duration = Duration::from_secs(4);
/// And where somebody listens, and doesn't answer as hoped.
const RETRY_ILL: Duration = Duration::from_secs(60);
/// A connection that held so long was no accident.
const HELD: Duration = Duration::from_secs(30);
/// So often a containerd of which nothing is heard is asked whether it is there.
const BEAT: Duration = Duration::from_secs(20);
/// After a connect, the listing is repeated so much later.
const SETTLED: Duration = Duration::from_secs(1);

/// Follows containerd for ever.
pub(super) async fn follow(
    client: &Client,
    mirror: SocketAddr,
    metrics: &Metrics,
    told: &watch::Sender<Option<Arc<Inventory>>>,
) {
    let mut follower = Follower { client, metrics, told, known: Known::new(mirror), is_lost: None, version: None };
    let mut retry = FIRST_RETRY;
    loop {
        let began = Instant::now();
        let error = follower.while_connected().await;
        follower.lost(&error);
        if began.elapsed() > HELD {
            retry = FIRST_RETRY;
        }
        let most = if error.is_unreachable() { RETRY_ABSENT } else { RETRY_ILL };
        retry = retry.min(most);
        tokio::time::sleep(retry.mul_f64(rand::random_range(0.9..1.1))).await;
        retry = (retry * 2).min(most);
    }
}

struct Follower<'a> {
    client: &'a Client,
    metrics: &'a Metrics,
    told: &'a watch::Sender<Option<Arc<Inventory>>>,
    known: Known,
    /// Whether that containerd can't be followed has been said; `None` before the first attempt.
    is_lost: Option<bool>,
    version: Option<String>,
}

impl Follower<'_> {
    /// Lists, and goes on with what events say, until something fails.
    async fn while_connected(&mut self) -> ClientError {
        let mut events = self.client.events();
        let mut agenda = Agenda::new(Instant::now());
        match self.first(&mut events, &mut agenda).await {
            Ok(()) => {}
            Err(error) => return error,
        }
        agenda.ask_again(Instant::now() + SETTLED);
        loop {
            let beat = Instant::now() + BEAT;
            let step = tokio::select! {
                event = events.next() => event.map(|event| {
                    self.metrics.heard(&event.what);
                    agenda.note(event, Instant::now());
                }),
                () = sleep_until(agenda.due()) => self.refresh(&mut events, &mut agenda).await,
                () = sleep_until(beat) => self.client.version().await.map(drop),
            };
            if let Err(error) = step {
                return error;
            }
        }
    }

    /// Who answers, and everything there.
    async fn first(&mut self, events: &mut Events, agenda: &mut Agenda) -> Result<(), ClientError> {
        let version = self.client.version().await?.text;
        self.refresh(events, agenda).await?;
        self.metrics.connected(true);
        let is_news = self.is_lost != Some(false) || self.version.as_ref() != Some(&version);
        if is_news {
            let (names, containers) = self.known.len();
            tracing::info!(version, names, containers, "following containerd");
        }
        (self.is_lost, self.version) = (Some(false), Some(version));
        Ok(())
    }

    /// Asks for what is due, and tells what is new. Events that come meanwhile are for the next time.
    async fn refresh(&mut self, events: &mut Events, agenda: &mut Agenda) -> Result<(), ClientError> {
        let began = Instant::now();
        let (parts, tasks) = agenda.take(began);
        let outcome = {
            let asking = ask(self.client, &mut self.known, parts, tasks);
            let asking = timeout(listing::DEADLINE, asking);
            tokio::pin!(asking);
            loop {
                tokio::select! {
                    outcome = &mut asking => break outcome.unwrap_or_else(|_| Err(late(self.client))),
                    event = events.next() => match event {
                        Ok(event) => {
                            self.metrics.heard(&event.what);
                            agenda.note(event, Instant::now());
                        }
                        Err(error) => break Err(error),
                    },
                }
            }
        };
        if parts != Parts::default() {
            self.metrics.listed(outcome.is_ok());
        }
        outcome?;
        agenda.took(parts, began.elapsed(), Instant::now());
        if parts.is_all() {
            self.metrics.confirmed();
        }
        self.tell();
        Ok(())
    }

    fn tell(&mut self) {
        let inventory = self.known.inventory();
        if !self.told.borrow().as_deref().is_some_and(|told| told.is_same(&inventory)) {
            self.metrics.shows(&inventory);
            self.told.send_replace(Some(Arc::new(inventory)));
        }
    }

    /// Said once, and not with every attempt.
    fn lost(&mut self, error: &ClientError) {
        self.metrics.connected(false);
        let retries = "what was known of it stands until it answers again";
        if self.is_lost == Some(true) {
            tracing::debug!(%error, "containerd can't be followed");
        } else {
            tracing::warn!(%error, "containerd can't be followed; {retries}");
        }
        self.is_lost = Some(true);
    }
}

/// What is asked, and what has to be asked because of the answer.
async fn ask(client: &Client, known: &mut Known, parts: Parts, tasks: Tasks) -> Result<(), ClientError> {
    let listing = listing::list(client, parts, known.contents()).await?;
    known.take(listing, tasks);
    if known.needs_ids() {
        // Only the runtime interface knows an image's id from the container. Where there is none, names must do.
        match client.cri_containers().await {
            Ok(ids) => known.learn_ids(&ids),
            Err(error) => {
                tracing::debug!(%error, "the runtime interface doesn't say what its containers were made from");
            }
        }
    }
    Ok(())
}

fn late(client: &Client) -> ClientError {
    ClientError::Deadline { socket: client.socket().to_path_buf(), call: "all listings", after: listing::DEADLINE }
}
