//! A task's context against its template's `input_schema`.

use jsonschema::Validator;
use serde_json::Value;

use super::Template;

/// The `input_schema` of a template, ready for use.
#[derive(Debug)]
pub struct ContextSchema(Validator);

impl ContextSchema {
    /// The schema of `template`, where it has one.
    ///
    /// # Errors
    /// A sentence, for a template that was never validated.
    pub fn of(template: &Template) -> Result<Option<Self>, String> {
        template.input_schema.as_ref().map(Self::new).transpose()
    }

    /// Reads a schema of any draft, 2020-12 where it does not say which. Nothing is fetched: it may refer to
    /// its own parts alone.
    pub(super) fn new(schema: &Value) -> Result<Self, String> {
        match jsonschema::options().build(schema) {
            Ok(validator) => Ok(Self(validator)),
            Err(error) => Err(told(&error)),
        }
    }

    /// Every way in which `context` does not fit, each with the JSON path of the value at fault.
    pub fn mistakes(&self, context: &Value) -> Vec<String> {
        self.0.iter_errors(context).map(|error| told(&error)).collect()
    }
}

fn told(error: &jsonschema::ValidationError<'_>) -> String {
    let path = error.instance_path().as_str();
    if path.is_empty() { error.to_string() } else { format!("{path}: {error}") }
}
