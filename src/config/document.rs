//! A settings file: its values by dotted key, with the lines they are on.

use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::setting::Setting;

/// A file that is being read.
pub(super) struct File<'a> {
    pub(super) name: &'a str,
    pub(super) text: &'a str,
}

impl File<'_> {
    /// Where `offset` is, as `name:line`.
    pub(super) fn at(&self, offset: usize) -> String {
        let line = self.text[..offset.min(self.text.len())].matches('\n').count() + 1;
        format!("{}:{line}", self.name)
    }
}

/// A key and value of a file, the key dotted.
pub(super) struct Entry<'t, 'i> {
    pub(super) at: usize,
    pub(super) key: String,
    pub(super) value: &'t DeValue<'i>,
}

/// Every value of `table`, but unknown tables whole: one mistake is enough for all they hold.
pub(super) fn flatten<'t, 'i>(
    table: &'t DeTable<'i>,
    path: &str,
    known: &[Setting],
    entries: &mut Vec<Entry<'t, 'i>>,
) {
    for (name, value) in table {
        let key =
            if path.is_empty() { name.get_ref().to_string() } else { format!("{path}.{}", name.get_ref()) };
        match value.get_ref() {
            DeValue::Table(section) if is_section(known, &key) => flatten(section, &key, known, entries),
            value => entries.push(Entry { at: name.span().start, key, value }),
        }
    }
}

/// Whether `key` is what the keys of some settings start with.
pub(super) fn is_section(known: &[Setting], key: &str) -> bool {
    known.iter().any(|setting| setting.key.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
}

/// A file's value as JSON.
///
/// # Errors
/// What it is, where no setting has such values.
pub(super) fn json(value: &DeValue<'_>) -> Result<Value, &'static str> {
    Ok(match value {
        DeValue::String(text) => Value::from(text.as_ref()),
        DeValue::Boolean(boolean) => Value::Bool(*boolean),
        DeValue::Integer(integer) => {
            let number = i64::from_str_radix(integer.as_str(), integer.radix());
            Value::from(number.map_err(|_| "an integer of more than 64 bits")?)
        }
        DeValue::Float(float) => {
            let number: f64 = float.as_str().parse().map_err(|_| "a number that cannot be read")?;
            serde_json::Number::from_f64(number).ok_or("a number that is not finite")?.into()
        }
        DeValue::Datetime(_) => return Err("a date or time"),
        DeValue::Table(_) => return Err("a table"),
        DeValue::Array(items) => {
            items.iter().map(|item| json(Spanned::get_ref(item))).collect::<Result<Value, _>>()?
        }
    })
}
