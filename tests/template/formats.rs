//! Every format says the same thing in its own words.

use std::time::Duration;

use serde_json::json;
use tasker_worker_rust::retry::{Backoff, RetryPolicy};
use tasker_worker_rust::template::{IdentityStrategy, Template, parse};

use super::{in_environment, initialization, seconds, step, template, with_steps};

const LEGACY: &str = include_str!("corpus/legacy.yaml");
const CURRENT: &str = include_str!("corpus/current.yaml");
const SYMBOLS: &str = include_str!("corpus/symbols.yaml");
const HYBRID: &str = include_str!("corpus/hybrid.yaml");

#[test]
fn the_design_documents_example_becomes_a_chain_of_four_steps() {
    let template = template(include_str!("../../config/workflows/linear_workflow_handler.yaml"));
    assert_eq!(
        (template.namespace.as_str(), template.name.as_str(), template.version.as_str()),
        ("linear_workflow", "mathematical_sequence", "1.0.0")
    );
    let names: Vec<&str> = template.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, ["linear_step_1", "linear_step_2", "linear_step_3", "linear_step_4"]);
    assert_eq!(template.steps[3].dependencies, ["linear_step_3"], "named in both lists, taken once");
    let first = &template.steps[0];
    assert_eq!(first.handler.callable, "LinearStep1Handler");
    assert_eq!(initialization(first), json!({"context_key": "even_number"}));
    assert_eq!((first.max_attempts, first.timeout), (3, seconds(30)));
    assert_eq!(first.retry, RetryPolicy::default());
}

#[test]
fn workflow_steps_add_their_dependencies_to_those_of_the_templates() {
    let text = "
name: n
namespace: ns
version: 1.0.0
step_templates: [{name: a}, {name: b}, {name: c, dependencies: [a]}]
workflow_steps:
  - {step_template: a}
  - {step_template: b, depends_on: a}
  - {step_template: c, depends_on_steps: [b]}
";
    let template = template(text);
    assert_eq!(step(&template, "b").dependencies, ["a"]);
    assert_eq!(step(&template, "c").dependencies, ["a", "b"]);
}

#[test]
fn the_legacy_format_keeps_its_limits_delays_and_dependencies() {
    let template = template(LEGACY);
    assert_eq!(template.name, "payments/credit_card");
    assert_eq!(template.input_schema, Some(json!({"type": "object", "required": ["amount"]})));

    let validate = step(&template, "validate");
    assert_eq!(validate.handler.callable, "Payments::ValidateHandler");
    assert_eq!(initialization(validate), json!({"strict": true, "url": "https://bank/${REGION}"}));
    assert_eq!((validate.max_attempts, validate.timeout), (3, None));
    assert!(validate.retry.retryable);

    let charge = step(&template, "charge");
    assert_eq!(charge.dependencies, ["validate"]);
    assert_eq!(charge.max_attempts, 1, "the first run is always allowed");
    assert_eq!(charge.timeout, seconds(30));
    let wanted =
        RetryPolicy { retryable: false, backoff: Backoff::Exponential, base_ms: 2_500, max_ms: 40_000 };
    assert_eq!(charge.retry, wanted);

    let notify = step(&template, "notify");
    assert_eq!(notify.dependencies, ["validate", "charge"]);
    assert_eq!(notify.max_attempts, 5);
}

#[test]
fn legacy_overrides_are_read_as_a_list_and_as_a_mapping() {
    let test = in_environment(LEGACY, Some("test"));
    let validate = step(&test, "validate");
    assert_eq!(initialization(validate), json!({"strict": false, "url": "https://bank/${REGION}"}));
    assert_eq!(validate.max_attempts, 2);

    let production = in_environment(LEGACY, Some("production"));
    let charge = step(&production, "charge");
    assert_eq!(initialization(charge), json!({"account": "main"}));
    assert_eq!(charge.max_attempts, 4);
    assert!(!charge.retry.retryable, "what the override does not say stays");
}

#[test]
fn the_current_format_is_read_with_both_names_of_the_limit() {
    let template = template(CURRENT);
    let validate = step(&template, "validate");
    assert_eq!(validate.handler.callable, "payments.Validate");
    assert_eq!(initialization(validate), json!({"strict": true, "nested": {"keep": [1, 2]}}));
    assert_eq!((validate.max_attempts, validate.timeout), (4, seconds(20)));
    let wanted = RetryPolicy { retryable: false, backoff: Backoff::Linear, base_ms: 250, max_ms: 5_000 };
    assert_eq!(validate.retry, wanted);

    let charge = step(&template, "charge");
    assert_eq!((charge.max_attempts, charge.dependencies.as_slice()), (7, &["validate".to_owned()][..]));
}

#[test]
fn an_environment_changes_the_fields_it_names_and_no_others() {
    let test = in_environment(CURRENT, Some("test"));
    let validate = step(&test, "validate");
    assert_eq!(initialization(validate), json!({"strict": false, "nested": {"keep": [1, 2]}}));
    assert_eq!((validate.max_attempts, validate.timeout), (1, seconds(3)));
    let wanted = RetryPolicy { retryable: false, backoff: Backoff::Linear, base_ms: 250, max_ms: 5_000 };
    assert_eq!(validate.retry, wanted, "a partial retry block does not reset the rest");
    assert_eq!(step(&test, "charge").timeout, seconds(3), "ALL means every step");
}

#[test]
fn a_steps_own_override_wins_over_the_one_for_all_wherever_it_stands() {
    let text = with_steps(
        "  - {name: a}\nenvironments: {e: {steps: [{name: a, timeout_seconds: 1}, {name: ALL, timeout_seconds: 9}]}}",
    );
    assert_eq!(step(&in_environment(&text, Some("e")), "a").timeout, seconds(1));
}

#[test]
fn an_environment_without_a_block_changes_nothing() {
    assert_eq!(in_environment(CURRENT, Some("staging")), template(CURRENT));
}

#[test]
fn keys_written_as_ruby_symbols_are_read_and_null_means_absent() {
    let template = in_environment(SYMBOLS, Some("development"));
    assert_eq!((template.description.as_deref(), template.input_schema.as_ref()), (None, None));
    let validate = step(&template, "validate");
    assert_eq!(validate.handler.callable, "Payments::Validate");
    assert_eq!(initialization(validate), json!({"strict": true}));
    assert_eq!(
        (validate.max_attempts, validate.timeout, &validate.retry),
        (3, None, &RetryPolicy::default())
    );
    let charge = step(&template, "charge");
    assert_eq!((charge.max_attempts, charge.timeout), (2, seconds(5)));
    assert_eq!(charge.retry.backoff, Backoff::Fibonacci);
    assert_eq!(charge.dependencies, ["validate"]);
}

#[test]
fn the_hybrid_format_is_read() {
    let template = template(HYBRID);
    let charge = step(&template, "charge");
    assert_eq!((template.namespace.as_str(), charge.handler.callable.as_str()), ("payments", "Charge"));
    assert_eq!(charge.dependencies, ["validate"]);
    assert_eq!(charge.max_attempts, 6);
    assert_eq!((charge.retry.backoff, charge.retry.base_ms), (Backoff::Linear, 3_000));
}

#[test]
fn every_spelling_of_the_number_of_runs_counts_the_first_one() {
    for (spelling, runs) in [
        ("max_retries: 3", 3),
        ("default_retry_limit: 4", 4),
        ("default_retry_limit: \"4\"", 4),
        ("retry: {limit: 5}", 5),
        ("retry: {max_attempts: 6}", 6),
        ("retry: {max_attempts: 0}", 1),
        ("retry: {retryable: yes}", 3),
        ("max_retries: 2, retry: {max_attempts: 2}", 2),
    ] {
        let template = template(&with_steps(&format!("  - {{name: a, {spelling}}}")));
        assert_eq!(step(&template, "a").max_attempts, runs, "{spelling}");
    }
}

#[test]
fn every_spelling_of_the_delays_ends_in_milliseconds() {
    for (spelling, base_ms, max_ms) in [
        ("retry: {backoff_base_ms: 10}", 10, 30_000),
        ("retry: {max_backoff_ms: 500}", 500, 500),
        ("retry: {backoff_base_ms: 60000}", 60_000, 60_000),
        ("retry: {backoff_base_ms: 700, max_backoff_ms: 700}", 700, 700),
        ("retry: {initial_delay: 2, max_delay: 8}", 2_000, 8_000),
        ("retry: {backoff_seconds: [2, 10, 30]}", 2_000, 30_000),
        ("retry_backoff: {initial_delay: 0.5}", 500, 30_000),
    ] {
        let template = template(&with_steps(&format!("  - {{name: a, {spelling}}}")));
        let retry = &step(&template, "a").retry;
        assert_eq!((retry.base_ms, retry.max_ms), (base_ms, max_ms), "{spelling}");
    }
}

#[test]
fn the_words_of_older_yaml_for_yes_and_no_are_taken_where_only_those_make_sense() {
    for (words, retryable) in
        [(["true", "yes", "On", "'true'"], true), (["false", "no", "OFF", "'false'"], false)]
    {
        for word in words {
            let template = template(&with_steps(&format!("  - {{name: a, retry: {{retryable: {word}}}}}")));
            assert_eq!(step(&template, "a").retry.retryable, retryable, "{word}");
        }
    }
}

#[test]
fn words_that_look_like_other_types_stay_words() {
    let template = template(&with_steps(
        "  - {name: on, handler: {initialization: {zip: 00123, answer: no, n: 9007199254740993}}}\n  - {name: off, dependencies: on}",
    ));
    assert_eq!(
        initialization(step(&template, "on")),
        json!({"zip": "00123", "answer": "no", "n": 9_007_199_254_740_993_u64})
    );
    assert_eq!(step(&template, "off").dependencies, ["on"]);
}

#[test]
fn a_step_without_a_handler_is_called_by_its_name() {
    let template = template(&with_steps("  - name: a"));
    assert_eq!(step(&template, "a").handler.callable, "a");
    assert_eq!(initialization(step(&template, "a")), json!({}));
}

#[test]
fn fractions_of_a_second_are_kept() {
    let template = template(&with_steps("  - {name: a, timeout_seconds: 1.5}"));
    assert_eq!(step(&template, "a").timeout, Some(Duration::from_millis(1_500)));
}

#[test]
fn anchors_aliases_and_merge_keys_work() {
    let text = with_steps(
        "  - {name: a, retry: &often {max_attempts: 9, backoff: linear}}\n  - {name: b, retry: {<<: *often, max_attempts: 8}}\n  - {name: c, retry: *often}",
    );
    let template = template(&text);
    let limits: Vec<u32> = template.steps.iter().map(|step| step.max_attempts).collect();
    assert_eq!(limits, [9, 8, 9]);
    assert!(template.steps.iter().all(|step| step.retry.backoff == Backoff::Linear));
}

#[test]
fn keys_without_effect_are_warned_of_and_only_those() {
    let warnings = |text: &str| -> Vec<String> {
        parse(text, None).unwrap().warnings.iter().map(ToString::to_string).collect()
    };
    assert_eq!(
        warnings(CURRENT),
        [
            "line 5: metadata has no effect: it describes the template for people",
            "line 7: task_handler has no effect: steps name their handlers; a task has none",
            "line 33: step \"charge\": publishes_events has no effect: domain events are not published",
        ]
    );
    assert_eq!(warnings(HYBRID), [""; 0]);
    let named = with_steps("  - {name: a}\n  - {name: b}\nnamed_steps: [a, ghost]");
    assert_eq!(
        warnings(&named),
        [
            "line 6: named_steps does not list step \"b\"",
            "line 7: named_steps lists \"ghost\", which is no step"
        ]
    );
    let delays = |delays: &str| {
        warnings(&with_steps(&format!("  - {{name: a, retry: {{backoff_seconds: {delays}}}}}")))
    };
    assert_eq!(delays("[1, 2]"), [""; 0]);
    assert_eq!(
        delays("[1, 2, 4]"),
        [
            "line 5: step \"a\", retry: of backoff_seconds the first and the last count; the delays between follow the backoff"
        ]
    );
    let text = with_steps("  - {name: a, max_retries: 2.7}");
    assert_eq!(warnings(&text), ["line 5: step \"a\": max_retries is 2.7; the fraction is cut off"]);
}

#[test]
fn a_snapshot_reads_back_as_the_same_template_with_the_same_hash() {
    let kinds = with_steps(
        "  - {name: a}\n  - {name: route, type: decision, dependencies: [a]}\nidentity_strategy: always_unique",
    );
    for text in [LEGACY, CURRENT, SYMBOLS, HYBRID, &kinds] {
        let template = template(text);
        let back: Template = serde_json::from_str(&template.to_json()).unwrap();
        assert_eq!(back, template);
        assert_eq!(back.definition_hash(), template.definition_hash());
    }
}

#[test]
fn the_hash_tells_definitions_apart_and_is_the_same_everywhere() {
    let text = with_steps("  - name: a");
    let one = template(&text);
    let other = template(&text.replace("1.0.0", "1.0.1"));
    assert_eq!(one.definition_hash().len(), 32);
    assert_ne!(one.definition_hash(), other.definition_hash());
    assert_eq!(one.definition_hash(), template(&format!("# a comment\n{text}")).definition_hash());
    // Computed once; another value would make every kept snapshot look changed.
    assert_eq!(one.definition_hash(), "31e30e02feeb6ff00dbe9cd6a020b270");
}

#[test]
fn a_template_says_what_makes_two_tasks_the_same() {
    let of = |line: &str| {
        let text = format!(
            "name: order\nnamespace_name: shop\nversion: 1.0.0\n{line}\nsteps:\n  - name: a\n    handler: {{callable: a}}\n"
        );
        parse(&text, None).map(|parsed| parsed.template.identity_strategy)
    };
    for (line, strategy) in [
        ("", IdentityStrategy::Strict),
        ("identity_strategy: strict", IdentityStrategy::Strict),
        ("identity_strategy: caller_provided", IdentityStrategy::CallerProvided),
        ("identity_strategy: ':always_unique'", IdentityStrategy::AlwaysUnique),
    ] {
        assert_eq!(of(line), Ok(strategy), "{line}");
    }
    let mistakes = of("identity_strategy: always_uniqe").unwrap_err();
    assert_eq!(mistakes[0].line, Some(4));
    assert!(mistakes[0].message.contains("did you mean \"always_unique\""), "{mistakes:?}");
}
