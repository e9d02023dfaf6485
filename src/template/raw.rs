//! A whole template as a file states it: all formats, one shape.

use serde_json::Value as JsonValue;

use super::IdentityStrategy;
use super::environment;
use super::fields::{At, Fields, Keys, Notes, did_you_mean};
use super::step::{self, RawStep};
use super::yaml::{Node, Value};

/// A template whose spellings are read but whose sense is not checked. What is `None` though a template needs
/// it has been noted.
#[derive(Debug)]
pub(super) struct RawTemplate {
    pub(super) namespace: Option<At<String>>,
    pub(super) name: Option<At<String>>,
    pub(super) version: Option<At<String>>,
    pub(super) description: Option<String>,
    pub(super) input_schema: Option<JsonValue>,
    pub(super) identity_strategy: IdentityStrategy,
    pub(super) steps: Vec<RawStep>,
}

const TEMPLATE: Keys = Keys {
    used: &[
        "name",
        "namespace",
        "namespace_name",
        "version",
        "description",
        "input_schema",
        "schema",
        "identity_strategy",
        "steps",
        "step_templates",
        "workflow_steps",
        "named_steps",
        "environments",
    ],
    descriptive: &["language", "loaded_from", "module_namespace", "task_handler_class"],
    unused: &[
        "constraints",
        "custom_events",
        "default_context",
        "default_dependent_system",
        "default_options",
        "domain_events",
        "error_handling",
        "events",
        "handler_config",
        "lifecycle",
        "metadata",
        "monitoring",
        "performance",
        "security",
        "settings",
        "system_dependencies",
        "task_config",
        "task_handler",
        "testing",
        "workflow_config",
    ],
    refused: &[],
};

const WORKFLOW_STEP: Keys = Keys {
    used: &[
        "step_template",
        "context_key",
        "dependencies",
        "depends_on",
        "depends_on_step",
        "depends_on_steps",
        "depends_on_step_name",
    ],
    descriptive: &["description"],
    unused: &[],
    refused: &[],
};

impl RawTemplate {
    /// Reads the template, with the overrides of `environment` applied. `None` when it is no mapping.
    pub(super) fn read(root: &Node, environment: Option<&str>, notes: &mut Notes) -> Option<Self> {
        let fields = Fields::read(root, "", &TEMPLATE, notes)?;
        let mut steps = steps(&fields, notes);
        workflow_steps(&fields, &mut steps, notes);
        named_steps(&fields, &steps, notes);
        environment::overrides(&fields, &mut steps, environment, notes);
        Some(Self {
            namespace: required(&fields, &["namespace_name", "namespace"], "orders", notes),
            name: required(&fields, &["name"], "order_processing", notes),
            version: version(&fields, notes),
            description: fields.text(&["description"], notes).map(|text| text.value),
            input_schema: fields.object(&["input_schema", "schema"], notes).map(JsonValue::Object),
            identity_strategy: identity_strategy(&fields, notes),
            steps,
        })
    }
}

fn identity_strategy(fields: &Fields<'_>, notes: &mut Notes) -> IdentityStrategy {
    const STRATEGIES: [(&str, IdentityStrategy); 3] = [
        ("strict", IdentityStrategy::Strict),
        ("caller_provided", IdentityStrategy::CallerProvided),
        ("always_unique", IdentityStrategy::AlwaysUnique),
    ];
    let Some(text) = fields.text(&["identity_strategy"], notes) else { return IdentityStrategy::Strict };
    let name = text.value.trim_start_matches(':');
    let known = STRATEGIES.iter().find(|(known, _)| *known == name);
    if known.is_none() {
        let hint = did_you_mean(name, STRATEGIES.iter().map(|(known, _)| *known));
        notes.mistake(text.line, format!("identity_strategy {name:?} is unknown; {hint}"));
    }
    known.map_or(IdentityStrategy::Strict, |(_, strategy)| *strategy)
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
        let Some(entry) = Fields::read(node, "workflow step", &WORKFLOW_STEP, notes) else { continue };
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
            step.context_key(context_key.value);
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
