//! `docs/messages.md` says what the code does.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tasker_worker_rust::broker::topology::{DELIVERY_LIMIT, ExchangeKind, Names, Queue, QueueKind, Topology};
use tasker_worker_rust::message::{
    CORRELATION_ID_BYTES, ControlMessage, StepExecutionRequest, StepExecutionResult,
};
use tasker_worker_rust::retry::Ladder;

use crate::values::{self, sent};

const DOCUMENT: &str = include_str!("../../docs/messages.md");

/// A row of a table, without its backticks where it has no other text.
type Row = Vec<String>;

/// All tables with this header, in order.
fn tables(header: &str) -> Vec<Vec<Row>> {
    let mut lines = DOCUMENT.lines();
    let mut tables = Vec::new();
    while lines.any(|line| line == header) {
        let rows = lines.by_ref().skip(1).take_while(|line| line.starts_with('|'));
        tables.push(rows.map(cells).collect());
    }
    assert!(!tables.is_empty(), "there is no table {header}");
    tables
}

fn table(header: &str) -> Vec<Row> {
    let mut tables = tables(header);
    assert_eq!(tables.len(), 1, "tables {header}");
    tables.remove(0)
}

fn cells(line: &str) -> Row {
    line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
}

/// A cell's text in backticks.
fn code(cell: &str) -> &str {
    let text = cell.strip_prefix('`').and_then(|cell| cell.strip_suffix('`'));
    text.unwrap_or_else(|| panic!("{cell:?} is not in backticks"))
}

/// The fenced blocks of a language.
fn blocks(language: &str) -> Vec<String> {
    let start = format!("```{language}\n");
    let found = DOCUMENT.split(&start).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
    let blocks: Vec<_> = found.collect();
    assert!(!blocks.is_empty(), "there is no block of {language}");
    blocks
}

/// The texts in double quotes, or the enum variants, between a line with `start` and the next with `end`.
fn source(source: &str, start: &str, end: &str) -> Vec<String> {
    let lines = source.lines().skip_while(|line| !line.starts_with(start)).skip(1);
    let found = lines.take_while(|line| !line.starts_with(end)).filter_map(|line| {
        let line = line.trim();
        match line.split('"').nth(1) {
            Some(quoted) => Some(quoted.to_owned()),
            None => line
                .strip_suffix(',')
                .filter(|name| name.chars().all(char::is_alphanumeric))
                .map(str::to_owned),
        }
    });
    found.collect()
}

fn request(value: &Value) -> Result<Value, String> {
    StepExecutionRequest::decode(value.to_string().as_bytes()).map(|r| sent(&r)).map_err(|e| e.to_string())
}

fn result(value: &Value) -> Result<Value, String> {
    StepExecutionResult::decode(value.to_string().as_bytes()).map(|r| sent(&r)).map_err(|e| e.to_string())
}

fn control(value: &Value) -> Result<Value, String> {
    serde_json::from_value::<ControlMessage>(value.clone()).map(|c| sent(&c)).map_err(|e| e.to_string())
}

#[test]
fn every_json_block_is_what_it_says_and_is_written_just_so() {
    let requests = blocks("json request");
    let all = DOCUMENT.matches("```json").count();
    assert_eq!(all, requests.len() + blocks("json result").len() + blocks("json control").len());
    for block in &requests {
        let value: Value = serde_json::from_str(block).unwrap();
        let written = request(&value).unwrap_or_else(|error| panic!("{error} in {block}"));
        // The smallest one and the older spelling are written in full, and in today's.
        if value.get("protocol_version").is_some() {
            assert_eq!(written, value);
        }
    }
    for (language, read) in [("json result", result as fn(&Value) -> _), ("json control", control)] {
        for block in blocks(language) {
            let value: Value = serde_json::from_str(&block).unwrap();
            assert_eq!(read(&value).unwrap_or_else(|error| panic!("{error} in {block}")), value);
        }
    }
}

#[test]
fn both_spellings_of_the_example_are_the_same_request() {
    let [full, _, older, ..] = &blocks("json request")[..] else { panic!("three requests are expected") };
    let mut full = request(&serde_json::from_str(full).unwrap()).unwrap();
    let older = request(&serde_json::from_str(older).unwrap()).unwrap();
    // What the older spelling does not have.
    full["task_name"] = json!("");
    full["task_version"] = json!("");
    full["handler"]["callable"] = older["handler"]["callable"].clone();
    assert_eq!(full, older);
}

#[test]
fn the_field_tables_name_every_field_and_say_what_happens_without_it() {
    let retry_fields = ["previous_error", "previous_attempt_at", "not_before"];
    let mut full_request = sent(&values::request_full());
    let on = sent(&values::request_checkpoint());
    for field in ["part", "checkpoint"] {
        full_request[field] = on[field].clone();
    }
    let mut only_retry = sent(&values::request_retry());
    only_retry.as_object_mut().unwrap().retain(|field, _| retry_fields.contains(&field.as_str()));

    let mut failed = sent(&values::result_completed());
    failed["part"] = on["part"].clone();
    failed["error"] = sent(&values::result_failed())["error"].clone();
    let mut retried = full_request.clone();
    retried.as_object_mut().unwrap().append(&mut only_retry.as_object().unwrap().clone());

    type Read = fn(&Value) -> Result<Value, String>;
    let expected: [(&str, &str, &Value, Read); 15] = [
        ("request", "", &full_request, request),
        ("handler", "/handler", &full_request, request),
        ("retry policy", "/retry", &full_request, request),
        ("ancestor", "/sequence_data/0", &full_request, request),
        ("batch_config", "/batch_config", &full_request, request),
        ("batch", "/batch", &full_request, request),
        ("retry", "", &retried, request),
        ("checkpoint", "/checkpoint", &full_request, request),
        ("result", "", &failed, result),
        ("metadata", "/metadata", &failed, result),
        ("error", "/error", &failed, result),
        ("control", "", &sent(&values::control_cancel_task()), control),
        ("control", "", &sent(&values::control_stop_step()), control),
        ("control", "", &sent(&values::control_pause_namespace()), control),
        ("control", "", &sent(&values::control_resume_namespace()), control),
    ];
    let tables = tables("| field | type | required | meaning |");
    assert_eq!(tables.len(), expected.len());
    for (table, (name, pointer, message, read)) in tables.iter().zip(expected) {
        let documented: Vec<_> = table.iter().map(|row| code(&row[0])).collect();
        let object = message.pointer(pointer).unwrap().as_object().unwrap();
        let fields = object.keys().map(String::as_str);
        let fields: BTreeSet<_> = match name {
            "retry" => fields.filter(|field| retry_fields.contains(field)).collect(),
            _ => fields.collect(),
        };
        assert_eq!(documented.iter().copied().collect::<BTreeSet<_>>(), fields, "{name}");
        assert_eq!(documented.len(), fields.len(), "{name} has a field twice");
        for row in table {
            check_field(name, row, message, pointer, read);
        }
    }
}

/// Takes the field out of the message, then sets it to null, and sees whether the row is right.
fn check_field(
    name: &str,
    row: &Row,
    message: &Value,
    pointer: &str,
    read: fn(&Value) -> Result<Value, String>,
) {
    let [field, kind, required, _] = &row[..] else { panic!("{name}: {row:?} has not four cells") };
    let field = code(field);
    let place = format!("{name}, {field}");
    let value = &message.pointer(pointer).unwrap()[field];
    let is_of_kind = match kind.trim_end_matches(" or null") {
        "integer" => value.is_u64(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "UUID" => value.as_str().unwrap().parse::<uuid::Uuid>().is_ok(),
        "time" => value.as_str().unwrap().parse::<jiff::Timestamp>().is_ok(),
        "object" => value.is_object(),
        "list" => value.is_array(),
        "any JSON" => true,
        other => panic!("{place}: unknown type {other}"),
    };
    assert!(is_of_kind, "{place}: {value} is no {kind}");

    let mut without = message.clone();
    without.pointer_mut(pointer).unwrap().as_object_mut().unwrap().remove(field);
    let read_without = read(&without);
    match required.split_once(", ").map_or((required.as_str(), None), |(no, default)| (no, Some(default))) {
        ("yes", None) => assert!(read_without.is_err(), "{place} may be absent"),
        ("no", default) => {
            let written = read_without.unwrap_or_else(|error| panic!("{place}: {error}"));
            let written = written.pointer(pointer).and_then(|object| object.get(field));
            match default {
                None => {}
                Some("empty") => {
                    assert!(written == Some(&json!("")) || written == Some(&json!([])), "{place}")
                }
                Some("the `task_uuid`") => assert_eq!(written, Some(&message["task_uuid"]), "{place}"),
                Some(default) => {
                    let text = default.trim_matches('`');
                    let default = serde_json::from_str(text).unwrap_or_else(|_| json!(text));
                    assert_eq!(written, Some(&default), "{place}");
                }
            }
        }
        other => panic!("{place}: {other:?} is neither yes nor no"),
    }

    let mut with_null = message.clone();
    with_null.pointer_mut(pointer).unwrap()[field] = Value::Null;
    let may_be_null = kind.ends_with(" or null") || kind == "any JSON";
    assert_eq!(read(&with_null).is_ok(), may_be_null, "{place}: null");
}

#[test]
fn the_lists_of_errors_reasons_and_headers_are_complete() {
    let message = include_str!("../../src/message.rs");
    for (header, names) in [
        ("| error type | when |", source(message, "pub enum ErrorType {", "}")),
        ("| header | type | on | meaning |", source(message, "pub mod header {", "}")),
        ("| reason | when |", source(include_str!("../../src/outcome.rs"), "impl DeadReason {", "}")),
    ] {
        assert!(names.len() >= 4, "{header}: {names:?}");
        let documented: Vec<_> = table(header).iter().map(|row| code(&row[0]).to_owned()).collect();
        assert_eq!(documented.iter().collect::<BTreeSet<_>>(), names.iter().collect(), "{header}");
    }
}

#[test]
fn the_backoffs_are_those_a_request_may_name() {
    let row = DOCUMENT.lines().find(|line| line.starts_with("| `backoff` |")).unwrap();
    let meaning = row.split('|').nth(4).unwrap();
    let documented: Vec<_> = meaning.split('`').skip(1).step_by(2).collect();
    let variants = source(include_str!("../../src/retry.rs"), "pub enum Backoff {", "}");
    assert_eq!(documented, variants.iter().map(|v| v.to_lowercase()).collect::<Vec<_>>());
}

#[test]
fn the_topology_tables_are_the_topology() {
    // One rung, of a length that occurs nowhere else in a name.
    let ladder = Ladder::new(Duration::from_millis(777), 2.0, 1);
    let topology = Topology::new(&Names::default(), &ladder, QueueKind::Quorum, ["<namespace>"]);
    let named = |name: &str| name.replace("777", "<rung>");

    let exchanges: BTreeSet<_> = topology
        .exchanges
        .iter()
        .map(|exchange| {
            let kind = match exchange.kind {
                ExchangeKind::Topic => "topic",
                ExchangeKind::Fanout => "fanout",
            };
            (exchange.name.clone(), kind.to_owned(), exchange.alternate.clone())
        })
        .collect();
    let documented = table("| exchange | kind | unroutable messages go to |");
    let documented: BTreeSet<_> = documented
        .iter()
        .map(|row| {
            let alternate = Some(&row[2]).filter(|cell| *cell != "nowhere").map(|cell| code(cell).to_owned());
            (code(&row[0]).to_owned(), row[1].clone(), alternate)
        })
        .collect();
    assert_eq!(documented, exchanges);

    let bindings = |queue: &Queue| {
        let of_it: Vec<_> = topology.bindings.iter().filter(|binding| binding.queue == queue.name).collect();
        let bound = of_it.iter().map(|binding| {
            (Some(binding.exchange.clone()), Some(named(&binding.routing_key)).filter(|key| !key.is_empty()))
        });
        let unbound = of_it.is_empty().then_some((None, None));
        let (name, letters) = (named(&queue.name), queue.dead_letter_exchange.clone());
        let row = move |(exchange, key)| (name.clone(), exchange, key, letters.clone());
        bound.chain(unbound).map(row).collect::<Vec<_>>()
    };
    let bindings: BTreeSet<_> = topology.queues.iter().flat_map(bindings).collect();
    let documented = table("| queue | bound to | by the pattern | dead-letters to | holds |");
    let documented: BTreeSet<_> = documented
        .iter()
        .map(|row| {
            let name = |cell: &str, none: &str| (cell != none).then(|| code(cell).to_owned());
            (
                code(&row[0]).to_owned(),
                name(&row[1], "nothing"),
                name(&row[2], "(none)"),
                name(&row[3], "nothing"),
            )
        })
        .collect();
    assert_eq!(documented, bindings);
}

#[test]
fn the_numbers_in_the_text_are_those_of_the_code() {
    let ladder = Ladder::default();
    let rungs: Vec<_> = ladder.rungs().iter().map(Duration::as_millis).collect();
    let [first, second, third, .., last] = &rungs[..] else { panic!("a ladder of {rungs:?}") };
    for text in [
        format!("one of {} delays: {first}, {second}, {third}, and so on to {last} ms", rungs.len()),
        format!("a delivery limit of {DELIVERY_LIMIT}"),
        format!("in at most {CORRELATION_ID_BYTES} bytes"),
        format!("`protocol_version` is {}.", tasker_worker_rust::message::PROTOCOL_VERSION),
    ] {
        assert!(DOCUMENT.contains(&text), "the document does not say: {text}");
    }
}
