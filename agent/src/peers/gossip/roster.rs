use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cluster::Member;
use crate::image::NodeId;

/// At most so many are remembered: any of them knows the others.
const MOST: usize = 1024;
/// For how long one that is down is remembered.
const FOR: Duration = Duration::from_secs(3600);
/// Larger than any that we write.
const FILE_MAX: u64 = 256 << 10;
const NAME: &str = "members";

/// The members that were up lately. They are where to look for the cluster, besides the seeds, and nothing else: none of
/// them is a member before it has spoken.
#[derive(Debug, Default)]
pub(super) struct Roster {
    members: BTreeMap<NodeId, Entry>,
    has_changed: bool,
}

#[derive(Debug)]
struct Entry {
    addr: SocketAddr,
    presence: Presence,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Up,
    /// Nobody knows why it is gone; since when.
    Lost(Duration),
    /// It said good-bye; when.
    Left(Duration),
}

impl Presence {
    /// Since when it is down.
    const fn down(self) -> Option<Duration> {
        match self {
            Self::Up => None,
            Self::Lost(since) | Self::Left(since) => Some(since),
        }
    }
}

/// What is on the disk.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Page {
    /// The number of the last process's start.
    pub(super) start: u64,
    members: Vec<(String, SocketAddr)>,
    /// Which of them had said good-bye.
    #[serde(default)]
    left: BTreeSet<String>,
}

impl Roster {
    /// The one that an earlier process wrote.
    pub(super) fn new(page: Page, now: Duration) -> Self {
        let members = page.members.into_iter().take(MOST);
        let members = members.filter_map(|(node, addr)| {
            let presence = if page.left.contains(&node) { Presence::Left(now) } else { Presence::Lost(now) };
            Some((node.parse().ok()?, Entry { addr, presence }))
        });
        Self { members: members.collect(), has_changed: true }
    }

    pub(super) fn up(&mut self, member: &Member) {
        if self.members.len() >= MOST && !self.members.contains_key(&member.node) {
            let Some(gone) =
                self.members.iter().find(|(_, entry)| entry.presence != Presence::Up).map(|(node, _)| *node)
            else {
                return;
            };
            self.members.remove(&gone);
        }
        let entry = Entry { addr: member.addr, presence: Presence::Up };
        let before = self.members.insert(member.node, entry);
        let is_as_before = |before: Entry| before.addr == member.addr && !matches!(before.presence, Presence::Left(_));
        self.has_changed |= !before.is_some_and(is_as_before);
    }

    pub(super) fn down(&mut self, member: &Member, now: Duration) {
        if let Some(entry) = self.members.get_mut(&member.node) {
            entry.presence = Presence::Lost(now);
        }
    }

    pub(super) fn left(&mut self, member: &Member, now: Duration) {
        if let Some(entry) = self.members.get_mut(&member.node) {
            entry.presence = Presence::Left(now);
            self.has_changed = true;
        }
    }

    /// Forgets who has been down for too long.
    pub(super) fn forget(&mut self, now: Duration) {
        let before = self.members.len();
        self.members.retain(|_, entry| entry.presence.down().is_none_or(|down| now < down + FOR));
        self.has_changed |= self.members.len() != before;
    }

    /// Where those were that are not up.
    pub(super) fn missing(&self) -> impl Iterator<Item = SocketAddr> {
        self.members.values().filter(|entry| entry.presence != Presence::Up).map(|entry| entry.addr)
    }

    /// How many went without a word.
    pub(super) fn lost(&self) -> usize {
        self.members.values().filter(|entry| matches!(entry.presence, Presence::Lost(_))).count()
    }

    /// What to write down, if it is other than the last time.
    pub(super) fn changed(&mut self, start: u64) -> Option<Page> {
        std::mem::take(&mut self.has_changed).then(|| Page {
            start,
            members: self.members.iter().map(|(node, entry)| (node.to_string(), entry.addr)).collect(),
            left: {
                let left = self.members.iter().filter(|(_, entry)| matches!(entry.presence, Presence::Left(_)));
                left.map(|(node, _)| node.to_string()).collect()
            },
        })
    }
}

impl Page {
    /// Reads what is in the folder `dir`. What isn't there, or is no roster, is an empty one. Blocks on the disk.
    ///
    /// # Errors
    /// When there is something that can't be read.
    pub(super) fn read(dir: &Path) -> io::Result<Self> {
        let mut text = String::new();
        match File::open(dir.join(NAME)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            file => file?.take(FILE_MAX).read_to_string(&mut text)?,
        };
        Ok(serde_json::from_str(&text)?)
    }

    /// Writes it there, all of it or nothing. Blocks on the disk.
    ///
    /// # Errors
    /// When it can't be written.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let new = dir.join(format!("{NAME}.new"));
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_data()?;
        fs::rename(new, dir.join(NAME))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(number: usize) -> Member {
        let mut node = [0; 16];
        node[..8].copy_from_slice(&number.to_be_bytes());
        Member {
            node: NodeId::new(node),
            addr: SocketAddr::from(([10, 0, 0, 1], 1 + u16::try_from(number).unwrap())),
            zone: "".parse().unwrap(),
            start: 1,
            settled: true,
        }
    }

    #[test]
    fn what_is_written_is_read_and_damage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Page::read(dir.path()).unwrap().start, 0);
        let mut roster = Roster::default();
        roster.up(&member(1));
        roster.changed(77).unwrap().write(dir.path()).unwrap();
        assert!(roster.changed(77).is_none(), "nothing has changed");
        let page = Page::read(dir.path()).unwrap();
        assert_eq!(page.start, 77);
        let read = Roster::new(page, Duration::ZERO);
        assert_eq!(read.missing().collect::<Vec<_>>(), [member(1).addr]);
        assert_eq!(read.lost(), 1);

        // Who said good-bye is looked for too, and is no loss, also to the next process.
        roster.left(&member(1), Duration::ZERO);
        roster.changed(78).unwrap().write(dir.path()).unwrap();
        let read = Roster::new(Page::read(dir.path()).unwrap(), Duration::ZERO);
        assert_eq!((read.missing().count(), read.lost(), roster.lost()), (1, 0, 0));
        roster.up(&member(1));
        assert!(roster.changed(79).unwrap().left.is_empty());

        fs::write(dir.path().join(NAME), "{\"start\": 1, \"mem").unwrap();
        assert!(Page::read(dir.path()).is_err());
    }

    #[test]
    fn it_keeps_to_its_bound_and_prefers_who_is_up() {
        let mut roster = Roster::default();
        for number in 0..MOST {
            roster.up(&member(number));
        }
        roster.up(&member(MOST));
        assert_eq!(roster.members.len(), MOST);
        assert!(!roster.members.contains_key(&member(MOST).node));
        roster.down(&member(3), Duration::ZERO);
        roster.up(&member(MOST));
        assert!(roster.members.contains_key(&member(MOST).node) && !roster.members.contains_key(&member(3).node));
        // All of it, with the longest addresses, is still read.
        let addr = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().unwrap();
        let presence = Presence::Left(Duration::ZERO);
        roster.members.values_mut().for_each(|entry| *entry = Entry { addr, presence });
        let bytes = serde_json::to_vec(&roster.changed(u64::MAX).unwrap()).unwrap();
        assert!(bytes.len() as u64 <= FILE_MAX, "{} bytes", bytes.len());
    }

    #[test]
    fn the_dead_are_forgotten_after_an_hour() {
        let mut roster = Roster::default();
        roster.up(&member(1));
        roster.up(&member(2));
        roster.down(&member(1), Duration::from_secs(10));
        roster.forget(Duration::from_secs(3609));
        assert_eq!(roster.missing().count(), 1);
        roster.forget(Duration::from_secs(3610));
        assert_eq!((roster.missing().count(), roster.members.len()), (0, 1));
    }
}
