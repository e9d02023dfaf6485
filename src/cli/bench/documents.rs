//! The results as documents: JSON, plots, and the tables of `performance.md`.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::figure::{COLUMNS, Figure};
use super::{Answer, svg};

/// Between these lines of `performance.md` the tables are written.
const BEGIN: &str = "<!-- written by `make bench` -->";
const END: &str = "<!-- end of what `make bench` writes -->";

pub(super) fn write(directory: &Path, results: &Value, figures: &[Figure]) -> Answer {
    let plots = directory.join("performance");
    fs::create_dir_all(&plots)?;
    fs::write(plots.join("results.json"), format!("{results:#}\n"))?;
    let chosen = |workload: &str, unit: &str| -> Vec<&Figure> {
        figures.iter().filter(|figure| figure.workload == workload && figure.unit == unit).collect()
    };
    for (name, title, workload, unit) in [
        ("throughput", "W1: throughput", "W1", "steps/s"),
        ("latency", "W2: latency", "W2", "ms"),
        ("workflows", "W4: workflows one at a time", "W4", "ms"),
    ] {
        let figures = chosen(workload, unit);
        if !figures.is_empty() {
            fs::write(plots.join(format!("{name}.svg")), svg::bars(title, &figures))?;
        }
    }
    let growth: Vec<&Figure> = figures.iter().filter(|figure| figure.at.is_some()).collect();
    if !growth.is_empty() {
        fs::write(plots.join("growth.svg"), svg::lines("W6: growth", &growth))?;
    }
    let document = directory.join("performance.md");
    let text = fs::read_to_string(&document)?;
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) =
        parts.ok_or_else(|| format!("{} has no place for the tables", document.display()))?;
    fs::write(&document, format!("{before}{BEGIN}\n\n{}{END}{after}", tables(results, figures)))?;
    Ok(())
}

fn tables(results: &Value, figures: &[Figure]) -> String {
    let said = |name: &str| results[name].as_str().unwrap_or("").to_owned();
    let started: String = said("started_at").chars().take(16).collect();
    let mut text =
        format!("Version {}, {}, {}; {started}.\n", said("version"), said("broker"), said("machine"));
    let mut workload = "";
    for figure in figures {
        if figure.workload != workload {
            workload = figure.workload;
            let columns = &COLUMNS[1..];
            text.push_str(&format!("\n### {workload}\n\n| {} |\n", columns.join(" | ")));
            text.push_str(&format!("|{}\n", "---|".repeat(columns.len())));
        }
        text.push_str(&format!("| {} |\n", figure.cells()[1..].join(" | ")));
    }
    text.push('\n');
    text
}
