//! Small calls to other nodes: owners of digests and tags.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder_proto::peers::checks_client::ChecksClient;
use larder_proto::peers::copies_client::CopiesClient;
use larder_proto::peers::directory_client::DirectoryClient;
use larder_proto::peers::tags_client::TagsClient;
use larder_proto::peers::{HandOverRequest, SuspectRequest};
use tokio::time::{Instant, timeout};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::Inner;
use super::messages;
use super::owner::held;
use crate::cluster::chain::Lease;
use crate::cluster::checks::{Answer, Standing, Watched};
use crate::cluster::copies::WantedCopies;
use crate::cluster::directory::{
    Announced, Answered, Ask, Report, Shelf, TagAnswer, TagAsk, TagKey, TagMeaning, Verdict,
};
use crate::image::{NodeId, Registry};
use crate::peers::Trace;
use crate::wire::Purpose;

/// An owner holds a question about a tag for a second and a half at most.
const HELD: Duration = Duration::from_millis(1800);
/// What is answered at once, over links that aren't full.
const AT_ONCE: Duration = Duration::from_millis(700);
/// What is late is waited for for so many times as long as it took to be late: its answer is taken if it comes.
const LATE_FOR: u32 = 2;
/// A set of holdings takes longer to say.
const ANNOUNCING: Duration = Duration::from_secs(5);
/// What was granted is written to two disks at the most before it is said.
const GRANTING: Duration = Duration::from_secs(15);
const HANDING_OVER: Duration = Duration::from_secs(3);
/// A node that failed is left alone for so long.
const LEFT_ALONE: Duration = Duration::from_secs(5);

/// Names the caller, where its certificate doesn't.
pub const NODE_HEADER: &str = "larder-node";

/// Why a call brought nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum CallError {
    /// It failed a moment ago.
    #[error("it is left alone, since it failed a moment ago")]
    LeftAlone,
    /// It isn't among the members.
    #[error("it is no member")]
    NoMember,
    /// No answer in time.
    #[error("no answer in time")]
    Late,
    /// It answered with an error, or couldn't be reached.
    #[error("{0}")]
    Failed(String),
}

/// The nodes that failed lately.
#[derive(Debug, Default)]
pub(super) struct Failing(Mutex<HashMap<NodeId, Instant>>);

impl Failing {
    fn is_left_alone(&self, node: NodeId) -> bool {
        let failing = held(&self.0);
        failing.get(&node).is_some_and(|until| *until > Instant::now())
    }

    fn failed(&self, node: NodeId) {
        let now = Instant::now();
        let mut failing = held(&self.0);
        failing.retain(|_, until| *until > now);
        failing.insert(node, now + LEFT_ALONE);
    }

    fn answered(&self, node: NodeId) {
        held(&self.0).remove(&node);
    }
}

/// Says in each call who calls.
#[derive(Clone)]
pub(super) struct Introduced(MetadataValue<Ascii>);

impl Introduced {
    pub(super) fn new(node: NodeId) -> Self {
        // Hexadecimal digits always are a header's value.
        Self(node.to_string().parse().unwrap_or_else(|_| MetadataValue::from_static("")))
    }
}

impl Interceptor for Introduced {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(NODE_HEADER, self.0.clone());
        Ok(request)
    }
}

/// A call under way whose time is taken; one that is dropped has no answer.
struct Measured<'a> {
    inner: &'a Inner,
    number: u64,
    has_answered: bool,
}

impl<'a> Measured<'a> {
    fn begin(inner: &'a Inner, node: NodeId) -> Self {
        let number = held(&inner.delays).asked(inner.now(), node);
        Self { inner, number, has_answered: false }
    }

    fn ended(mut self, has_answered: bool) {
        self.has_answered = has_answered;
    }
}

impl Drop for Measured<'_> {
    fn drop(&mut self) {
        held(&self.inner.delays).ended(self.inner.now(), self.number, self.has_answered);
    }
}

pub(super) type Introducing = InterceptedService<Channel, Introduced>;

impl Inner {
    /// A connection to a member. Driven by the main runtime, whoever asks for it.
    pub(super) fn channel(&self, node: NodeId, purpose: Purpose) -> Result<Channel, CallError> {
        let addr = self.ring().member(node).ok_or(CallError::NoMember)?.addr;
        let _main = self.runtime.enter();
        Ok(self.channels.to(node, addr, purpose))
    }

    pub(super) fn introduced(&self, node: NodeId) -> Result<(Channel, Introduced), CallError> {
        if self.failing.is_left_alone(node) {
            return Err(CallError::LeftAlone);
        }
        Ok((self.channel(node, Purpose::Small)?, Introduced::new(self.node)))
    }

    fn directory_of(&self, node: NodeId) -> Result<DirectoryClient<Introducing>, CallError> {
        let (channel, introduced) = self.introduced(node)?;
        Ok(DirectoryClient::with_interceptor(channel, introduced))
    }

    fn tags_of(&self, node: NodeId) -> Result<TagsClient<Introducing>, CallError> {
        let (channel, introduced) = self.introduced(node)?;
        Ok(TagsClient::with_interceptor(channel, introduced))
    }

    fn checks_of(&self, node: NodeId) -> Result<ChecksClient<Introducing>, CallError> {
        let (channel, introduced) = self.introduced(node)?;
        Ok(ChecksClient::with_interceptor(channel, introduced))
    }

    /// A call that is answered at once, if the links let it.
    pub(super) async fn at_once<T>(
        &self,
        node: NodeId,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CallError> {
        let measured = Measured::begin(self, node);
        let answered = self.within(node, AT_ONCE.max(self.late() * LATE_FOR), call).await;
        measured.ended(answered.is_ok());
        answered
    }

    async fn within<T>(
        &self,
        node: NodeId,
        deadline: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CallError> {
        match timeout(deadline, call).await {
            Ok(Ok(response)) => {
                self.failing.answered(node);
                Ok(response.into_inner())
            }
            Ok(Err(status)) => {
                // One that refuses what we say, or that is of another version, has answered: the next question may be another.
                if !matches!(status.code(), tonic::Code::InvalidArgument | tonic::Code::Unimplemented) {
                    self.failing.failed(node);
                    self.doubt(node);
                }
                Err(CallError::Failed(format!("{:?}: {}", status.code(), status.message())))
            }
            Err(_) => {
                self.failing.failed(node);
                self.doubt(node);
                Err(CallError::Late)
            }
        }
    }

    /// Asks an owner where a blob is. This node may be the owner.
    pub(super) async fn ask(&self, owner: NodeId, ask: &Ask, pull: &Trace) -> Result<Answered, CallError> {
        if owner == self.node {
            return Ok(self.directory.ask(owner, ask, pull).await);
        }
        let mut client = self.directory_of(owner)?;
        let reply = self.at_once(owner, client.ask(messages::ask_of(ask, pull))).await?;
        messages::answered(reply).map_err(|e| CallError::Failed(e.to_string()))
    }

    /// Tells an owner how far this node is.
    pub(super) async fn report(&self, owner: NodeId, report: &Report) -> Result<Verdict, CallError> {
        if owner == self.node {
            return Ok(self.directory.report(owner, report));
        }
        let mut client = self.directory_of(owner)?;
        let reply = self.at_once(owner, client.report(messages::report_of(report))).await?;
        Ok(messages::verdict(&reply))
    }

    /// Tells an owner what is held here.
    pub(super) async fn announce(&self, owner: NodeId, shelves: Vec<Shelf>) -> Result<Announced, CallError> {
        if owner == self.node {
            return Ok(self.directory.announce(owner, shelves));
        }
        let mut client = self.directory_of(owner)?;
        let reply = self.within(owner, ANNOUNCING, client.announce(messages::shelves_of(&shelves))).await?;
        messages::announced(&reply).map_err(|e| CallError::Failed(e.to_string()))
    }

    /// Tells a member what runs here, and is wanted on several nodes.
    pub(super) async fn want(&self, node: NodeId, images: &[WantedCopies]) -> Result<(), CallError> {
        let (channel, introduced) = self.introduced(node)?;
        let mut client = CopiesClient::with_interceptor(channel, introduced);
        self.within(node, AT_ONCE, client.want(messages::want_of(images))).await.map(drop)
    }

    /// Asks an owner of an upstream's name whether that one sent wrong bytes to any node; `broke`: to this one it did.
    pub(super) async fn ask_suspect(&self, owner: NodeId, upstream: &str, broke: bool) -> Result<bool, CallError> {
        if owner == self.node {
            return Ok(self.directory.suspect(owner, upstream, broke));
        }
        let mut client = self.directory_of(owner)?;
        let request = SuspectRequest { upstream: upstream.to_owned(), broke };
        Ok(self.at_once(owner, client.suspect(request)).await?.is_suspect)
    }

    /// Asks an owner what a tag means.
    pub(super) async fn ask_tag(&self, owner: NodeId, ask: &TagAsk, pull: &Trace) -> Result<TagAnswer, CallError> {
        if owner == self.node {
            return Ok(self.tag_asked(owner, ask, pull).await);
        }
        let mut client = self.tags_of(owner)?;
        let reply = self.within(owner, HELD, client.ask(messages::tag_ask_of(ask, pull))).await?;
        messages::tag_answer(reply).map_err(|e| CallError::Failed(e.to_string()))
    }

    /// Tells the owner that gave the lease what a tag means.
    pub(super) async fn report_tag(
        self: &Arc<Self>,
        owner: NodeId,
        key: &TagKey,
        lease: Lease,
        meaning: Option<TagMeaning>,
    ) -> Result<(), CallError> {
        if owner == self.node {
            self.tag_reported(owner, key, Some(lease), meaning).await;
            return Ok(());
        }
        let mut client = self.tags_of(owner)?;
        let report = messages::tag_report_of(key, Some(lease), meaning.as_ref());
        self.at_once(owner, client.report(report)).await.map(drop)
    }

    /// As the first owner: tells the second what a tag means.
    pub(super) async fn copy_tag(&self, second: NodeId, key: &TagKey, meaning: &TagMeaning) -> Result<(), CallError> {
        let mut client = self.tags_of(second)?;
        let report = messages::tag_report_of(key, None, Some(meaning));
        self.at_once(second, client.report(report)).await.map(drop)
    }

    /// Tells the owner that gave the lease that upstream is still being asked.
    pub(super) async fn still_ask_tag(&self, owner: NodeId, key: &TagKey, lease: Lease) -> Result<(), CallError> {
        if owner == self.node {
            self.directory.still_asks_tag(owner, key, lease);
            return Ok(());
        }
        let mut client = self.tags_of(owner)?;
        self.at_once(owner, client.asking(messages::tag_report_of(key, Some(lease), None))).await.map(drop)
    }

    /// Asks an owner what it last heard of a tag.
    pub(super) async fn newest_tag_of(
        &self,
        owner: NodeId,
        ask: &TagAsk,
        pull: &Trace,
    ) -> Result<Option<TagMeaning>, CallError> {
        if owner == self.node {
            return Ok(self.newest_tag(&ask.key).await);
        }
        let mut client = self.tags_of(owner)?;
        let reply = self.at_once(owner, client.newest(messages::tag_ask_of(ask, pull))).await?;
        match messages::tag_answer(reply) {
            Ok(TagAnswer::Meaning(meaning)) => Ok(Some(meaning)),
            Ok(_) => Ok(None),
            Err(e) => Err(CallError::Failed(e.to_string())),
        }
    }

    /// Asks the owner of a registry's budget for checks; and learns who it is, where this one isn't.
    pub(super) async fn ask_grant(
        &self,
        owner: NodeId,
        registry: &Registry,
        wanted: u32,
    ) -> Result<(Answer, Option<NodeId>), CallError> {
        if owner == self.node {
            return Ok((self.grant_checks(registry, wanted).await, None));
        }
        let mut client = self.checks_of(owner)?;
        let reply = self.within(owner, GRANTING, client.grant(messages::grant_ask_of(registry, wanted))).await?;
        messages::granted(&reply).map_err(|e| CallError::Failed(e.to_string()))
    }

    /// Asks the owner before for the book of a registry's budget.
    pub(super) async fn ask_hand_over(
        &self,
        before: NodeId,
        registry: &Registry,
    ) -> Result<Option<Vec<Duration>>, CallError> {
        let mut client = self.checks_of(before)?;
        let ask = HandOverRequest { registry: registry.to_string() };
        let reply = self.within(before, HANDING_OVER, client.hand_over(ask)).await?;
        Ok(messages::book(&reply))
    }

    /// Tells an owner of images what is known of them here.
    pub(super) async fn tell_watched(
        &self,
        owner: NodeId,
        watched: Vec<Watched>,
    ) -> Result<Vec<Option<Standing>>, CallError> {
        if owner == self.node {
            return Ok(self.watched_by(owner, watched));
        }
        let mut client = self.checks_of(owner)?;
        let reply = self.within(owner, AT_ONCE, client.watch(messages::watch_of(&watched))).await?;
        messages::standings(reply, watched.len()).map_err(|e| CallError::Failed(e.to_string()))
    }
}
