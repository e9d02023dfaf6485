//! `/v1/tasks/{task_uuid}/events`: what happens to a task, as it happens.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName};
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures_util::{Stream, stream};
use tokio::sync::watch;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Api;
use super::error::{ApiError, Segments, task_uuid};
use crate::api::TaskEvent;
use crate::orchestrator::queries::history;
use crate::orchestrator::task::TaskState;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Proxies close connections that are silent for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What stands for a change in the stream.
#[derive(ToSchema)]
struct ServerSentEvent {
    /// Tells where to go on.
    id: String,
    /// `task` or `step`: what changed its state.
    event: String,
    /// A TaskEvent, as JSON.
    data: String,
}

impl ServerSentEvent {
    fn new(id: i64, event: &TaskEvent) -> Self {
        let data = serde_json::to_string(event).expect("an event has string keys only and always encodes");
        let event = if event.step_uuid.is_some() { "step" } else { "task" };
        Self { id: id.to_string(), event: event.to_owned(), data }
    }
}

/// A stream's place in what happened.
struct Follower {
    api: Api,
    task_uuid: Uuid,
    after: i64,
    read: VecDeque<(i64, TaskEvent)>,
    changes: watch::Receiver<Option<TaskState>>,
    ended: bool,
}

/// Sends every change of a task and its steps: those so far, then each as it happens, until the task has ended.
/// A client that lost the connection goes on from the header `last-event-id`.
#[utoipa::path(get, path = "/v1/tasks/{task_uuid}/events", tag = "tasks", security(("api_key" = ["tasks:read"])),
    params(("task_uuid" = Uuid, Path), ("last-event-id" = Option<i64>, Header, description = "The last event seen")),
    responses((status = 200, description = "Server-sent events named `task` and `step`, whose data is a TaskEvent",
        body = ServerSentEvent, content_type = "text/event-stream")),
)]
pub(super) async fn events(
    State(api): State<Api>,
    Segments(segment): Segments<String>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let task_uuid = task_uuid(&segment)?;
    let after = match headers.get(&LAST_EVENT_ID) {
        Some(id) => id.to_str().ok().and_then(|id| id.trim().parse().ok()).ok_or_else(|| {
            ApiError::bad_request("last-event-id is no id of an event; leave it out to begin with the first")
        })?,
        None => 0,
    };
    // Before the look into the store, so that no change in between is missed.
    let changes = api.orchestrator.changes(task_uuid);
    let state = api.orchestrator.store().task_state(task_uuid).await;
    let state =
        state.map_err(|error| api.store_failed(&error))?.ok_or_else(|| ApiError::no_task(task_uuid))?;
    let ended = state.is_terminal();
    let follower = Follower { api, task_uuid, after, read: VecDeque::new(), changes, ended };
    let events = stream::unfold(follower, |mut follower| async {
        let (id, event) = follower.next().await?;
        let ServerSentEvent { id, event, data } = ServerSentEvent::new(id, &event);
        Some((Ok(Event::default().id(id).event(event).data(data)), follower))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

impl Follower {
    /// The next event; `None` once the task has ended, or the orchestrator stops.
    async fn next(&mut self) -> Option<(i64, TaskEvent)> {
        loop {
            if let Some((id, event)) = self.read.pop_front() {
                self.after = id;
                return Some((id, event));
            }
            let readers = self.api.orchestrator.store().readers();
            self.read = match history::events(readers, self.task_uuid, self.after).await {
                Ok(events) => events.into(),
                Err(error) => {
                    tracing::warn!(task_uuid = %self.task_uuid, %error, "A task's events cannot be read; their stream ends");
                    return None;
                }
            };
            if !self.read.is_empty() {
                continue;
            }
            if self.ended {
                return None;
            }
            self.changes.changed().await.ok()?;
            self.ended = self.changes.borrow_and_update().is_some();
        }
    }
}
