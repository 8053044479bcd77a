//! What a mirror leaves to the process that takes over from it, from memory to memory.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::image::{Registry, Repository};
use crate::pull::Place;
use crate::upstream::{Credentials, Grant};

/// Tells it from that of another version, whose passes are then not known: whoever shows one is asked for another.
const VERSION: &[u8] = b"passes 1\n";

/// The most that a mirror leaves behind, in bytes: as many passes as it may have, with passwords of half a kilobyte.
pub const MOST_LEFT: usize = 2 << 20;

/// The passes, and the key by which they are known.
pub(super) struct Bequest {
    pub(super) secret: Zeroizing<[u8; 32]>,
    /// How long ago the time began that signatures go by.
    pub(super) began: Duration,
    /// The number of the last pass.
    pub(super) last: u64,
    pub(super) passes: Vec<Left>,
}

/// One pass; its ages.
pub(super) struct Left {
    pub(super) number: u64,
    pub(super) place: Place,
    pub(super) grant: Grant,
    pub(super) made: Duration,
    pub(super) used: Duration,
}

/// As it is written. Secrets are overwritten when it is dropped.
#[derive(Serialize, Deserialize)]
struct Written {
    secret: Zeroizing<[u8; 32]>,
    began: Duration,
    last: u64,
    passes: Vec<WrittenPass>,
}

#[derive(Serialize, Deserialize)]
struct WrittenPass {
    number: u64,
    registry: Registry,
    repository: Repository,
    grant: WrittenGrant,
    made: Duration,
    used: Duration,
}

#[derive(Serialize, Deserialize)]
enum WrittenGrant {
    None,
    Anonymous,
    Password(String, Zeroizing<String>),
    Identity(Zeroizing<String>),
}

impl Bequest {
    /// As bytes, for another process of this agent and nobody else.
    pub(super) fn text(self) -> Zeroizing<Vec<u8>> {
        let Self { secret, began, last, passes } = self;
        let passes = passes.into_iter().map(WrittenPass::from).collect();
        // Of a fixed size: what grows leaves copies of secrets behind.
        let mut text = Zeroizing::new(vec![0; MOST_LEFT]);
        text[..VERSION.len()].copy_from_slice(VERSION);
        // Without room for all, nothing is left: whoever shows a pass is asked for another.
        let written = postcard::to_slice(&Written { secret, began, last, passes }, &mut text[VERSION.len()..]);
        let length = written.map_or(0, |written| VERSION.len() + written.len());
        text.truncate(length);
        text
    }

    /// Reads it; fails for what another version has written.
    pub(super) fn parse(text: &[u8]) -> Result<Self, ()> {
        let written = text.strip_prefix(VERSION).ok_or(())?;
        let Written { secret, began, last, passes } = postcard::from_bytes(written).map_err(|_| ())?;
        Ok(Self { secret, began, last, passes: passes.into_iter().filter_map(WrittenPass::read).collect() })
    }
}

impl From<Left> for WrittenPass {
    fn from(left: Left) -> Self {
        let Left { number, place, grant, made, used } = left;
        let grant = match &grant {
            Grant::None => WrittenGrant::None,
            // No caller is the agent.
            Grant::Anonymous | Grant::Own(_) => WrittenGrant::Anonymous,
            Grant::Credentials(credentials) => match credentials.exposed() {
                (Some(name), password) => WrittenGrant::Password(name.to_owned(), password.to_owned().into()),
                (None, token) => WrittenGrant::Identity(token.to_owned().into()),
            },
        };
        let Place { registry, repository } = place;
        Self { number, registry, repository, grant, made, used }
    }
}

impl WrittenPass {
    fn read(self) -> Option<Left> {
        let Self { number, registry, repository, grant, made, used } = self;
        let grant = match grant {
            WrittenGrant::None => Grant::None,
            WrittenGrant::Anonymous => Grant::Anonymous,
            WrittenGrant::Password(name, password) => {
                Grant::Credentials(Arc::new(Credentials::password(&name, &password)?))
            }
            WrittenGrant::Identity(token) => Grant::Credentials(Arc::new(Credentials::identity_token(&token)?)),
        };
        Some(Left { number, place: Place { registry, repository }, grant, made, used })
    }
}
