//! What depends on what within a template, worked out once for all its tasks.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::template::{StepKind, StepTemplate, Template};

/// A template and the relations between its steps. Steps are named by their place in the template.
#[derive(Debug)]
pub struct Plan {
    template: Arc<Template>,
    by_name: HashMap<String, usize>,
    parents: Vec<Vec<usize>>,
    children: Vec<Vec<usize>>,
    rank: Vec<usize>,
    target: Vec<Option<usize>>,
    compensations: Vec<Vec<usize>>,
    forward: usize,
}

impl Plan {
    /// Works the relations out.
    ///
    /// # Errors
    /// A sentence, for a template that was never validated: a name that is missing or taken twice, or a cycle;
    /// and for a step of a type that cannot be run.
    pub fn new(template: Arc<Template>) -> Result<Self, String> {
        let count = template.steps.len();
        let mut by_name = HashMap::with_capacity(count);
        for (index, step) in template.steps.iter().enumerate() {
            if by_name.insert(step.name.clone(), index).is_some() {
                return Err(format!("the template has two steps named {:?}", step.name));
            }
            if step.kind != StepKind::Standard {
                let (name, kind) = (&step.name, step.kind.as_str());
                return Err(format!(
                    "step {name:?}: type {kind} is not supported yet; only standard steps can be run"
                ));
            }
        }
        let find = |name: &str, of: &str| {
            by_name.get(name).copied().ok_or_else(|| format!("step {of:?} names {name:?}, which is no step"))
        };
        let mut plan = Self {
            by_name: HashMap::new(),
            parents: vec![Vec::new(); count],
            children: vec![Vec::new(); count],
            rank: Vec::new(),
            target: vec![None; count],
            compensations: vec![Vec::new(); count],
            forward: 0,
            template: Arc::clone(&template),
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
            plan.forward += 1;
            for name in &step.dependencies {
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
        Ok(plan)
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

    /// How many steps there are, compensations left out.
    pub fn forward(&self) -> usize {
        self.forward
    }

    /// One step's definition.
    pub fn step(&self, step: usize) -> &StepTemplate {
        &self.template.steps[step]
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

    /// All transitive ancestors of a step, each after its own ancestors.
    ///
    /// Walked at every call: kept for each step, the ancestors of a long chain would need the square of its length.
    pub fn ancestors(&self, step: usize) -> Vec<usize> {
        let mut seen = vec![false; self.len()];
        let mut found = Vec::new();
        let mut open = self.parents[step].clone();
        while let Some(next) = open.pop() {
            if !std::mem::replace(&mut seen[next], true) {
                found.push(next);
                open.extend_from_slice(&self.parents[next]);
            }
        }
        found.sort_unstable_by_key(|step| self.rank[*step]);
        found
    }

    /// The steps whose results a request for `step` carries: its ancestors, or for a compensation the
    /// ancestors of the step it undoes and that step itself.
    pub fn inputs(&self, step: usize) -> Vec<usize> {
        match self.target[step] {
            Some(target) => {
                let mut inputs = self.ancestors(target);
                inputs.push(target);
                inputs
            }
            None => self.ancestors(step),
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
    fn a_dependency_named_twice_counts_once() {
        let plan = plan(&[("a", &[]), ("b", &["a", "a"])]);
        assert_eq!((plan.parents(1), plan.children(0)), (&[0][..], &[1][..]));
    }

    #[test]
    fn a_compensation_gets_what_its_target_got_and_what_it_returned() {
        let plan = plan(&[("a", &[]), ("b", &["a"]), ("~b", &[]), ("c", &["b"])]);
        assert_eq!(names(&plan, &plan.inputs(2)), ["a", "b"]);
        assert_eq!((plan.forward(), plan.compensations(1), plan.target(2)), (3, &[2][..], Some(1)));
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
