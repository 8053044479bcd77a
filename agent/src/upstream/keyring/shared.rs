use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::Patience;
use super::error::RunError;
use super::program::Runner;

/// Questions that are under way or whose answer is held, at most.
const MAX_HELD: usize = 1024;
/// No answer is held for longer.
const MAX_HOLD: Duration = Duration::from_secs(30 * 24 * 3600);

/// Answers of programs, each asked once for all who want to know, and held for as long as it says.
#[derive(Debug)]
pub(super) struct Shared<T> {
    flights: Mutex<HashMap<String, Flight<T>>>,
    runner: Runner,
}

/// A question under way, or its outcome.
#[derive(Debug)]
struct Flight<T> {
    began: Instant,
    landed: watch::Receiver<Option<Landed<T>>>,
}

/// What came of asking. A failure is shared like an answer.
pub(super) type Outcome<T> = Result<Arc<T>, Arc<RunError>>;

#[derive(Debug)]
struct Landed<T> {
    outcome: Outcome<T>,
    until: Instant,
}

impl<T: Send + Sync + 'static> Shared<T> {
    pub(super) fn new(runner: Runner) -> Self {
        Self { flights: Mutex::default(), runner }
    }

    /// The held answer to the question `key`, or that of the run under way, or else of `run`, which gives an answer and
    /// how long to hold it. A failure is held for a while, so that what is broken isn't started again and again.
    /// Who asks may have limited patience; what is under way then goes on.
    pub(super) async fn get<F>(
        &self,
        program: &str,
        key: &str,
        patience: Option<Patience>,
        run: impl FnOnce(Runner) -> F,
    ) -> Outcome<T>
    where
        F: Future<Output = Result<(T, Duration), RunError>> + Send + 'static,
    {
        let mut flight = {
            let mut flights = self.lock();
            match flights.get(key).filter(|flight| is_usable(flight)) {
                Some(flight) => flight.clone(),
                None => {
                    flights.retain(|_, flight| is_usable(flight));
                    if flights.len() >= MAX_HELD {
                        return Err(Arc::new(RunError::Busy));
                    }
                    let flight = self.launch(program.to_owned(), run(self.runner.clone()));
                    flights.insert(key.to_owned(), flight.clone());
                    flight
                }
            }
        };
        let began = flight.began;
        let landing = flight.landed.wait_for(Option::is_some);
        let landed = match patience {
            None => landing.await,
            Some(Patience { until, of_run }) => match timeout_at(until.min(began + of_run), landing).await {
                Ok(landed) => landed,
                Err(_) => return Err(Arc::new(RunError::Late)),
            },
        };
        match landed.as_deref() {
            Ok(Some(landed)) => landed.outcome.clone(),
            _ => Err(Arc::new(RunError::Ending)),
        }
    }

    /// Runs it in a task of its own: who asked first may leave, and the others still get the answer.
    fn launch<F>(&self, program: String, run: F) -> Flight<T>
    where
        F: Future<Output = Result<(T, Duration), RunError>> + Send + 'static,
    {
        let (sender, landed) = watch::channel(None);
        let (metrics, rest) = (self.runner.metrics.clone(), self.runner.pace.rest);
        self.runner.tasks.spawn(async move {
            let (outcome, hold) = match run.await {
                Ok((answer, hold)) => (Ok(Arc::new(answer)), hold),
                Err(e) => {
                    tracing::warn!(program, error = %e, "no credentials");
                    (Err(Arc::new(e)), rest)
                }
            };
            metrics.ran(&program, outcome.is_ok());
            // Nobody may wait any more.
            let _ = sender.send(Some(Landed { outcome, until: Instant::now() + hold.min(MAX_HOLD) }));
        });
        Flight { began: Instant::now(), landed }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Flight<T>>> {
        // A map of handles: whole after every statement.
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Under way, or an outcome that still holds.
fn is_usable<T>(flight: &Flight<T>) -> bool {
    match &*flight.landed.borrow() {
        Some(landed) => landed.until > Instant::now(),
        None => flight.landed.has_changed().is_ok(),
    }
}

impl<T> Clone for Flight<T> {
    fn clone(&self) -> Self {
        Self { began: self.began, landed: self.landed.clone() }
    }
}
