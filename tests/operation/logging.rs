//! What the log looks like.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tasker_worker_rust::config::{LogConfig, LogFormat};
use tasker_worker_rust::ops::logging;
use tracing::{debug, info, info_span, warn};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no writer panics").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is written while `work` runs.
fn log(format: LogFormat, level: &str, terminal: bool, work: impl FnOnce()) -> String {
    let lines = Lines::default();
    let writer = lines.clone();
    let settings = LogConfig { format, level: level.to_owned() };
    let subscriber = logging::subscriber(&settings, terminal, move || writer.clone()).expect("a right level");
    tracing::subscriber::with_default(subscriber, work);
    String::from_utf8(lines.0.lock().expect("no writer panics").clone()).expect("logs are UTF-8")
}

#[test]
fn a_json_line_is_flat_and_has_the_fields_of_the_spans_around_it() {
    let text = log(LogFormat::Json, "info", true, || {
        let _step = info_span!("step", step_uuid = "0190", namespace = "orders", attempt = 2u32).entered();
        let inner = info_span!("payment", provider = tracing::field::Empty, namespace = "inner").entered();
        inner.record("provider", "bank");
        let refused = io::Error::other("refused");
        let cause = &refused as &dyn std::error::Error;
        warn!(delay_ms = 500u64, manual = true, error = cause, "The payment \"A\" is late");
        debug!("not at this level");
    });
    assert_eq!(text.lines().count(), 1, "{text}");
    let mut line: Value = serde_json::from_str(&text).expect("a line is JSON");
    let timestamp = line.as_object_mut().unwrap().remove("timestamp").expect("a line has its time");
    assert!(timestamp.as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    assert_eq!(
        line,
        serde_json::json!({
            "level": "WARN",
            "target": "operation::logging",
            "message": "The payment \"A\" is late",
            "step_uuid": "0190",
            "namespace": "inner",
            "attempt": 2,
            "provider": "bank",
            "delay_ms": 500,
            "manual": true,
            "error": "refused",
        })
    );
}

#[test]
fn auto_is_text_on_a_terminal_and_json_elsewhere() {
    let work = || info!(port = 8081, "Serving HTTP");
    assert!(log(LogFormat::Auto, "info", false, work).starts_with('{'));
    let terminal = log(LogFormat::Auto, "info", true, work);
    assert!(terminal.contains("Serving HTTP") && !terminal.starts_with('{'), "{terminal}");
    let file = log(LogFormat::Text, "info", false, work);
    assert!(file.contains("INFO operation::logging: Serving HTTP port=8081"), "{file}");
    assert!(!file.contains('\u{1b}'), "no colours outside of terminals");
}

#[test]
fn the_level_is_a_filter() {
    let work = || {
        info!("dropped");
        info!(target: "tasker", "kept");
    };
    let text = log(LogFormat::Text, "warn,tasker=info", false, work);
    assert!(text.contains("kept") && !text.contains("dropped"), "{text}");
}

#[test]
fn a_wrong_level_is_an_error_that_says_what_was_expected() {
    let settings = LogConfig { level: "a=b=c".to_owned(), ..LogConfig::default() };
    assert_eq!(
        logging::init(&settings).unwrap_err().to_string(),
        "the configuration has 1 mistake:\n  - log.level: expected a log filter, such as \"info\" or \
         \"warn,tasker_worker_rust=debug\", got \"a=b=c\""
    );
}
