//! The task of one reading: sends what the machines want sent, and lets time pass for them.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::task::coop::consume_budget;
use tokio::time::Instant;

use super::Chain;
use crate::cluster::chain::Lease;
use crate::cluster::directory::{Answer, Answered, Verdict};
use crate::cluster::follow::{Action, Turn};
use crate::image::NodeId;
use crate::peers::Trace;
use crate::peers::calls::CallError;
use crate::peers::owner::{held, until};

/// What became of something that was sent.
enum Done {
    Asked(u64, Result<Answered, CallError>),
    /// To whom, and under which lease: of others the machine doesn't want to know.
    Reported(NodeId, Option<Lease>, Result<Verdict, CallError>),
    Nothing,
}

/// What a task has to do.
struct Next {
    outbox: Vec<Action>,
    trace: Trace,
    deadline: Option<Instant>,
    is_over: bool,
}

impl Chain {
    /// Sends what the machines of one reading want sent, and lets time pass for them, until it is over.
    pub(super) async fn run(self: Arc<Self>, number: u64) {
        let (mut ring, mut has_members) = (self.inner.ring.clone(), true);
        ring.mark_unchanged();
        let mut calls = FuturesUnordered::new();
        while let Some(next) = self.next(number) {
            // A call to who failed a moment ago fails at once: whatever follows from that, others have their turn.
            consume_budget().await;
            for action in next.outbox {
                calls.push(self.perform(action, next.trace.clone()));
            }
            if next.is_over && calls.is_empty() {
                break;
            }
            tokio::select! {
                () = self.inner.stop.cancelled() => break,
                () = self.woken.notified() => {}
                () = until(next.deadline) => self.tick(number),
                Some(done) = calls.next(), if !calls.is_empty() => self.done(number, done),
                changed = ring.changed(), if has_members => {
                    // When the node ends, what is under way goes on with the members that were known last.
                    has_members = changed.is_ok();
                    let owners = ring.borrow_and_update().owners_of(&self.key.digest);
                    self.tell(number, |machine, now| machine.owners_changed(now, owners));
                }
            }
        }
        held(&self.state).readings.remove(&number);
        self.changed.send_replace(());
        self.inner.chains.leave(&self);
    }

    fn next(&self, number: u64) -> Option<Next> {
        let mut state = held(&self.state);
        let serving = state.serve.next_deadline();
        let reading = state.readings.get_mut(&number)?;
        let following = reading.machine.next_deadline();
        let outbox = std::mem::take(&mut reading.outbox);
        let is_over = reading.left && following.is_none() && outbox.is_empty();
        let deadline = [serving, following].into_iter().flatten().min();
        let deadline = deadline.map(|at| self.inner.started + at);
        Some(Next { outbox, trace: reading.trace.clone(), deadline, is_over })
    }

    fn tick(&self, number: u64) {
        held(&self.state).serve.tick(self.inner.now());
        self.tell(number, |machine, now| {
            if let Turn::Peer(opening) = machine.turn()
                && let Some(last) = self.inner.pulses.last(opening.node)
            {
                machine.speaks(opening.number, last);
            }
            machine.tick(now);
        });
    }

    fn perform(self: &Arc<Self>, action: Action, trace: Trace) -> BoxFuture<'static, Done> {
        let inner = Arc::clone(&self.inner);
        Box::pin(async move {
            match action {
                Action::Ask { number, owner, ask } => {
                    let (asked, is_again) = (Instant::now(), ask.ticket.is_some() || !ask.troubles.is_empty());
                    let digest = ask.key.digest;
                    let answered = inner.ask(owner, &ask, &trace).await;
                    inner.metrics.looked_up(label(&answered), asked.elapsed(), is_again);
                    match &answered {
                        Ok(answered) => {
                            tracing::debug!(pull = %trace, %digest, %owner, answer = ?answered.answer, "asked an owner");
                        }
                        Err(error) => {
                            tracing::debug!(pull = %trace, %digest, %owner, %error, "an owner doesn't answer");
                        }
                    }
                    Done::Asked(number, answered)
                }
                Action::Report { owner, report } => {
                    Done::Reported(owner, report.lease, inner.report(owner, &report).await)
                }
                // They were done at once.
                Action::Placed(_) | Action::Yields | Action::KeptWaiting(_) => Done::Nothing,
            }
        })
    }

    fn done(&self, number: u64, done: Done) {
        match done {
            Done::Asked(asked, Ok(answered)) => {
                if matches!(answered.answer, Answer::Fetch { .. }) {
                    self.inner.metrics.lease("held");
                }
                self.tell(number, |machine, now| machine.answered(now, asked, answered));
            }
            Done::Asked(asked, Err(_)) => self.tell(number, |machine, now| machine.unanswered(now, asked)),
            Done::Reported(_, Some(lease), Ok(verdict)) => {
                self.tell(number, |machine, now| machine.reported(now, lease, verdict));
            }
            Done::Reported(owner, Some(lease), Err(_)) => {
                self.tell(number, |machine, now| machine.unreported(now, owner, lease));
            }
            Done::Reported(_, None, _) | Done::Nothing => {}
        }
    }
}

fn label(answered: &Result<Answered, CallError>) -> &'static str {
    match answered {
        Ok(Answered { answer: Answer::Fetch { .. }, .. }) => "fetch",
        Ok(Answered { answer: Answer::Read { .. }, .. }) => "read",
        Ok(Answered { answer: Answer::NotOwner(_), .. }) => "not_owner",
        Ok(Answered { answer: Answer::Alone { .. }, .. }) => "alone",
        Err(CallError::LeftAlone) => "left_alone",
        Err(_) => "failed",
    }
}
