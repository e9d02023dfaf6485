//! How far a step has come: kept in order, carried by every later request, over retries, replays and restarts.

use std::time::Duration;

use serde_json::json;
use tasker_worker_rust::Checkpoint;
use tasker_worker_rust::orchestrator::advance::{Effect, Event, Outcome};
use tasker_worker_rust::orchestrator::by_hand::{ByHand, Decision};
use tasker_worker_rust::orchestrator::task::{StepState, TaskState};

use crate::replay::{World, reached, replayed};
use crate::support::linear;

/// Where step a is: attempts, part, and the items of its checkpoint.
fn place(world: &World) -> (u32, u32, u64) {
    let run = &world.task.steps[world.step("a")];
    let items = run.checkpoint.as_ref().map_or(0, |reached| reached.items_processed);
    (run.attempts, run.part, items)
}

#[test]
fn a_checkpoint_moves_forward_only_and_every_later_request_carries_it() {
    let mut world = World::new(linear());
    let events = [2, 1, 2, 3].map(|part| world.checkpoint("a", 1, part));
    let outcomes = world.outcomes(events.to_vec());
    assert_eq!(outcomes, [Outcome::Applied, Outcome::Stale, Outcome::Stale, Outcome::Applied]);
    assert_eq!((world.state("a"), place(&world)), (StepState::InProgress, (0, 3, 3)));
    let request = world.request("a", 1);
    assert_eq!((request.part, request.checkpoint), (3, Some(reached(3))));

    // A failure of what went before says nothing; one of what goes on now does, and loses nothing.
    let (old, new) = (world.failure("a", 1), world.retry("a", 1));
    let Event::Result(mut old) = old else { unreachable!() };
    old.part = 1;
    assert_eq!(world.outcomes(vec![Event::Result(old), new]), [Outcome::Stale, Outcome::Applied]);
    assert_eq!((world.state("a"), place(&world)), (StepState::WaitingForRetry, (1, 3, 3)));
    let again = world.checkpoint("a", 1, 4);
    let next = world.checkpoint("a", 2, 4);
    assert_eq!(world.outcomes(vec![again, next]), [Outcome::Duplicate, Outcome::Applied]);
    assert_eq!((world.state("a"), place(&world)), (StepState::InProgress, (1, 4, 4)));
    let success = world.success("a", 2);
    assert_eq!(world.outcomes(vec![success]), [Outcome::Applied]);
}

#[test]
fn a_success_counts_whichever_part_it_is_of() {
    let mut world = World::new(linear());
    let success = world.success("a", 1);
    let reached = world.checkpoint("a", 1, 1);
    assert_eq!(world.outcomes(vec![reached, success]), [Outcome::Applied, Outcome::Applied]);
    assert_eq!(world.state("a"), StepState::Complete);
}

#[test]
fn a_step_tried_again_by_hand_or_replayed_goes_on_from_its_checkpoint_and_counts_its_parts_anew() {
    let mut world = World::new(linear());
    let step_uuid = world.task.steps[world.step("a")].uuid;
    let events = vec![world.checkpoint("a", 1, 1), world.checkpoint("a", 1, 2)];
    world.outcomes(events);
    let failure = world.failure("a", 1);
    world.hear(failure);
    assert_eq!(world.task.state, TaskState::Error);
    let by_hand = ByHand { step_uuid, decision: Decision::Retry, by: "ann".into(), reason: "so".into() };
    assert_eq!(world.hear(Event::ByHand(Box::new(by_hand))).outcome, Outcome::Applied);
    let request = world.request("a", 1);
    assert_eq!((request.part, request.checkpoint), (0, Some(reached(2))));

    // Heard first of all from a replay that the orchestrator knew nothing of.
    let failure = replayed(1, world.failure("a", 1));
    world.hear(failure);
    let further = Checkpoint { cursor: json!(3).into(), items_processed: 3, ..Checkpoint::default() };
    let Event::Checkpoint(mut request) = world.checkpoint("a", 1, 1) else { unreachable!() };
    request.checkpoint = Some(further);
    let old = world.checkpoint("a", 1, 9);
    let outcomes = world.outcomes(vec![replayed(2, Event::Checkpoint(request)), old]);
    assert_eq!(outcomes, [Outcome::Applied, Outcome::Stale]);
    assert_eq!((world.state("a"), place(&world)), (StepState::InProgress, (0, 1, 3)));
    assert_eq!(world.task.state, TaskState::StepsInProcess);
}

#[test]
fn a_checkpoint_of_what_is_over_has_it_stopped_again() {
    for cancelled in [true, false] {
        let mut world = World::new(linear());
        let step_uuid = world.task.steps[world.step("a")].uuid;
        let late = world.checkpoint("a", 1, 1);
        if cancelled {
            world.hear(Event::Cancel);
        } else {
            let decision = Decision::Resolve(json!(1).into());
            let by_hand = ByHand { step_uuid, decision, by: "ann".into(), reason: "so".into() };
            world.hear(Event::ByHand(Box::new(by_hand)));
        }
        let advanced = world.hear(late);
        let step = world.step("a");
        let wanted = if cancelled { Effect::BroadcastCancel } else { Effect::Stop { step } };
        assert_eq!((advanced.outcome, advanced.effects), (Outcome::Stale, vec![wanted]));
    }
}

#[test]
fn a_checkpoint_is_a_sign_of_life_and_nonsense_is_refused() {
    let mut world = World::new(linear());
    let due_at = |world: &World| world.task.steps[world.step("a")].due_at.expect("it is awaited");
    let before = (world.now, due_at(&world));
    world.now += i64::try_from(Duration::from_secs(7).as_millis()).unwrap();
    let event = world.checkpoint("a", 1, 1);
    world.hear(event);
    assert_eq!(due_at(&world) - before.1, world.now - before.0);

    let Event::Checkpoint(request) = world.checkpoint("a", 1, 2) else { unreachable!() };
    let (mut nowhere, mut unknown) = (request.clone(), request.clone());
    nowhere.checkpoint = None;
    unknown.step_name = "z".to_owned();
    let first = Box::new(tasker_worker_rust::StepExecutionRequest { part: 0, ..*request });
    let events = [nowhere, first, unknown].map(Event::Checkpoint).to_vec();
    assert_eq!(world.outcomes(events), [Outcome::Refused, Outcome::Refused, Outcome::Unknown]);
}
