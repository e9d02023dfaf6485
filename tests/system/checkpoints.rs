//! Steps that go on from checkpoints: part by part, on any worker, each part once.

use std::sync::{Arc, Mutex};

use serde_json::json;
use tasker_worker_rust::catalog::Catalog;
use tasker_worker_rust::dead_letters::Replayed;
use tasker_worker_rust::orchestrator::by_hand::{ByHand, Decision};
use tasker_worker_rust::{Checkpoint, Namespace, Step, StepError, StepResult, template};
use tokio::sync::{Semaphore, mpsc};

use crate::dead_letters::{becomes, parked, taken};
use crate::ledger::Lab;
use crate::on_both_brokers;
use crate::support::{Desk, Kind, NAMESPACE, Report, eventually, within};
use crate::system::System;

on_both_brokers! {
    a_step_goes_on_from_each_checkpoint_and_adds_up
    an_attempt_that_fails_goes_on_from_the_last_checkpoint
    a_checkpoint_outlives_its_orchestrator_and_a_reset_by_hand_goes_on_from_it
    a_replay_from_the_dead_letters_goes_on_from_the_checkpoint
    a_cancelled_task_ends_at_the_next_checkpoint
    a_worker_that_stops_hands_on_what_was_reached
    what_a_killed_worker_had_reached_is_gone_on_from_and_nothing_is_done_more_than_twice
    what_comes_again_is_not_run_beside_what_its_step_went_on_with
    a_checkpoint_that_leads_nowhere_or_cannot_be_sent_fails_the_step
}

/// Where it failed, and when it may go on.
const FAILS_AT: u64 = 3;

/// Parts begun: attempt and cursor.
type Parts = Arc<Mutex<Vec<(u32, u64)>>>;

/// Adds up the numbers below the context, one in each part.
#[derive(Clone)]
struct Sum {
    parts: Parts,
    begun: mpsc::UnboundedSender<()>,
    gate: Arc<Semaphore>,
    /// A part that waits for the test, or until it is told to stop.
    waits_at: u64,
    failure: fn(&Step<u64>) -> Option<StepError>,
}

impl Sum {
    fn new(
        waits_at: u64,
        failure: fn(&Step<u64>) -> Option<StepError>,
    ) -> (Self, mpsc::UnboundedReceiver<()>) {
        let (begun, has_begun) = mpsc::unbounded_channel();
        let (parts, gate) = (Parts::default(), Arc::new(Semaphore::new(0)));
        (Self { parts, begun, gate, waits_at, failure }, has_begun)
    }

    fn step(&self, namespace: &str) -> Namespace {
        let this = self.clone();
        Namespace::new(namespace).step("sum", move |step: Step<u64>| {
            let this = this.clone();
            async move { this.run(&step).await }
        })
    }

    async fn run(&self, step: &Step<u64>) -> StepResult<u64> {
        let mut done: Checkpoint<u64, u64> = step.checkpoint()?.unwrap_or_default();
        self.parts.lock().unwrap().push((step.attempt(), done.cursor));
        if done.cursor == self.waits_at {
            self.begun.send(())?;
            tokio::select! {
                permit = self.gate.acquire() => permit?.forget(),
                () = step.cancelled() => {}
            }
        }
        if let Some(failure) = (self.failure)(step).filter(|_| done.cursor == FAILS_AT) {
            return Err(failure);
        }
        done.accumulated_results += done.cursor;
        done.items_processed += 1;
        done.cursor += 1;
        if done.cursor < step.context {
            Err(StepError::checkpoint(done))
        } else {
            Ok(done.accumulated_results)
        }
    }

    fn parts(&self) -> Vec<(u32, u64)> {
        self.parts.lock().unwrap().clone()
    }

    async fn system(&self, kind: Kind) -> System {
        let text = "name: adding\nnamespace_name: orders\nversion: 1.0.0\nsteps:\n\
                    - {name: sum, retry: {max_attempts: 2, backoff: none}}\n";
        let parsed = template::parse(text, None).expect("the template is right");
        System::open_with(kind, Catalog::from_templates(vec![parsed.template]), vec![self.step("orders")])
            .await
    }
}

fn never(_: &Step<u64>) -> Option<StepError> {
    None
}

const NOWHERE: u64 = u64::MAX;

fn first_attempt(range: std::ops::Range<u64>) -> Vec<(u32, u64)> {
    range.map(|cursor| (1, cursor)).collect()
}

async fn a_step_goes_on_from_each_checkpoint_and_adds_up(kind: Kind) {
    let (sum, _begun) = Sum::new(NOWHERE, never);
    let system = sum.system(kind).await;
    let task = system.run("orders", "adding", json!(20)).await;
    assert_eq!((task.status.as_str(), task.steps[0].attempts), ("complete", 1));
    assert_eq!(system.output(task.task_uuid, "sum").await, 190);
    assert_eq!(sum.parts(), first_attempt(0..20));

    let reached = system.step(task.task_uuid, "sum").await.checkpoint.expect("it has reported some");
    assert_eq!((reached.cursor.get(), reached.items_processed), ("19", 19));
    assert_eq!(reached.accumulated_results.get(), "171");
    let told: Vec<String> = sqlx::query_scalar(
        "SELECT reason FROM transitions WHERE to_state = 'in_progress' ORDER BY transition_id",
    )
    .fetch_all(system.orchestrator.store().readers())
    .await
    .unwrap();
    let wanted: Vec<String> =
        (1..20).map(|part| format!("checkpoint {part}: {part} items processed")).collect();
    assert_eq!(told, wanted);
    system.close().await;
}

async fn an_attempt_that_fails_goes_on_from_the_last_checkpoint(kind: Kind) {
    let (sum, _begun) =
        Sum::new(NOWHERE, |step| (step.attempt() == 1).then(|| StepError::retryable("the disk is full")));
    let system = sum.system(kind).await;
    let task = system.run("orders", "adding", json!(5)).await;
    assert_eq!((task.status.as_str(), task.steps[0].attempts), ("complete", 2));
    assert_eq!(system.output(task.task_uuid, "sum").await, 10);
    let mut wanted = first_attempt(0..4);
    wanted.extend([(2, 3), (2, 4)]);
    assert_eq!(sum.parts(), wanted);
    system.close().await;
}

/// In the first life of a step: after a replay its parts are counted anew.
fn in_its_first_life(step: &Step<u64>) -> Option<StepError> {
    (step.request().part > 0).then(|| StepError::permanent("no such row"))
}

async fn a_replay_from_the_dead_letters_goes_on_from_the_checkpoint(kind: Kind) {
    let (sum, _begun) = Sum::new(NOWHERE, in_its_first_life);
    let system = sum.system(kind).await;
    let task_uuid = system.submit("orders", "adding", json!(6)).await;
    assert_eq!(system.finished(task_uuid).await.status, "error");
    let (broker, names) = (system.broker.clone(), system.config.names());
    parked(&broker, &names, 1).await;
    let mut letter = taken(&broker, &names).await.remove(0);
    assert_eq!(within(letter.replay(&broker.publisher(), &names)).await, Ok(Replayed::Done));
    becomes(&system, task_uuid, "complete").await;
    assert_eq!(system.output(task_uuid, "sum").await, 15);
    let mut wanted = first_attempt(0..4);
    wanted.extend(first_attempt(3..6));
    assert_eq!(sum.parts(), wanted);
    system.close().await;
}

async fn a_checkpoint_outlives_its_orchestrator_and_a_reset_by_hand_goes_on_from_it(kind: Kind) {
    let (sum, mut begun) = Sum::new(2, in_its_first_life);
    let mut system = sum.system(kind).await;
    let task_uuid = system.submit("orders", "adding", json!(6)).await;
    within(begun.recv()).await;
    eventually("the checkpoint is heard of", async || {
        let step = system.step(task_uuid, "sum").await;
        step.checkpoint.filter(|reached| reached.items_processed == 2)
    })
    .await;
    assert_eq!(system.step(task_uuid, "sum").await.current_state, "in_progress");
    system.restart_orchestrator().await;
    sum.gate.add_permits(1);
    assert_eq!(system.finished(task_uuid).await.status, "error");

    let step = system.step(task_uuid, "sum").await;
    let by_hand = ByHand {
        step_uuid: step.step_uuid,
        decision: Decision::Retry,
        by: "ann".to_owned(),
        reason: "the row is there now".to_owned(),
    };
    assert!(system.orchestrator.act(task_uuid, by_hand).await.unwrap());
    assert_eq!(system.finished(task_uuid).await.status, "complete");
    assert_eq!(system.output(task_uuid, "sum").await, 15);
    let mut wanted = first_attempt(0..4);
    wanted.extend(first_attempt(3..6));
    assert_eq!(sum.parts(), wanted);
    system.close().await;
}

async fn a_cancelled_task_ends_at_the_next_checkpoint(kind: Kind) {
    let (sum, mut begun) = Sum::new(2, never);
    let system = sum.system(kind).await;
    let task_uuid = system.submit("orders", "adding", json!(6)).await;
    within(begun.recv()).await;
    system.client.cancel(task_uuid).await.expect("it runs");
    assert_eq!(system.finished(task_uuid).await.status, "cancelled");
    // What is asked for later is done later: nothing of the first task is left then.
    let next = system.submit("orders", "adding", json!(2)).await;
    assert_eq!(system.finished(next).await.status, "complete");
    let queue = system.config.names().step_queue("orders");
    eventually("nothing is left", async || (system.broker.depth(&queue).await == Ok(Some(0))).then_some(()))
        .await;
    let mut wanted = first_attempt(0..3);
    wanted.extend(first_attempt(0..2));
    assert_eq!(sum.parts(), wanted);
    system.close().await;
}

async fn a_worker_that_stops_hands_on_what_was_reached(kind: Kind) {
    let mut lab = Lab::open(kind).await;
    let (sum, mut begun) = Sum::new(1, never);
    let mut config = lab.desk.config.clone();
    config.worker.shutdown.shutdown_timeout_seconds = 0;
    let worker = lab.worker(config.clone(), sum.step(&lab.namespace)).await;
    lab.desk.send(&lab.request("sum", json!(3))).await;
    within(begun.recv()).await;
    within(worker.shutdown()).await;
    for part in [1, 2] {
        assert_eq!(lab.desk.next_checkpoint().await.part, part);
    }
    let worker = lab.worker(config, sum.step(&lab.namespace)).await;
    assert_eq!(lab.result().await.0.data.get(), "3");
    within(worker.shutdown()).await;
    assert_eq!(sum.parts(), first_attempt(0..3));
    lab.nothing_is_left().await;
}

async fn what_a_killed_worker_had_reached_is_gone_on_from_and_nothing_is_done_more_than_twice(kind: Kind) {
    let mut lab = Lab::open(kind).await;
    let (sum, mut begun) = Sum::new(2, never);
    let broker = lab.connect();
    let config = lab.desk.config.clone();
    let worker = lab.start(broker.clone(), config.clone(), sum.step(&lab.namespace)).await;
    let request = lab.request("sum", json!(5));
    lab.desk.send(&request).await;
    within(begun.recv()).await;
    lab.kill(worker, broker).await;
    let worker = lab.worker(config, sum.step(&lab.namespace)).await;
    within(begun.recv()).await;
    sum.gate.add_permits(2);
    let mut parts = Vec::new();
    let (result, id) = loop {
        match lab.desk.next().await {
            Report::Checkpoint(rest, _) => parts.push(rest.part),
            Report::Result(result, properties) => break (result, properties.message_id.unwrap()),
            other => panic!("expected a checkpoint or a result, got {other:?}"),
        }
    };
    assert_eq!((result.data.get(), result.part, result.attempt), ("10", 4, 1));
    assert_eq!(id, format!("{}:1.4:result", request.step_uuid));
    worker.shutdown().await;
    // The acks of parts before the one that was cut off may have been lost with it: then those are done again, perhaps
    // after what followed them.
    let twice_at_most = |times: usize| (1..=2).contains(&times);
    for part in 1..=4 {
        assert!(twice_at_most(parts.iter().filter(|other| **other == part).count()), "{parts:?}");
    }
    let done = sum.parts();
    for part in first_attempt(0..5) {
        assert!(twice_at_most(done.iter().filter(|other| **other == part).count()), "{done:?}");
    }
    lab.nothing_is_left().await;
}

async fn what_comes_again_is_not_run_beside_what_its_step_went_on_with(kind: Kind) {
    let mut lab = Lab::open(kind).await;
    let (sum, mut begun) = Sum::new(2, never);
    let worker = lab.worker(lab.desk.config.clone(), sum.step(&lab.namespace)).await;
    let first = lab.request("sum", json!(4));
    lab.desk.send(&first).await;
    within(begun.recv()).await;
    let second = lab.desk.next_checkpoint().await;
    let third = lab.desk.next_checkpoint().await;
    // While the third part runs: the parts before it say nothing more, and it is joined.
    for request in [&first, &second] {
        lab.send_until("overtaken", request).await;
    }
    let joined = lab.came_again("joined");
    lab.desk.send(&third).await;
    eventually("it comes again", async || (lab.came_again("joined") > joined).then_some(())).await;
    sum.gate.add_permits(1);
    assert_eq!(lab.desk.next_checkpoint().await.part, 3);
    assert_eq!(lab.result().await.0.data.get(), "6");
    // And after its end.
    lab.send_until("overtaken", &second).await;
    worker.shutdown().await;
    assert_eq!(sum.parts(), first_attempt(0..4));
    lab.nothing_is_left().await;
}

async fn a_checkpoint_that_leads_nowhere_or_cannot_be_sent_fails_the_step(kind: Kind) {
    async fn stays(_: Step) -> StepResult<()> {
        Err(StepError::checkpoint(Checkpoint { cursor: 7, ..Checkpoint::<_, ()>::default() }))
    }
    async fn swells(_: Step) -> StepResult<()> {
        let accumulated_results = "x".repeat(200_000);
        Err(StepError::checkpoint(Checkpoint { accumulated_results, ..Checkpoint::<u8, _>::default() }))
    }
    /// Each of its checkpoints fits, and only in the place of the one before.
    async fn replaces(step: Step) -> StepResult<u8> {
        let cursor = step.checkpoint::<u8, String>()?.map_or(1, |reached| reached.cursor + 1);
        let accumulated_results = "x".repeat(60_000);
        match cursor {
            3 => Ok(cursor),
            _ => Err(StepError::checkpoint(Checkpoint {
                cursor,
                accumulated_results,
                ..Checkpoint::default()
            })),
        }
    }
    let mut config = crate::support::settings(kind);
    config.broker.max_message_bytes = 100_000;
    let mut desk = Desk::open_with(config, kind, &[NAMESPACE]).await;
    let namespace = Namespace::new(NAMESPACE).step("stays", stays).step("swells", swells);
    let worker = desk.worker(namespace.step("replaces", replaces)).await;
    desk.ask("stays", json!({})).await;
    assert_eq!(desk.next_checkpoint().await.part, 1);
    let error = desk.next_result().await.error.expect("it failed");
    assert_eq!(error.error_type, "ResultRefused");
    assert_eq!(error.message, "the checkpoint is the one that the step went on from: it would never end");
    desk.next_dead_letter().await;

    desk.ask("swells", json!({})).await;
    let error = desk.next_result().await.error.expect("it failed");
    let text = "the checkpoint has 200003 bytes, max_message_bytes is 100000; store it elsewhere and return a reference";
    assert_eq!(error.message, text);
    desk.next_dead_letter().await;

    desk.ask("replaces", json!({})).await;
    for part in [1, 2] {
        assert_eq!(desk.next_checkpoint().await.part, part);
    }
    assert_eq!(desk.next_result().await.data.get(), "3");
    worker.shutdown().await;
    desk.close().await;
}
