use larder_proto::peers as proto;

use crate::cluster::chain::{Credential, Key, Ticket};
use crate::image::{Access, Digest, NodeId, Registry};
use crate::peers::Trace;

/// What in a message can't be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed: {0}")]
pub struct Malformed(pub &'static str);

impl From<Malformed> for tonic::Status {
    fn from(error: Malformed) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

pub(super) fn digest(text: &str) -> Result<Digest, Malformed> {
    text.parse().map_err(|_| Malformed("a digest"))
}

pub(super) fn registry(text: &str) -> Result<Registry, Malformed> {
    text.parse().map_err(|_| Malformed("a registry"))
}

pub(super) fn node(bytes: &[u8]) -> Result<NodeId, Malformed> {
    NodeId::try_from(bytes).map_err(|_| Malformed("a node"))
}

/// A node, or nothing where the field is empty.
pub(super) fn some_node(bytes: &[u8]) -> Result<Option<NodeId>, Malformed> {
    if bytes.is_empty() { Ok(None) } else { node(bytes).map(Some) }
}

/// Nodes; of more than `most`, the first.
pub(super) fn nodes(list: &[Vec<u8>], most: usize) -> Result<Vec<NodeId>, Malformed> {
    list.iter().take(most).map(|bytes| node(bytes)).collect()
}

pub(super) fn bytes_of(node: NodeId) -> Vec<u8> {
    node.as_bytes().to_vec()
}

/// What we don't know is for its own registry alone.
pub(super) const fn access(value: i32) -> Access {
    if value == proto::Access::Anonymous as i32 { Access::Anonymous } else { Access::Authorized }
}

pub(super) const fn access_of(access: Access) -> i32 {
    match access {
        Access::Anonymous => proto::Access::Anonymous as i32,
        Access::Authorized => proto::Access::Authorized as i32,
    }
}

pub(super) fn key(key: Option<proto::Key>) -> Result<Key, Malformed> {
    let key = key.ok_or(Malformed("no key"))?;
    Ok(Key { digest: digest(&key.digest)?, registry: registry(&key.registry)?, access: access(key.access) })
}

pub(super) fn key_of(key: &Key) -> Option<proto::Key> {
    let (digest, registry) = (key.digest.to_string(), key.registry.to_string());
    Some(proto::Key { digest, registry, access: access_of(key.access) })
}

pub(super) fn ticket(ticket: Option<proto::Ticket>) -> Option<Ticket> {
    ticket.map(|proto::Ticket { number, issuer }| Ticket { number, issuer })
}

pub(super) fn ticket_of(ticket: Option<Ticket>) -> Option<proto::Ticket> {
    ticket.map(|Ticket { number, issuer }| proto::Ticket { number, issuer })
}

/// A pull whose name can't stand in a log gets another one.
pub(super) fn trace(text: &str) -> Trace {
    text.parse().unwrap_or_default()
}

/// The one byte that says "whatever anybody gets".
const ANYBODY: u8 = 1;

pub(super) fn credential(bytes: &[u8]) -> Result<Credential, Malformed> {
    match bytes {
        [] => Ok(Credential::None),
        [ANYBODY] => Ok(Credential::Anonymous),
        hash => hash.try_into().map(Credential::Keyed).map_err(|_| Malformed("a hash of credentials")),
    }
}

pub(super) fn credential_of(credential: &Credential) -> Vec<u8> {
    match credential {
        Credential::None => Vec::new(),
        Credential::Anonymous => vec![ANYBODY],
        Credential::Keyed(hash) => hash.to_vec(),
    }
}

/// The names of upstreams, as far as they are fit for a log: at most `most`, each of at most 255 printable bytes.
pub(super) fn sources(list: Vec<String>, most: usize) -> Vec<String> {
    let is_fit = |name: &String| (1..=255).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
    list.into_iter().filter(is_fit).take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_there_and_back() {
        for one in [Credential::None, Credential::Anonymous, Credential::Keyed([7; 32])] {
            assert_eq!(credential(&credential_of(&one)), Ok(one));
        }
        assert!(credential(&[2]).is_err() && credential(&[1; 31]).is_err());
    }

    #[test]
    fn what_a_newer_version_says_of_access_opens_nothing() {
        for one in [Access::Anonymous, Access::Authorized] {
            assert_eq!(access(access_of(one)), one);
        }
        assert_eq!(access(0), Access::Authorized);
        assert_eq!(access(99), Access::Authorized);
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let proto = |digest: &str, registry: &str| {
            Some(proto::Key { digest: digest.to_owned(), registry: registry.to_owned(), access: 1 })
        };
        let good = Digest::of(b"").to_string();
        assert!(key(proto(&good, "docker.io")).is_ok());
        assert!(
            key(None).is_err() && key(proto("sha256:0", "docker.io")).is_err() && key(proto(&good, "a/b")).is_err()
        );
        assert!(some_node(&[]).unwrap().is_none() && node(&[0; 15]).is_err());
        assert_eq!(sources(vec!["a".to_owned(), "a\nb".to_owned(), "c".to_owned()], 1), ["a"]);
    }
}
