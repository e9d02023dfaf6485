//! `${VAR}` and `${VAR:-default}` in a template's texts.

use super::Mistake;
use super::fields::{Notes, plain};
use super::yaml::{Node, Value};

/// What a variable stands for, where it is set.
pub type Lookup<'l> = &'l dyn Fn(&str) -> Option<String>;

/// Replaces the variables of every text of a template, keys left as they are. An empty value counts as none,
/// as in a shell. What stands for a variable that is neither set nor has a default stays, with a word where it
/// takes effect in `environment`. `$${` stands for `${`.
pub(super) fn replace(root: &mut Node, environment: Option<&str>, lookup: Lookup<'_>, notes: &mut Notes) {
    let Value::Map(entries) = &mut root.value else { return };
    for (key, value) in entries {
        match &mut value.value {
            Value::Map(environments) if plain(key) == "environments" => {
                for (name, value) in environments {
                    let elsewhere = environment != Some(plain(name));
                    let mut unheard = Vec::new();
                    replace_below(value, lookup, if elsewhere { &mut unheard } else { &mut notes.unset });
                }
            }
            _ => replace_below(value, lookup, &mut notes.unset),
        }
    }
}

fn replace_below(node: &mut Node, lookup: Lookup<'_>, unset: &mut Vec<Mistake>) {
    match &mut node.value {
        Value::Text(text) => {
            let mut missing = Vec::new();
            *text = replaced(text, lookup, &mut missing);
            unset.extend(missing.into_iter().map(|name| {
                let message = format!(
                    "{name} is not set and has no default, so ${{{name}}} stays as it is; set it, or write ${{{name}:-default}}"
                );
                Mistake { line: node.line, message }
            }));
        }
        Value::List(items) => items.iter_mut().for_each(|item| replace_below(item, lookup, unset)),
        Value::Map(entries) => entries.iter_mut().for_each(|(_, value)| replace_below(value, lookup, unset)),
        _ => {}
    }
}

fn replaced(text: &str, lookup: Lookup<'_>, missing: &mut Vec<String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, expression) = (&rest[..at], &rest[at + 2..]);
        if let Some(before) = before.strip_suffix('$') {
            result.push_str(before);
            result.push_str("${");
            rest = expression;
            continue;
        }
        result.push_str(before);
        let Some((inner, after)) = expression.split_once('}') else {
            result.push_str("${");
            rest = expression;
            continue;
        };
        let (name, default) = match inner.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inner, None),
        };
        let value = if is_name(name) { lookup(name).filter(|value| !value.is_empty()) } else { None };
        match (value, default) {
            (Some(value), _) => result.push_str(&value),
            (None, Some(default)) if is_name(name) => result.push_str(default),
            (None, _) => {
                if is_name(name) {
                    missing.push(name.to_owned());
                }
                result.push_str(&rest[at..at + inner.len() + 3]);
            }
        }
        rest = after;
    }
    result + rest
}

/// What a shell would take for a variable; anything else in braces is somebody else's.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
