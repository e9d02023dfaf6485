//! A scenario's figures, for people and for scripts.

use serde_json::{Map, Value, json};

/// What a scenario found.
pub(crate) struct Report {
    name: &'static str,
    figures: Vec<(String, Value, &'static str)>,
    problems: Vec<String>,
}

impl Report {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, figures: Vec::new(), problems: Vec::new() }
    }

    pub(crate) fn figure(&mut self, what: impl Into<String>, value: impl Into<Value>, unit: &'static str) {
        self.figures.push((what.into(), value.into(), unit));
    }

    /// Count, median, 99th percentile and maximum of some times.
    pub(crate) fn times(&mut self, what: impl Into<String>, mut milliseconds: Vec<i64>) {
        milliseconds.sort_unstable();
        let Some(last) = milliseconds.len().checked_sub(1) else { return };
        let [p50, p99, max] = [50, 99, 100].map(|share| milliseconds[(last * share).div_ceil(100)]);
        self.figure(what, json!({ "times": last + 1, "p50": p50, "p99": p99, "max": max }), "ms");
    }

    pub(crate) fn problem(&mut self, text: impl Into<String>) {
        self.problems.push(text.into());
    }

    /// Fails the scenario unless a count is as expected.
    pub(crate) fn expect(&mut self, what: &str, found: impl Into<i64>, expected: i64) {
        let found = found.into();
        self.figure(what, found, "");
        if found != expected {
            self.problem(format!("{what}: {found}, expected {expected}"));
        }
    }

    /// Fails the scenario when a figure is above its limit.
    pub(crate) fn at_most(&mut self, what: &str, found: i64, limit: i64, unit: &'static str) {
        self.figure(what, found, unit);
        if found > limit {
            self.problem(format!("{what}: {found} {unit}, expected at most {limit} {unit}"));
        }
    }

    pub(crate) fn passed(&self) -> bool {
        self.problems.is_empty()
    }

    pub(crate) fn print(&self) {
        println!("\nchaos: {}", self.name);
        let width = self.figures.iter().map(|(what, ..)| what.len()).max().unwrap_or(0);
        for (what, value, unit) in &self.figures {
            match value.as_object() {
                None => println!("  {what:width$}  {value:>6} {unit}"),
                Some(times) => println!(
                    "  {what:width$}  p50 {:>5}, p99 {:>5}, max {:>5} {unit} ({} times)",
                    times["p50"], times["p99"], times["max"], times["times"]
                ),
            }
        }
        for problem in self.problems.iter().take(20) {
            println!("  FAILED: {problem}");
        }
    }

    pub(crate) fn json(&self) -> Value {
        let figures: Map<String, Value> = self
            .figures
            .iter()
            .map(|(what, value, unit)| (format!("{what} {unit}").trim_end().to_owned(), value.clone()))
            .collect();
        json!({ "scenario": self.name, "passed": self.passed(), "figures": figures, "problems": self.problems })
    }
}
