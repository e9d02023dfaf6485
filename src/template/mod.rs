//! Task templates: YAML in any of the accepted formats becomes one validated [`Template`].
//!
//! [`parse`] goes three steps: `yaml` keeps every value with its line, `raw` brings the spellings of all
//! formats (`steps`, `step_templates`, keys written as Ruby symbols, mixtures of them) to one and applies
//! the environment's overrides, `check` makes sure that the steps form a workflow. Nothing here touches a
//! file or the process environment; that is [`Catalog`](crate::catalog::Catalog)'s part.

use std::fmt;

use crate::error::sentence;

mod check;
mod dag;
mod environment;
mod fields;
pub mod graph;
pub mod lease;
mod model;
mod raw;
mod step;
mod yaml;

pub use model::{
    BatchConfig, FailureStrategy, IdentityStrategy, Lifecycle, StalenessAction, StepKind, StepTemplate,
    Template,
};

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
