//! Brings the worker's templates to the orchestrator, so that a workflow ships with its handlers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use super::run::served_templates;
use crate::catalog::Catalog;
use crate::client::Client;
use crate::config::WorkerConfig;
use crate::error::Error;
use crate::template::Template;

/// Pauses while the orchestrator is away: from this one, each twice as long, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Templates by namespace, name and version, each with why it was refused, if it was.
type Answered = HashMap<(String, String, String), (Arc<Template>, Option<String>)>;

/// Why templates are not registered, while some are not; and the task that registers them, until it is dropped.
type Registering = (watch::Receiver<Option<String>>, Option<AbortOnDropHandle<()>>);

pub(super) struct Registration {
    client: Client,
    catalog: Catalog,
    served: Vec<String>,
    problem: watch::Sender<Option<String>>,
    /// What the orchestrator said to templates it was asked to take.
    answered: Answered,
}

impl Registration {
    /// Registers the templates of the served namespaces, now and whenever they change.
    ///
    /// # Errors
    /// When the orchestrator's address is none.
    pub(super) fn start(
        settings: &WorkerConfig,
        catalog: Option<Catalog>,
        served: Vec<String>,
    ) -> Result<Registering, Error> {
        let (problem, problems) = watch::channel(None);
        let (Some(address), Some(catalog)) = (&settings.orchestration_api_url, catalog) else {
            return Ok((problems, None));
        };
        let client = Client::new(address)?.with_api_key(settings.orchestration_api_key.as_ref())?;
        let registration = Self { client, catalog, served, problem, answered: Answered::new() };
        Ok((problems, Some(AbortOnDropHandle::new(tokio::spawn(registration.run())))))
    }

    async fn run(mut self) {
        let mut changes = self.catalog.changes();
        let mut pause = FIRST_PAUSE;
        loop {
            changes.mark_unchanged();
            match self.register_all().await {
                Ok(()) => {
                    let refused: Vec<String> =
                        self.answered.values().filter_map(|(_, refusal)| refusal.clone()).collect();
                    self.problem.send_replace((!refused.is_empty()).then(|| refused.join("; ")));
                    pause = FIRST_PAUSE;
                    if changes.changed().await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    if self.problem.send_replace(Some(error.to_string())).is_none() {
                        warn!(%error, "The templates cannot be registered yet; steps run all the same");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Registers what was not answered yet, and forgets what is no template any more.
    async fn register_all(&mut self) -> Result<(), Error> {
        let mut answered = Answered::new();
        for template in served_templates(&self.catalog, &self.served) {
            let key = (template.namespace.clone(), template.name.clone(), template.version.clone());
            let known = self.answered.get(&key).filter(|(known, _)| *known == template);
            let refusal = match known {
                Some((_, refusal)) => refusal.clone(),
                None => self.register(&template).await?,
            };
            answered.insert(key, (template, refusal));
        }
        self.answered = answered;
        Ok(())
    }

    /// Why the orchestrator does not take the template; `None` when it has it.
    async fn register(&self, template: &Template) -> Result<Option<String>, Error> {
        let Template { namespace, name, version, .. } = template;
        match self.client.register(template).await {
            Ok(new) => {
                info!(namespace, template = name, version, new, "The orchestrator has the template");
                Ok(None)
            }
            Err(Error::Refused { status: 400 | 409 | 413 | 422, message: reason, .. }) => {
                error!(namespace, template = name, version, reason, "The orchestrator refuses a template");
                Ok(Some(format!("{namespace}/{name} {version} was refused: {reason}")))
            }
            Err(error) => Err(error),
        }
    }
}
