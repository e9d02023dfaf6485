//! The bare twin: the least a step worker has to do, with lapin alone, for our worker to be held against.
//!
//! It consumes with the same prefetch from the same queues, reads the request, does the step's work (none, or a
//! sleep), publishes a persistent result with a confirmation, and acks after that. Its results are what the contract
//! wants of any worker, properties and headers too, so that the broker has the same work. It is written as well as we
//! know how: one task owns both channels' sending side, every message is published at once and its confirmation
//! awaited later, and what was confirmed without a gap is acked at once. What it leaves out is what a worker is
//! for: types, timeouts, retries, dead letters, metrics, logs, outages, shutdown.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, SelectAll};
use futures_util::{FutureExt, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tasker_worker_rust::message::header;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::job::{Habit, Job, RESULT_BYTES};
use super::{Answer, machine};

/// What it reads of a request.
#[derive(Deserialize)]
struct Request<'a> {
    task_uuid: Uuid,
    step_uuid: Uuid,
    namespace: &'a str,
    step_name: &'a str,
    correlation_id: &'a str,
    #[serde(borrow)]
    task_data: &'a RawValue,
}

/// What it says in a result.
#[derive(Serialize)]
struct StepResult<'a> {
    task_uuid: Uuid,
    step_uuid: Uuid,
    namespace: &'a str,
    step_name: &'a str,
    success: bool,
    status: &'a str,
    data: &'a str,
    duration_ms: u64,
}

/// A result, ready to be published.
struct Answered {
    tag: Tag,
    key: String,
    properties: BasicProperties,
    body: Vec<u8>,
}

/// What all results have in common.
struct Common {
    worker_id: LongString,
    padding: String,
}

/// One queue's channel, and which of its deliveries wait to be acked.
struct Queue {
    channel: Channel,
    /// Everything up to here is acked.
    acked: u64,
    /// Confirmed beyond the first gap.
    confirmed: std::collections::BTreeSet<u64>,
}

/// A delivery, by its queue's index and its tag.
type Tag = (usize, u64);

struct Twin {
    results: Channel,
    exchange: String,
    habit: Habit,
    queues: Vec<Queue>,
    publishing: FuturesUnordered<BoxFuture<'static, Result<Tag, lapin::Error>>>,
}

/// Works until `job.steps` steps are done (0: for ever), and returns when the first one came and the last was acked.
pub(super) async fn run(url: &str, job: &Job) -> Answer<(Instant, f64)> {
    let consuming = Connection::connect(url, ConnectionProperties::default()).await?;
    let publishing = Connection::connect(url, ConnectionProperties::default()).await?;
    let results = publishing.create_channel().await?;
    results.confirm_select(ConfirmSelectOptions::default()).await?;
    let mut deliveries = SelectAll::new();
    let mut queues = Vec::new();
    for (index, queue) in job.step_queues().iter().enumerate() {
        let channel = consuming.create_channel().await?;
        channel.basic_qos(job.prefetch, BasicQosOptions::default()).await?;
        let consumer = channel
            .basic_consume(
                queue.as_str().into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await?;
        deliveries.push(consumer.map(move |delivery| (index, delivery)));
        queues.push(Queue { channel, acked: 0, confirmed: std::collections::BTreeSet::new() });
    }
    let mut twin = Twin {
        results,
        exchange: job.names().results(),
        habit: job.habit,
        queues,
        publishing: FuturesUnordered::new(),
    };
    let common = Arc::new(Common {
        worker_id: format!("bare-twin-{}", std::process::id()).into(),
        padding: "x".repeat(RESULT_BYTES),
    });
    let sleep = Duration::from_millis(job.sleep_ms);
    let mut sleeping = FuturesUnordered::new();
    let (done, mut done_elsewhere) = mpsc::unbounded_channel();
    let mut begin = None;
    let mut open = job.steps;
    loop {
        tokio::select! {
            Some((queue, delivery)) = deliveries.next() => {
                let delivery = delivery?;
                begin.get_or_insert_with(|| (Instant::now(), machine::own_cpu()));
                let tag = (queue, delivery.delivery_tag);
                if !sleep.is_zero() {
                    sleeping.push(tokio::time::sleep(sleep).map(move |()| (tag, delivery)));
                } else if job.habit == Habit::TaskForEach {
                    let (common, done) = (common.clone(), done.clone());
                    // Nobody listens any more once the last one is done.
                    tokio::spawn(async move { drop(done.send(answer(tag, &delivery.data, &common))) });
                } else {
                    twin.publish(answer(tag, &delivery.data, &common)?);
                }
            }
            Some(answered) = done_elsewhere.recv() => twin.publish(answered?),
            Some((tag, delivery)) = sleeping.next(), if !sleeping.is_empty() => {
                twin.publish(answer(tag, &delivery.data, &common)?);
            }
            Some(tag) = twin.publishing.next(), if !twin.publishing.is_empty() => {
                let done = twin.take(tag?)?;
                if job.steps > 0 {
                    open = open.saturating_sub(done);
                    if open == 0 {
                        // Sends what is queued: an ack that is lost would leave its request to the next run.
                        consuming.close(200, "OK".into()).await?;
                        return Ok(begin.expect("a step has come"));
                    }
                }
            }
        }
    }
}

/// Does the step, and says so.
fn answer(tag: Tag, body: &[u8], common: &Common) -> Answer<Answered> {
    let request: Request<'_> = serde_json::from_slice(body)?;
    let result = StepResult {
        task_uuid: request.task_uuid,
        step_uuid: request.step_uuid,
        namespace: request.namespace,
        step_name: request.step_name,
        success: !request.task_data.get().is_empty(),
        status: "completed",
        // As long as our worker's result.
        data: &common.padding[..RESULT_BYTES.saturating_sub(250 + 2 * request.namespace.len())],
        duration_ms: 0,
    };
    let mut headers = FieldTable::default();
    headers.insert(header::ATTEMPT.into(), AMQPValue::LongLongInt(1));
    headers.insert(header::WORKER_ID.into(), AMQPValue::LongString(common.worker_id.clone()));
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(2)
        .with_app_id("tasker-worker-rust".into())
        .with_type("step.result".into())
        .with_message_id(format!("{}:1:result", request.step_uuid).into())
        .with_correlation_id(request.correlation_id.into())
        .with_timestamp(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs())
        .with_headers(headers);
    let key = format!("result.{}.completed", request.namespace);
    Ok(Answered { tag, key, properties, body: serde_json::to_vec(&result)? })
}

impl Twin {
    fn publish(&mut self, answered: Answered) {
        let (channel, exchange) = (self.results.clone(), self.exchange.as_str().into());
        let mut publishing = async move {
            let Answered { tag, key, properties, body } = answered;
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            channel.basic_publish(exchange, key.into(), options, &body, properties).await?.await?;
            Ok(tag)
        }
        .boxed();
        // The first poll queues it, in order.
        match publishing.as_mut().now_or_never() {
            Some(done) => self.publishing.push(std::future::ready(done).boxed()),
            None => self.publishing.push(publishing),
        }
    }

    /// Acks `first` and whatever else was confirmed, and tells how many that are.
    fn take(&mut self, first: Tag) -> Answer<u64> {
        let mut taken = 0;
        let mut next = Some(first);
        while let Some((queue, tag)) = next {
            if self.habit == Habit::AckForEach {
                self.queues[queue].ack(tag, false)?;
            } else {
                self.queues[queue].confirmed.insert(tag);
            }
            taken += 1;
            next = self.publishing.next().now_or_never().flatten().transpose()?;
        }
        for queue in &mut self.queues {
            let before = queue.acked;
            while queue.confirmed.remove(&(queue.acked + 1)) {
                queue.acked += 1;
            }
            if queue.acked > before {
                queue.ack(queue.acked, true)?;
            }
        }
        Ok(taken)
    }
}

impl Queue {
    fn ack(&self, tag: u64, multiple: bool) -> Answer {
        // Queued by the first poll; that it was sent is not waited for.
        match self.channel.basic_ack(tag, BasicAckOptions { multiple }).now_or_never() {
            Some(Err(error)) => Err(error.into()),
            _ => Ok(()),
        }
    }
}
