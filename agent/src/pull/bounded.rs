use std::collections::HashMap;
use std::hash::Hash;
use std::time::Instant;

/// Puts an entry into a map that is to have no more than `most`: beyond, the one with the earliest time goes.
pub(super) fn insert<K: Hash + Eq + Clone, V>(
    map: &mut HashMap<K, V>,
    most: usize,
    key: K,
    value: V,
    at: impl Fn(&V) -> Instant,
) {
    if map.len() >= most && !map.contains_key(&key) {
        let oldest = map.iter().min_by_key(|(_, value)| at(value)).map(|(key, _)| key.clone());
        oldest.map(|key| map.remove(&key));
    }
    map.insert(key, value);
}
