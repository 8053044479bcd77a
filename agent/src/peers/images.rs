use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use larder_proto::peers::images_client::ImagesClient;
use larder_proto::peers::{ImagesReply, ImagesRequest};
use tokio::time::{Instant, timeout, timeout_at};

use super::Inner;
use crate::image::NodeId;

/// Nodes that are asked at a time.
const AT_A_TIME: usize = 16;
/// For one node to answer.
const EACH: Duration = Duration::from_secs(3);
/// For all of them.
const ALL: Duration = Duration::from_secs(20);

/// What the other nodes said of the images that run there.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    /// Who answered, and what.
    pub replies: Vec<(NodeId, ImagesReply)>,
    /// Who didn't, and why.
    pub silent: Vec<(NodeId, String)>,
}

impl Inner {
    /// Asks every member once. Who doesn't answer isn't held to be failing: no pull waits for this.
    pub(super) async fn images(self: &Arc<Self>) -> Heard {
        let ring = self.ring();
        let mut waiting: Vec<NodeId> = ring.members().iter().map(|member| member.node).collect();
        waiting.retain(|node| *node != self.node);
        let mut heard = Heard::default();
        let ends = Instant::now() + ALL;
        let asked = waiting.clone().into_iter().map(|node| async move { (node, self.images_of(node).await) });
        let mut answers = stream::iter(asked).buffer_unordered(AT_A_TIME);
        while let Ok(Some((node, answer))) = timeout_at(ends, answers.next()).await {
            waiting.retain(|waits| *waits != node);
            match answer {
                Ok(reply) => heard.replies.push((node, reply)),
                Err(why) => heard.silent.push((node, why)),
            }
        }
        drop(answers);
        let late = format!("not asked, or no answer, within {} s for all", ALL.as_secs());
        heard.silent.extend(waiting.into_iter().map(|node| (node, late.clone())));
        heard
    }

    async fn images_of(&self, node: NodeId) -> Result<ImagesReply, String> {
        let (channel, introduced) = self.introduced(node).map_err(|e| e.to_string())?;
        let mut client = ImagesClient::with_interceptor(channel, introduced);
        match timeout(EACH, client.list(ImagesRequest {})).await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) if status.code() == tonic::Code::Unimplemented => {
                Err("its version doesn't tell".to_owned())
            }
            Ok(Err(status)) => Err(format!("{:?}: {}", status.code(), status.message())),
            Err(_) => Err("no answer in time".to_owned()),
        }
    }
}
