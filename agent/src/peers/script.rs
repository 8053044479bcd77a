//! A cluster that does what a test says, for those who obey one.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};

use super::{Failed, Head, Parted, Peer, PeerError, PeerStream, TagLease, TagMeaning, TagSought, TagTurn, Turn};
use crate::cluster::rights::{Kept, Right};
use crate::image::NodeId;

/// What is said to all who follow, and what they say. A cheap clone.
#[derive(Debug, Clone, Default)]
pub struct Script(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    turn: Turn,
    /// For when the present one fails.
    next: VecDeque<Turn>,
    /// For when so many bytes are there.
    at: Vec<(u64, Turn)>,
    broken: Vec<String>,
    told: Vec<Told>,
    tag: Option<TagMeaning>,
    known: Option<TagMeaning>,
    /// Upstreams that broke whatever elsewhere, and here.
    suspects: Vec<String>,
    /// Whether it is this node's turn to ask what a tag means.
    asks: bool,
    newest: Option<TagMeaning>,
    /// What was told of everybody, and of which peers' blobs it is known whose they are.
    kept: Option<Kept>,
    knowing: Vec<NodeId>,
}

impl Default for State {
    fn default() -> Self {
        let (next, at, broken, told, tag, known, suspects, newest) = Default::default();
        let (turn, asks, kept, knowing) = (Turn::Wait, false, None, Vec::new());
        Self { turn, next, at, broken, told, tag, known, suspects, asks, newest, kept, knowing }
    }
}

/// What a follow was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// In bytes.
    Size(u64),
    /// The frontier.
    Arrived(u64),
    /// What the turn named is no use.
    Failed(Failed),
    /// All is here.
    Whole,
    /// Wrong bytes, and whose.
    Broke(Vec<String>, Option<NodeId>),
    /// It was dropped.
    Left,
    /// What upstream said of a tag.
    Tag(TagMeaning),
    /// Upstream said nothing of it.
    TagReleased,
    /// What upstream said of credentials.
    Right(Right),
}

impl Script {
    /// From now on.
    pub fn turn(&self, turn: Turn) {
        self.change(|state| state.turn = turn);
    }

    /// When the turn before it fails.
    pub fn then(&self, turn: Turn) {
        self.change(|state| state.next.push_back(turn));
    }

    /// When so many bytes are there.
    pub fn at(&self, frontier: u64, turn: Turn) {
        self.change(|state| state.at.push((frontier, turn)));
    }

    /// Upstreams that broke the digest elsewhere.
    pub fn broken(&self, sources: &[&str]) {
        self.change(|state| state.broken = sources.iter().map(|&source| source.to_owned()).collect());
    }

    /// An upstream that broke some other digest elsewhere.
    pub fn suspect(&self, upstream: &str) {
        self.change(|state| state.suspects.push(upstream.to_owned()));
    }

    /// Whether an upstream broke something, here or elsewhere.
    pub fn is_suspect(&self, upstream: &str) -> bool {
        self.0.state.lock().unwrap().suspects.iter().any(|suspect| suspect == upstream)
    }

    /// What another was told of every tag.
    pub fn tag(&self, answer: TagMeaning) {
        self.change(|state| state.tag = Some(answer));
    }

    /// What the owner of every tag knows, and not as whom it was told.
    pub fn known(&self, answer: TagMeaning) {
        self.change(|state| state.known = Some(answer));
    }

    /// It is this node's turn to ask.
    pub fn asks(&self) {
        self.change(|state| state.asks = true);
    }

    /// What the owners of every tag know.
    pub fn newest(&self, answer: TagMeaning) {
        self.change(|state| state.newest = Some(answer));
    }

    /// What the cluster was told of everybody's credentials, everywhere, a minute ago.
    pub fn keeps(&self, right: Right) {
        self.change(|state| state.kept = Some(Kept { right, age: Duration::from_secs(60) }));
    }

    /// A peer that knows all that it has as of the repository that is asked about.
    pub fn knowing(&self, node: NodeId) {
        self.change(|state| state.knowing.push(node));
    }

    /// What all follows were told, in order.
    pub fn told(&self) -> Vec<Told> {
        self.0.state.lock().unwrap().told.clone()
    }

    pub(super) fn told_right(&self, right: Right) {
        self.tell(Told::Right(right));
    }

    pub(super) fn right(&self) -> Option<Kept> {
        self.0.state.lock().unwrap().kept
    }

    pub(super) fn knows(&self, node: NodeId) -> bool {
        self.0.state.lock().unwrap().knowing.contains(&node)
    }

    pub(super) fn told_suspect(&self, upstream: &str) {
        self.0.state.lock().unwrap().suspects.push(upstream.to_owned());
    }

    fn tell(&self, told: Told) {
        self.0.state.lock().unwrap().told.push(told);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.state.lock().unwrap());
        self.0.changed.send_replace(());
    }

    pub(super) fn follow(&self) -> Follow {
        let mut changed = self.0.changed.subscribe();
        changed.mark_unchanged();
        Follow { script: self.clone(), changed }
    }

    pub(super) fn tag_turn(&self, _sought: &TagSought) -> TagTurn {
        let state = self.0.state.lock().unwrap();
        match (&state.tag, &state.known) {
            (Some(answer), _) => TagTurn::Answer(answer.clone()),
            (None, Some(answer)) => TagTurn::Known(answer.clone()),
            (None, None) if state.asks => TagTurn::Ask(TagLease::scripted(Lease(Some(self.clone())))),
            (None, None) => TagTurn::Alone,
        }
    }

    pub(super) fn newest_answer(&self) -> Option<TagMeaning> {
        self.0.state.lock().unwrap().newest.clone()
    }
}

/// One that obeys a script.
#[derive(Debug)]
pub(super) struct Follow {
    script: Script,
    changed: watch::Receiver<()>,
}

impl Follow {
    pub(super) fn turn(&self) -> Turn {
        self.script.0.state.lock().unwrap().turn.clone()
    }

    pub(super) async fn changed(&mut self) {
        self.changed.changed().await.unwrap();
    }

    pub(super) fn broken_sources(&self) -> Vec<String> {
        self.script.0.state.lock().unwrap().broken.clone()
    }

    pub(super) fn arrived(&self, frontier: u64) {
        self.script.tell(Told::Arrived(frontier));
        let mut state = self.script.0.state.lock().unwrap();
        if let Some(reached) = state.at.iter().position(|(at, _)| *at <= frontier) {
            state.turn = state.at.remove(reached).1;
            drop(state);
            self.script.0.changed.send_replace(());
        }
    }

    pub(super) fn failed(&self, why: &Failed) {
        self.script.tell(Told::Failed(why.clone()));
        let next = self.script.0.state.lock().unwrap().next.pop_front();
        if let Some(next) = next {
            self.script.turn(next);
        }
    }

    pub(super) fn tell(&self, told: Told) {
        self.script.tell(told);
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.script.tell(Told::Left);
    }
}

/// A turn to ask what a tag means.
#[derive(Debug)]
pub(super) struct Lease(Option<Script>);

impl Lease {
    pub(super) fn told(mut self, answer: TagMeaning) {
        if let Some(script) = self.0.take() {
            script.tell(Told::Tag(answer));
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(script) = self.0.take() {
            script.tell(Told::TagReleased);
        }
    }
}

/// Opens what a scripted peer gives of a range.
type Open = dyn Fn(u64, Option<u64>) -> BoxFuture<'static, Result<PeerStream, PeerError>> + Send + Sync;

/// A peer that does what a test says.
#[derive(Clone)]
pub(super) struct Peering {
    open: Arc<Open>,
    opened: Arc<Mutex<Vec<Range<u64>>>>,
}

impl fmt::Debug for Peering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peering").field("opened", &self.opened).finish_non_exhaustive()
    }
}

impl Peering {
    pub(super) async fn open(&self, from: u64, to: Option<u64>) -> Result<PeerStream, PeerError> {
        self.opened.lock().unwrap().push(from..to.unwrap_or(u64::MAX));
        (self.open)(from, to).await
    }
}

impl Peer {
    /// One that gives what `open` opens.
    pub fn scripted(
        node: NodeId,
        open: impl Fn(u64, Option<u64>) -> BoxFuture<'static, Result<PeerStream, PeerError>> + Send + Sync + 'static,
    ) -> Self {
        Self::with_script(node, Peering { open: Arc::new(open), opened: Arc::default() })
    }

    /// What was asked of it; `u64::MAX` for the end of the blob.
    pub fn opened(&self) -> Vec<Range<u64>> {
        self.script().map(|peering| peering.opened.lock().unwrap().clone()).unwrap_or_default()
    }
}

/// A stream that a test fills.
#[derive(Debug)]
pub(super) struct Stream {
    frames: mpsc::Receiver<Result<Bytes, PeerError>>,
    parted: watch::Receiver<Parted>,
}

impl Stream {
    pub(super) async fn frame(&mut self) -> Result<Option<Bytes>, PeerError> {
        self.frames.recv().await.transpose()
    }

    pub(super) fn parted(&self) -> Parted {
        self.parted.borrow().clone()
    }
}

impl PeerStream {
    /// One with these frames, which parts as is last said.
    pub fn scripted(
        head: Head,
        frames: mpsc::Receiver<Result<Bytes, PeerError>>,
        parted: watch::Receiver<Parted>,
    ) -> Self {
        Self::with_script(head, Stream { frames, parted })
    }
}
