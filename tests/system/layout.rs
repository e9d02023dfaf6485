//! The rules about who may import, name or do what; see `docs/design.md`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use syn::{Item, UseTree};

/// The Rust files below a folder of this package: name within the folder, and text.
fn files(folder: &str) -> Vec<(String, String)> {
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
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files = Vec::new();
    visit(&root, &mut files);
    let name = |file: &Path| file.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
    files.iter().map(|file| (name(file), fs::read_to_string(file).unwrap())).collect()
}

/// Every line of code under `src`, without comments: (file, line number, text).
fn code() -> Vec<(String, usize, String)> {
    let mut lines = Vec::new();
    for (name, text) in files("src") {
        let mut tests = text.lines().skip_while(|line| *line != "#[cfg(test)]").skip(1);
        assert!(
            tests.next().is_none_or(|line| line == "mod tests {"),
            "the unit tests of {name} stand at its foot"
        );
        for (index, line) in text.lines().enumerate() {
            let text = line.trim_start();
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

/// Everything that is imported under `src`, from the crate's root on: `crate::broker::Acker`, `std::fs`. Reading all of it
/// takes seconds.
static IMPORTS: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
    let mut found = Vec::new();
    for (file, text) in files("src") {
        let mut here =
            format!("crate::{}", file.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::"));
        if file == "lib.rs" {
            here = "crate".to_owned();
        }
        let items = syn::parse_file(&text).unwrap().items;
        for item in &items {
            if let Item::Use(import) = item {
                flatten(&import.tree, &here, String::new(), &mut |path| found.push((file.clone(), path)));
            }
        }
    }
    assert!(found.len() > 1_000, "the imports were not found");
    found
});

fn flatten(tree: &UseTree, here: &str, path: String, found: &mut impl FnMut(String)) {
    let join = |path: String, name: &str| match name {
        "self" if path.is_empty() => here.to_owned(),
        "super" => {
            let below = if path.is_empty() { here } else { &path };
            below.rsplit_once("::").map_or("crate", |(above, _)| above).to_owned()
        }
        _ if path.is_empty() => name.to_owned(),
        _ => format!("{path}::{name}"),
    };
    match tree {
        UseTree::Path(tree) => flatten(&tree.tree, here, join(path, &tree.ident.to_string()), found),
        UseTree::Group(group) => group.items.iter().for_each(|tree| flatten(tree, here, path.clone(), found)),
        UseTree::Name(name) => found(join(path, &name.ident.to_string())),
        UseTree::Rename(name) => found(join(path, &name.ident.to_string())),
        UseTree::Glob(_) => found(path),
    }
}

/// Fails with every import of `files` that is `forbidden`.
fn no_import(files: &[&str], forbidden: impl Fn(&str) -> bool) {
    let of_files = IMPORTS.iter().filter(|(file, _)| files.iter().any(|name| file.starts_with(name)));
    let culprits: Vec<_> = of_files.filter(|(_, path)| forbidden(path)).collect();
    assert!(culprits.is_empty(), "{files:?} must not import {culprits:#?}");
    for name in files {
        assert!(IMPORTS.iter().any(|(file, _)| file.starts_with(name)), "there is no {name} any more");
    }
}

fn is_below(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

#[test]
fn only_the_rabbitmq_broker_names_lapin() {
    only(&["lapin::", "lapin_", "use lapin", "use deadpool"], &["broker/rabbit"]);
}

#[test]
fn only_one_file_uses_the_unmaintained_backoff_crate() {
    only(&["backoff::"], &["broker/rabbit/reconnect.rs"]);
}

#[test]
fn only_settle_settles_a_request() {
    only(
        &["Disposition::", ".settle("],
        &["worker/settle.rs", "worker/control.rs", "broker/", "orchestrator/", "dead_letters.rs", "pause.rs"],
    );
}

#[test]
fn only_the_configuration_reads_the_environment() {
    only(&["env::var", "env::set_var", "use std::env"], &["config/"]);
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
    only(&["prometheus::", "use prometheus"], &["ops/metrics.rs"]);
}

#[test]
fn worker_and_orchestrator_take_the_time_of_day_from_the_clock() {
    never(&["worker/", "orchestrator/"], &["Timestamp::now", "SystemTime"]);
}

#[test]
fn worker_and_orchestrator_do_not_know_each_other() {
    no_import(&["worker/"], |path| is_below(path, "crate::orchestrator"));
    no_import(&["orchestrator/"], |path| is_below(path, "crate::worker"));
    never(&["worker/"], &["orchestrator::"]);
    never(&["orchestrator/"], &["worker::"]);
}

/// What does no I/O and uses no runtime.
const PURE: [&str; 19] = [
    "message.rs",
    "message/",
    "batch.rs",
    "checkpoint.rs",
    "control.rs",
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
    "orchestrator/answer.rs",
    "orchestrator/by_hand.rs",
    "orchestrator/checkpoint.rs",
    "orchestrator/stale.rs",
];

#[test]
fn the_contract_and_the_core_of_the_orchestrator_are_pure() {
    let outside = [
        "tokio",
        "std::fs",
        "std::net",
        "std::env",
        "std::process",
        "std::thread",
        "sqlx",
        "axum",
        "hyper",
        "lapin",
    ];
    no_import(&PURE, |path| outside.iter().any(|module| is_below(path, module)));
    never(&PURE, &["tokio::", "std::fs::", "std::net::", "std::env::", "SystemTime::now"]);
    let inside = [
        "broker",
        "catalog",
        "cli",
        "client",
        "dead_letters",
        "ops",
        "pause",
        "worker",
        "workflows",
        "orchestrator::store",
    ];
    no_import(&PURE, |path| inside.iter().any(|module| is_below(path, &format!("crate::{module}"))));
}

#[test]
fn workflows_use_what_users_have() {
    let lib = files("src").into_iter().find(|(name, _)| name == "lib.rs").unwrap().1;
    let private: Vec<&str> =
        lib.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';')).collect();
    assert!(!private.is_empty(), "lib.rs was not understood");
    let internal = ["worker", "broker", "message", "handler", "step", "outcome", "ops", "orchestrator"];
    let of_us = |path: &str| {
        [&internal[..], &private].concat().iter().any(|m| is_below(path, &format!("crate::{m}")))
    };
    no_import(&["workflows/"], of_us);
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

/// Above 400 lines, and why each is read better as one.
const LONG: [(&str, &str); 4] = [
    ("src/broker/topology.rs", "every name, argument and binding on RabbitMQ at one glance"),
    ("src/config/mod.rs", "every setting with its type, range and default, once"),
    ("src/orchestrator/dag.rs", "one type, and the tests of its order"),
    (
        "tests/orchestrator/simulation.rs",
        "a hostile broker, what steps do under it, and what must hold, as one run",
    ),
];

#[test]
fn no_file_is_too_long_to_read_in_one_sitting() {
    let folders = ["src", "tests", "benches", "examples"];
    let files = folders.iter().flat_map(|folder| files(folder).into_iter().map(move |file| (folder, file)));
    let mut long: Vec<(String, usize)> =
        files.map(|(folder, (name, text))| (format!("{folder}/{name}"), text.lines().count())).collect();
    long.retain(|(_, lines)| *lines > 400);
    long.sort();
    assert!(long.iter().all(|(_, lines)| *lines <= 600), "split what is above 600 lines: {long:?}");
    let names: Vec<&str> = long.iter().map(|(name, _)| name.as_str()).collect();
    let listed = LONG.map(|(name, _)| name);
    assert_eq!(names, listed, "split what is above 400 lines, or say why not; strike out what no longer is");
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
