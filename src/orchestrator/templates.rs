//! Templates made ready for tasks, and those that workers bring along.

use std::sync::Arc;

use uuid::Uuid;

use super::dag::Plan;
use super::shared::held;
use super::store::Store;
use super::{Orchestrator, SubmitError, identity, now};
use crate::Error;
use crate::api::TaskRequest;
use crate::catalog::Catalog;
use crate::template::{self, ContextSchema, Mistake, Template};

/// What a template's tasks need, worked out once.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) template_id: Uuid,
    pub(super) plan: Arc<Plan>,
    context: Option<ContextSchema>,
}

/// More mistakes than this help nobody to mend a context.
const MISTAKES_TOLD: usize = 20;

impl Prepared {
    /// Whether the context is one that the template's `input_schema` allows.
    pub(super) fn check(&self, request: &TaskRequest) -> Result<(), SubmitError> {
        let Some(schema) = &self.context else { return Ok(()) };
        let context = request
            .context
            .parse()
            .map_err(|error| SubmitError::Invalid(format!("the context is not JSON: {error}")))?;
        let mistakes = schema.mistakes(&context);
        if mistakes.is_empty() {
            return Ok(());
        }
        let more = mistakes.len().saturating_sub(MISTAKES_TOLD);
        let mut told = mistakes.into_iter().take(MISTAKES_TOLD).collect::<Vec<_>>().join("; ");
        if more > 0 {
            told.push_str(&format!("; and {more} more"));
        }
        Err(SubmitError::Context(told))
    }
}

/// Why a template was not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// It makes no sense: every mistake.
    #[error("the template has mistakes: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Mistakes(Vec<Mistake>),
    /// Its steps cannot be run.
    #[error("{0}")]
    Invalid(String),
    /// There is another template of this name and version.
    #[error(
        "{namespace}/{name} {version} is there already with other content; give the new one another version. \
         What differs: {}", .differences.join("; ")
    )]
    Differs {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its version.
        version: String,
        /// Each place with what is there and what was to be registered.
        differences: Vec<String>,
    },
    /// The store does not take it now.
    #[error(transparent)]
    Store(Error),
}

impl Orchestrator {
    /// What tasks of the template need, worked out again when it was reloaded.
    pub(super) fn prepared(&self, template: &Arc<Template>) -> Result<Arc<Prepared>, String> {
        let key = (template.namespace.clone(), template.name.clone(), template.version.clone());
        let mut all = held(&self.inner.prepared);
        if let Some(prepared) = all.get(&key)
            && Arc::ptr_eq(prepared.plan.template(), template)
        {
            return Ok(Arc::clone(prepared));
        }
        // It may have been changed since the start.
        if let Some(problem) = self.inner.lease.exceeded(std::slice::from_ref(template)).pop() {
            return Err(problem);
        }
        let context = if self.inner.enforce_input_schema { ContextSchema::of(template)? } else { None };
        let plan = Arc::new(Plan::new(Arc::clone(template))?);
        let prepared = Arc::new(Prepared { template_id: identity::template_id(template), plan, context });
        all.insert(key, Arc::clone(&prepared));
        Ok(prepared)
    }

    /// Takes a template in any of the accepted formats, and keeps it over restarts. `false`: it is there
    /// already, with the same content. `${VAR}` stays as it is: the variables of this process are nobody
    /// else's business.
    ///
    /// # Errors
    /// When it makes no sense, its steps cannot be run, another one has its name and version, or the store
    /// does not take it. Only the last is worth another try.
    pub async fn register(&self, text: &str) -> Result<(Arc<Template>, bool), RegisterError> {
        let parsed = template::parse(text, Some(&self.inner.environment)).map_err(RegisterError::Mistakes)?;
        let template = Arc::new(parsed.template);
        let Template { namespace, name, version, .. } = &*template;
        // Between the look and the change nobody else changes anything.
        let _registering = self.inner.registering.lock().await;
        if let Some(present) = self.inner.catalog.get(namespace, name, version) {
            if present == template {
                return Ok((present, false));
            }
            return Err(RegisterError::Differs {
                namespace: namespace.clone(),
                name: name.clone(),
                version: version.clone(),
                differences: template::differences(&present, &template),
            });
        }
        let prepared = self.prepared(&template).map_err(RegisterError::Invalid)?;
        let stored = self.inner.store.register(prepared.template_id, &template, now()).await;
        stored.map_err(RegisterError::Store)?;
        self.inner.catalog.add(Arc::clone(&template));
        tracing::info!(namespace, template = name, version, "A template was registered");
        Ok((template, true))
    }
}

/// Puts those that were registered before beside those from files, which win.
pub(super) async fn load_registered(store: &Store, catalog: &Catalog) -> Result<(), Error> {
    for template in store.registered().await? {
        catalog.add(Arc::new(template));
    }
    Ok(())
}
