//! The workflows of a simulation: what their handlers do on each attempt, and the end that follows from it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tasker_worker_rust::message::HandlerSpec;
use tasker_worker_rust::retry::RetryPolicy;
use tasker_worker_rust::template::{BatchConfig, IdentityStrategy, StepKind, StepTemplate, Template};
use tasker_worker_rust::{Batches, Checkpoint, Decision, Namespace, Step, StepError, StepResult};

use crate::locked;

pub(crate) const MAX_ATTEMPTS: u32 = 3;

/// How long a step may run.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Namespace, name, and the steps with what they wait for, in the order of work; `~a` undoes `a`, `b_001` is the
/// first instance of `b`. What of a decision or a division is not called for is there all the same.
pub(crate) struct Workflow {
    pub(crate) namespace: &'static str,
    pub(crate) name: &'static str,
    pub(crate) steps: &'static [(&'static str, &'static [&'static str])],
}

/// No two steps of a namespace share a name: a handler is registered for the name alone.
pub(crate) const WORKFLOWS: [Workflow; 5] = [
    Workflow {
        namespace: "shop",
        name: "linear",
        steps: &[("l1", &[]), ("l2", &["l1"]), ("l3", &["l2"]), ("~l1", &[]), ("~l2", &[])],
    },
    Workflow {
        namespace: "shop",
        name: "diamond",
        steps: &[
            ("d1", &[]),
            ("d2", &["d1"]),
            ("d3", &["d1"]),
            ("d4", &["d2", "d3"]),
            ("~d1", &[]),
            ("~d2", &[]),
            ("~d3", &[]),
        ],
    },
    Workflow {
        namespace: "bank",
        name: "fan",
        steps: &[
            ("f0", &[]),
            ("f1", &["f0"]),
            ("f2", &["f0"]),
            ("f3", &["f0"]),
            ("f4", &["f1", "f2", "f3"]),
            ("~f0", &[]),
            ("~f3", &[]),
        ],
    },
    Workflow {
        namespace: "bank",
        name: "choice",
        steps: &[
            ("c0", &[]),
            ("c1", &["c0"]),
            ("c2", &["c1"]),
            ("c3", &["c1"]),
            ("c4", &["c2"]),
            ("c5", &["c3", "c4"]),
            ("~c0", &[]),
            ("~c2", &[]),
            ("~c3", &[]),
        ],
    },
    Workflow {
        namespace: "shop",
        name: "batches",
        steps: &[
            ("b0", &[]),
            ("b1_001", &["b0"]),
            ("b1_002", &["b0"]),
            ("b1_003", &["b0"]),
            ("b2", &["b0", "b1_001", "b1_002", "b1_003"]),
            ("~b0", &[]),
            ("~b1_001", &[]),
            ("~b1_002", &[]),
            ("~b1_003", &[]),
        ],
    },
];

/// The step's name in its template.
fn blueprint(step: &str) -> &str {
    step.split('_').next().unwrap_or(step)
}

fn kind(step: &str) -> StepKind {
    match blueprint(step) {
        "c1" => StepKind::Decision,
        "c5" | "b2" => StepKind::DeferredConvergence,
        "b0" => StepKind::Batchable(BatchConfig { parallelism: 2, ..BatchConfig::default() }),
        "b1" => StepKind::BatchWorker,
        _ => StepKind::Standard,
    }
}

/// Whether a step is made only once a decision or a division calls for it.
pub(crate) fn is_made_later(step: &str) -> bool {
    target(step).is_some() || matches!(blueprint(step), "c2" | "c3" | "c4" | "c5" | "b1" | "b2")
}

/// Whether a step's failure is the task's: one of many batches is passed over.
pub(crate) fn counts(step: &str) -> bool {
    blueprint(step) != "b1"
}

/// Which of the branches a task's decision takes, as bits; and how many batches it has.
fn choice(context: Context) -> u64 {
    digest(context.seed, "choice", 0, &[]) % 4
}

fn is_called_for(context: Context, step: &str) -> bool {
    let choice = choice(context);
    match (blueprint(target(step).unwrap_or(step)), step.rsplit_once('_')) {
        ("c2" | "c4", _) => choice & 1 > 0,
        ("c3", _) => choice & 2 > 0,
        ("c5", _) => choice > 0,
        (_, Some((_, number))) => number.parse::<u64>().expect("a number") <= choice,
        _ => true,
    }
}

/// What a step's handler returns: the number, and what its kind needs.
fn output(context: Context, step: &str, value: u64) -> Value {
    let outcome = match kind(step) {
        StepKind::Decision => {
            let branches = ["c2", "c3"].into_iter().filter(|step| is_called_for(context, step));
            json!(Decision::create(branches))
        }
        StepKind::Batchable(_) => json!(Batches::split(choice(context), 1)),
        _ => return json!(value),
    };
    let mut output = json!({ "value": value });
    let fields = output.as_object_mut().expect("an object");
    fields.extend(outcome.as_object().expect("an object").clone());
    output
}

/// The number in a handler's output.
pub(crate) fn number(output: &Value) -> u64 {
    output.get("value").unwrap_or(output).as_u64().expect("handlers return numbers")
}

pub(crate) fn target(step: &str) -> Option<&str> {
    step.strip_prefix('~')
}

impl Workflow {
    /// What the step's handler reads: the results it waited for, or the one it undoes.
    fn inputs(&self, step: &str) -> Vec<&'static str> {
        let (name, parents) = self.steps.iter().find(|(name, _)| *name == step).expect("a known step");
        target(name).map_or_else(|| parents.to_vec(), |target| vec![target])
    }

    /// Whether `later` comes after `step`, directly or not.
    pub(crate) fn comes_after(&self, later: &str, step: &str) -> bool {
        let parents = self.inputs(later);
        parents.contains(&step) || parents.iter().any(|parent| self.comes_after(parent, step))
    }

    pub(crate) fn template(&self) -> Template {
        let mut named = BTreeSet::new();
        let steps = self.steps.iter().filter(|(name, _)| named.insert(blueprint(name)));
        let steps = steps.map(|(name, parents)| StepTemplate {
            name: blueprint(name).to_owned(),
            description: None,
            kind: kind(name),
            handler: HandlerSpec::default(),
            dependencies: parents.iter().map(|parent| blueprint(parent).to_owned()).collect(),
            compensates: target(blueprint(name)).map(str::to_owned),
            max_attempts: MAX_ATTEMPTS,
            retry: RetryPolicy { base_ms: 100, max_ms: 400, ..RetryPolicy::default() },
            timeout: Some(TIMEOUT),
        });
        Template {
            namespace: self.namespace.to_owned(),
            name: self.name.to_owned(),
            version: "1.0.0".to_owned(),
            description: None,
            input_schema: None,
            identity_strategy: IdentityStrategy::default(),
            lifecycle: None,
            steps: steps.collect(),
        }
    }
}

/// What a handler does on one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behaviour {
    Succeed {
        after_ms: u64,
    },
    Fail {
        after_ms: u64,
    },
    /// Longer than the longest delay queue, so that the retry goes around twice.
    FailAndWait,
    Panic,
    Overrun,
    FailForGood,
}

/// A task's context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Context {
    /// The seed of its handlers' behaviour, different for every task of a run.
    pub(crate) seed: u64,
}

impl Behaviour {
    fn of(context: Context, step: &str, attempt: u32) -> Self {
        let mut random = StdRng::seed_from_u64(digest(context.seed, step, attempt, &[]));
        let after_ms = if random.random_bool(0.7) { 0 } else { random.random_range(1..400) };
        match random.random_range(0..100) {
            0..76 => Self::Succeed { after_ms },
            76..86 => Self::Fail { after_ms },
            86..89 => Self::FailAndWait,
            89..93 => Self::Panic,
            93..96 => Self::Overrun,
            _ => Self::FailForGood,
        }
    }
}

/// A number that depends on everything given; small enough to be exact in every JSON.
fn digest(seed: u64, step: &str, attempt: u32, inputs: &[u64]) -> u64 {
    let bytes = step.bytes().map(u64::from);
    let parts = bytes.chain([u64::from(attempt)]).chain(inputs.iter().copied());
    parts.fold(seed, |sum, part| (sum ^ part).wrapping_mul(0x0100_0000_01b3).rotate_left(17)) & 0xffff_ffff
}

/// How often each part of each attempt was begun: context's seed, step, attempt; then the part.
pub(crate) type Begun = Arc<Mutex<BTreeMap<(u64, String, u32), BTreeMap<u32, u32>>>>;

/// After how many checkpoints a step comes to its end; most have none.
fn checkpoints(context: Context, step: &str) -> u32 {
    (digest(context.seed, "checkpoints", 0, &[digest(0, step, 0, &[])]) % 12).saturating_sub(8) as u32
}

/// The first part that an attempt goes wrong in, if it does.
fn weak_part(context: Context, step: &str, attempt: u32) -> u32 {
    (digest(context.seed, step, attempt, &[1]) % 4) as u32
}

/// The handlers of every workflow.
pub(crate) fn namespaces(begun: &Begun) -> Vec<Namespace> {
    let mut namespaces = BTreeMap::new();
    for workflow in &WORKFLOWS {
        let mut named = BTreeSet::new();
        for (name, _) in workflow.steps {
            let begun = Arc::clone(begun);
            let handler = move |step: Step<Context>| handle(workflow, Arc::clone(&begun), step);
            if !named.insert(blueprint(name)) {
                continue;
            }
            let namespace = namespaces
                .remove(workflow.namespace)
                .unwrap_or_else(|| Namespace::new(workflow.namespace))
                .step(blueprint(name), handler);
            namespaces.insert(workflow.namespace, namespace);
        }
    }
    namespaces.into_values().collect()
}

async fn handle(workflow: &Workflow, begun: Begun, step: Step<Context>) -> StepResult<Value> {
    let key = (step.context.seed, step.name().to_owned(), step.attempt());
    let mut done: Checkpoint<u32, Vec<u32>> = step.checkpoint()?.unwrap_or_default();
    *locked(&begun).entry(key).or_default().entry(done.cursor).or_default() += 1;
    let behaviour = Behaviour::of(step.context, step.name(), step.attempt());
    let mut last = checkpoints(step.context, step.name());
    if !matches!(behaviour, Behaviour::Succeed { .. }) {
        last = last.min(weak_part(step.context, step.name(), step.attempt()));
    }
    if done.accumulated_results != (0..done.cursor).collect::<Vec<_>>() {
        return Err(StepError::permanent("a part was done twice, or not at all"));
    }
    if done.cursor < last {
        done.accumulated_results.push(done.cursor);
        done.cursor += 1;
        return Err(StepError::checkpoint(done));
    }
    let sleep = |ms| tokio::time::sleep(Duration::from_millis(ms));
    match behaviour {
        Behaviour::Succeed { after_ms } => sleep(after_ms).await,
        Behaviour::Fail { after_ms } => {
            sleep(after_ms).await;
            return Err(StepError::retryable("not this time"));
        }
        Behaviour::FailAndWait => {
            return Err(StepError::retryable("later").retry_after(Duration::from_millis(900)));
        }
        // As a panic, without the message on stderr.
        Behaviour::Panic => std::panic::resume_unwind(Box::new("a bug in the handler")),
        Behaviour::Overrun => tokio::time::sleep(TIMEOUT * 2).await,
        Behaviour::FailForGood => return Err(StepError::permanent("never")),
    }
    let mut inputs = Vec::new();
    for input in workflow.inputs(step.name()) {
        match kind(step.name()) {
            StepKind::DeferredConvergence => inputs.extend(step.find_result_of::<Value>(input)?),
            _ => inputs.push(step.result_of(input)?),
        }
    }
    let inputs: Vec<u64> = inputs.iter().map(number).collect();
    let value = digest(step.context.seed, step.name(), step.attempt(), &inputs);
    Ok(output(step.context, step.name(), value))
}

/// How a step ends when nothing but its handler decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StepEnd {
    /// The attempt after which it ended.
    pub(crate) attempt: u32,
    /// What it returned; `None` when it failed for good.
    pub(crate) output: Option<u64>,
}

/// The steps that run, each with its end. The others wait for a step that failed, or undo one that did not
/// complete, or nothing failed.
pub(crate) fn expected(workflow: &Workflow, context: Context) -> BTreeMap<&'static str, StepEnd> {
    let mut ends: BTreeMap<&'static str, StepEnd> = BTreeMap::new();
    let (undoing, forward): (Vec<_>, Vec<_>) =
        workflow.steps.iter().map(|(name, _)| *name).partition(|name| target(name).is_some());
    let mut run = |steps: Vec<&'static str>| {
        for name in steps {
            let inputs = workflow.inputs(name).into_iter().filter(|input| is_called_for(context, input));
            let ended = inputs.map(|input| (input, ends.get(input).map(|end| end.output)));
            let inputs =
                ended.filter(|(input, end)| counts(input) || target(name).is_some() || *end != Some(None));
            let inputs = inputs.map(|(_, end)| end.flatten());
            if !is_called_for(context, name) {
                continue;
            }
            if let Some(inputs) = inputs.collect::<Option<Vec<u64>>>() {
                ends.insert(name, end_of(context, name, &inputs));
            }
        }
        fails(&ends)
    };
    if run(forward) {
        run(undoing);
    }
    ends
}

/// Whether a task fails in which the steps end like this.
pub(crate) fn fails(ends: &BTreeMap<&'static str, StepEnd>) -> bool {
    ends.iter().any(|(name, end)| end.output.is_none() && counts(name))
}

fn end_of(context: Context, step: &str, inputs: &[u64]) -> StepEnd {
    for attempt in 1..=MAX_ATTEMPTS {
        match Behaviour::of(context, step, attempt) {
            Behaviour::Succeed { .. } => {
                return StepEnd { attempt, output: Some(digest(context.seed, step, attempt, inputs)) };
            }
            Behaviour::FailForGood => return StepEnd { attempt, output: None },
            _ => {}
        }
    }
    StepEnd { attempt: MAX_ATTEMPTS, output: None }
}
