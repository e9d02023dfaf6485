//! `messages`: the contract with programs in other languages, made of the types that speak it.

use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};
use tasker_worker_rust::broker::topology::{
    Names, checkpoint_key, dead_key, result_key, retry_key, step_key,
};
use tasker_worker_rust::message::{
    ControlMessage, ErrorType, StepExecutionRequest, StepExecutionResult, header,
};
use tasker_worker_rust::{Batches, Decision};

use super::{Answer, output};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print the AsyncAPI 3.0 document: channels, messages, headers and their schemas, as a worker sees them.
    Asyncapi,
    /// Print the JSON Schema of one kind of message.
    Schema {
        /// The kind of message; a retry and a dead letter are requests.
        message: Message,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Message {
    Request,
    Result,
    Control,
}

impl Command {
    pub(super) fn run(&self) -> Answer {
        output::json(&match self {
            Self::Asyncapi => asyncapi(),
            Self::Schema { message: Message::Request } => schema::<StepExecutionRequest>(),
            Self::Schema { message: Message::Result } => schema::<StepExecutionResult>(),
            Self::Schema { message: Message::Control } => schema::<ControlMessage>(),
        });
        Answer::Yes
    }
}

/// What is understood of a message, in today's spelling.
fn schema<T: JsonSchema>() -> Value {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>().to_value();
    if T::schema_name() == StepExecutionRequest::schema_name() {
        describe_request(&mut schema);
    }
    plain(schema)
}

/// A request is read through a type of its own, whose fields are those that are written; what they mean is said there.
fn describe_request(read: &mut Value) {
    let written = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let written = written.into_root_schema_for::<StepExecutionRequest>();
    for key in ["title", "description"] {
        read[key] = written.get(key).cloned().unwrap_or_default();
    }
    let fields = read["properties"].as_object_mut().expect("a request has fields");
    for (name, field) in fields {
        let text = written.pointer(&format!("/properties/{name}/description")).cloned().unwrap_or_default();
        match field {
            Value::Object(field) => drop(field.insert("description".to_owned(), text)),
            // Any JSON at all.
            any => *any = json!({ "description": text }),
        }
    }
}

/// For readers without Rust: the range of a number instead of its type, and of a description the first
/// paragraph, on one line and without links.
fn plain(value: Value) -> Value {
    match value {
        Value::Array(values) => values.into_iter().map(plain).collect(),
        Value::Object(entries) => {
            let entry = |(key, value): (String, Value)| match value {
                Value::String(text) if key == "description" => {
                    let text = text.split("\n\n").next().unwrap_or_default();
                    (key, text.replace('\n', " ").replace("[`", "`").replace("`]", "`").into())
                }
                Value::String(kind) if key == "format" && kind == "uint32" => {
                    ("maximum".to_owned(), u32::MAX.into())
                }
                Value::String(kind) if key == "format" && kind == "uint64" => {
                    ("maximum".to_owned(), u64::MAX.into())
                }
                value => (key, plain(value)),
            };
            entries.into_iter().map(entry).collect()
        }
        other => other,
    }
}

/// The schemas of the messages and of what they hold, by their names.
fn schemas() -> Map<String, Value> {
    let mut settings = SchemaSettings::draft07();
    settings.definitions_path = "/components/schemas".into();
    let mut generator = settings.into_generator();
    fn add<T: JsonSchema>(generator: &mut SchemaGenerator) {
        generator.subschema_for::<T>();
    }
    add::<StepExecutionRequest>(&mut generator);
    add::<StepExecutionResult>(&mut generator);
    add::<ControlMessage>(&mut generator);
    add::<ErrorType>(&mut generator);
    add::<Decision>(&mut generator);
    add::<Batches>(&mut generator);
    let mut schemas = generator.take_definitions(true);
    let request = schemas.get_mut(&*StepExecutionRequest::schema_name());
    describe_request(request.expect("the request was added"));
    schemas
}

fn asyncapi() -> Value {
    let names = Names::default();
    let (namespace, any_delay) = ("{namespace}", Duration::ZERO);
    let delay_ms = any_delay.as_millis().to_string();
    let topic = |exchange: String, address: String, parameters: Value, message: &str| {
        json!({
            "address": address,
            "parameters": parameters,
            "messages": { message: { "$ref": format!("#/components/messages/{message}") } },
            "bindings": { "amqp": exchange_binding(&exchange, "topic") },
        })
    };
    let of_namespace = |parameter: &str, description: &str| {
        json!({
            "namespace": { "description": "The steps' namespace: A-Z a-z 0-9 _ -, 64 characters at most." },
            parameter: { "description": description },
        })
    };
    let delayed = retry_key(namespace, any_delay);
    let delayed = delayed.strip_suffix(&delay_ms).unwrap_or_default();
    plain(json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "tasker-worker-rust: a worker",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What a worker receives and sends. Every request is answered with one result, retry, checkpoint or dead letter, \
                and acked after that is confirmed; any message may come more than once. docs/messages.md has the words.",
            "license": { "name": "MIT" },
        },
        "defaultContentType": "application/json",
        "servers": { "rabbitmq": { "host": "127.0.0.1:5672", "protocol": "amqp", "protocolVersion": "0.9.1" } },
        "channels": {
            "requests": topic(
                names.steps(),
                step_key(namespace, "{step_name}"),
                of_namespace("step_name", "The step's name."),
                "request",
            ),
            "results": topic(
                names.results(),
                result_key(namespace, "{status}"),
                of_namespace("status", "completed, failed or cancelled."),
                "result",
            ),
            "retries": topic(
                names.retries(),
                format!("{delayed}{{delay_ms}}"),
                of_namespace("delay_ms", "How long the broker keeps it: one of the delays of broker.delay_ladder."),
                "retry",
            ),
            "checkpoints": topic(
                names.retries(),
                checkpoint_key(namespace, "{step_name}"),
                of_namespace("step_name", "The step's name."),
                "checkpoint",
            ),
            "deadLetters": topic(
                names.dead_letters(),
                dead_key(namespace, "{reason}"),
                of_namespace("reason", "Why no attempt follows."),
                "deadLetter",
            ),
            "control": {
                "address": null,
                "messages": { "control": { "$ref": "#/components/messages/control" } },
                "bindings": { "amqp": exchange_binding(&names.control(), "fanout") },
            },
        },
        "operations": {
            "receiveRequest": operation("receive", "requests", "Run one attempt of a step."),
            "sendResult": operation("send", "results", "The step completed, failed for good, or was cancelled."),
            "sendRetry": operation("send", "retries", "The step failed; this is its next attempt's request."),
            "sendCheckpoint": operation("send", "checkpoints", "Part of the step is done; this is the request for the rest."),
            "sendDeadLetter": operation("send", "deadLetters", "The step failed for good; this is its request."),
            "receiveControl": operation("receive", "control", "Stop the steps of a task, or pause a namespace."),
        },
        "components": { "messages": messages(), "schemas": schemas() },
    }))
}

fn exchange_binding(name: &str, kind: &str) -> Value {
    let exchange = json!({ "name": name, "type": kind, "durable": true, "autoDelete": false });
    json!({ "is": "routingKey", "exchange": exchange, "bindingVersion": "0.3.0" })
}

fn operation(action: &str, channel: &str, summary: &str) -> Value {
    let channel = format!("#/channels/{channel}");
    json!({ "action": action, "channel": { "$ref": channel }, "summary": summary })
}

fn messages() -> Value {
    let message = |kind: &str, title: &str, payload: &str, headers: &[&str]| {
        json!({
            "name": kind,
            "title": title,
            "contentType": "application/json",
            "correlationId": { "location": "$message.payload#/correlation_id" },
            "headers": { "type": "object", "properties": headers_schema(headers) },
            "payload": { "$ref": format!("#/components/schemas/{payload}") },
            "bindings": { "amqp": { "messageType": kind, "bindingVersion": "0.3.0" } },
        })
    };
    let origin = [header::REPLAYED_FROM, header::REPLAYS, header::TRACEPARENT, header::TRACESTATE];
    let of_step = [&[header::ATTEMPT][..], &origin].concat();
    let answer = [&of_step[..], &[header::WORKER_ID]].concat();
    let why = [header::REASON, header::ERROR, header::ERROR_TYPE, header::ERROR_CODE];
    let dead = [&answer[..], &why, &[header::FIRST_AT, header::LAST_AT]].concat();
    let mut result = message("step.result", "What became of an attempt", "StepExecutionResult", &answer);
    let mut control = message("control", "What every worker is told", "ControlMessage", &[]);
    for without_correlation in [&mut result, &mut control] {
        without_correlation.as_object_mut().expect("a message is an object").remove("correlationId");
    }
    json!({
        "request": message("step.request", "Run one attempt of a step", "StepExecutionRequest", &of_step),
        "result": result,
        "retry": message("step.retry", "The next attempt's request", "StepExecutionRequest", &answer),
        "checkpoint": message("step.checkpoint", "The request for the rest of a step", "StepExecutionRequest", &answer),
        "deadLetter": message("step.dead_letter", "The request as it came", "StepExecutionRequest", &dead),
        "control": control,
    })
}

fn headers_schema(names: &[&str]) -> Value {
    let kind = |name| if [header::ATTEMPT, header::REPLAYS].contains(&name) { "integer" } else { "string" };
    names.iter().map(|&name| (name.to_owned(), json!({ "type": kind(name) }))).collect()
}
