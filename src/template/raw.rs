//! Reads a whole template: all formats, one shape.

use std::collections::BTreeSet;

use super::IdentityStrategy;
use super::environment;
use super::fields::{At, Fields, Keys, Notes, Use, did_you_mean};
use super::format::{RawLifecycle, RawStep, RawTemplate, StalenessAction};
use super::step::{self, DEPENDENCY_KEYS, EVENTS, SYSTEMS};
use super::yaml::{Node, Value};
use Use::{Describes, Unused, Used};

const NEVER_READ: &str = "nothing ever read it";

const TEMPLATE: &[Keys] = &[
    (&["name", "namespace", "namespace_name", "version", "description", "input_schema", "schema"], Used),
    (&["identity_strategy", "lifecycle"], Used),
    (&["steps", "step_templates", "workflow_steps", "named_steps", "environments"], Used),
    (&["language", "loaded_from"], Describes),
    (&["metadata"], Unused("it describes the template for people")),
    (
        &["task_handler", "task_handler_class", "handler_config"],
        Unused("steps name their handlers; a task has none"),
    ),
    (&["module_namespace"], Unused("handlers are named in full")),
    (&["default_dependent_system", "system_dependencies"], Unused(SYSTEMS)),
    (&["custom_events", "domain_events", "events"], Unused(EVENTS)),
    (&["default_context", "default_options"], Unused("a task's context is what is submitted, no more")),
    (&["task_config", "workflow_config"], Unused("limits are set per step")),
    (&["settings", "constraints", "error_handling", "testing"], Unused(NEVER_READ)),
    (&["monitoring", "security", "performance"], Unused(NEVER_READ)),
];
const WORKFLOW_STEP: &[Keys] =
    &[(&["step_template", "context_key"], Used), (DEPENDENCY_KEYS, Used), (&["description"], Describes)];
const LIFECYCLE: &[Keys] = &[
    (LIMITS, Used),
    (&["staleness_action", "auto_fail_on_timeout", "auto_dlq_on_timeout"], Used),
    (&["description"], Describes),
];
const LIMITS: &[&str] = &[
    "max_duration_minutes",
    "max_waiting_for_dependencies_minutes",
    "max_waiting_for_retry_minutes",
    "max_steps_in_process_minutes",
];
/// 30 days.
const LONGEST_LIMIT_MINUTES: u32 = 43_200;

impl RawTemplate {
    /// Reads the template, without applying an environment's overrides. `None` when it is no mapping.
    pub(super) fn read(root: &Node, notes: &mut Notes) -> Option<Self> {
        let fields = Fields::read(root, "", &[TEMPLATE], notes)?;
        let mut steps = steps(&fields, notes);
        workflow_steps(&fields, &mut steps, notes);
        for step in &mut steps {
            let mut seen = BTreeSet::new();
            step.dependencies.retain(|on| seen.insert(on.value.clone()));
        }
        named_steps(&fields, &steps, notes);
        Some(Self {
            name: required(&fields, &["name"], "order_processing", notes),
            namespace_name: required(&fields, &["namespace_name", "namespace"], "orders", notes),
            version: version(&fields, notes),
            description: fields.text(&["description"], notes).map(|text| text.value),
            metadata: fields.json("metadata"),
            task_handler: fields.json("task_handler"),
            system_dependencies: fields.json("system_dependencies"),
            domain_events: fields.json("domain_events"),
            input_schema: fields.object(&["input_schema", "schema"], notes).map(|schema| At {
                value: schema,
                line: fields.one_of(&["input_schema", "schema"], notes).and_then(|(key, _)| key.line),
            }),
            identity_strategy: identity_strategy(&fields, notes),
            lifecycle: lifecycle(&fields, notes),
            environments: environment::read(&fields, &steps, notes),
            steps,
        })
    }
}

fn identity_strategy(fields: &Fields<'_>, notes: &mut Notes) -> Option<IdentityStrategy> {
    const STRATEGIES: &[(&str, IdentityStrategy)] = &[
        ("strict", IdentityStrategy::Strict),
        ("caller_provided", IdentityStrategy::CallerProvided),
        ("always_unique", IdentityStrategy::AlwaysUnique),
    ];
    let strategy = fields.choice(&["identity_strategy"], "identity_strategy", STRATEGIES, notes);
    strategy.map(|strategy| strategy.value)
}

fn lifecycle(fields: &Fields<'_>, notes: &mut Notes) -> Option<RawLifecycle> {
    const ACTIONS: &[(&str, StalenessAction)] =
        &[("dlq", StalenessAction::Dlq), ("error", StalenessAction::Error), ("none", StalenessAction::None)];
    let (_, node) = fields.get("lifecycle")?;
    let fields = Fields::read(node, "lifecycle", &[LIFECYCLE], notes)?;
    let [duration, dependencies, retry, in_process] = [0, 1, 2, 3].map(|index| {
        fields.whole(&LIMITS[index..=index], 1..=LONGEST_LIMIT_MINUTES, notes).map(|limit| limit.value)
    });
    Some(RawLifecycle {
        max_duration_minutes: duration,
        max_waiting_for_dependencies_minutes: dependencies,
        max_waiting_for_retry_minutes: retry,
        max_steps_in_process_minutes: in_process,
        staleness_action: fields
            .choice(&["staleness_action"], "staleness_action", ACTIONS, notes)
            .map(|action| action.value),
        auto_fail_on_timeout: fields.flag(&["auto_fail_on_timeout"], notes),
        auto_dlq_on_timeout: fields.flag(&["auto_dlq_on_timeout"], notes),
    })
}

fn required(fields: &Fields<'_>, keys: &[&str], example: &str, notes: &mut Notes) -> Option<At<String>> {
    if !keys.iter().any(|key| fields.get(key).is_some()) {
        let key = keys[0];
        notes.mistake(None, format!("{key} is missing; add a line such as {key}: {example}"));
        return None;
    }
    let text = fields.text(keys, notes)?;
    if text.value.trim().is_empty() {
        notes.mistake(text.line, format!("{} is empty; write for example {example}", keys[0]));
        return None;
    }
    Some(text)
}

fn version(fields: &Fields<'_>, notes: &mut Notes) -> Option<At<String>> {
    match fields.get("version") {
        // Without quotes it may look like a number; the check of its form says that better.
        Some((_, Node { value: Value::Number(number), line })) => {
            Some(At { value: number.to_string(), line: *line })
        }
        _ => required(fields, &["version"], "1.0.0", notes),
    }
}

fn steps(fields: &Fields<'_>, notes: &mut Notes) -> Vec<RawStep> {
    if let (Some(_), Some((key, _))) = (fields.get("steps"), fields.get("step_templates")) {
        notes.mistake(key.line, "steps and step_templates are two formats of one list; keep one");
    }
    let list = if fields.get("steps").is_some() { "steps" } else { "step_templates" };
    let nodes = fields.items(list, notes);
    // What is no list has been noted already.
    if nodes.is_empty() && fields.get(list).is_none_or(|(_, node)| matches!(node.value, Value::List(_))) {
        let line = fields.get(list).and_then(|(key, _)| key.line);
        notes.mistake(line, "there are no steps; list at least one under steps");
    }
    nodes.iter().enumerate().filter_map(|(index, node)| RawStep::read(node, index + 1, notes)).collect()
}

/// The list that puts step templates into the workflow: more dependencies, and what a step is about.
fn workflow_steps(fields: &Fields<'_>, steps: &mut [RawStep], notes: &mut Notes) {
    let mut used = vec![0u32; steps.len()];
    let nodes = fields.items("workflow_steps", notes);
    for node in nodes {
        let Some(entry) = Fields::read(node, "workflow step", &[WORKFLOW_STEP], notes) else { continue };
        let Some(name) = entry.text(&["step_template"], notes) else {
            if entry.get("step_template").is_none() {
                notes.mistake(entry.line, entry.say("step_template is missing"));
            }
            continue;
        };
        let Some(index) = steps.iter().position(|step| step.name.value == name.value) else {
            let hint = did_you_mean(&name.value, steps.iter().map(|step| step.name.value.as_str()));
            notes.mistake(
                name.line,
                format!("workflow step: no step template is called {:?}; {hint}", name.value),
            );
            continue;
        };
        used[index] += 1;
        if used[index] == 2 {
            let text =
                format!("step template {:?} is used twice; a step needs a name of its own", name.value);
            notes.mistake(name.line, text);
        }
        let step = &mut steps[index];
        step.dependencies.extend(step::dependencies(&entry, notes));
        if let Some(context_key) = entry.text(&["context_key"], notes) {
            step.settings.context_key(context_key.value);
        }
    }
    if !nodes.is_empty() {
        for (step, _) in steps.iter().zip(used).filter(|(_, used)| *used == 0) {
            let name = &step.name.value;
            let text = format!("step {name:?} is not among the workflow_steps; add it there or remove it");
            notes.mistake(step.name.line, text);
        }
    }
}

/// The older list of all names: nothing depends on it, so differences are only worth a word.
fn named_steps(fields: &Fields<'_>, steps: &[RawStep], notes: &mut Notes) {
    let named = fields.names("named_steps", notes);
    for name in named.iter().filter(|name| !steps.iter().any(|step| step.name.value == name.value)) {
        notes.warning(name.line, format!("named_steps lists {:?}, which is no step", name.value));
    }
    for step in steps.iter().filter(|step| !named.iter().any(|name| name.value == step.name.value)) {
        if !named.is_empty() {
            notes.warning(step.name.line, format!("named_steps does not list step {:?}", step.name.value));
        }
    }
}
