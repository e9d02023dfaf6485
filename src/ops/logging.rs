//! The log: English sentences with fields, as lines for people or as one JSON object a line.

use std::fmt;
use std::io::{self, IsTerminal};

use jiff::Timestamp;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Registry;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use super::spans;
use crate::Error;
use crate::config::{LogConfig, LogFormat, log_filter, wants_colour};

/// Sends the process's log to its standard error. A program that has set up its own log before keeps it.
///
/// # Errors
/// [`Error::Config`] for a level that is no filter.
pub fn init(settings: &LogConfig) -> Result<(), Error> {
    let subscriber = subscriber(settings, io::stderr().is_terminal(), io::stderr)?;
    // Fails only where there is one already.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(())
}

/// A log of its own, for tests and for programs that combine logs. `terminal` is what
/// [`LogFormat::Auto`] goes by, and whether text is coloured, unless the environment wants no colours.
///
/// # Errors
/// [`Error::Config`] for a level that is no filter.
pub fn subscriber<W>(
    settings: &LogConfig,
    terminal: bool,
    writer: W,
) -> Result<Box<dyn Subscriber + Send + Sync>, Error>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let mut filter = log_filter(&settings.level)
        .map_err(|problem| Error::Config(vec![format!("log.level: {problem}")]))?;
    if !settings.level.contains("lapin") {
        // It logs returned messages with their payload; what it knows of outages, the broker says itself.
        filter = filter.add_directive("lapin=off".parse().expect("the directive is well-formed"));
    }
    let registry = Registry::default().with(filter).with(spans::enabled().then_some(spans::SpanLayer));
    let json = match settings.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !terminal,
    };
    Ok(if json {
        Box::new(registry.with(JsonLines { writer }))
    } else {
        let lines = tracing_subscriber::fmt::layer().with_ansi(terminal && wants_colour());
        Box::new(registry.with(lines.with_writer(writer)))
    })
}

/// Writes every event as one flat JSON object: its time, level, target and message, its own fields, and
/// those of the spans around it, so that a line can be found by `step_uuid` wherever it comes from.
struct JsonLines<W> {
    writer: W,
}

/// The fields of a span.
#[derive(Default)]
pub(super) struct Fields(pub(super) Vec<(&'static str, Value)>);

impl<S, W> Layer<S> for JsonLines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields(Vec::with_capacity(attributes.fields().len()));
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut own = Fields::default();
        event.record(&mut own);
        let mut line = Map::new();
        // From the outermost in, then the event's own: the nearest value of a name is the one that holds.
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(Fields(fields)) = span.extensions().get::<Fields>() {
                line.extend(fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
            }
        }
        line.extend(own.0.into_iter().map(|(name, value)| (name.to_owned(), value)));
        let metadata = event.metadata();
        line.insert("timestamp".to_owned(), Timestamp::now().to_string().into());
        line.insert("level".to_owned(), metadata.level().as_str().into());
        line.insert("target".to_owned(), metadata.target().into());
        let mut text = Value::Object(line).to_string();
        text.push('\n');
        // Nowhere to report that the log cannot be written.
        let _ = io::Write::write_all(&mut self.writer.make_writer_for(metadata), text.as_bytes());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push((field.name(), format!("{value:?}").into()));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), value.into()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.push((field.name(), value.into()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.push((field.name(), value.into()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.push((field.name(), value.into()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.push((field.name(), value.into()));
    }

    fn record_error(&mut self, field: &Field, error: &(dyn std::error::Error + 'static)) {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        self.0.push((field.name(), text.into()));
    }
}
