//! `status --timing`: where a task's time went.

use std::collections::BTreeMap;

use tasker_worker_rust::api::{StepTiming, TaskTiming};

use super::output::{Table, took};

pub(super) fn print(timing: &TaskTiming) {
    println!();
    let mut table = Table::new([
        "STEP", "BEGINS", "ENQUEUED", "RETRIES", "BROKER", "PREFETCH", "RUN", "CONFIRM", "APPLY",
    ]);
    for step in &timing.steps {
        let mark = if timing.critical_path.contains(&step.name) { " *" } else { "" };
        let [enqueued, retries, broker, prefetch, run, confirm, apply] =
            step.stages().map(|(_, time)| time.map_or_else(|| "-".to_owned(), took));
        let begins = format!("+{}", took(step.begins_after_ms));
        let name = format!("{}{mark}", step.name);
        table.row([name, begins, enqueued, retries, broker, prefetch, run, confirm, apply]);
    }
    table.print();
    if !timing.critical_path.is_empty() {
        println!();
        println!("* critical path: {}", timing.critical_path.join(" > "));
        println!("  {}", summary(timing));
    }
    let clamped = timing.steps.iter().map(|step| step.clamped_ms).max().unwrap_or(0);
    if clamped > 0 {
        println!(
            "  up to {} of a stage was negative and counts as 0 ms: clocks of machines differ, or a worker was faster \
             than the broker's confirmation",
            took(clamped)
        );
    }
}

/// What the steps of the critical path spent their time with, the most first.
fn summary(timing: &TaskTiming) -> String {
    let mut spent: BTreeMap<&str, i64> = BTreeMap::new();
    let on_path = |step: &&StepTiming| timing.critical_path.contains(&step.name);
    for (stage, time) in timing.steps.iter().filter(on_path).flat_map(StepTiming::stages) {
        *spent.entry(stage).or_default() += time.unwrap_or(0);
    }
    let mut spent: Vec<_> = spent.into_iter().filter(|(_, time)| *time > 0).collect();
    spent.sort_by_key(|(_, time)| std::cmp::Reverse(*time));
    let parts: Vec<String> = spent.iter().map(|(stage, time)| format!("{stage} {}", took(*time))).collect();
    let total = spent.iter().map(|(_, time)| time).sum();
    let of = timing.total_ms.map_or_else(String::new, |whole| format!(" of {}", took(whole)));
    format!("{}{of}: {}", took(total), parts.join(", "))
}
