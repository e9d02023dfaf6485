//! Every field of every format: what it does, or that it does nothing and why.

use serde_json::json;
use tasker_worker_rust::template::{ContextSchema, IdentityStrategy, Lifecycle, parse};

use super::{in_environment, initialization, seconds, step, template, with_steps};

fn warnings(text: &str) -> Vec<String> {
    let parsed = parse(text, None).unwrap_or_else(|mistakes| panic!("{mistakes:#?}\n{text}"));
    parsed.warnings.into_iter().map(|warning| warning.message).collect()
}

/// Where a key without effect may stand: the text around it, and what its warning begins with.
const PLACES: [(&str, &str, &str); 8] = [
    ("name: n\nnamespace: ns\nversion: 1.0.0\nsteps: [{name: a}]\n", "", ""),
    ("name: n\nnamespace: ns\nversion: 1.0.0\nsteps: [{name: a, ", "}]", "step \"a\": "),
    (
        "name: n\nnamespace: ns\nversion: 1.0.0\nstep_templates: [{name: a, handler: {",
        "}}]",
        "step \"a\", handler: ",
    ),
    ("name: n\nnamespace: ns\nversion: 1.0.0\nsteps: [{name: a, retry: {", "}}]", "step \"a\", retry: "),
    (
        "name: n\nnamespace: ns\nversion: 1.0.0\nsteps: [{name: w, type: batch_worker, dependencies: [a]}, \
         {name: a, type: batchable, batch_config: {",
        "}}]",
        "step \"a\", batch_config: ",
    ),
    ("name: n\nnamespace: ns\nversion: 1.0.0\nsteps: [{name: a}]\nlifecycle: {", "}", "lifecycle: "),
    (
        "name: n\nnamespace: ns\nversion: 1.0.0\nsteps: [{name: a}]\nenvironments: {test: {",
        "}}",
        "environment \"test\": ",
    ),
    (
        "name: n\nnamespace: ns\nversion: 1.0.0\nsteps: [{name: a}]\nenvironments: {test: {step_overrides: {a: {",
        "}}}}",
        "environment \"test\", step \"a\": ",
    ),
];

#[test]
fn every_known_field_without_effect_is_told_with_its_reason() {
    const IN_STEPS: &[&str] = &[
        "system_dependency",
        "dependent_system",
        "publishes_events",
        "custom_events",
        "skippable",
        "composition",
        "result_schema",
        "lifecycle",
        "metadata",
    ];
    let without_effect: [&[&str]; 8] = [
        &[
            "metadata",
            "task_handler",
            "task_handler_class",
            "handler_config",
            "module_namespace",
            "default_dependent_system",
            "system_dependencies",
            "custom_events",
            "domain_events",
            "events",
            "default_context",
            "default_options",
            "task_config",
            "workflow_config",
            "settings",
            "constraints",
            "error_handling",
            "monitoring",
            "security",
            "performance",
            "testing",
        ],
        IN_STEPS,
        &["method", "resolver"],
        &["multiplier", "jitter"],
        &["resumable"],
        &[],
        &["task_handler", "handler_config", "task_config", "default_context", "default_options"],
        IN_STEPS,
    ];
    for ((before, after, place), keys) in PLACES.iter().zip(without_effect) {
        for key in keys {
            let text = format!("{before}{key}: {{any: thing}}{after}");
            let warnings = warnings(&text);
            assert_eq!(warnings.len(), 1, "{text}: {warnings:?}");
            let reason = warnings[0].strip_prefix(&format!("{place}{key} has no effect: "));
            assert!(reason.is_some_and(|reason| reason.len() > 15), "{text}: {warnings:?}");
            let absent = format!("{before}:{key}: {after}").replace(": }", ": null}");
            assert_eq!(super::fields::warnings(&absent), [""; 0], "nothing means absent: {absent}");
        }
    }
}

#[test]
fn a_field_in_the_wrong_place_is_unknown_there() {
    for (before, after, place) in PLACES {
        let text = format!("{before}worker_templates: 1{after}");
        let mistakes = parse(&text, None).unwrap_err();
        assert!(
            mistakes[0].message.starts_with(&format!("{place}unknown key \"worker_templates\"; ")),
            "{mistakes:?}"
        );
    }
}

#[test]
fn every_spelling_of_a_callable_is_taken_as_it_is() {
    for callable in [
        "Payments::ChargeHandler",
        "payments.handlers.Charge",
        "payments_crate::handlers::Charge",
        "charge_card",
        "Payments.Charge.Handler",
        "lambda:eu-west-1:charge",
        "charge card #2",
    ] {
        for handler in [
            format!("handler: {{callable: \"{callable}\"}}"),
            format!("handler_class: \"{callable}\""),
            format!(":handler: {{:callable: \"{callable}\"}}"),
        ] {
            let template = template(&with_steps(&format!("  - {{name: a, {handler}}}")));
            assert_eq!(step(&template, "a").handler.callable, callable, "{handler}");
        }
    }
}

#[test]
fn overrides_of_every_form_change_one_field_each_and_no_other() {
    let base = "  - {name: a, timeout_seconds: 9, handler: {callable: A, initialization: {x: 1, y: {z: 2}}}, retry: {retryable: false, max_attempts: 7, backoff: linear, backoff_base_ms: 50, max_backoff_ms: 60}}\n  - {name: b}\n";
    let lists = [
        "steps: [{name: a, CHANGE}]",
        "steps: [{name: ALL, CHANGE}]",
        "step_templates: [{name: a, CHANGE}]",
        "step_templates: {a: {CHANGE}}",
        "step_overrides: {a: {CHANGE}}",
        ":step_overrides: {ALL: {CHANGE}}",
        ":steps: [{:name: a, CHANGE}]",
    ];
    for list in lists {
        let changed = |change: &str| {
            let text =
                format!("{}environments: {{test: {{{}}}}}", with_steps(base), list.replace("CHANGE", change));
            step(&in_environment(&text, Some("test")), "a").clone()
        };
        let before = step(&template(&with_steps(base)), "a").clone();
        for (change, attempts) in [
            ("retry: {max_attempts: 2}", 2),
            ("retry: {limit: 2}", 2),
            ("default_retry_limit: \"2\"", 2),
            ("retry_limit: 2.0", 2),
            ("max_retries: 0", 1),
        ] {
            let mut wanted = before.clone();
            wanted.max_attempts = attempts;
            assert_eq!(changed(change), wanted, "{list} {change}");
        }
        let mut wanted = before.clone();
        wanted.retry.retryable = true;
        assert_eq!(changed("default_retryable: true"), wanted, "{list}");
        assert_eq!(changed("retry: {retryable: true}"), wanted, "{list}");
        let mut wanted = before.clone();
        wanted.retry.base_ms = 20;
        assert_eq!(changed("retry_backoff: {initial_delay: 0.02}"), wanted, "{list}");
        let mut wanted = before.clone();
        wanted.timeout = seconds(3);
        assert_eq!(changed("timeout_seconds: 3"), wanted, "{list}");
        for change in ["handler: {initialization: {x: 5}}", "handler_config: {x: 5}"] {
            let changed = changed(change);
            assert_eq!(initialization(&changed), json!({"x": 5, "y": {"z": 2}}), "{list} {change}");
            assert_eq!((&changed.retry, changed.timeout), (&before.retry, before.timeout), "{list} {change}");
        }
    }
}

#[test]
fn identity_and_lifecycle_are_kept() {
    let head = with_steps("  - {name: a}\n");
    for (word, strategy) in [
        ("strict", IdentityStrategy::Strict),
        ("caller_provided", IdentityStrategy::CallerProvided),
        (":always_unique", IdentityStrategy::AlwaysUnique),
    ] {
        assert_eq!(template(&format!("{head}identity_strategy: {word}")).identity_strategy, strategy);
    }
    assert_eq!(template(&head).lifecycle, None);
    let text = format!(
        "{head}:lifecycle: {{max_duration_minutes: 60, max_waiting_for_dependencies_minutes: 1, \
         max_waiting_for_retry_minutes: 2, max_steps_in_process_minutes: 3, staleness_action: error}}"
    );
    let wanted = Lifecycle {
        max_duration: seconds(3_600),
        max_waiting_for_dependencies: seconds(60),
        max_waiting_for_retry: seconds(120),
        max_steps_in_process: seconds(180),
        records: false,
        fails: true,
    };
    assert_eq!(template(&text).lifecycle, Some(wanted));
    for (says, records, fails) in [
        ("{max_duration_minutes: 1}", true, true),
        ("{staleness_action: dlq}", true, true),
        ("{staleness_action: error}", false, true),
        ("{staleness_action: none}", false, false),
        ("{staleness_action: none, auto_dlq_on_timeout: true}", true, false),
        ("{auto_fail_on_timeout: false}", true, false),
    ] {
        let lifecycle = template(&format!("{head}lifecycle: {says}")).lifecycle.unwrap();
        assert_eq!((lifecycle.records, lifecycle.fails), (records, fails), "{says}");
    }
    let mistakes =
        parse(&format!("{head}lifecycle: {{max_duration_minutes: 43201, staleness_action: dql}}"), None);
    let mistakes: Vec<String> = mistakes.unwrap_err().iter().map(ToString::to_string).collect();
    assert_eq!(
        mistakes,
        [
            "line 6: lifecycle: max_duration_minutes is 43201; expected a whole number from 1 to 43200",
            "line 6: lifecycle: staleness_action \"dql\" is unknown; there are: dlq, error, none",
        ]
    );
}

#[test]
fn a_context_is_held_to_the_input_schema_with_the_place_of_each_mistake() {
    let text = with_steps("  - {name: a}");
    assert!(ContextSchema::of(&template(&text)).unwrap().is_none());
    let schema = "{required: [id], properties: {items: {type: array, items: {type: integer}}}}";
    let schema = ContextSchema::of(&template(&format!("{text}\ninput_schema: {schema}"))).unwrap().unwrap();
    assert_eq!(schema.mistakes(&json!({"id": 1, "items": [1, 2]})), [""; 0]);
    assert_eq!(
        schema.mistakes(&json!({"items": [1, "two"]})),
        ["\"id\" is a required property", "/items/1: \"two\" is not of type \"integer\""]
    );
}

#[test]
fn an_input_schema_that_is_none_is_a_mistake() {
    let text = with_steps("  - {name: a}\ninput_schema:\n  type: objekt\n");
    let mistakes = parse(&text, None).unwrap_err();
    assert_eq!(mistakes.len(), 1);
    let told = mistakes[0].to_string();
    assert!(
        told.starts_with("line 6: input_schema is no JSON Schema: ") && told.contains("objekt"),
        "{told}"
    );
    let elsewhere = with_steps("  - {name: a}\ninput_schema: {$ref: \"http://127.0.0.1:1/schema\"}\n");
    assert!(parse(&elsewhere, None).is_err(), "nothing is fetched");
}
