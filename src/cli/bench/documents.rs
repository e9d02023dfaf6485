//! The results as documents: JSON, plots, and the tables of `performance.md`.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::json;

use super::figure::{COLUMNS, Figure, Origin};
use super::{Answer, svg};

/// Between these lines of `performance.md` the tables are written.
const BEGIN: &str = "<!-- written by `make bench` -->";
const END: &str = "<!-- end of what `make bench` writes -->";

/// Writes `measured` beside what the documents hold of other cases, or instead of everything.
pub(super) fn write(directory: &Path, measured: &[Figure], everything: bool) -> Answer {
    let plots = directory.join("performance");
    fs::create_dir_all(&plots)?;
    let results = plots.join("results.json");
    let earlier = if everything || !results.exists() { Vec::new() } else { read(&results)? };
    let figures = &merged(earlier, measured);
    fs::write(&results, format!("{:#}\n", json!({ "figures": figures })))?;
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
    fs::write(&document, format!("{before}{BEGIN}\n{}{END}{after}", tables(figures)))?;
    Ok(())
}

fn read(path: &Path) -> Answer<Vec<Figure>> {
    #[derive(Deserialize)]
    struct Results {
        figures: Vec<Figure>,
    }
    let results: Results = serde_json::from_str(&fs::read_to_string(path)?)
        .map_err(|error| format!("{} holds no results to add to; remove it: {error}", path.display()))?;
    Ok(results.figures)
}

/// The earlier figures but for those measured again, workload by workload.
fn merged(earlier: Vec<Figure>, measured: &[Figure]) -> Vec<Figure> {
    let mut figures = earlier;
    for figure in measured {
        match figures.iter_mut().find(|earlier| figure.replaces(earlier)) {
            Some(place) => *place = figure.clone(),
            None => figures.push(figure.clone()),
        }
    }
    figures.sort_by(|a, b| a.workload.cmp(&b.workload));
    figures
}

fn tables(figures: &[Figure]) -> String {
    let mut text = String::new();
    for figures in figures.chunk_by(|a, b| a.workload == b.workload) {
        let columns = &COLUMNS[1..];
        text.push_str(&format!("\n### {}\n\n", figures[0].workload));
        let mut origins: Vec<&Origin> = figures.iter().filter_map(|figure| figure.origin.as_ref()).collect();
        origins.dedup();
        for Origin { version, broker, machine, started, quick } in origins {
            let quick = if *quick { "; quick form" } else { "" };
            text.push_str(&format!("Version {version}, {broker}, {machine}; {started}{quick}.\n"));
        }
        text.push_str(&format!("\n| {} |\n|{}\n", columns.join(" | "), "---|".repeat(columns.len())));
        for figure in figures {
            text.push_str(&format!("| {} |\n", figure.cells()[1..].join(" | ")));
        }
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_replaces_its_own_figures_and_leaves_the_others() {
        let figure = |workload, case: &str, ours: f64| {
            Figure::new(workload, case, "ms", &[(ours, Some(1.0))], None).unwrap()
        };
        let folder = std::env::temp_dir().join(format!("bench-documents-{}", uuid::Uuid::new_v4()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("performance.md"), format!("before\n{BEGIN}\nold\n{END}\nafter\n")).unwrap();
        write(&folder, &[figure("W2", "a", 1.0), figure("W1", "a", 2.0), figure("W1", "b", 3.0)], true)
            .unwrap();
        write(&folder, &[figure("W1", "a", 7.0)], false).unwrap();

        let said = |workload: &str, case: &str, figures: &[Figure]| {
            let of = figures.iter().find(|figure| figure.workload == workload && figure.case == case);
            of.map(|figure| figure.ours.median)
        };
        let figures = read(&folder.join("performance/results.json")).unwrap();
        assert_eq!(figures.len(), 3);
        assert_eq!(
            [said("W1", "a", &figures), said("W1", "b", &figures), said("W2", "a", &figures)],
            [Some(7.0), Some(3.0), Some(1.0)]
        );
        let text = fs::read_to_string(folder.join("performance.md")).unwrap();
        assert!(
            text.starts_with("before\n") && text.ends_with("\nafter\n") && !text.contains("old"),
            "{text}"
        );
        assert!(text.contains("| a | ms | 7.00 ") && text.contains("| b | ms | 3.00 "), "{text}");

        write(&folder, &[figure("W1", "a", 8.0)], true).unwrap();
        assert_eq!(read(&folder.join("performance/results.json")).unwrap().len(), 1);
        fs::remove_dir_all(&folder).unwrap();
    }
}
