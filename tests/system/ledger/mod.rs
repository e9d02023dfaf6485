//! A step that finished is not run again: its requests join it, or get its answer once more.

mod file;
mod lab;

use serde_json::json;
use tasker_worker_rust::broker::topology::step_key;
use tasker_worker_rust::broker::{Message, Properties};
use tasker_worker_rust::message::header;
use tasker_worker_rust::ops::metrics::METRICS;
use tasker_worker_rust::{Config, Namespace, Step, StepResult};

use crate::on_both_brokers;
use crate::support::{Kind, Report, eventually, within};
pub(crate) use lab::Lab;
use lab::Line;

on_both_brokers! {
    a_step_cut_off_from_its_request_runs_on_and_answers_the_redelivery
    a_duplicate_of_a_running_step_is_settled_with_it_and_a_later_one_gets_the_same_answer
    retries_failures_and_dead_letters_are_repeated_word_for_word
    a_replay_from_the_dead_letters_is_run
    a_finished_step_whose_result_could_not_be_published_is_not_run_again
}

async fn a_step_cut_off_from_its_request_runs_on_and_answers_the_redelivery(kind: Kind) {
    let mut lab = Lab::open(kind).await;
    let (handler, mut started, finish) = lab.slow_step();
    let mut config = lab.desk.config.clone();
    // The redelivery joins although no step could be started.
    config.worker.max_concurrent_steps = 1;
    let worker = lab.worker(config, handler).await;
    let request = lab.ask("slow").await;
    within(started.recv()).await;
    for cuts in 1..=3 {
        lab.cut().await;
        lab.until_joined(cuts).await;
    }
    finish.add_permits(1);
    let (result, id) = lab.result().await;
    assert_eq!((result.step_uuid, result.success), (request.step_uuid, true));
    assert_eq!(id, request.message_id("result"));
    worker.shutdown().await;
    lab.all_ran_once(1).await;
}

async fn a_duplicate_of_a_running_step_is_settled_with_it_and_a_later_one_gets_the_same_answer(kind: Kind) {
    let mut lab = Lab::open(kind).await;
    let (handler, mut started, finish) = lab.slow_step();
    let worker = lab.worker(lab.desk.config.clone(), handler).await;
    let request = lab.ask("slow").await;
    within(started.recv()).await;
    lab.desk.send(&request).await;
    lab.until_joined(1).await;
    finish.add_permits(1);
    let first = lab.result().await;

    lab.send_until("replayed", &request).await;
    let again = lab.result().await;
    assert_eq!(again, first, "the same answer, to the millisecond");
    assert_eq!(lab.came_again("replayed"), 1);
    worker.shutdown().await;
    lab.all_ran_once(1).await;
}

async fn retries_failures_and_dead_letters_are_repeated_word_for_word(kind: Kind) {
    let mut lab = Lab::open(kind).await;
    let worker = lab.worker(lab.desk.config.clone(), lab.steps()).await;
    let request = lab.ask("hopeless").await;
    let first = (lab.desk.next().await, lab.desk.next().await);
    assert!(matches!(first, (Report::Result(..), Report::DeadLetter(..))), "{first:?}");
    lab.send_until("replayed", &request).await;
    assert_eq!((lab.desk.next().await, lab.desk.next().await), first);

    // Each of the two retries comes back, and only one is run.
    let request = lab.ask("flaky").await;
    let retry = lab.desk.next().await;
    assert!(matches!(retry, Report::Retry(..)), "{retry:?}");
    let result = lab.desk.next().await;
    assert!(matches!(&result, Report::Result(result, _) if result.attempt == 2), "{result:?}");
    lab.send_until("replayed", &request).await;
    assert_eq!((lab.desk.next().await, lab.desk.next().await), (retry, result));
    worker.shutdown().await;
    lab.all_ran_once(3).await;
}

async fn a_replay_from_the_dead_letters_is_run(kind: Kind) {
    let mut lab = Lab::open(kind).await;
    let worker = lab.worker(lab.desk.config.clone(), lab.steps()).await;
    let request = lab.ask("hopeless").await;
    for runs in 1..=2 {
        assert!(matches!(lab.desk.next().await, Report::Result(..)));
        assert!(matches!(lab.desk.next().await, Report::DeadLetter(..)));
        assert_eq!(lab.runs_of(&request), runs);
        if runs == 1 {
            let mut properties = Properties::default();
            properties.headers.set(header::REPLAYS, 1_u32);
            let routing_key = step_key(&lab.namespace, "hopeless");
            let body = request.encode().into();
            let message = Message { exchange: lab.desk.names.steps(), routing_key, body, properties };
            within(lab.desk.broker.publisher().publish(message)).await.unwrap();
        }
    }
    worker.shutdown().await;
    lab.nothing_is_left().await;
}

async fn a_finished_step_whose_result_could_not_be_published_is_not_run_again(kind: Kind) {
    let mut lab = Lab::open(kind).await;
    let (handler, mut started, finish) = lab.slow_step();
    let worker = lab.worker(lab.desk.config.clone(), handler).await;
    let request = lab.ask("slow").await;
    within(started.recv()).await;
    lab.stall();
    finish.add_permits(1);
    // The answer is made once nothing of it runs any more.
    let in_flight = METRICS.in_flight.with_label_values(&[lab.namespace.as_str()]);
    eventually("the handler ends", async || (in_flight.get() == 0).then_some(())).await;
    lab.cut_and_flow().await;
    let (result, id) = lab.result().await;
    assert_eq!((result.step_uuid, id), (request.step_uuid, request.message_id("result")));
    eventually("the redelivery is noticed", async || {
        (lab.came_again("joined") + lab.came_again("replayed") > 0).then_some(())
    })
    .await;
    worker.shutdown().await;
    assert_eq!(lab.came_again("run"), 0);
    lab.all_ran_once(1).await;
}

/// Half of the cuts come before the result is confirmed. A confirmed one is acked at once, so the other half loses the
/// ack: the request comes again.
#[tokio::test(start_paused = true)]
async fn two_hundred_cuts_between_result_and_ack_run_no_step_twice() {
    let mut lab = Lab::open(Kind::Embedded).await;
    let Line::Embedded(broker) = &lab.line else { unreachable!() };
    let broker = broker.clone();
    let runs = lab.runs.clone();
    let confirms = broker.clone();
    let handler = move |step: Step| {
        *runs.lock().unwrap().entry((step.step_uuid(), step.attempt())).or_default() += 1;
        confirms.lose_confirms(usize::from(step.context["lose"] == true));
        async move { StepResult::Ok(step.context) }
    };
    let worker = lab
        .worker(lab.desk.config.clone(), Namespace::new(lab.namespace.as_str()).step("cut", handler))
        .await;
    let stale = METRICS.stale_settlements.get();
    let cutting = tokio::spawn(async move {
        for round in 0..200 {
            let request = lab.request("cut", json!({ "round": round, "lose": round % 2 == 0 }));
            lab.desk.send(&request).await;
            let first = lab.result().await;
            assert_eq!(first.1, request.message_id("result"));
            if round % 2 == 0 {
                broker.disconnect();
            } else {
                lab.desk.send(&request).await;
            }
            assert_eq!(lab.result().await, first);
        }
        lab
    });
    let lab = cutting.await.unwrap();
    worker.shutdown().await;
    assert_eq!((lab.came_again("joined"), lab.came_again("replayed")), (100, 100));
    assert_eq!(lab.came_again("run"), 0);
    assert!(METRICS.stale_settlements.get() - stale >= 100);
    lab.all_ran_once(200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_cuts_of_a_busy_rabbitmq_connection_run_no_step_twice() {
    const STEPS: usize = 20;
    let mut lab = Lab::open(Kind::RabbitMq).await;
    let worker = lab.worker(lab.desk.config.clone(), lab.steps()).await;
    let stale = METRICS.stale_settlements.get();
    for _ in 0..40 {
        let mut missing = Vec::new();
        for _ in 0..STEPS {
            missing.push(lab.ask("answer").await.message_id("result"));
        }
        for heard in 1.. {
            let (_, id) = lab.result().await;
            missing.retain(|missing| *missing != id);
            if heard == STEPS / 4 {
                lab.cut().await;
            }
            if missing.is_empty() && heard > STEPS / 4 {
                break;
            }
        }
    }
    within(worker.ready()).await;
    // What the last cut put back stands before this one in the queue.
    let last = lab.ask("answer").await.message_id("result");
    while lab.result().await.1 != last {}
    worker.shutdown().await;
    assert!(lab.came_again("replayed") > 0, "no cut came between a result and its ack");
    assert!(METRICS.stale_settlements.get() > stale);
    lab.all_ran_once(40 * STEPS + 1).await;
}

#[tokio::test]
async fn the_oldest_answers_are_forgotten_beyond_the_limits() {
    type Limit = fn(&mut Config);
    let limits: [Limit; 2] =
        [|config| config.worker.ledger.max_entries = 2, |config| config.worker.ledger.max_bytes = 10_000];
    for limit in limits {
        let mut lab = Lab::open(Kind::Embedded).await;
        let mut config = lab.desk.config.clone();
        limit(&mut config);
        let worker = lab.worker(config, lab.steps()).await;
        let mut requests = Vec::new();
        for _ in 0..3 {
            // Two of these results fit 10,000 bytes, and three do not.
            let request = lab.request("answer", json!("x".repeat(2_000)));
            lab.desk.send(&request).await;
            lab.result().await;
            requests.push(request);
        }
        for (request, runs) in [(&requests[2], 1), (&requests[1], 1), (&requests[0], 2)] {
            lab.desk.send(request).await;
            lab.result().await;
            assert_eq!(lab.runs_of(request), runs);
        }
        worker.shutdown().await;
        lab.nothing_is_left().await;
    }
}
