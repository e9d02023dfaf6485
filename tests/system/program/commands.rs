//! Commands that need nobody, or find nobody.

use std::net::TcpListener;
use std::process::Stdio;

use serde_json::Value;

use super::{Program, stderr, stdout};

#[test]
fn the_demo_runs_the_five_workflows_and_shows_their_answers() {
    let output = Program::new().run(&["demo"]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}{}", stderr(&output));
    for expected in ["66", "180", "18446744073709551616", "209.97"] {
        assert!(text.contains(expected), "{expected} is missing in:\n{text}");
    }
}

#[test]
fn the_demo_prints_json_for_scripts() {
    let output = Program::new().run(&["demo", "--output", "json"]);
    let rows: Value = serde_json::from_slice(&output.stdout).expect("the output is JSON and nothing else");
    assert!(rows.as_array().unwrap().len() >= 5, "{rows}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let program = Program::new();
    let mut command = program.command(&["demo", "--output", "json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn wrong_arguments_exit_with_64_and_say_what_is_right() {
    let output = Program::new().run(&["sumbit"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("submit"), "{}", stderr(&output));
}

#[test]
fn an_unknown_setting_is_refused_with_the_nearest_known_one() {
    let program = Program::new().write("worker.toml", "[worker]\nmax_concurent_steps = 5\nnamespaces = 7\n");
    let output = program.run(&["config", "check", "--config", "worker.toml"]);
    assert_eq!(output.status.code(), Some(64));
    let text = stderr(&output);
    assert!(text.contains("max_concurent_steps") && text.contains("max_concurrent_steps"), "{text}");
    assert!(text.contains("worker.namespaces"), "all mistakes at once: {text}");
}

#[test]
fn shown_settings_hide_passwords() {
    let program = Program::new().set("RABBITMQ_URL", "amqp://worker:s3cret@127.0.0.1:5672/%2f");
    for format in ["text", "json"] {
        let output = program.run(&["config", "show", "--output", format]);
        let text = stdout(&output);
        assert!(text.contains("127.0.0.1:5672") && !text.contains("s3cret"), "{text}");
    }
}

#[test]
fn a_step_that_may_outlast_the_brokers_patience_is_refused_with_the_sum() {
    let program = Program::new().write(
        "workflows/slow.yaml",
        "name: big\nnamespace_name: linear_workflow\nversion: 1.0.0\nsteps:\n\
         - {name: linear_step_1, handler: {callable: a}, timeout_seconds: 1200}\n",
    );
    let program = program
        .set("TASKER__WORKER__TASK_TEMPLATES__TEMPLATE_DIRECTORY", "workflows")
        .set("TASKER__ORCHESTRATOR__TEMPLATE_DIRECTORY", "workflows")
        .set("TASKER__BROKER__CONSUMER_TIMEOUT_SECONDS", "1200");
    let alone = "step linear_workflow/big/linear_step_1 may hold its delivery for 20 min 10 s (timeout 20 min + \
                 confirm 10 s), the broker takes it back after 20 min";
    for arguments in [&["template", "validate", "workflows"][..], &["orchestrator"]] {
        let output = program.run(arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert!(stderr(&output).contains(alone), "{arguments:?}: {}", stderr(&output));
    }
    let output = program.run(&["worker"]);
    assert_eq!(output.status.code(), Some(64));
    let waits = "waiting 121 min for 6 other namespaces' steps";
    assert!(stderr(&output).contains(waits), "{}", stderr(&output));
}

#[test]
fn a_template_with_a_cycle_is_refused_with_its_path() {
    let program = Program::new().write(
        "loop.yaml",
        "name: loop\nnamespace_name: shop\nversion: 1.0.0\nsteps:\n\
         - {name: a, handler: {callable: a}, dependencies: [c]}\n\
         - {name: b, handler: {callable: b}, dependencies: [a]}\n\
         - {name: c, handler: {callable: c}, dependencies: [b]}\n",
    );
    let output = program.run(&["template", "validate", "loop.yaml"]);
    assert_eq!(output.status.code(), Some(64));
    let text = stderr(&output);
    let cycle = [
        "a -> c -> b -> a",
        "a -> b -> c -> a",
        "b -> c -> a -> b",
        "b -> a -> c -> b",
        "c -> a -> b -> c",
        "c -> b -> a -> c",
    ];
    assert!(cycle.iter().any(|path| text.contains(path)), "{text}");
}

#[test]
fn a_template_is_drawn_in_every_format() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config/workflows/diamond_workflow_handler.yaml");
    for (format, expected) in
        [("ascii", "diamond_branch_b"), ("mermaid", "flowchart"), ("dot", "digraph"), ("svg", "<svg")]
    {
        let output = Program::new().run(&["template", "graph", file, "--format", format]);
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).contains(expected), "{}", stdout(&output));
    }
}

#[test]
fn a_template_is_converted_and_what_has_no_effect_told() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config/workflows/linear_workflow_handler.yaml");
    let output = Program::new().run(&["template", "convert", file]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).contains("namespace_name: linear_workflow\n"), "{}", stdout(&output));
    let warning = format!("warning: {file}:6: task_handler_class has no effect");
    assert!(stderr(&output).contains(&warning), "{}", stderr(&output));
}

#[test]
fn an_absent_orchestrator_is_named_with_what_to_do() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let output = Program::new().run(&["submit", "linear_workflow/mathematical_sequence", "--api-url", &url]);
    assert_eq!(output.status.code(), Some(69));
    let text = stderr(&output);
    assert!(text.contains(&url) && text.contains("--api-url"), "{text}");
}
