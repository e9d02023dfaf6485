//! What depends on what within a template, worked out once for all its tasks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::batch::Batch;
use crate::message::Json;
use crate::template::{BatchConfig, StepKind, StepTemplate, Template};

/// Decisions one after another, at most.
const DEEPEST: usize = 20;

/// A template and the relations between its steps. Steps are named by their place in the template; behind its
/// own steps come the instances of batch workers, once their batchable steps have asked for them.
#[derive(Debug)]
pub struct Plan {
    template: Arc<Template>,
    divisions: Vec<Arc<Division>>,
    instances: BTreeMap<usize, Instance>,
    by_name: BTreeMap<String, usize>,
    parents: Vec<Vec<usize>>,
    children: Vec<Vec<usize>>,
    rank: Vec<usize>,
    target: Vec<Option<usize>>,
    compensations: Vec<Vec<usize>>,
}

/// What a batchable step asked for: instances of a batch worker.
#[derive(Debug)]
pub struct Division {
    /// The batchable step.
    pub batchable: usize,
    /// The batch worker.
    pub worker: usize,
    /// The first instance; the others follow it.
    pub first: usize,
    /// The part of each instance.
    pub batches: Vec<Batch>,
    /// What else the batchable step returned.
    pub rest: Json,
}

/// An instance of a batch worker, or of the step that undoes one.
#[derive(Debug, Clone, Copy)]
struct Instance {
    division: usize,
    number: usize,
    blueprint: usize,
}

impl Plan {
    /// Works the relations out.
    ///
    /// # Errors
    /// A sentence, for a template that was never validated: a name that is missing or taken twice, a cycle, a
    /// batch worker that waits for no batchable step or for several, or too many decisions one after another.
    pub fn new(template: Arc<Template>) -> Result<Self, String> {
        Self::build(template, Vec::new(), BTreeMap::new())
    }

    fn build(
        template: Arc<Template>,
        divisions: Vec<Arc<Division>>,
        instances: BTreeMap<usize, Instance>,
    ) -> Result<Self, String> {
        let count = template.steps.len();
        let mut by_name = BTreeMap::new();
        for (index, step) in template.steps.iter().enumerate() {
            if by_name.insert(step.name.clone(), index).is_some() {
                return Err(format!("the template has two steps named {:?}", step.name));
            }
        }
        // A batch worker waits for the batchable step that names it, whether it says so or not.
        let asks = |step: &StepTemplate| match &step.kind {
            StepKind::Batchable(config) => Some((config.worker_template.clone()?, step.name.clone())),
            _ => None,
        };
        let asked_by: BTreeMap<String, String> = template.steps.iter().filter_map(asks).collect();
        let find = |name: &str, of: &str| {
            by_name.get(name).copied().ok_or_else(|| format!("step {of:?} names {name:?}, which is no step"))
        };
        let mut plan = Self {
            by_name: BTreeMap::new(),
            parents: vec![Vec::new(); count],
            children: vec![Vec::new(); count],
            rank: Vec::new(),
            target: vec![None; count],
            compensations: vec![Vec::new(); count],
            template: Arc::clone(&template),
            divisions,
            instances,
        };
        for (index, step) in template.steps.iter().enumerate() {
            if let Some(name) = &step.compensates {
                let target = find(name, &step.name)?;
                if template.steps[target].compensates.is_some() {
                    return Err(format!("step {:?} compensates {name:?}, itself a compensation", step.name));
                }
                plan.target[index] = Some(target);
                plan.compensations[target].push(index);
                continue;
            }
            for name in step.dependencies.iter().chain(asked_by.get(&step.name)) {
                let parent = find(name, &step.name)?;
                if template.steps[parent].compensates.is_some() {
                    return Err(format!("step {:?} waits for {name:?}, a compensation", step.name));
                }
                if !plan.parents[index].contains(&parent) {
                    plan.parents[index].push(parent);
                    plan.children[parent].push(index);
                }
            }
        }
        plan.rank = plan.topological_ranks()?;
        plan.by_name = by_name;
        plan.check_kinds()?;
        Ok(plan)
    }

    fn check_kinds(&self) -> Result<(), String> {
        let mut decisions = vec![0; self.len()];
        for step in self.order() {
            let above = self.parents(step).iter().map(|parent| decisions[*parent]).max().unwrap_or(0);
            decisions[step] = above + usize::from(self.step(step).kind == StepKind::Decision);
            let name = &self.step(step).name;
            if decisions[step] > DEEPEST {
                return Err(format!("step {name:?}: at most {DEEPEST} decisions may follow one another"));
            }
            if self.is_blueprint(step) {
                let batchable = |parent: &&usize| self.batch_config(**parent).is_some();
                let count = self.parents(step).iter().filter(batchable).count();
                if count != 1 {
                    return Err(format!(
                        "step {name:?}: a batch worker waits for one batchable step, and this one for {count}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// The same workflow with an instance of `worker` for each of the batches that `batchable` asked for. What
    /// waits for the worker waits for its instances and for the batchable step. Places stay as they are.
    ///
    /// # Errors
    /// A sentence, when an instance's name is taken.
    pub fn divided(
        &self,
        batchable: usize,
        worker: Option<usize>,
        batches: Vec<Batch>,
        rest: Json,
    ) -> Result<Self, String> {
        let mut template = Template::clone(&self.template);
        let (mut divisions, mut instances) = (self.divisions.clone(), self.instances.clone());
        let names = |blueprint: usize| {
            let name = &self.step(blueprint).name;
            (1..=batches.len()).map(|number| format!("{name}_{number:03}")).collect::<Vec<_>>()
        };
        for blueprint in self.children(batchable).iter().filter(|child| self.is_blueprint(**child)) {
            let mut instead = vec![self.step(batchable).name.clone()];
            if worker == Some(*blueprint) {
                instead.extend(names(*blueprint));
            }
            for dependent in self.children(*blueprint) {
                let dependencies = &mut template.steps[*dependent].dependencies;
                dependencies.retain(|name| *name != self.step(*blueprint).name);
                dependencies.extend_from_slice(&instead);
            }
        }
        if let Some(worker) = worker {
            let workers = names(worker);
            let division = divisions.len();
            let first = template.steps.len();
            for blueprint in std::iter::once(worker).chain(self.compensations[worker].iter().copied()) {
                for (number, name) in names(blueprint).into_iter().enumerate() {
                    instances.insert(template.steps.len(), Instance { division, number, blueprint });
                    let mut step = StepTemplate { name, ..self.step(blueprint).clone() };
                    match &mut step.compensates {
                        Some(target) => target.clone_from(&workers[number]),
                        None => step.dependencies.push(self.step(batchable).name.clone()),
                    }
                    template.steps.push(step);
                }
            }
            divisions.push(Arc::new(Division { batchable, worker, first, batches, rest }));
        }
        Self::build(Arc::new(template), divisions, instances)
    }

    /// The template.
    pub fn template(&self) -> &Arc<Template> {
        &self.template
    }

    /// How many steps there are, compensations included.
    pub fn len(&self) -> usize {
        self.template.steps.len()
    }

    /// Whether there is no step at all.
    pub fn is_empty(&self) -> bool {
        self.template.steps.is_empty()
    }

    /// One step's definition.
    pub fn step(&self, step: usize) -> &StepTemplate {
        &self.template.steps[step]
    }

    /// How a step divides its work, where it is a batchable one.
    pub fn batch_config(&self, step: usize) -> Option<&BatchConfig> {
        match &self.step(step).kind {
            StepKind::Batchable(config) => Some(config),
            _ => None,
        }
    }

    /// Whether a step never runs itself, but only its instances.
    pub fn is_blueprint(&self, step: usize) -> bool {
        self.step(step).kind == StepKind::BatchWorker && !self.instances.contains_key(&step)
    }

    /// The batch worker that a step is an instance of, or the step itself.
    pub fn blueprint(&self, step: usize) -> usize {
        self.instances.get(&step).map_or(step, |instance| instance.blueprint)
    }

    /// What batchable steps asked for.
    pub fn divisions(&self) -> &[Arc<Division>] {
        &self.divisions
    }

    /// Which division an instance of a batch worker belongs to. Steps that undo one belong to none.
    pub fn division_of(&self, step: usize) -> Option<usize> {
        self.instances.get(&step).filter(|_| self.target[step].is_none()).map(|instance| instance.division)
    }

    /// The part of the work that is an instance's, or was the part of the instance that it undoes.
    pub fn batch(&self, step: usize) -> Option<(&BatchConfig, &Batch)> {
        let instance = self.instances.get(&step)?;
        let division = &self.divisions[instance.division];
        Some((self.batch_config(division.batchable)?, &division.batches[instance.number]))
    }

    /// The result that an instance is given of the batchable step instead of the whole one, which would grow with
    /// the square of the number of batches: all but the others' parts.
    pub fn rest(&self, step: usize, batchable: usize) -> Option<&Json> {
        let division = &self.divisions[self.instances.get(&step)?.division];
        (division.batchable == batchable).then_some(&division.rest)
    }

    /// The place of the step of this name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The steps this one waits for. A compensation has none.
    pub fn parents(&self, step: usize) -> &[usize] {
        &self.parents[step]
    }

    /// The steps that wait for this one.
    pub fn children(&self, step: usize) -> &[usize] {
        &self.children[step]
    }

    /// The step this one undoes.
    pub fn target(&self, step: usize) -> Option<usize> {
        self.target[step]
    }

    /// The steps that undo this one.
    pub fn compensations(&self, step: usize) -> &[usize] {
        &self.compensations[step]
    }

    /// The steps but compensations, each after all it waits for.
    pub fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.len()).filter(|step| self.target[*step].is_none()).collect();
        order.sort_unstable_by_key(|step| self.rank[*step]);
        order
    }

    /// All transitive ancestors of a step, each after its own ancestors.
    pub fn ancestors(&self, step: usize) -> Vec<usize> {
        self.ancestors_among(step, |_| true)
    }

    /// The same by way of steps that exist.
    ///
    /// Walked at every call: kept for each step, the ancestors of a long chain would need the square of its length.
    fn ancestors_among(&self, step: usize, exists: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut seen = vec![false; self.len()];
        let mut found = Vec::new();
        let mut open = self.parents[step].clone();
        while let Some(next) = open.pop() {
            if exists(next) && !std::mem::replace(&mut seen[next], true) {
                found.push(next);
                open.extend_from_slice(&self.parents[next]);
            }
        }
        found.sort_unstable_by_key(|step| self.rank[*step]);
        found
    }

    /// The steps whose results a request for `step` carries: its ancestors among those that exist, or for a
    /// compensation the ancestors of the step it undoes and that step itself.
    pub fn inputs(&self, step: usize, exists: impl Fn(usize) -> bool) -> Vec<usize> {
        match self.target[step] {
            Some(target) => {
                let mut inputs = self.ancestors_among(target, exists);
                inputs.push(target);
                inputs
            }
            None => self.ancestors_among(step, exists),
        }
    }

    fn topological_ranks(&self) -> Result<Vec<usize>, String> {
        let mut waits_for: Vec<usize> = self.parents.iter().map(Vec::len).collect();
        let mut ranks = vec![usize::MAX; self.len()];
        let mut ready: VecDeque<usize> = (0..self.len()).filter(|step| waits_for[*step] == 0).collect();
        let mut next = 0;
        while let Some(step) = ready.pop_front() {
            ranks[step] = next;
            next += 1;
            for child in &self.children[step] {
                waits_for[*child] -= 1;
                if waits_for[*child] == 0 {
                    ready.push_back(*child);
                }
            }
        }
        match ranks.iter().position(|rank| *rank == usize::MAX) {
            Some(step) => Err(format!("step {:?} waits for itself, by way of others", self.step(step).name)),
            None => Ok(ranks),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::HandlerSpec;
    use crate::retry::RetryPolicy;
    use crate::template::IdentityStrategy;

    /// A template of `(step, dependencies)`; `~a` is the compensation of `a`.
    fn template(steps: &[(&str, &[&str])]) -> Template {
        Template {
            namespace: "shop".to_owned(),
            name: "order".to_owned(),
            version: "1.0.0".to_owned(),
            description: None,
            input_schema: None,
            identity_strategy: IdentityStrategy::default(),
            lifecycle: None,
            steps: steps
                .iter()
                .map(|(name, dependencies)| StepTemplate {
                    name: (*name).to_owned(),
                    description: None,
                    kind: StepKind::Standard,
                    handler: HandlerSpec::default(),
                    dependencies: dependencies.iter().map(|d| (*d).to_owned()).collect(),
                    compensates: name.strip_prefix('~').map(str::to_owned),
                    max_attempts: 3,
                    retry: RetryPolicy::default(),
                    timeout: None,
                })
                .collect(),
        }
    }

    fn plan(steps: &[(&str, &[&str])]) -> Arc<Plan> {
        Arc::new(Plan::new(Arc::new(template(steps))).expect("the template is sound"))
    }

    fn names(plan: &Plan, steps: &[usize]) -> Vec<String> {
        steps.iter().map(|step| plan.step(*step).name.clone()).collect()
    }

    #[test]
    fn ancestors_come_in_topological_order_whatever_the_order_in_the_file() {
        let plan = plan(&[("d", &["b", "c"]), ("c", &["a"]), ("b", &["a"]), ("a", &[]), ("e", &["d"])]);
        let ancestors = names(&plan, &plan.ancestors(4));
        assert_eq!((ancestors[0].as_str(), ancestors[3].as_str(), ancestors.len()), ("a", "d", 4));
        assert!(plan.ancestors(3).is_empty());
    }

    #[test]
    fn a_plan_is_empty_without_steps_only() {
        assert!(plan(&[]).is_empty() && !plan(&[("a", &[])]).is_empty());
    }

    #[test]
    fn a_dependency_named_twice_counts_once() {
        let plan = plan(&[("a", &[]), ("b", &["a", "a"])]);
        assert_eq!((plan.parents(1), plan.children(0)), (&[0][..], &[1][..]));
    }

    #[test]
    fn a_compensation_gets_what_its_target_got_and_what_it_returned() {
        let plan = plan(&[("a", &[]), ("b", &["a"]), ("~b", &[]), ("c", &["b"])]);
        assert_eq!(names(&plan, &plan.inputs(2, |_| true)), ["a", "b"]);
        assert_eq!((plan.compensations(1), plan.target(2)), (&[2][..], Some(1)));
    }

    #[test]
    fn an_unsound_template_is_refused_with_the_step_at_fault() {
        for (steps, text) in [
            (&[("a", &["b"][..]), ("b", &["a"][..])][..], "\"a\" waits for itself"),
            (&[("a", &["x"][..])][..], "\"a\" names \"x\""),
            (&[("a", &[][..]), ("a", &[][..])][..], "two steps named \"a\""),
            (&[("~a", &[][..])][..], "\"~a\" names \"a\""),
        ] {
            let error = Plan::new(Arc::new(template(steps))).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }
}
