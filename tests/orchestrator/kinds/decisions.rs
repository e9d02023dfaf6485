//! Decisions name the steps that are created.

use super::*;

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
    let mut world = at_the_decision(routed());
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
        let mut world = at_the_decision(routed());
        world.returns("route", decision);
        assert_eq!((world.existing(), world.task.state), (vec!["a", "route"], TaskState::Complete));
    }
    // A convergence that depends on something else as well has that.
    let mut template = routed();
    template.steps[0].dependencies.push("a".to_owned());
    let mut world = at_the_decision(template);
    assert_eq!(world.existing(), ["a", "route"], "whether z has other dependencies is not decided yet");
    world.returns("route", create(&[]));
    assert_eq!(world.open(), ["z"]);
    assert_eq!(world.inputs("z"), ["a"]);
}

#[test]
fn a_convergence_right_behind_a_decision_runs_whatever_was_decided() {
    let mut template = routed();
    template.steps[0].dependencies.push("route".to_owned());
    let mut world = World::new(template);
    world.returns("a", json!(1));
    world.returns("route", create(&[]));
    assert_eq!(world.open(), ["z"]);
}

#[test]
fn a_decision_may_name_a_hundred_steps() {
    let mut world = World::new(routed());
    world.returns("a", json!(1));
    assert_eq!(world.returns("route", create(&["b"; 100])), Outcome::Applied);
    assert_eq!(world.open(), ["b"]);
}

#[test]
fn twenty_decisions_may_follow_one_another_and_no_more() {
    let chain = |count: usize| {
        let names: Vec<String> = (0..count).map(|number| format!("d{number}")).collect();
        let before = |number: usize| number.checked_sub(1).map(|before| names[before].as_str());
        let steps: Vec<(&str, Vec<&str>)> = names
            .iter()
            .enumerate()
            .map(|(number, name)| (name.as_str(), before(number).into_iter().collect()))
            .collect();
        let kinds: Vec<(&str, StepKind)> =
            names.iter().map(|name| (name.as_str(), StepKind::Decision)).collect();
        Plan::new(of_kinds(&steps, &kinds).into())
    };
    assert!(chain(20).is_ok());
    for count in [21, 22] {
        let error = chain(count).unwrap_err();
        assert_eq!(error, "step \"d20\": at most 20 decisions may follow one another");
    }
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
        let mut world = at_the_decision(routed());
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
    let mut world = at_the_decision(routed());
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
    let mut world = at_the_decision(template);
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
fn a_decision_completed_by_hand_creates_what_it_names() {
    let mut world = at_the_decision(routed());
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
