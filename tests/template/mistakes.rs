//! What is wrong is told with its line, its value and what would be right; all of it at once.

use tasker_worker_rust::template::parse;

use super::{initialization, step, template, with_steps};

fn mistakes(text: &str) -> Vec<String> {
    parse(text, None).expect_err(text).iter().map(ToString::to_string).collect()
}

/// The only mistake of a template with these steps.
fn mistake(steps: &str) -> String {
    let mistakes = mistakes(&with_steps(steps));
    assert_eq!(mistakes.len(), 1, "{mistakes:#?}");
    mistakes.into_iter().next().unwrap()
}

#[test]
fn a_file_with_every_mistake_is_told_all_of_them() {
    let expected: Vec<&str> = include_str!("corpus/bad.expected").lines().collect();
    assert_eq!(mistakes(include_str!("corpus/bad.yaml")), expected);
}

#[test]
fn a_mistake_is_told_with_its_file_and_its_line_where_it_is_on_one() {
    let mistakes = parse("name: [n]", None).unwrap_err();
    assert_eq!(
        [mistakes[0].at("orders.yaml"), mistakes[1].at("orders.yaml")],
        [
            "orders.yaml: namespace_name is missing; add a line such as namespace_name: orders",
            "orders.yaml: there are no steps; list at least one under steps",
        ]
    );
    let last = mistakes.last().unwrap().at("orders.yaml");
    assert_eq!(last, "orders.yaml:1: name is a list; expected text; put it in quotes");
}

#[test]
fn an_unknown_key_is_told_the_nearest_known_one_or_those_with_an_effect() {
    let lifecycle = |key: &str| mistakes(&with_steps(&format!("  - {{name: a}}\nlifecycle: {{{key}: 1}}")));
    assert_eq!(
        lifecycle("zzz"),
        ["line 6: lifecycle: unknown key \"zzz\"; known here: max_duration_minutes, \
             max_waiting_for_dependencies_minutes, max_waiting_for_retry_minutes, max_steps_in_process_minutes, \
             staleness_action, auto_fail_on_timeout, auto_dlq_on_timeout"]
    );
    let near = "line 6: lifecycle: unknown key \"descripton\"; did you mean \"description\"?";
    assert_eq!(lifecycle("descripton"), [near], "what only describes is known, too");
    let refused = mistake("  - {name: a, initialisation: {}}");
    assert!(
        refused.starts_with("line 5: step \"a\": unknown key \"initialisation\"; known here: name, "),
        "{refused}"
    );
}

#[test]
fn the_nearest_name_is_meant_and_of_equally_near_ones_the_first() {
    for (word, steps, meant) in [
        ("process_paymnts", ["process_payment_now", "process_payments"], "process_payments"),
        ("process_paymnts", ["process_payments", "process_payments_now"], "process_payments"),
        ("payment2", ["payment1", "payment3"], "payment1"),
    ] {
        let [first, second] = steps;
        let text =
            format!("  - {{name: {first}}}\n  - {{name: {second}}}\n  - {{name: x, dependencies: [{word}]}}");
        let expected = format!(
            "line 7: step \"x\": depends on {word:?}, which is no step of this template; did you mean {meant:?}?"
        );
        assert_eq!(mistake(&text), expected);
    }
}

#[test]
fn twenty_names_are_listed_and_more_are_hinted_at() {
    let told = |count: usize| {
        let steps: String = (0..count).map(|number| format!("  - {{name: s{number:02}}}\n")).collect();
        mistake(&format!("{steps}  - {{name: x, dependencies: [nobody]}}"))
    };
    for (count, end) in [(20, "s18, s19"), (21, "s18, s19, …"), (22, "s18, s19, …")] {
        let told = told(count);
        assert!(told.contains("there are: s00, s01, ") && told.ends_with(end), "{told}");
    }
}

#[test]
fn text_that_is_no_template_is_refused_with_its_line() {
    for (text, expected) in [
        ("", "the file is empty; expected a template"),
        ("- a", "line 1: the file holds a list; expected a mapping with name, version, steps"),
        ("a: 1\n---\nb: 2", "line 3: the file holds a second document; keep one template in a file"),
        ("name: n\nb: \"x", "line 2: this is not valid YAML: unclosed quote"),
        ("name: a\n  b: c", "line 2: this is not valid YAML: mapping values are not allowed in this context"),
        ("name: *nobody", "line 1: this is not valid YAML: alias references unknown anchor"),
    ] {
        assert_eq!(mistakes(text), [expected], "{text}");
    }
}

#[test]
fn a_key_and_its_symbol_are_one_key_of_the_format_and_two_of_a_users_data() {
    let steps = |text: &str| mistakes(&with_steps(text));
    for (text, key) in [
        ("  - {name: a, handler_class: A, :handler_class: B}", "handler_class"),
        ("  - {name: a, retry: {limit: 3, :limit: 4}}", "limit"),
        ("  - {name: a}\nenvironments: {test: {}, :test: {}}", "test"),
        (
            "  - {name: a}\nenvironments: {test: {step_overrides: {a: {skippable: true}, :a: {skippable: true}}}}",
            "a",
        ),
        ("  - {name: a, handler_class: A, handler_config: {k: {x: 1, x: 2}}}", "x"),
    ] {
        let expected = format!("key {key:?} stands here twice");
        let found = steps(text);
        assert!(found.len() == 1 && found[0].contains(&expected), "{text}\n{found:#?}");
    }
    let template = template(&with_steps(
        "  - {name: a, handler_class: A, handler_config: {\":\": 1, \"\": 2, x: 3, :x: 4}}",
    ));
    assert_eq!(initialization(step(&template, "a")), serde_json::json!({":": 1, "": 2, "x": 3, ":x": 4}));
}

#[test]
fn an_empty_mapping_is_told_everything_it_lacks() {
    assert_eq!(
        mistakes("{}"),
        [
            "name is missing; add a line such as name: order_processing",
            "namespace_name is missing; add a line such as namespace_name: orders",
            "there are no steps; list at least one under steps",
            "version is missing; add a line such as version: 1.0.0",
        ]
    );
}

#[test]
fn versions_have_three_numbers_and_perhaps_a_suffix() {
    for good in ["1.0.0", "0.10.2", "2.0.0-rc.1", "1.2.3+build-7", "1.2.3-rc.1+build"] {
        assert!(parse(&with_steps("  - name: a").replace("1.0.0", good), None).is_ok(), "{good}");
    }
    for bad in ["1", "1.0", "1.0.0.0", "v1.0.0", "1.x.0", "01.0.0", "1.0.0-", "\"1. 0.0\"", "latest"] {
        let mistakes = mistakes(&with_steps("  - name: a").replace("1.0.0", bad));
        assert!(mistakes[0].starts_with("line 3: version ") && mistakes[0].contains("x.y.z"), "{mistakes:?}");
    }
}

#[test]
fn namespaces_must_be_names_of_queues() {
    let long = "n".repeat(65);
    for bad in ["a.b", "a b", "ä", long.as_str()] {
        let mistakes = mistakes(&with_steps("  - name: a").replace("ns", bad));
        assert_eq!(
            mistakes,
            [format!("line 2: namespace {bad:?} is not 1 to 64 characters of A-Z a-z 0-9 _ -")]
        );
    }
}

#[test]
fn names_are_neither_empty_nor_endless() {
    assert_eq!(mistake("  - name: \" \""), "line 5: a step's name is empty; name it by what it does");
    let long = "s".repeat(256);
    assert_eq!(
        mistake(&format!("  - name: {long}")),
        "line 5: step \"ssssssssssssssssssss…\": its name is 256 bytes long; at most 255 are allowed"
    );
    let longest = "s".repeat(255);
    assert!(parse(&with_steps(&format!("  - name: {longest}")), None).is_ok());
    let named = |name: &str| with_steps("  - name: a").replace("name: n\n", &format!("name: {name}\n"));
    assert_eq!(mistakes(&named(&long)), ["line 1: name is 256 bytes long; at most 255 are allowed"]);
    assert!(parse(&named(&longest), None).is_ok());
}

#[test]
fn values_of_another_type_are_told_with_the_type_that_is_expected() {
    for (steps, expected) in [
        ("  - name: [a]", "line 5: step number 1: name is a list; expected text; put it in quotes"),
        (
            "  - {name: a, dependencies: {b: c}}",
            "line 5: step \"a\": dependencies is a mapping; expected names of steps, as text",
        ),
        (
            "  - {name: a, timeout_seconds: soon}",
            "line 5: step \"a\": timeout_seconds is \"soon\"; expected seconds, from 0.001 to 2592000",
        ),
        (
            "  - {name: a, timeout_seconds: -1}",
            "line 5: step \"a\": timeout_seconds is -1; expected seconds, from 0.001 to 2592000",
        ),
        ("  - {name: a, retry: 3}", "line 5: step \"a\", retry is 3; expected a mapping"),
        (
            "  - {name: a, retry: {retryable: 3}}",
            "line 5: step \"a\", retry: retryable is 3; expected true or false",
        ),
        (
            "  - {name: a, retry: {max_attempts: -2}}",
            "line 5: step \"a\", retry: max_attempts is -2; expected a whole number, at most 100",
        ),
        (
            "  - {name: a, handler_config: [1]}",
            "line 5: step \"a\": handler_config is a list; expected a mapping",
        ),
        (
            "  - {name: a, retry: {initial_delay: 86401}}",
            "line 5: step \"a\", retry: initial_delay is 86401; expected seconds, from 0 to 86400",
        ),
        (
            "  - {name: a, retry: {backoff_seconds: [3, 1]}}",
            "line 5: step \"a\", retry: backoff_seconds is a list; expected growing numbers of seconds",
        ),
        (
            "  - {name: a, retry: {backoff_seconds: []}}",
            "line 5: step \"a\", retry: backoff_seconds is a list; expected growing numbers of seconds",
        ),
        ("  a: b", "line 5: steps is a mapping; expected a list"),
        (
            "  - {name: a, type: conditional}",
            "line 5: step \"a\": type \"conditional\" is unknown; there are: standard, decision, \
             deferred_convergence, batchable, batch_worker, deferred",
        ),
    ] {
        assert_eq!(mistake(steps), expected);
    }
}

#[test]
fn of_a_long_text_the_first_sixty_characters_are_shown() {
    for (length, shown) in [(60, format!("{:?}", "é".repeat(60))), (61, format!("{:?}…", "é".repeat(60)))]
    {
        let told = mistake(&format!("  - {{name: a, retry: {}}}", "é".repeat(length)));
        assert_eq!(told, format!("line 5: step \"a\", retry is {shown}; expected a mapping"));
    }
}

#[test]
fn two_ways_to_say_one_thing_must_agree() {
    for (steps, expected) in [
        (
            "  - {name: a, retry: {limit: 2, max_attempts: 3}}",
            "line 5: step \"a\", retry: max_attempts and limit say the same thing; keep one",
        ),
        (
            "  - {name: a, max_retries: 2, retry: {max_attempts: 3}}",
            "line 5: step \"a\": the step's own limit and the one under retry differ; keep one",
        ),
        (
            "  - {name: a, handler_class: A, handler: {callable: B}}",
            "line 5: step \"a\": handler and handler_class say the same thing; keep one",
        ),
        (
            "  - {name: a}\nstep_templates: [{name: a}]",
            "line 6: steps and step_templates are two formats of one list; keep one",
        ),
    ] {
        assert_eq!(mistake(steps), expected);
    }
}

#[test]
fn workflow_steps_and_step_templates_must_fit() {
    let text = "
name: n
namespace: ns
version: 1.0.0
step_templates: [{name: fetch}, {name: store}, {name: forgotten}]
workflow_steps:
  - {step_template: fetch}
  - {step_template: stroe}
  - {step_template: store}
  - {step_template: store}
  - {dependencies: [fetch]}
";
    assert_eq!(
        mistakes(text),
        [
            "line 5: step \"forgotten\" is not among the workflow_steps; add it there or remove it",
            "line 8: workflow step: no step template is called \"stroe\"; did you mean \"store\"?",
            "line 10: step template \"store\" is used twice; a step needs a name of its own",
            "line 11: workflow step: step_template is missing",
        ]
    );
}

#[test]
fn several_circles_are_each_told() {
    let text = with_steps(
        "  - {name: a, dependencies: [b]}\n  - {name: b, dependencies: [a]}\n  - {name: free}\n  - {name: x, dependencies: [free, y]}\n  - {name: y, dependencies: [x, a]}\n  - {name: behind, dependencies: [y]}",
    );
    assert_eq!(
        mistakes(&text),
        [
            "line 5: steps wait for each other in a circle: a -> b -> a (each waits for the next); remove one dependency",
            "line 8: steps wait for each other in a circle: x -> y -> x (each waits for the next); remove one dependency",
        ]
    );
}

#[test]
fn overrides_of_other_environments_are_checked_too() {
    let text = with_steps("  - {name: a}\nenvironments:\n  production:\n    stebs: []\n");
    assert_eq!(
        mistakes(&text),
        ["line 8: environment \"production\": unknown key \"stebs\"; did you mean \"steps\"?"]
    );
}

#[test]
fn a_step_that_is_reached_in_very_many_ways_is_looked_at_once() {
    let pair = |level: usize| {
        let on = level.checked_sub(1).map_or(String::new(), |below| format!("a{below}, b{below}"));
        ["a", "b"].map(|name| format!("  - {{name: {name}{level}, dependencies: [{on}]}}\n")).concat()
    };
    let template = template(&with_steps(&(0..60).map(pair).collect::<String>()));
    assert_eq!(template.ancestors_of("a59").len(), 118);
}

#[test]
fn a_circle_of_thousands_of_steps_is_found() {
    let step = |index: usize| format!("  - {{name: s{index}, dependencies: [s{}]}}\n", (index + 1) % 5_000);
    let mistake = mistake(&(0..5_000).map(step).collect::<String>());
    assert!(
        mistake.starts_with("line 5: steps wait for each other in a circle: s0 -> s1 -> s2 -> "),
        "{mistake:.100}"
    );
}
