//! Task templates: YAML in any of the accepted formats becomes one validated [`Template`].
//!
//! [`parse`] goes three steps: `yaml` keeps every value with its line, `raw` brings the spellings of all
//! formats (`steps`, `step_templates`, keys written as Ruby symbols, mixtures of them) to one and applies
//! the environment's overrides, `check` makes sure that the steps form a workflow. Nothing here touches a
//! file or the process environment; that is [`Catalog`](crate::catalog::Catalog)'s part.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::sentence;
use crate::message::HandlerSpec;
use crate::retry::RetryPolicy;

mod check;
mod dag;
mod environment;
mod fields;
pub mod graph;
pub mod lease;
mod raw;
mod step;
mod yaml;

/// A workflow's definition. What a value of this type says has been checked: names are unique, every
/// dependency exists, and there is no cycle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Template {
    /// Its namespace: the queue its steps are sent to.
    pub namespace: String,
    /// Its name within the namespace.
    pub name: String,
    /// Its version, `x.y.z`.
    pub version: String,
    /// For people.
    pub description: Option<String>,
    /// JSON Schema of a task's context.
    pub input_schema: Option<serde_json::Value>,
    /// What makes two submissions the same task.
    #[serde(default, skip_serializing_if = "IdentityStrategy::is_strict")]
    pub identity_strategy: IdentityStrategy,
    /// The steps, in the file's order.
    pub steps: Vec<StepTemplate>,
}

/// What makes two submissions of a template the same task. An idempotency key of the caller's own comes first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentityStrategy {
    /// The same context.
    #[default]
    Strict,
    /// The same idempotency key, which has to be given.
    CallerProvided,
    /// Nothing.
    AlwaysUnique,
}

impl IdentityStrategy {
    fn is_strict(&self) -> bool {
        *self == Self::Strict
    }
}

/// One step of a workflow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepTemplate {
    /// Its name within the template.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// What runs it, and with which settings.
    pub handler: HandlerSpec,
    /// Steps whose results it waits for.
    pub dependencies: Vec<String>,
    /// `Some(step)`: this step undoes `step`. It runs only when the task fails after `step` completed,
    /// and after the undoing of everything that came after `step`.
    pub compensates: Option<String>,
    /// How often it may run, the first time included.
    pub max_attempts: u32,
    /// How failures are retried.
    pub retry: RetryPolicy,
    /// How long one execution may take.
    pub timeout: Option<Duration>,
}

/// A template, and what its file says without effect.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The template, with the environment's overrides applied.
    pub template: Template,
    /// Keys that are known but change nothing here, in the file's order.
    pub warnings: Vec<Mistake>,
}

/// Something in a template's text that its author should change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// The line it is on, from 1, where it is on one.
    pub line: Option<u64>,
    /// What is wrong, with which value, and what would be right.
    pub message: String,
}

impl Mistake {
    fn on_one_line(self) -> Self {
        Self { message: sentence(&self.message), ..self }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// Reads one template in any of the accepted formats.
///
/// `environment` selects a block of the template's `environments`; its overrides are merged field by field.
/// A template without a block of that name is taken as it stands. Overrides of the other environments are
/// checked all the same, so that a mistake in them shows before they are used.
///
/// Wherever a file says how often a step may run (`max_attempts`, `limit`, `max_retries`,
/// `default_retry_limit`), the number counts the first run too, and 0 is taken as 1.
///
/// # Errors
/// Every mistake, in the order of their lines.
pub fn parse(text: &str, environment: Option<&str>) -> Result<Parsed, Vec<Mistake>> {
    let root = yaml::parse(text).map_err(|mistake| vec![mistake.on_one_line()])?;
    let mut notes = fields::Notes::default();
    notes.repeated_keys(&root);
    let template =
        raw::RawTemplate::read(&root, environment, &mut notes).map(|raw| check::template(raw, &mut notes));
    let fields::Notes { mut mistakes, mut warnings } = notes;
    for notes in [&mut mistakes, &mut warnings] {
        *notes = std::mem::take(notes).into_iter().map(Mistake::on_one_line).collect();
        notes.sort();
    }
    mistakes.dedup();
    match template {
        Some(template) if mistakes.is_empty() => Ok(Parsed { template, warnings }),
        _ => Err(mistakes),
    }
}

impl Template {
    /// The step of this name.
    pub fn step(&self, name: &str) -> Option<&StepTemplate> {
        self.steps.iter().find(|step| step.name == name)
    }

    /// The definition as JSON: what a task keeps, so that it ends as it began whatever happens to the file.
    /// Reads back as an equal template.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a template has string keys only and always encodes")
    }

    /// 32 hexadecimal digits that are equal for equal definitions, on every machine and in every build with
    /// the same fields. Tells definitions apart; proves nothing about who wrote them.
    pub fn definition_hash(&self) -> String {
        // FNV-1a, 128 bits.
        let hash =
            self.to_json().bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash: u128, byte| {
                (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
            });
        format!("{hash:032x}")
    }
}
