//! `${VAR}` and `${VAR:-default}`.

use serde_json::json;
use tasker_worker_rust::template::{Parsed, parse, parse_with};

use super::{initialization, seconds, step, with_steps};

fn read(steps: &str, environment: Option<&str>) -> Parsed {
    let lookup = |name: &str| match name {
        "REGION" => Some("eu".to_owned()),
        "EMPTY" => Some(String::new()),
        "LIMIT" => Some("4".to_owned()),
        _ => None,
    };
    parse_with(&with_steps(steps), environment, &lookup).unwrap()
}

/// What the text becomes, and what is said of it.
fn replaced(text: &str) -> (String, Vec<String>) {
    let parsed = read(&format!("  - {{name: a, handler: {{initialization: {{v: '{text}'}}}}}}"), None);
    let value = initialization(step(&parsed.template, "a"))["v"].as_str().unwrap().to_owned();
    (value, parsed.unset.iter().map(ToString::to_string).collect())
}

#[test]
fn set_variables_and_defaults_are_put_in() {
    for (text, expected) in [
        ("${REGION}", "eu"),
        ("https://${REGION}.bank/${REGION:-us}", "https://eu.bank/eu"),
        ("${MISSING:-us}", "us"),
        ("${MISSING:-}", ""),
        ("${MISSING:-a:-b $ c}", "a:-b $ c"),
        ("${EMPTY:-us}", "us"),
        ("$${REGION}", "${REGION}"),
        ("$REGION {REGION} $", "$REGION {REGION} $"),
        ("${not a name} ${1ST} ${", "${not a name} ${1ST} ${"),
        ("${not a name:-eu}", "${not a name:-eu}"),
        ("${REGION", "${REGION"),
    ] {
        assert_eq!(replaced(text), (expected.to_owned(), vec![]), "{text}");
    }
}

#[test]
fn what_is_not_set_and_has_no_default_stays_and_is_told_with_its_line() {
    let told = "line 5: MISSING is not set and has no default, so ${MISSING} stays as it is; set it, or write ${MISSING:-default}";
    assert_eq!(replaced("x${MISSING}y ${REGION}"), ("x${MISSING}y eu".to_owned(), vec![told.to_owned()]));
    assert_eq!(replaced("${EMPTY}").0, "${EMPTY}", "nothing is no value");
}

#[test]
fn numbers_may_come_from_variables() {
    let parsed =
        read("  - {name: a, timeout_seconds: \"${SLOW:-7}\", retry: {max_attempts: \"${LIMIT}\"}}", None);
    let step = step(&parsed.template, "a");
    assert_eq!((step.timeout, step.max_attempts), (seconds(7), 4));
}

#[test]
fn only_the_chosen_environment_misses_its_variables() {
    let steps = "  - name: a\nenvironments:\n  production: {steps: [{name: a, handler_config: {key: '${KEY}'}}]}\n  test: {steps: [{name: a, timeout_seconds: '${SLOW:-3}'}]}";
    assert_eq!(read(steps, Some("test")).unset, []);
    assert_eq!(step(&read(steps, Some("test")).template, "a").timeout, seconds(3));
    assert_eq!(read(steps, Some("production")).unset.len(), 1);
}

#[test]
fn outside_of_the_environments_every_missing_variable_is_told() {
    let parsed = read("  - {name: a}\nmetadata: {owner: '${OWNER}', test: '${REGION}'}", Some("test"));
    let told: Vec<String> = parsed.unset.iter().map(ToString::to_string).collect();
    assert!(told.len() == 1 && told[0].starts_with("line 6: OWNER is not set"), "{told:?}");
}

#[test]
fn without_a_lookup_nothing_is_touched() {
    let text = with_steps("  - {name: a, handler: {initialization: {v: '$${A} ${B:-c}'}}}");
    let template = parse(&text, None).unwrap().template;
    assert_eq!(initialization(step(&template, "a")), json!({"v": "$${A} ${B:-c}"}));
}
