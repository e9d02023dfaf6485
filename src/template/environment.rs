//! What a template changes per environment, merged into its steps field by field.

use std::collections::BTreeMap;

use super::fields::{At, Fields, Keys, Notes, Use, did_you_mean, plain};
use super::format::{Environment, Override, RawStep, RawTemplate};
use super::step::named;
use super::yaml::{Node, Value};

const LISTS: &[&str] = &["steps", "step_templates", "step_overrides"];
const ENVIRONMENT: &[Keys] = &[
    (LISTS, Use::Used),
    (&["description"], Use::Describes),
    (&["task_handler", "handler_config"], Use::Unused("steps name their handlers; a task has none")),
    (&["default_context", "default_options"], Use::Unused("a task's context is what is submitted, no more")),
    (&["task_config"], Use::Unused("limits are set per step; under the name ALL for every step")),
];

/// The name that means every step.
const ALL: &str = "ALL";

/// The overrides of all environments.
pub(super) fn read(
    template: &Fields<'_>,
    steps: &[RawStep],
    notes: &mut Notes,
) -> BTreeMap<String, Environment> {
    let mut environments = BTreeMap::new();
    for (key, node) in template.entries("environments", notes) {
        if node.is_null() {
            continue;
        }
        let place = format!("environment {:?}", plain(key));
        let Some(fields) = Fields::read(node, &place, &[ENVIRONMENT], notes) else { continue };
        let lists = LISTS.iter().filter_map(|list| fields.get(list));
        let changes: Vec<Override> = lists.flat_map(|(_, list)| overrides(list, &place, notes)).collect();
        for Override { name, .. } in &changes {
            if name.value != ALL && !steps.iter().any(|step| step.name.value == name.value) {
                let names = steps.iter().map(|step| step.name.value.as_str()).chain([ALL]);
                let hint = did_you_mean(&name.value, names);
                notes.mistake(name.line, fields.say(&format!("no step is called {:?}; {hint}", name.value)));
            }
        }
        environments.insert(plain(key).to_owned(), Environment { steps: changes });
    }
    environments
}

impl RawTemplate {
    /// Applies the overrides of `environment`: first those for all steps, then those for single ones.
    pub(super) fn merge(&mut self, environment: &str) {
        let Some(Environment { steps: changes }) = self.environments.get(environment) else { return };
        for step in &mut self.steps {
            for name in [ALL, step.name.value.as_str()] {
                let changes = changes.iter().filter(|change| change.name.value == name);
                changes.for_each(|change| step.settings.merge(&change.settings));
            }
        }
    }
}

/// Overrides as a list of named ones, or as a mapping from names.
fn overrides(list: &Node, place: &str, notes: &mut Notes) -> Vec<Override> {
    match &list.value {
        Value::List(items) => items
            .iter()
            .filter_map(|item| {
                let Some(name) = named(item) else {
                    notes.mistake(item.line, format!("{place}: an override needs the name of its step"));
                    return None;
                };
                let name = At { value: name.to_owned(), line: item.line };
                Override::read(item, place, name, notes)
            })
            .collect(),
        Value::Map(entries) => {
            notes.repeated_names(entries);
            let overrides = entries.iter().filter(|(_, value)| !value.is_null());
            overrides
                .filter_map(|(key, value)| {
                    let name = At { value: plain(key).to_owned(), line: key.line };
                    Override::read(value, place, name, notes)
                })
                .collect()
        }
        _ => {
            let text = format!("{place}: the overrides are {}; expected a list or a mapping", list.shown());
            notes.mistake(list.line, text);
            Vec::new()
        }
    }
}
