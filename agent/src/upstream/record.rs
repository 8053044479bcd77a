use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::error::UpstreamError;
use super::metrics::Meter;

/// How things last went with an upstream.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// When it last answered, with the content or with no.
    pub last_success: Option<Timestamp>,
    /// When it last gave no answer, or broke one off.
    pub last_error: Option<LastError>,
}

/// The last thing that went wrong.
#[derive(Debug, Clone)]
pub struct LastError {
    /// When.
    pub at: Timestamp,
    /// What, for people.
    pub text: String,
    /// What, for machines: the label of the [`ErrorKind`](super::ErrorKind).
    pub kind: &'static str,
}

/// Writes down how things go with one upstream.
#[derive(Debug)]
pub(super) struct Record {
    meter: Meter,
    state: Mutex<State>,
}

impl Record {
    pub(super) fn new(meter: Meter) -> Self {
        Self { meter, state: Mutex::default() }
    }

    pub(super) fn state(&self) -> State {
        self.lock().clone()
    }

    /// A request that ended with the head of an answer, or with none.
    pub(super) fn request(&self, took: Duration, error: Option<&UpstreamError>) {
        self.meter.request(error.map_or("ok", |e| e.kind().label()));
        match error {
            Some(error) if !error.is_answer() => self.failed(error),
            _ => {
                self.meter.head(took.as_secs_f64());
                self.lock().last_success = Some(Timestamp::now());
            }
        }
    }

    /// No answer, or one that broke off.
    pub(super) fn failed(&self, error: &UpstreamError) {
        let kind = error.kind().label();
        self.meter.error(kind);
        self.lock().last_error = Some(LastError { at: Timestamp::now(), text: error.to_string(), kind });
    }

    pub(super) fn received(&self, bytes: usize) {
        self.meter.received(bytes);
    }

    pub(super) fn token(&self, error: Option<&UpstreamError>) {
        self.meter.token(error.map_or("ok", |e| e.kind().label()));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What is behind it is whole after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
