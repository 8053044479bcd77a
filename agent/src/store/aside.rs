//! Work that takes a CPU for long, on threads that give way to those who serve.

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, setpriority_process};
use tokio::sync::oneshot;

/// A tenth of the weight of others.
const NICE: i32 = 10;

/// How many times as long as it took to work is rested.
const REST: u32 = 3;
/// The longest rest.
const LONGEST_REST: Duration = Duration::from_millis(10);

/// From now on, this thread gives way to others.
pub(super) fn give_way() {
    // To Linux each thread is a process here. Where it is refused, it competes as any other.
    let own = Pid::from_raw(nix::unistd::gettid().as_raw());
    if let Err(error) = setpriority_process(own, NICE) {
        tracing::debug!(%error, "a thread can't give way to others");
    }
}

/// Lets whoever waits for this CPU have it first. For work that takes it for long, between steps of microseconds: however
/// low a thread's priority, Linux leaves it the CPU for a slice of some milliseconds.
pub(super) fn step_aside() {
    thread::yield_now();
}

/// Rests three times as long as the work took that was `begun` then, though not long where a disk took its time: who
/// serves meanwhile meets little of it.
pub async fn rest_from(begun: Instant) {
    tokio::time::sleep((begun.elapsed() * REST).min(LONGEST_REST)).await;
}

/// Runs `work` on a thread of its own that gives way to others. Once begun it runs to its end, whether or not anyone still
/// waits. `None` when there is no thread to be had.
pub async fn aside<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = oneshot::channel();
    let begun = thread::Builder::new().name(name.to_owned()).spawn(move || {
        give_way();
        // An error says that nobody waits any more.
        let _ = done.send(work());
    });
    begun.inspect_err(|error| tracing::warn!(%error, "no thread to work on")).ok()?;
    result.await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_who_works_aside_gives_way() {
        let nice = || rustix::process::getpriority_process(Pid::from_raw(nix::unistd::gettid().as_raw())).unwrap();
        let before = nice();
        assert_eq!(aside("larder-test", nice).await, Some(NICE.max(before)));
        assert_eq!(nice(), before);
        assert_eq!(aside("larder-test", || -> u8 { panic!("it panics") }).await, None);
    }
}
