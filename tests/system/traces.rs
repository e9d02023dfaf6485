//! One trace from the call that submits a task to the task's end, as a collector is told it.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::sync::{Arc, LazyLock, Mutex};

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use serde_json::{Value, json};
use tasker_worker_rust::catalog::Catalog;
use tasker_worker_rust::config::{LogConfig, LogFormat, TracingConfig};
use tasker_worker_rust::message::{ErrorType, header};
use tasker_worker_rust::ops::{logging, spans};
use tasker_worker_rust::trace::TraceContext;
use tasker_worker_rust::{Namespace, Step, StepError, StepResult};
use tokio::sync::Semaphore;
use tracing::Instrument;

use crate::on_both_brokers;
use crate::program::Program;
use crate::support::{Desk, Kind, NAMESPACE, Report, eventually, settings};
use crate::system::System;

on_both_brokers! {
    a_diamond_is_one_trace_from_the_call_to_its_end
    a_retry_is_linked_to_the_attempt_before_it_and_a_dead_letter_belongs_to_its_attempt
    a_trace_goes_on_over_a_restart_of_the_orchestrator
}

/// A span as the collector received it.
#[derive(Debug, Clone)]
struct Received {
    trace: String,
    id: String,
    parent: Option<String>,
    name: String,
    kind: u64,
    failed: bool,
    links: Vec<String>,
    attributes: BTreeMap<String, String>,
    from: u128,
    to: u128,
}

impl Received {
    fn read(span: &Value) -> Self {
        let text = |key: &str| span[key].as_str().map(str::to_owned);
        let value = |value: &Value| {
            let value = value.as_object().and_then(|value| value.values().next()).expect("one value");
            value.as_str().map_or_else(|| value.to_string(), str::to_owned)
        };
        let attributes = span["attributes"].as_array().expect("a list");
        Self {
            trace: text("traceId").expect("a trace"),
            id: text("spanId").expect("an id"),
            parent: text("parentSpanId"),
            name: text("name").expect("a name"),
            kind: span["kind"].as_u64().expect("a kind"),
            failed: span["status"]["code"] == 2,
            links: span["links"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|l| l["spanId"].as_str())
                .map(str::to_owned)
                .collect(),
            attributes: attributes
                .iter()
                .map(|a| (a["key"].as_str().unwrap().to_owned(), value(&a["value"])))
                .collect(),
            from: span["startTimeUnixNano"].as_str().unwrap().parse().unwrap(),
            to: span["endTimeUnixNano"].as_str().unwrap().parse().unwrap(),
        }
    }
}

type Spans = Arc<Mutex<Vec<Received>>>;

/// The collector that this process sends its spans to.
static COLLECTED: LazyLock<Spans> = LazyLock::new(|| {
    let spans = Spans::default();
    let address = collector(spans.clone());
    let settings =
        TracingConfig { otlp_endpoint: Some(format!("http://{address}")), ..TracingConfig::default() };
    spans::init(&settings, "the tests").expect("there is no file to read");
    let log = LogConfig { level: "info".to_owned(), format: LogFormat::Json };
    let subscriber = logging::subscriber(&log, false, std::io::sink).expect("the level is a filter");
    tracing::subscriber::set_global_default(subscriber).expect("no test has a log of its own");
    spans
});

fn collector(spans: Spans) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    listener.set_nonblocking(true).unwrap();
    let receive = async |State(spans): State<Spans>, axum::Json(body): axum::Json<Value>| {
        let mut spans = spans.lock().unwrap();
        for scope in body["resourceSpans"][0]["scopeSpans"].as_array().expect("scopes") {
            for span in scope["spans"].as_array().expect("spans").iter().map(Received::read) {
                // One that was not answered in time is sent again.
                if !spans.iter().any(|known| known.id == span.id) {
                    spans.push(span);
                }
            }
        }
        "{}"
    };
    let router = Router::new().route("/v1/traces", post(receive)).with_state(spans);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
    });
    address
}

/// A trace, once its task's last span has come.
async fn trace(id: &str, complete: impl Fn(&[Received]) -> bool) -> Vec<Received> {
    let found = eventually("the whole trace", async || {
        let spans: Vec<Received> =
            COLLECTED.lock().unwrap().iter().filter(|span| span.trace == id).cloned().collect();
        complete(&spans).then_some(spans)
    });
    found.await
}

fn named<'a>(spans: &'a [Received], name: &str) -> Vec<&'a Received> {
    let mut found: Vec<&Received> = spans.iter().filter(|span| span.name == name).collect();
    found.sort_by_key(|span| span.from);
    found
}

fn one<'a>(spans: &'a [Received], name: &str) -> &'a Received {
    match named(spans, name)[..] {
        [one] => one,
        ref other => panic!("{} spans {name:?} in {spans:#?}", other.len()),
    }
}

/// Submits a task as somebody at this place in a trace.
fn submit(system: &System, caller: &TraceContext, namespace: &str, name: &str, context: Value) -> uuid::Uuid {
    let body = json!({ "namespace": namespace, "name": name, "context": context }).to_string();
    let address = system.client.base_url().strip_prefix("http://").unwrap();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let parent = caller.traceparent();
    write!(
        stream,
        "POST /v1/tasks HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\ntraceparent: {parent}\r\n\
         tracestate: vendor=1\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let body = answer.split("\r\n\r\n").nth(1).expect("an answer has a body");
    let task: Value = serde_json::from_str(body).expect("the answer is JSON");
    task["task_uuid"].as_str().unwrap_or_else(|| panic!("{answer}")).parse().unwrap()
}

fn parent(span: &Received) -> &str {
    span.parent.as_deref().unwrap_or_else(|| panic!("{} has no parent", span.name))
}

fn trace_id(caller: &TraceContext) -> String {
    format!("{:032x}", caller.trace_id)
}

async fn a_diamond_is_one_trace_from_the_call_to_its_end(kind: Kind) {
    LazyLock::force(&COLLECTED);
    let system = System::open(kind).await;
    let caller = TraceContext::root();
    let task =
        submit(&system, &caller, "diamond_workflow", "parallel_processing", json!({ "base_value": 10 }));
    system.finished(task).await;
    // The call, the task, and for each step its request, its execution and its result.
    let spans = trace(&trace_id(&caller), |spans| spans.len() >= 14).await;
    assert_eq!(spans.len(), 14, "{spans:#?}");

    let call = one(&spans, "POST /v1/tasks");
    assert_eq!((parent(call), call.kind), (format!("{:016x}", caller.span_id).as_str(), 2));
    assert_eq!(call.attributes["http.response.status_code"], "201");
    let whole = one(&spans, "task diamond_workflow/parallel_processing");
    assert_eq!(parent(whole), call.id);
    assert_eq!(whole.attributes["state"], "complete");
    let results: HashMap<&str, &Received> =
        named(&spans, "apply result").into_iter().map(|span| (parent(span), span)).collect();
    for step in ["diamond_start", "diamond_branch_b", "diamond_branch_c", "diamond_end"] {
        let sent = one(&spans, &format!("send diamond_workflow.{step}"));
        assert_eq!((parent(sent), sent.kind), (whole.id.as_str(), 4), "{step}");
        let processed = one(&spans, &format!("process diamond_workflow.{step}"));
        assert_eq!((parent(processed), processed.kind, processed.failed), (sent.id.as_str(), 5, false));
        let applied = results[processed.id.as_str()];
        assert_eq!((applied.kind, applied.attributes["outcome"].as_str()), (5, "applied"));
        assert!(sent.from <= processed.from && processed.from <= processed.to, "{step}");
        assert!(whole.from <= sent.to && applied.from <= whole.to, "{step}");

        let names = &system.config.names();
        let destination = format!("{}:step.diamond_workflow.{step}", names.steps());
        let queue = names.step_queue("diamond_workflow");
        for (span, wanted) in [(sent, destination.clone()), (processed, format!("{destination}:{queue}"))] {
            assert_eq!(span.attributes["messaging.system"], "rabbitmq");
            assert_eq!(span.attributes["messaging.destination.name"], wanted);
            assert_eq!(span.attributes["task_uuid"], task.to_string());
        }
        assert_eq!(sent.attributes["messaging.operation.type"], "send");
        assert_eq!(processed.attributes["messaging.operation.type"], "process");
        assert_eq!(sent.attributes["messaging.message.id"], processed.attributes["messaging.message.id"]);
    }
    system.close().await;
}

/// A template of namespace `traced` with these steps, one after the other.
fn chain(steps: &[&str]) -> Catalog {
    let steps: Vec<Value> = steps
        .iter()
        .enumerate()
        .map(|(at, name)| {
            let before: Vec<&str> = at.checked_sub(1).map(|before| steps[before]).into_iter().collect();
            json!({ "name": name, "handler": { "callable": name }, "dependencies": before,
                "retry": { "retryable": true, "max_attempts": 2, "backoff": "linear", "backoff_base_ms": 50, "max_backoff_ms": 50 } })
        })
        .collect();
    let text = json!({ "name": "chain", "namespace_name": "traced", "version": "1.0.0", "steps": steps });
    let template = tasker_worker_rust::template::parse(&text.to_string(), None).expect("a template").template;
    Catalog::from_templates(vec![template])
}

async fn a_retry_is_linked_to_the_attempt_before_it_and_a_dead_letter_belongs_to_its_attempt(kind: Kind) {
    LazyLock::force(&COLLECTED);
    async fn flaky(step: Step<Value>) -> StepResult<u32> {
        let inside = async { tracing::info_span!("ask", asked = 2).in_scope(|| step.attempt()) };
        let attempt = inside.instrument(tracing::info_span!("warehouse", shelf = "top")).await;
        if attempt == 1 { Err(StepError::retryable("busy")) } else { Ok(attempt) }
    }
    async fn broken(_: Step<Value>) -> StepResult<u32> {
        Err(StepError::permanent("no such card"))
    }
    let handlers = Namespace::new("traced").step("flaky", flaky).step("broken", broken);
    let system = System::open_with(kind, chain(&["flaky", "broken"]), vec![handlers]).await;
    let caller = TraceContext::root();
    let task = submit(&system, &caller, "traced", "chain", json!({}));
    assert_eq!(system.finished(task).await.status, "error");
    // The call and the task; two requests, three executions, a retry, two results and a dead letter, and what the
    // handler says of two attempts.
    let spans = trace(&trace_id(&caller), |spans| spans.len() >= 15).await;
    assert_eq!(spans.len(), 15, "{spans:#?}");

    let attempts = named(&spans, "process traced.flaky");
    let [first, second] = attempts[..] else { panic!("{attempts:#?}") };
    assert_eq!(parent(first), one(&spans, "send traced.flaky").id);
    assert_eq!((first.attributes["outcome"].as_str(), first.failed), ("retried", true));
    assert!(first.links.is_empty());
    assert_eq!((parent(second), second.links.as_slice()), (first.id.as_str(), [first.id.clone()].as_slice()));
    assert_eq!((second.attributes["attempt"].as_str(), second.failed), ("2", false));
    assert_eq!(parent(one(&spans, "apply retry")), first.id);

    // What a handler says of itself is inside the execution it is about.
    for (warehouse, attempt) in named(&spans, "warehouse").iter().zip([first, second]) {
        assert_eq!((parent(warehouse), warehouse.kind), (attempt.id.as_str(), 1));
        assert_eq!(warehouse.attributes["shelf"], "top");
        assert!(attempt.from <= warehouse.from && warehouse.to <= attempt.to);
        let ask = named(&spans, "ask").into_iter().find(|ask| parent(ask) == warehouse.id);
        assert_eq!(ask.expect("one for each").attributes["asked"], "2");
    }

    let dead = one(&spans, "process traced.broken");
    assert_eq!((dead.attributes["outcome"].as_str(), dead.failed), ("failed", true));
    assert_eq!(dead.attributes["error.type"], ErrorType::PermanentError.to_string());
    assert_eq!(parent(one(&spans, "apply dead_letter")), dead.id);
    assert!(one(&spans, "task traced/chain").failed);
    system.close().await;
}

async fn a_trace_goes_on_over_a_restart_of_the_orchestrator(kind: Kind) {
    LazyLock::force(&COLLECTED);
    let (begun, go_on) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (begins, waits) = (begun.clone(), go_on.clone());
    let first = move |_: Step<Value>| {
        let (begins, waits) = (begins.clone(), waits.clone());
        async move {
            begins.add_permits(1);
            waits.acquire().await.expect("the test lives").forget();
            Ok::<_, StepError>(1)
        }
    };
    let handlers = Namespace::new("traced").step("first", first).step("second", async |_: Step<Value>| Ok(2));
    let mut system = System::open_with(kind, chain(&["first", "second"]), vec![handlers]).await;
    let caller = TraceContext::root();
    let task = submit(&system, &caller, "traced", "chain", json!({}));
    begun.acquire().await.unwrap().forget();
    system.restart_orchestrator().await;
    go_on.add_permits(1);
    assert_eq!(system.finished(task).await.status, "complete");
    let spans = trace(&trace_id(&caller), |spans| spans.len() >= 8).await;
    let whole = one(&spans, "task traced/chain");
    assert_eq!(parent(whole), one(&spans, "POST /v1/tasks").id);
    for step in ["first", "second"] {
        let sent = one(&spans, &format!("send traced.{step}"));
        assert_eq!(parent(sent), whole.id, "{step}");
        assert_eq!(parent(one(&spans, &format!("process traced.{step}"))), sent.id, "{step}");
    }
    system.close().await;
}

/// A worker program that serves the linear workflow, with a desk in the orchestrator's place.
pub(crate) async fn worker_program(endpoint: Option<&str>) -> (Desk, Program) {
    let config = settings(Kind::RabbitMq);
    let desk = Desk::open_with(config.clone(), Kind::RabbitMq, &["linear_workflow"]).await;
    let program = Program::new()
        .broker(&config)
        .set("TASKER__WORKER__NAMESPACES", "linear_workflow")
        .set("TASKER__WORKER__METRICS__PROMETHEUS_PORT", "0")
        .set("TASKER__WORKER__HEALTH_ADDRESS", "127.0.0.1:0")
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.unwrap_or_default());
    (desk, program)
}

pub(crate) fn linear_request(desk: &Desk) -> tasker_worker_rust::StepExecutionRequest {
    let mut request = desk.request("linear_step_1", json!({ "even_number": 6 }));
    request.namespace = "linear_workflow".to_owned();
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_collector_slows_nothing_and_is_said_once() {
    // It takes connections and never answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut desk, program) =
        worker_program(Some(&format!("http://{}", listener.local_addr().unwrap()))).await;
    let mut worker = program.start(&["worker"]);
    worker.says("serving");
    let mut slow = std::time::Duration::ZERO;
    // Longer than the exporter waits for two answers, without any of it seen here.
    let started = std::time::Instant::now();
    while started.elapsed() < std::time::Duration::from_secs(5) {
        let request = linear_request(&desk);
        desk.send(&request).await;
        let asked = std::time::Instant::now();
        assert_eq!(desk.next_result().await.step_uuid, request.step_uuid);
        if asked.elapsed() > std::time::Duration::from_secs(1) {
            slow += asked.elapsed();
        }
    }
    // Steps that waited for it would have waited most of this time; a busy machine makes some wait as well.
    assert!(slow < started.elapsed() / 2, "slow steps took {slow:?}");
    let said = worker.finish();
    let complaints = said.iter().filter(|line| line.contains("The collector takes no spans")).count();
    assert_eq!(complaints, 1, "{said:#?}");
    desk.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_collector_the_callers_trace_is_passed_on_as_it_is() {
    let (mut desk, program) = worker_program(None).await;
    let mut worker = program.start(&["worker"]);
    worker.says("serving");
    let caller = TraceContext::parse(&TraceContext::root().traceparent(), Some("vendor=1"));
    for caller in [caller, None] {
        desk.send_within(&linear_request(&desk), caller.as_ref()).await;
        let Report::Result(_, properties) = desk.next().await else { panic!("expected a result") };
        assert_eq!(TraceContext::of(&properties.headers), caller);
        assert_eq!(properties.headers.get(header::TRACEPARENT).is_some(), caller.is_some());
    }
    desk.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_wants_no_spans_gets_none_and_one_without_a_trace_begins_one() {
    LazyLock::force(&COLLECTED);
    let mut desk = Desk::open(Kind::Embedded).await;
    let worker = desk.worker(Namespace::new(NAMESPACE).step("any", async |_: Step<Value>| Ok(1))).await;
    let mut unwanted = TraceContext::root();
    unwanted.sampled = false;
    desk.send_within(&desk.request("any", json!({})), Some(&unwanted)).await;
    let Report::Result(_, properties) = desk.next().await else { panic!("expected a result") };
    let passed_on = TraceContext::of(&properties.headers).expect("the trace is passed on");
    assert_eq!((passed_on.trace_id, passed_on.sampled), (unwanted.trace_id, false));

    desk.send_within(&desk.request("any", json!({})), None).await;
    let Report::Result(_, properties) = desk.next().await else { panic!("expected a result") };
    let begun = TraceContext::of(&properties.headers).expect("a trace begins");
    let spans = trace(&trace_id(&begun), |spans| !spans.is_empty()).await;
    assert_eq!((spans.len(), spans[0].parent.as_ref()), (1, None), "{spans:#?}");
    // It was sent later, so the other would have come by now.
    assert!(COLLECTED.lock().unwrap().iter().all(|span| span.trace != trace_id(&unwanted)));
    worker.shutdown().await;
    desk.close().await;
}
