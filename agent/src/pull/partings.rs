use std::time::Duration;

use tokio::time::timeout;

use super::source::AtPeer;
use crate::image::NodeId;
use crate::peers::Parted;

/// Streams that are kept: more than one transfer reads from in its last seconds.
const MOST: usize = 8;
/// How long peers may take to say what they know of the whole; a little more than they wait themselves.
const SAID_WITHIN: Duration = Duration::from_millis(2500);

/// Streams of peers that brought all that was asked of them. What a peer knows of the whole it says at a stream's end,
/// which matters only when the digest doesn't hold here.
#[derive(Default)]
pub(super) struct Partings(Vec<AtPeer>);

impl Partings {
    /// Of each peer, the latest; of those, the latest.
    pub(super) fn keep(&mut self, stream: AtPeer) {
        self.0.retain(|known| known.node != stream.node);
        if self.0.len() >= MOST {
            self.0.remove(0);
        }
        self.0.push(stream);
    }

    /// What each says of the whole.
    pub(super) async fn ask(self) -> Vec<(NodeId, Parted)> {
        let asked = self.0.into_iter().map(|AtPeer { node, mut stream, .. }| async move {
            let said = timeout(SAID_WITHIN, async {
                while let Ok(Some(_)) = stream.frame().await {}
                stream.parted().await
            });
            (node, said.await.unwrap_or(Parted::Unknown))
        });
        futures_util::future::join_all(asked).await
    }
}
