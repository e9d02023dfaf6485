//! The other side of the queues: publishes requests and receives results, with lapin alone, the same for both workers.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    ExchangeDeleteOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use serde_json::json;
use tasker_worker_rust::broker::topology::{Names, Topology, step_key};
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use super::Answer;
use super::job::STEP;

/// Requests unconfirmed at once while a queue is filled.
const WINDOW: usize = 500;

/// A result is lost when it takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct Caller {
    _connections: [Connection; 2],
    filling: Channel,
    calling: Channel,
    consuming: Channel,
    results: Consumer,
    names: Names,
    calls: u64,
}

impl Caller {
    pub(super) async fn open(url: &str, prefix: &str) -> Answer<Self> {
        let names = Names::new(prefix);
        let publishing = Connection::connect(url, ConnectionProperties::default()).await?;
        let receiving = Connection::connect(url, ConnectionProperties::default()).await?;
        let filling = publishing.create_channel().await?;
        filling.confirm_select(ConfirmSelectOptions::default()).await?;
        let calling = publishing.create_channel().await?;
        let (consuming, results) = consume(&receiving, &names).await?;
        Ok(Self {
            _connections: [publishing, receiving],
            filling,
            calling,
            consuming,
            results,
            names,
            calls: 0,
        })
    }

    /// Stops receiving results: they stay in their queue.
    pub(super) async fn pause(&mut self) -> Answer {
        self.consuming.basic_cancel(self.results.tag(), Default::default()).await?;
        Ok(())
    }

    /// Puts `count` requests of about `bytes` each into the queues, evenly, and returns once the broker has them.
    pub(super) async fn fill(&self, namespaces: &[String], count: u64, bytes: usize) -> Answer {
        let mut open = FuturesUnordered::new();
        for number in 0..count {
            let namespace = &namespaces[number as usize % namespaces.len()];
            let (channel, exchange) = (self.filling.clone(), self.names.steps());
            let (body, properties) = request(namespace, number, bytes);
            let key = step_key(namespace, STEP);
            let mut publishing = async move {
                let options = BasicPublishOptions::default();
                channel.basic_publish(exchange.into(), key.into(), options, &body, properties).await?.await
            }
            .boxed();
            match publishing.as_mut().now_or_never() {
                Some(done) => drop(done?),
                None => open.push(publishing),
            }
            while open.len() >= WINDOW {
                open.next().await.transpose()?;
            }
        }
        while let Some(confirmed) = open.next().await {
            confirmed?;
        }
        Ok(())
    }

    /// Sends `count` requests, `per_second` of them, and returns how long each took to be answered, in milliseconds.
    pub(super) async fn paced(
        &mut self,
        namespace: &str,
        per_second: u32,
        count: u64,
        bytes: usize,
    ) -> Answer<Vec<f64>> {
        let mut tick = tokio::time::interval(Duration::from_secs(1) / per_second);
        tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut sent = HashMap::new();
        let mut latencies = Vec::with_capacity(count as usize);
        let mut left = count;
        while left > 0 || !sent.is_empty() {
            tokio::select! {
                biased;
                answered = self.answer() => {
                    let (id, at) = answered?;
                    if let Some(begin) = sent.remove(&id) {
                        latencies.push(milliseconds(at - begin));
                    }
                }
                _ = tick.tick(), if left > 0 => {
                    left -= 1;
                    let (id, begin) = self.send(namespace, bytes).await?;
                    sent.insert(id, begin);
                }
            }
        }
        Ok(latencies)
    }

    /// Makes `length` calls one after the other, and returns how long they took together, in milliseconds.
    pub(super) async fn chain(&mut self, namespace: &str, length: u32, bytes: usize) -> Answer<f64> {
        let begin = Instant::now();
        for _ in 0..length {
            let (id, _) = self.send(namespace, bytes).await?;
            while self.answer().await?.0 != id {}
        }
        Ok(milliseconds(begin.elapsed()))
    }

    async fn send(&mut self, namespace: &str, bytes: usize) -> Answer<(u64, Instant)> {
        self.calls += 1;
        let (body, properties) = request(namespace, self.calls, bytes);
        let key = step_key(namespace, STEP);
        let begin = Instant::now();
        let options = BasicPublishOptions::default();
        // Written when it returns; no confirmation is asked for on this channel.
        drop(
            self.calling
                .basic_publish(self.names.steps().into(), key.into(), options, &body, properties)
                .await?,
        );
        Ok((self.calls, begin))
    }

    /// The next result's number, and when it came. Cancel-safe.
    async fn answer(&mut self) -> Answer<(u64, Instant)> {
        let next = tokio::time::timeout(PATIENCE, self.results.next());
        let delivery =
            next.await.map_err(|_| "no result came within 30 s")?.ok_or("the consumer ended")??;
        let at = Instant::now();
        // Queued by its first poll. Awaiting it here would lose the result to whatever else is waited for.
        let sent = self.consuming.basic_ack(delivery.delivery_tag, BasicAckOptions::default());
        sent.now_or_never().transpose()?;
        let id = delivery.properties.correlation_id().as_ref().and_then(|id| id.as_str().parse().ok());
        Ok((id.unwrap_or(0), at))
    }

    /// Empties the queue of results.
    pub(super) async fn purge(&self) -> Answer {
        let queue = self.names.orchestrator_queue();
        self.calling.queue_purge(queue.into(), QueuePurgeOptions::default()).await?;
        Ok(())
    }
}

/// Removes what was declared for the bench.
pub(super) async fn remove(url: &str, topology: &Topology) -> Answer {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    for queue in &topology.queues {
        channel.queue_delete(queue.name.as_str().into(), QueueDeleteOptions::default()).await?;
    }
    for exchange in &topology.exchanges {
        channel.exchange_delete(exchange.name.as_str().into(), ExchangeDeleteOptions::default()).await?;
    }
    Ok(connection.close(200, "OK".into()).await?)
}

async fn consume(connection: &Connection, names: &Names) -> Answer<(Channel, Consumer)> {
    let channel = connection.create_channel().await?;
    channel.basic_qos(1_000, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let queue = names.orchestrator_queue();
    let results = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
    Ok((channel, results))
}

/// A request as the orchestrator writes it, padded to `bytes`; its number comes back with the result.
fn request(namespace: &str, number: u64, bytes: usize) -> (Vec<u8>, BasicProperties) {
    let correlation_id = number.to_string();
    let step_uuid = Uuid::new_v4();
    let mut request = json!({
        "protocol_version": 1,
        "task_uuid": Uuid::new_v4(),
        "step_uuid": step_uuid,
        "namespace": namespace,
        "task_name": "bench",
        "task_version": "1.0.0",
        "step_name": STEP,
        "handler": { "callable": STEP, "initialization": {} },
        "attempt": 1,
        "max_attempts": 3,
        "retry": { "retryable": true, "backoff": "exponential", "base_ms": 1000, "max_ms": 60000 },
        "task_data": { "padding": "" },
        "sequence_data": [],
        "correlation_id": correlation_id,
    });
    let bare = request.to_string().len();
    request["task_data"]["padding"] = "x".repeat(bytes.saturating_sub(bare)).into();
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(2)
        .with_message_id(format!("{step_uuid}:1:request").into())
        .with_correlation_id(correlation_id.into());
    (request.to_string().into_bytes(), properties)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
