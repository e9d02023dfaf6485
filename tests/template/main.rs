//! Templates: formats, mistakes, environments, graphs, and the catalogue that holds them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod catalog;
mod convert;
mod corpus;
mod fields;
mod formats;
mod graph;
mod kinds;
mod lifecycle;
mod mistakes;
mod properties;
mod variables;

use std::time::Duration;

use tasker_worker_rust::template::{StepTemplate, Template, parse};

/// The template of a text that must be a good one.
fn template(text: &str) -> Template {
    in_environment(text, None)
}

fn in_environment(text: &str, environment: Option<&str>) -> Template {
    parse(text, environment).unwrap_or_else(|mistakes| panic!("{mistakes:#?}\n{text}")).template
}

fn step<'t>(template: &'t Template, name: &str) -> &'t StepTemplate {
    template.step(name).unwrap_or_else(|| panic!("no step {name}"))
}

fn initialization(step: &StepTemplate) -> serde_json::Value {
    step.handler.initialization.parse().unwrap()
}

fn seconds(seconds: u64) -> Option<Duration> {
    Some(Duration::from_secs(seconds))
}

/// A template with these steps, given as the YAML of a `steps` list.
fn with_steps(steps: &str) -> String {
    format!("name: n\nnamespace: ns\nversion: 1.0.0\nsteps:\n{steps}")
}
