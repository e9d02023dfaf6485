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

/// What a command prints for scripts.
fn json(program: &Program, arguments: &[&str], code: i32) -> Value {
    let output = program.run(&[arguments, &["--output", "json"]].concat());
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
    serde_json::from_slice(&output.stdout).expect("the output is JSON and nothing else")
}

#[test]
fn a_step_without_a_handler_is_found() {
    let template = "namespace: linear_workflow\nname: more\nversion: 1.0.0\nsteps:\n\
                    \x20 - name: linear_step_1\n  - name: linear_step_5\n";
    let program = Program::new().write("config/workflows/more.yaml", template);
    let rows = json(&program, &["handlers"], 1);
    let found: Vec<(&Value, &Value)> =
        rows.as_array().unwrap().iter().map(|row| (&row["step"], &row["handler"])).collect();
    assert_eq!(found, [(&"linear_step_1".into(), &true.into()), (&"linear_step_5".into(), &false.into())]);
    let table = program.run(&["handlers"]);
    assert_eq!(table.status.code(), Some(1));
    let missing = stdout(&table).lines().filter(|line| line.ends_with("MISSING")).count();
    assert_eq!(missing, 1, "{}", stdout(&table));

    let valid = json(&program, &["template", "validate"], 0);
    assert_eq!(
        (&valid["templates"][0]["name"], &valid["templates"][0]["steps"]),
        (&"more".into(), &2.into())
    );
    let text = stdout(&program.run(&["template", "validate"]));
    assert!(text.contains("linear_workflow  more  1.0.0"), "{text}");
}

#[test]
fn the_schema_of_templates_is_printed_for_editors() {
    let schema = json(&Program::new(), &["template", "schema"], 0);
    assert!(schema["properties"]["steps"].is_object(), "{schema}");
}

#[test]
fn right_settings_are_said_to_be_right() {
    let program = Program::new().write("orchestrator.toml", "[orchestrator]\nmax_connections = 7\n");
    let check = ["config", "check", "--for", "orchestrator", "--config", "orchestrator.toml"];
    assert_eq!(stdout(&program.run(&check)), "the settings are right\n");
    assert_eq!(json(&program, &check, 0), serde_json::json!({ "mistakes": [] }));
    let show = ["config", "show", "--for", "orchestrator", "--config", "orchestrator.toml"];
    assert_eq!(json(&program, &show, 0)["orchestrator"]["max_connections"], 7);
}

#[test]
fn what_cannot_be_a_namespace_or_a_worker_is_refused_before_anybody_is_asked() {
    for (arguments, said) in [
        (&["topology", "verify", "--namespace", "a.b"][..], "\"a.b\" is no namespace"),
        (&["topology", "export", "--worker", "billing=invoices,a b"], "\"a b\" is no namespace"),
        (&["topology", "export", "--worker", "billing"], "expected USER=NAMESPACE"),
        (&["submit", "linear_workflow"], "\"linear_workflow\" is not NAMESPACE/NAME"),
        (&["submit", "a/b", "--context", "{"], "--context is not JSON"),
        (&["submit", "a/b", "--context", "-"], "--context is not JSON"),
        (&["submit", "a/b", "--context", "@no-such-file"], "no-such-file"),
    ] {
        let output = Program::new().run(arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert!(stderr(&output).contains(said), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn exported_users_have_rights_on_what_they_serve_and_the_passwords_of_their_files() {
    let program = Program::new().write("passwords/billing", "s3cret\n");
    let export = ["topology", "export", "--worker", "billing=invoices,refunds", "--passwords", "passwords"];
    let definitions = program.run(&export);
    let text = stdout(&definitions);
    assert_eq!(definitions.status.code(), Some(0), "{}", stderr(&definitions));
    assert!(!text.contains("s3cret"), "a password is exported as its hash");
    let definitions: Value = serde_json::from_str(&text).unwrap();
    let users = definitions["users"].as_array().unwrap();
    let billing = users.iter().find(|user| user["name"] == "billing").expect("the user is there");
    assert!(billing["password_hash"].as_str().is_some_and(|hash| !hash.is_empty()), "{billing}");
    assert!(text.contains("tasker.steps.invoices") && !text.contains("tasker.steps.linear_workflow"));

    let unreadable = Program::new().write("passwords/billing/is-a-folder", "").run(&export);
    assert_eq!(unreadable.status.code(), Some(64));
    assert!(stderr(&unreadable).contains("passwords/billing"), "{}", stderr(&unreadable));
}

#[test]
fn an_absent_broker_is_named_with_the_reason() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let program = Program::new()
        .set("RABBITMQ_URL", format!("amqp://127.0.0.1:{port}/%2f"))
        .set("TASKER__BROKER__CONNECT_TIMEOUT_MS", "500");
    let output = program.run(&["topology", "declare", "--namespace", "orders"]);
    assert_eq!(output.status.code(), Some(69));
    let text = stderr(&output);
    assert!(text.contains(&port.to_string()) && text.contains("cannot be reached"), "{text}");
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
