//! What makes two submissions the same task, and two definitions the same template.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use uuid::Uuid;

use crate::api::TaskRequest;
use crate::message::Json;
use crate::template::{IdentityStrategy, Template};

/// Seed of every identity. Changing it would make every known task a stranger.
const SEED: Uuid = Uuid::from_u128(0x6f1d_3c0a_58b7_4e5e_9a43_2f86_d1c7_0b94);

/// Contexts may not be nested deeper; nothing a person writes comes near.
const MAX_DEPTH: usize = 128;

/// The identity of a task: of its template and its idempotency key, or, where the caller gave no key, as the
/// template's strategy says. The order of keys and the spacing of a context make no difference.
///
/// # Errors
/// A sentence, for a context that is nested too deeply, or a key that is missing.
pub fn task_identity(request: &TaskRequest, strategy: IdentityStrategy) -> Result<Uuid, String> {
    let (kind, what) = match (&request.idempotency_key, strategy) {
        (Some(key), _) => ("key", key.clone()),
        (None, IdentityStrategy::Strict) => ("context", canonical(&request.context)?),
        (None, IdentityStrategy::AlwaysUnique) => return Ok(Uuid::now_v7()),
        (None, IdentityStrategy::CallerProvided) => {
            let (namespace, name) = (&request.namespace, &request.name);
            return Err(format!(
                "template {namespace}/{name} has identity_strategy caller_provided; give an idempotency_key"
            ));
        }
    };
    Ok(hash(&[
        &request.namespace,
        &request.name,
        request.version.as_deref().unwrap_or_default(),
        kind,
        &what,
    ]))
}

/// The identity of a template's definition.
pub fn template_id(template: &Template) -> Uuid {
    let definition =
        serde_json::to_string(template).expect("a template has string keys only and always encodes");
    hash(&["template", &definition])
}

fn hash(parts: &[&str]) -> Uuid {
    // Encoded as a list, so that no two different lists run together into one text.
    let text = serde_json::to_vec(parts).expect("texts always encode");
    Uuid::new_v5(&SEED, &text)
}

/// The value's text without spaces, its keys sorted. Numbers stay as they are written: through a float,
/// different large numbers would become the same.
fn canonical(json: &Json) -> Result<String, String> {
    let mut text = String::with_capacity(json.get().len());
    write(json.get(), &mut text, 0)?;
    Ok(text)
}

fn write(json: &str, text: &mut String, depth: usize) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!("the context is nested deeper than {MAX_DEPTH} levels"));
    }
    let broken = |error: serde_json::Error| format!("the context is not JSON: {error}");
    match json.trim_ascii_start().as_bytes().first() {
        Some(b'{') => {
            let fields: BTreeMap<String, &RawValue> = serde_json::from_str(json).map_err(broken)?;
            text.push('{');
            for (index, (key, value)) in fields.into_iter().enumerate() {
                text.push_str(if index == 0 { "" } else { "," });
                text.push_str(&serde_json::to_string(&key).expect("texts always encode"));
                text.push(':');
                write(value.get(), text, depth + 1)?;
            }
            text.push('}');
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(json).map_err(broken)?;
            text.push('[');
            for (index, item) in items.into_iter().enumerate() {
                text.push_str(if index == 0 { "" } else { "," });
                write(item.get(), text, depth + 1)?;
            }
            text.push(']');
        }
        Some(b'"') => {
            let string: String = serde_json::from_str(json).map_err(broken)?;
            text.push_str(&serde_json::to_string(&string).expect("texts always encode"));
        }
        _ => text.push_str(json.trim_ascii()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(context: &str, key: Option<&str>) -> TaskRequest {
        TaskRequest {
            idempotency_key: key.map(str::to_owned),
            ..TaskRequest::new("shop", "order", serde_json::from_str::<Json>(context).expect("JSON"))
        }
    }

    fn identity(context: &str) -> Uuid {
        task_identity(&request(context, None), IdentityStrategy::Strict).expect("a sound context")
    }

    #[test]
    fn order_of_keys_and_spacing_make_no_difference() {
        assert_eq!(
            identity(r#"{"a":1,"b":[{"x":"\u0041","y":null}]}"#),
            identity("{ \"b\" : [ {\"y\": null, \"x\":\"A\"} ],\n \"a\" : 1 }")
        );
    }

    #[test]
    fn any_other_difference_does() {
        let all = ["{}", r#"{"a":1}"#, r#"{"a":2}"#, r#"{"a":"1"}"#, "[1,2]", "[2,1]", r#"["1,2"]"#, "null"];
        let large = [r#"{"n":123456789012345678901}"#, r#"{"n":123456789012345678902}"#];
        let identities: Vec<Uuid> = all.iter().chain(&large).map(|context| identity(context)).collect();
        for (index, one) in identities.iter().enumerate() {
            assert!(!identities[index + 1..].contains(one), "{index}");
        }
    }

    #[test]
    fn the_templates_strategy_decides_where_there_is_no_key() {
        let of = |key, strategy| task_identity(&request("{}", key), strategy);
        let caller = IdentityStrategy::CallerProvided;
        assert!(of(None, caller).unwrap_err().contains("give an idempotency_key"));
        assert_eq!(of(Some("k"), caller), of(Some("k"), IdentityStrategy::AlwaysUnique));
        assert_ne!(of(None, IdentityStrategy::AlwaysUnique), of(None, IdentityStrategy::AlwaysUnique));
    }

    #[test]
    fn with_a_key_the_context_makes_no_difference() {
        let of = |context, key| {
            task_identity(&request(context, Some(key)), IdentityStrategy::Strict).expect("a sound context")
        };
        assert_eq!(of("{}", "k"), of("[1]", "k"));
        assert_ne!(of("{}", "k"), of("{}", "l"));
        assert_ne!(of("{}", "{}"), identity("{}"));
    }

    #[test]
    fn a_context_nested_without_end_is_refused() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let mut text = String::new();
        assert!(write(&deep, &mut text, 0).unwrap_err().contains("deeper than 128"));
    }
}
