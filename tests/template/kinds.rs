//! Steps that decide, divide work, or come together again.

use tasker_worker_rust::template::{BatchConfig, FailureStrategy, StepKind, parse};

use super::{step, template, with_steps};

const BATCHES: &str = "
  - {name: analyze, type: batchable}
  - {name: work, type: batch_worker, dependencies: [analyze]}
  - {name: sum, type: deferred, depends_on: [work]}
";

#[test]
fn every_type_is_kept_however_it_is_written() {
    let template = template(&with_steps(&format!(
        "  - {{name: plain}}\n  - {{name: said, step_type: standard}}\n  - {{name: route, :type: :decision, dependencies: [plain]}}\n  - {{name: meet, type: deferred_convergence, dependencies: [route]}}{BATCHES}"
    )));
    let kind = |name| step(&template, name).kind.as_str();
    let kinds = ["plain", "said", "route", "meet", "analyze", "work", "sum"].map(kind);
    let wanted = [
        "standard",
        "standard",
        "decision",
        "deferred_convergence",
        "batchable",
        "batch_worker",
        "deferred_convergence",
    ];
    assert_eq!(kinds, wanted);
    let calls = |name: &&str| step(&template, name).kind.calls_for_steps();
    let calling = ["plain", "route", "meet", "analyze", "work"].into_iter().filter(calls);
    assert_eq!(calling.collect::<Vec<_>>(), ["route", "analyze"]);
}

fn batch_of(text: &str) -> BatchConfig {
    match &step(&template(&with_steps(text)), "analyze").kind {
        StepKind::Batchable(batch) => batch.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_batch_config_counts_on_either_step_and_what_it_leaves_out_has_a_default() {
    let worker =
        |name: &str| BatchConfig { worker_template: Some(name.to_owned()), ..BatchConfig::default() };
    assert_eq!(batch_of(BATCHES), worker("work"), "the only worker that waits for it");
    let whole = "batch_config: {batch_size: 20, parallelism: 3, checkpoint_interval: 5, cursor_field: row, worker_template: work, failure_strategy: fail_fast}";
    let wanted = BatchConfig {
        batch_size: 20,
        parallelism: 3,
        checkpoint_interval: Some(5),
        cursor_field: "row".to_owned(),
        worker_template: Some("work".to_owned()),
        failure_strategy: FailureStrategy::FailFast,
    };
    for kind in ["batchable", "batch_worker"] {
        let text = BATCHES.replace(&format!("type: {kind}"), &format!("type: {kind}, {whole}"));
        assert_eq!(batch_of(&text), wanted, "{kind}");
    }
    let none = BATCHES.replace("type: batchable", "type: batchable, batch_config: {checkpoint_interval: 0}");
    assert_eq!(batch_of(&none), worker("work"), "as good as left out");
    let others = "  - {name: log, dependencies: [analyze]}\n  - {name: read, type: batchable}\n  - {name: row, type: batch_worker, dependencies: [read]}\n";
    assert_eq!(batch_of(&format!("{BATCHES}{others}")), worker("work"), "the others do other work");
    let unsaid = BATCHES
        .replace("type: batchable", "type: batchable, batch_config: {worker_template: work}")
        .replace(", dependencies: [analyze]", "");
    assert_eq!(batch_of(&unsaid), worker("work"), "to be named is enough");
    let two = format!("{BATCHES}  - {{name: other, type: batch_worker, dependencies: [analyze]}}\n");
    assert_eq!(batch_of(&two), BatchConfig::default(), "its result says which");
}

#[test]
fn what_a_step_needs_for_its_type_is_missed() {
    for (steps, expected) in [
        (
            "  - {name: a, type: decision}",
            "line 5: step \"a\": decides about nothing; a decision needs a step it depends on",
        ),
        (
            "  - {name: a, type: batchable}",
            "line 5: step \"a\": has no batch_worker; add a step of that type that depends on it, or name one under batch_config.worker_template",
        ),
        (
            "  - {name: a, type: batch_worker}",
            "line 5: step \"a\": no batchable step asks for it; add the batchable step to its dependencies",
        ),
        (
            "  - {name: a, type: batchable}\n  - {name: b, type: batchable}\n  - {name: w, type: batch_worker, dependencies: [a, b]}",
            "line 7: step \"w\": 2 batchable steps ask for it; give each of them a batch_worker of its own",
        ),
        (
            "  - {name: a, type: batchable, batch_config: {worker_template: wrok}}\n  - {name: work, type: batch_worker, dependencies: [a]}",
            "line 5: step \"a\", batch_config: worker_template \"wrok\" is no step of this template; did you mean \"work\"?",
        ),
        (
            "  - {name: a, type: batchable, batch_config: {worker_template: b}}\n  - {name: b}",
            "line 5: step \"a\", batch_config: worker_template \"b\" is not of type batch_worker; make it so",
        ),
        (
            "  - {name: a}\n  - {name: b, compensates: a, type: deferred_convergence}",
            "line 6: step \"b\": undoes another step, so it can only be of type standard",
        ),
        (
            "  - {name: a, type: batchable, batch_config: {batch_size: 0}}\n  - {name: b, type: batch_worker, dependencies: [a]}",
            "line 5: step \"a\", batch_config: batch_size is 0; expected a whole number from 1 to 100000",
        ),
        (
            "  - {name: a, type: batchable, batch_config: {parallelism: 1001}}\n  - {name: b, type: batch_worker, dependencies: [a]}",
            "line 5: step \"a\", batch_config: parallelism is 1001; expected a whole number from 1 to 1000",
        ),
        (
            "  - {name: a, type: batchable, batch_config: {failure_strategy: fail_fats}}\n  - {name: b, type: batch_worker, dependencies: [a]}",
            "line 5: step \"a\", batch_config: failure_strategy \"fail_fats\" is unknown; did you mean \"fail_fast\"?",
        ),
    ] {
        let mistakes: Vec<String> =
            parse(&with_steps(steps), None).expect_err(steps).iter().map(ToString::to_string).collect();
        assert_eq!(mistakes, [expected]);
    }
}

#[test]
fn a_batch_config_elsewhere_is_told_to_have_no_effect() {
    let parsed = parse(&with_steps("  - {name: a, batch_config: {batch_size: 5}}"), None).unwrap();
    let warnings: Vec<String> = parsed.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        ["line 5: step \"a\": batch_config has no effect: the step is neither batchable nor batch_worker"]
    );
}

#[test]
fn twenty_decisions_may_stand_behind_one_another() {
    let chain = |decisions: usize| {
        let decision = |index: usize| {
            let on = index.checked_sub(1).map_or("start".to_owned(), |on| format!("d{on}"));
            format!("  - {{name: d{index}, type: decision, dependencies: [{on}]}}\n")
        };
        with_steps(&format!("  - name: start\n{}", (0..decisions).map(decision).collect::<String>()))
    };
    assert!(parse(&chain(20), None).is_ok());
    let mistakes = parse(&chain(21), None).unwrap_err();
    assert_eq!(
        mistakes.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["line 26: step \"d20\": more than 20 decisions stand behind one another; decide more at once"]
    );
}
