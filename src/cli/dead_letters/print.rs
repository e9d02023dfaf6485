//! What the command prints.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tasker_worker_rust::broker::HeaderValue;
use tasker_worker_rust::dead_letters::Letter;
use tasker_worker_rust::message::Json;

use super::super::output::{self, Table, brief};
use super::super::{Answer, Output};

/// What became of one letter.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) message_id: String,
    pub(super) namespace: String,
    pub(super) step: Option<String>,
    pub(super) outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) why: Option<String>,
}

impl Row {
    pub(super) fn of(letter: &Letter) -> Self {
        Self {
            message_id: letter.message_id.clone(),
            namespace: letter.namespace.clone(),
            step: letter.step.clone(),
            outcome: "",
            why: None,
        }
    }

    pub(super) fn end(self, outcome: &'static str, why: Option<String>) -> Self {
        Self { outcome, why, ..self }
    }
}

/// Prints what became of each letter, and how many there were of each kind.
pub(super) fn report(rows: &[Row], output: Output) -> Answer {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for row in rows {
        *counts.entry(row.outcome).or_default() += 1;
    }
    match output {
        Output::Json => output::json(&json!({ "letters": rows, "counts": counts })),
        Output::Text => {
            let mut table = Table::new(["MESSAGE-ID", "NAMESPACE", "STEP", "OUTCOME", "WHY"]);
            for row in rows {
                table.row([
                    row.message_id.clone(),
                    row.namespace.clone(),
                    row.step.clone().unwrap_or_default(),
                    row.outcome.to_owned(),
                    row.why.clone().unwrap_or_default(),
                ]);
            }
            if !rows.is_empty() {
                table.print();
            }
            let counts: Vec<String> =
                counts.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
            println!(
                "{}",
                if counts.is_empty() { "no dead letter fits".to_owned() } else { counts.join(", ") }
            );
        }
    }
    let no = ["skipped", "failed", "kept"].iter().any(|outcome| counts.contains_key(outcome));
    if no { Answer::No } else { Answer::Yes }
}

/// Prints letters, up to a limit, and how many there are of each kind.
pub(super) fn list(letters: &[&Letter], limit: usize, unseen: u64, output: Output) {
    let mut counts: BTreeMap<[&str; 4], u64> = BTreeMap::new();
    for letter in letters {
        let (step, code) = (letter.step.as_deref(), letter.error.code.as_deref());
        let group =
            [letter.namespace.as_str(), step.unwrap_or("-"), letter.reason.as_str(), code.unwrap_or("-")];
        *counts.entry(group).or_default() += 1;
    }
    let shown = &letters[..limit.min(letters.len())];
    match output {
        Output::Json => {
            let summary: Vec<Value> = counts
                .iter()
                .map(|([namespace, step, reason, code], count)| {
                    json!({
                        "namespace": namespace, "step": step, "reason": reason, "code": code, "count": count,
                    })
                })
                .collect();
            output::json(&json!({ "letters": shown, "summary": summary, "not_looked_at": unseen }));
        }
        Output::Text => {
            print_letters(shown);
            let mut table = Table::new(["COUNT", "NAMESPACE", "STEP", "REASON", "CODE"]);
            for (group, count) in &counts {
                let [namespace, step, reason, code] = group.map(str::to_owned);
                table.row([count.to_string(), namespace, step, reason, code]);
            }
            table.print();
            if shown.len() < letters.len() {
                println!("{} of {} are listed", shown.len(), letters.len());
            }
            if unseen > 0 {
                println!("{unseen} more could not be looked at; replay or discard some of these first");
            }
        }
    }
}

fn print_letters(letters: &[&Letter]) {
    if letters.is_empty() {
        println!("no dead letter fits");
        return;
    }
    let titles =
        ["NAMESPACE", "STEP", "REASON", "CODE", "ERROR", "ATTEMPTS", "FIRST", "LAST", "MESSAGE-ID", "TASK"];
    // What is left in the end fits 80 columns: what the other commands want, and what it is about.
    let spare = &["TASK", "FIRST", "ATTEMPTS", "LAST", "NAMESPACE", "CODE", "ERROR", "REASON"];
    let mut table = Table::new(titles).spare(spare);
    let time = |at: Option<Timestamp>| at.map_or_else(|| "-".to_owned(), |at| format!("{at:.0}"));
    for letter in letters {
        table.row([
            letter.namespace.clone(),
            letter.step.clone().unwrap_or_else(|| "-".to_owned()),
            letter.reason.clone(),
            letter.error.code.as_deref().map_or_else(|| "-".to_owned(), |code| brief(&json!(code), 30)),
            brief(&json!(letter.error.message.lines().next().unwrap_or_default()), 60),
            letter.attempts.map_or_else(|| "-".to_owned(), |attempts| attempts.to_string()),
            time(letter.first_at),
            time(letter.last_at),
            letter.message_id.clone(),
            letter.task_uuid.map_or_else(|| "-".to_owned(), |uuid| uuid.to_string()),
        ]);
    }
    table.print();
    println!();
}

/// Prints everything about letters.
pub(super) fn show(letters: &[&Letter], output: Output) {
    match output {
        Output::Json => output::json(&letters.iter().copied().map(Whole::of).collect::<Vec<_>>()),
        Output::Text => letters.iter().copied().for_each(print_whole),
    }
}

/// Everything about a letter. A body that is no JSON is shown as text.
#[derive(Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    letter: &'a Letter,
    headers: Value,
    body: Json,
}

impl<'a> Whole<'a> {
    fn of(letter: &'a Letter) -> Self {
        let headers = letter.properties.headers.iter().map(|(name, value)| {
            let value = match value {
                HeaderValue::Text(text) => json!(text),
                HeaderValue::Integer(number) => json!(number),
            };
            (name.to_owned(), value)
        });
        let body = serde_json::from_slice(&letter.body)
            .unwrap_or_else(|_| Json::from(json!(String::from_utf8_lossy(&letter.body))));
        Self { letter, headers: headers.collect(), body }
    }
}

fn print_whole(letter: &Letter) {
    println!("message id  {}", letter.message_id);
    println!("namespace   {}", letter.namespace);
    for (name, value) in [
        ("step", letter.step.clone()),
        ("step uuid", letter.step_uuid.map(|uuid| uuid.to_string())),
        ("task", letter.task_uuid.map(|uuid| uuid.to_string())),
        ("attempts", letter.attempts.map(|attempts| attempts.to_string())),
        ("replays", Some(letter.replays.to_string())),
        ("reason", Some(letter.reason.clone())),
        ("error type", Some(letter.error.error_type.clone())),
        ("code", letter.error.code.clone()),
        ("why", Some(letter.error.message.clone())),
    ] {
        if let Some(value) = value {
            println!("{name:<11} {value}");
        }
    }
    println!("headers");
    for (name, value) in letter.properties.headers.iter() {
        match value {
            HeaderValue::Text(text) => println!("  {name}: {text}"),
            HeaderValue::Integer(number) => println!("  {name}: {number}"),
        }
    }
    println!("body");
    let text = String::from_utf8_lossy(&letter.body);
    match serde_json::from_str::<&RawValue>(&text) {
        Ok(_) => println!("{}\n", indented(&text)),
        Err(_) => println!("{text}\n"),
    }
}

/// JSON over many lines, its numbers untouched: they may have more digits than a parser keeps.
fn indented(json: &str) -> String {
    let (mut text, mut depth, mut in_string, mut escaped) = (String::new(), 0, false, false);
    let new_line = |depth: usize| format!("\n{}", "  ".repeat(depth));
    let mut characters = json.chars().peekable();
    while let Some(character) = characters.next() {
        if in_string {
            text.push(character);
            in_string = escaped || character != '"';
            escaped = !escaped && character == '\\';
            continue;
        }
        match character {
            '{' | '[' => {
                while characters.next_if(|next| next.is_ascii_whitespace()).is_some() {}
                text.push(character);
                if let Some(end) = characters.next_if(|next| matches!(next, '}' | ']')) {
                    text.push(end);
                } else {
                    depth += 1;
                    text.push_str(&new_line(depth));
                }
            }
            '}' | ']' => {
                depth -= 1;
                text.push_str(&new_line(depth));
                text.push(character);
            }
            ',' => text.push_str(&format!(",{}", new_line(depth))),
            ':' => text.push_str(": "),
            _ if character.is_ascii_whitespace() => {}
            _ => {
                in_string = character == '"';
                text.push(character);
            }
        }
    }
    text
}
