//! The workflows of a simulation: what their handlers do on each attempt, and the end that follows from it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use tasker_worker_rust::message::HandlerSpec;
use tasker_worker_rust::retry::RetryPolicy;
use tasker_worker_rust::template::{IdentityStrategy, StepKind, StepTemplate, Template};
use tasker_worker_rust::{Namespace, Step, StepError, StepResult};

use crate::locked;

pub(crate) const MAX_ATTEMPTS: u32 = 3;

/// How long a step may run.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Namespace, name, and the steps with what they wait for, in the order of work; `~a` undoes `a`.
pub(crate) struct Workflow {
    pub(crate) namespace: &'static str,
    pub(crate) name: &'static str,
    pub(crate) steps: &'static [(&'static str, &'static [&'static str])],
}

/// No two steps of a namespace share a name: a handler is registered for the name alone.
pub(crate) const WORKFLOWS: [Workflow; 3] = [
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
];

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
        let steps = self.steps.iter().map(|(name, parents)| StepTemplate {
            name: (*name).to_owned(),
            description: None,
            kind: StepKind::Standard,
            handler: HandlerSpec::default(),
            dependencies: parents.iter().map(|parent| (*parent).to_owned()).collect(),
            compensates: target(name).map(str::to_owned),
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

/// How often each attempt was begun: context's seed, step, attempt.
pub(crate) type Begun = Arc<Mutex<BTreeMap<(u64, String, u32), u32>>>;

/// The handlers of every workflow.
pub(crate) fn namespaces(begun: &Begun) -> Vec<Namespace> {
    let mut namespaces = BTreeMap::new();
    for workflow in &WORKFLOWS {
        for (name, _) in workflow.steps {
            let begun = Arc::clone(begun);
            let handler = move |step: Step<Context>| handle(workflow, Arc::clone(&begun), step);
            let namespace = namespaces
                .remove(workflow.namespace)
                .unwrap_or_else(|| Namespace::new(workflow.namespace))
                .step(*name, handler);
            namespaces.insert(workflow.namespace, namespace);
        }
    }
    namespaces.into_values().collect()
}

async fn handle(workflow: &Workflow, begun: Begun, step: Step<Context>) -> StepResult<u64> {
    let key = (step.context.seed, step.name().to_owned(), step.attempt());
    *locked(&begun).entry(key).or_default() += 1;
    let sleep = |ms| tokio::time::sleep(Duration::from_millis(ms));
    match Behaviour::of(step.context, step.name(), step.attempt()) {
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
    let inputs = workflow.inputs(step.name()).into_iter().map(|input| step.result_of(input));
    let inputs = inputs.collect::<StepResult<Vec<u64>>>()?;
    Ok(digest(step.context.seed, step.name(), step.attempt(), &inputs))
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
            let inputs = workflow.inputs(name).into_iter().map(|input| ends.get(input)?.output);
            if let Some(inputs) = inputs.collect::<Option<Vec<u64>>>() {
                ends.insert(name, end_of(context, name, &inputs));
            }
        }
        ends.values().any(|end| end.output.is_none())
    };
    if run(forward) {
        run(undoing);
    }
    ends
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
