//! Accepting a task: what is wrong with it is said before the writer hears of it.

use std::sync::Arc;

use tokio::sync::oneshot;
use uuid::Uuid;

use super::Orchestrator;
use super::identity;
use super::intake::{Command, Submission};
use super::store::Store;
use super::versions;
use crate::Error;
use crate::api::{PRIORITIES, TaskRequest};
use crate::message::is_namespace;
use crate::trace::TraceContext;

impl Orchestrator {
    /// Accepts a task. When this returns, the task survives whatever happens to this process.
    ///
    /// # Errors
    /// When there is no such template, the request makes no sense, the same task was accepted before, or the
    /// store does not take it. Only the last is worth another try.
    pub async fn submit(&self, request: TaskRequest) -> Result<Uuid, SubmitError> {
        self.submit_within(request, None).await
    }

    /// The same, for a caller at this place in a trace. All that is done for the task belongs to it.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub async fn submit_within(
        &self,
        request: TaskRequest,
        trace: Option<TraceContext>,
    ) -> Result<Uuid, SubmitError> {
        let (reply, answer) = oneshot::channel();
        let submission = Submission { trace, ..self.check(request, reply)? };
        let command = Command::Submit(Box::new(submission));
        let closing = || SubmitError::Store(SubmitError::closing(&self.inner.store));
        self.inner.commands.send(command).await.map_err(|_| closing())?;
        answer.await.unwrap_or_else(|_| Err(closing()))
    }

    fn check(
        &self,
        request: TaskRequest,
        reply: oneshot::Sender<Result<Uuid, SubmitError>>,
    ) -> Result<Submission, SubmitError> {
        let TaskRequest { namespace, name, version, .. } = &request;
        let given = version.as_deref();
        for (field, text) in
            [("name", Some(name.as_str())), ("namespace", Some(namespace)), ("version", given)]
        {
            if text.is_some_and(str::is_empty) {
                return Err(SubmitError::Invalid(format!("{field} is empty")));
            }
        }
        let catalog = &self.inner.catalog;
        let latest = || versions::versions(catalog, namespace, name).pop().unwrap_or_default();
        let version = version.clone().unwrap_or_else(latest);
        let template =
            catalog.get(namespace, name, &version).ok_or_else(|| SubmitError::UnknownTemplate {
                namespace: namespace.clone(),
                name: name.clone(),
                version: version.clone(),
            })?;
        let request = TaskRequest { version: Some(version), ..request };
        if let Some(priority) = request.priority.filter(|priority| !PRIORITIES.contains(priority)) {
            return Err(SubmitError::Invalid(format!("priority is {priority}; expected -100 to 100")));
        }
        if !is_namespace(&template.namespace) {
            return Err(SubmitError::Invalid(format!(
                "namespace {:?} is not 1 to 64 characters of A-Z a-z 0-9 _ -",
                template.namespace
            )));
        }
        let identity =
            identity::task_identity(&request, template.identity_strategy).map_err(SubmitError::Invalid)?;
        let prepared = self.prepared(&template).map_err(SubmitError::Invalid)?;
        prepared.check(&request)?;
        let (template_id, plan) = (prepared.template_id, Arc::clone(&prepared.plan));
        Ok(Submission { request, identity, template_id, plan, trace: None, reply })
    }
}

/// Why a task was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// There is no such template.
    #[error("there is no template {name:?} of version {version:?} in namespace {namespace:?}")]
    UnknownTemplate {
        /// The namespace asked for.
        namespace: String,
        /// The name asked for.
        name: String,
        /// The version asked for; empty where the latest was.
        version: String,
    },
    /// The same task was accepted before.
    #[error("the same task was accepted before, as {task_uuid}")]
    Duplicate {
        /// That task.
        task_uuid: Uuid,
    },
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The context is not what the template's `input_schema` wants: each mistake with its JSON path.
    #[error("the context does not fit the template's input_schema: {0}")]
    Context(String),
    /// The store does not take it now.
    #[error(transparent)]
    Store(Error),
}

impl SubmitError {
    pub(super) fn closing(store: &Store) -> Error {
        let problem = "takes no changes: the orchestrator is shutting down".to_owned();
        Error::Store { store: store.name().to_owned(), problem }
    }
}
