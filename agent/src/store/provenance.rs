use serde::{Deserialize, Serialize};

use crate::image::{Access, Registry};

/// How many deliveries are remembered for a blob. Forgetting one is safe: it is asked for again.
const MOST: usize = 8;

/// Which registries delivered a blob, and to whom.
///
/// Empty for a blob of which nothing is known (found on disk, say): it may be given to nobody until a registry has
/// confirmed it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance(Vec<(Registry, Access)>);

impl Provenance {
    /// Whether a blob that is asked for under `registry`'s name may be given: anyone may have what some registry gave
    /// to an anonymous caller; what only ever arrived under authorization is for that same registry alone (whether the
    /// caller may have it there is for the caller of this to find out).
    #[must_use]
    pub fn may_be_given_for(&self, registry: &Registry) -> bool {
        self.0.iter().any(|(from, access)| *access == Access::Anonymous || from == registry)
    }

    /// Whether some registry gave it to an anonymous caller.
    #[must_use]
    pub fn is_public(&self) -> bool {
        self.0.iter().any(|(_, access)| *access == Access::Anonymous)
    }

    /// The deliveries remembered, the oldest first; at most eight.
    pub fn iter(&self) -> impl Iterator<Item = (&Registry, Access)> {
        self.0.iter().map(|(registry, access)| (registry, *access))
    }

    /// Takes over what another knows.
    pub(super) fn merge(&mut self, other: &Self) {
        for (registry, access) in other.iter() {
            self.add(registry, access);
        }
    }

    /// Takes note of a delivery; whether that was news.
    pub(super) fn add(&mut self, registry: &Registry, access: Access) -> bool {
        if let Some((_, known)) = self.0.iter_mut().find(|(from, _)| from == registry) {
            let news = access == Access::Anonymous && *known == Access::Authorized;
            if news {
                *known = access;
            }
            return news;
        }
        if self.0.len() >= MOST {
            // One anonymous delivery opens a blob for good, so that entry stays; and makes room for no narrower one.
            let oldest = self.0.iter().position(|(_, access)| *access == Access::Authorized);
            match oldest {
                Some(at) => drop(self.0.remove(at)),
                None => return false,
            }
        }
        self.0.push((registry.clone(), access));
        true
    }
}

impl FromIterator<(Registry, Access)> for Provenance {
    /// Of the deliveries of one registry, one to an anonymous caller is what counts.
    fn from_iter<I: IntoIterator<Item = (Registry, Access)>>(deliveries: I) -> Self {
        let mut provenance = Self::default();
        for (registry, access) in deliveries {
            provenance.add(&registry, access);
        }
        provenance
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn registry(n: u8) -> Registry {
        format!("r{n}.test").parse().unwrap()
    }

    #[test]
    fn private_content_stays_with_its_registry() {
        let mut provenance = Provenance::default();
        assert!(!provenance.may_be_given_for(&registry(1)), "unknown is for nobody");
        assert!(provenance.add(&registry(1), Access::Authorized));
        assert!(provenance.may_be_given_for(&registry(1)));
        assert!(!provenance.may_be_given_for(&registry(2)));
        assert!(provenance.add(&registry(3), Access::Anonymous));
        assert!(provenance.may_be_given_for(&registry(2)));
        assert!(!provenance.add(&registry(3), Access::Authorized), "an anonymous delivery is never narrowed");
        assert!(provenance.is_public());
    }

    proptest! {
        #[test]
        fn never_wider_than_what_happened(events in proptest::collection::vec((0u8..20, any::<bool>()), 0..60)) {
            let mut provenance = Provenance::default();
            for &(n, anonymous) in &events {
                provenance.add(&registry(n), if anonymous { Access::Anonymous } else { Access::Authorized });
            }
            let public = events.iter().any(|(_, anonymous)| *anonymous);
            prop_assert_eq!(provenance.is_public(), public);
            prop_assert!(provenance.iter().count() <= MOST);
            for n in 0..20 {
                let delivered = events.iter().any(|(from, _)| *from == n);
                prop_assert!(!provenance.may_be_given_for(&registry(n)) || public || delivered);
            }
        }
    }
}
