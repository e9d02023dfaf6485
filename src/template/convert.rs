//! Templates written down again, in the current format.

use std::time::Duration;

use serde_json::{Map, Value};

use super::fields::{At, Notes};
use super::format::{Kind, RawBatch, RawHandler, RawLifecycle, RawRetry, RawStep, RawTemplate, Settings};
use super::{Lifecycle, Mistake, StepKind, StepTemplate, Template, check};

/// A template's text in the current format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// YAML.
    pub text: String,
    /// What the original says without effect; some of it has no place in the current format and is left out.
    pub warnings: Vec<Mistake>,
}

/// Writes a template of any accepted format in the current one, all environments included. It means the same. Of its
/// comments those at its head are kept. `${VAR}` stays as it stands, so it cannot be where a number is wanted.
///
/// # Errors
/// Every mistake, in the order of their lines.
pub fn convert(text: &str) -> Result<Converted, Vec<Mistake>> {
    let mut notes = Notes::default();
    let raw = super::raw(text, None, None, &mut notes);
    raw.as_ref().inspect(|raw| drop(check::template(raw, &mut notes)));
    let Notes { mistakes, warnings, .. } = notes.in_order();
    match raw {
        Some(raw) if mistakes.is_empty() => {
            let written =
                serde_saphyr::to_string(&raw).expect("a template is made of texts, numbers and maps");
            Ok(Converted { text: head(text) + &written, warnings })
        }
        _ => Err(mistakes),
    }
}

/// The comments before a file's first key.
fn head(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.trim().is_empty() && line.trim_end() != "---");
    lines.take_while(|line| line.starts_with('#')).map(|line| format!("{}\n", line.trim_end())).collect()
}

/// The template in the current format, as JSON: with every value said, and no environments, because theirs is
/// in it. Read again it is an equal template.
pub fn document(template: &Template) -> Value {
    let raw = RawTemplate {
        name: Some(template.name.clone().into()),
        namespace_name: Some(template.namespace.clone().into()),
        version: Some(template.version.clone().into()),
        description: template.description.clone(),
        input_schema: template.input_schema.as_ref().and_then(Value::as_object).cloned().map(At::from),
        identity_strategy: Some(template.identity_strategy),
        lifecycle: template.lifecycle.as_ref().map(lifecycle),
        steps: template.steps.iter().map(step).collect(),
        ..RawTemplate::default()
    };
    serde_json::to_value(raw).expect("a template is made of texts, numbers and maps")
}

fn lifecycle(lifecycle: &Lifecycle) -> RawLifecycle {
    // A limit came from a text, which holds it to 30 days.
    let minutes = |limit: Option<Duration>| limit.and_then(|limit| u32::try_from(limit.as_secs() / 60).ok());
    RawLifecycle {
        max_duration_minutes: minutes(lifecycle.max_duration),
        max_waiting_for_dependencies_minutes: minutes(lifecycle.max_waiting_for_dependencies),
        max_waiting_for_retry_minutes: minutes(lifecycle.max_waiting_for_retry),
        max_steps_in_process_minutes: minutes(lifecycle.max_steps_in_process),
        staleness_action: None,
        auto_fail_on_timeout: Some(lifecycle.fails),
        auto_dlq_on_timeout: Some(lifecycle.records),
    }
}

fn step(step: &StepTemplate) -> RawStep {
    let (kind, batch_config) = match &step.kind {
        StepKind::Standard => (Kind::Standard, None),
        StepKind::Decision => (Kind::Decision, None),
        StepKind::DeferredConvergence => (Kind::DeferredConvergence, None),
        StepKind::BatchWorker => (Kind::BatchWorker, None),
        StepKind::Batchable(batch) => {
            let raw = RawBatch {
                batch_size: Some(batch.batch_size),
                parallelism: Some(batch.parallelism),
                checkpoint_interval: batch.checkpoint_interval,
                cursor_field: Some(batch.cursor_field.clone()),
                worker_template: batch.worker_template.clone().map(At::from),
                failure_strategy: Some(batch.failure_strategy),
                line: None,
            };
            (Kind::Batchable, Some(raw))
        }
    };
    // Delays in a template came from a text, which holds them to a day.
    let ms = |ms: u64| Some(At::from(u32::try_from(ms).unwrap_or(u32::MAX)));
    RawStep {
        name: step.name.clone().into(),
        kind: Some(kind.into()),
        settings: Settings {
            description: step.description.clone(),
            handler: RawHandler {
                callable: Some(step.handler.callable.clone()),
                initialization: step.handler.initialization.parse().unwrap_or_else(|_| Map::new()),
                ..RawHandler::default()
            },
            retry: RawRetry {
                retryable: Some(step.retry.retryable),
                max_attempts: Some(step.max_attempts),
                backoff: Some(step.retry.backoff),
                backoff_base_ms: ms(step.retry.base_ms),
                max_backoff_ms: ms(step.retry.max_ms),
            },
            timeout_seconds: step.timeout.map(|timeout| timeout.as_secs_f64()),
        },
        dependencies: step.dependencies.iter().cloned().map(At::from).collect(),
        compensates: step.compensates.clone().map(At::from),
        batch_config,
        ..RawStep::default()
    }
}

/// The JSON Schema of the current format.
pub fn format_schema() -> Value {
    let mut schema = schemars::schema_for!(RawTemplate);
    schema.insert("title".to_owned(), "Task template".into());
    schema.to_value()
}

/// Where two templates differ, each place with both values: `steps.charge.timeout_seconds: 30 became 45`.
pub fn differences(old: &Template, new: &Template) -> Vec<String> {
    let mut found = Vec::new();
    differ("", Some(&document(old)), Some(&document(new)), &mut found);
    found
}

fn differ(path: &str, old: Option<&Value>, new: Option<&Value>, found: &mut Vec<String>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match (old, new) {
        (old, new) if old == new => {}
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            for (key, value) in old {
                differ(&below(key), Some(value), new.get(key), found);
            }
            for (key, value) in new.iter().filter(|(key, _)| !old.contains_key(*key)) {
                differ(&below(key), None, Some(value), found);
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) if path == "steps" => {
            let by_name = |steps: &[Value]| -> Map<String, Value> {
                let name = |step: &Value| step["name"].as_str().unwrap_or_default().to_owned();
                steps.iter().map(|step| (name(step), step.clone())).collect()
            };
            let (old_steps, new_steps) = (by_name(old), by_name(new));
            if old_steps == new_steps {
                found.push("steps: the same in another order".to_owned());
            }
            differ(path, Some(&old_steps.into()), Some(&new_steps.into()), found);
        }
        (Some(_), None) => found.push(format!("{path}: removed")),
        (None, Some(new)) => found.push(format!("{path}: added, {new}")),
        (old, new) => {
            let shown = |value: Option<&Value>| value.map(Value::to_string).unwrap_or_default();
            found.push(format!("{path}: {} became {}", shown(old), shown(new)));
        }
    }
}
