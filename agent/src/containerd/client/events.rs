//! containerd's events: what of its images, containers, tasks and content has changed.

use std::fmt;

use containerd_client::events::{TaskCreate, TaskDelete, TaskExit, TaskStart};
use containerd_client::services::v1::SubscribeRequest;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::types::Envelope;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use prost::Message;
use tonic::{Code, Response, Status, Streaming};

use super::{Client, ClientError};

const CALL: &str = "Events.Subscribe";
/// What their topics begin with. Not every version has each of them; that of content's creation came with 2.1.
const TOPICS: [&str; 5] = ["/images/", "/containers/", "/tasks/", "/content/", "/namespaces/"];

/// Something has changed in one of the configured namespaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The namespace.
    pub namespace: String,
    /// What has changed there.
    pub what: Happening,
}

/// What has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// An image's name was made, moved or removed. Its content may go later: of what the garbage collector removes there is
    /// no event.
    Image,
    /// A container was made, changed or removed.
    Container,
    /// The container of this id runs.
    Started(String),
    /// It doesn't run any more.
    Ended(String),
    /// A blob came or was removed by name.
    Content,
    /// The namespace itself.
    Namespace,
}

/// Events as they come. Those before the subscription don't come again.
pub struct Events {
    client: Client,
    state: State,
}

enum State {
    /// containerd answers a subscription with its first event, not before.
    Asking(BoxFuture<'static, Result<Response<Streaming<Envelope>>, Status>>),
    Open(Box<Streaming<Envelope>>),
}

impl Client {
    /// Subscribes. The subscription is sent with the first call of [`Events::next`]; errors come there too.
    #[must_use]
    pub fn events(&self) -> Events {
        let of = |name: &str| TOPICS.map(|topic| format!("namespace=={name:?},topic~=\"^{topic}\""));
        let filters = self.namespaces().flat_map(|(_, name)| of(&name)).collect();
        let mut client = EventsClient::new(self.channel.clone());
        let asking = async move { client.subscribe(SubscribeRequest { filters }).await };
        Events { client: self.clone(), state: State::Asking(asking.boxed()) }
    }
}

impl Events {
    /// Waits for the next event, for as long as it takes. May be dropped and called again without loss.
    ///
    /// # Errors
    /// The connection broke, or containerd ends. There is nothing after that.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        loop {
            let event = match &mut self.state {
                State::Asking(asking) => {
                    let open = asking.await.map_err(|status| self.client.refused(&status))?;
                    self.state = State::Open(Box::new(open.into_inner()));
                    continue;
                }
                State::Open(stream) => stream.message().await.map_err(|status| self.client.refused(&status))?,
            };
            let ended = || self.client.refused(&Status::new(Code::Unavailable, "the events have ended"));
            // Of some, such as the end of a probe within a container, nothing follows.
            if let Some(event) = Event::read(event.ok_or_else(ended)?) {
                return Ok(event);
            }
        }
    }
}

impl Client {
    fn refused(&self, status: &Status) -> ClientError {
        ClientError::from_status(&self.socket, CALL, status)
    }
}

impl Event {
    /// `None` for one that changes nothing here.
    fn read(envelope: Envelope) -> Option<Self> {
        let body = envelope.event.map(|event| event.value).unwrap_or_default();
        let mut parts = envelope.topic.split('/').skip(1);
        let what = match (parts.next()?, parts.next()?) {
            ("images", _) => Happening::Image,
            ("containers", _) => Happening::Container,
            ("content", _) => Happening::Content,
            ("namespaces", _) => Happening::Namespace,
            ("tasks", "create") => Happening::Started(read::<TaskCreate>(&body)?.container_id),
            ("tasks", "start") => Happening::Started(read::<TaskStart>(&body)?.container_id),
            ("tasks", "exit") => {
                let TaskExit { container_id, id, .. } = read(&body)?;
                Happening::Ended(first_process(container_id, &id)?)
            }
            ("tasks", "delete") => {
                let TaskDelete { container_id, id, .. } = read(&body)?;
                Happening::Ended(first_process(container_id, &id)?)
            }
            _ => return None,
        };
        Some(Self { namespace: envelope.namespace, what })
    }
}

fn read<M: Message + Default>(body: &[u8]) -> Option<M> {
    M::decode(body).ok()
}

/// The container, if the process is its first: others are started in it, by probes for one.
fn first_process(container: String, process: &str) -> Option<String> {
    (process.is_empty() || process == container).then_some(container)
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("client", &self.client).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(topic: &str, body: &impl Message) -> Option<Happening> {
        let mut envelope = Envelope { topic: topic.to_owned(), namespace: "k8s.io".to_owned(), ..Envelope::default() };
        envelope.event.get_or_insert_default().value = body.encode_to_vec();
        Event::read(envelope).map(|event| event.what)
    }

    #[test]
    fn only_the_first_process_of_a_container_ends_it() {
        let exit = |id: &str| TaskExit { container_id: "c".to_owned(), id: id.to_owned(), ..TaskExit::default() };
        let ended = Some(Happening::Ended("c".to_owned()));
        assert_eq!(what("/tasks/exit", &exit("c")), ended);
        assert_eq!(what("/tasks/exit", &exit("probe")), None);
        let delete = TaskDelete { container_id: "c".to_owned(), ..TaskDelete::default() };
        assert_eq!(what("/tasks/delete", &delete), ended);
        let start = TaskStart { container_id: "c".to_owned(), pid: 1 };
        assert_eq!(what("/tasks/start", &start), Some(Happening::Started("c".to_owned())));
    }

    #[test]
    fn other_topics_are_told_apart_by_their_first_part() {
        for (topic, expected) in [
            ("/images/delete", Some(Happening::Image)),
            ("/containers/update", Some(Happening::Container)),
            ("/content/create", Some(Happening::Content)),
            ("/namespaces/delete", Some(Happening::Namespace)),
            ("/tasks/oom", None),
            ("/snapshot/remove", None),
            ("", None),
            ("images", None),
        ] {
            assert_eq!(what(topic, &()), expected, "{topic}");
        }
    }
}
