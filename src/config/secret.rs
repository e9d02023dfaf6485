//! Values that must not be shown, and addresses that hold a password.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A password or a key. Printed and serialized as `***`; only [`expose`](Self::expose) gives it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// What it is.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(secret: String) -> Self {
        Self(secret)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// The address of a RabbitMQ node. Printed and serialized with `***` for its password; only
/// [`expose`](Self::expose) gives the whole.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct AmqpUrl(String);

impl AmqpUrl {
    /// The address with its password.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for AmqpUrl {
    fn from(url: &str) -> Self {
        Self(url.to_owned())
    }
}

impl From<String> for AmqpUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl fmt::Display for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact(&self.0))
    }
}

impl fmt::Debug for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&redact(&self.0), f)
    }
}

impl Serialize for AmqpUrl {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `url` without its password. What does not look like an address might be anything, and is hidden whole.
pub(super) fn redact(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return "***".to_owned();
    };
    // From the last `@`: a password may hold others, unescaped by mistake, even behind a slash.
    let Some((credentials, host)) = rest.rsplit_once('@') else {
        return url.to_owned();
    };
    match credentials.split_once(':') {
        Some((user, _)) => format!("{scheme}://{user}:***@{host}"),
        None => format!("{scheme}://{credentials}@{host}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_its_password() {
        for (url, shown) in [
            ("amqp://tasker:s3cret@rabbit:5672/%2f", "amqp://tasker:***@rabbit:5672/%2f"),
            ("amqps://tasker:s3/cr@et#@rabbit", "amqps://tasker:***@rabbit"),
            ("amqp://:s3cret@rabbit", "amqp://:***@rabbit"),
            ("amqp://tasker@rabbit/orders", "amqp://tasker@rabbit/orders"),
            ("amqp://rabbit:5672", "amqp://rabbit:5672"),
            ("s3cret", "***"),
        ] {
            let url = AmqpUrl::from(url);
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), format!("{shown:?}"));
            assert_eq!(serde_json::to_value(&url).unwrap(), shown);
        }
    }
}
