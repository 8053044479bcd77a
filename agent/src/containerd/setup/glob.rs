//! File patterns as Go's `filepath.Glob` has them, which containerd uses for `imports`.

use std::path::{Component, Path, PathBuf};

use super::Files;

/// The paths that match, in order. A malformed pattern matches nothing.
pub(super) fn expand(files: &impl Files, pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    for component in pattern.components() {
        let Component::Normal(part) = component else {
            for path in &mut found {
                path.push(component);
            }
            continue;
        };
        let part = part.to_string_lossy();
        if part.contains(['*', '?', '[', '\\']) {
            let within = |folder: &PathBuf| {
                let mut names = files.names(folder);
                names.sort();
                names.retain(|name| matches(&part, name));
                names.into_iter().map(|name| folder.join(name)).collect::<Vec<_>>()
            };
            found = found.iter().flat_map(within).collect();
        } else {
            for path in &mut found {
                path.push(&*part);
            }
        }
    }
    found.retain(|path| files.exists(path));
    found
}

/// Whether `name`, which has no slash, matches: `*` any run, `?` any character, `[a-z]` and `[^a-z]` one of a class,
/// a backslash takes the next character as it is.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Where to go on when a guess of how much the last star takes was wrong.
    let mut star = None;
    while n < name.len() {
        if pattern.get(p) == Some(&'*') {
            star = Some((p + 1, n));
            p += 1;
        } else if let Some(next) = one(&pattern[p..], name[n]) {
            (p, n) = (p + next, n + 1);
        } else if let Some((after, taken)) = star {
            star = Some((after, taken + 1));
            (p, n) = (after, taken + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

/// How many characters of the pattern matched this one character.
fn one(pattern: &[char], c: char) -> Option<usize> {
    match *pattern.first()? {
        '?' => Some(1),
        '\\' => (*pattern.get(1)? == c).then_some(2),
        '[' => {
            let negated = pattern.get(1) == Some(&'^');
            let mut at = if negated { 2 } else { 1 };
            let mut hit = false;
            let literal = |at: &mut usize| {
                if pattern.get(*at) == Some(&'\\') {
                    *at += 1;
                }
                let c = *pattern.get(*at)?;
                *at += 1;
                Some(c)
            };
            while *pattern.get(at)? != ']' {
                let low = literal(&mut at)?;
                let high = if pattern.get(at) == Some(&'-') {
                    at += 1;
                    literal(&mut at)?
                } else {
                    low
                };
                hit |= (low..=high).contains(&c);
            }
            (hit != negated).then_some(at + 1)
        }
        same => (same == c).then_some(1),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn as_go_matches() {
        for (pattern, name, expected) in [
            ("*.toml", "a.toml", true),
            ("*.toml", ".toml", true),
            ("*.toml", "a.tom", false),
            ("a*b*c", "aXbXbc", true),
            ("a*b*c", "aXbX", false),
            ("?.toml", "é.toml", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("[a-", "a", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("*", "", true),
            ("", "", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(pattern in "[a-c*?\\[\\]^\\\\-]{0,12}", name in "[a-c]{0,12}") {
            let _ = matches(&pattern, &name);
        }

        #[test]
        fn plain_names_match_themselves(name in "[a-z.]{0,12}") {
            prop_assert!(matches(&name, &name));
        }
    }
}
