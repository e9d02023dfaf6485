//! Alerts and dashboard ask for metrics that exist, and every alert has its runbook.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use serde_json::Value;
use tasker_worker_rust::ops::metrics::CATALOGUE;

const RULES: &str = "helm/tasker-worker-rust/rules/tasker.yaml";
const DASHBOARD: &str = "helm/tasker-worker-rust/dashboards/tasker.json";

fn text(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .expect("the file is in the repository")
}

/// The words of a text that are metrics of ours, without the endings of a histogram's series.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_');
    let ours = words.filter(|word| word.starts_with("tasker_"));
    ours.map(|word| {
        let series = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end));
        series.unwrap_or(word).to_owned()
    })
    .collect()
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_exist() {
    let known: BTreeSet<String> = CATALOGUE.iter().map(|(name, ..)| (*name).to_owned()).collect();
    for path in [RULES, DASHBOARD, "helm/tasker-worker-rust/templates/autoscaling.yaml"] {
        let asked = metrics(&text(path));
        assert!(!asked.is_empty(), "{path} was not understood");
        let unknown: Vec<_> = asked.difference(&known).collect();
        assert!(unknown.is_empty(), "{path} asks for {unknown:?}");
    }
}

#[test]
fn the_dashboard_shows_every_metric_but_those_that_only_describe() {
    let shown = metrics(&text(DASHBOARD));
    let missing: Vec<&str> =
        CATALOGUE.iter().map(|(name, ..)| *name).filter(|name| !shown.contains(*name)).collect();
    let describing = ["tasker_worker_steps_per_second", "tasker_worker_target_steps_per_second"];
    assert_eq!(missing, describing, "add a panel, or say here why there is none");
}

#[test]
fn the_dashboards_panels_do_not_overlap_and_say_what_they_show() {
    let dashboard: Value = serde_json::from_str(&text(DASHBOARD)).expect("the dashboard is JSON");
    let panels = dashboard["panels"].as_array().expect("a dashboard has panels");
    let (mut taken, mut ids) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        let title = panel["title"].as_str().expect("a panel has a title");
        assert!(ids.insert(panel["id"].as_u64().expect("a panel has an id")), "{title} has another's id");
        let at = |key: &str| panel["gridPos"][key].as_u64().expect("a panel has a place");
        assert!(at("x") + at("w") <= 24, "{title} is too wide");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "{title} overlaps another");
            }
        }
        if panel["type"] != "row" {
            assert!(panel["description"].as_str().is_some_and(|text| !text.is_empty()), "{title}");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        }
    }
}

#[test]
fn the_guide_has_every_metric_as_the_code_has_it() {
    let mut table = "| metric | kind | labels | |\n|---|---|---|---|\n".to_owned();
    for (name, kind, labels, help) in CATALOGUE {
        let kind = kind.trim_start_matches("Int").trim_end_matches("Vec").to_lowercase();
        writeln!(table, "| `{name}` | {kind} | {} | {} |", labels.join(", "), help.trim()).unwrap();
    }
    let section = "docs/operations.md, below \"## Metrics\"";
    assert!(text("docs/operations.md").contains(&table), "this belongs into {section}:\n\n{table}");
}

#[test]
fn every_alert_has_its_runbook() {
    let rules = text(RULES);
    let alerts: BTreeSet<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let operations = text("docs/operations.md");
    let runbooks: BTreeSet<&str> = operations
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .filter(|name| name.starts_with("Tasker"))
        .collect();
    assert!(!alerts.is_empty());
    assert_eq!(runbooks, alerts);
}
