//! A template's steps as a picture: for a terminal, for Markdown, for Graphviz.

use std::fmt::Write;

use super::{StepTemplate, Template};

/// The steps level by level, each with the steps it waits for; below them what undoes what.
pub fn graph_ascii(template: &Template) -> String {
    let levels = template.levels();
    let undoing = undoing(template);
    let names = levels.iter().flatten().chain(&undoing).map(|step| step.name.chars().count());
    let width = names.max().unwrap_or_default();
    let mut text = format!("{}/{} {}\n\n", template.namespace, template.name, template.version);
    for (number, level) in levels.iter().enumerate() {
        let mut label = (number + 1).to_string();
        for step in level {
            let arrow = if step.dependencies.is_empty() { "" } else { "  <-- " };
            let line = format!("{label:>3}  {:width$}{arrow}{}", step.name, step.dependencies.join(", "));
            text.push_str(line.trim_end());
            text.push('\n');
            label.clear();
        }
    }
    if !undoing.is_empty() {
        text.push_str("\nwhen the task fails\n");
        for step in undoing {
            let target = step.compensates.as_deref().unwrap_or_default();
            line(&mut text, format_args!("     {:width$}  ~~> undoes {target}", step.name));
        }
    }
    text
}

/// A Mermaid flowchart; dotted arrows undo.
pub fn graph_mermaid(template: &Template) -> String {
    let mut text = String::from("flowchart TD\n");
    for (index, step) in template.steps.iter().enumerate() {
        let name = step.name.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;");
        line(&mut text, format_args!("    s{index}[\"{name}\"]"));
    }
    for (from, to, undoes) in edges(template) {
        let arrow = if undoes { "-. undoes .->" } else { "-->" };
        line(&mut text, format_args!("    s{from} {arrow} s{to}"));
    }
    text
}

/// A Graphviz digraph; dashed arrows undo.
pub fn graph_dot(template: &Template) -> String {
    let quoted = |name: &str| format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""));
    let mut text = format!("digraph {} {{\n    node [shape=box];\n", quoted(&template.name));
    for step in &template.steps {
        line(&mut text, format_args!("    {};", quoted(&step.name)));
    }
    for (from, to, undoes) in edges(template) {
        let style = if undoes { " [style=dashed, label=\"undoes\", constraint=false]" } else { "" };
        let (from, to) = (quoted(&template.steps[from].name), quoted(&template.steps[to].name));
        line(&mut text, format_args!("    {from} -> {to}{style};"));
    }
    text.push_str("}\n");
    text
}

/// Compensations, in the order they would run.
fn undoing(template: &Template) -> Vec<&StepTemplate> {
    let order = template.topological_order();
    order
        .into_iter()
        .filter_map(|name| template.step(name))
        .filter(|step| step.compensates.is_some())
        .collect()
}

/// From what comes first to what waits for it, and from a compensation to what it undoes.
fn edges(template: &Template) -> Vec<(usize, usize, bool)> {
    let index_of = |name: &str| template.steps.iter().position(|step| step.name == name);
    let mut edges = Vec::new();
    for (index, step) in template.steps.iter().enumerate() {
        edges.extend(step.dependencies.iter().filter_map(|on| index_of(on)).map(|from| (from, index, false)));
        edges.extend(step.compensates.as_deref().and_then(index_of).map(|target| (index, target, true)));
    }
    edges
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("writing to a string does not fail");
}
