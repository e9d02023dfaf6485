//! Alone in its program, because the metric belongs to the whole process.

use std::fs;

use tasker_worker_rust::catalog::Catalog;
use tasker_worker_rust::ops::metrics::METRICS;

#[test]
fn the_metric_counts_the_files_that_cannot_be_used() {
    let directory = tempfile::TempDir::new().unwrap();
    let text = |name: &str| format!("name: {name}\nnamespace: ns\nversion: 1.0.0\nsteps: [{{name: a}}]\n");
    let [one, two] = ["one", "two"].map(|name| directory.path().join(format!("{name}.yaml")));
    fs::write(&one, text("one")).unwrap();
    fs::write(&two, text("two")).unwrap();
    let catalog = Catalog::load(directory.path(), None).unwrap();
    assert_eq!(METRICS.broken_templates.get(), 0);

    fs::write(&one, "version: x\nsteps: 1\n").unwrap();
    fs::remove_file(&two).unwrap();
    catalog.reload();
    assert_eq!(METRICS.broken_templates.get(), 2, "two files, however many mistakes");

    fs::write(&one, text("one")).unwrap();
    fs::write(&two, text("two")).unwrap();
    catalog.reload();
    assert_eq!(METRICS.broken_templates.get(), 0);
}
