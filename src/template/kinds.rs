//! Steps that decide, divide work, or come together again: whether what they need is there.

use super::dag;
use super::fields::{Notes, did_you_mean};
use super::format::{Kind, RawBatch, RawStep};
use super::{BatchConfig, StepKind};

/// So many decisions may stand behind one another.
const DEEPEST_DECISIONS: usize = 20;

fn is(step: &RawStep, kind: Kind) -> bool {
    step.kind.as_ref().is_some_and(|at| at.value == kind)
}

fn waits_for(step: &RawStep, other: &RawStep) -> bool {
    step.dependencies.iter().any(|on| on.value == other.name.value)
}

/// The batch workers that wait for a batchable step.
fn workers<'s>(step: &'s RawStep, steps: &'s [RawStep]) -> impl Iterator<Item = &'s RawStep> {
    steps.iter().filter(|worker| is(worker, Kind::BatchWorker) && waits_for(worker, step))
}

/// The `batch_config` of a batchable step: its own, or the one its batch worker has.
fn batch_of<'s>(step: &'s RawStep, steps: &'s [RawStep]) -> Option<&'s RawBatch> {
    step.batch_config
        .as_ref()
        .or_else(|| workers(step, steps).find_map(|worker| worker.batch_config.as_ref()))
}

/// What the step is, once everything has been checked.
pub(super) fn kind(step: &RawStep, steps: &[RawStep]) -> StepKind {
    match step.kind.as_ref().map(|at| at.value).unwrap_or_default() {
        Kind::Standard => StepKind::Standard,
        Kind::Decision => StepKind::Decision,
        Kind::DeferredConvergence => StepKind::DeferredConvergence,
        Kind::BatchWorker => StepKind::BatchWorker,
        Kind::Batchable => {
            let raw = batch_of(step, steps).cloned().unwrap_or_default();
            let default = BatchConfig::default();
            let mut workers = workers(step, steps);
            let only = workers.next().filter(|_| workers.next().is_none());
            StepKind::Batchable(BatchConfig {
                batch_size: raw.batch_size.unwrap_or(default.batch_size),
                parallelism: raw.parallelism.unwrap_or(default.parallelism),
                checkpoint_interval: raw.checkpoint_interval,
                cursor_field: raw.cursor_field.unwrap_or(default.cursor_field),
                worker_template: raw
                    .worker_template
                    .map(|name| name.value)
                    .or_else(|| only.map(|worker| worker.name.value.clone())),
                failure_strategy: raw.failure_strategy.unwrap_or_default(),
            })
        }
    }
}

/// Everything that keeps these steps from being what they say.
pub(super) fn check(steps: &[RawStep], notes: &mut Notes) {
    for step in steps {
        let Some(kind) = &step.kind else {
            needless_batch(step, notes);
            continue;
        };
        let mut mistake =
            |text: String| notes.mistake(kind.line, format!("step {:?}: {text}", step.name.value));
        let names_a_worker =
            |step: &RawStep| batch_of(step, steps).is_some_and(|batch| batch.worker_template.is_some());
        let asks_for = |worker: &RawStep, batchable: &&RawStep| {
            let named = batch_of(batchable, steps).and_then(|batch| batch.worker_template.as_ref());
            let named = named.is_some_and(|name| name.value == worker.name.value);
            is(batchable, Kind::Batchable) && (named || waits_for(worker, batchable))
        };
        let asking = || steps.iter().filter(|batchable| asks_for(step, batchable)).count();
        match kind.value {
            Kind::Decision if step.dependencies.is_empty() => {
                mistake("decides about nothing; a decision needs a step it depends on".to_owned());
            }
            Kind::Batchable if !names_a_worker(step) && workers(step, steps).next().is_none() => mistake(
                "has no batch_worker; add a step of that type that depends on it, or name one under \
                 batch_config.worker_template"
                    .to_owned(),
            ),
            Kind::BatchWorker => match asking() {
                0 => mistake(
                    "no batchable step asks for it; add the batchable step to its dependencies".to_owned(),
                ),
                1 => {}
                several => mistake(format!(
                    "{several} batchable steps ask for it; give each of them a batch_worker of its own"
                )),
            },
            _ => {}
        }
        if step.compensates.is_some() && kind.value != Kind::Standard {
            mistake("undoes another step, so it can only be of type standard".to_owned());
        }
        if !matches!(kind.value, Kind::Batchable | Kind::BatchWorker) {
            needless_batch(step, notes);
        }
    }
    worker_templates(steps, notes);
    decisions(steps, notes);
}

fn needless_batch(step: &RawStep, notes: &mut Notes) {
    if let Some(batch) = &step.batch_config {
        let name = &step.name.value;
        let text = format!(
            "step {name:?}: batch_config has no effect: the step is neither batchable nor batch_worker"
        );
        notes.warning(batch.line, text);
    }
}

fn worker_templates(steps: &[RawStep], notes: &mut Notes) {
    for step in steps {
        let named = step.batch_config.as_ref().and_then(|batch| batch.worker_template.as_ref());
        let Some(worker) = named else { continue };
        let place = format!("step {:?}, batch_config: worker_template", step.name.value);
        match steps.iter().find(|step| step.name.value == worker.value) {
            None => {
                let workers = steps.iter().filter(|step| is(step, Kind::BatchWorker));
                let hint = did_you_mean(&worker.value, workers.map(|step| step.name.value.as_str()));
                let text = format!("{place} {:?} is no step of this template; {hint}", worker.value);
                notes.mistake(worker.line, text);
            }
            Some(found) if !is(found, Kind::BatchWorker) => {
                let text = format!("{place} {:?} is not of type batch_worker; make it so", worker.value);
                notes.mistake(worker.line, text);
            }
            Some(_) => {}
        }
    }
}

/// Decisions behind decisions, which create steps behind created steps.
fn decisions(steps: &[RawStep], notes: &mut Notes) {
    let names: Vec<&str> = steps.iter().map(|step| step.name.value.as_str()).collect();
    let dependencies = |index: usize| steps[index].dependencies.iter().map(|on| on.value.as_str());
    let depths =
        dag::longest_ways(&names, &dependencies, |index| usize::from(is(&steps[index], Kind::Decision)));
    let deepest = steps.iter().zip(depths).find(|(step, depth)| {
        is(step, Kind::Decision) && depth.is_some_and(|depth| depth >= DEEPEST_DECISIONS)
    });
    if let Some((step, _)) = deepest {
        let name = &step.name.value;
        let text = format!(
            "step {name:?}: more than {DEEPEST_DECISIONS} decisions stand behind one another; decide more at once"
        );
        notes.mistake(step.name.line, text);
    }
}
