use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Place;
use super::bounded::insert;
use crate::image::Access;
use crate::upstream::Grant;

/// The most entries of each kind; beyond, the oldest goes.
const MOST: usize = 4096;
/// That credentials opened a repository is believed for so long without asking again.
const OPENED_FOR: Duration = Duration::from_secs(300);
/// The same where nobody could be asked: as long as it spares a pull from asking for each blob.
const LET_IN_FOR: Duration = Duration::from_secs(30);
/// That a registry challenges whoever shows nothing is believed for so long.
const CHALLENGED_FOR: Duration = Duration::from_secs(3600);
/// Between two looks at whether a repository still opens to anybody, and between two writes of what is known anyway.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

/// What is known of who may read what, in memory: bounded, and gone with the process.
#[derive(Default)]
pub(super) struct Rights(Mutex<Known>);

/// A repository, and by which credentials: not the secret itself, which is not to outlive its use.
type Opener = (Place, Option<[u8; 32]>);

#[derive(Default)]
struct Known {
    openness: HashMap<Place, (Option<Access>, Instant)>,
    challenged: HashMap<Place, Instant>,
    looked: HashMap<Place, Instant>,
    /// Until when it holds, and when that was last written down.
    opened: HashMap<Opener, (Instant, Option<Instant>)>,
}

impl Rights {
    /// Whether a repository opens to anybody; the outer `None` says that the store wasn't asked yet.
    pub(super) fn openness(&self, place: &Place) -> Option<Option<Access>> {
        self.lock().openness.get(place).map(|(access, _)| *access)
    }

    /// Takes over what the store knows, unless something was learnt meanwhile.
    pub(super) fn load_openness(&self, place: &Place, stored: Option<Access>) -> Option<Access> {
        let mut known = self.lock();
        if let Some((access, _)) = known.openness.get(place) {
            return *access;
        }
        insert(&mut known.openness, MOST, place.clone(), (stored, Instant::now()), |(_, at)| *at);
        stored
    }

    /// A repository opens to anybody, or to nobody without credentials. Whether that should be written down: it is news,
    /// or was last written a while ago.
    pub(super) fn learn_openness(&self, place: &Place, access: Access) -> bool {
        let mut known = self.lock();
        insert(&mut known.looked, MOST, place.clone(), Instant::now(), |at| *at);
        if let Some((Some(before), at)) = known.openness.get(place)
            && *before == access
            && at.elapsed() < LOOK_EVERY
        {
            return false;
        }
        insert(&mut known.openness, MOST, place.clone(), (Some(access), Instant::now()), |(_, at)| *at);
        true
    }

    /// Whether it is time to look again if a repository opens to anybody. Says yes once.
    pub(super) fn look_is_due(&self, place: &Place) -> bool {
        let mut known = self.lock();
        let due = known.looked.get(place).is_none_or(|at| at.elapsed() >= LOOK_EVERY);
        if due {
            insert(&mut known.looked, MOST, place.clone(), Instant::now(), |at| *at);
        }
        due
    }

    /// An upstream challenged who showed nothing.
    pub(super) fn challenged(&self, place: &Place) {
        insert(&mut self.lock().challenged, MOST, place.clone(), Instant::now(), |at| *at);
    }

    /// One gave what was asked for to who showed nothing.
    pub(super) fn unchallenged(&self, place: &Place) {
        self.lock().challenged.remove(place);
    }

    /// Whether who shows nothing would be challenged.
    pub(super) fn is_challenged(&self, place: &Place) -> bool {
        self.lock().challenged.get(place).is_some_and(|at| at.elapsed() < CHALLENGED_FOR)
    }

    /// A registry gave something of a repository to these credentials. Whether that should be written down.
    pub(super) fn opened(&self, place: &Place, grant: &Grant) -> bool {
        let mut known = self.lock();
        let key = (place.clone(), grant.id());
        let written = known.opened.get(&key).and_then(|(_, written)| *written);
        let due = written.is_none_or(|at| at.elapsed() >= LOOK_EVERY);
        let now = Instant::now();
        let entry = (now + OPENED_FOR, if due { Some(now) } else { written });
        insert(&mut known.opened, MOST, key, entry, |(until, _)| *until);
        due
    }

    /// These credentials opened it before, and nobody can be asked now.
    pub(super) fn let_in(&self, place: &Place, grant: &Grant) {
        let mut known = self.lock();
        let key = (place.clone(), grant.id());
        let written = known.opened.get(&key).and_then(|(_, written)| *written);
        insert(&mut known.opened, MOST, key, (Instant::now() + LET_IN_FOR, written), |(until, _)| *until);
    }

    /// The registry won't have these credentials there. What of others is written down with theirs is written anew.
    pub(super) fn closed(&self, place: &Place, grant: &Grant) {
        let mut known = self.lock();
        known.opened.remove(&(place.clone(), grant.id()));
        for (_, (_, written)) in known.opened.iter_mut().filter(|((of, _), _)| of == place) {
            *written = None;
        }
    }

    /// Whether these credentials opened it a moment ago.
    pub(super) fn has_opened(&self, place: &Place, grant: &Grant) -> bool {
        let key = (place.clone(), grant.id());
        self.lock().opened.get(&key).is_some_and(|(until, _)| *until > Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::upstream::Credentials;

    fn place(n: usize) -> Place {
        Place { registry: "r.test".parse().unwrap(), repository: format!("a{n}").parse().unwrap() }
    }

    fn alice() -> Grant {
        Grant::Credentials(Arc::new(Credentials::password("alice", "x").unwrap()))
    }

    #[test]
    fn what_opened_is_for_that_place_and_those_credentials() {
        let rights = Rights::default();
        assert!(!rights.has_opened(&place(1), &alice()));
        assert!(rights.opened(&place(1), &alice()), "to be written down");
        assert!(!rights.opened(&place(1), &alice()), "and not each time");
        assert!(rights.has_opened(&place(1), &alice()));
        assert!(!rights.has_opened(&place(2), &alice()));
        assert!(!rights.has_opened(&place(1), &Grant::Anonymous));
        rights.closed(&place(1), &alice());
        assert!(!rights.has_opened(&place(1), &alice()));
        assert!(rights.opened(&place(1), &alice()), "what was forgotten is written anew");
        rights.closed(&place(1), &Grant::Credentials(Arc::new(Credentials::password("mallory", "x").unwrap())));
        assert!(rights.has_opened(&place(1), &alice()), "another's refusal is none of hers");
        assert!(rights.opened(&place(1), &alice()), "what was forgotten with another's is written anew too");
    }

    #[test]
    fn openness_is_news_when_it_changes() {
        let rights = Rights::default();
        assert_eq!(rights.openness(&place(1)), None);
        assert_eq!(rights.load_openness(&place(1), Some(Access::Anonymous)), Some(Access::Anonymous));
        assert!(rights.learn_openness(&place(1), Access::Authorized));
        assert!(!rights.learn_openness(&place(1), Access::Authorized));
        assert_eq!(rights.load_openness(&place(1), Some(Access::Anonymous)), Some(Access::Authorized), "news stays");
        assert!(!rights.look_is_due(&place(1)));
        assert!(rights.look_is_due(&place(2)) && !rights.look_is_due(&place(2)));
    }

    #[test]
    fn bounded() {
        let rights = Rights::default();
        for n in 0..MOST + 10 {
            rights.challenged(&place(n));
            rights.opened(&place(n), &alice());
        }
        assert!(!rights.is_challenged(&place(0)) && rights.is_challenged(&place(MOST + 9)));
        assert_eq!(rights.lock().opened.len(), MOST);
    }
}
