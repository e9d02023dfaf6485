//! Who waits for whom: questions a template answers about its own graph.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{StepTemplate, Template};

impl Template {
    /// The steps whose results a step sees: everything it waits for, directly or through others, each before
    /// those that wait for it. A compensation sees the step it undoes and what that one saw. Empty for a
    /// name that is no step.
    pub fn ancestors_of(&self, step: &str) -> Vec<&str> {
        let by_name = self.by_name();
        let mut wanted: VecDeque<&str> =
            by_name.get(step).into_iter().flat_map(|step| awaited(step)).collect();
        let mut found = BTreeSet::new();
        while let Some(name) = wanted.pop_front() {
            if let Some(ancestor) = by_name.get(name)
                && found.insert(name)
            {
                wanted.extend(awaited(ancestor));
            }
        }
        self.topological_order().into_iter().filter(|name| found.contains(name)).collect()
    }

    /// The steps that wait for this one directly, in the file's order.
    pub fn dependents(&self, step: &str) -> Vec<&str> {
        let waits = |candidate: &&StepTemplate| candidate.dependencies.iter().any(|on| on == step);
        self.steps.iter().filter(waits).map(|step| step.name.as_str()).collect()
    }

    /// The step that undoes this one.
    pub fn compensation_of(&self, step: &str) -> Option<&StepTemplate> {
        self.steps.iter().find(|candidate| candidate.compensates.as_deref() == Some(step))
    }

    /// Every step after all those it waits for: level by level, each in the file's order. Compensations come
    /// last, in the order they would run: the undoing of the last step first.
    pub fn topological_order(&self) -> Vec<&str> {
        let levels = self.levels();
        let mut order: Vec<&str> = levels.into_iter().flatten().map(|step| step.name.as_str()).collect();
        let undoing: Vec<&str> = order
            .iter()
            .rev()
            .filter_map(|name| self.compensation_of(name))
            .map(|s| s.name.as_str())
            .collect();
        order.extend(undoing);
        order
    }

    /// The steps that can run at once, level by level: each step directly below the lowest of those it waits
    /// for. Without compensations.
    pub fn levels(&self) -> Vec<Vec<&StepTemplate>> {
        let forward: Vec<&StepTemplate> =
            self.steps.iter().filter(|step| step.compensates.is_none()).collect();
        let names: Vec<&str> = forward.iter().map(|step| step.name.as_str()).collect();
        let dependencies = |index: usize| forward[index].dependencies.iter().map(String::as_str);
        let mut levels = Vec::new();
        for (index, level) in levels_of(&names, &dependencies).into_iter().enumerate() {
            // Every step has a level: a template has no cycles.
            let level = level.unwrap_or_default();
            if levels.len() <= level {
                levels.resize_with(level + 1, Vec::new);
            }
            levels[level].push(forward[index]);
        }
        levels
    }

    fn by_name(&self) -> BTreeMap<&str, &StepTemplate> {
        self.steps.iter().map(|step| (step.name.as_str(), step)).collect()
    }
}

fn awaited(step: &StepTemplate) -> impl Iterator<Item = &str> {
    step.dependencies.iter().map(String::as_str).chain(step.compensates.as_deref())
}

/// For each of `names` the number of steps on the longest way to it; `None` on a cycle and behind one.
/// Dependencies on names that are not there, and on itself, do not count.
fn levels_of<'a, D>(names: &[&str], dependencies: &impl Fn(usize) -> D) -> Vec<Option<usize>>
where
    D: Iterator<Item = &'a str>,
{
    let edges = edges(names, dependencies);
    let mut dependents = vec![Vec::new(); names.len()];
    for (index, on) in edges.iter().enumerate() {
        on.iter().for_each(|on| dependents[*on].push(index));
    }
    let mut open: Vec<usize> = edges.iter().map(BTreeSet::len).collect();
    let mut level = vec![0; names.len()];
    let mut ready: VecDeque<usize> = (0..names.len()).filter(|index| open[*index] == 0).collect();
    let mut levels = vec![None; names.len()];
    while let Some(index) = ready.pop_front() {
        levels[index] = Some(level[index]);
        for dependent in &dependents[index] {
            level[*dependent] = level[*dependent].max(level[index] + 1);
            open[*dependent] -= 1;
            if open[*dependent] == 0 {
                ready.push_back(*dependent);
            }
        }
    }
    levels
}

/// Circles of steps that wait for each other, each told from its first step in the file on; at least one
/// where there is any, and every one that shares no step with another.
pub(super) fn cycles<'a, D>(names: &[&str], dependencies: &impl Fn(usize) -> D) -> Vec<Vec<usize>>
where
    D: Iterator<Item = &'a str>,
{
    let stuck: Vec<bool> = levels_of(names, dependencies).iter().map(Option::is_none).collect();
    let edges = edges(names, dependencies);
    let mut walked = vec![false; names.len()];
    let mut cycles = Vec::new();
    for start in (0..names.len()).filter(|index| stuck[*index]) {
        let mut path = Vec::new();
        let mut current = start;
        while !walked[current] {
            walked[current] = true;
            path.push(current);
            // What never becomes ready waits for something that never becomes ready: the walk goes on
            // until it meets itself or an earlier walk.
            let Some(next) = edges[current].iter().find(|on| stuck[**on]) else { break };
            current = *next;
        }
        if let Some(from) = path.iter().position(|index| *index == current) {
            let mut cycle = path.split_off(from);
            let first = (0..cycle.len()).min_by_key(|at| cycle[*at]).unwrap_or_default();
            cycle.rotate_left(first);
            cycles.push(cycle);
        }
    }
    cycles
}

fn edges<'a, D>(names: &[&str], dependencies: &impl Fn(usize) -> D) -> Vec<BTreeSet<usize>>
where
    D: Iterator<Item = &'a str>,
{
    let index_of: BTreeMap<&str, usize> =
        names.iter().enumerate().rev().map(|(index, name)| (*name, index)).collect();
    (0..names.len())
        .map(|index| {
            dependencies(index).filter_map(|on| index_of.get(on).copied()).filter(|on| *on != index).collect()
        })
        .collect()
}
