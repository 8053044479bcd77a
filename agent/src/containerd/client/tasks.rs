//! What of containerd's containers runs.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::ListTasksRequest;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::types::v1::Status;

use super::{Client, ClientError, MAX_MESSAGE, within};

/// containerd asks one shim after the other, each for up to 2 s.
const SHIMS: Duration = Duration::from_secs(15);

impl Client {
    /// The containers that have a task which hasn't ended, as namespace and id.
    ///
    /// # Errors
    /// No answer within 15 s, which takes no more than a few shims that hang; or a refusal.
    pub async fn running(&self) -> Result<HashSet<(Arc<str>, String)>, ClientError> {
        let mut client = TasksClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let mut all = HashSet::new();
        for (namespace, shown) in self.namespaces() {
            let request = within(namespace, ListTasksRequest { filter: String::new() });
            let answer = self.call("Tasks.List", SHIMS, client.list(request)).await?;
            let running = answer.tasks.into_iter().filter(|task| task.status() != Status::Stopped);
            // By its first process, which is called as the container is. The container's own field is left empty.
            all.extend(running.map(|task| (Arc::clone(&shown), task.id)));
        }
        Ok(all)
    }
}
