//! Spans: what was done, when, and as part of what. Sent to an OTLP collector where one is set; without
//! one nothing is made of them.
//!
//! A span's place in its trace is decided when the message is written that carries it, and kept in that
//! message or in the store. So a span can be told of by another process than the one that began it.

mod export;
mod layer;

use std::sync::OnceLock;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

pub use layer::{SpanLayer, adopt};

use crate::Error;
use crate::clock;
use crate::config::TracingConfig;
use crate::trace::TraceContext;
use export::Exporter;

struct Tracing {
    exporter: Exporter,
    /// The share of new traces that is recorded.
    sample_ratio: f64,
}

static TRACING: OnceLock<Tracing> = OnceLock::new();

/// Sends the process's spans where the settings say, from now on; nowhere without an endpoint. `instance` names
/// the process. The first call decides.
///
/// # Errors
/// When `tracing.ca_file` is of no use.
pub fn init(settings: &TracingConfig, instance: &str) -> Result<(), Error> {
    if let Some(endpoint) = &settings.otlp_endpoint
        && TRACING.get().is_none()
    {
        let exporter = Exporter::start(endpoint, settings, instance)?;
        TRACING.get_or_init(|| Tracing { exporter, sample_ratio: settings.sample_ratio });
    }
    Ok(())
}

/// The beginning of a new trace; whether it is recorded is drawn once, for all of it.
pub fn root() -> TraceContext {
    let mut root = TraceContext::root();
    root.sampled = TRACING.get().is_none_or(|tracing| rand::random::<f64>() < tracing.sample_ratio);
    root
}

/// Whether anybody wants spans.
pub fn enabled() -> bool {
    TRACING.get().is_some()
}

/// Sends what has not been sent, for as long as `limit` at most.
pub fn flush(limit: Duration) {
    if let Some(tracing) = TRACING.get() {
        tracing.exporter.flush(limit);
    }
}

/// What a span is to the ones around it, by the numbers of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Work inside one process.
    Internal = 1,
    /// Answers a request.
    Server = 2,
    /// Sends a message.
    Producer = 4,
    /// Does what a message asks for.
    Consumer = 5,
}

/// Something that was done. Nobody hears of it before [`end`](Self::end).
#[derive(Debug)]
pub struct Span {
    context: TraceContext,
    parent: Option<u64>,
    kind: Kind,
    name: String,
    started: Timestamp,
    ended: Timestamp,
    attributes: Vec<(&'static str, Value)>,
    link: Option<TraceContext>,
    problem: Option<String>,
}

impl Span {
    /// One that starts now, at its place in the trace.
    pub fn new(context: TraceContext, parent: Option<u64>, kind: Kind, name: impl Into<String>) -> Self {
        let started = clock::now();
        let name = name.into();
        let (attributes, link, problem) = (Vec::new(), None, None);
        Self { context, parent, kind, name, started, ended: started, attributes, link, problem }
    }

    /// Its place in the trace.
    pub fn context(&self) -> &TraceContext {
        &self.context
    }

    /// One that started earlier.
    #[must_use]
    pub fn since(mut self, started: Timestamp) -> Self {
        self.started = started;
        self
    }

    /// One that another led to without being its parent.
    #[must_use]
    pub fn linked_to(mut self, other: TraceContext) -> Self {
        self.link = Some(other);
        self
    }

    /// Tells more about it.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.attributes.push((name, value.into()));
        self
    }

    /// It did not do what it was for.
    pub fn failed(&mut self, problem: impl Into<String>) {
        self.problem = Some(problem.into());
    }

    /// It ends now.
    pub fn end(mut self) {
        self.ended = clock::now();
        if let Some(tracing) = TRACING.get().filter(|_| self.context.sampled) {
            tracing.exporter.take(Box::new(self));
        }
    }
}
