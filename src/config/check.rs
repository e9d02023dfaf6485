//! What a setting's value may be, and what settings may be together.

use std::str::FromStr;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use serde_json::Value;
use tracing_subscriber::EnvFilter;
use url::{Host, Url};

use super::setting::Setting;
use super::{Config, Program};
use crate::Error;
use crate::message::is_namespace;

/// The longest time to live a queue can have, in milliseconds: RabbitMQ's timers count to 2^32 - 1.
const LONGEST_DELAY_MS: f64 = 4_294_967_295.0;

/// What an address of RabbitMQ may ask for behind its `?`.
const AMQP_PARAMETERS: &[&str] =
    &["auth_mechanism", "channel_max", "connection_timeout", "frame_max", "heartbeat"];

/// What a setting's value may be.
#[derive(Clone, Copy)]
pub(super) enum Rule {
    /// Text that is not empty.
    Text,
    /// Text that can be a label.
    Name,
    /// Nothing, written as the empty text.
    Optional(&'static Rule),
    /// Both ends included.
    Integer(u64, u64),
    /// Both ends included.
    Number(f64, f64),
    Bool,
    OneOf(&'static [&'static str]),
    /// `HOST:PORT` to listen on.
    Address,
    Http,
    HttpOrHttps,
    /// `NAME=VALUE,NAME=VALUE`, secret.
    Headers,
    /// A secret that fits into an HTTP header.
    Key,
    Database,
    AmqpUrls,
    Namespaces,
    /// The start of a queue's name.
    Prefix,
    /// In the syntax of RUST_LOG.
    Filter,
}

impl Rule {
    /// What a message says should have been there.
    pub(super) fn expected(self) -> String {
        match self {
            Self::Text => "text".to_owned(),
            Self::Name => "1 to 64 characters of A-Z a-z 0-9 _ -".to_owned(),
            Self::Optional(rule) => format!("{}, or \"\"", rule.expected()),
            Self::Integer(min, max) => format!("an integer from {min} to {max}"),
            Self::Number(min, max) => format!("a number from {min} to {max}"),
            Self::Bool => "true or false".to_owned(),
            Self::OneOf(choices) => {
                choices.iter().map(|choice| format!("{choice:?}")).collect::<Vec<_>>().join(" or ")
            }
            Self::Address => "HOST:PORT, such as \"0.0.0.0:8081\"".to_owned(),
            Self::Http => "http://HOST:PORT".to_owned(),
            Self::HttpOrHttps => "http://HOST:PORT or https://HOST:PORT".to_owned(),
            Self::Headers => "NAME=VALUE,NAME=VALUE with other characters as %XX".to_owned(),
            Self::Key => "a key without spaces".to_owned(),
            Self::Database => "sqlite:PATH".to_owned(),
            Self::AmqpUrls => "one or more addresses amqp://USER:PASSWORD@HOST:PORT/VHOST".to_owned(),
            Self::Namespaces => "a list of namespaces, each 1 to 64 characters of A-Z a-z 0-9 _ -".to_owned(),
            Self::Prefix => {
                "1 to 64 characters of A-Z a-z 0-9 _ - and inner dots, not starting with \"amq.\"".to_owned()
            }
            Self::Filter => "a log filter, such as \"info\" or \"warn,tasker_worker_rust=debug\"".to_owned(),
        }
    }

    /// Whether a value must never be printed, not even a wrong one.
    pub(super) fn is_secret(self) -> bool {
        matches!(
            self,
            Self::AmqpUrls | Self::Database | Self::Http | Self::HttpOrHttps | Self::Headers | Self::Key
        ) || matches!(self, Self::Optional(rule) if rule.is_secret())
    }

    /// What is wrong with `value`, in a sentence that follows the setting's key.
    pub(super) fn check(self, value: &Value) -> Result<(), String> {
        let fits = match self {
            Self::Optional(_) if matches!(value, Value::Null) || value == "" => true,
            Self::Optional(rule) => return rule.check(value).map_err(|_| self.mismatch(value)),
            Self::Integer(min, max) => value.as_u64().is_some_and(|n| (min..=max).contains(&n)),
            Self::Number(min, max) => value.as_f64().is_some_and(|n| (min..=max).contains(&n)),
            Self::Bool => value.is_boolean(),
            Self::Namespaces => return self.check_namespaces(value),
            Self::AmqpUrls => return self.check_urls(value),
            Self::Filter => value.as_str().is_some_and(|text| log_filter(text).is_ok()),
            _ => value.as_str().is_some_and(|text| self.fits(text)),
        };
        if fits { Ok(()) } else { Err(self.mismatch(value)) }
    }

    fn fits(self, text: &str) -> bool {
        match self {
            Self::Name => is_namespace(text),
            Self::OneOf(choices) => choices.contains(&text),
            Self::Address => text.rsplit_once(':').is_some_and(|(host, port)| {
                let bracketed = host.starts_with('[') && host.ends_with(']');
                !host.is_empty() && (bracketed || !host.contains(':')) && port.parse::<u16>().is_ok()
            }),
            Self::Http => is_address(text, &["http"]),
            Self::HttpOrHttps => is_address(text, &["http", "https"]),
            Self::Headers => http_headers(text).is_some(),
            Self::Key => !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()),
            Self::Database => text.strip_prefix("sqlite:").is_some_and(|path| !path.is_empty()),
            Self::Prefix => {
                !text.starts_with("amq.")
                    && (1..=64).contains(&text.len())
                    && text.split('.').all(is_namespace)
            }
            _ => !text.is_empty(),
        }
    }

    fn check_namespaces(self, value: &Value) -> Result<(), String> {
        let names = texts(value).ok_or_else(|| self.mismatch(value))?;
        match names.iter().find(|name| !is_namespace(name)) {
            Some(name) => Err(self.mismatch(&Value::from(*name))),
            None => Ok(()),
        }
    }

    fn check_urls(self, value: &Value) -> Result<(), String> {
        let urls = texts(value).filter(|urls| !urls.is_empty()).ok_or_else(|| self.mismatch(value))?;
        for (index, url) in urls.iter().enumerate() {
            amqp_url(url).map_err(|problem| match urls.len() {
                1 => format!("the address {problem}"),
                _ => format!("address {} {problem}", index + 1),
            })?;
        }
        Ok(())
    }

    fn mismatch(self, value: &Value) -> String {
        let got = if self.is_secret() { kind(value).to_owned() } else { shortened(value) };
        format!("expected {}, got {got}", self.expected())
    }
}

/// Whether `url` has one of these schemes, and no credentials.
fn is_address(url: &str, schemes: &[&str]) -> bool {
    Url::parse(url).is_ok_and(|url| {
        schemes.contains(&url.scheme()) && url.username().is_empty() && url.password().is_none()
    })
}

/// The headers in a list `NAME=VALUE,NAME=VALUE`, as OpenTelemetry writes them; `None` where one cannot be sent.
pub(crate) fn http_headers(list: &str) -> Option<HeaderMap> {
    let header = |entry: &str| {
        let (name, value) = entry.split_once('=')?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
        let mut value = HeaderValue::from_str(&value).ok()?;
        value.set_sensitive(true);
        Some((HeaderName::from_str(name.trim()).ok()?, value))
    };
    list.split(',').map(header).collect()
}

/// The filter that `level` is.
///
/// # Errors
/// A sentence with what was expected.
pub(crate) fn log_filter(level: &str) -> Result<EnvFilter, String> {
    let parsed = if level.trim().is_empty() { None } else { EnvFilter::builder().parse(level).ok() };
    parsed.ok_or_else(|| Rule::Filter.mismatch(&Value::from(level)))
}

/// What is wrong with an address of RabbitMQ, without a word of the address.
fn amqp_url(text: &str) -> Result<(), String> {
    let url = Url::parse(text).map_err(|error| {
        format!("cannot be read ({error}); write special characters of its password as %XX")
    })?;
    if !matches!(url.scheme(), "amqp" | "amqps") || url.cannot_be_a_base() {
        return Err("does not start with amqp:// or amqps://".to_owned());
    }
    match url.host() {
        None | Some(Host::Domain("")) => return Err("names no host".to_owned()),
        // The AMQP library would silently connect to localhost.
        Some(Host::Ipv6(_)) => return Err("has an IPv6 address for a host; use a host name".to_owned()),
        Some(_) => {}
    }
    let vhost = url.path().strip_prefix('/').unwrap_or_default();
    if vhost.contains(['/', '@']) || url.fragment().is_some() {
        return Err("has a stray / @ or #; write %2f %40 and %23 in passwords and virtual hosts".to_owned());
    }
    if url.query_pairs().any(|(name, _)| !AMQP_PARAMETERS.contains(&&*name)) {
        return Err(format!(
            "has an unknown parameter; the known ones are {}, and a ? in a password is written %3f",
            AMQP_PARAMETERS.join(", ")
        ));
    }
    Ok(())
}

fn texts(list: &Value) -> Option<Vec<&str>> {
    list.as_array()?.iter().map(Value::as_str).collect()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(text) if text.is_empty() => "\"\"",
        Value::String(_) => "something else",
        Value::Array(list) if list.is_empty() => "an empty list",
        Value::Array(_) => "a list of something else",
        Value::Object(_) => "a table",
    }
}

fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A mistake of several settings together.
pub(super) struct Clash {
    /// The settings that make it.
    pub(super) keys: &'static [&'static str],
    /// What is wrong, in a sentence.
    pub(super) problem: String,
}

/// Every clash between settings that are right by themselves.
pub(super) fn clashes(config: &Config, program: Program) -> Vec<Clash> {
    let mut clashes = Vec::new();
    clashes.extend(ladder(config));
    clashes.extend(certificate(config));
    if program == Program::Orchestrator {
        clashes.extend(token_keys(config));
    }
    if program == Program::Worker {
        clashes.extend(ports(config));
        clashes.extend(repeated_namespaces(config));
    }
    clashes
}

fn ladder(config: &Config) -> Option<Clash> {
    let ladder = &config.broker.delay_ladder;
    let rungs: Vec<f64> =
        (0..ladder.rungs).map(|k| (ladder.first_ms as f64 * ladder.ratio.powi(k as i32)).round()).collect();
    let longest = *rungs.last()?;
    let problem = if longest > LONGEST_DELAY_MS {
        format!(
            "the longest delay of broker.delay_ladder is {longest} ms; RabbitMQ holds messages for at most \
             {LONGEST_DELAY_MS} ms: lower first_ms, ratio or rungs"
        )
    } else if !rungs.is_sorted_by(|a, b| a < b) {
        format!(
            "the delays of broker.delay_ladder do not grow ({} ms, {} ms, …): raise ratio or first_ms",
            rungs[0], rungs[1]
        )
    } else {
        return None;
    };
    let keys =
        &["broker.delay_ladder.first_ms", "broker.delay_ladder.ratio", "broker.delay_ladder.rungs"][..];
    Some(Clash { keys, problem })
}

fn certificate(config: &Config) -> Option<Clash> {
    let tls = &config.broker.tls;
    let (keys, problem) = match (&tls.certificate_file, &tls.key_file) {
        (Some(_), None) => (
            &["broker.tls.certificate_file"][..],
            "broker.tls.certificate_file is set without broker.tls.key_file; set both, or neither",
        ),
        (None, Some(_)) => (
            &["broker.tls.key_file"][..],
            "broker.tls.key_file is set without broker.tls.certificate_file; set both, or neither",
        ),
        (None, None) if tls.external_login => (
            &["broker.tls.external_login"][..],
            "broker.tls.external_login wants a certificate to log in with; set broker.tls.certificate_file and \
             broker.tls.key_file",
        ),
        _ if tls.external_login && config.broker.password_file.is_some() => (
            &["broker.tls.external_login", "broker.password_file"][..],
            "broker.tls.external_login and broker.password_file are two ways to log in; choose one",
        ),
        _ => return None,
    };
    Some(Clash { keys, problem: problem.to_owned() })
}

fn token_keys(config: &Config) -> Option<Clash> {
    let auth = &config.orchestrator.auth;
    (auth.jwt_public_key_file.is_some() && auth.jwks_file.is_some()).then(|| Clash {
        keys: &["orchestrator.auth.jwt_public_key_file", "orchestrator.auth.jwks_file"],
        problem:
            "orchestrator.auth.jwt_public_key_file and orchestrator.auth.jwks_file both say which keys sign \
                  tokens; choose one"
                .to_owned(),
    })
}

fn ports(config: &Config) -> Option<Clash> {
    let metrics = &config.worker.metrics;
    let address = &config.worker.health_address;
    let same = address.rsplit_once(':').is_some_and(|(_, port)| port.parse() == Ok(metrics.prometheus_port));
    (metrics.prometheus_enabled && same && metrics.prometheus_port != 0).then(|| Clash {
        keys: &["worker.metrics.prometheus_port", "worker.health_address"],
        problem: format!(
            "worker.metrics.prometheus_port and worker.health_address both use port {}; choose two ports",
            metrics.prometheus_port
        ),
    })
}

fn repeated_namespaces(config: &Config) -> Option<Clash> {
    let names = &config.worker.namespaces;
    let (_, repeated) = names.iter().enumerate().find(|(index, name)| names[..*index].contains(name))?;
    Some(Clash {
        keys: &["worker.namespaces"],
        problem: format!("worker.namespaces names {repeated:?} twice; name each namespace once"),
    })
}

impl Config {
    /// Checks settings made in code as those from files are checked.
    ///
    /// # Errors
    /// [`Error::Config`] with every mistake.
    pub fn check(&self, program: Program) -> Result<(), Error> {
        let single = |setting: Setting| {
            let problem = setting.rule.check(&setting.value).err()?;
            Some(format!("{}: {problem}", setting.key))
        };
        let mut mistakes: Vec<String> = self.settings().into_iter().filter_map(single).collect();
        if mistakes.is_empty() {
            mistakes.extend(clashes(self, program).into_iter().map(|clash| clash.problem));
        }
        if mistakes.is_empty() { Ok(()) } else { Err(Error::Config(mistakes)) }
    }
}
