//! Queues and exchanges: creating them, and looking whether they are there.

use std::collections::BTreeMap;
use std::fmt;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{Channel, Connection};
use tracing::info;

use super::Shared;
use super::failure::Failure;
use super::properties::short;
use super::reconnect::Trouble;
use crate::broker::topology::{Argument, Binding, Exchange, ExchangeKind, Queue, Topology};

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

/// What this user may not look at counts as there: RabbitMQ 4.3 shows only what one has a right to, and who has
/// none to it does not use it.
///
/// # Errors
/// When the broker does not answer.
pub(super) async fn missing(connection: &Connection, topology: &Topology) -> Result<Vec<String>, Failure> {
    let hidden = |failure: Failure| if failure.cause == "access_refused" { Ok(true) } else { Err(failure) };
    let mut missing = Vec::new();
    for exchange in &topology.exchanges {
        if !exchange_exists(connection, &exchange.name).await.or_else(hidden)? {
            missing.push(Entity::Exchange(&exchange.name).to_string());
        }
    }
    for queue in &topology.queues {
        let depth = queue_depth(connection, &queue.name).await;
        if !depth.map(|depth| depth.is_some()).or_else(hidden)? {
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
    let kind = match exchange.kind {
        ExchangeKind::Topic => lapin::ExchangeKind::Topic,
        ExchangeKind::Fanout => lapin::ExchangeKind::Fanout,
    };
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    Ok(channel
        .exchange_declare(checked(&exchange.name)?, kind, options, field_table(exchange.arguments()))
        .await?)
}

async fn declare_queue(channel: &Channel, queue: &Queue) -> Result<(), Failure> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(checked(&queue.name)?, options, field_table(queue.arguments())).await?;
    Ok(())
}

fn field_table(arguments: BTreeMap<&'static str, Argument>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(LongString::from(text)),
            Argument::Number(number) => AMQPValue::LongLongInt(number),
        };
        table.insert(name.into(), value);
    }
    table
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

pub(super) fn checked(name: &str) -> Result<ShortString, Failure> {
    short("name", name)
        .map_err(|problem| Failure::refusal(format!("{name:?} cannot be used: {problem}"), "invalid_name"))
}
