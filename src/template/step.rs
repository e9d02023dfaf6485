//! Reads one step, in any of the spellings.

use serde_json::Value as JsonValue;

use super::FailureStrategy;
use super::fields::{At, Fields, Keys, Notes, Use};
use super::format::{Kind, Override, RawBatch, RawHandler, RawRetry, RawStep, Settings};
use super::yaml::{Node, Value};
use crate::retry::Backoff;
use Use::{Describes, Refused, Unused, Used};

/// More runs than this are a mistake in the template, not patience.
const MOST_ATTEMPTS: u32 = 100;
/// A day: far above the longest delay a broker's ladder has.
const LONGEST_DELAY_MS: u32 = 86_400_000;
/// 30 days.
const LONGEST_TIMEOUT_SECONDS: f64 = 2_592_000.0;

/// The keys that name dependencies, over all formats; a step may have several.
pub(super) const DEPENDENCY_KEYS: &[&str] =
    &["dependencies", "depends_on", "depends_on_step", "depends_on_steps", "depends_on_step_name"];

const UNDER_RETRY: &[&str] =
    &["retryable", "max_attempts", "limit", "backoff", "backoff_base_ms", "max_backoff_ms"];
const SAME_EVERYWHERE: Use = Refused("cannot differ between environments");

/// What steps and overrides share.
const SETTINGS: &[Keys] = &[
    (&["name", "description", "handler", "handler_class", "handler_config", "timeout_seconds"], Used),
    (&["retry", "default_retryable", "default_retry_limit", "max_retries", "retry_limit"], Used),
    (&["retry_backoff", "context_key"], Used),
    (&["execution_environment", "language", "notes"], Describes),
    (&["dependent_system", "system_dependency"], Unused(SYSTEMS)),
    (&["custom_events", "publishes_events"], Unused(EVENTS)),
    (&["skippable"], Unused("no step is skipped")),
    (&["composition"], Unused("a step has one handler")),
    (&["result_schema"], Unused("it is for tools that generate types; results are not checked")),
    (&["lifecycle"], Unused("the limits of a step are under retry and timeout_seconds")),
    (&["metadata"], Unused("it describes the step for people")),
    (UNDER_RETRY, Refused("belongs under retry")),
    (&["callable", "initialization"], Refused("belongs under handler")),
];
const STEP: &[Keys] =
    &[(&["type", "step_type", "compensates", "batch_config"], Used), (DEPENDENCY_KEYS, Used)];
const OVERRIDE: &[Keys] = &[
    (&["type", "step_type", "compensates", "batch_config"], SAME_EVERYWHERE),
    (DEPENDENCY_KEYS, SAME_EVERYWHERE),
];
pub(super) const SYSTEMS: &str = "which system a step talks to is its handler's business";
pub(super) const EVENTS: &str = "domain events are not published";

const HANDLER: &[Keys] = &[
    (&["callable", "initialization"], Used),
    (&["method"], Unused("a handler has one method")),
    (&["resolver"], Unused("handlers are found by namespace and step, then by callable")),
];
const RETRY: &[Keys] = &[
    (&["retryable", "max_attempts", "limit", "backoff", "backoff_strategy"], Used),
    (&["backoff_base_ms", "max_backoff_ms", "backoff_base_seconds", "max_backoff_seconds"], Used),
    (&["backoff_seconds"], Used),
];
/// The older mapping of delays, whose keys are read under `retry` too.
const DELAYS: &[Keys] = &[
    (&["initial_delay", "max_delay"], Used),
    (&["multiplier"], Unused("exponential delays double")),
    (&["jitter"], Unused("the worker's setting worker.retry.jitter says whether delays are spread")),
];
const BATCH: &[Keys] = &[
    (&["batch_size", "parallelism", "checkpoint_interval"], Used),
    (&["cursor_field", "worker_template", "failure_strategy"], Used),
    (
        &["resumable"],
        Unused("a batch goes on from the last checkpoint that its handler reported, if it reports any"),
    ),
];

impl RawStep {
    /// A step of the template; `None` where it has no usable name.
    pub(super) fn read(node: &Node, position: usize, notes: &mut Notes) -> Option<Self> {
        let place = match named(node) {
            Some(name) => format!("step {name:?}"),
            None => format!("step number {position}"),
        };
        let fields = Fields::read(node, &place, &[SETTINGS, STEP], notes)?;
        let step = Self {
            kind: kind(&fields, notes),
            settings: Settings::read(&fields, &place, notes),
            dependencies: dependencies(&fields, notes),
            compensates: fields.text(&["compensates"], notes),
            batch_config: batch(&fields, &place, notes),
            system_dependency: fields.json("system_dependency"),
            publishes_events: fields.json("publishes_events"),
            result_schema: fields.json("result_schema"),
            composition: fields.json("composition"),
            lifecycle: fields.json("lifecycle"),
            metadata: fields.json("metadata"),
            name: At::default(),
        };
        if fields.get("name").is_none() {
            notes.mistake(fields.line, fields.say("name is missing"));
            return None;
        }
        Some(Self { name: fields.text(&["name"], notes)?, ..step })
    }
}

impl Override {
    /// What an environment changes of the step called `name`.
    pub(super) fn read(node: &Node, place: &str, name: At<String>, notes: &mut Notes) -> Option<Self> {
        let place = format!("{place}, step {:?}", name.value);
        let fields = Fields::read(node, &place, &[SETTINGS, OVERRIDE], notes)?;
        Some(Self { name, settings: Settings::read(&fields, &place, notes) })
    }
}

impl Settings {
    fn read(fields: &Fields<'_>, place: &str, notes: &mut Notes) -> Self {
        let mut settings = Self {
            description: fields.text(&["description"], notes).map(|text| text.value),
            handler: handler(fields, place, notes),
            retry: retry(fields, place, notes),
            // A range from one millisecond: no time at all is a mistake, not "at once".
            timeout_seconds: fields
                .seconds(&["timeout_seconds"], 0.001..=LONGEST_TIMEOUT_SECONDS, notes)
                .map(|timeout| timeout.value),
        };
        if let Some(context_key) = fields.text(&["context_key"], notes) {
            settings.context_key(context_key.value);
        }
        settings
    }

    /// The context's field a step is about: a setting its handler can read.
    pub(super) fn context_key(&mut self, context_key: String) {
        self.handler.initialization.entry("context_key").or_insert(context_key.into());
    }

    /// Takes over what `changes` says, field by field; the handler's settings key by key.
    pub(super) fn merge(&mut self, changes: &Self) {
        fn replace<T: Clone>(old: &mut Option<T>, new: &Option<T>) {
            if new.is_some() {
                old.clone_from(new);
            }
        }
        replace(&mut self.description, &changes.description);
        replace(&mut self.timeout_seconds, &changes.timeout_seconds);
        replace(&mut self.handler.callable, &changes.handler.callable);
        self.handler.initialization.extend(changes.handler.initialization.clone());
        let (old, new) = (&mut self.retry, &changes.retry);
        replace(&mut old.retryable, &new.retryable);
        replace(&mut old.max_attempts, &new.max_attempts);
        replace(&mut old.backoff, &new.backoff);
        replace(&mut old.backoff_base_ms, &new.backoff_base_ms);
        replace(&mut old.max_backoff_ms, &new.max_backoff_ms);
    }
}

/// The name a mapping gives itself, however its key is spelt.
pub(super) fn named(node: &Node) -> Option<&str> {
    let Value::Map(entries) = &node.value else { return None };
    let (_, name) = entries.iter().find(|(key, _)| super::fields::plain(key) == "name")?;
    match &name.value {
        Value::Text(name) => Some(name),
        _ => None,
    }
}

/// The names under every key that may hold them.
pub(super) fn dependencies(fields: &Fields<'_>, notes: &mut Notes) -> Vec<At<String>> {
    DEPENDENCY_KEYS.iter().flat_map(|key| fields.names(key, notes)).collect()
}

fn kind(fields: &Fields<'_>, notes: &mut Notes) -> Option<At<Kind>> {
    const KINDS: &[(&str, Kind)] = &[
        ("standard", Kind::Standard),
        ("decision", Kind::Decision),
        ("deferred_convergence", Kind::DeferredConvergence),
        ("batchable", Kind::Batchable),
        ("batch_worker", Kind::BatchWorker),
        ("deferred", Kind::DeferredConvergence),
    ];
    fields.choice(&["type", "step_type"], "type", KINDS, notes)
}

fn handler(fields: &Fields<'_>, place: &str, notes: &mut Notes) -> RawHandler {
    let Some((key, node)) = fields.get("handler") else {
        return RawHandler {
            callable: fields.text(&["handler_class"], notes).map(|text| text.value),
            initialization: fields.object(&["handler_config"], notes).unwrap_or_default(),
            ..RawHandler::default()
        };
    };
    for legacy in ["handler_class", "handler_config"] {
        if fields.get(legacy).is_some() {
            let text = format!("handler and {legacy} say the same thing; keep one");
            notes.mistake(key.line, fields.say(&text));
        }
    }
    let place = format!("{place}, handler");
    let Some(handler) = Fields::read(node, place, &[HANDLER], notes) else { return RawHandler::default() };
    RawHandler {
        callable: handler.text(&["callable"], notes).map(|text| text.value),
        initialization: handler.object(&["initialization"], notes).unwrap_or_default(),
        method: handler.json("method"),
        resolver: handler.json("resolver"),
    }
}

fn retry(fields: &Fields<'_>, place: &str, notes: &mut Notes) -> RawRetry {
    let mut retry = RawRetry {
        retryable: fields.flag(&["default_retryable"], notes),
        max_attempts: attempts(fields, &["default_retry_limit", "max_retries", "retry_limit"], notes),
        ..RawRetry::default()
    };
    // The older form: a kind, or a mapping of delays in seconds.
    if let Some((_, node)) = fields.get("retry_backoff") {
        if !matches!(node.value, Value::Map(_)) {
            retry.backoff = backoff(fields, &["retry_backoff"], notes);
        } else if let Some(delays) = Fields::read(node, format!("{place}, retry_backoff"), &[DELAYS], notes) {
            retry.backoff_base_ms = delay(&delays, &[], &["initial_delay"], notes);
            retry.max_backoff_ms = delay(&delays, &[], &["max_delay"], notes);
        }
    }
    let Some((key, node)) = fields.get("retry") else { return retry };
    let Some(fields_below) = Fields::read(node, format!("{place}, retry"), &[RETRY, DELAYS], notes) else {
        return retry;
    };
    let limit = attempts(&fields_below, &["max_attempts", "limit"], notes);
    if limit.is_some() && retry.max_attempts.is_some_and(|earlier| Some(earlier) != limit) {
        let text = "the step's own limit and the one under retry differ; keep one";
        notes.mistake(key.line, fields.say(text));
    }
    let (first, last) = listed_delays(&fields_below, notes);
    let base = ["backoff_base_seconds", "initial_delay"];
    let max = ["max_backoff_seconds", "max_delay"];
    RawRetry {
        retryable: fields_below.flag(&["retryable"], notes).or(retry.retryable),
        max_attempts: limit.or(retry.max_attempts),
        backoff: backoff(&fields_below, &["backoff", "backoff_strategy"], notes).or(retry.backoff),
        backoff_base_ms: delay(&fields_below, &["backoff_base_ms"], &base, notes)
            .or(first)
            .or(retry.backoff_base_ms),
        max_backoff_ms: delay(&fields_below, &["max_backoff_ms"], &max, notes)
            .or(last)
            .or(retry.max_backoff_ms),
    }
}

fn attempts(fields: &Fields<'_>, names: &[&str], notes: &mut Notes) -> Option<u32> {
    // The first run is always allowed, so none and one are the same.
    Some(fields.whole(names, 0..=MOST_ATTEMPTS, notes)?.value.max(1))
}

fn backoff(fields: &Fields<'_>, names: &[&str], notes: &mut Notes) -> Option<Backoff> {
    const KINDS: &[(&str, Backoff)] = &[
        ("none", Backoff::None),
        ("linear", Backoff::Linear),
        ("exponential", Backoff::Exponential),
        ("fibonacci", Backoff::Fibonacci),
    ];
    fields.choice(names, "backoff", KINDS, notes).map(|backoff| backoff.value)
}

/// A delay under a key in milliseconds or under one in seconds.
fn delay(fields: &Fields<'_>, in_ms: &[&str], in_seconds: &[&str], notes: &mut Notes) -> Option<At<u32>> {
    let all: Vec<&str> = in_ms.iter().chain(in_seconds).copied().collect();
    fields.one_of(&all, notes)?;
    fields.whole(in_ms, 0..=LONGEST_DELAY_MS, notes).or_else(|| {
        let delay = fields.seconds(in_seconds, 0.0..=f64::from(LONGEST_DELAY_MS) / 1_000.0, notes)?;
        Some(At { value: (delay.value * 1_000.0).round() as u32, line: delay.line })
    })
}

/// The older list of delays in seconds: its first and its last. What lies between follows the backoff.
fn listed_delays(retry: &Fields<'_>, notes: &mut Notes) -> (Option<At<u32>>, Option<At<u32>>) {
    let Some((key, node)) = retry.get("backoff_seconds") else { return (None, None) };
    let in_ms = |value: &JsonValue| {
        let ms = value.as_f64()? * 1_000.0;
        (0.0..=f64::from(LONGEST_DELAY_MS)).contains(&ms).then_some(ms.round() as u32)
    };
    let delays: Option<Vec<u32>> = match node.to_json() {
        JsonValue::Array(items) => items.iter().map(in_ms).collect(),
        single => in_ms(&single).map(|delay| vec![delay]),
    };
    let Some(delays) = delays.filter(|delays| !delays.is_empty() && delays.is_sorted()) else {
        let text = format!("backoff_seconds is {}; expected growing numbers of seconds", node.shown());
        notes.mistake(node.line, retry.say(&text));
        return (None, None);
    };
    if delays.len() > 2 {
        let text = "of backoff_seconds the first and the last count; the delays between follow the backoff";
        notes.warning(key.line, retry.say(text));
    }
    let at = |ms: Option<&u32>| ms.map(|ms| At { value: *ms, line: node.line });
    (at(delays.first()), at(delays.last()))
}

fn batch(fields: &Fields<'_>, place: &str, notes: &mut Notes) -> Option<RawBatch> {
    const STRATEGIES: &[(&str, FailureStrategy)] = &[
        ("continue_on_failure", FailureStrategy::ContinueOnFailure),
        ("fail_fast", FailureStrategy::FailFast),
        ("isolate", FailureStrategy::Isolate),
    ];
    let (key, node) = fields.get("batch_config")?;
    let batch = Fields::read(node, format!("{place}, batch_config"), &[BATCH], notes)?;
    Some(RawBatch {
        batch_size: batch.whole(&["batch_size"], 1..=100_000, notes).map(|at| at.value),
        parallelism: batch.whole(&["parallelism"], 1..=1_000, notes).map(|at| at.value),
        checkpoint_interval: batch
            .whole(&["checkpoint_interval"], 0..=u32::MAX, notes)
            .map(|at| at.value)
            .filter(|items| *items > 0),
        cursor_field: batch.text(&["cursor_field"], notes).map(|at| at.value),
        worker_template: batch.text(&["worker_template"], notes),
        failure_strategy: batch
            .choice(&["failure_strategy"], "failure_strategy", STRATEGIES, notes)
            .map(|at| at.value),
        line: key.line,
    })
}
