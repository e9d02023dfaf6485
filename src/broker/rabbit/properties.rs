//! Message properties, ours and AMQP's.

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use uuid::Uuid;

use crate::broker::{HeaderValue, Headers, Message, Properties};

const CONTENT_TYPE: &str = "application/json";
const APP_ID: &str = "tasker-worker-rust";
const PERSISTENT: u8 = 2;

/// A message in the client's terms. Everything the broker would close the channel for has been checked.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    /// Ours where the message has none: what the broker returns is told apart by it.
    pub(super) message_id: ShortString,
    pub(super) properties: BasicProperties,
    pub(super) body: Bytes,
}

impl Outgoing {
    /// # Errors
    /// What about the message can never be published, and the limit it breaks.
    pub(super) fn new(message: &Message, max_body: usize, max_header: usize) -> Result<Self, String> {
        let Message { exchange, routing_key, body, properties } = message;
        if body.len() > max_body {
            return Err(format!(
                "its body has {} bytes; broker.max_message_bytes allows {max_body}",
                body.len()
            ));
        }
        let header = header_bytes(properties);
        if header > max_header {
            return Err(format!("its headers have {header} bytes; {max_header} fit into one frame"));
        }
        let message_id = match &properties.message_id {
            Some(id) => short("message id", id)?,
            None => short("message id", &Uuid::new_v4().to_string())?,
        };
        let mut amqp = BasicProperties::default()
            .with_content_type(CONTENT_TYPE.into())
            .with_delivery_mode(PERSISTENT)
            .with_app_id(APP_ID.into())
            .with_message_id(message_id.clone())
            .with_headers(table(&properties.headers)?);
        if let Some(id) = &properties.correlation_id {
            amqp = amqp.with_correlation_id(short("correlation id", id)?);
        }
        if let Some(kind) = &properties.kind {
            amqp = amqp.with_type(short("kind", kind)?);
        }
        if let Some(seconds) = properties.timestamp {
            amqp = amqp.with_timestamp(seconds);
        }
        if let Some(milliseconds) = properties.expiration_ms {
            amqp = amqp.with_expiration(short("expiration", &milliseconds.to_string())?);
        }
        Ok(Self {
            exchange: short("exchange", exchange)?,
            routing_key: short("routing key", routing_key)?,
            message_id,
            properties: amqp,
            body: body.clone(),
        })
    }
}

/// AMQP's short strings. Converting a longer one by `into` would panic.
///
/// # Errors
/// When `text` has more than 255 bytes.
pub(super) fn short(what: &str, text: &str) -> Result<ShortString, String> {
    let length = text.len();
    ShortString::try_new(text).map_err(|_| format!("its {what} has {length} bytes; AMQP allows 255"))
}

fn header_bytes(properties: &Properties) -> usize {
    // Type and length of each value, and of the name.
    const OVERHEAD: usize = 16;
    let value = |value: &HeaderValue| match value {
        HeaderValue::Text(text) => text.len(),
        HeaderValue::Integer(_) => 8,
    };
    properties.headers.iter().map(|(name, header)| name.len() + value(header) + OVERHEAD).sum()
}

fn table(headers: &Headers) -> Result<FieldTable, String> {
    let mut table = FieldTable::default();
    for (name, value) in headers.iter() {
        let value = match value {
            HeaderValue::Text(text) => AMQPValue::LongString(LongString::from(text.as_str())),
            HeaderValue::Integer(number) => AMQPValue::LongLongInt(*number),
        };
        table.insert(short("header name", name)?, value);
    }
    Ok(table)
}

/// The properties of a message from the broker. Headers that are neither text nor a whole number, such as
/// death records, are left out.
pub(super) fn incoming(properties: &BasicProperties) -> Properties {
    let text = |value: &Option<ShortString>| value.as_ref().map(|text| text.as_str().to_owned());
    let mut headers = Headers::default();
    for (name, value) in properties.headers().iter().flatten() {
        if let Some(value) = header(value) {
            headers.set(name.as_str().to_owned(), value);
        }
    }
    last_death(properties, &mut headers);
    Properties {
        message_id: text(properties.message_id()),
        correlation_id: text(properties.correlation_id()),
        kind: text(properties.kind()),
        timestamp: *properties.timestamp(),
        expiration_ms: properties.expiration().as_ref().and_then(|text| text.as_str().parse().ok()),
        headers,
    }
}

/// Writes down the last death as RabbitMQ does from 3.13 on. Before, only the death records tell it, the newest
/// first; and a retry that died was first killed by its delay queue.
fn last_death(properties: &BasicProperties, headers: &mut Headers) {
    let records = properties.headers().as_ref().and_then(|headers| headers.inner().get("x-death"));
    let Some(AMQPValue::FieldArray(records)) = records else { return };
    let Some(AMQPValue::FieldTable(newest)) = records.as_slice().first() else { return };
    for fact in ["queue", "reason", "exchange"] {
        let name = format!("x-last-death-{fact}");
        let value = newest.inner().get(fact).and_then(header);
        if let (None, Some(value)) = (headers.get(&name), value) {
            headers.set(name, value);
        }
    }
}

fn header(value: &AMQPValue) -> Option<HeaderValue> {
    Some(HeaderValue::Integer(match value {
        AMQPValue::LongString(text) => return Some(HeaderValue::Text(text.to_string())),
        AMQPValue::ShortString(text) => return Some(HeaderValue::Text(text.as_str().to_owned())),
        AMQPValue::Boolean(flag) => i64::from(*flag),
        AMQPValue::ShortShortInt(number) => i64::from(*number),
        AMQPValue::ShortShortUInt(number) => i64::from(*number),
        AMQPValue::ShortInt(number) => i64::from(*number),
        AMQPValue::ShortUInt(number) => i64::from(*number),
        AMQPValue::LongInt(number) => i64::from(*number),
        AMQPValue::LongUInt(number) => i64::from(*number),
        AMQPValue::LongLongInt(number) => *number,
        AMQPValue::Timestamp(seconds) => i64::try_from(*seconds).ok()?,
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(properties: Properties) -> Message {
        Message {
            exchange: "e".to_owned(),
            routing_key: "k".to_owned(),
            body: Bytes::from_static(b"{}"),
            properties,
        }
    }

    #[test]
    fn properties_survive_the_way_through_amqp() {
        let mut headers = Headers::default();
        headers.set("tasker-attempt", 3_i64);
        headers.set("traceparent", "00-aa-bb-01");
        let properties = Properties {
            message_id: Some("id".to_owned()),
            correlation_id: Some("task".to_owned()),
            kind: Some("step.request".to_owned()),
            timestamp: Some(1_700_000_000),
            expiration_ms: Some(500),
            headers,
        };
        let outgoing = Outgoing::new(&message(properties.clone()), 100, 1_000).unwrap();
        assert_eq!(incoming(&outgoing.properties), properties);
    }

    #[test]
    fn what_the_broker_would_close_the_channel_for_is_refused_by_name() {
        let long = || "x".repeat(256);
        let named = |set: fn(&mut Message, String)| {
            let mut message = message(Properties::default());
            set(&mut message, long());
            Outgoing::new(&message, 100, 100_000).unwrap_err()
        };
        assert_eq!(
            named(|message, long| message.routing_key = long),
            "its routing key has 256 bytes; AMQP allows 255"
        );
        assert!(named(|message, long| message.exchange = long).contains("exchange"));
        assert!(named(|message, long| message.properties.message_id = Some(long)).contains("message id"));
        assert!(named(|message, long| message.properties.headers.set(long, 1_i64)).contains("header name"));
        assert!(named(|message, long| message.body = long.into()).contains("max_message_bytes allows 100"));

        let mut large = Properties::default();
        large.headers.set("tasker-error", "e".repeat(2_000));
        let error = Outgoing::new(&message(large), 100, 1_000).unwrap_err();
        assert!(error.contains("1000 fit into one frame"), "{error}");
    }

    #[test]
    fn numbers_of_any_width_and_flags_are_read_as_integers() {
        let mut table = FieldTable::default();
        table.insert("x-delivery-count".into(), AMQPValue::LongUInt(2));
        table.insert("x-flag".into(), AMQPValue::Boolean(true));
        table.insert("x-first-death-reason".into(), AMQPValue::LongString("rejected".into()));
        table.insert("x-death".into(), AMQPValue::FieldArray(Vec::new().into()));
        let headers = incoming(&BasicProperties::default().with_headers(table)).headers;
        assert_eq!(headers.integer("x-delivery-count"), Some(2));
        assert_eq!(headers.integer("x-flag"), Some(1));
        assert_eq!(headers.text("x-first-death-reason"), Some("rejected"));
        assert_eq!(headers.get("x-death"), None);
    }
}
