//! Whether the steps of a template form a workflow; every reason why not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Map, Value as JsonValue};

use super::context::ContextSchema;
use super::fields::{At, Notes, did_you_mean};
use super::format::{RawLifecycle, RawStep, RawTemplate, Settings, StalenessAction};
use super::{Lifecycle, StepTemplate, Template, dag, kinds};
use crate::message::{HandlerSpec, Json, is_namespace};
use crate::retry::RetryPolicy;

/// Names travel in short strings, which end at 255 bytes.
const LONGEST_NAME: usize = 255;
const DEFAULT_ATTEMPTS: u32 = 3;

/// The template; right only when no mistake was noted.
pub(super) fn template(raw: &RawTemplate, notes: &mut Notes) -> Template {
    names(&raw.steps, notes);
    references(&raw.steps, notes);
    compensations(&raw.steps, notes);
    cycles(&raw.steps, notes);
    kinds::check(&raw.steps, notes);
    Template {
        namespace: namespace(raw.namespace_name.clone(), notes),
        name: name(raw.name.clone(), notes),
        version: version(raw.version.clone(), notes),
        description: raw.description.clone(),
        input_schema: input_schema(raw.input_schema.clone(), notes),
        identity_strategy: raw.identity_strategy.unwrap_or_default(),
        lifecycle: raw.lifecycle.as_ref().map(Lifecycle::from),
        steps: raw.steps.iter().map(|step| step_template(step, &raw.steps, notes)).collect(),
    }
}

fn input_schema(schema: Option<At<Map<String, JsonValue>>>, notes: &mut Notes) -> Option<JsonValue> {
    let At { value, line } = schema?;
    let schema = JsonValue::Object(value);
    if let Err(problem) = ContextSchema::new(&schema) {
        notes.mistake(line, format!("input_schema is no JSON Schema: {problem}"));
    }
    Some(schema)
}

fn namespace(field: Option<At<String>>, notes: &mut Notes) -> String {
    let Some(at) = field else { return String::new() };
    if !is_namespace(&at.value) {
        let text = format!("namespace {:?} is not 1 to 64 characters of A-Z a-z 0-9 _ -", at.value);
        notes.mistake(at.line, text);
    }
    at.value
}

fn name(field: Option<At<String>>, notes: &mut Notes) -> String {
    let Some(at) = field else { return String::new() };
    if at.value.len() > LONGEST_NAME {
        let text = format!("name is {} bytes long; at most {LONGEST_NAME} are allowed", at.value.len());
        notes.mistake(at.line, text);
    }
    at.value
}

fn version(field: Option<At<String>>, notes: &mut Notes) -> String {
    let Some(at) = field else { return String::new() };
    if !is_version(&at.value) {
        notes.mistake(at.line, format!("version {:?} is not of the form x.y.z, such as 1.0.0", at.value));
    }
    at.value
}

/// Semantic versions: three numbers, and perhaps `-pre.release` or `+build`.
fn is_version(version: &str) -> bool {
    let (core, suffix) = match version.find(['-', '+']) {
        Some(at) => (&version[..at], Some(&version[at + 1..])),
        None => (version, None),
    };
    let number = |part: &str| {
        (part == "0" || !part.starts_with('0'))
            && part.len() <= 19
            && !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_digit())
    };
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    core.split('.').count() == 3
        && core.split('.').all(number)
        && suffix.is_none_or(|suffix| suffix.split(['.', '+']).all(word))
}

fn names(steps: &[RawStep], notes: &mut Notes) {
    let mut first: BTreeMap<&str, Option<u64>> = BTreeMap::new();
    for step in steps {
        let At { value: name, line } = &step.name;
        if name.trim().is_empty() {
            notes.mistake(*line, "a step's name is empty; name it by what it does");
        } else if name.len() > LONGEST_NAME {
            let start: String = name.chars().take(20).collect();
            let text = format!(
                "step \"{start}…\": its name is {} bytes long; at most {LONGEST_NAME} are allowed",
                name.len()
            );
            notes.mistake(*line, text);
        } else if let Some(earlier) = first.get(name.as_str()) {
            let also = earlier.map(|line| format!(" (first on line {line})")).unwrap_or_default();
            notes.mistake(*line, format!("step {name:?} is there twice{also}; names must differ"));
        } else {
            first.insert(name, *line);
        }
    }
}

fn references(steps: &[RawStep], notes: &mut Notes) {
    let known: BTreeSet<&str> = steps.iter().map(|step| step.name.value.as_str()).collect();
    let undoing: BTreeSet<&str> =
        steps.iter().filter(|step| step.compensates.is_some()).map(|step| step.name.value.as_str()).collect();
    for step in steps {
        let name = &step.name.value;
        let mut mistake = |line, text: String| notes.mistake(line, format!("step {name:?}: {text}"));
        for At { value: on, line } in &step.dependencies {
            if on == name {
                mistake(*line, "depends on itself; remove that dependency".to_owned());
            } else if undoing.contains(on.as_str()) {
                let text = format!("depends on {on:?}, which undoes another step; nothing can wait for that");
                mistake(*line, text);
            } else if !known.contains(on.as_str()) {
                let others = known.difference(&undoing).copied().filter(|other| other != name);
                let hint = did_you_mean(on, others);
                mistake(*line, format!("depends on {on:?}, which is no step of this template; {hint}"));
            }
        }
    }
}

fn compensations(steps: &[RawStep], notes: &mut Notes) {
    let mut undone_by: BTreeMap<&str, &str> = BTreeMap::new();
    for step in steps {
        let (name, Some(At { value: target, line })) = (&step.name.value, &step.compensates) else {
            continue;
        };
        let mut mistake = |text: String| notes.mistake(*line, format!("step {name:?}: {text}"));
        if !step.dependencies.is_empty() {
            mistake(format!(
                "compensates {target:?} and has dependencies; it runs when the task fails, so remove them"
            ));
        }
        if target == name {
            mistake("compensates itself; name the step it undoes".to_owned());
            continue;
        }
        match steps.iter().find(|step| step.name.value == *target) {
            None => {
                let forward = steps.iter().filter(|step| step.compensates.is_none());
                let hint = did_you_mean(target, forward.map(|step| step.name.value.as_str()));
                mistake(format!("compensates {target:?}, which is no step of this template; {hint}"));
            }
            Some(found) if found.compensates.is_some() => {
                mistake(format!("compensates {target:?}, which undoes a step itself; that cannot be undone"));
            }
            Some(_) => {
                if let Some(earlier) = undone_by.insert(target, name) {
                    mistake(format!("compensates {target:?}, which {earlier:?} does already; keep one"));
                }
            }
        }
    }
}

fn cycles(steps: &[RawStep], notes: &mut Notes) {
    let names: Vec<&str> = steps.iter().map(|step| step.name.value.as_str()).collect();
    let dependencies = |index: usize| steps[index].dependencies.iter().map(|on| on.value.as_str());
    for cycle in dag::cycles(&names, &dependencies) {
        let path: Vec<&str> = cycle.iter().chain(cycle.first()).map(|index| names[*index]).collect();
        let next = path[1];
        let line = steps[cycle[0]].dependencies.iter().find(|on| on.value == next).and_then(|on| on.line);
        let text = format!(
            "steps wait for each other in a circle: {} (each waits for the next); remove one dependency",
            path.join(" -> ")
        );
        notes.mistake(line, text);
    }
}

fn step_template(raw: &RawStep, steps: &[RawStep], notes: &mut Notes) -> StepTemplate {
    let name = raw.name.value.clone();
    let Settings { description, handler, retry, timeout_seconds } = &raw.settings;
    let default = RetryPolicy::default();
    let base_ms = retry.backoff_base_ms.as_ref().map_or(default.base_ms, |at| at.value.into());
    let max_ms = match (&retry.backoff_base_ms, &retry.max_backoff_ms) {
        (_, None) => default.max_ms.max(base_ms),
        // Only the longest delay was said: the first one gives way.
        (None, Some(max)) => max.value.into(),
        (Some(base), Some(max)) => {
            if base.value > max.value {
                let text = format!(
                    "step {name:?}: the first delay of {} ms is above the longest of {} ms; lower the first or raise the longest",
                    base.value, max.value
                );
                notes.mistake(max.line, text);
            }
            max.value.into()
        }
    };
    let callable = handler.callable.clone().filter(|callable| !callable.is_empty());
    StepTemplate {
        handler: HandlerSpec {
            callable: callable.unwrap_or_else(|| name.clone()),
            initialization: Json::from(JsonValue::Object(handler.initialization.clone())),
        },
        description: description.clone(),
        kind: kinds::kind(raw, steps),
        dependencies: raw.dependencies.iter().map(|on| on.value.clone()).collect(),
        compensates: raw.compensates.as_ref().map(|target| target.value.clone()),
        max_attempts: retry.max_attempts.unwrap_or(DEFAULT_ATTEMPTS),
        retry: RetryPolicy {
            retryable: retry.retryable.unwrap_or(true),
            backoff: retry.backoff.unwrap_or_default(),
            base_ms: base_ms.min(max_ms),
            max_ms,
        },
        timeout: timeout_seconds.map(Duration::from_secs_f64),
        name,
    }
}

impl From<&RawLifecycle> for Lifecycle {
    fn from(raw: &RawLifecycle) -> Self {
        let duration =
            |minutes: Option<u32>| minutes.map(|minutes| Duration::from_secs(60 * u64::from(minutes)));
        let action = raw.staleness_action.unwrap_or_default();
        Self {
            max_duration: duration(raw.max_duration_minutes),
            max_waiting_for_dependencies: duration(raw.max_waiting_for_dependencies_minutes),
            max_waiting_for_retry: duration(raw.max_waiting_for_retry_minutes),
            max_steps_in_process: duration(raw.max_steps_in_process_minutes),
            records: raw.auto_dlq_on_timeout.unwrap_or(action == StalenessAction::Dlq),
            fails: raw.auto_fail_on_timeout.unwrap_or(action != StalenessAction::None),
        }
    }
}
