//! Queues and exchanges: creating them, and looking whether they are there.

use std::fmt;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{Channel, Connection};
use tracing::info;

use super::Shared;
use super::failure::Failure;
use super::properties::short;
use super::reconnect::Trouble;
use crate::broker::topology::{Binding, Exchange, ExchangeKind, Queue, QueueKind, Topology};

/// A queue or an exchange, for people.
#[derive(Debug, Clone, Copy)]
enum Entity<'a> {
    Exchange(&'a str),
    Queue(&'a str),
    Binding(&'a Binding),
}

impl fmt::Display for Entity<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exchange(name) => write!(f, "exchange {name}"),
            Self::Queue(name) => write!(f, "queue {name}"),
            Self::Binding(Binding { queue, exchange, routing_key }) => {
                write!(f, "binding of queue {queue} to exchange {exchange} for {routing_key:?}")
            }
        }
    }
}

/// # Errors
/// The first entity that could not be created, why, and what can be done.
pub(super) async fn declare(connection: &Connection, topology: &Topology) -> Result<(), Failure> {
    let channel = connection.create_channel().await?;
    for exchange in &topology.exchanges {
        declare_exchange(&channel, exchange)
            .await
            .map_err(|failure| refused(Entity::Exchange(&exchange.name), failure))?;
    }
    for queue in &topology.queues {
        declare_queue(&channel, queue)
            .await
            .map_err(|failure| refused(Entity::Queue(&queue.name), failure))?;
    }
    for binding in &topology.bindings {
        bind(&channel, binding).await.map_err(|failure| refused(Entity::Binding(binding), failure))?;
    }
    close(&channel).await;
    Ok(())
}

/// Creates the queue or exchange `name` again, if it belongs to what was last declared here, and with it
/// whatever else is missing of that. `false` when it does not belong there.
pub(super) async fn restore(shared: &Shared, connection: &Connection, name: &str) -> Result<bool, Failure> {
    let Some(topology) = shared.declared().filter(|topology| {
        topology.queues.iter().any(|queue| queue.name == name)
            || topology.exchanges.iter().any(|exchange| exchange.name == name)
    }) else {
        return Ok(false);
    };
    declare(connection, &topology).await?;
    info!(missing = name, "Declared the queues and exchanges again, because one was gone");
    Ok(true)
}

/// # Errors
/// When the broker does not answer, or will not say.
pub(super) async fn missing(connection: &Connection, topology: &Topology) -> Result<Vec<String>, Failure> {
    let mut missing = Vec::new();
    for exchange in &topology.exchanges {
        if !exchange_exists(connection, &exchange.name).await? {
            missing.push(Entity::Exchange(&exchange.name).to_string());
        }
    }
    for queue in &topology.queues {
        if queue_depth(connection, &queue.name).await?.is_none() {
            missing.push(Entity::Queue(&queue.name).to_string());
        }
    }
    Ok(missing)
}

/// Looks on a channel of its own: the broker closes the channel when the answer is no.
pub(super) async fn exchange_exists(connection: &Connection, name: &str) -> Result<bool, Failure> {
    let channel = connection.create_channel().await?;
    let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let looked = channel
        .exchange_declare(checked(name)?, lapin::ExchangeKind::Topic, options, FieldTable::default())
        .await;
    found(&channel, Entity::Exchange(name), looked).await.map(|found| found.is_some())
}

/// How many messages are ready in a queue, `None` where there is no such queue.
pub(super) async fn queue_depth(connection: &Connection, name: &str) -> Result<Option<u64>, Failure> {
    let channel = connection.create_channel().await?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let looked = channel.queue_declare(checked(name)?, options, FieldTable::default()).await;
    let queue = found(&channel, Entity::Queue(name), looked).await?;
    Ok(queue.map(|queue| u64::from(queue.message_count())))
}

async fn found<T>(
    channel: &Channel,
    entity: Entity<'_>,
    looked: Result<T, lapin::Error>,
) -> Result<Option<T>, Failure> {
    match looked {
        Ok(answer) => {
            close(channel).await;
            Ok(Some(answer))
        }
        Err(error) => match Failure::from(error) {
            failure if failure.cause == "not_found" && failure.trouble == Trouble::Refusal => Ok(None),
            failure => Err(Failure { text: format!("cannot look for {entity}: {failure}"), ..failure }),
        },
    }
}

/// The answer is known by now, so that a channel which fails to close changes nothing.
async fn close(channel: &Channel) {
    let _ = channel.close(200, "OK".into()).await;
}

async fn declare_exchange(channel: &Channel, exchange: &Exchange) -> Result<(), Failure> {
    let mut arguments = FieldTable::default();
    if let Some(alternate) = &exchange.alternate {
        arguments.insert("alternate-exchange".into(), text(alternate));
    }
    let kind = match exchange.kind {
        ExchangeKind::Topic => lapin::ExchangeKind::Topic,
        ExchangeKind::Fanout => lapin::ExchangeKind::Fanout,
    };
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    Ok(channel.exchange_declare(checked(&exchange.name)?, kind, options, arguments).await?)
}

async fn declare_queue(channel: &Channel, queue: &Queue) -> Result<(), Failure> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(checked(&queue.name)?, options, queue_arguments(queue)).await?;
    Ok(())
}

fn queue_arguments(queue: &Queue) -> FieldTable {
    let mut arguments = FieldTable::default();
    let mut set = |name: &str, value: AMQPValue| {
        arguments.insert(name.into(), value);
    };
    set(
        "x-queue-type",
        text(match queue.kind {
            QueueKind::Quorum => "quorum",
            QueueKind::Classic => "classic",
        }),
    );
    if let Some(ttl) = queue.message_ttl {
        set("x-message-ttl", AMQPValue::LongLongInt(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX)));
    }
    if let Some(exchange) = &queue.dead_letter_exchange {
        set("x-dead-letter-exchange", text(exchange));
        if queue.kind == QueueKind::Quorum {
            // The broker keeps a dead letter until its new queues have confirmed it, which it does only
            // for queues that refuse what exceeds them.
            set("x-dead-letter-strategy", text("at-least-once"));
            set("x-overflow", text("reject-publish"));
        }
    }
    if let Some(limit) = queue.delivery_limit
        && queue.kind == QueueKind::Quorum
    {
        set("x-delivery-limit", AMQPValue::LongLongInt(i64::from(limit)));
    }
    arguments
}

async fn bind(channel: &Channel, binding: &Binding) -> Result<(), Failure> {
    let (queue, exchange) = (checked(&binding.queue)?, checked(&binding.exchange)?);
    let (key, options) = (checked(&binding.routing_key)?, QueueBindOptions::default());
    Ok(channel.queue_bind(queue, exchange, key, options, FieldTable::default()).await?)
}

fn refused(entity: Entity<'_>, failure: Failure) -> Failure {
    let (problem, way_out) = match failure.cause {
        "precondition_failed" => (
            "exists with other settings",
            "; delete it once it is empty, choose another broker.prefix, or set broker.topology = \"verify\" to use it \
             as it is",
        ),
        "access_refused" => (
            "cannot be created",
            "; grant this user the configure permission, or create it with another user and set broker.topology = \
             \"verify\"",
        ),
        _ => ("cannot be created", ""),
    };
    Failure { text: format!("{entity} {problem}: {failure}{way_out}"), ..failure }
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(value))
}

pub(super) fn checked(name: &str) -> Result<ShortString, Failure> {
    short("name", name)
        .map_err(|problem| Failure::refusal(format!("{name:?} cannot be used: {problem}"), "invalid_name"))
}
