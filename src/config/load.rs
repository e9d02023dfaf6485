//! Files and environment, laid over the defaults. Every mistake is kept until all have been found.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use toml::de::{DeTable, DeValue};

use super::Config;
use super::check::{Rule, clashes};
use super::document::{Entry, File, flatten, is_section, json};
use super::setting::Setting;
use crate::Error;
use crate::error::sentence;

/// Which of the two programs the settings are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Runs steps.
    Worker,
    /// Decides which steps run.
    Orchestrator,
}

impl Program {
    /// The file that is read when none is named.
    pub fn default_file(self) -> &'static Path {
        Path::new(match self {
            Self::Worker => "config/worker.toml",
            Self::Orchestrator => "config/orchestrator.toml",
        })
    }
}

/// Where settings came from: `config/worker.toml:12`, or a variable's name, by key.
#[derive(Debug, Clone, Default)]
pub struct Sources(BTreeMap<String, String>);

impl Sources {
    /// Where the setting `key`, such as `log.level`, came from; `None` for a default.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }
}

/// Always equal: where a value came from does not change what it does.
impl PartialEq for Sources {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

const PREFIX: &str = "TASKER__";

/// Variables with names of their own, what they set, and whether a `…_FILE` may give the value.
const SHORT_NAMES: &[(&str, &str, bool)] = &[
    ("RABBITMQ_URL", "broker.urls", true),
    ("DATABASE_URL", "orchestrator.database_url", true),
    ("ORCHESTRATION_API_URL", "worker.orchestration_api_url", false),
    ("TASKER_API_KEY", "worker.orchestration_api_key", true),
    ("TASKER_ENV", "environment", false),
    ("TASKER_WORKER_ID", "worker.worker_id", false),
    ("RUST_LOG", "log.level", false),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "tracing.otlp_endpoint", false),
    ("OTEL_EXPORTER_OTLP_HEADERS", "tracing.otlp_headers", true),
    ("OTEL_EXPORTER_OTLP_CERTIFICATE", "tracing.ca_file", false),
];

impl Config {
    /// The settings of a worker, from its file and the environment.
    ///
    /// # Errors
    /// [`Error::Config`] with every mistake.
    pub fn load() -> Result<Self, Error> {
        Self::load_file(None, Program::Worker)
    }

    /// The settings of `program`, from `file` (or else as in [`load`](Self::load)) and the environment.
    ///
    /// # Errors
    /// [`Error::Config`] with every mistake.
    #[expect(clippy::disallowed_methods, reason = "this is the place where settings are read")]
    pub fn load_file(file: Option<&Path>, program: Program) -> Result<Self, Error> {
        Self::load_with(file, program, std::env::vars_os())
    }

    /// As [`load_file`](Self::load_file), with an environment that is not the process's.
    ///
    /// # Errors
    /// [`Error::Config`] with every mistake.
    pub fn load_with(
        file: Option<&Path>,
        program: Program,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Error> {
        let mut layers = Layers::default();
        let variables = layers.readable(variables);
        layers.file(file, program, &variables);
        layers.long_names(&variables);
        layers.short_names(program, &variables);
        layers.finish(program)
    }
}

type Variables = BTreeMap<String, String>;

/// What has been read so far.
struct Layers {
    known: Vec<Setting>,
    values: Map<String, Value>,
    sources: BTreeMap<String, String>,
    wrong: BTreeSet<String>,
    mistakes: Vec<String>,
}

impl Default for Layers {
    fn default() -> Self {
        Self {
            known: Config::default().settings(),
            values: Map::new(),
            sources: BTreeMap::new(),
            wrong: BTreeSet::new(),
            mistakes: Vec::new(),
        }
    }
}

impl Layers {
    fn mistake(&mut self, source: impl Display, problem: impl Display) {
        self.mistakes.push(format!("{source}: {problem}"));
    }

    /// The variables that may be ours, as text.
    fn readable(&mut self, variables: impl IntoIterator<Item = (OsString, OsString)>) -> Variables {
        let mut readable = Variables::new();
        for (name, value) in variables {
            let Ok(name) = name.into_string() else { continue };
            let ours = name.starts_with("TASKER")
                || SHORT_NAMES
                    .iter()
                    .any(|(short, ..)| name.strip_suffix("_FILE").unwrap_or(&name) == *short);
            match value.into_string() {
                Ok(value) if ours => drop(readable.insert(name, value)),
                Err(_) if ours => self.mistake(name, "the value is not UTF-8"),
                _ => {}
            }
        }
        readable
    }

    fn file(&mut self, file: Option<&Path>, program: Program, variables: &Variables) {
        let named = variables.get("TASKER_CONFIG").filter(|name| !name.is_empty());
        let (path, named_by) = match (file, named) {
            (Some(file), _) => (file.to_owned(), ""),
            (None, Some(named)) => (PathBuf::from(named), "TASKER_CONFIG: "),
            (None, None) if program.default_file().exists() => (program.default_file().to_owned(), ""),
            (None, None) => return,
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => self.document(&path.display().to_string(), &text),
            Err(error) => self.mistakes.push(format!("{named_by}cannot read {}: {error}", path.display())),
        }
    }

    fn document(&mut self, name: &str, text: &str) {
        let (document, errors) = DeTable::parse_recoverable(text);
        let file = File { name, text };
        for error in &errors {
            let source = file.at(error.span().map_or(0, |span| span.start));
            self.mistake(source, error.message().replace('\n', ", "));
        }
        if errors.is_empty() {
            let mut entries = Vec::new();
            flatten(document.get_ref(), "", &self.known, &mut entries);
            entries.sort_by_key(|entry| entry.at);
            for entry in entries {
                self.entry(&file, entry);
            }
        }
    }

    fn entry(&mut self, file: &File<'_>, entry: Entry<'_, '_>) {
        let source = file.at(entry.at);
        let key = entry.key;
        match self.rule(&key) {
            Some(rule) => match json(entry.value) {
                Ok(value) => self.set(&key, value, rule, source),
                Err(got) => {
                    self.mistake(source, format_args!("{key}: expected {}, got {got}", rule.expected()));
                    self.wrong.insert(key);
                }
            },
            None if self.is_section(&key) => {
                self.mistake(source, format_args!("{key}: expected the section [{key}], got a value"));
            }
            None => {
                let problem = self.unknown(&key, |known| known.to_owned());
                self.mistake(source, problem);
            }
        }
    }

    fn long_names(&mut self, variables: &Variables) {
        let ours =
            variables.iter().filter_map(|(name, value)| Some((name, name.strip_prefix(PREFIX)?, value)));
        for (name, path, value) in ours {
            let key = path.to_lowercase().replace("__", ".");
            match self.rule(&key) {
                Some(rule) => match value_of(value, rule) {
                    Ok(value) => self.set(&key, value, rule, name.clone()),
                    Err(problem) => {
                        self.mistake(name, format_args!("{key}: {problem}"));
                        self.wrong.insert(key);
                    }
                },
                None if self.is_section(&key) => self
                    .mistake(name, format_args!("{key} is a section; add the name of one of its settings")),
                None => {
                    let problem = self.unknown(&key, variable);
                    self.mistake(name, problem);
                }
            }
        }
    }

    fn short_names(&mut self, program: Program, variables: &Variables) {
        let given = |name: &str| variables.get(name).filter(|value| !value.is_empty());
        for (name, key, may_be_file) in SHORT_NAMES {
            // A worker needs no store; the variable is another program's where it has one all the same.
            if *name == "DATABASE_URL" && program == Program::Worker {
                continue;
            }
            let file_name = format!("{name}_FILE");
            let file = given(&file_name).filter(|_| *may_be_file);
            match (given(name), file) {
                (Some(_), Some(_)) => {
                    self.mistake(name, format_args!("{file_name} is set as well; set one of the two"));
                    self.wrong.insert((*key).to_owned());
                }
                (Some(value), None) => self.short_name(name, key, value),
                (None, Some(path)) => match std::fs::read_to_string(path) {
                    Ok(value) => self.short_name(&file_name, key, value.trim()),
                    Err(error) => {
                        self.mistake(file_name, format_args!("cannot read {path}: {error}"));
                        self.wrong.insert((*key).to_owned());
                    }
                },
                (None, None) => {}
            }
        }
    }

    fn short_name(&mut self, name: &str, key: &str, value: &str) {
        let rule = self.rule(key).expect("the short names set known settings");
        match value_of(value, rule) {
            Ok(value) => self.set(key, value, rule, name.to_owned()),
            Err(problem) => self.mistake(name, format_args!("{key}: {problem}")),
        }
    }

    fn rule(&self, key: &str) -> Option<Rule> {
        self.known.iter().find(|setting| setting.key == key).map(|setting| setting.rule)
    }

    fn is_section(&self, key: &str) -> bool {
        is_section(&self.known, key)
    }

    fn set(&mut self, key: &str, value: Value, rule: Rule, source: String) {
        if let Err(problem) = rule.check(&value) {
            self.mistake(source, format_args!("{key}: {problem}"));
            self.wrong.insert(key.to_owned());
            return;
        }
        let absent = matches!(rule, Rule::Optional(_)) && value == "";
        let (sections, name) = key.rsplit_once('.').unwrap_or(("", key));
        let mut table = &mut self.values;
        for section in sections.split('.').filter(|section| !section.is_empty()) {
            let below = table.entry(section).or_insert_with(|| Value::Object(Map::new()));
            table = below.as_object_mut().expect("a section holds settings, and no setting is one");
        }
        table.insert(name.to_owned(), if absent { Value::Null } else { value });
        self.sources.insert(key.to_owned(), source);
    }

    /// That there is no setting `key`, and which one may have been meant, spelled by `spell`.
    fn unknown(&self, key: &str, spell: impl Fn(&str) -> String) -> String {
        let mut candidates: BTreeSet<&str> = self.known.iter().map(|setting| setting.key.as_str()).collect();
        for setting in &self.known {
            candidates.extend(setting.key.match_indices('.').map(|(end, _)| &setting.key[..end]));
        }
        let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
        // What is more than twice as long is not like it, and to compare what is far longer would take seconds.
        let near = |key: &str, known: &str| match key.len() > 2 * known.len() {
            true => 0.0,
            false => strsim::normalized_damerau_levenshtein(key, known),
        };
        // The right name in the wrong section counts as much as the wrong name in the right one.
        let likeness = |known: &str| near(key, known).max(0.95 * near(&last(key), &last(known)));
        let nearest = candidates.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        match nearest.filter(|known| likeness(known) >= 0.7) {
            Some(known) => format!("there is no setting {key}; did you mean {}?", spell(known)),
            None => format!("there is no setting {key}"),
        }
    }

    fn finish(mut self, program: Program) -> Result<Config, Error> {
        let config = match serde_json::from_value::<Config>(Value::Object(self.values)) {
            Ok(config) => config,
            Err(error) => {
                self.mistakes.push(error.to_string());
                return Err(told(&self.mistakes));
            }
        };
        for clash in clashes(&config, program) {
            // A clash with the default of a setting that was given, but wrongly, is none.
            if clash.keys.iter().any(|key| self.wrong.contains(*key)) {
                continue;
            }
            let mut sources: Vec<&str> =
                clash.keys.iter().filter_map(|key| self.sources.get(*key)).map(String::as_str).collect();
            sources.dedup();
            self.mistakes.push(format!("{}: {}", sources.join(", "), clash.problem));
        }
        if !self.mistakes.is_empty() {
            return Err(told(&self.mistakes));
        }
        Ok(Config { sources: Sources(self.sources), ..config })
    }
}

/// Mistakes quote files, which may hold anything.
fn told(mistakes: &[String]) -> Error {
    Error::Config(mistakes.iter().map(|mistake| sentence(mistake)).collect())
}

/// The variable that sets `key`.
fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"))
}

/// A variable's text as a value for `rule`. What it cannot be is left as text, for the rule to refuse.
fn value_of(text: &str, rule: Rule) -> Result<Value, String> {
    let as_text = || Value::from(text);
    Ok(match rule {
        Rule::Integer(..) => text.trim().parse::<i64>().map_or_else(|_| as_text(), Value::from),
        Rule::Number(..) => text.trim().parse::<f64>().map_or_else(|_| as_text(), Value::from),
        Rule::Bool => text.trim().to_lowercase().parse::<bool>().map_or_else(|_| as_text(), Value::from),
        Rule::Namespaces | Rule::AmqpUrls if text.trim_start().starts_with('[') => {
            let list = DeValue::parse(text.trim()).map_err(|error| {
                format!("expected {}, got a list that cannot be read: {}", rule.expected(), error.message())
            })?;
            json(list.get_ref()).map_err(|got| format!("expected {}, got {got}", rule.expected()))?
        }
        Rule::Namespaces | Rule::AmqpUrls => {
            text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(Value::from).collect()
        }
        _ => as_text(),
    })
}
