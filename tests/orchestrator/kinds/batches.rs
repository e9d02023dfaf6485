//! Batchable steps divide work among instances of their workers.

use super::*;

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
    let mut world = World::new(never_undone(strategy(FailureStrategy::FailFast)));
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
    let mut world = World::new(never_undone(strategy(FailureStrategy::Isolate)));
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
    let mut world = at_the_decision(routed());
    let late = result_of(&world.request("route", 1), Ok(create(&["b"])));
    world.hear(Event::Cancel);
    assert_eq!(world.hear(Event::Result(Box::new(late))).outcome, Outcome::Stale);
    assert_eq!(world.existing(), ["a", "route"]);
}

#[test]
fn what_waits_for_a_batch_worker_waits_for_its_other_dependencies_too() {
    let mut template = strategy(FailureStrategy::FailFast);
    template.steps.retain(|step| step.compensates.is_none());
    template.steps.extend(self::template("shop", &[("other", vec![])]).steps);
    template.steps[2].dependencies.push("other".to_owned());
    let mut world = World::new(template);
    world.returns("split", batches(1));
    world.returns("work_001", json!(1));
    assert_eq!(world.open(), ["other"]);
    world.returns("other", json!(1));
    assert_eq!(world.open(), ["sum"]);
}

#[test]
fn a_batch_worker_that_a_batchable_step_names_waits_for_it_without_saying_so() {
    let mut template =
        divided(BatchConfig { worker_template: Some("work".to_owned()), ..BatchConfig::default() });
    template.steps[1].dependencies.clear();
    let mut world = World::new(template);
    assert_eq!(world.open(), ["split"]);
    world.returns("split", batches(1));
    assert_eq!(world.open(), ["work_001"]);
}

#[test]
fn ten_thousand_batches_are_allowed() {
    let world = World::new(strategy(FailureStrategy::Isolate));
    let output = Json::encode(&batches(10_000)).expect("it encodes");
    assert_eq!(world.task.check_output(world.step("split"), &output), Ok(()));
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
        let mut world = World::new(never_undone(divided(BatchConfig::default())));
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

#[test]
fn a_division_completed_by_hand_begins_its_batches() {
    let template = divided(BatchConfig { parallelism: 1, ..BatchConfig::default() });
    let mut world = World::new(never_undone(template));
    world.fails("split");
    assert_eq!(by_hand(&mut world, "split", &batches(2)), Outcome::Applied);
    assert_eq!(world.open(), ["work_001"]);
    for step in ["work_001", "work_002", "sum"] {
        world.returns(step, json!(1));
    }
    assert_eq!(world.task.state, TaskState::Complete);
}
