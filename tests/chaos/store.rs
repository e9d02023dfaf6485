//! What the orchestrator's store and the results themselves tell afterwards.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use sqlx::SqlitePool;
use sqlx::sqlite::SqliteConnectOptions;
use tasker_worker_rust::broker::topology::Names;
use tasker_worker_rust::message::StepExecutionResult;

use crate::Answer;
use crate::report::Report;

/// The queue that gets a copy of every result.
const COPIES: &str = "chaos.results";

/// What the store tells.
pub(crate) struct Store {
    /// When each result was applied, in milliseconds since 1970, in order.
    pub(crate) applied: Vec<i64>,
}

impl Store {
    /// Reads a store nobody writes to any more, and fails when anything in it was applied twice or is left over.
    pub(crate) async fn read(file: &Path, report: &mut Report) -> Answer<Self> {
        let options = SqliteConnectOptions::new().filename(file);
        let store = SqlitePool::connect_with(options).await?;
        let count = async |sql: &'static str| sqlx::query_scalar::<_, i64>(sql).fetch_one(&store).await;
        let results = "FROM transitions WHERE step_uuid IS NOT NULL AND to_state IN ('complete', 'error')";
        let twice = "SELECT COUNT(*) FROM (SELECT step_uuid FROM transitions WHERE to_state = 'complete' AND \
                     step_uuid IS NOT NULL GROUP BY step_uuid HAVING COUNT(*) > 1)";
        report.expect("steps completed twice in the store", count(twice).await?, 0);
        report.expect("messages left in the outbox", count("SELECT COUNT(*) FROM outbox").await?, 0);
        report.figure(
            "steps",
            count("SELECT COUNT(*) FROM steps WHERE state IN ('complete', 'error')").await?,
            "",
        );
        let again = "SELECT COUNT(*) FROM steps WHERE attempts > 1";
        report.figure("steps with more than one attempt", count(again).await?, "");
        let sql = sqlx::AssertSqlSafe(format!("SELECT at {results} ORDER BY at"));
        let applied = sqlx::query_scalar(sql).fetch_all(&store).await?;
        store.close().await;
        Ok(Self { applied })
    }
}

/// Has the broker keep a copy of every result.
pub(crate) async fn copy_results(url: &str) -> Answer {
    let (_connection, channel) = channel(url).await?;
    let exchange = Names::new("tasker").results();
    let mut alternate = FieldTable::default();
    alternate.insert("alternate-exchange".into(), text(&Names::new("tasker").unroutable()));
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(exchange.as_str().into(), ExchangeKind::Topic, durable, alternate).await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(COPIES.into(), durable, arguments).await?;
    let options = QueueBindOptions::default();
    channel
        .queue_bind(
            COPIES.into(),
            exchange.as_str().into(),
            "result.#".into(),
            options,
            FieldTable::default(),
        )
        .await?;
    Ok(())
}

/// Every execution that came to a result.
#[derive(Default)]
pub(crate) struct Executions {
    /// When each started, in milliseconds since 1970, in order.
    pub(crate) started: Vec<i64>,
    /// Step attempts that were executed to their end more than once.
    pub(crate) repeated: i64,
    /// Results of another attempt than a step's first.
    pub(crate) later_attempts: i64,
    pub(crate) by_worker: HashMap<String, i64>,
}

/// Reads the copies.
pub(crate) async fn executions(url: &str) -> Answer<Executions> {
    let (_connection, channel) = channel(url).await?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let left = channel.queue_declare(COPIES.into(), passive, FieldTable::default()).await?.message_count();
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let copies = channel.basic_consume(COPIES.into(), "".into(), options, FieldTable::default()).await?;
    let mut copies = copies.take(usize::try_from(left)?);
    let mut executions = Executions::default();
    let mut known: HashMap<_, BTreeSet<_>> = HashMap::new();
    while let Some(copy) = copies.next().await {
        let result = StepExecutionResult::decode(&copy?.data)?;
        let started = result.metadata.started_at.ok_or("a result does not tell when it started")?;
        // One execution's result may be published twice; two executions differ in who ran them, and when.
        let execution = (result.metadata.worker_id.clone(), started);
        if known.entry((result.step_uuid, result.attempt)).or_default().insert(execution) {
            executions.later_attempts += i64::from(result.attempt > 1);
            executions.started.push(started.as_millisecond());
            *executions.by_worker.entry(result.metadata.worker_id).or_default() += 1;
        }
    }
    executions.started.sort_unstable();
    executions.repeated = i64::try_from(known.values().filter(|executions| executions.len() > 1).count())?;
    Ok(executions)
}

async fn channel(url: &str) -> Answer<(Connection, Channel)> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    Ok((connection, channel))
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// Now, in milliseconds since 1970.
pub(crate) fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
