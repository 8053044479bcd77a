use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::{constant_time, hmac};
use zeroize::Zeroizing;

use super::bequest::{Bequest, Left};
use crate::image::Digest;
use crate::pull::Place;
use crate::upstream::Grant;

/// The most passes at a time; beyond, the one that was used least recently goes.
const MOST: usize = 4096;
/// A pass that nobody uses for so long is gone. containerd 1.6 keeps a token for as long as a pull takes.
const IDLE: Duration = Duration::from_secs(3600);
/// However much it is used, a pass is gone after this time.
const LIFE: Duration = Duration::from_secs(12 * 3600);
/// What is issued again for the same caller is the same pass, up to this age.
const SAME_FOR: Duration = Duration::from_secs(3600);
/// A redirect is followed at once, and a cut body is taken up through the first URL.
const SIGNATURE_LIFE: Duration = Duration::from_secs(60);

/// Who came to the token endpoint, and for what: in memory alone, like the credentials behind it.
///
/// A token is a pass's number and a hash of it under a key of this process, and of the one that takes over from it. The
/// same key signs redirects to plain HTTP, which stand for the pass that was shown before, for one blob.
pub(super) struct Passes {
    secret: Zeroizing<[u8; 32]>,
    key: hmac::Key,
    began: Instant,
    shelf: Mutex<Shelf>,
}

#[derive(Default)]
struct Shelf {
    by_number: HashMap<u64, Held>,
    numbers: HashMap<(Place, Grant), u64>,
    last: u64,
}

struct Held {
    place: Place,
    grant: Grant,
    made: Instant,
    used: Instant,
}

/// A pass that holds, for the place for which it was shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pass {
    number: u64,
    pub(super) grant: Grant,
}

impl Default for Passes {
    fn default() -> Self {
        Self::of(Zeroizing::new(rand::random()), Instant::now(), Shelf::default())
    }
}

impl Passes {
    fn of(secret: Zeroizing<[u8; 32]>, began: Instant, shelf: Shelf) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_slice());
        Self { secret, key, began, shelf: Mutex::new(shelf) }
    }

    /// What the process that takes over has to know for every token and every redirect of this one to hold there.
    pub(super) fn bequest(&self) -> Bequest {
        let (shelf, now) = (self.lock(), Instant::now());
        let passes = shelf.by_number.iter().filter(|(_, held)| held.holds(now)).map(|(&number, held)| Left {
            number,
            place: held.place.clone(),
            grant: held.grant.clone(),
            made: now - held.made,
            used: now - held.used,
        });
        let passes = passes.collect();
        Bequest { secret: self.secret.clone(), began: now - self.began, last: shelf.last, passes }
    }

    /// Goes on where another process has ended.
    pub(super) fn inherit(bequest: Bequest) -> Self {
        let now = Instant::now();
        let ago = |age| now.checked_sub(age).unwrap_or(now);
        let mut shelf = Shelf { last: bequest.last, ..Shelf::default() };
        for Left { number, place, grant, made, used } in bequest.passes.into_iter().take(MOST) {
            shelf.numbers.insert((place.clone(), grant.clone()), number);
            shelf.by_number.insert(number, Held { place, grant, made: ago(made), used: ago(used) });
        }
        Self::of(bequest.secret, ago(bequest.began), shelf)
    }

    /// A pass for one place.
    pub(super) fn issue(&self, place: &Place, grant: Grant) -> Pass {
        let mut shelf = self.lock();
        let now = Instant::now();
        let key = (place.clone(), grant);
        if let Some(&number) = shelf.numbers.get(&key)
            && let Some(held) = shelf.by_number.get_mut(&number)
            && held.holds(now)
            && now - held.made < SAME_FOR
        {
            held.used = now;
            return Pass { number, grant: key.1 };
        }
        shelf.make_room(now);
        shelf.last += 1;
        let number = shelf.last;
        let (place, grant) = key.clone();
        shelf.by_number.insert(number, Held { place, grant: grant.clone(), made: now, used: now });
        shelf.numbers.insert(key, number);
        Pass { number, grant }
    }

    /// What a caller is given to show the pass by.
    pub(super) fn token(&self, pass: &Pass) -> String {
        format!("{:x}.{}", pass.number, self.mac(&[b"token", &pass.number.to_le_bytes()]))
    }

    /// The pass that a token stands for, at a place.
    pub(super) fn admit(&self, token: &str, place: &Place) -> Option<Pass> {
        let (number, mac) = token.split_once('.')?;
        let number = u64::from_str_radix(number, 16).ok()?;
        self.is_mine(mac, &[b"token", &number.to_le_bytes()]).then(|| self.find(number, place)).flatten()
    }

    /// Signs a redirect: whoever follows it for this blob has shown `pass`, or nothing.
    pub(super) fn sign(&self, pass: Option<&Pass>, place: &Place, digest: &Digest) -> String {
        let number = pass.map_or(0, |pass| pass.number);
        let until = (self.began.elapsed() + SIGNATURE_LIFE).as_secs();
        format!("{number:x}.{until:x}.{}", self.mac_of_redirect(number, until, place, digest))
    }

    /// What a signature stands for: a pass, or nothing shown. `None` for what isn't ours, or is old.
    pub(super) fn follow(&self, signature: &str, place: &Place, digest: &Digest) -> Option<Option<Pass>> {
        let mut parts = signature.splitn(3, '.');
        let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
        let (number, until) = (number()?, number()?);
        let given = parts.next()?;
        let expected = self.mac_of_redirect(number, until, place, digest);
        let holds = constant_time::verify_slices_are_equal(given.as_bytes(), expected.as_bytes()).is_ok();
        if !holds || self.began.elapsed().as_secs() > until {
            return None;
        }
        if number == 0 { Some(None) } else { self.find(number, place).map(Some) }
    }

    fn find(&self, number: u64, place: &Place) -> Option<Pass> {
        let mut shelf = self.lock();
        let now = Instant::now();
        let held = shelf.by_number.get_mut(&number).filter(|held| held.holds(now) && held.place == *place)?;
        held.used = now;
        Some(Pass { number, grant: held.grant.clone() })
    }

    fn mac_of_redirect(&self, number: u64, until: u64, place: &Place, digest: &Digest) -> String {
        let numbers = [number.to_le_bytes(), until.to_le_bytes()].concat();
        let parts = [place.registry.as_str(), place.repository.as_str(), &digest.to_string()].join("\0");
        self.mac(&[b"redirect", &numbers, parts.as_bytes()])
    }

    fn is_mine(&self, mac: &str, parts: &[&[u8]]) -> bool {
        constant_time::verify_slices_are_equal(mac.as_bytes(), self.mac(parts).as_bytes()).is_ok()
    }

    /// In hexadecimal. All parts but the last are of a fixed length for what they are used for.
    fn mac(&self, parts: &[&[u8]]) -> String {
        use std::fmt::Write as _;
        let mut context = hmac::Context::with_key(&self.key);
        parts.iter().for_each(|part| context.update(part));
        let mut hex = String::with_capacity(64);
        for byte in context.sign().as_ref() {
            // Writing to a `String` never fails.
            let _ = write!(hex, "{byte:02x}");
        }
        hex
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn holds(&self, now: Instant) -> bool {
        now - self.used < IDLE && now - self.made < LIFE
    }
}

impl Shelf {
    fn make_room(&mut self, now: Instant) {
        self.by_number.retain(|_, held| held.holds(now));
        if self.by_number.len() >= MOST
            && let Some(oldest) = self.by_number.iter().min_by_key(|(_, held)| held.used).map(|(number, _)| *number)
        {
            self.by_number.remove(&oldest);
        }
        let Self { by_number, numbers, .. } = self;
        numbers.retain(|_, number| by_number.contains_key(number));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::upstream::Credentials;

    fn place(repository: &str) -> Place {
        Place { registry: "ghcr.io".parse().unwrap(), repository: repository.parse().unwrap() }
    }

    fn alice() -> Grant {
        Grant::Credentials(Arc::new(Credentials::password("alice", "x").unwrap()))
    }

    #[test]
    fn a_token_opens_its_place_alone() {
        let passes = Passes::default();
        let token = passes.token(&passes.issue(&place("acme/app"), alice()));
        assert_eq!(passes.admit(&token, &place("acme/app")).unwrap().grant, alice());
        assert_eq!(passes.admit(&token, &place("acme/other")), None);
        assert_eq!(Passes::default().admit(&token, &place("acme/app")), None, "another process's");
        let forged = token.replacen('1', "2", 1);
        for wrong in ["", ".", "1", "1.", &forged, &token[..token.len() - 1]] {
            assert_eq!(passes.admit(wrong, &place("acme/app")), None, "{wrong}");
        }
    }

    #[test]
    fn the_same_caller_has_the_same_pass() {
        let passes = Passes::default();
        assert_eq!(passes.issue(&place("a"), alice()), passes.issue(&place("a"), alice()));
        assert_ne!(passes.issue(&place("a"), alice()), passes.issue(&place("a"), Grant::Anonymous));
        assert_ne!(passes.issue(&place("a"), alice()), passes.issue(&place("b"), alice()));
    }

    #[test]
    fn a_signature_is_for_one_blob() {
        let passes = Passes::default();
        let pass = passes.issue(&place("a"), alice());
        let (one, other) = (Digest::of(b"1"), Digest::of(b"2"));
        let signature = passes.sign(Some(&pass), &place("a"), &one);
        assert_eq!(passes.follow(&signature, &place("a"), &one), Some(Some(pass)));
        assert_eq!(passes.follow(&signature, &place("a"), &other), None);
        assert_eq!(passes.follow(&signature, &place("b"), &one), None);
        let nobody = passes.sign(None, &place("a"), &one);
        assert_eq!(passes.follow(&nobody, &place("a"), &one), Some(None));
        // Longer, or as somebody, by the hand of who was given it.
        let parts: Vec<&str> = nobody.split('.').collect();
        for forged in [format!("1.{}.{}", parts[1], parts[2]), format!("0.ffffffff.{}", parts[2])] {
            assert_eq!(passes.follow(&forged, &place("a"), &one), None);
        }
        for wrong in ["", "..", "0.0", "0.0.0", "x.y.z"] {
            assert_eq!(passes.follow(wrong, &place("a"), &one), None, "{wrong}");
        }
    }

    #[test]
    fn what_one_process_gave_holds_with_the_next() {
        let passes = Passes::default();
        let pass = passes.issue(&place("a"), alice());
        let (token, blob) = (passes.token(&pass), Digest::of(b"1"));
        let signature = passes.sign(Some(&pass), &place("a"), &blob);
        let text = passes.bequest().text();
        assert_eq!(Bequest::parse(&text[1..]).err(), Some(()));
        let next = Passes::inherit(Bequest::parse(&text).unwrap());
        assert_eq!(next.admit(&token, &place("a")).unwrap().grant, alice());
        assert_eq!(next.admit(&token, &place("b")), None);
        assert_eq!(next.follow(&signature, &place("a"), &blob), Some(Some(pass.clone())));
        assert_eq!(next.issue(&place("a"), alice()), pass);
        assert_ne!(next.issue(&place("b"), alice()).number, pass.number);
    }

    #[test]
    fn bounded() {
        let passes = Passes::default();
        let first = passes.token(&passes.issue(&place("first"), Grant::Anonymous));
        for i in 0..MOST {
            passes.issue(&place(&format!("a{i}")), Grant::Anonymous);
        }
        assert_eq!(passes.admit(&first, &place("first")), None);
        let shelf = passes.lock();
        assert_eq!((shelf.by_number.len(), shelf.numbers.len()), (MOST, MOST));
    }
}
