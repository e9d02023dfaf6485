//! Steps that decide which others there are, and steps that divide their work.

mod batches;
mod decisions;

use serde_json::{Value, json};
use tasker_worker_rust::message::Json;
use tasker_worker_rust::orchestrator::advance::{Effect, Event, Outcome};
use tasker_worker_rust::orchestrator::by_hand::{self, ByHand};
use tasker_worker_rust::orchestrator::dag::Plan;
use tasker_worker_rust::orchestrator::task::{StepState, TaskState};
use tasker_worker_rust::template::{BatchConfig, FailureStrategy, StepKind, Template};
use tasker_worker_rust::{Batches, Decision};

use crate::replay::{World, replayed};
use crate::support::{result_of, template};

fn of_kinds(steps: &[(&str, Vec<&str>)], kinds: &[(&str, StepKind)]) -> Template {
    let mut template = template("shop", steps);
    for (name, kind) in kinds {
        let step = template.steps.iter_mut().find(|step| step.name == *name).expect("a step of the template");
        step.kind = kind.clone();
    }
    template
}

/// a, then a decision between b (then b2), c and nothing, then z. In the file the other way round.
fn routed() -> Template {
    of_kinds(
        &[
            ("z", vec!["b2", "c"]),
            ("c", vec!["route"]),
            ("b2", vec!["b"]),
            ("b", vec!["route"]),
            ("route", vec!["a"]),
            ("a", vec![]),
        ],
        &[("route", StepKind::Decision), ("z", StepKind::DeferredConvergence)],
    )
}

/// Work divided by `split` and done by `work`, brought together by `sum`.
fn divided(config: BatchConfig) -> Template {
    of_kinds(
        &[
            ("split", vec![]),
            ("work", vec!["split"]),
            ("sum", vec!["work"]),
            ("~work", vec![]),
            ("~split", vec![]),
        ],
        &[
            ("split", StepKind::Batchable(config)),
            ("work", StepKind::BatchWorker),
            ("sum", StepKind::DeferredConvergence),
        ],
    )
}

fn strategy(failure_strategy: FailureStrategy) -> Template {
    divided(BatchConfig { failure_strategy, parallelism: 2, ..BatchConfig::default() })
}

fn never_undone(mut template: Template) -> Template {
    template.steps.retain(|step| step.compensates.is_none());
    template
}

/// A task of `routed` in which nothing is left to do before the decision.
fn at_the_decision(template: Template) -> World {
    let mut world = World::new(template);
    world.returns("a", json!(1));
    world
}

trait Played {
    fn returns(&mut self, step: &str, output: Value) -> Outcome;
    fn fails(&mut self, step: &str) -> Outcome;
    fn existing(&self) -> Vec<&str>;
    fn open(&self) -> Vec<&str>;
    fn inputs(&self, step: &str) -> Vec<String>;
    fn error(&self, step: &str) -> String;
}

impl Played for World {
    fn returns(&mut self, step: &str, output: Value) -> Outcome {
        let attempt = self.task.steps[self.step(step)].attempts + 1;
        let result = result_of(&self.request(step, attempt), Ok(output));
        self.hear(Event::Result(Box::new(result))).outcome
    }

    fn fails(&mut self, step: &str) -> Outcome {
        self.hear(self.failure(step, 1)).outcome
    }

    fn existing(&self) -> Vec<&str> {
        let there = (0..self.task.steps.len()).filter(|step| self.task.steps[*step].exists);
        let mut names: Vec<&str> = there.map(|step| self.task.plan.step(step).name.as_str()).collect();
        names.sort_unstable();
        names
    }

    fn open(&self) -> Vec<&str> {
        let names = self.existing().into_iter();
        names.filter(|name| self.state(name).is_open()).collect()
    }

    fn inputs(&self, step: &str) -> Vec<String> {
        self.request(step, 1).sequence_data.into_iter().map(|input| input.step_name).collect()
    }

    fn error(&self, step: &str) -> String {
        assert_eq!((self.state(step), self.task.state), (StepState::Error, TaskState::Error));
        let error = self.task.steps[self.step(step)].error.clone().expect("it failed with something");
        assert!(!error.retryable);
        error.message
    }
}

fn create(names: &[&str]) -> Value {
    serde_json::to_value(Decision::create(names.iter().copied())).expect("it encodes")
}

fn batches(count: u64) -> Value {
    serde_json::to_value(Batches::split(count * 10, 10)).expect("it encodes")
}

/// A person completes the step with this result.
fn by_hand(world: &mut World, step: &str, result: &Value) -> Outcome {
    let decision =
        by_hand::Decision::Complete { result: Json::encode(result).expect("it encodes"), metadata: None };
    let step_uuid = world.task.steps[world.step(step)].uuid;
    let decided =
        ByHand { step_uuid, decision, by: "ada".to_owned(), reason: "the rule was wrong".to_owned() };
    world.hear(Event::ByHand(Box::new(decided))).outcome
}
