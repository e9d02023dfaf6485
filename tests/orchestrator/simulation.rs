//! Random workflows under a hostile broker: messages lost, doubled, reordered and late; steps run twice with
//! different ends; the task taken out of memory and put back at any time.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tasker_worker_rust::broker::topology::Names;
use tasker_worker_rust::message::{Json, ResultStatus, StepExecutionRequest, StepExecutionResult};
use tasker_worker_rust::orchestrator::advance::{DeadLetter, Effect, Event, Outcome, Timing, advance};
use tasker_worker_rust::orchestrator::dag::Plan;
use tasker_worker_rust::orchestrator::outgoing;
use tasker_worker_rust::orchestrator::task::{StepState, Task, TaskState};
use uuid::Uuid;

use crate::replay::reached;
use crate::support::{failure, template};

/// No step is tried more often, so every simulation ends.
const ATTEMPTS: u32 = 4;

/// No step goes on more often.
const PARTS: u32 = 3;

/// A workflow: for each step the earlier ones it waits for, and whether it can be undone.
#[derive(Debug, Clone)]
struct Shape {
    steps: Vec<(Vec<bool>, bool)>,
    seed: u64,
    may_fail: bool,
    may_be_cancelled: bool,
}

fn shapes() -> impl Strategy<Value = Shape> {
    let step = (prop::collection::vec(prop::bool::weighted(0.3), 9), any::<bool>());
    let steps = prop::collection::vec(step, 1..10);
    (steps, any::<u64>(), prop::bool::weighted(0.7), prop::bool::weighted(0.1)).prop_map(
        |(steps, seed, may_fail, may_be_cancelled)| Shape { steps, seed, may_fail, may_be_cancelled },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        // More by PROPTEST_CASES.
        cases: ProptestConfig::default().cases.max(1_500),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_task_comes_to_its_right_end_and_every_step_is_applied_once(shape in shapes()) {
        let mut world = World::new(&shape);
        world.run();
        world.check_the_end();
        world.nothing_changes_it_any_more();
    }
}

struct World {
    random: StdRng,
    shape: Shape,
    task: Task,
    now: i64,
    /// Requests the workers have not taken yet: step, attempt, part.
    requests: Vec<(usize, u32, u32)>,
    /// What is on its way to the orchestrator.
    inbox: Vec<Event>,
    heard: Vec<Event>,
    first_sends: HashSet<usize>,
    ends: BTreeMap<usize, (StepState, Option<Json>)>,
    order_of_undoing: Vec<usize>,
}

impl World {
    fn new(shape: &Shape) -> Self {
        // The file's order is the reverse of the order of work, so that nothing leans on it.
        let name = |step: usize| format!("s{step}");
        let mut steps: Vec<(String, Vec<String>)> = Vec::new();
        for (index, (parents, undoable)) in shape.steps.iter().enumerate().rev() {
            let parents = (0..index).filter(|parent| parents[*parent]).map(name).collect();
            steps.push((name(index), parents));
            if *undoable {
                steps.push((format!("~s{index}"), Vec::new()));
            }
        }
        let plan = Arc::new(Plan::new(Arc::new(template("sim", &steps))).expect("a sound template"));
        let task =
            Task::new(Uuid::new_v4(), plan, Json::empty_object(), "correlation".to_owned(), 0, Uuid::new_v4);
        Self {
            random: StdRng::seed_from_u64(shape.seed),
            shape: shape.clone(),
            task,
            now: 1_000,
            requests: Vec::new(),
            inbox: Vec::new(),
            heard: Vec::new(),
            first_sends: HashSet::new(),
            ends: BTreeMap::new(),
            order_of_undoing: Vec::new(),
        }
    }

    fn run(&mut self) {
        assert_eq!(self.hear(&Event::Submitted), Outcome::Applied);
        for _ in 0..100_000 {
            if self.task.state.is_terminal() {
                return;
            }
            self.now += 10;
            match self.random.random_range(0..100) {
                0..40 => self.work(),
                40..80 => self.deliver(),
                80..85 => self.hear_again(),
                85..90 => self.lose(),
                90..95 => self.overdue(),
                95..98 => self.restart(),
                _ if self.shape.may_be_cancelled => {
                    assert_eq!(self.hear(&Event::Cancel), Outcome::Applied);
                }
                _ => {}
            }
        }
        panic!("the task never ends: {:?}", self.task);
    }

    fn pick<T>(random: &mut StdRng, from: &[T]) -> Option<usize> {
        (!from.is_empty()).then(|| random.random_range(0..from.len()))
    }

    /// A worker takes a request and answers it; sometimes the broker hands the request out twice.
    fn work(&mut self) {
        let Some(index) = Self::pick(&mut self.random, &self.requests) else { return };
        let (step, attempt, part) = self.requests[index];
        if self.random.random_bool(0.9) {
            self.requests.swap_remove(index);
        }
        let compensation = self.task.plan.target(step).is_some();
        let fails = self.shape.may_fail || compensation;
        let event = match self.random.random_range(0..100) {
            0..40 => self.result(step, attempt, part, ResultStatus::Completed),
            40..60 if part < PARTS => self.checkpoint(step, attempt, part),
            60..85 if attempt < ATTEMPTS => self.retry(step, attempt, part),
            85..92 if fails => self.result(step, attempt, part, ResultStatus::Failed),
            92..97 if fails => self.dead_letter(step, attempt, part),
            97..98 if fails => self.result(step, attempt, part, ResultStatus::Cancelled),
            _ => self.result(step, attempt, part, ResultStatus::Completed),
        };
        self.inbox.push(event);
    }

    fn deliver(&mut self) {
        let Some(index) = Self::pick(&mut self.random, &self.inbox) else { return };
        let event = self.inbox.swap_remove(index);
        let succeeded = match &event {
            Event::Result(result) if result.success => self.task.plan.find(&result.step_name),
            _ => None,
        };
        let awaited = succeeded.is_some_and(|step| self.task.steps[step].state.is_open());
        let outcome = self.hear(&event);
        assert!(!awaited || outcome == Outcome::Applied, "a success of any attempt ends the waiting");
        self.heard.push(event);
    }

    fn hear_again(&mut self) {
        let Some(index) = Self::pick(&mut self.random, &self.heard) else { return };
        let event = self.heard[index].clone();
        self.hear(&event);
    }

    fn lose(&mut self) {
        if let Some(index) = Self::pick(&mut self.random, &self.requests) {
            self.requests.swap_remove(index);
        } else if let Some(index) = Self::pick(&mut self.random, &self.inbox) {
            self.inbox.swap_remove(index);
        }
    }

    fn overdue(&mut self) {
        let open: Vec<usize> = (0..self.task.steps.len())
            .filter(|step| self.task.steps[*step].exists && self.task.steps[*step].state.is_open())
            .collect();
        let index = Self::pick(&mut self.random, &open).expect("a task that goes on awaits an answer");
        let run = &self.task.steps[open[index]];
        self.now = self.now.max(run.due_at.expect("an awaited answer is due some time"));
        let event = Event::Overdue {
            step_name: self.name(open[index]),
            step_uuid: self.task.steps[open[index]].uuid,
        };
        assert_eq!(self.hear(&event), Outcome::Applied);
    }

    /// The task as it comes back from the store has to be the task that went there.
    fn restart(&mut self) {
        let old = &self.task;
        let mut uuids = old.steps.iter().map(|step| step.uuid);
        let mut task = Task::new(
            old.uuid,
            Arc::clone(&old.plan),
            old.context.clone(),
            old.correlation_id.clone(),
            old.priority,
            || uuids.next().expect("one for each step"),
        );
        (task.state, task.created_at) = (old.state, old.created_at);
        let stored = old.steps.iter().enumerate().filter(|(_, step)| step.exists);
        let stored = stored.map(|(position, step)| (old.plan.step(position).name.clone(), step.clone()));
        task.restore(stored.collect()).expect("every step has its place");
        assert_eq!(format!("{task:?}"), format!("{old:?}"));
        self.task = task;
    }

    fn hear(&mut self, event: &Event) -> Outcome {
        let timing = Timing {
            now: self.now,
            default_timeout: Duration::from_millis(500),
            overdue_after: Duration::from_millis(500),
            resends: u32::MAX,
        };
        let (before, places) = (format!("{:?}", self.task), self.places());
        let advanced = advance(&mut self.task, event, &timing);
        if advanced.outcome != Outcome::Applied {
            let in_vain = |effect: &Effect| matches!(effect, Effect::BroadcastCancel | Effect::Stop { .. });
            assert!(advanced.effects.iter().all(in_vain), "{advanced:?}");
            assert_eq!(format!("{:?}", self.task), before);
        } else if let Event::Checkpoint(request) = event {
            let step = self.task.plan.find(&request.step_name).expect("it was applied");
            assert!(places[step] < self.places()[step], "{request:?} is applied twice");
            assert_eq!(self.task.steps[step].checkpoint, request.checkpoint);
        }
        assert!(places.iter().zip(self.places()).all(|(before, after)| *before <= after), "{event:?}");
        for effect in advanced.effects {
            self.observe(effect, event);
        }
        advanced.outcome
    }

    /// How far each step is, as far as we were told: attempts and parts.
    fn places(&self) -> Vec<(u32, u32)> {
        self.task.steps.iter().map(|run| (run.attempts, run.part)).collect()
    }

    fn observe(&mut self, effect: Effect, event: &Event) {
        match effect {
            Effect::Send { step, attempt, again } => {
                assert!(!self.task.state.is_terminal(), "a finished task goes on");
                assert!(!self.ends.contains_key(&step), "a finished step is asked for again");
                assert_eq!(attempt, self.task.steps[step].attempts + 1);
                if !again {
                    assert!(self.first_sends.insert(step), "step {step} is asked for twice");
                }
                self.check_request(step, attempt);
                self.requests.push((step, attempt, self.task.steps[step].part));
            }
            Effect::Step { step, to, .. } if to.is_finished() => {
                let output = match event {
                    Event::Result(result) if to == StepState::Complete => Some(result.data.clone()),
                    _ => None,
                };
                assert!(self.ends.insert(step, (to, output)).is_none(), "step {step} ends twice");
                if self.task.plan.target(step).is_some() {
                    self.order_of_undoing.push(step);
                }
            }
            Effect::Step { step, to, .. } => {
                assert!(!self.ends.contains_key(&step), "step {step} goes on to {to} after its end");
            }
            Effect::Task { to, .. } => assert_eq!(to.is_terminal(), self.task.state.is_terminal()),
            Effect::BroadcastCancel => assert_eq!(self.task.state, TaskState::Cancelled),
            Effect::Stop { step } => {
                let in_vain = matches!(event, Event::Checkpoint(_));
                assert!(in_vain && self.ends.contains_key(&step), "step {step} is stopped by {event:?}");
            }
            Effect::Park { .. } | Effect::Record(_) | Effect::Deadline => {
                panic!("without limits nothing is given up: {effect:?}")
            }
        }
    }

    /// A request is sent when everything it needs is there, and carries it.
    fn check_request(&self, step: usize, attempt: u32) {
        let plan = &self.task.plan;
        let message = outgoing::request(&self.task, step, attempt, self.now, &Names::default());
        let request = StepExecutionRequest::decode(&message.body).expect("a request we wrote");
        let mut expected = HashSet::new();
        let mut open: Vec<usize> = plan.parents(step).to_vec();
        open.extend(plan.target(step));
        while let Some(ancestor) = open.pop() {
            expected.insert(self.name(ancestor));
            open.extend(plan.parents(ancestor));
        }
        let mut seen = HashSet::new();
        for input in &request.sequence_data {
            let ancestor = plan.find(&input.step_name).expect("a step");
            let earlier = plan.parents(ancestor).iter().all(|parent| seen.contains(&self.name(*parent)));
            assert!(earlier, "{} comes before what it waited for", input.step_name);
            let (state, output) = &self.ends[&ancestor];
            assert_eq!((*state, output.as_ref()), (StepState::Complete, Some(&input.result)));
            seen.insert(input.step_name.clone());
        }
        assert_eq!(seen, expected);
        if let Some(target) = plan.target(step) {
            for other in (0..plan.len()).filter(|other| self.task.steps[*other].exists) {
                let undoes_later = plan.target(other).is_some_and(|t| plan.ancestors(t).contains(&target));
                assert!(!undoes_later || self.ends.contains_key(&other), "undone before what came after it");
            }
        }
    }

    fn check_the_end(&self) {
        let plan = &self.task.plan;
        let state = |step: usize| self.task.steps[step].state;
        let forward: Vec<usize> = (0..plan.len()).filter(|step| plan.target(*step).is_none()).collect();
        let undoing: Vec<usize> = (0..plan.len()).filter(|step| plan.target(*step).is_some()).collect();
        for (step, (end, output)) in &self.ends {
            assert_eq!((state(*step), &self.task.steps[*step].output), (*end, output));
            assert_eq!(self.task.steps[*step].due_at, None);
        }
        match self.task.state {
            TaskState::Complete => {
                assert!(forward.iter().all(|step| state(*step) == StepState::Complete));
                assert!(undoing.iter().all(|step| !self.task.steps[*step].exists));
            }
            TaskState::Error => {
                let failed = |step: &usize| matches!(state(*step), StepState::Error | StepState::Cancelled);
                assert!(forward.iter().any(failed));
                for step in &forward {
                    // What could run did run, whatever failed beside it.
                    let could = plan.parents(*step).iter().all(|p| state(*p) == StepState::Complete);
                    assert_eq!(could, state(*step).is_finished(), "{}", self.name(*step));
                }
                for step in &undoing {
                    let target = plan.target(*step).expect("it undoes a step");
                    assert_eq!(self.task.steps[*step].exists, state(target) == StepState::Complete);
                    assert_eq!(self.task.steps[*step].exists, self.order_of_undoing.contains(step));
                }
            }
            TaskState::Cancelled => {
                for step in self.task.steps.iter().filter(|step| step.exists) {
                    assert!(step.state.is_finished());
                }
            }
            other => panic!("{other} is no end"),
        }
    }

    fn nothing_changes_it_any_more(&mut self) {
        while !self.requests.is_empty() {
            self.work();
        }
        self.heard.append(&mut self.inbox);
        for event in std::mem::take(&mut self.heard) {
            let outcome = self.hear(&event);
            assert!(matches!(outcome, Outcome::Duplicate | Outcome::Stale | Outcome::Refused), "{outcome:?}");
        }
        assert_eq!(self.hear(&Event::Cancel), Outcome::Stale);
        assert_eq!(self.hear(&Event::Submitted), Outcome::Refused);
    }

    fn name(&self, step: usize) -> String {
        self.task.plan.step(step).name.clone()
    }

    fn result(&mut self, step: usize, attempt: u32, part: u32, status: ResultStatus) -> Event {
        let completed = status == ResultStatus::Completed;
        let data = if completed {
            json!([self.name(step), attempt, self.random.random::<u32>()])
        } else {
            json!(null)
        };
        Event::Result(Box::new(StepExecutionResult {
            protocol_version: 1,
            task_uuid: self.task.uuid,
            step_uuid: self.task.steps[step].uuid,
            namespace: "sim".to_owned(),
            step_name: self.name(step),
            attempt,
            part,
            success: completed,
            status,
            data: data.into(),
            error: (!completed).then(|| failure("no")),
            metadata: Default::default(),
            duration_ms: 1,
        }))
    }

    /// The retry goes to the orchestrator, and back to the workers.
    fn retry(&mut self, step: usize, attempt: u32, part: u32) -> Event {
        let mut request = self.request(step, attempt + 1, part);
        request.previous_error = Some(failure("busy"));
        self.requests.push((step, attempt + 1, part));
        Event::Retry(Box::new(request))
    }

    /// So do the requests for the rest of a step.
    fn checkpoint(&mut self, step: usize, attempt: u32, part: u32) -> Event {
        self.requests.push((step, attempt, part + 1));
        Event::Checkpoint(Box::new(self.request(step, attempt, part + 1)))
    }

    fn request(&self, step: usize, attempt: u32, part: u32) -> StepExecutionRequest {
        let message = outgoing::request(&self.task, step, attempt, self.now, &Names::default());
        let request = StepExecutionRequest::decode(&message.body).expect("a request we wrote");
        StepExecutionRequest { part, checkpoint: (part > 0).then(|| reached(part)), ..request }
    }

    fn dead_letter(&self, step: usize, attempt: u32, part: u32) -> Event {
        Event::DeadLetter(Box::new(DeadLetter {
            step_uuid: self.task.steps[step].uuid,
            step_name: self.name(step),
            attempt,
            part,
            error: failure("dead"),
            reason: "rejected".to_owned(),
        }))
    }
}
