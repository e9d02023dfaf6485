//! Dead letters: looking changes nothing, replaying goes on where a task stopped.

mod faults;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use jiff::Timestamp;
use serde_json::{Value, json};
use tasker_worker_rust::broker::topology::Names;
use tasker_worker_rust::broker::{Broker, Disposition, Source};
use tasker_worker_rust::catalog::Catalog;
use tasker_worker_rust::dead_letters::{Filter, Letter, ReplayError, Replayed, release, take};
use tasker_worker_rust::message::header;
use tasker_worker_rust::{Batches, Namespace, Step, StepError, StepResult, template};
use uuid::Uuid;

use crate::support::{Desk, Kind, NAMESPACE, Report, within};
use crate::system::System;

crate::on_both_brokers! {
    looking_at_dead_letters_neither_takes_nor_reorders_them
    filters_choose_by_id_step_code_reason_and_age
    what_is_no_request_says_why_and_can_only_be_discarded
    a_replay_runs_the_step_anew_under_a_number_of_its_own
    what_dies_again_is_parked_again_and_not_replayed_unasked
    a_replayed_step_completes_its_task_once_its_cause_is_mended
    a_failed_batch_is_replayed_and_the_rest_is_done
    a_step_of_a_rolled_back_task_is_not_resumed
    errors_of_any_size_fit_into_a_dead_letters_headers
}

pub(crate) async fn taken(broker: &Arc<dyn Broker>, names: &Names) -> Vec<Letter> {
    let (letters, left) = within(take(&**broker, names, NAMESPACE)).await.expect("the queue is there");
    assert_eq!(left, 0);
    letters
}

/// Waits until as many letters are parked.
pub(crate) async fn parked(broker: &Arc<dyn Broker>, names: &Names, count: u64) {
    let queue = names.dead_letter_queue(NAMESPACE);
    within(async {
        while broker.depth(&queue).await.expect("the broker answers") != Some(count) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

fn failing() -> Namespace {
    Namespace::new(NAMESPACE).step("fail", |step: Step<Value>| async move {
        let code = step.context["code"].as_str().unwrap_or("NO").to_owned();
        StepResult::<()>::Err(StepError::permanent("it never works").code(code))
    })
}

/// Parks the letter of one failed step.
async fn die(desk: &mut Desk, step: &str, context: Value) -> Uuid {
    let request = desk.ask(step, context).await;
    assert!(!desk.next_result().await.success);
    desk.next_dead_letter().await;
    request.step_uuid
}

async fn looking_at_dead_letters_neither_takes_nor_reorders_them(kind: Kind) {
    let mut desk = Desk::open(kind).await;
    let worker = desk.worker(failing()).await;
    let mut steps = Vec::new();
    for _ in 0..5 {
        steps.push(Some(die(&mut desk, "fail", json!({})).await));
    }
    let (broker, names) = (desk.broker.clone(), desk.names.clone());
    for _ in 0..3 {
        parked(&broker, &names, 5).await;
        let letters = taken(&broker, &names).await;
        assert_eq!(letters.iter().map(|letter| letter.step_uuid).collect::<Vec<_>>(), steps);
        parked(&broker, &names, 0).await;
        release(letters);
    }
    parked(&broker, &names, 5).await;
    within(worker.shutdown()).await;
    desk.close().await;
}

async fn filters_choose_by_id_step_code_reason_and_age(kind: Kind) {
    let mut desk = Desk::open(kind).await;
    let worker = desk.worker(failing()).await;
    let declined = die(&mut desk, "fail", json!({"code": "DECLINED"})).await;
    let unknown = die(&mut desk, "unheard_of", json!({})).await;
    let (broker, names) = (desk.broker.clone(), desk.names.clone());
    parked(&broker, &names, 2).await;
    let letters = taken(&broker, &names).await;
    let text = |text: &str| Some(text.to_owned());
    let hour = jiff::SignedDuration::from_hours(1);
    let (earlier, later) = (Some(Timestamp::now() - hour), Some(Timestamp::now() + hour));
    let none = Filter::default;
    for (filter, expected) in [
        (none(), vec![declined, unknown]),
        (Filter { ids: vec![declined.to_string()], ..none() }, vec![declined]),
        (Filter { ids: vec![letters[1].message_id.clone()], ..none() }, vec![unknown]),
        (Filter { step: text("unheard_of"), ..none() }, vec![unknown]),
        (Filter { code: text("DECLINED"), ..none() }, vec![declined]),
        (Filter { reason: text("handler_not_found"), ..none() }, vec![unknown]),
        (Filter { code: text("DECLINED"), reason: text("handler_not_found"), ..none() }, vec![]),
        (Filter { before: later, after: earlier, ..none() }, vec![declined, unknown]),
        (Filter { before: earlier, ..none() }, vec![]),
        (Filter { after: later, ..none() }, vec![]),
    ] {
        let found = letters.iter().filter(|letter| filter.matches(letter)).map(|letter| letter.step_uuid);
        assert_eq!(found.flatten().collect::<Vec<_>>(), expected, "{filter:?}");
    }
    release(letters);
    within(worker.shutdown()).await;
    desk.close().await;
}

async fn what_is_no_request_says_why_and_can_only_be_discarded(kind: Kind) {
    let mut desk = Desk::open(kind).await;
    let worker = desk.worker(failing()).await;
    desk.send_bytes(NAMESPACE, "fail", r#"{"namespace": "orders"}"#).await;
    desk.next_dead_letter().await;
    let (broker, names) = (desk.broker.clone(), desk.names.clone());
    parked(&broker, &names, 1).await;
    let mut letter = taken(&broker, &names).await.remove(0);
    assert_eq!((letter.reason.as_str(), &letter.step), ("rejected", &None));
    assert!(letter.error.message.contains("missing field"), "{}", letter.error.message);
    let id = letter.message_id.clone();
    assert!(letter.check(u32::MAX).unwrap_err().contains("only discarded"));
    let refused = letter.replay(&broker.publisher(), &names).await;
    assert!(matches!(refused, Err(ReplayError::Unusable(why)) if why.contains("missing field")));
    letter.release();

    parked(&broker, &names, 1).await;
    let mut letter = taken(&broker, &names).await.remove(0);
    assert_eq!(letter.message_id, id, "an id made from the body finds it again");
    letter.discard().expect("it is held");
    within(worker.shutdown()).await;
    assert!(taken(&broker, &names).await.is_empty());
    desk.close().await;
}

async fn a_replay_runs_the_step_anew_under_a_number_of_its_own(kind: Kind) {
    let mut desk = Desk::open(kind).await;
    let broken = Arc::new(AtomicBool::new(true));
    let switch = broken.clone();
    let handler = move |step: Step<Value>| {
        let broken = switch.load(Ordering::SeqCst);
        async move {
            match (broken, step.attempt()) {
                (true, _) => Err(StepError::permanent("the gateway is gone")),
                (false, 1) => Err(StepError::retryable("the gateway starts")),
                (false, attempt) => Ok(attempt),
            }
        }
    };
    let worker = desk.worker(Namespace::new(NAMESPACE).step("pay", handler)).await;
    let step_uuid = die(&mut desk, "pay", json!({"amount": 1})).await;
    broken.store(false, Ordering::SeqCst);
    let (broker, names) = (desk.broker.clone(), desk.names.clone());
    parked(&broker, &names, 1).await;
    let mut letter = taken(&broker, &names).await.remove(0);
    let dead = letter.message_id.clone();
    assert_eq!((dead.clone(), letter.replays), (format!("{step_uuid}:1:dead"), 0));
    let replayed = within(letter.replay(&broker.publisher(), &names)).await;
    assert_eq!(replayed, Ok(Replayed::Done));

    let Report::Retry(retry, of_retry) = desk.next().await else { panic!("a retry is expected") };
    let Report::Result(result, of_result) = desk.next().await else { panic!("a result is expected") };
    assert_eq!((retry.attempt, result.attempt, result.data.get()), (2, 2, "2"));
    assert_eq!(retry.task_data.get(), r#"{"amount":1}"#);
    for properties in [&of_retry, &of_result] {
        assert_eq!(properties.headers.replays(), 1);
        assert_eq!(properties.headers.text(header::REPLAYED_FROM), Some(dead.as_str()));
        assert_eq!(properties.headers.text(header::REASON), None);
    }
    assert_eq!(of_result.message_id, Some(format!("{step_uuid}:2:result:1")));
    parked(&broker, &names, 0).await;
    within(worker.shutdown()).await;
    desk.close().await;
}

async fn what_dies_again_is_parked_again_and_not_replayed_unasked(kind: Kind) {
    let mut desk = Desk::open(kind).await;
    let worker = desk.worker(failing()).await;
    let step_uuid = die(&mut desk, "fail", json!({})).await;
    let (broker, names) = (desk.broker.clone(), desk.names.clone());
    for (replays, replayed_from) in [(1, format!("{step_uuid}:1:dead")), (2, format!("{step_uuid}:1:dead:1"))]
    {
        parked(&broker, &names, 1).await;
        let mut letter = taken(&broker, &names).await.remove(0);
        letter.check(replays).expect("it was not replayed so often");
        assert_eq!(letter.message_id, replayed_from);
        let done = within(letter.replay(&broker.publisher(), &names)).await;
        assert_eq!(done, Ok(Replayed::Done));
        assert!(!desk.next_result().await.success);
        desk.next_dead_letter().await;

        parked(&broker, &names, 1).await;
        let letter = taken(&broker, &names).await.remove(0);
        assert_eq!(letter.replays, replays);
        assert_eq!(letter.properties.headers.text(header::REPLAYED_FROM), Some(replayed_from.as_str()));
        assert!(letter.check(replays).unwrap_err().contains("died again"));
        letter.release();
    }
    within(worker.shutdown()).await;
    desk.close().await;
}

/// A system with these steps, whose `pay` fails for good until it is mended.
async fn shop(kind: Kind, steps: &str) -> (System, Arc<AtomicBool>, Arc<AtomicU32>) {
    let file = format!("name: order\nnamespace_name: {NAMESPACE}\nversion: 1.0.0\nsteps:\n{steps}");
    let parsed = template::parse(&file, None).expect("the template is right");
    let (mended, paid) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let (switch, count) = (mended.clone(), paid.clone());
    let pay = move |_: Step| {
        let mended = switch.load(Ordering::SeqCst);
        let runs = count.fetch_add(1, Ordering::SeqCst) + 1;
        async move { if mended { Ok(runs) } else { Err(StepError::permanent("no gateway")) } }
    };
    let done = |_: Step| async { StepResult::Ok("done") };
    let handlers = Namespace::new(NAMESPACE)
        .step("pay", pay)
        .step("ship", done)
        .step("reserve", done)
        .step("release", done);
    let catalog = Catalog::from_templates(vec![parsed.template]);
    (System::open_with(kind, catalog, vec![handlers]).await, mended, paid)
}

pub(crate) async fn becomes(system: &System, task_uuid: Uuid, status: &str) {
    within(async {
        while system.client.task(task_uuid).await.expect("the orchestrator answers").status != status {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn a_replayed_step_completes_its_task_once_its_cause_is_mended(kind: Kind) {
    let steps = "- {name: pay, handler: {callable: pay}}\n\
                 - {name: ship, handler: {callable: ship}, dependencies: [pay]}\n";
    let (mut system, mended, _) = shop(kind, steps).await;
    let task_uuid = system.submit(NAMESPACE, "order", json!({})).await;
    assert_eq!(system.finished(task_uuid).await.status, "error");
    let (broker, names) = (system.broker.clone(), system.config.names());
    parked(&broker, &names, 1).await;
    // The orchestrator knows of the replay from its answer alone, and from its store whatever came before.
    system.restart_orchestrator().await;
    mended.store(true, Ordering::SeqCst);
    let mut letter = taken(&broker, &names).await.remove(0);
    assert_eq!(within(letter.objection(&system.client)).await.expect("it answers"), None);
    assert_eq!(within(letter.replay(&broker.publisher(), &names)).await, Ok(Replayed::Done));
    becomes(&system, task_uuid, "complete").await;
    assert_eq!(system.output(task_uuid, "pay").await, 2);
    assert_eq!(system.output(task_uuid, "ship").await, "done");
    assert_eq!(system.step(task_uuid, "pay").await.attempts, 1);
    parked(&broker, &names, 0).await;
    system.close().await;
}

/// Batches of one item; the second fails as long as the gate is shut, and none is asked for after it.
async fn a_failed_batch_is_replayed_and_the_rest_is_done(kind: Kind) {
    let text = format!(
        "
namespace: {NAMESPACE}
name: gated
version: 1.0.0
steps:
  - {{name: split, type: batchable, batch_config: {{worker_template: work, parallelism: 1, failure_strategy: fail_fast}}}}
  - {{name: work, type: batch_worker, dependencies: [split]}}
  - {{name: join, type: deferred_convergence, dependencies: [work]}}
"
    );
    let template = template::parse(&text, None).expect("the template is right").template;
    let open = Arc::new(AtomicBool::new(false));
    let split = async |_: Step| -> StepResult<Batches> { Ok(Batches::split(3, 1)) };
    let work = {
        let open = Arc::clone(&open);
        move |step: Step| {
            let open = Arc::clone(&open);
            async move {
                match step.batch::<u64>()?.start {
                    1 if !open.load(Ordering::Relaxed) => Err(StepError::permanent("the gate is shut")),
                    start => Ok(start * 10),
                }
            }
        }
    };
    let join = async |step: Step| -> StepResult<Vec<u64>> { step.results_of("work") };
    let handlers = Namespace::new(NAMESPACE).step("split", split).step("work", work).step("join", join);
    let mut system = System::open_with(kind, Catalog::from_templates(vec![template]), vec![handlers]).await;
    let task_uuid = system.submit(NAMESPACE, "gated", json!({})).await;
    let task = system.finished(task_uuid).await;
    assert_eq!((task.status.as_str(), task.completed_steps, task.failed_steps), ("error", 2, 1));
    assert_eq!(system.step(task_uuid, "work_003").await.current_state, "pending");

    system.restart_orchestrator().await;
    open.store(true, Ordering::Relaxed);
    parked(&system.broker, &system.config.names(), 1).await;
    let mut letter = taken(&system.broker, &system.config.names()).await.remove(0);
    assert_eq!(letter.step.as_deref(), Some("work_002"));
    assert_eq!(letter.objection(&system.client).await.expect("the orchestrator answers"), None);
    let replayed = within(letter.replay(&system.broker.publisher(), &system.config.names())).await;
    assert_eq!(replayed.expect("the broker takes it"), Replayed::Done);
    let task = within(async {
        loop {
            let task = system.finished(task_uuid).await;
            if task.status == "complete" {
                break task;
            }
        }
    })
    .await;
    assert_eq!((task.completed_steps, task.total_steps), (5, 5));
    assert_eq!(system.output(task_uuid, "join").await, json!([0, 10, 20]));
    system.close().await;
}

async fn a_step_of_a_rolled_back_task_is_not_resumed(kind: Kind) {
    let steps = "- {name: reserve, handler: {callable: reserve}}\n\
                 - {name: pay, handler: {callable: pay}, dependencies: [reserve]}\n\
                 - {name: release, handler: {callable: release}, compensates: reserve}\n";
    let (system, mended, paid) = shop(kind, steps).await;
    let task_uuid = system.submit(NAMESPACE, "order", json!({})).await;
    assert_eq!(system.finished(task_uuid).await.status, "error");
    assert_eq!(system.output(task_uuid, "release").await, "done");
    let (broker, names) = (system.broker.clone(), system.config.names());
    parked(&broker, &names, 1).await;
    mended.store(true, Ordering::SeqCst);
    let mut letter = taken(&broker, &names).await.remove(0);
    let objection = within(letter.objection(&system.client)).await.expect("it answers");
    assert!(objection.expect("there is one").contains("rolled back"));

    // Whoever does not ask runs the step, but the task stays as it is.
    assert_eq!(within(letter.replay(&broker.publisher(), &names)).await, Ok(Replayed::Done));
    within(async {
        while paid.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // A task submitted later is answered later: by its end the replay's answer was heard.
    let later = system.submit(NAMESPACE, "order", json!({"later": true})).await;
    assert_eq!(system.finished(later).await.status, "complete");
    let task = system.client.task(task_uuid).await.expect("the orchestrator answers");
    assert_eq!((task.status.as_str(), task.completed_steps), ("error", 2));
    assert_eq!(system.step(task_uuid, "pay").await.current_state, "error");
    system.close().await;
}

async fn errors_of_any_size_fit_into_a_dead_letters_headers(kind: Kind) {
    let mut desk = Desk::open(kind).await;
    let handler = |_: Step<Value>| async {
        let error = StepError::permanent("é".repeat(1_000_000)).code("C".repeat(200_000));
        StepResult::<()>::Err(error.details(json!("d".repeat(500_000))))
    };
    let worker = desk.worker(Namespace::new(NAMESPACE).step("shout", handler)).await;
    die(&mut desk, "shout", json!({})).await;
    let mut parked = desk.broker.subscribe(Source::Queue(desk.names.dead_letter_queue(NAMESPACE)), 1);
    let delivery = within(parked.recv()).await.expect("it is parked");
    let headers = &delivery.properties.headers;
    let size: usize = headers.iter().map(|(name, value)| name.len() + format!("{value:?}").len()).sum();
    // The smallest frame a broker may ask for has 4,096 bytes.
    assert!(size < 4_000, "{size} bytes of headers");
    assert!(headers.text(header::ERROR).unwrap().ends_with("(2000000 bytes in all)"));
    delivery.acker.settle(Disposition::Ack).expect("it is ours");
    drop(parked);
    within(worker.shutdown()).await;
    desk.close().await;
}
