//! Task templates: YAML in any of the accepted formats becomes one validated [`Template`].
//!
//! [`parse`] goes three steps: `yaml` keeps every value with its line, `raw` brings the spellings of all
//! formats (`steps`, `step_templates`, keys written as Ruby symbols, mixtures of them) to one and applies
//! the environment's overrides, `check` makes sure that the steps form a workflow. Nothing here touches a
//! file or the process environment; that is [`Catalog`](crate::catalog::Catalog)'s part.

use std::fmt;

mod check;
mod context;
mod convert;
mod dag;
mod environment;
mod fields;
mod format;
pub mod graph;
mod kinds;
pub mod lease;
mod model;
mod raw;
mod step;
mod variables;
mod yaml;

pub use context::ContextSchema;
pub use convert::{Converted, convert, differences, document, format_schema};
pub use model::{
    BatchConfig, FailureStrategy, IdentityStrategy, Lifecycle, StepKind, StepTemplate, Template,
};
pub use variables::Lookup;

/// A template, and what its file says without effect.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The template, with the environment's overrides applied.
    pub template: Template,
    /// Keys that are known but change nothing here, each with the reason, in the file's order.
    pub warnings: Vec<Mistake>,
    /// Variables that are not set and have no default, where the environment uses them.
    pub unset: Vec<Mistake>,
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
    /// As `file:line: what`.
    pub fn at(&self, file: impl fmt::Display) -> String {
        match self.line {
            Some(line) => format!("{file}:{line}: {}", self.message),
            None => format!("{file}: {}", self.message),
        }
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

/// Reads one template in any of the accepted formats, `${VAR}` left as it stands.
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
    read(text, environment, None)
}

/// As [`parse`], with `${VAR}` and `${VAR:-default}` replaced by what `lookup` says. What is neither set nor
/// has a default stays as it is, and is told.
///
/// # Errors
/// As [`parse`].
pub fn parse_with(text: &str, environment: Option<&str>, lookup: Lookup<'_>) -> Result<Parsed, Vec<Mistake>> {
    read(text, environment, Some(lookup))
}

fn read(text: &str, environment: Option<&str>, lookup: Option<Lookup<'_>>) -> Result<Parsed, Vec<Mistake>> {
    let mut notes = fields::Notes::default();
    let raw = raw(text, environment, lookup, &mut notes);
    let template = raw.map(|mut raw| {
        environment.inspect(|environment| raw.merge(environment));
        check::template(&raw, &mut notes)
    });
    let fields::Notes { mistakes, warnings, unset } = notes.in_order();
    match template {
        Some(template) if mistakes.is_empty() => Ok(Parsed { template, warnings, unset }),
        _ => Err(mistakes),
    }
}

/// The template as its text states it; what is wrong with that alone is noted.
fn raw(
    text: &str,
    environment: Option<&str>,
    lookup: Option<Lookup<'_>>,
    notes: &mut fields::Notes,
) -> Option<format::RawTemplate> {
    let mut root = match yaml::parse(text) {
        Ok(root) => root,
        Err(mistake) => {
            notes.mistakes.push(mistake);
            return None;
        }
    };
    notes.repeated_keys(&root);
    if let Some(lookup) = lookup {
        variables::replace(&mut root, environment, lookup, notes);
    }
    format::RawTemplate::read(&root, notes)
}
