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
        for (index, level) in longest_ways(&names, &dependencies, |_| 1).into_iter().enumerate() {
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

/// For each of `names` the weight of the heaviest way to it, its own left out; `None` on a cycle and behind
/// one. Dependencies on names that are not there, and on itself, do not count.
pub(super) fn longest_ways<'a, D>(
    names: &[&str],
    dependencies: &impl Fn(usize) -> D,
    weight: impl Fn(usize) -> usize,
) -> Vec<Option<usize>>
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
            level[*dependent] = level[*dependent].max(level[index] + weight(index));
            open[*dependent] -= 1;
            if open[*dependent] == 0 {
                ready.push_back(*dependent);
            }
        }
    }
    levels
}

/// Circles of steps that wait for each other, each told from its first step in the file on. No step is in
/// two of them, and wherever steps are knotted together at least one circle is told.
pub(super) fn cycles<'a, D>(names: &[&str], dependencies: &impl Fn(usize) -> D) -> Vec<Vec<usize>>
where
    D: Iterator<Item = &'a str>,
{
    let edges: Vec<Vec<usize>> =
        edges(names, dependencies).into_iter().map(|on| on.into_iter().collect()).collect();
    let mut cycles: Vec<Vec<usize>> = Vec::new();
    let mut seen = vec![false; names.len()];
    // Where a step is on the path that is being followed.
    let mut place = vec![None; names.len()];
    for start in 0..names.len() {
        // A path of its own, because long chains would overflow the stack of a recursion.
        let mut path: Vec<(usize, usize)> = Vec::new();
        let mut next = Some(start).filter(|start| !seen[*start]);
        loop {
            if let Some(step) = next.take() {
                seen[step] = true;
                place[step] = Some(path.len());
                path.push((step, 0));
            }
            let Some((step, tried)) = path.last_mut() else { break };
            let Some(on) = edges[*step].get(*tried).copied() else {
                place[*step] = None;
                path.pop();
                continue;
            };
            *tried += 1;
            if let Some(from) = place[on] {
                let mut cycle: Vec<usize> = path[from..].iter().map(|(step, _)| *step).collect();
                if !cycles.iter().flatten().any(|told| cycle.contains(told)) {
                    let first = (0..cycle.len()).min_by_key(|at| cycle[*at]).unwrap_or_default();
                    cycle.rotate_left(first);
                    cycles.push(cycle);
                }
            } else if !seen[on] {
                next = Some(on);
            }
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
