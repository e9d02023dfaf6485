//! A template's steps as a picture: for a terminal, for Markdown, for Graphviz, for a browser.

use std::collections::BTreeMap;
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
        line(&mut text, format_args!("    s{index}[\"{}\"]", escaped(&step.name)));
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

/// A picture for browsers and documents: levels from top to bottom, dashed lines undo.
pub fn graph_svg(template: &Template) -> String {
    const HEIGHT: usize = 36;
    const GAP: usize = 48;
    let mut rows = template.levels();
    rows.push(undoing(template));
    rows.retain(|row| !row.is_empty());
    // Wide enough for the name in the font below.
    let width_of = |step: &StepTemplate| step.name.chars().count() * 8 + 24;
    let width_of_row = |row: &[&StepTemplate]| row.iter().map(|step| width_of(step) + 24).sum::<usize>();
    let width = rows.iter().map(|row| width_of_row(row)).max().unwrap_or_default() + 24;
    let height = rows.len() * (HEIGHT + GAP);
    let mut boxes = BTreeMap::new();
    for (row, steps) in rows.iter().enumerate() {
        let mut left = (width + 24 - width_of_row(steps)) / 2;
        for step in steps {
            boxes.insert(step.name.as_str(), (left, row * (HEIGHT + GAP) + GAP / 2, width_of(step)));
            left += width_of(step) + 24;
        }
    }
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"monospace\" font-size=\"13\">\n<title>{}</title>\n\
         <marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"8\" markerHeight=\"8\" \
         orient=\"auto\"><path d=\"M0 0 8 4 0 8z\"/></marker>\n",
        escaped(&format!("{}/{} {}", template.namespace, template.name, template.version))
    );
    for (from, to, undoes) in edges(template) {
        let [from, to] = [from, to].map(|step| boxes[template.steps[step].name.as_str()]);
        // What undoes stands below; every other arrow points down.
        let (y1, y2) = if undoes { (from.1, to.1 + HEIGHT) } else { (from.1 + HEIGHT, to.1) };
        let (x1, x2) = (from.0 + from.2 / 2, to.0 + to.2 / 2);
        let dashes = if undoes { " stroke-dasharray=\"4\"" } else { "" };
        line(
            &mut text,
            format_args!(
                "<line x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\" stroke=\"black\"{dashes} marker-end=\"url(#tip)\"/>"
            ),
        );
    }
    for (name, (left, top, width)) in &boxes {
        let (middle, baseline) = (left + width / 2, top + HEIGHT / 2 + 4);
        line(
            &mut text,
            format_args!(
                "<rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{HEIGHT}\" fill=\"white\" stroke=\"black\"/>\
                 <text x=\"{middle}\" y=\"{baseline}\" text-anchor=\"middle\">{}</text>",
                escaped(name)
            ),
        );
    }
    text + "</svg>\n"
}

/// For a label within HTML or XML.
fn escaped(name: &str) -> String {
    name.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;")
}
