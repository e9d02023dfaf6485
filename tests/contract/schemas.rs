//! The published schemas and the AsyncAPI document: of today, valid, and as strict as the code.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use jsonschema::Validator;
use serde_json::{Value, json};
use tasker_worker_rust::broker::topology::{Names, QueueKind, Topology};
use tasker_worker_rust::message::{ControlMessage, StepExecutionRequest, StepExecutionResult, header};
use tasker_worker_rust::retry::Ladder;

use crate::values::{self, sent};

fn published(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/messages").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn asyncapi() -> Value {
    published("asyncapi.json")
}

#[test]
fn the_documents_are_those_of_the_code() {
    let schema = |message| (format!("{message}.schema.json"), vec!["schema", message]);
    let mut documents = ["request", "result", "control"].map(schema).to_vec();
    documents.push(("asyncapi.json".to_owned(), vec!["asyncapi"]));
    for (name, arguments) in documents {
        let mut program = Command::new(env!("CARGO_BIN_EXE_tasker-worker-rust"));
        let output = program.arg("messages").args(&arguments).output().unwrap();
        let made: Value = serde_json::from_slice(&output.stdout).unwrap();
        let command = format!("cargo run -- messages {} > docs/messages/{name}", arguments.join(" "));
        assert!(published(&name) == made, "write it anew: {command}");
    }
}

#[test]
fn the_asyncapi_document_is_valid() {
    let specification = include_str!("asyncapi-3.0.0.schema.json");
    let specification = jsonschema::validator_for(&serde_json::from_str(specification).unwrap()).unwrap();
    let document = asyncapi();
    let mistakes: Vec<_> = specification.iter_errors(&document).map(|mistake| mistake.to_string()).collect();
    assert!(mistakes.is_empty(), "{mistakes:#?}");
    for broken in
        ["/channels/requests/bindings/amqp/exchange/type", "/operations/sendResult/action", "/info/title"]
    {
        let mut document = document.clone();
        *document.pointer_mut(broken).unwrap() = json!(7);
        assert!(!specification.is_valid(&document), "a number at {broken} is taken");
    }
    for reference in references(&document) {
        let pointer = reference.strip_prefix('#').expect("only to its own parts");
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
}

fn references(value: &Value) -> Vec<&str> {
    match value {
        Value::Array(values) => values.iter().flat_map(references).collect(),
        Value::Object(entries) => {
            let own = entries.get("$ref").and_then(Value::as_str);
            own.into_iter().chain(entries.values().flat_map(references)).collect()
        }
        _ => Vec::new(),
    }
}

#[test]
fn its_channels_are_the_exchanges_of_the_topology_but_the_alternate_one() {
    let names = Names::default();
    let namespaces = BTreeSet::from(["shop".to_owned()]);
    let topology = Topology::new(&names, &Ladder::default(), QueueKind::Quorum, &namespaces);
    let wanted: BTreeSet<_> = topology.exchanges.iter().map(|exchange| exchange.name.clone()).collect();
    let document = asyncapi();
    let channels = document["channels"].as_object().unwrap().values();
    let exchange =
        |channel: &Value| channel["bindings"]["amqp"]["exchange"]["name"].as_str().unwrap().to_owned();
    let mut described: BTreeSet<_> = channels.map(exchange).collect();
    described.insert(names.unroutable());
    assert_eq!(described, wanted);
}

#[test]
fn its_headers_are_those_the_document_about_messages_lists() {
    let document = asyncapi();
    let messages = document["components"]["messages"].as_object().unwrap().values();
    let headers = messages.flat_map(|message| message["headers"]["properties"].as_object().unwrap().keys());
    let described: BTreeSet<&str> = headers.map(String::as_str).collect();
    let section = include_str!("../../docs/messages.md").split("\n## Headers\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let listed: BTreeSet<&str> = rows.map(|row| row.split('`').next().unwrap()).collect();
    assert_eq!(described, listed);
    assert!(listed.contains(header::TRACEPARENT));
}

/// Whether the code takes a message.
type Reads = fn(&[u8]) -> bool;

fn messages() -> Vec<(&'static str, Value, Reads)> {
    let request: Reads = |body| StepExecutionRequest::decode(body).is_ok();
    let result: Reads = |body| StepExecutionResult::decode(body).is_ok();
    let control: Reads = |body| ControlMessage::decode(body).is_ok();
    vec![
        ("request", sent(&values::request_full()), request),
        ("request", sent(&values::request_retry()), request),
        ("result", sent(&values::result_completed()), result),
        ("result", sent(&values::result_failed()), result),
        ("control", sent(&values::control_cancel_task()), control),
        ("control", sent(&values::control_pause_namespace()), control),
        ("control", sent(&values::control_resume_namespace()), control),
    ]
}

fn schema(name: &str) -> Validator {
    let options = jsonschema::options().should_validate_formats(true);
    options.build(&published(&format!("{name}.schema.json"))).unwrap()
}

/// The places of all values in a message.
fn places(value: &Value, place: &str) -> Vec<String> {
    let below: Vec<_> = match value {
        Value::Object(entries) => {
            entries.iter().map(|(key, value)| (format!("{place}/{key}"), value)).collect()
        }
        Value::Array(items) => {
            items.iter().enumerate().map(|(index, value)| (format!("{place}/{index}"), value)).collect()
        }
        _ => Vec::new(),
    };
    below.iter().flat_map(|(place, value)| [vec![place.clone()], places(value, place)].concat()).collect()
}

#[test]
fn a_message_fits_its_schema_and_without_a_field_only_if_the_code_takes_it() {
    for (name, message, reads) in messages() {
        let schema = schema(name);
        assert!(schema.is_valid(&message), "{name} as it is sent");
        for place in places(&message, "") {
            let (parent, field) = place.rsplit_once('/').unwrap();
            let mut without = message.clone();
            let Some(Value::Object(fields)) = without.pointer_mut(parent) else { continue };
            fields.remove(field);
            let (fits, taken) = (schema.is_valid(&without), reads(without.to_string().as_bytes()));
            assert_eq!(fits, taken, "{name} without {place}: fits {fits}, taken {taken}");
        }
    }
}

#[test]
fn what_fits_the_schema_is_taken() {
    let strange = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1.5),
        json!(u64::MAX),
        json!(1e30),
        json!(""),
        json!("a.b"),
        json!("2026-03-01"),
        json!([]),
        json!({}),
        json!("x".repeat(65)),
        json!("x".repeat(256)),
    ];
    let (mut fitting, mut refused) = (0, 0);
    for (name, message, reads) in messages() {
        let schema = schema(name);
        for (place, value) in
            places(&message, "").iter().flat_map(|place| strange.iter().map(move |v| (place, v)))
        {
            let mut changed = message.clone();
            *changed.pointer_mut(place).unwrap() = value.clone();
            if schema.is_valid(&changed) {
                fitting += 1;
                assert!(
                    reads(changed.to_string().as_bytes()),
                    "{name} with {value} at {place} fits and is refused"
                );
            } else {
                refused += 1;
            }
        }
    }
    assert!(fitting > 100 && refused > 500, "{fitting} fit, {refused} do not: the schemas say too little");
}
