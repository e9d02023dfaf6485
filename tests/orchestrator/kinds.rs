//! Steps that decide which others there are, and steps that divide their work.

use serde_json::{Value, json};
use tasker_worker_rust::message::Json;
use tasker_worker_rust::orchestrator::advance::{Effect, Event, Outcome};
use tasker_worker_rust::orchestrator::by_hand::{self, ByHand};
use tasker_worker_rust::orchestrator::dag::Plan;
use tasker_worker_rust::orchestrator::task::{StepState, TaskState};
use tasker_worker_rust::template::{BatchConfig, FailureStrategy, StepKind, Template};
use tasker_worker_rust::{Batches, Decision};

use crate::replay::{World, replayed};
use crate::support::{result_of, template};

fn of_kinds(steps: &[(&str, Vec<&str>)], kinds: &[(&str, StepKind)]) -> Template {
    let mut template = template("shop", steps);
    for (name, kind) in kinds {
        let step = template.steps.iter_mut().find(|step| step.name == *name).expect("a step of the template");
        step.kind = kind.clone();
    }
    template
}

/// a, then a decision between b (then b2), c and nothing, then z. In the file the other way round.
fn routed() -> Template {
    of_kinds(
        &[
            ("z", vec!["b2", "c"]),
            ("c", vec!["route"]),
            ("b2", vec!["b"]),
            ("b", vec!["route"]),
            ("route", vec!["a"]),
            ("a", vec![]),
        ],
        &[("route", StepKind::Decision), ("z", StepKind::DeferredConvergence)],
    )
}

/// Work divided by `split` and done by `work`, brought together by `sum`.
fn divided(config: BatchConfig) -> Template {
    of_kinds(
        &[
            ("split", vec![]),
            ("work", vec!["split"]),
            ("sum", vec!["work"]),
            ("~work", vec![]),
            ("~split", vec![]),
        ],
        &[
            ("split", StepKind::Batchable(config)),
            ("work", StepKind::BatchWorker),
            ("sum", StepKind::DeferredConvergence),
        ],
    )
}

fn strategy(failure_strategy: FailureStrategy) -> Template {
    divided(BatchConfig { failure_strategy, parallelism: 2, ..BatchConfig::default() })
}

trait Played {
    fn returns(&mut self, step: &str, output: Value) -> Outcome;
    fn fails(&mut self, step: &str) -> Outcome;
    fn existing(&self) -> Vec<&str>;
    fn open(&self) -> Vec<&str>;
    fn inputs(&self, step: &str) -> Vec<String>;
    fn error(&self, step: &str) -> String;
}

impl Played for World {
    fn returns(&mut self, step: &str, output: Value) -> Outcome {
        let attempt = self.task.steps[self.step(step)].attempts + 1;
        let result = result_of(&self.request(step, attempt), Ok(output));
        self.hear(Event::Result(Box::new(result))).outcome
    }

    fn fails(&mut self, step: &str) -> Outcome {
        self.hear(self.failure(step, 1)).outcome
    }

    fn existing(&self) -> Vec<&str> {
        let there = (0..self.task.steps.len()).filter(|step| self.task.steps[*step].exists);
        let mut names: Vec<&str> = there.map(|step| self.task.plan.step(step).name.as_str()).collect();
        names.sort_unstable();
        names
    }

    fn open(&self) -> Vec<&str> {
        let names = self.existing().into_iter();
        names.filter(|name| self.state(name).is_open()).collect()
    }

    fn inputs(&self, step: &str) -> Vec<String> {
        self.request(step, 1).sequence_data.into_iter().map(|input| input.step_name).collect()
    }

    fn error(&self, step: &str) -> String {
        assert_eq!((self.state(step), self.task.state), (StepState::Error, TaskState::Error));
        let error = self.task.steps[self.step(step)].error.clone().expect("it failed with something");
        assert!(!error.retryable);
        error.message
    }
}

fn create(names: &[&str]) -> Value {
    serde_json::to_value(Decision::create(names.iter().copied())).expect("it encodes")
}

fn batches(count: u64) -> Value {
    serde_json::to_value(Batches::split(count * 10, 10)).expect("it encodes")
}

#[test]
fn a_decision_creates_what_it_names_and_the_convergence_waits_for_that() {
    let mut world = World::new(routed());
    assert_eq!(world.existing(), ["a", "route"]);
    world.returns("a", json!(1));
    let result = result_of(&world.request("route", 1), Ok(create(&["b"])));
    let advanced = world.hear(Event::Result(Box::new(result.clone())));
    assert_eq!(world.existing(), ["a", "b", "b2", "route", "z"]);
    let made = advanced.effects.iter().filter_map(|effect| match effect {
        Effect::Step { step, from: None, note, .. } => Some((*step, note.reason.as_deref())),
        _ => None,
    });
    let reason = Some("called for by \"route\"");
    assert_eq!(made.collect::<Vec<_>>(), [(0, reason), (2, reason), (3, reason)]);
    assert_eq!(world.open(), ["b"]);
    // The same answer again makes nothing twice, and c was never made.
    assert_eq!(world.hear(Event::Result(Box::new(result))).outcome, Outcome::Duplicate);
    assert_eq!(world.returns("c", json!(0)), Outcome::Unknown);

    world.returns("b", json!(2));
    world.returns("b2", json!(3));
    assert_eq!(world.inputs("z"), ["a", "route", "b", "b2"]);
    world.returns("z", json!(4));
    assert_eq!(world.task.state, TaskState::Complete);
}

#[test]
fn a_decision_for_all_branches_is_waited_for_by_all_of_them() {
    let mut world = World::new(routed());
    world.returns("a", json!(1));
    world.returns("route", create(&["c", "b", "c"]));
    assert_eq!(world.open(), ["b", "c"]);
    world.returns("c", json!(1));
    assert_eq!((world.state("z"), world.open()), (StepState::Pending, vec!["b"]));
    world.returns("b", json!(1));
    world.returns("b2", json!(1));
    assert_eq!(world.open(), ["z"]);
}

#[test]
fn behind_a_decision_for_nothing_there_is_nothing() {
    for decision in [serde_json::to_value(Decision::none()).unwrap(), create(&[])] {
        let mut world = World::new(routed());
        world.returns("a", json!(1));
        world.returns("route", decision);
        assert_eq!((world.existing(), world.task.state), (vec!["a", "route"], TaskState::Complete));
    }
    // A convergence that depends on something else as well has that.
    let mut template = routed();
    template.steps[0].dependencies.push("a".to_owned());
    let mut world = World::new(template);
    world.returns("a", json!(1));
    assert_eq!(world.existing(), ["a", "route"], "whether z has other dependencies is not decided yet");
    world.returns("route", create(&[]));
    assert_eq!(world.open(), ["z"]);
    assert_eq!(world.inputs("z"), ["a"]);
}

#[test]
fn a_decision_that_cannot_be_followed_fails_for_good() {
    let too_many: Vec<String> = (0..101).map(|_| "b".to_owned()).collect();
    for (output, text) in [
        (create(&["b", "x"]), r#"decision "route" names "x", which is no step behind it; there are: c, b"#),
        (create(&["b2"]), r#"names "b2", which is no step behind it"#),
        (create(&["a"]), r#"names "a", which is no step behind it"#),
        (json!({"approved": true}), "did not return a decision_point_outcome"),
        (json!({"decision_point_outcome": {"type": "perhaps"}}), "did not return a decision_point_outcome"),
        (json!(null), "did not return a decision_point_outcome"),
        (json!(Decision::create(too_many)), "names 101 steps; at most 100"),
    ] {
        let mut world = World::new(routed());
        world.returns("a", json!(1));
        let result = result_of(&world.request("route", 1), Ok(output));
        let advanced = world.hear(Event::Result(Box::new(result)));
        assert_eq!(advanced.outcome, Outcome::Applied);
        // The worker knows of no failure: what can be replayed once the handler is mended is parked from here.
        let parked = Effect::Park { step: world.step("route"), attempt: 1, reason: "permanent_error" };
        assert_eq!(advanced.effects.iter().filter(|effect| **effect == parked).count(), 1);
        let error = world.error("route");
        assert!(error.contains(text), "{error}");
        assert_eq!(world.existing(), ["a", "route"]);
    }
}

#[test]
fn decisions_may_follow_one_another() {
    let mut world = World::new(of_kinds(
        &[
            ("first", vec![]),
            ("second", vec!["first"]),
            ("left", vec!["first"]),
            ("x", vec!["second"]),
            ("y", vec!["second"]),
            ("end", vec!["left", "x", "y"]),
        ],
        &[
            ("first", StepKind::Decision),
            ("second", StepKind::Decision),
            ("end", StepKind::DeferredConvergence),
        ],
    ));
    assert_eq!(world.existing(), ["first"]);
    world.returns("first", create(&["second", "left"]));
    assert_eq!(world.existing(), ["first", "left", "second"]);
    world.returns("left", json!(1));
    assert_eq!(world.open(), ["second"], "the end waits for what the second decision creates");
    world.returns("second", create(&["y"]));
    assert_eq!(world.open(), ["y"]);
    world.returns("y", json!(1));
    assert_eq!(world.inputs("end"), ["first", "second", "left", "y"]);
    world.returns("end", json!(1));
    assert_eq!(world.task.state, TaskState::Complete);
}

#[test]
fn steps_made_on_the_way_have_the_same_ids_whenever_they_are_made() {
    let mut world = World::new(routed());
    world.returns("a", json!(1));
    let before = world.task.clone();
    let ids = |world: &World| world.task.steps.iter().map(|step| step.uuid).collect::<Vec<_>>();
    world.returns("route", create(&["b"]));
    let first = ids(&world);
    world.task = before;
    world.returns("route", create(&["b"]));
    assert_eq!(ids(&world), first);
}

#[test]
fn what_a_decision_created_is_undone_and_nothing_else() {
    let mut template = routed();
    template.steps.extend(self::template("shop", &[("~b", vec![]), ("~c", vec![]), ("~a", vec![])]).steps);
    let mut world = World::new(template);
    world.returns("a", json!(1));
    world.returns("route", create(&["b"]));
    world.returns("b", json!(1));
    world.fails("b2");
    assert_eq!((world.open(), world.task.state), (vec!["~b"], TaskState::BlockedByFailures));
    world.returns("~b", json!(1));
    world.returns("~a", json!(1));
    assert_eq!(world.task.state, TaskState::Error);
    assert!(!world.existing().contains(&"~c"));
}

#[test]
fn each_batch_has_an_instance_and_what_waits_for_the_worker_waits_for_all_of_them() {
    let mut world = World::new(divided(BatchConfig { parallelism: 2, ..BatchConfig::default() }));
    assert_eq!(world.existing(), ["split"]);
    assert_eq!(world.request("split", 1).batch_config.expect("its template's").batch_size, 1_000);
    let mut output = batches(3);
    output["found"] = json!([1.5]);
    world.returns("split", output.clone());
    assert_eq!(world.existing(), ["split", "sum", "work_001", "work_002", "work_003"]);
    assert_eq!(world.open(), ["work_001", "work_002"], "no more at once than its parallelism");
    let request = world.request("work_003", 1);
    let batch = request.batch.clone().expect("its part");
    assert_eq!((batch.id.as_str(), batch.start, batch.end, batch.size), ("003", json!(20), json!(30), 10));
    assert_eq!((request.template_step(), request.step_name.as_str()), ("work", "work_003"));
    assert_eq!((request.handler.callable, request.max_attempts), (String::new(), 3));

    // Of what the batchable step returned it is given all but the parts of the others.
    assert_eq!(request.sequence_data[0].result.get(), r#"{"found":[1.5]}"#);

    world.returns("work_002", json!(2));
    assert_eq!(world.open(), ["work_001", "work_003"]);
    world.returns("work_003", json!(3));
    assert_eq!(world.returns("work_003", json!(3)), Outcome::Stale);
    world.returns("work_001", json!(1));
    assert_eq!(world.inputs("sum"), ["split", "work_001", "work_002", "work_003"]);
    let whole: Value = world.request("sum", 1).sequence_data[0].result.parse().expect("JSON");
    assert_eq!(whole, output);
    world.returns("sum", json!(6));
    assert_eq!(world.task.state, TaskState::Complete);
}

#[test]
fn without_batches_what_waits_for_the_worker_goes_on() {
    let mut world = World::new(divided(BatchConfig::default()));
    world.returns("split", json!(Batches::none()));
    assert_eq!((world.existing(), world.open()), (vec!["split", "sum"], vec!["sum"]));
    assert_eq!(world.inputs("sum"), ["split"]);
    world.returns("sum", json!(0));
    assert_eq!(world.task.state, TaskState::Complete);
}

#[test]
fn where_failures_are_passed_over_the_rest_counts() {
    let mut world = World::new(strategy(FailureStrategy::ContinueOnFailure));
    world.returns("split", batches(3));
    world.fails("work_001");
    assert_eq!((world.open(), world.task.state), (vec!["work_002", "work_003"], TaskState::StepsInProcess));
    // Until the others are done, it can still be replayed.
    let before = world.task.clone();
    assert_eq!(world.hear(replayed(1, world.success("work_001", 1))).outcome, Outcome::Applied);
    assert_eq!(world.state("work_001"), StepState::Complete);
    world.task = before;

    world.returns("work_003", json!(3));
    world.returns("work_002", json!(2));
    assert_eq!(world.inputs("sum"), ["split", "work_002", "work_003"]);
    assert_eq!(world.hear(replayed(1, world.success("work_001", 1))).outcome, Outcome::Refused);
    world.returns("sum", json!(5));
    assert_eq!(world.task.state, TaskState::Complete);
    assert_eq!(world.hear(replayed(1, world.success("work_001", 1))).outcome, Outcome::Refused);
}

#[test]
fn where_the_first_failure_counts_no_batch_begins_after_it_until_it_is_replayed() {
    let mut template = strategy(FailureStrategy::FailFast);
    template.steps.retain(|step| step.compensates.is_none());
    let mut world = World::new(template);
    world.returns("split", batches(4));
    world.fails("work_001");
    assert_eq!(world.open(), ["work_002"]);
    world.returns("work_002", json!(2));
    assert_eq!((world.open(), world.task.state), (vec![], TaskState::Error));
    assert_eq!(world.state("work_003"), StepState::Pending);

    assert_eq!(world.hear(replayed(1, world.success("work_001", 1))).outcome, Outcome::Applied);
    assert_eq!(world.open(), ["work_003", "work_004"]);
    world.returns("work_003", json!(3));
    world.returns("work_004", json!(4));
    assert_eq!(world.inputs("sum").len(), 5);
}

#[test]
fn where_failures_are_isolated_the_others_finish_and_the_failed_one_can_be_replayed() {
    let mut template = strategy(FailureStrategy::Isolate);
    template.steps.retain(|step| step.compensates.is_none());
    let mut world = World::new(template);
    world.returns("split", batches(3));
    world.fails("work_001");
    world.returns("work_002", json!(2));
    world.returns("work_003", json!(3));
    assert_eq!((world.state("sum"), world.task.state), (StepState::Pending, TaskState::Error));
    assert_eq!(world.hear(replayed(1, world.success("work_001", 1))).outcome, Outcome::Applied);
    assert_eq!(world.open(), ["sum"]);
}

#[test]
fn every_batch_that_completed_is_undone_with_its_part() {
    let mut world = World::new(strategy(FailureStrategy::FailFast));
    world.returns("split", batches(3));
    world.returns("work_001", json!(1));
    world.fails("work_002");
    world.returns("work_003", json!(1));
    assert_eq!(
        (world.open(), world.task.state),
        (vec!["~work_001", "~work_003"], TaskState::BlockedByFailures)
    );
    let request = world.request("~work_003", 1);
    assert_eq!(
        (request.template_step(), request.batch.clone().expect("its part").start),
        ("~work", json!(20))
    );
    assert_eq!(world.inputs("~work_003"), ["split", "work_003"]);
    world.returns("~work_001", json!(1));
    assert_eq!(world.open(), ["~work_003"]);
    world.returns("~work_003", json!(1));
    assert_eq!(world.open(), ["~split"]);
    world.returns("~split", json!(1));
    assert_eq!(world.task.state, TaskState::Error);
}

#[test]
fn a_task_is_cancelled_with_its_batches() {
    let mut world = World::new(strategy(FailureStrategy::ContinueOnFailure));
    world.returns("split", batches(3));
    let late = world.success("work_001", 1);
    assert_eq!(world.hear(Event::Cancel).outcome, Outcome::Applied);
    for step in ["work_001", "work_002", "work_003", "sum"] {
        assert_eq!(world.state(step), StepState::Cancelled, "{step}");
    }
    assert_eq!(world.hear(late).outcome, Outcome::Stale);
    // Nor is anything made for a task that is over.
    let mut world = World::new(routed());
    world.returns("a", json!(1));
    let late = result_of(&world.request("route", 1), Ok(create(&["b"])));
    world.hear(Event::Cancel);
    assert_eq!(world.hear(Event::Result(Box::new(late))).outcome, Outcome::Stale);
    assert_eq!(world.existing(), ["a", "route"]);
}

#[test]
fn a_division_that_cannot_be_made_fails_for_good() {
    let outcome = |worker: &str, count: usize| {
        let cursor = json!({"batch_id": "001", "start_cursor": 0, "end_cursor": 1, "batch_size": 1});
        json!({"batch_processing_outcome": {
            "type": "create_batches", "worker_template_name": worker, "worker_count": count,
            "cursor_configs": [cursor], "total_items": 1,
        }})
    };
    for (output, text) in [
        (outcome("split", 1), r#"names "split"; it has to name a batch worker behind it; there are: work"#),
        (outcome("work", 2), "worker_count is 2, and there are 1 cursor_configs"),
        (batches(10_001), "asks for 10001 batches; at most 10000"),
        (json!(7), "did not return a batch_processing_outcome"),
    ] {
        let mut template = divided(BatchConfig::default());
        template.steps.retain(|step| step.compensates.is_none());
        let mut world = World::new(template);
        world.returns("split", output);
        let error = world.error("split");
        assert!(error.contains(text), "{error}");
    }
    let mut template = divided(BatchConfig::default());
    template.steps.extend(self::template("shop", &[("work_001", vec!["split"])]).steps);
    let mut world = World::new(template);
    world.returns("split", batches(1));
    let error = &world.task.steps[world.step("split")].error;
    assert!(error.as_ref().expect("it failed").message.contains("two steps named \"work_001\""));
}

#[test]
fn a_batch_worker_belongs_to_one_batchable_step() {
    let batchable = StepKind::Batchable(BatchConfig::default());
    for (kinds, count) in [(vec![], 0), (vec![("a", batchable.clone()), ("b", batchable)], 2)] {
        let mut all = kinds;
        all.push(("work", StepKind::BatchWorker));
        let template = of_kinds(&[("a", vec![]), ("b", vec![]), ("work", vec!["a", "b"])], &all);
        let error = Plan::new(template.into()).unwrap_err();
        assert!(
            error.contains(&format!("waits for one batchable step, and this one for {count}")),
            "{error}"
        );
    }
}

/// A person completes the step with this result.
fn by_hand(world: &mut World, step: &str, result: &Value) -> Outcome {
    let decision =
        by_hand::Decision::Complete { result: Json::encode(result).expect("it encodes"), metadata: None };
    let step_uuid = world.task.steps[world.step(step)].uuid;
    let decided =
        ByHand { step_uuid, decision, by: "ada".to_owned(), reason: "the rule was wrong".to_owned() };
    world.hear(Event::ByHand(Box::new(decided))).outcome
}

#[test]
fn a_decision_completed_by_hand_creates_what_it_names() {
    let mut world = World::new(routed());
    world.returns("a", json!(1));
    world.fails("route");
    assert_eq!(world.task.state, TaskState::Error);
    assert_eq!(
        by_hand(&mut world, "route", &json!("b")),
        Outcome::Refused,
        "that is no outcome of a decision"
    );
    assert_eq!(by_hand(&mut world, "route", &create(&["c"])), Outcome::Applied);
    assert_eq!((world.existing(), world.open()), (vec!["a", "c", "route", "z"], vec!["c"]));
    world.returns("c", json!(2));
    world.returns("z", json!(3));
    assert_eq!(world.task.state, TaskState::Complete);
}

#[test]
fn a_division_completed_by_hand_begins_its_batches() {
    let mut world = World::new(of_kinds(
        &[("split", vec![]), ("work", vec!["split"]), ("sum", vec!["work"])],
        &[
            ("split", StepKind::Batchable(BatchConfig { parallelism: 1, ..BatchConfig::default() })),
            ("work", StepKind::BatchWorker),
            ("sum", StepKind::DeferredConvergence),
        ],
    ));
    world.fails("split");
    assert_eq!(by_hand(&mut world, "split", &batches(2)), Outcome::Applied);
    assert_eq!(world.open(), ["work_001"]);
    for step in ["work_001", "work_002", "sum"] {
        world.returns(step, json!(1));
    }
    assert_eq!(world.task.state, TaskState::Complete);
}
