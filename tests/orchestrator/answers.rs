//! What a worker's answer changes, and what stays on record of it.

use serde_json::{Value, json};
use tasker_worker_rust::message::{ResultStatus, StepExecutionResult};
use tasker_worker_rust::orchestrator::advance::{Advance, Effect, Event, Note, Outcome};
use tasker_worker_rust::orchestrator::task::{StepState, TaskState};
use tasker_worker_rust::template::StepKind;

use crate::replay::{World, replayed};
use crate::support::{failure, linear, result_of, template};

/// What is recorded with a step's change to `state`.
fn note(advanced: &Advance, state: StepState) -> &Note {
    let mut notes = advanced.effects.iter().filter_map(|effect| match effect {
        Effect::Step { to, note, .. } if *to == state => Some(note),
        _ => None,
    });
    let note = notes.next().unwrap_or_else(|| panic!("no step became {state}: {advanced:?}"));
    assert_eq!(notes.next(), None, "{advanced:?}");
    note
}

fn told(note: &Note) -> (Option<u32>, Option<&str>) {
    (note.attempt, note.reason.as_deref())
}

fn result(note: &Note) -> Value {
    note.result.as_ref().expect("a result is recorded").parse().expect("it is JSON")
}

#[test]
fn a_result_is_recorded_with_its_attempt_worker_and_duration_and_the_next_request_with_its_own() {
    for (worker_id, recorded) in [("w1", Some("w1")), ("", None)] {
        let mut world = World::new(linear());
        let mut success = result_of(&world.request("a", 2), Ok(json!({"secret": 7})));
        success.metadata.worker_id = worker_id.to_owned();
        let advanced = world.hear(Event::Result(Box::new(success)));
        let completed = note(&advanced, StepState::Complete);
        assert_eq!((told(completed), completed.duration_ms), ((Some(2), None), Some(7)));
        assert_eq!(completed.worker_id.as_deref(), recorded);
        let result = result(completed);
        assert_eq!((&result["success"], &result["data"]), (&json!(true), &Value::Null));
        assert_eq!(told(note(&advanced, StepState::Enqueued)), (Some(1), None));
    }
}

#[test]
fn a_retry_is_recorded_as_the_failure_of_the_attempt_before() {
    let mut world = World::new(linear());
    let mut request = world.request("a", 3);
    request.previous_error = Some(failure("busy"));
    let advanced = world.hear(Event::Retry(Box::new(request)));
    let waiting = note(&advanced, StepState::WaitingForRetry);
    assert_eq!(told(waiting), (Some(2), Some("busy")));
    let result = result(waiting);
    assert_eq!((&result["attempt"], &result["status"]), (&json!(2), &json!("failed")));
    assert_eq!(result["error"]["message"], "busy");
}

#[test]
fn a_dead_letter_is_recorded_as_a_failure_with_its_reason() {
    let mut world = World::new(linear());
    let advanced = world.hear(world.dead_letter("a", 2));
    let failed = note(&advanced, StepState::Error);
    assert_eq!(told(failed), (Some(2), Some("dead letter (rejected): dead")));
    let result = result(failed);
    assert_eq!((&result["attempt"], &result["status"]), (&json!(2), &json!("failed")));
    assert_eq!(result["error"]["message"], "dead");
}

#[test]
fn a_task_that_fails_or_is_rolled_back_names_the_step_that_failed_first() {
    let reason = Some("step \"b\" failed".to_owned());
    for (compensation, state) in [(None, TaskState::Error), (Some("~a"), TaskState::BlockedByFailures)] {
        let mut steps = vec![("a", vec![]), ("b", vec!["a"])];
        steps.extend(compensation.map(|name| (name, vec![])));
        let mut world = World::new(template("shop", &steps));
        world.hear(world.success("a", 1));
        let advanced = world.hear(world.failure("b", 1));
        let ended = Effect::Task { from: Some(TaskState::StepsInProcess), to: state, reason: reason.clone() };
        assert!(advanced.effects.contains(&ended), "{advanced:?}");
        if compensation.is_some() {
            assert_eq!(note(&advanced, StepState::Pending).reason, reason);
        }
    }
}

#[test]
fn a_result_that_contradicts_itself_is_a_failure_with_its_own_error() {
    for kind in [StepKind::Standard, StepKind::Decision] {
        for (success, status) in [(false, ResultStatus::Completed), (true, ResultStatus::Failed)] {
            let mut template = linear();
            template.steps[0].kind = kind.clone();
            let mut world = World::new(template);
            let result =
                StepExecutionResult { success, status, ..result_of(&world.request("a", 1), Err("no")) };
            assert_eq!(world.hear(Event::Result(Box::new(result))).outcome, Outcome::Applied);
            assert_eq!((world.state("a"), world.task.state), (StepState::Error, TaskState::Error));
            let error = &world.task.steps[world.step("a")].error;
            assert_eq!(error.as_ref().expect("it failed with something").message, "no");
        }
    }
}

#[test]
fn a_success_whose_output_is_refused_is_on_record_as_a_failure() {
    let mut template = linear();
    template.steps[0].kind = StepKind::Decision;
    let mut world = World::new(template);
    let advanced = world.hear(world.success("a", 1));
    let result = result(note(&advanced, StepState::Error));
    assert_eq!((&result["success"], &result["status"]), (&json!(false), &json!("failed")));
    assert_eq!((&result["error"]["code"], &result["data"]), (&json!("INVALID_OUTCOME"), &Value::Null));
}

#[test]
fn answers_that_nobody_can_have_given_are_refused() {
    let mut world = World::new(linear());
    let unasked = vec![world.success("b", 1), world.retry("b", 1), world.dead_letter("b", 1)];
    assert_eq!(world.outcomes(unasked), [Outcome::Refused; 3], "b was not requested yet");
    let nothing_ran = StepExecutionResult { attempt: 0, ..result_of(&world.request("a", 1), Err("no")) };
    let of_no_attempt = vec![Event::Result(Box::new(nothing_ran)), world.retry("a", 0)];
    assert_eq!(world.outcomes(of_no_attempt), [Outcome::Refused; 2]);
    assert_eq!((world.state("a"), world.state("b")), (StepState::Enqueued, StepState::Pending));
}

#[test]
fn what_is_heard_of_a_later_life_counts_while_the_step_is_open_in_an_earlier_one() {
    let mut world = World::new(linear());
    world.hear(world.failure("a", 1));
    assert_eq!(world.hear(replayed(1, world.retry("a", 1))).outcome, Outcome::Applied);
    assert_eq!(world.hear(replayed(2, world.retry("a", 1))).outcome, Outcome::Applied);
    assert_eq!(world.task.steps[world.step("a")].replays, 2);
}

#[test]
fn what_became_of_an_event_has_a_name() {
    let outcomes = [Outcome::Applied, Outcome::Duplicate, Outcome::Stale, Outcome::Unknown, Outcome::Refused]
        .map(Outcome::as_str);
    assert_eq!(outcomes, ["applied", "duplicate", "stale", "unknown", "refused"]);
}
