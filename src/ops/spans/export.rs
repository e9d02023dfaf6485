//! Sends spans to a collector: OTLP over HTTP, as JSON. On a thread of its own, so that neither a busy handler
//! delays it nor it a handler.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::HeaderValue;
use hyper::{HeaderMap, Method, Request, StatusCode, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{info, warn};
use webpki_root_certs::TLS_SERVER_ROOT_CERTS;

use super::Span;
use crate::Error;
use crate::config::{TracingConfig, host_name, http_headers};
use crate::ops::metrics::METRICS;
use crate::trace::TraceContext;

/// Spans of one request.
const BATCH: usize = 512;
/// Spans kept while the collector takes none, and as many on their way to this thread; later ones are dropped.
const KEPT: usize = 8_192;
/// How long a span waits for others to go along.
const GATHERED: Duration = Duration::from_millis(500);
/// How long the collector may take.
const ANSWERED: Duration = Duration::from_secs(2);

enum Job {
    Span(Box<Span>),
    /// Told once everything before it was tried.
    Flush(std::sync::mpsc::SyncSender<()>),
}

#[derive(Debug)]
pub(super) struct Exporter {
    jobs: mpsc::Sender<Job>,
}

impl Exporter {
    /// # Errors
    /// When the authorities cannot be read.
    pub(super) fn start(endpoint: &str, settings: &TracingConfig, instance: &str) -> Result<Self, Error> {
        let (jobs, receiver) = mpsc::channel(KEPT);
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls(settings.ca_file.as_deref())?);
        let headers = settings.otlp_headers.as_ref().and_then(|headers| http_headers(headers.expose()));
        let collector = Collector {
            url: format!("{}/v1/traces", endpoint.trim_end_matches('/')),
            http: Client::builder(TokioExecutor::new())
                .build(connector.https_or_http().enable_http1().build()),
            headers: headers.unwrap_or_default(),
            resource: attributes(&[
                ("service.name", env!("CARGO_PKG_NAME").into()),
                ("service.version", env!("CARGO_PKG_VERSION").into()),
                ("service.instance.id", instance.into()),
                ("host.name", host_name().into()),
            ]),
            away: false,
        };
        let running = thread::Builder::new().name("spans".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime
                .expect("the system gives a thread a timer and an event queue")
                .block_on(collector.run(receiver));
        });
        running.expect("the system gives the process a thread");
        Ok(Self { jobs })
    }

    pub(super) fn take(&self, span: Box<Span>) {
        if self.jobs.try_send(Job::Span(span)).is_err() {
            dropped(1);
        }
    }

    pub(super) fn flush(&self, limit: Duration) {
        let (done, wait) = std::sync::mpsc::sync_channel(1);
        if self.jobs.try_send(Job::Flush(done)).is_ok() {
            // What has not been sent by then is lost with the process.
            let _ = wait.recv_timeout(limit);
        }
    }
}

struct Collector {
    url: String,
    http: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    headers: HeaderMap,
    resource: Value,
    /// Whether it has been said that it takes nothing.
    away: bool,
}

impl Collector {
    async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut spans = Vec::new();
        while let Some(first) = jobs.recv().await {
            let (mut next, mut flushes) = (Some(first), Vec::new());
            let gathered = Instant::now() + GATHERED;
            loop {
                match next {
                    Some(Job::Span(span)) => spans.push(*span),
                    Some(Job::Flush(done)) => flushes.push(done),
                    None => break,
                }
                if spans.len() >= BATCH || !flushes.is_empty() {
                    break;
                }
                next = timeout_at(gathered, jobs.recv()).await.ok().flatten();
            }
            self.send(&mut spans).await;
            for done in flushes {
                // Whoever asked may have stopped waiting.
                let _ = done.send(());
            }
            if self.away {
                tokio::time::sleep(GATHERED).await;
            }
        }
    }

    /// Sends as many as the collector takes. Too many of the others are dropped, the oldest first.
    async fn send(&mut self, spans: &mut Vec<Span>) {
        while !spans.is_empty() {
            let batch = spans.len().min(BATCH);
            let problem = match timeout(ANSWERED, self.post(&spans[..batch])).await {
                Ok(Ok(status)) if status.is_success() => None,
                Ok(Ok(status)) => Some((format!("it answered {status}"), !is_retried(status))),
                Ok(Err(problem)) => Some((problem, false)),
                Err(_) => Some((format!("it did not answer within {ANSWERED:?}"), false)),
            };
            self.tell(problem.as_ref().map(|(problem, _)| problem.as_str()));
            match problem {
                None => METRICS.spans.with_label_values(&["sent"]).inc_by(batch as u64),
                Some((_, true)) => dropped(batch),
                Some((_, false)) => break,
            }
            spans.drain(..batch);
        }
        let too_many = spans.len().saturating_sub(KEPT);
        dropped(too_many);
        spans.drain(..too_many);
    }

    fn tell(&mut self, problem: Option<&str>) {
        match problem {
            Some(problem) if !self.away => warn!(
                url = self.url,
                problem,
                "The collector takes no spans; what it misses is counted in tasker_spans_total. Is tracing.otlp_endpoint \
                 one that speaks OTLP over HTTP, usually on port 4318?"
            ),
            None if self.away => info!(url = self.url, "The collector takes spans again"),
            _ => {}
        }
        self.away = problem.is_some();
    }

    async fn post(&self, spans: &[Span]) -> Result<StatusCode, String> {
        let spans: Vec<Value> = spans.iter().map(encoded).collect();
        let scope = json!({ "name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION") });
        let body = json!({ "resourceSpans": [{
            "resource": { "attributes": self.resource },
            "scopeSpans": [{ "scope": scope, "spans": spans }],
        }] });
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(&self.url)
            .body(Full::new(Bytes::from(body.to_string())))
            .map_err(|error| error.to_string())?;
        request.headers_mut().extend(self.headers.clone());
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let answer = self.http.request(request).await.map_err(|error| {
            let cause: &dyn std::error::Error = &error;
            std::iter::successors(Some(cause), |error| error.source()).last().unwrap_or(cause).to_string()
        })?;
        let status = answer.status();
        // Read to its end, so that the connection can be used again.
        answer.into_body().collect().await.map_err(|error| error.to_string())?;
        Ok(status)
    }
}

/// Who is trusted to vouch for a collector.
fn tls(authorities: Option<&Path>) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    match authorities {
        None => {
            roots.add_parsable_certificates(TLS_SERVER_ROOT_CERTS.iter().cloned());
        }
        Some(path) => {
            let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            let problem = match read.map(|certificates| roots.add_parsable_certificates(certificates)) {
                Ok((1.., _)) => None,
                Ok(_) => Some("it holds none".to_owned()),
                Err(error) => Some(error.to_string()),
            };
            if let Some(problem) = problem {
                return Err(Error::Config(vec![format!(
                    "tracing.ca_file: cannot use {}: {problem}; expected a PEM file with certificates",
                    path.display()
                )]));
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider speaks the versions it was built for");
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// Whether the protocol wants such an answer tried again.
fn is_retried(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502..=504)
}

fn dropped(spans: usize) {
    if spans > 0 {
        METRICS.spans.with_label_values(&["dropped"]).inc_by(spans as u64);
    }
}

fn encoded(span: &Span) -> Value {
    let nanoseconds = |at: jiff::Timestamp| at.as_nanosecond().max(0).to_string();
    let mut text = json!({
        "traceId": format!("{:032x}", span.context.trace_id),
        "spanId": format!("{:016x}", span.context.span_id),
        "name": span.name,
        "kind": span.kind as u8,
        "startTimeUnixNano": nanoseconds(span.started.min(span.ended)),
        "endTimeUnixNano": nanoseconds(span.ended),
        "attributes": attributes(&span.attributes),
    });
    if let Some(parent) = span.parent {
        text["parentSpanId"] = format!("{parent:016x}").into();
    }
    if let Some(state) = span.context.tracestate() {
        text["traceState"] = state.into();
    }
    if let Some(TraceContext { trace_id, span_id, .. }) = &span.link {
        text["links"] =
            json!([{ "traceId": format!("{trace_id:032x}"), "spanId": format!("{span_id:016x}") }]);
    }
    if let Some(problem) = &span.problem {
        text["status"] = json!({ "code": 2, "message": problem });
    }
    text
}

fn attributes(attributes: &[(&'static str, Value)]) -> Value {
    let attribute = |(key, value): &(&'static str, Value)| {
        let value = match value {
            Value::Bool(value) => json!({ "boolValue": value }),
            // 64-bit integers are texts in the protocol's JSON.
            Value::Number(number) if number.is_f64() => json!({ "doubleValue": number }),
            Value::Number(number) => json!({ "intValue": number.to_string() }),
            Value::String(text) => json!({ "stringValue": text }),
            other => json!({ "stringValue": other.to_string() }),
        };
        json!({ "key": key, "value": value })
    };
    attributes.iter().map(attribute).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::*;

    #[test]
    fn a_collector_that_never_answers_is_not_waited_for_and_what_it_misses_is_counted() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", silent.local_addr().unwrap());
        let exporter = Exporter::start(&address, &TracingConfig::default(), "a test").unwrap();
        let dropped = METRICS.spans.with_label_values(&["dropped"]);
        let before = dropped.get();
        let started = std::time::Instant::now();
        let spans = 3 * KEPT;
        for _ in 0..spans {
            exporter.take(Box::new(Span::new(TraceContext::root(), None, Kind::Internal, "work")));
        }
        assert!(started.elapsed() < ANSWERED, "{spans} spans took {:?}", started.elapsed());
        let missed = dropped.get() - before;
        // One queue is full, and one batch is on its way.
        assert!(missed >= (spans - KEPT - BATCH) as u64, "{missed} of {spans}");
        exporter.flush(Duration::from_millis(10));
        assert!(started.elapsed() < ANSWERED, "an end waits no longer than it says");
    }

    #[test]
    fn integers_are_texts_and_other_values_what_they_are() {
        let list = attributes(&[("n", 7.into()), ("x", 0.5.into()), ("yes", true.into()), ("t", "a".into())]);
        let values: Vec<&Value> =
            list.as_array().unwrap().iter().map(|attribute| &attribute["value"]).collect();
        let wanted = [
            json!({ "intValue": "7" }),
            json!({ "doubleValue": 0.5 }),
            json!({ "boolValue": true }),
            json!({ "stringValue": "a" }),
        ];
        assert_eq!(values, wanted.iter().collect::<Vec<_>>());
    }
}
