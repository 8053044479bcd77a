//! The nodes of a cluster.

use std::fmt;
use std::str::FromStr;

/// The longest name of a zone, in bytes: Kubernetes' bound on a label's value.
const ZONE_MAX: usize = 63;

/// A node, by a random number that it keeps for as long as its cache's folder.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId([u8; 16]);

impl NodeId {
    /// The node of these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl TryFrom<&[u8]> for NodeId {
    type Error = InvalidNode;

    fn try_from(bytes: &[u8]) -> Result<Self, InvalidNode> {
        Ok(Self(bytes.try_into().map_err(|_| InvalidNode)?))
    }
}

impl FromStr for NodeId {
    type Err = InvalidNode;

    /// Reads 32 hexadecimal digits, as [`fmt::Display`] writes them.
    fn from_str(text: &str) -> Result<Self, InvalidNode> {
        let is_canonical = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let number = is_canonical.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        number.map(|number| Self(number.to_be_bytes())).ok_or(InvalidNode)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What isn't a node's number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a node: 16 bytes, or 32 hexadecimal digits")]
pub struct InvalidNode;

/// Where a node stands: what is near is read from first. Empty where nobody says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Zone(String);

impl Zone {
    /// Its name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Zone {
    type Err = InvalidZone;

    fn from_str(text: &str) -> Result<Self, InvalidZone> {
        let is_valid = text.len() <= ZONE_MAX && text.bytes().all(|b| b.is_ascii_graphic());
        if is_valid { Ok(Self(text.to_owned())) } else { Err(InvalidZone) }
    }
}

/// What isn't a zone's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a zone: at most 63 printable ASCII characters, without spaces")]
pub struct InvalidZone;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_node_is_read_as_it_is_written(bytes in any::<[u8; 16]>()) {
            let node = NodeId::new(bytes);
            prop_assert_eq!(node.to_string().parse(), Ok(node));
            prop_assert_eq!(NodeId::try_from(bytes.as_slice()), Ok(node));
        }

        #[test]
        fn nothing_else_is_a_node(text in ".{0,40}") {
            if let Ok(node) = text.parse::<NodeId>() {
                prop_assert_eq!(node.to_string(), text);
            }
        }
    }

    #[test]
    fn zones_have_bounds() {
        assert!("eu-west-1a".parse::<Zone>().is_ok());
        assert!("".parse::<Zone>().is_ok());
        assert!("a b".parse::<Zone>().is_err());
        assert!("x".repeat(64).parse::<Zone>().is_err());
    }
}
