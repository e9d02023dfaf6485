//! What is published, and what brokers keep beside it.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::message::header;

/// A message to publish. Its serialised form is for the worker's ledger, which keeps bodies apart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Where to; the empty name is the default exchange, which routes by queue name.
    pub exchange: String,
    /// Under which key.
    pub routing_key: String,
    /// The body.
    #[serde(skip)]
    pub body: Bytes,
    /// What the broker stores beside the body.
    pub properties: Properties,
}

/// What the broker stores beside a body. Every message is persistent JSON.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Properties {
    /// Deterministic: the same message published twice has the same id.
    pub message_id: Option<String>,
    /// The task's correlation id.
    pub correlation_id: Option<String>,
    /// What the message is, such as `step.request`.
    pub kind: Option<String>,
    /// When it was written, in seconds since 1970.
    pub timestamp: Option<u64>,
    /// How long the broker keeps it, in milliseconds. For callers outside the product: a copy in every
    /// queue dies by it, and it does not overtake older messages.
    pub expiration_ms: Option<u64>,
    /// Anything else.
    pub headers: Headers,
}

/// Message headers, in order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Headers(Vec<(Cow<'static, str>, HeaderValue)>);

impl Headers {
    /// Sets a header, replacing an earlier one of that name.
    pub fn set(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<HeaderValue>) {
        let name = name.into();
        self.0.retain(|(n, _)| *n != name);
        self.0.push((name, value.into()));
    }

    /// A header's value.
    pub fn get(&self, name: &str) -> Option<&HeaderValue> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value)
    }

    /// A header's text.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            Some(HeaderValue::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// A header's number.
    pub fn integer(&self, name: &str) -> Option<i64> {
        match self.get(name) {
            Some(HeaderValue::Integer(number)) => Some(*number),
            _ => None,
        }
    }

    /// How often the step this message is about was replayed from the dead letters.
    pub fn replays(&self) -> u32 {
        self.integer(header::REPLAYS).and_then(|replays| u32::try_from(replays).ok()).unwrap_or(0)
    }

    /// All headers.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &HeaderValue)> {
        self.0.iter().map(|(name, value)| (&**name, value))
    }

    /// Drops what brokers write themselves (`x-…`). A republished message that kept its death records
    /// would be taken for a cycle by RabbitMQ before 4.0, and dropped; kept counters would be believed.
    pub fn strip_broker_headers(&mut self) {
        self.0.retain(|(name, _)| !name.starts_with("x-"));
    }
}

/// A header's value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HeaderValue {
    /// Text.
    Text(String),
    /// Any integer.
    Integer(i64),
}

impl From<&str> for HeaderValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for HeaderValue {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for HeaderValue {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<u32> for HeaderValue {
    fn from(number: u32) -> Self {
        Self::Integer(i64::from(number))
    }
}
