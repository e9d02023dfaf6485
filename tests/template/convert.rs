//! Any template, written in the current format, means the same and satisfies the published schema.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use jsonschema::Validator;
use proptest::prelude::*;
use serde_json::Value;
use tasker_worker_rust::template::{Parsed, convert, differences, document, format_schema, parse};

use super::corpus::FILES;
use super::{template, with_steps};

const CORPUS: [&str; 4] = [
    include_str!("corpus/legacy.yaml"),
    include_str!("corpus/current.yaml"),
    include_str!("corpus/symbols.yaml"),
    include_str!("corpus/hybrid.yaml"),
];

static SCHEMA: LazyLock<Validator> = LazyLock::new(|| jsonschema::validator_for(&format_schema()).unwrap());

fn assert_fits_the_schema(yaml: &str) {
    let value: Value = serde_saphyr::from_str(yaml).unwrap();
    let errors: Vec<String> =
        SCHEMA.iter_errors(&value).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}\n{yaml}");
}

/// Converts, and compares what both mean in every environment that matters.
fn assert_means_the_same(text: &str) {
    let converted = convert(text).unwrap_or_else(|mistakes| panic!("{mistakes:#?}\n{text}")).text;
    for environment in [None, Some("test"), Some("production"), Some("development"), Some("elsewhere")] {
        let template = |text: &str| parse(text, environment).map(|Parsed { template, .. }| template);
        match template(text) {
            Ok(original) => {
                assert_eq!(
                    template(&converted),
                    Ok(original.clone()),
                    "{environment:?}\n{text}\n---\n{converted}"
                );
                assert_eq!(
                    template(&document(&original).to_string()),
                    Ok(original),
                    "{environment:?}\n{text}"
                );
            }
            Err(_) => assert!(template(&converted).is_err(), "{environment:?}\n{text}\n---\n{converted}"),
        }
    }
    assert_fits_the_schema(&converted);
    assert_eq!(convert(&converted).unwrap().text, converted, "once is enough");
}

#[test]
fn the_corpus_means_the_same_in_the_current_format() {
    CORPUS.into_iter().chain(FILES.map(|(_, text)| text)).for_each(assert_means_the_same);
}

#[test]
fn the_comments_at_the_head_of_a_file_are_kept() {
    let head = "# yaml-language-server: $schema=task-template.schema.json\n# Ours.\n";
    let converted = |text: &str| convert(text).unwrap().text;
    let body = with_steps("  - {name: a} # and this is lost\n");
    let text = converted(&format!("{head}\n{body}"));
    assert!(text.starts_with(head) && !text.contains("lost"), "{text}");
    assert_eq!(text, converted(&format!("---\n{head}{body}")), "also behind the mark of a document");
    assert_eq!(converted(&text), text);
    assert!(converted(&body).starts_with("name: "));
}

#[test]
fn the_shipped_templates_convert_and_the_current_ones_fit_the_schema_as_they_are() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/workflows");
    let mut current = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        assert_means_the_same(&text);
        if text.contains("\nsteps:\n") {
            current += 1;
            assert_fits_the_schema(&text);
        }
    }
    assert_eq!(current, 6);
}

#[test]
fn the_published_schema_is_that_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/task-template.schema.json");
    let published: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert!(
        published == format_schema(),
        "write it anew: cargo run -- template schema > docs/task-template.schema.json"
    );
}

#[test]
fn the_schema_refuses_what_the_loader_refuses() {
    for wrong in [
        "verson: 1",
        "version: \"1.0\"",
        "namespace_name: a.b",
        "steps: []",
        "steps: [{description: nameless}]",
        "steps: [{name: a, retry: {max_attempts: 101}}]",
        "steps: [{name: a, retry: {limit: 3}}]",
        "steps: [{name: a, type: deferred}]",
        "steps: [{name: a, timeout_seconds: 0}]",
        "steps: [{name: a, batch_config: {batch_size: 0}}]",
        "environments: {test: {steps: [{name: a, dependencies: []}]}}",
        "lifecycle: {max_duration_minutes: 0}",
    ] {
        let right: Value = serde_saphyr::from_str(
            "{name: orders, namespace_name: shop, version: 1.0.0, steps: [{name: a}]}",
        )
        .unwrap();
        assert!(SCHEMA.is_valid(&right));
        let mut value = right.as_object().unwrap().clone();
        let change: Value = serde_saphyr::from_str(wrong).unwrap();
        value.extend(change.as_object().unwrap().clone());
        assert!(!SCHEMA.is_valid(&value.into()), "{wrong}");
    }
}

#[test]
fn mistakes_are_told_instead_of_converted() {
    let mistakes = convert(&with_steps("  - {name: a, dependencies: [b]}")).unwrap_err();
    assert_eq!(mistakes.len(), 1);
    assert_eq!(mistakes[0].line, Some(5));
}

#[test]
fn differences_name_each_place_with_both_values() {
    let text =
        with_steps("  - {name: a, timeout_seconds: 30}\n  - {name: b, dependencies: [a]}\n  - {name: c}");
    let changed = text
        .replace("timeout_seconds: 30", "timeout_seconds: 45")
        .replace(", dependencies: [a]", "")
        .replace("name: c", "name: d, handler: {callable: D}");
    let (old, new) = (template(&text), template(&changed));
    let found = differences(&old, &new);
    assert_eq!(
        found[..3],
        [
            "steps.a.timeout_seconds: 30 became 45".to_owned(),
            "steps.b.dependencies: removed".to_owned(),
            "steps.c: removed".to_owned(),
        ]
    );
    assert!(found.len() == 4 && found[3].starts_with("steps.d: added, {"), "{found:?}");
    assert_eq!(differences(&old, &old), [""; 0]);
    let turned =
        with_steps("  - {name: c}\n  - {name: b, dependencies: [a]}\n  - {name: a, timeout_seconds: 30}");
    assert_eq!(differences(&old, &template(&turned)), ["steps: the same in another order"]);
}

#[test]
fn lists_but_that_of_the_steps_differ_as_a_whole() {
    let text = with_steps("  - {name: a}\ninput_schema: {required: [a]}");
    let found = differences(&template(&text), &template(&text.replace("[a]", "[a, b]")));
    assert_eq!(found, [r#"input_schema.required: ["a"] became ["a","b"]"#]);
}

#[test]
fn what_only_describes_is_kept() {
    let described = with_steps(
        "- name: a\n  publishes_events:\n  - paid\nmetadata:\n  owner: ops\ndomain_events:\n- paid\n",
    );
    let text = convert(&described).unwrap().text;
    for kept in ["metadata:\n  owner: ops\n", "domain_events:\n- paid\n", "  publishes_events:\n  - paid\n"] {
        assert!(text.contains(kept), "{text}");
    }
}

#[test]
fn what_says_nothing_is_not_written() {
    let text = convert(&with_steps("  - {name: a, timeout_seconds: 2}\n  - {name: b, timeout_seconds: 0.5}"))
        .unwrap()
        .text;
    let steps = text.split_once("steps:\n").unwrap().1;
    assert_eq!(steps, "- name: a\n  timeout_seconds: 2\n- name: b\n  timeout_seconds: 0.5\n");
    for retry in
        ["retryable: false", "max_attempts: 2", "backoff: linear", "backoff_base_ms: 7", "max_backoff_ms: 7"]
    {
        let text = convert(&with_steps(&format!("  - {{name: a, retry: {{{retry}}}}}"))).unwrap().text;
        assert!(text.ends_with(&format!("- name: a\n  retry:\n    {retry}\n")), "{text}");
    }
}

/// Texts that YAML could take for something else.
fn words() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zA-Z0-9 :#'\"{}\\[\\],&*!|>%@`~$.\\n\\t-]{0,12}",
        proptest::sample::select(vec![
            "on",
            "no",
            "null",
            "~",
            "",
            "00123",
            "1.0",
            "0x1F",
            "1e3",
            "true",
            "-",
            "=",
            "<<",
            "é",
            "line\nline\n",
            " x ",
            "${A:-b}",
            ".inf",
            "2024-01-01",
            "1_000",
            ":",
            ":x",
            "x",
        ])
        .prop_map(str::to_owned),
    ]
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-1e15f64..1e15).prop_map(Value::from),
        words().prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::btree_map(words(), inner, 0..3)
                .prop_map(|map| map.into_iter().collect::<Value>()),
        ]
    })
}

/// One setting of a step in one of its spellings, as JSON, which is YAML too.
fn setting() -> impl Strategy<Value = String> {
    let ms = 0u32..100_000;
    prop_oneof![
        words().prop_map(|word| format!("\"description\": {}", Value::from(word))),
        (words(), json()).prop_map(|(word, json)| {
            format!(
                "\"handler\": {{\"callable\": {}, \"initialization\": {{\"k\": {json}}}}}",
                Value::from(word)
            )
        }),
        (words(), json()).prop_map(|(word, json)| {
            format!("\"handler_class\": {}, \"handler_config\": {{\"k\": {json}}}", Value::from(word))
        }),
        (0u32..=100).prop_map(|limit| format!("\"default_retry_limit\": \"{limit}\"")),
        (0u32..=100)
            .prop_map(|limit| format!("\"retry\": {{\"limit\": {limit}, \"backoff\": \":fibonacci\"}}")),
        (ms.clone(), ms.clone()).prop_map(|(a, b)| format!(
            "\"retry\": {{\"backoff_base_ms\": {}, \"max_backoff_ms\": {}}}",
            a.min(b),
            a.max(b)
        )),
        ms.clone().prop_map(|ms| format!("\"retry\": {{\"max_backoff_ms\": {ms}}}")),
        (ms.clone(), any::<bool>()).prop_map(|(delay, retryable)| format!(
            "\"default_retryable\": {retryable}, \"retry_backoff\": {{\"initial_delay\": {}}}",
            f64::from(delay) / 1_000.0
        )),
        ms.prop_map(|ms| format!("\"timeout_seconds\": {}", f64::from(ms + 1) / 1_000.0)),
        Just("\"retry\": {\"backoff_seconds\": [1, 4, 9]}, \"skippable\": true".to_owned()),
    ]
}

/// A template with two plain steps, a decision and batches, overridden in two environments.
fn templates() -> impl Strategy<Value = String> {
    let list = proptest::sample::select(vec!["steps", "step_templates", ":steps"]);
    let depends = proptest::sample::select(vec![
        "dependencies",
        "depends_on",
        "depends_on_steps",
        "depends_on_step_name",
    ]);
    let overrides = proptest::sample::select(vec![
        "\"steps\": [{\"name\": \"a\", S}]",
        "\"step_templates\": [{\"name\": \"ALL\", S}]",
        "\"step_overrides\": {\"b\": {S}, \"ALL\": null}",
    ]);
    let settings = proptest::collection::vec(setting(), 4);
    (list, depends, overrides.clone(), overrides, settings, json(), words()).prop_map(
        |(list, depends, test, production, settings, schema_default, description)| {
            let [first, second, third, fourth] = &settings[..] else { unreachable!("four were asked for") };
            format!(
                "{{\"name\": \"n\", \"namespace\": \"ns\", \"version\": \"1.0.0\", \"description\": {},\n\
                 \"schema\": {{\"properties\": {{\"p\": {{\"default\": {schema_default}}}}}}},\n\
                 \"{list}\": [{{\"name\": \"a\", {first}}}, {{\"name\": \"b\", \"{depends}\": [\"a\"], {second}}},\n\
                 {{\"name\": \"route\", \"type\": \"decision\", \"{depends}\": [\"b\"]}},\n\
                 {{\"name\": \"split\", \"type\": \"batchable\", \"batch_config\": {{\"batch_size\": 5}}}},\n\
                 {{\"name\": \"work\", \"type\": \"batch_worker\", \"{depends}\": [\"split\"]}},\n\
                 {{\"name\": \"undo\", \"compensates\": \"a\"}}],\n\
                 \"identity_strategy\": \"caller_provided\",\n\
                 \"lifecycle\": {{\"max_duration_minutes\": 5, \"staleness_action\": \"none\", \"auto_dlq_on_timeout\": true}},\n\
                 \"environments\": {{\"test\": {{{}}}, \"production\": {{{}}}}}}}",
                Value::from(description),
                test.replace('S', third),
                production.replace('S', fourth),
            )
        },
    )
}

proptest! {
    // Each is read twenty times.
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 3, ..ProptestConfig::default() })]

    #[test]
    fn any_valid_template_means_the_same_in_the_current_format(text in templates()) {
        assert_means_the_same(&text);
    }
}
