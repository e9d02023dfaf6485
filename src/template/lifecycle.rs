//! How long a task may take, and what becomes of one that takes longer.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fields::{Fields, Keys, Notes};
use super::yaml::Node;

/// 30 days.
const MOST_MINUTES: u64 = 43_200;

const LIFECYCLE: Keys = Keys {
    used: &[
        "max_duration_minutes",
        "max_waiting_for_dependencies_minutes",
        "max_waiting_for_retry_minutes",
        "max_steps_in_process_minutes",
        "staleness_action",
        "auto_fail_on_timeout",
        "auto_dlq_on_timeout",
    ],
    descriptive: &["description"],
    unused: &[],
    refused: &[],
};

/// Limits of a task's time. One that passes any of them is stale.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifecycle {
    /// From its acceptance to its end.
    pub max_duration: Option<Duration>,
    /// While steps wait for others: from the last time one ended.
    pub max_waiting_for_dependencies: Option<Duration>,
    /// While every step that could run waits for its retry: from the last failure.
    pub max_waiting_for_retry: Option<Duration>,
    /// While steps are with the workers: from the last time one ended.
    pub max_steps_in_process: Option<Duration>,
    /// Whether a stale task is recorded for somebody to look at.
    pub records: bool,
    /// Whether a stale task fails.
    pub fails: bool,
}

impl Lifecycle {
    pub(super) fn read(node: &Node, notes: &mut Notes) -> Option<Self> {
        let fields = Fields::read(node, "lifecycle", &LIFECYCLE, notes)?;
        let action = fields.text(&["staleness_action"], notes);
        let (records, fails) = match action.as_ref().map_or("dlq", |action| action.value.as_str()) {
            "dlq" => (true, true),
            "error" => (false, true),
            "none" => (false, false),
            other => {
                let text = format!("staleness_action is {other:?}; expected dlq, error or none");
                notes.mistake(action.as_ref().and_then(|action| action.line), fields.say(&text));
                return None;
            }
        };
        Some(Self {
            max_duration: minutes(&fields, "max_duration_minutes", notes),
            max_waiting_for_dependencies: minutes(&fields, "max_waiting_for_dependencies_minutes", notes),
            max_waiting_for_retry: minutes(&fields, "max_waiting_for_retry_minutes", notes),
            max_steps_in_process: minutes(&fields, "max_steps_in_process_minutes", notes),
            records: fields.flag(&["auto_dlq_on_timeout"], notes).unwrap_or(records),
            fails: fields.flag(&["auto_fail_on_timeout"], notes).unwrap_or(fails),
        })
    }
}

fn minutes(fields: &Fields<'_>, key: &'static str, notes: &mut Notes) -> Option<Duration> {
    let minutes = fields.whole(&[key], MOST_MINUTES, notes)?;
    if minutes.value == 0 {
        notes.mistake(minutes.line, fields.say(&format!("{key} is 0; leave it out for no limit")));
        return None;
    }
    Some(Duration::from_secs(minutes.value * 60))
}
