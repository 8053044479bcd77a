//! Datagrams that only members can read or write.
//!
//! ```text
//! version 1 | run 16 | counter 8 | sealed: time 8, message | tag 16
//! ```
//! A run is a random number that a process draws at its start. The key is derived from the cluster's and the run, so
//! that the counter alone makes a nonce that no key sees twice. The time (milliseconds since 1970) bounds for how long
//! a receiver that has no memory of a run can be told old news.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk};

use super::refusal::Reason;
use super::replay::Window;

const VERSION: u8 = 1;
const HEADER: usize = 1 + 16 + 8;
const TIME: usize = 8;
const TAG: usize = 16;

/// The most that a datagram has on the wire: it fits into one packet on all but odd networks.
pub(super) const MAX_SEALED: usize = 1400;
/// The most that a message in it has.
pub(super) const MAX_PLAIN: usize = MAX_SEALED - HEADER - TIME - TAG;

/// How far a sender's clock may be from ours.
pub(super) const CLOCKS_APART: Duration = Duration::from_secs(300);
/// More runs than the largest cluster has nodes. Of more, the one that was silent longest is forgotten.
const MAX_RUNS: usize = 8192;

type Run = [u8; 16];

/// The sender's side: one run.
#[derive(Debug)]
pub(super) struct Sealer {
    run: Run,
    counter: AtomicU64,
}

/// The receiver's side: what it knows of every run.
#[derive(Debug, Default)]
pub(super) struct Opener {
    runs: HashMap<Run, Known>,
    /// Grows with each datagram: the order of the last ones of each run.
    clock: u64,
}

#[derive(Debug)]
struct Known {
    key: LessSafeKey,
    /// The cluster's key that this one came from.
    from: [u8; 32],
    window: Window,
    last: u64,
}

/// Why a datagram isn't opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotOpened {
    #[error("a datagram is too short to be of a member")]
    Short,
    #[error("a datagram is of version {0}, and this agent knows version {VERSION}")]
    Version(u8),
    #[error("a datagram is sealed with another cluster's key, or damaged")]
    Key,
    #[error("a datagram came a second time, or far too late")]
    Replay,
    #[error("a member's clock is {} s {}; check the clocks of both nodes", .apart.as_secs(), if *.is_behind { "behind ours" } else { "ahead of ours" })]
    Clock { apart: Duration, is_behind: bool },
}

impl NotOpened {
    pub(super) const fn reason(self) -> Reason {
        match self {
            Self::Short => Reason::Short,
            Self::Version(_) => Reason::Version,
            Self::Key => Reason::Key,
            Self::Replay => Reason::Replay,
            Self::Clock { .. } => Reason::Clock,
        }
    }
}

impl Sealer {
    pub(super) fn new() -> Self {
        Self { run: rand::random(), counter: AtomicU64::new(0) }
    }

    /// The key of this run below a key of the cluster.
    pub(super) fn key(&self, cluster: &[u8; 32]) -> Result<LessSafeKey, Unspecified> {
        derive(cluster, &self.run)
    }

    /// The datagram for a message of at most [`MAX_PLAIN`] bytes.
    pub(super) fn seal(&self, key: &LessSafeKey, plain: &[u8], now: SystemTime) -> Result<Vec<u8>, Unspecified> {
        let counter = self.counter.fetch_add(1, Ordering::Relaxed);
        let mut datagram = Vec::with_capacity(HEADER + TIME + plain.len() + TAG);
        datagram.push(VERSION);
        datagram.extend_from_slice(&self.run);
        datagram.extend_from_slice(&counter.to_be_bytes());
        let mut sealed = Vec::with_capacity(TIME + plain.len() + TAG);
        sealed.extend_from_slice(&millis(now).to_be_bytes());
        sealed.extend_from_slice(plain);
        key.seal_in_place_append_tag(nonce(counter), Aad::from(datagram.as_slice()), &mut sealed)?;
        datagram.append(&mut sealed);
        Ok(datagram)
    }
}

impl Opener {
    /// The message in a datagram, whose place it takes. `clusters` are the keys of the cluster, of which any will do.
    pub(super) fn open(
        &mut self,
        clusters: &[[u8; 32]],
        datagram: &mut Vec<u8>,
        now: SystemTime,
    ) -> Result<(), NotOpened> {
        if datagram.len() < HEADER + TIME + TAG {
            return Err(NotOpened::Short);
        }
        let (header, sealed) = datagram.split_at_mut(HEADER);
        let (version, rest) = (header[0], &header[1..]);
        if version != VERSION {
            return Err(NotOpened::Version(version));
        }
        let (run, counter) = rest.split_at(16);
        let (Ok(run), Ok(counter)) = (Run::try_from(run), counter.try_into().map(u64::from_be_bytes)) else {
            return Err(NotOpened::Short);
        };
        self.authenticate(clusters, run, counter, header, sealed)?;
        let Some((time, _)) = sealed.split_first_chunk::<TIME>() else { return Err(NotOpened::Short) };
        let (then, now) = (u64::from_be_bytes(*time), millis(now));
        let apart = Duration::from_millis(then.abs_diff(now));
        if apart > CLOCKS_APART {
            return Err(NotOpened::Clock { apart, is_behind: then < now });
        }
        if !self.runs.get_mut(&run).is_some_and(|known| known.window.admit(counter)) {
            return Err(NotOpened::Replay);
        }
        datagram.truncate(datagram.len() - TAG);
        datagram.drain(..HEADER + TIME);
        Ok(())
    }

    /// Opens it in its place, if it is of a member; the run is known from then on.
    fn authenticate(
        &mut self,
        clusters: &[[u8; 32]],
        run: Run,
        counter: u64,
        header: &[u8],
        sealed: &mut [u8],
    ) -> Result<(), NotOpened> {
        self.clock += 1;
        if let Some(known) = self.runs.get_mut(&run)
            && clusters.contains(&known.from)
        {
            // What fails to open is overwritten, and another key of the cluster could open it still.
            let before = (clusters.len() > 1).then(|| sealed.to_vec());
            if known.key.open_in_place(nonce(counter), Aad::from(header), sealed).is_ok() {
                known.last = self.clock;
                return Ok(());
            }
            let Some(before) = before else { return Err(NotOpened::Key) };
            sealed.copy_from_slice(&before);
        }
        let copy = sealed.to_vec();
        for cluster in clusters {
            let key = derive(cluster, &run).map_err(|_| NotOpened::Key)?;
            sealed.copy_from_slice(&copy);
            if key.open_in_place(nonce(counter), Aad::from(header), sealed).is_ok() {
                // The counter goes on when a run turns to another key, and so does the window.
                let window = self.runs.remove(&run).map(|known| known.window).unwrap_or_default();
                self.make_room();
                self.runs.insert(run, Known { key, from: *cluster, window, last: self.clock });
                return Ok(());
            }
        }
        Err(NotOpened::Key)
    }

    fn make_room(&mut self) {
        if self.runs.len() < MAX_RUNS {
            return;
        }
        // Seldom: as often as somebody starts in a cluster of more runs than are remembered.
        if let Some(oldest) = self.runs.iter().min_by_key(|(_, known)| known.last).map(|(run, _)| *run) {
            self.runs.remove(&oldest);
        }
    }
}

fn derive(cluster: &[u8; 32], run: &Run) -> Result<LessSafeKey, Unspecified> {
    let key = Prk::new_less_safe(HKDF_SHA256, cluster);
    let info = [b"datagrams of a run".as_slice(), run];
    Ok(LessSafeKey::new(UnboundKey::from(key.expand(&info, &AES_256_GCM)?)))
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OURS: [u8; 32] = [7; 32];
    const NEXT: [u8; 32] = [8; 32];
    const OTHERS: [u8; 32] = [9; 32];

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    }

    fn sealed(sealer: &Sealer, cluster: &[u8; 32], plain: &[u8]) -> Vec<u8> {
        sealer.seal(&sealer.key(cluster).unwrap(), plain, now()).unwrap()
    }

    fn open(opener: &mut Opener, datagram: &[u8]) -> Result<Vec<u8>, NotOpened> {
        let mut datagram = datagram.to_vec();
        opener.open(&[OURS], &mut datagram, now()).map(|()| datagram)
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_opened_once(plain in prop::collection::vec(any::<u8>(), 0..=MAX_PLAIN)) {
            let (sealer, mut opener) = (Sealer::new(), Opener::default());
            let datagram = sealed(&sealer, &OURS, &plain);
            prop_assert!(datagram.len() <= MAX_SEALED);
            prop_assert_eq!(open(&mut opener, &datagram), Ok(plain));
            prop_assert_eq!(open(&mut opener, &datagram), Err(NotOpened::Replay));
        }

        #[test]
        fn any_flipped_bit_is_refused(
            plain in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), bit in 0_u8..8,
            is_known in any::<bool>(),
        ) {
            let (sealer, mut opener) = (Sealer::new(), Opener::default());
            if is_known {
                open(&mut opener, &sealed(&sealer, &OURS, b"before")).unwrap();
            }
            let good = sealed(&sealer, &OURS, &plain);
            let mut bad = good.clone();
            bad[at.index(good.len())] ^= 1 << bit;
            prop_assert!(matches!(open(&mut opener, &bad), Err(NotOpened::Key | NotOpened::Version(_))));
            // And it has not kept the good one from being opened.
            prop_assert_eq!(open(&mut opener, &good), Ok(plain));
        }

        #[test]
        fn any_truncation_is_refused(plain in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>()) {
            let (sealer, mut opener) = (Sealer::new(), Opener::default());
            let good = sealed(&sealer, &OURS, &plain);
            let cut = &good[..at.index(good.len())];
            prop_assert!(matches!(open(&mut opener, cut), Err(NotOpened::Key | NotOpened::Short)));
        }

        #[test]
        fn noise_is_refused(noise in prop::collection::vec(any::<u8>(), 0..1500)) {
            prop_assert!(open(&mut Opener::default(), &noise).is_err());
        }

        #[test]
        fn order_does_not_matter_within_the_window(order in Just((0..500_u64).collect::<Vec<_>>()).prop_shuffle()) {
            let (sealer, mut opener) = (Sealer::new(), Opener::default());
            let datagrams: Vec<_> = (0..500_u64).map(|n| sealed(&sealer, &OURS, &n.to_be_bytes())).collect();
            for &n in &order {
                prop_assert_eq!(open(&mut opener, &datagrams[n as usize]), Ok(n.to_be_bytes().to_vec()));
            }
            for &n in &order {
                prop_assert_eq!(open(&mut opener, &datagrams[n as usize]), Err(NotOpened::Replay));
            }
        }
    }

    #[test]
    fn outsiders_and_other_clusters_are_refused() {
        let mut opener = Opener::default();
        assert_eq!(open(&mut opener, &sealed(&Sealer::new(), &OTHERS, b"x")), Err(NotOpened::Key));
        assert!(opener.runs.is_empty(), "nothing is remembered of them");
    }

    #[test]
    fn clocks_may_be_five_minutes_apart() {
        let (sealer, mut opener) = (Sealer::new(), Opener::default());
        let key = sealer.key(&OURS).unwrap();
        let mut at = |time| open(&mut opener, &sealer.seal(&key, b"x", time).unwrap());
        let second = Duration::from_secs(1);
        assert!(at(now() - CLOCKS_APART).is_ok() && at(now() + CLOCKS_APART).is_ok());
        let apart = CLOCKS_APART + second;
        assert_eq!(at(now() - apart), Err(NotOpened::Clock { apart, is_behind: true }));
        assert_eq!(at(now() + apart), Err(NotOpened::Clock { apart, is_behind: false }));
        let said = NotOpened::Clock { apart, is_behind: true }.to_string();
        assert!(said.contains("301 s behind ours"), "{said}");
    }

    #[test]
    fn a_new_key_of_the_cluster_leaves_no_gap_and_opens_no_door() {
        let (sealer, mut opener) = (Sealer::new(), Opener::default());
        let mut open = |clusters: &[[u8; 32]], datagram: &[u8]| {
            let mut datagram = datagram.to_vec();
            opener.open(clusters, &mut datagram, now())
        };
        let old = sealed(&sealer, &OURS, b"old");
        assert_eq!(open(&[OURS, NEXT], &old), Ok(()));
        let new = sealed(&sealer, &NEXT, b"new");
        let late = sealed(&sealer, &OURS, b"late");
        assert_eq!(open(&[OURS, NEXT], &new), Ok(()));
        assert_eq!(open(&[OURS, NEXT], &late), Ok(()), "both are good while both are in the files");
        assert_eq!(open(&[NEXT, OURS], &old), Err(NotOpened::Replay));
        let after = sealed(&sealer, &OURS, b"after");
        assert_eq!(open(&[NEXT], &after), Err(NotOpened::Key));
        assert_eq!(open(&[NEXT], &new), Err(NotOpened::Replay));
    }

    #[test]
    fn the_oldest_run_is_forgotten() {
        let mut opener = Opener::default();
        let sealers: Vec<_> = (0..=MAX_RUNS).map(|_| Sealer::new()).collect();
        for sealer in &sealers[..MAX_RUNS] {
            open(&mut opener, &sealed(sealer, &OURS, b"x")).unwrap();
        }
        open(&mut opener, &sealed(&sealers[0], &OURS, b"x")).unwrap();
        open(&mut opener, &sealed(&sealers[MAX_RUNS], &OURS, b"x")).unwrap();
        assert_eq!(opener.runs.len(), MAX_RUNS);
        assert!(opener.runs.contains_key(&sealers[0].run) && !opener.runs.contains_key(&sealers[1].run));
    }
}
