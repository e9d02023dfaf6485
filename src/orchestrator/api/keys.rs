//! API keys, and the permissions that keys and tokens carry.

use std::collections::BTreeMap;

use ring::digest::{SHA256, digest};
use serde::Deserialize;
use subtle::ConstantTimeEq;

use super::tokens::{read, unusable};
use crate::Error;
use crate::config::AuthConfig;

/// Every permission there is; `resource:*` stands for all of a resource. `templates:register` is ours.
const PERMISSIONS: [&str; 18] = [
    "tasks:create",
    "tasks:read",
    "tasks:list",
    "tasks:cancel",
    "tasks:context_read",
    "steps:read",
    "steps:resolve",
    "dlq:read",
    "dlq:update",
    "dlq:stats",
    "templates:read",
    "templates:validate",
    "templates:register",
    "system:config_read",
    "system:handlers_read",
    "system:analytics_read",
    "worker:config_read",
    "worker:templates_read",
];

/// Shorter keys could be guessed.
const SHORTEST_KEY: usize = 16;

/// The keys of one file. Of each only its digest is kept.
pub(super) struct Keys(Vec<Key>);

pub(super) struct Key {
    pub(super) digest: [u8; 32],
    pub(super) permissions: Vec<String>,
}

impl Keys {
    /// # Errors
    /// When the file cannot be used.
    pub(super) fn load(config: &AuthConfig) -> Result<Self, Error> {
        let Some(path) = &config.api_keys_file else { return Ok(Self(Vec::new())) };
        let keys = keys(&String::from_utf8_lossy(&read(path)?));
        keys.map(Self).map_err(|problem| unusable("orchestrator.auth.api_keys_file", path, problem))
    }

    /// `None` when it is not known.
    pub(super) fn find(&self, key: &[u8]) -> Option<&Key> {
        let shown = digest(&SHA256, key);
        // All are compared, and all of each, so that the time it takes tells nothing about any.
        self.0.iter().fold(
            None,
            |found, key| {
                if bool::from(key.digest.ct_eq(shown.as_ref())) { Some(key) } else { found }
            },
        )
    }
}

/// Whether a permission that was granted covers the one that is wanted.
pub(super) fn grants(granted: &str, wanted: &str) -> bool {
    let covers = |resource: &str| wanted.split_once(':').is_some_and(|(of, _)| of == resource);
    granted == wanted && !wanted.is_empty() || granted.strip_suffix(":*").is_some_and(covers)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeysFile {
    api_keys: Vec<KeyEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyEntry {
    key: String,
    permissions: Vec<String>,
    /// For whoever reads the file.
    #[serde(default, rename = "description")]
    _description: String,
}

/// # Errors
/// What is wrong, without a word of a key.
fn keys(text: &str) -> Result<Vec<Key>, String> {
    let file: KeysFile = toml::from_str(text).map_err(|error| {
        let problem = error.message().lines().next().unwrap_or_default().to_owned();
        format!("{problem}; expected [[api_keys]] tables with key, permissions and description")
    })?;
    let mut names: BTreeMap<[u8; 32], usize> = BTreeMap::new();
    let mut keys = Vec::new();
    for (index, KeyEntry { key, permissions, .. }) in file.api_keys.into_iter().enumerate() {
        let number = index + 1;
        if key.len() < SHORTEST_KEY || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "key {number} has fewer than {SHORTEST_KEY} letters and digits, or others than these"
            ));
        }
        for permission in &permissions {
            if !PERMISSIONS.iter().any(|known| known == permission || grants(permission, known)) {
                return Err(format!(
                    "key {number} has the permission {permission:?}; expected one of {}, or such as \"tasks:*\"",
                    PERMISSIONS.join(", ")
                ));
            }
        }
        let digest = digest(&SHA256, key.as_bytes()).as_ref().try_into().expect("SHA-256 has 32 bytes");
        if let Some(first) = names.insert(digest, number) {
            return Err(format!("key {number} is key {first} once more; give each its own"));
        }
        keys.push(Key { digest, permissions });
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_covers_one_resource_and_no_more() {
        for (granted, wanted, covers) in [
            ("tasks:read", "tasks:read", true),
            ("tasks:read", "tasks:list", false),
            ("tasks:*", "tasks:cancel", true),
            ("task:*", "tasks:cancel", false),
            ("*", "tasks:cancel", false),
            (":*", "tasks:cancel", false),
            ("*:*", "tasks:cancel", false),
            ("", "", false),
        ] {
            assert_eq!(grants(granted, wanted), covers, "{granted} {wanted}");
        }
    }

    #[test]
    fn a_file_of_keys_is_refused_without_a_word_of_a_key() {
        let entry = |key: &str, permission: &str| {
            format!("[[api_keys]]\nkey = {key:?}\npermissions = [{permission:?}]\n")
        };
        let good = entry("hunter2-hunter2-hunter2", "tasks:*");
        assert_eq!(keys(&good).map(|keys| keys.len()), Ok(1));
        for (text, problem) in [
            (entry("hunter2", "tasks:*"), "fewer than 16"),
            (entry("hunter2-hunter2-hunter2", "*"), "expected one of tasks:create"),
            (entry("hunter2-hunter2-hunter2", "tasks:creat"), "\"tasks:creat\""),
            (format!("{good}{good}"), "key 2 is key 1 once more"),
            ("[[api_keys]]\nkey = \"hunter2-hunter2-hunter2\"".to_owned(), "missing field"),
            ("key = \"hunter2-hunter2-hunter2\"".to_owned(), "unknown field"),
            ("hunter2".to_owned(), "[[api_keys]]"),
        ] {
            let said = keys(&text).map(|keys| keys.len()).unwrap_err();
            assert!(said.contains(problem) && !said.contains("hunter2"), "{text}: {said}");
        }
    }
}
