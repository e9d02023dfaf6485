//! Settings as TOML, for people.

use std::fmt::Write;

use serde_json::Value;

use super::check::Rule;
use super::secret::redact;
use super::setting::Setting;
use super::{Config, Program};

impl Config {
    /// The settings in effect as TOML, without secrets, each with where it came from unless it is a default.
    pub fn show(&self) -> String {
        render(self.settings(), |text, setting| {
            let value = match setting.rule {
                Rule::AmqpUrls => redacted(&setting.value),
                Rule::Optional(Rule::Key | Rule::Headers) if !setting.value.is_null() => "***".into(),
                _ => setting.value.clone(),
            };
            text.push_str(&assignment(setting, &value));
            if let Some(source) = self.sources.get(&setting.key) {
                let _ = write!(text, "  # {source}");
            }
        })
    }

    /// A file with every setting of `program`, its default and what it does.
    pub fn template(program: Program) -> String {
        let own = match program {
            Program::Worker => "worker.",
            Program::Orchestrator => "orchestrator.",
        };
        let settings = Self::default().settings().into_iter().filter(|setting| {
            !setting.key.contains('.')
                || [own, "broker.", "log.", "tracing."].iter().any(|section| setting.key.starts_with(section))
        });
        let body = render(settings, |text, setting| {
            let _ = writeln!(text, "# {}", setting.help);
            text.push_str(&assignment(setting, &setting.value));
        });
        format!(
            "# Every setting with its default. The environment wins: TASKER__SECTION__KEY, such as \
             TASKER__LOG__LEVEL=debug.\n\n{body}"
        )
    }
}

/// Settings under the headings of their sections, each written by `write`.
fn render(settings: impl IntoIterator<Item = Setting>, write: impl Fn(&mut String, &Setting)) -> String {
    let mut text = String::new();
    let mut section = String::new();
    for setting in settings {
        let (path, _) = setting.key.rsplit_once('.').unwrap_or_default();
        if path != section {
            let _ = writeln!(text, "\n[{path}]");
            path.clone_into(&mut section);
        }
        write(&mut text, &setting);
        text.push('\n');
    }
    text
}

fn assignment(setting: &Setting, value: &Value) -> String {
    let name = setting.key.rsplit('.').next().unwrap_or_default();
    match value {
        Value::Null => format!("{name} = \"\""),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(Value::to_string).collect();
            format!("{name} = [{}]", items.join(", "))
        }
        // Texts, numbers and booleans are written alike in JSON and TOML.
        value => format!("{name} = {value}"),
    }
}

fn redacted(urls: &Value) -> Value {
    urls.as_array().into_iter().flatten().filter_map(Value::as_str).map(redact).collect()
}
