use std::sync::Arc;

use larder_proto::peers as proto;

use super::Inner;
use super::messages::{self, Malformed};
use crate::cluster::checks::bucket_of_registry;
use crate::cluster::directory::TagAnswer;
use crate::image::NodeId;

/// The part of the directory that this node owns, in the words of the wire: for the door that others come to.
#[derive(Debug, Clone)]
pub struct Directory(Arc<Inner>);

impl Directory {
    pub(super) const fn new(inner: Arc<Inner>) -> Self {
        Self(inner)
    }

    /// Where `from` gets a blob from.
    ///
    /// # Errors
    /// When the question makes no sense.
    pub async fn ask(&self, from: NodeId, request: proto::AskRequest) -> Result<proto::AskReply, Malformed> {
        let (ask, pull) = messages::ask(request)?;
        Ok(messages::answered_of(self.0.directory.ask(from, &ask, &pull).await))
    }

    /// How far `from` is.
    ///
    /// # Errors
    /// When the report makes no sense.
    pub fn report(&self, from: NodeId, request: proto::ReportRequest) -> Result<proto::ReportReply, Malformed> {
        let report = messages::report(request)?;
        Ok(messages::verdict_of(self.0.directory.report(from, &report)))
    }

    /// What `from` holds.
    ///
    /// # Errors
    /// When it makes no sense, or is too much.
    pub fn announce(&self, from: NodeId, request: proto::AnnounceRequest) -> Result<proto::AnnounceReply, Malformed> {
        let shelves = messages::shelves(request)?;
        Ok(messages::announced_of(&self.0.directory.announce(from, shelves)))
    }

    /// Whether an upstream sent wrong bytes to any node, or that it did to `from`.
    ///
    /// # Errors
    /// When its name makes no sense.
    pub fn suspect(&self, from: NodeId, request: proto::SuspectRequest) -> Result<proto::SuspectReply, Malformed> {
        let (upstream, broke) = messages::suspect(request)?;
        Ok(proto::SuspectReply { is_suspect: self.0.directory.suspect(from, &upstream, broke) })
    }

    /// What `from` runs, and wants to be whole on several nodes.
    ///
    /// # Errors
    /// When it makes no sense, or is too much.
    pub fn want(&self, from: NodeId, request: proto::WantRequest) -> Result<(), Malformed> {
        self.0.copies_wanted(from, messages::want(request)?);
        Ok(())
    }

    /// What a tag means, or whose turn it is to ask. Held while another asks, for two seconds at most.
    ///
    /// # Errors
    /// When the question makes no sense.
    pub async fn ask_tag(&self, from: NodeId, request: proto::TagRequest) -> Result<proto::TagReply, Malformed> {
        let (ask, pull) = messages::tag_ask(request)?;
        Ok(messages::tag_answer_of(&self.0.tag_asked(from, &ask, &pull).await))
    }

    /// What upstream said of a tag to `from`, which was to ask; or what the tag's first owner was told.
    ///
    /// # Errors
    /// When it makes no sense.
    pub async fn report_tag(&self, from: NodeId, report: proto::TagReport) -> Result<(), Malformed> {
        let (key, lease, meaning) = messages::tag_report(report)?;
        self.0.tag_reported(from, &key, lease, meaning).await;
        Ok(())
    }

    /// `from`, which was to ask what a tag means, still does.
    ///
    /// # Errors
    /// When it makes no sense.
    pub fn still_asks_tag(&self, from: NodeId, report: proto::TagReport) -> Result<(), Malformed> {
        let (key, lease, _) = messages::tag_report(report)?;
        self.0.directory.still_asks_tag(from, &key, lease.ok_or(Malformed("no lease"))?);
        Ok(())
    }

    /// The newest that is known of a tag.
    ///
    /// # Errors
    /// When the question makes no sense.
    pub async fn newest_tag(&self, request: proto::TagRequest) -> Result<proto::TagReply, Malformed> {
        let (ask, _) = messages::tag_ask(request)?;
        let newest = self.0.newest_tag(&ask.key).await;
        Ok(messages::tag_answer_of(&newest.map_or(TagAnswer::Alone, TagAnswer::Meaning)))
    }

    /// What a registry said to `from` of who may pull what.
    ///
    /// # Errors
    /// When it makes no sense.
    pub async fn tell_right(&self, from: NodeId, told: &proto::RightTold) -> Result<(), Malformed> {
        let (opener, right) = messages::right_told(told)?;
        self.0.right_told(from, opener, right).await;
        Ok(())
    }

    /// What was told last of who may pull what.
    ///
    /// # Errors
    /// When the question makes no sense.
    pub async fn right(&self, request: &proto::RightRequest) -> Result<proto::RightReply, Malformed> {
        let opener = messages::right_request(request)?;
        Ok(messages::right_kept_of(self.0.right_kept(&opener).await))
    }

    /// What `from` says of its images, and what is known of them here.
    ///
    /// # Errors
    /// When it makes no sense, or is too much.
    pub fn watch(&self, from: NodeId, request: proto::WatchRequest) -> Result<proto::WatchReply, Malformed> {
        let watched = messages::watch(request)?;
        Ok(messages::standings_of(&self.0.watched_by(from, watched)))
    }

    /// Whether a registry may be asked after images now.
    ///
    /// # Errors
    /// When the question makes no sense.
    pub async fn grant_checks(&self, request: &proto::GrantRequest) -> Result<proto::GrantReply, Malformed> {
        let (registry, wanted) = messages::grant_ask(request)?;
        let answer = self.0.grant_checks(&registry, wanted).await;
        Ok(messages::granted_of(answer, self.0.ring().owners(bucket_of_registry(&registry)).first))
    }

    /// The book of a registry's budget, for `from`, which owns it now.
    ///
    /// # Errors
    /// When the question makes no sense.
    pub async fn hand_over(
        &self,
        from: NodeId,
        request: &proto::HandOverRequest,
    ) -> Result<proto::HandOverReply, Malformed> {
        let registry = messages::hand_over_ask(request)?;
        // Only who owns it as seen from here too: a book that is given to another is lost.
        let is_owner = self.0.ring().owners(bucket_of_registry(&registry)).first == Some(from);
        let ages = if is_owner { self.0.grants.hand_over(&registry).await } else { None };
        Ok(messages::book_of(ages.as_deref()))
    }
}
