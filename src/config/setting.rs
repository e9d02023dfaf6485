//! One setting, seen by its dotted key; and the macro that makes structs of them.

use std::path::PathBuf;

use serde_json::Value;

use super::check::Rule;
use super::{AmqpUrl, LogFormat, RuntimeKind, Secret, TopologyMode};
use crate::broker::topology::QueueKind;

/// One setting of one configuration.
#[derive(Clone)]
pub(super) struct Setting {
    /// Such as `worker.metrics.prometheus_port`.
    pub(super) key: String,
    pub(super) help: String,
    pub(super) rule: Rule,
    /// Secrets included; `null` for what is not set.
    pub(super) value: Value,
}

impl Setting {
    pub(super) fn new(key: &str, help: &[&str], rule: Rule, value: &impl Exposed) -> Self {
        let help = help.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
        Self { key: key.to_owned(), help, rule, value: value.exposed() }
    }
}

/// A setting's value as JSON, secrets included, which `Serialize` would hide.
pub(super) trait Exposed {
    fn exposed(&self) -> Value;
}

macro_rules! exposed {
    ($($type:ty)+) => {
        $(impl Exposed for $type {
            fn exposed(&self) -> Value {
                serde_json::to_value(self).expect("plain values and UTF-8 paths are JSON")
            }
        })+
    };
}

exposed! {
    bool u16 u32 u64 usize f64 String Option<String> Vec<String>
    LogFormat QueueKind RuntimeKind TopologyMode
}

impl Exposed for PathBuf {
    fn exposed(&self) -> Value {
        self.to_string_lossy().into_owned().into()
    }
}

impl Exposed for Option<PathBuf> {
    fn exposed(&self) -> Value {
        self.as_ref().map_or(Value::Null, Exposed::exposed)
    }
}

impl Exposed for Option<Secret> {
    fn exposed(&self) -> Value {
        self.as_ref().map_or(Value::Null, |secret| secret.expose().into())
    }
}

impl Exposed for Vec<AmqpUrl> {
    fn exposed(&self) -> Value {
        self.iter().map(|url| Value::from(url.expose())).collect()
    }
}

/// Structs of settings, their defaults, and their `collect`, which lists them under their dotted keys.
/// After the settings, in braces of their own, the sections below.
macro_rules! settings {
    ($(
        $(#[doc = $about:literal])+
        $name:ident {
            $($(#[doc = $help:literal])+ $field:ident: $type:ty = $default:expr, $rule:expr;)+
        } $({
            $($(#[doc = $purpose:literal])+ $section:ident: $part:ident;)+
        })?
    )+) => {$(
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[doc = $help])+ pub $field: $type,)+
            $($($(#[doc = $purpose])+ pub $section: $part,)+)?
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ $($($section: $part::default(),)+)? }
            }
        }

        impl $name {
            fn collect(&self, path: &str, all: &mut Vec<Setting>) {
                $(all.push(Setting::new(
                    &format!("{path}.{}", stringify!($field)), &[$($help),+], $rule, &self.$field,
                ));)+
                $($(self.$section.collect(&format!("{path}.{}", stringify!($section)), all);)+)?
            }
        }
    )+};
}
pub(super) use settings;
