//! What can go wrong before and around the steps. Failures *of* steps are [`StepError`](crate::StepError)s.

use std::path::PathBuf;

use crate::broker::BrokerError;

/// Why the worker, the orchestrator or a command cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Settings that make no sense: every mistake, one a line.
    #[error("the configuration has {} {}:\n{}", .0.len(), if .0.len() == 1 { "mistake" } else { "mistakes" }, list(.0))]
    Config(Vec<String>),
    /// Templates that make no sense: every mistake, one a line.
    #[error("the task templates have {} {}:\n{}", .0.len(), if .0.len() == 1 { "mistake" } else { "mistakes" }, list(.0))]
    Templates(Vec<String>),
    /// Steps without a handler: each as `namespace/template/step`.
    #[error("no handler is registered for {}:\n{}", if .0.len() == 1 { "a step" } else { "some steps" }, list(.0))]
    MissingHandlers(Vec<String>),
    /// The broker.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The store.
    #[error("the store {store:?} {problem}")]
    Store {
        /// Where the store is, without credentials.
        store: String,
        /// What happened, and what to do.
        problem: String,
    },
    /// A port that cannot be listened on.
    #[error("cannot listen on {address}: {source}; set {setting} to a free port")]
    Listen {
        /// The address.
        address: String,
        /// The setting it comes from.
        setting: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something every program may expect of its system.
    #[error("{what}: {source}")]
    System {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        source: std::io::Error,
    },
    /// A file.
    #[error("cannot read {path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that cannot be written.
    #[error("cannot write {path}: {source}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The orchestrator's API, as a client sees it.
    #[error("{0}")]
    Api(String),
    /// The orchestrator's API understood a request, and refused it.
    #[error("{message} ({code})")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The API's code, such as `NOT_FOUND`.
        code: String,
        /// What is wrong, and what to do.
        message: String,
    },
}

impl Error {
    /// The exit code of a program that ends with this error: 1 when the orchestrator said no, 64 for what the
    /// caller must change, 69 for what cannot be reached, 71 for what the system did not give.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Templates(_) | Self::MissingHandlers(_) => 64,
            Self::File { .. } | Self::Write { .. } => 64,
            Self::Broker(BrokerError::Invalid(_)) => 64,
            Self::Refused { status: 400..500, .. } => 1,
            Self::System { .. } => 71,
            Self::Refused { .. } => 69,
            Self::Broker(_) | Self::Store { .. } | Self::Listen { .. } | Self::Api(_) => 69,
        }
    }
}

/// A problem that may quote its input, as one short line: control characters escaped, the middle left out.
pub(crate) fn sentence(text: &str) -> String {
    const START: usize = 400;
    const END: usize = 200;
    let mut line = String::with_capacity(text.len().min(START + END));
    let left_out = text.len().saturating_sub(START + END);
    for (at, character) in text.char_indices() {
        let within = at < START || at >= START + left_out;
        match character {
            _ if !within => {}
            character if character.is_control() => line.extend(character.escape_default()),
            character => line.push(character),
        }
        if left_out > 0 && at < START && at + character.len_utf8() >= START {
            line.push_str(" … ");
        }
    }
    line
}

fn list(lines: &[String]) -> String {
    lines.iter().map(|line| format!("  - {line}")).collect::<Vec<_>>().join("\n")
}
