//! What a template changes per environment, merged into its steps field by field.

use super::fields::{At, Fields, Keys, Notes, did_you_mean, plain};
use super::step::{RawStep, named};
use super::yaml::{Node, Value};

const ENVIRONMENT: Keys = Keys {
    used: &["steps", "step_templates", "step_overrides"],
    descriptive: &["description"],
    unused: &["default_context", "default_options", "handler_config", "task_config", "task_handler"],
    refused: &[],
};

/// The name that means every step.
const ALL: &str = "ALL";

/// Checks the overrides of all environments and merges those of `selected` into `steps`: first those for
/// all steps, then those for single ones.
pub(super) fn overrides(
    template: &Fields<'_>,
    steps: &mut [RawStep],
    selected: Option<&str>,
    notes: &mut Notes,
) {
    for (key, node) in template.entries("environments", notes) {
        if node.is_null() {
            continue;
        }
        let name = plain(key);
        let place = format!("environment {name:?}");
        let Some(fields) = Fields::read(node, &place, &ENVIRONMENT, notes) else { continue };
        let changes: Vec<RawStep> = ["steps", "step_templates", "step_overrides"]
            .into_iter()
            .filter_map(|list| fields.get(list))
            .flat_map(|(_, list)| changes(list, &place, notes))
            .collect();
        for change in &changes {
            if change.name.value != ALL && !steps.iter().any(|step| step.name.value == change.name.value) {
                let names = steps.iter().map(|step| step.name.value.as_str()).chain([ALL]);
                let hint = did_you_mean(&change.name.value, names);
                notes.mistake(
                    change.name.line,
                    fields.say(&format!("no step is called {:?}; {hint}", change.name.value)),
                );
            }
        }
        if selected == Some(name) {
            merge(steps, &changes);
        }
    }
}

fn merge(steps: &mut [RawStep], changes: &[RawStep]) {
    let (for_all, for_one): (Vec<_>, Vec<_>) = changes.iter().partition(|change| change.name.value == ALL);
    for step in steps {
        let own = for_one.iter().filter(|change| change.name.value == step.name.value).copied();
        let changes: Vec<&RawStep> = for_all.iter().copied().chain(own).collect();
        changes.into_iter().for_each(|change| step.merge(change));
    }
}

/// Overrides as a list of named ones, or as a mapping from names.
fn changes(list: &Node, place: &str, notes: &mut Notes) -> Vec<RawStep> {
    match &list.value {
        Value::List(items) => items
            .iter()
            .filter_map(|item| {
                let Some(name) = named(item) else {
                    notes.mistake(item.line, format!("{place}: an override needs the name of its step"));
                    return None;
                };
                let at = At { value: name.to_owned(), line: item.line };
                RawStep::read_override(item, &format!("{place}, step {name:?}"), at, notes)
            })
            .collect(),
        Value::Map(entries) => entries
            .iter()
            .filter(|(_, value)| !value.is_null())
            .filter_map(|(key, value)| {
                let name = plain(key);
                let at = At { value: name.to_owned(), line: key.line };
                RawStep::read_override(value, &format!("{place}, step {name:?}"), at, notes)
            })
            .collect(),
        _ => {
            let text = format!("{place}: the overrides are {}; expected a list or a mapping", list.shown());
            notes.mistake(list.line, text);
            Vec::new()
        }
    }
}
