//! Inputs that are right in form and out of all proportion.

use std::time::{Duration, Instant};

use serde_json::Value;
use tasker_worker_rust::config::{Config, Program};
use tasker_worker_rust::message::StepExecutionRequest;
use tasker_worker_rust::template::parse;

/// On a thread with the stack that the product's threads have, and not for ever.
fn soon<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    let started = Instant::now();
    let answer = std::thread::Builder::new().stack_size(2 << 20).spawn(what).unwrap().join().unwrap();
    assert!(started.elapsed() < Duration::from_secs(60), "took {:?}", started.elapsed());
    answer
}

fn request(task_data: &str) -> String {
    format!(
        r#"{{"task_uuid": "0198a3c0-5b7e-7d10-9c52-6f6a0a5d1e01", "step_uuid": "0198a3c0-5b7e-7d10-9c52-6f6a0a5d1e02",
            "namespace": "orders", "step_name": "a", "task_data": {task_data}}}"#
    )
}

fn template(rest: &str) -> String {
    format!("namespace: orders\nname: n\nversion: 1.0.0\n{rest}")
}

#[test]
fn a_context_a_million_levels_deep_is_carried_and_refused_where_it_is_read() {
    soon(|| {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let deep = format!("{}0{}", open.repeat(1_000_000), close.repeat(1_000_000));
            let body = request(&deep);
            let decoded = StepExecutionRequest::decode(body.as_bytes()).unwrap();
            assert_eq!(decoded.task_data.get(), deep);
            assert_eq!(StepExecutionRequest::decode(&decoded.encode()).unwrap(), decoded);
            let error = decoded.task_data.parse::<Value>().unwrap_err().to_string();
            assert!(error.contains("recursion limit"), "{error}");
            assert!(StepExecutionRequest::decode(&body.as_bytes()[..body.len() - 2]).is_err());
        }
    });
}

#[test]
fn a_template_nested_too_deeply_is_a_mistake() {
    soon(|| {
        for depth in [30, 39, 60, 200, 2_000, 100_000] {
            for (open, close) in [("[", "]"), ("{a: ", "}"), ("- ", "")] {
                let nested = format!("{}0{}", open.repeat(depth), close.repeat(depth));
                let text = template(&format!("steps:\n  {nested}\n"));
                assert!(!parse(&text, None).unwrap_err().is_empty());
                let schema = template(&format!("input_schema: {nested}\nsteps:\n  - name: a\n"));
                // Whatever it is taken for, it is taken for something.
                drop(parse(&schema, None));
            }
            let block = |level: usize| format!("{}a:\n", " ".repeat(level));
            assert!(parse(&(0..depth.min(2_000)).map(block).collect::<String>(), None).is_err());
            // No line is nested, but what it stands for is.
            let alias = |level: usize| format!("a{}: &a{} [*a{level}]\n", level + 1, level + 1);
            let ladder: String = (0..depth.min(2_000)).map(alias).collect();
            assert!(parse(&template(&format!("a0: &a0 [0]\n{ladder}")), None).is_err());
        }
    });
}

#[test]
fn a_template_whose_aliases_multiply_is_a_mistake() {
    soon(|| {
        let mut bomb = String::from("a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n");
        for level in 1..30 {
            let before = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", vec![before; 9].join(", "));
        }
        let mistakes = parse(&template(&bomb), None).unwrap_err();
        assert!(mistakes[0].message.contains("not valid YAML"), "{}", mistakes[0]);
    });
}

#[test]
fn a_huge_template_is_read_or_refused_in_time() {
    soon(|| {
        let chain = |steps: usize| {
            let step = |index: usize| match index {
                0 => "  - name: s0\n".to_owned(),
                _ => format!("  - name: s{index}\n    dependencies: [s{}]\n", index - 1),
            };
            template(&format!("steps:\n{}", (0..steps).map(step).collect::<String>()))
        };
        assert_eq!(parse(&chain(1_000), None).unwrap().template.steps.len(), 1_000);
        assert!(parse(&chain(60_000), None).is_err_and(|mistakes| !mistakes.is_empty()));
        let strangers: String = (0..5_000).map(|index| format!("unknown{index}: 1\n")).collect();
        assert!(parse(&template(&strangers), None).unwrap_err().len() > 1);
        let long = template(&format!("description: {}\nsteps:\n  - name: a\n", "x".repeat(16 << 20)));
        drop(parse(&long, None));
    });
}

#[test]
fn a_setting_with_a_name_without_end_is_refused_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("settings.toml");
    std::fs::write(&file, format!("{} = 1\n", "worker_id".repeat(100_000))).unwrap();
    soon(move || {
        let refused = Config::load_with(Some(&file), Program::Worker, []).unwrap_err().to_string();
        assert!(refused.contains("there is no setting worker_id") && !refused.contains("did you mean"));
    });
}
