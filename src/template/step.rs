//! One step as a file states it, in any of the spellings: what is not said is `None`.

use std::time::Duration;

use serde_json::{Map, Value as JsonValue};

use super::fields::{At, Fields, Keys, Notes, did_you_mean};
use super::yaml::{Node, Value};
use crate::retry::Backoff;

/// A step, or an environment's changes to one.
#[derive(Debug, Clone, Default)]
pub(super) struct RawStep {
    pub(super) name: At<String>,
    pub(super) description: Option<String>,
    pub(super) callable: Option<String>,
    pub(super) initialization: Map<String, JsonValue>,
    pub(super) dependencies: Vec<At<String>>,
    pub(super) compensates: Option<At<String>>,
    pub(super) retryable: Option<bool>,
    pub(super) max_attempts: Option<u32>,
    pub(super) backoff: Option<Backoff>,
    pub(super) base_ms: Option<At<u64>>,
    pub(super) max_ms: Option<At<u64>>,
    pub(super) timeout: Option<Duration>,
}

impl Default for At<String> {
    fn default() -> Self {
        Self { value: String::new(), line: None }
    }
}

/// More runs than this are a mistake in the template, not patience.
const MOST_ATTEMPTS: u64 = 100;
/// A day: far above the longest delay a broker's ladder has.
const LONGEST_DELAY_MS: u64 = 86_400_000;
/// 30 days.
const LONGEST_TIMEOUT_SECONDS: f64 = 2_592_000.0;

/// The keys that name dependencies, over all formats; a step may have several.
pub(super) const DEPENDENCY_KEYS: [&str; 5] =
    ["dependencies", "depends_on", "depends_on_step", "depends_on_steps", "depends_on_step_name"];

const UNDER_RETRY: &str = "belongs under retry";
const UNDER_HANDLER: &str = "belongs under handler";
const SAME_EVERYWHERE: &str = "cannot differ between environments";

const STEP: Keys = Keys {
    used: &[
        "name",
        "description",
        "handler",
        "handler_class",
        "handler_config",
        "type",
        "step_type",
        "dependencies",
        "depends_on",
        "depends_on_step",
        "depends_on_steps",
        "depends_on_step_name",
        "compensates",
        "retry",
        "default_retryable",
        "default_retry_limit",
        "max_retries",
        "retry_limit",
        "retry_backoff",
        "timeout_seconds",
        "context_key",
    ],
    descriptive: &["execution_environment", "language", "notes"],
    unused: UNUSED_IN_STEPS,
    refused: &[
        ("retryable", UNDER_RETRY),
        ("max_attempts", UNDER_RETRY),
        ("limit", UNDER_RETRY),
        ("backoff", UNDER_RETRY),
        ("backoff_base_ms", UNDER_RETRY),
        ("max_backoff_ms", UNDER_RETRY),
        ("callable", UNDER_HANDLER),
        ("initialization", UNDER_HANDLER),
    ],
};

const OVERRIDE: Keys = Keys {
    used: &[
        "name",
        "description",
        "handler",
        "handler_class",
        "handler_config",
        "retry",
        "default_retryable",
        "default_retry_limit",
        "max_retries",
        "retry_limit",
        "retry_backoff",
        "timeout_seconds",
        "context_key",
    ],
    descriptive: STEP.descriptive,
    unused: UNUSED_IN_STEPS,
    refused: &[
        ("dependencies", SAME_EVERYWHERE),
        ("depends_on", SAME_EVERYWHERE),
        ("depends_on_step", SAME_EVERYWHERE),
        ("depends_on_steps", SAME_EVERYWHERE),
        ("depends_on_step_name", SAME_EVERYWHERE),
        ("compensates", SAME_EVERYWHERE),
        ("type", SAME_EVERYWHERE),
        ("step_type", SAME_EVERYWHERE),
        ("retryable", UNDER_RETRY),
        ("max_attempts", UNDER_RETRY),
        ("limit", UNDER_RETRY),
        ("backoff", UNDER_RETRY),
        ("backoff_base_ms", UNDER_RETRY),
        ("max_backoff_ms", UNDER_RETRY),
        ("callable", UNDER_HANDLER),
        ("initialization", UNDER_HANDLER),
    ],
};

const UNUSED_IN_STEPS: &[&str] = &[
    "batch_config",
    "composition",
    "custom_events",
    "dependent_system",
    "lifecycle",
    "metadata",
    "publishes_events",
    "result_schema",
    "skippable",
    "system_dependency",
];

const HANDLER: Keys = Keys {
    used: &["callable", "initialization"],
    descriptive: &["method"],
    unused: &["resolver"],
    refused: &[],
};

const RETRY: Keys = Keys {
    used: &[
        "retryable",
        "max_attempts",
        "limit",
        "backoff",
        "backoff_strategy",
        "backoff_base_ms",
        "max_backoff_ms",
        "backoff_base_seconds",
        "max_backoff_seconds",
        "backoff_seconds",
        "initial_delay",
        "max_delay",
    ],
    descriptive: &[],
    // Delays always double where they are exponential, and jitter is the worker's setting.
    unused: &["multiplier", "jitter"],
    refused: &[],
};

const RETRY_BACKOFF: Keys =
    Keys { used: &["initial_delay", "max_delay"], descriptive: &[], unused: RETRY.unused, refused: &[] };

impl RawStep {
    /// A step of the template; `None` where it has no usable name.
    pub(super) fn read(node: &Node, position: usize, notes: &mut Notes) -> Option<Self> {
        let place = match named(node) {
            Some(name) => format!("step {name:?}"),
            None => format!("step number {position}"),
        };
        let fields = Fields::read(node, &place, &STEP, notes)?;
        check_type(&fields, notes);
        let mut step = Self::settings(&fields, &place, notes);
        step.dependencies = dependencies(&fields, notes);
        step.compensates = fields.text(&["compensates"], notes);
        if fields.get("name").is_none() {
            notes.mistake(fields.line, fields.say("name is missing"));
            return None;
        }
        step.name = fields.text(&["name"], notes)?;
        Some(step)
    }

    /// What an environment changes of the step called `name`.
    pub(super) fn read_override(
        node: &Node,
        place: &str,
        name: At<String>,
        notes: &mut Notes,
    ) -> Option<Self> {
        let fields = Fields::read(node, place, &OVERRIDE, notes)?;
        Some(Self { name, ..Self::settings(&fields, place, notes) })
    }

    fn settings(fields: &Fields<'_>, place: &str, notes: &mut Notes) -> Self {
        let mut step = Self {
            description: fields.text(&["description"], notes).map(|text| text.value),
            callable: fields.text(&["handler_class"], notes).map(|text| text.value),
            initialization: fields.object(&["handler_config"], notes).unwrap_or_default(),
            retryable: fields.flag(&["default_retryable"], notes),
            max_attempts: attempts(fields, &["default_retry_limit", "max_retries", "retry_limit"], notes),
            // A range from one millisecond: no time at all is a mistake, not "at once".
            timeout: fields
                .seconds(&["timeout_seconds"], 0.001..=LONGEST_TIMEOUT_SECONDS, notes)
                .map(|timeout| timeout.value),
            ..Self::default()
        };
        step.handler(fields, place, notes);
        step.retry_backoff(fields, place, notes);
        step.retry(fields, place, notes);
        if let Some(context_key) = fields.text(&["context_key"], notes) {
            step.context_key(context_key.value);
        }
        step
    }

    /// The context's field a step is about: a setting its handler can read.
    pub(super) fn context_key(&mut self, context_key: String) {
        self.initialization.entry("context_key").or_insert(context_key.into());
    }

    fn handler(&mut self, fields: &Fields<'_>, place: &str, notes: &mut Notes) {
        let Some((key, node)) = fields.get("handler") else { return };
        for legacy in ["handler_class", "handler_config"] {
            if fields.get(legacy).is_some() {
                notes.mistake(
                    key.line,
                    fields.say(&format!("handler and {legacy} say the same thing; keep one")),
                );
            }
        }
        let Some(handler) = Fields::read(node, format!("{place}, handler"), &HANDLER, notes) else { return };
        self.callable = handler.text(&["callable"], notes).map(|text| text.value);
        self.initialization = handler.object(&["initialization"], notes).unwrap_or_default();
    }

    /// The older `retry_backoff`: a kind, or a mapping of delays in seconds.
    fn retry_backoff(&mut self, fields: &Fields<'_>, place: &str, notes: &mut Notes) {
        let Some((_, node)) = fields.get("retry_backoff") else { return };
        if !matches!(node.value, Value::Map(_)) {
            self.backoff = backoff(fields, &["retry_backoff"], notes);
            return;
        }
        let place = format!("{place}, retry_backoff");
        let Some(delays) = Fields::read(node, place, &RETRY_BACKOFF, notes) else { return };
        self.base_ms = delay(&delays, &[], &["initial_delay"], notes);
        self.max_ms = delay(&delays, &[], &["max_delay"], notes);
    }

    fn retry(&mut self, fields: &Fields<'_>, place: &str, notes: &mut Notes) {
        let Some((key, node)) = fields.get("retry") else { return };
        let Some(retry) = Fields::read(node, format!("{place}, retry"), &RETRY, notes) else { return };
        if let Some(retryable) = retry.flag(&["retryable"], notes) {
            self.retryable = Some(retryable);
        }
        if let Some(limit) = attempts(&retry, &["max_attempts", "limit"], notes) {
            if self.max_attempts.is_some_and(|earlier| earlier != limit) {
                let text = "the step's own limit and the one under retry differ; keep one";
                notes.mistake(key.line, fields.say(text));
            }
            self.max_attempts = Some(limit);
        }
        self.backoff = backoff(&retry, &["backoff", "backoff_strategy"], notes).or(self.backoff);
        let (base, max) = listed_delays(&retry, notes);
        self.base_ms = delay(&retry, &["backoff_base_ms"], &["backoff_base_seconds", "initial_delay"], notes)
            .or(base)
            .or(self.base_ms.take());
        self.max_ms = delay(&retry, &["max_backoff_ms"], &["max_backoff_seconds", "max_delay"], notes)
            .or(max)
            .or(self.max_ms.take());
    }

    /// Takes over what `changes` says, field by field; the handler's settings key by key.
    pub(super) fn merge(&mut self, changes: &Self) {
        fn replace<T: Clone>(old: &mut Option<T>, new: &Option<T>) {
            if new.is_some() {
                old.clone_from(new);
            }
        }
        replace(&mut self.description, &changes.description);
        replace(&mut self.callable, &changes.callable);
        replace(&mut self.retryable, &changes.retryable);
        replace(&mut self.max_attempts, &changes.max_attempts);
        replace(&mut self.backoff, &changes.backoff);
        replace(&mut self.base_ms, &changes.base_ms);
        replace(&mut self.max_ms, &changes.max_ms);
        replace(&mut self.timeout, &changes.timeout);
        self.initialization.extend(changes.initialization.clone());
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

fn check_type(fields: &Fields<'_>, notes: &mut Notes) {
    let Some(kind) = fields.text(&["type", "step_type"], notes) else { return };
    match kind.value.trim_start_matches(':') {
        "standard" => {}
        kind_name @ ("decision" | "deferred_convergence" | "deferred" | "batchable" | "batch_worker") => {
            let text = format!("type {kind_name} is not supported yet; only standard steps can be run");
            notes.mistake(kind.line, fields.say(&text));
        }
        other => {
            notes.mistake(kind.line, fields.say(&format!("type {other:?} is unknown; expected standard")));
        }
    }
}

fn attempts(fields: &Fields<'_>, names: &[&str], notes: &mut Notes) -> Option<u32> {
    let limit = fields.whole(names, MOST_ATTEMPTS, notes)?;
    // The first run is always allowed, so none and one are the same.
    u32::try_from(limit.value.max(1)).ok()
}

fn backoff(fields: &Fields<'_>, names: &[&str], notes: &mut Notes) -> Option<Backoff> {
    const KINDS: [(&str, Backoff); 4] = [
        ("none", Backoff::None),
        ("linear", Backoff::Linear),
        ("exponential", Backoff::Exponential),
        ("fibonacci", Backoff::Fibonacci),
    ];
    let kind = fields.text(names, notes)?;
    let name = kind.value.trim_start_matches(':');
    let known = KINDS.iter().find(|(known, _)| *known == name).map(|(_, backoff)| *backoff);
    if known.is_none() {
        let hint = did_you_mean(name, KINDS.iter().map(|(known, _)| *known));
        notes.mistake(kind.line, fields.say(&format!("backoff {name:?} is unknown; {hint}")));
    }
    known
}

/// A delay under a key in milliseconds or under one in seconds.
fn delay(fields: &Fields<'_>, in_ms: &[&str], in_seconds: &[&str], notes: &mut Notes) -> Option<At<u64>> {
    let all: Vec<&str> = in_ms.iter().chain(in_seconds).copied().collect();
    fields.one_of(&all, notes)?;
    fields.whole(in_ms, LONGEST_DELAY_MS, notes).or_else(|| {
        let longest = LONGEST_DELAY_MS as f64 / 1_000.0;
        let delay = fields.seconds(in_seconds, 0.0..=longest, notes)?;
        Some(At { value: u64::try_from(delay.value.as_millis()).ok()?, line: delay.line })
    })
}

/// The older list of delays in seconds: its first and its last. What lies between follows the backoff.
fn listed_delays(retry: &Fields<'_>, notes: &mut Notes) -> (Option<At<u64>>, Option<At<u64>>) {
    let Some((key, node)) = retry.get("backoff_seconds") else { return (None, None) };
    let delays: Option<Vec<u64>> = match node.to_json() {
        JsonValue::Array(items) => items.iter().map(JsonValue::as_u64).collect(),
        single => single.as_u64().map(|delay| vec![delay]),
    };
    let usable = delays.filter(|delays| {
        !delays.is_empty() && delays.is_sorted() && delays.iter().all(|d| *d <= LONGEST_DELAY_MS / 1_000)
    });
    let Some(delays) = usable else {
        let text = format!("backoff_seconds is {}; expected growing numbers of seconds", node.shown());
        notes.mistake(node.line, retry.say(&text));
        return (None, None);
    };
    if delays.len() > 2 {
        let text = "of backoff_seconds the first and the last count; the delays between follow the backoff";
        notes.warning(key.line, retry.say(text));
    }
    let ms = |seconds: Option<&u64>| seconds.map(|seconds| At { value: seconds * 1_000, line: node.line });
    (ms(delays.first()), ms(delays.last()))
}
