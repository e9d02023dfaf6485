//! `submit`, `status`, `cancel`: tasks, through the orchestrator's API.

use std::collections::HashMap;
use std::io::{IsTerminal, Read};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde_json::{Value, json};
use tasker_worker_rust::api::{StepResponse, TaskRequest, TaskResponse, TaskTiming};
use tasker_worker_rust::client::{Client, Submitted};
use tasker_worker_rust::message::Json;
use tasker_worker_rust::{Config, Error};
use uuid::Uuid;

use super::output::{self, Table, brief, took};
use super::{Answer, Api, Output, timing};

/// How often progress is shown. The end is seen at once.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// More steps than this share one progress bar.
const BARS: usize = 30;

#[derive(Debug, clap::Args)]
pub(super) struct Submit {
    /// The template, such as linear_workflow/mathematical_sequence.
    #[arg(value_name = "NAMESPACE/NAME")]
    template: String,
    /// The template's version [default: the latest].
    #[arg(long)]
    version: Option<String>,
    /// The task's context: JSON, @FILE, or - for standard input.
    #[arg(long, default_value = "{}", value_name = "JSON")]
    context: String,
    /// Follow the task to its end; exit with 1 if it does not complete.
    #[arg(long)]
    wait: bool,
    /// How long to wait, in seconds; then exit with 75.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
    /// Two submissions with the same key are one task.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// From -100 to 100: tasks with a higher priority have their steps sent first.
    #[arg(long, allow_negative_numbers = true)]
    priority: Option<i32>,
    /// A word to find the task by; may be given several times.
    #[arg(long = "tag", value_name = "WORD")]
    tags: Vec<String>,
    /// Why the task is started.
    #[arg(long, default_value = "submitted on the command line")]
    reason: String,
    #[command(flatten)]
    api: Api,
}

#[derive(Debug, clap::Args)]
pub(super) struct Status {
    /// The task.
    task_uuid: Uuid,
    /// Show where its time went: the stages of each step, and the steps that its end waited for.
    #[arg(long)]
    timing: bool,
    #[command(flatten)]
    api: Api,
}

#[derive(Debug, clap::Args)]
pub(super) struct Cancel {
    /// The task.
    task_uuid: Uuid,
    #[command(flatten)]
    api: Api,
}

impl Submit {
    pub(super) async fn run(&self, config: &Config, output: Output) -> Result<Answer, Error> {
        let client = self.api.client(config)?;
        let (task_uuid, existed) = match client.submit(&self.request()?).await? {
            Submitted::Created(task) => (task.task_uuid, false),
            Submitted::Exists(task_uuid) => (task_uuid, true),
        };
        if existed && output == Output::Text {
            eprintln!("the same task was submitted before; this is it");
        }
        if self.wait {
            let limit = Duration::from_secs(self.timeout);
            return follow(&client, task_uuid, limit, output).await;
        }
        match output {
            Output::Json => output::json(&json!({ "task_uuid": task_uuid, "existed": existed })),
            Output::Text => println!("{task_uuid}"),
        }
        Ok(Answer::Yes)
    }

    fn request(&self) -> Result<TaskRequest, Error> {
        let mistake = |text: String| Error::Config(vec![text]);
        let Some((namespace, name)) = self.template.split_once('/') else {
            return Err(mistake(format!("{:?} is not NAMESPACE/NAME", self.template)));
        };
        let read = |path: &str| {
            std::fs::read_to_string(path).map_err(|source| Error::File { path: path.into(), source })
        };
        let text = match self.context.strip_prefix('@') {
            Some(path) => read(path)?,
            None if self.context == "-" => {
                let mut text = String::new();
                let read = std::io::stdin().read_to_string(&mut text);
                read.map_err(|source| Error::File { path: "standard input".into(), source })?;
                text
            }
            None => self.context.clone(),
        };
        let context: Json = serde_json::from_str(&text)
            .map_err(|error| mistake(format!("--context is not JSON: {error}; give JSON, @FILE or -")))?;
        let mut request = TaskRequest::new(namespace, name, context);
        request.version.clone_from(&self.version);
        request.idempotency_key.clone_from(&self.idempotency_key);
        request.priority = self.priority;
        request.tags.clone_from(&self.tags);
        request.reason.clone_from(&self.reason);
        request.source_system = "command line".to_owned();
        Ok(request)
    }
}

impl Status {
    pub(super) async fn run(&self, config: &Config, output: Output) -> Result<Answer, Error> {
        let client = self.api.client(config)?;
        let task = client.task(self.task_uuid).await?;
        let steps = client.steps(self.task_uuid).await?;
        let timing = if self.timing { Some(client.timing(self.task_uuid).await?) } else { None };
        print(&task, &steps, timing.as_ref(), output);
        Ok(Answer::Yes)
    }
}

impl Cancel {
    pub(super) async fn run(&self, config: &Config, output: Output) -> Result<Answer, Error> {
        let client = self.api.client(config)?;
        let task = client.cancel(self.task_uuid).await?;
        match output {
            Output::Json => output::json(&task),
            Output::Text => println!("{} {}", task.task_uuid, task.status),
        }
        Ok(Answer::Yes)
    }
}

/// Shows a task's progress until it ends or the time is up, then what came of it.
async fn follow(client: &Client, task_uuid: Uuid, limit: Duration, output: Output) -> Result<Answer, Error> {
    let deadline = Instant::now() + limit;
    // What nobody watches is waited for in one go.
    let look = if std::io::stderr().is_terminal() { BETWEEN_LOOKS } else { limit };
    let mut progress = Progress::new();
    progress.show(&client.task(task_uuid).await?);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let task = client.wait(task_uuid, left.min(look)).await?;
        progress.show(&task);
        let finished = task.is_finished();
        if finished || Instant::now() >= deadline {
            progress.clear();
            print(&task, &client.steps(task_uuid).await?, None, output);
            return Ok(match task.status.as_str() {
                "complete" | "resolved_manually" => Answer::Yes,
                _ if finished => Answer::No,
                _ => Answer::NotYet,
            });
        }
    }
}

/// One line per step while the task runs, on a terminal only.
struct Progress {
    bars: MultiProgress,
    by_step: HashMap<String, ProgressBar>,
    all: Option<ProgressBar>,
}

impl Progress {
    fn new() -> Self {
        Self { bars: MultiProgress::new(), by_step: HashMap::new(), all: None }
    }

    fn show(&mut self, task: &TaskResponse) {
        if task.steps.len() > BARS {
            let all = self.all.get_or_insert_with(|| self.bars.add(ProgressBar::new(0)));
            all.set_length(task.total_steps.unsigned_abs());
            all.set_position(task.completed_steps.unsigned_abs());
            return;
        }
        for step in &task.steps {
            let bar = self.by_step.entry(step.name.clone()).or_insert_with(|| {
                let style = ProgressStyle::with_template("{spinner} {prefix:28} {msg}")
                    .expect("the template is right");
                let bar = self
                    .bars
                    .add(ProgressBar::new_spinner().with_style(style).with_prefix(step.name.clone()));
                bar.enable_steady_tick(Duration::from_millis(120));
                bar
            });
            let message = match step.attempts {
                0 | 1 => step.current_state.clone(),
                attempts => format!("{}, attempt {attempts} of {}", step.current_state, step.max_attempts),
            };
            match step.current_state.as_str() {
                "complete" | "error" | "cancelled" | "resolved_manually" => bar.finish_with_message(message),
                _ => bar.set_message(message),
            }
        }
    }

    fn clear(&self) {
        // What is left on a terminal that cannot be cleared does no harm.
        let _ = self.bars.clear();
    }
}

fn print(task: &TaskResponse, steps: &[StepResponse], timing: Option<&TaskTiming>, output: Output) {
    if output == Output::Json {
        let mut answer = json!({ "task": task, "steps": steps });
        if let Some(timing) = timing {
            answer["timing"] = json!(timing);
        }
        return output::json(&answer);
    }
    println!("task      {}", task.task_uuid);
    println!("template  {}/{} {}", task.namespace, task.name, task.version);
    println!("status    {} ({} of {} steps complete)", task.status, task.completed_steps, task.total_steps);
    let end = task.completed_at.unwrap_or_else(Timestamp::now);
    let millis = end.duration_since(task.created_at).as_millis();
    println!("time      {}", took(i64::try_from(millis).unwrap_or(i64::MAX)));
    println!();
    let mut table = Table::new(["STEP", "STATE", "ATTEMPTS", "RESULT"]);
    for step in steps {
        table.row([
            step.name.clone(),
            step.current_state.clone(),
            format!("{}/{}", step.attempts, step.max_attempts),
            outcome(step),
        ]);
    }
    table.print();
    if let Some(timing) = timing {
        timing::print(timing);
    }
}

/// What a step returned, why it failed, or when it is tried again.
fn outcome(step: &StepResponse) -> String {
    if let Some(output) = step.output() {
        return brief(&output.parse().unwrap_or(Value::Null), 90);
    }
    let retry = step.next_retry_at.map(|at| format!("next attempt at {at:.0}; ")).unwrap_or_default();
    match &step.error {
        Some(error) => {
            let code = error.code.as_ref().map(|code| format!(" [{code}]")).unwrap_or_default();
            format!("{retry}{}{code}", error.message)
        }
        None => retry,
    }
}
