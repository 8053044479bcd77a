use std::fmt;
use std::str::FromStr;

/// A version of containerd, without what a distribution or a pre-release hangs on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// 1 or 2.
    pub major: u16,
    /// The minor release.
    pub minor: u16,
    /// The patch.
    pub patch: u16,
}

/// What containerd says that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// As it says it: `1.6.20~ds1`, `v2.1.4-k3s1`.
    pub text: String,
    /// Parsed, where it has numbers in front.
    pub version: Option<Version>,
}

/// The text has no `major.minor.patch` in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a version is written major.minor.patch")]
pub struct InvalidVersion;

impl Version {
    /// From its three numbers.
    #[must_use]
    pub const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self { major, minor, patch }
    }
}

impl Release {
    pub(super) fn new(text: String) -> Self {
        let version = text.parse().ok();
        Self { text, version }
    }
}

impl FromStr for Version {
    type Err = InvalidVersion;

    /// Takes a leading `v`, and ignores what follows the patch.
    fn from_str(text: &str) -> Result<Self, InvalidVersion> {
        let mut numbers = text.strip_prefix('v').unwrap_or(text).splitn(3, '.');
        let mut next = |last: bool| {
            let part = numbers.next()?;
            let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            // Only the patch may have something behind it.
            (last || end == part.len()).then(|| part[..end].parse().ok()).flatten()
        };
        let version = (|| Some(Self::new(next(false)?, next(false)?, next(true)?)))();
        version.ok_or(InvalidVersion)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn as_distributions_write_them() {
        for (text, version) in [
            ("1.6.20~ds1", Version::new(1, 6, 20)),
            ("v2.1.4-k3s1", Version::new(2, 1, 4)),
            ("2.1.9+unknown", Version::new(2, 1, 9)),
            ("2.4.0-beta.0", Version::new(2, 4, 0)),
        ] {
            assert_eq!(text.parse(), Ok(version), "{text}");
        }
        for text in ["", "2", "2.1", "x.y.z", "2.1.", "2.1-rc.0", "99999.0.0", "301026e58.m"] {
            assert_eq!(text.parse::<Version>(), Err(InvalidVersion), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,20}") {
            let _ = text.parse::<Version>();
        }

        #[test]
        fn text_and_back(major: u16, minor: u16, patch: u16) {
            let version = Version::new(major, minor, patch);
            prop_assert_eq!(version.to_string().parse(), Ok(version));
        }
    }
}
