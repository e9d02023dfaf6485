//! The rules about who may import, name or do what; see `docs/design.md`.

use std::fs;
use std::path::{Path, PathBuf};

/// Every line of code under `src`, without comments: (file, line number, text).
fn code() -> Vec<(String, usize, String)> {
    fn visit(directory: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    visit(&root, &mut files);
    let mut lines = Vec::new();
    for file in files {
        let name = file.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
        for (index, line) in fs::read_to_string(&file).unwrap().lines().enumerate() {
            let text = line.trim_start();
            // Unit tests stand at the foot of a file.
            if text == "#[cfg(test)]" {
                break;
            }
            if !text.starts_with("//") {
                lines.push((name.clone(), index + 1, text.to_owned()));
            }
        }
    }
    assert!(lines.len() > 1_000, "the sources were not found");
    lines
}

/// Fails with every line that holds one of `words` outside the files that may.
fn only(words: &[&str], allowed: &[&str]) {
    let culprits: Vec<String> = code()
        .into_iter()
        .filter(|(file, _, text)| {
            !allowed.iter().any(|allowed| file.starts_with(allowed))
                && words.iter().any(|word| text.contains(word))
        })
        .map(|(file, line, text)| format!("src/{file}:{line}: {text}"))
        .collect();
    assert!(culprits.is_empty(), "only {allowed:?} may say {words:?}:\n{}", culprits.join("\n"));
}

/// Fails with every line in `files` that holds one of `words`.
fn never(files: &[&str], words: &[&str]) {
    let culprits: Vec<String> = code()
        .into_iter()
        .filter(|(file, _, text)| {
            files.iter().any(|name| file.starts_with(name)) && words.iter().any(|word| text.contains(word))
        })
        .map(|(file, line, text)| format!("src/{file}:{line}: {text}"))
        .collect();
    assert!(culprits.is_empty(), "{files:?} must not say {words:?}:\n{}", culprits.join("\n"));
}

#[test]
fn only_the_rabbitmq_broker_names_lapin() {
    only(&["lapin::", "lapin_"], &["broker/rabbit"]);
}

#[test]
fn only_one_file_uses_the_unmaintained_backoff_crate() {
    only(&["backoff::"], &["broker/rabbit/reconnect.rs"]);
}

#[test]
fn only_settle_settles_a_request() {
    only(
        &["Disposition::", ".settle(Disp"],
        &["worker/settle.rs", "worker/control.rs", "broker/", "orchestrator/", "dead_letters.rs", "pause.rs"],
    );
}

#[test]
fn only_the_configuration_reads_the_environment() {
    only(&["env::var", "env::vars"], &["config/"]);
}

#[test]
fn only_the_topology_spells_names_of_queues_and_exchanges() {
    let names = [
        "\"tasker.",
        "dead_letters.{",
        "\"steps.{",
        "\"delay.{",
        "\"step.{",
        "\"result.{",
        "\"retry.{",
        "\"dead.{",
    ];
    only(&names, &["broker/topology.rs"]);
}

#[test]
fn only_one_file_says_who_may_do_what_on_the_broker() {
    only(&["amq\\\\."], &["broker/rights.rs"]);
}

#[test]
fn only_the_metrics_register_metrics() {
    only(&["prometheus::"], &["ops/metrics.rs"]);
}

#[test]
fn worker_and_orchestrator_take_the_time_of_day_from_the_clock() {
    never(&["worker/", "orchestrator/"], &["Timestamp::now", "SystemTime"]);
}

#[test]
fn worker_and_orchestrator_do_not_know_each_other() {
    never(&["worker/"], &["orchestrator::"]);
    never(&["orchestrator/"], &["worker::"]);
}

#[test]
fn the_contract_and_the_core_of_the_orchestrator_are_pure() {
    let pure = [
        "message",
        "batch.rs",
        "decision.rs",
        "step.rs",
        "outcome.rs",
        "handler.rs",
        "retry.rs",
        "template/",
        "orchestrator/task.rs",
        "orchestrator/dag.rs",
        "orchestrator/growth.rs",
        "orchestrator/advance.rs",
        "orchestrator/by_hand.rs",
    ];
    never(&pure, &["tokio::", "std::fs", "std::net", "std::env", "sqlx", "axum"]);
}

#[test]
fn workflows_use_what_users_have() {
    let internal = [
        "crate::worker",
        "crate::broker",
        "crate::message",
        "crate::handler",
        "crate::step",
        "crate::outcome",
    ];
    never(&["workflows/"], &internal);
}

#[test]
fn every_test_that_the_threat_model_names_exists() {
    fn visit(directory: &Path, text: &mut String) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => visit(&path, text),
                false if path.extension().is_some_and(|extension| extension == "rs") => {
                    text.push_str(&fs::read_to_string(path).unwrap());
                }
                false => {}
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = String::new();
    visit(&root.join("tests"), &mut tests);
    let model = fs::read_to_string(root.join("docs/threat-model.md")).unwrap();
    let names: Vec<&str> =
        model.split('`').skip(1).step_by(2).filter(|name| name.matches('_').count() >= 3).collect();
    assert!(names.len() > 25, "{names:?}");
    let missing: Vec<&&str> = names.iter().filter(|name| !tests.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "docs/threat-model.md names tests that do not exist: {missing:?}");
    let table =
        model.split("## What somebody malicious can do").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| ")).skip(1);
    let undefended: Vec<&str> = rows.filter(|row| !row.split('|').nth(4).unwrap().contains("_")).collect();
    assert!(undefended.is_empty(), "without a test: {undefended:?}");
}

#[test]
fn no_file_is_too_long_to_read_in_one_sitting() {
    let mut longest: Vec<(usize, String)> = Vec::new();
    for (file, line, _) in code() {
        match longest.last_mut() {
            Some((lines, name)) if *name == file => *lines = line,
            _ => longest.push((line, file)),
        }
    }
    longest.retain(|(lines, _)| *lines > 600);
    assert!(longest.is_empty(), "split these: {longest:?}");
}

#[test]
fn the_design_document_says_why_each_dependency_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let section = manifest.split("\n[dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap();
    let mut wanted: Vec<&str> =
        section.lines().filter_map(|line| line.split_once(" =")).map(|(name, _)| name).collect();
    let design = fs::read_to_string(root.join("docs/design.md")).unwrap();
    let table = design.split("## Dependencies").nth(1).unwrap();
    let rows =
        table.lines().filter_map(|line| line.strip_prefix("| ")).filter_map(|line| line.split_once(" |"));
    let mut explained: Vec<&str> =
        rows.flat_map(|(names, _)| names.split(", ")).filter(|name| *name != "crate").collect();
    wanted.sort_unstable();
    explained.sort_unstable();
    assert_eq!(explained, wanted);
}
