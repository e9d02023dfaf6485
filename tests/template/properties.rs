//! Any graph without a circle is a workflow; any circle is found and told as it is.

use std::collections::BTreeSet;

use proptest::prelude::*;
use tasker_worker_rust::template::parse;

use super::{template, with_steps};

/// For each step the earlier steps it waits for, and an order in which the file lists them.
fn dags() -> impl Strategy<Value = (Vec<BTreeSet<usize>>, Vec<usize>)> {
    (1usize..25).prop_flat_map(|count| {
        let dependencies: Vec<_> =
            (0..count).map(|step| proptest::collection::btree_set(0..step.max(1), 0..=step.min(4))).collect();
        let dependencies = dependencies.prop_map(|mut all| {
            all[0].clear();
            all
        });
        (dependencies, Just((0..count).collect::<Vec<_>>()).prop_shuffle())
    })
}

fn yaml(dependencies: &[BTreeSet<usize>], order: &[usize]) -> String {
    let step = |index: &usize| {
        let on: Vec<String> = dependencies[*index].iter().map(|on| format!("s{on}")).collect();
        format!("  - {{name: s{index}, dependencies: [{}]}}\n", on.join(", "))
    };
    with_steps(&order.iter().map(step).collect::<String>())
}

/// Every step `from` waits for, directly or not.
fn reachable(dependencies: &[BTreeSet<usize>], from: usize) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut open = vec![from];
    while let Some(step) = open.pop() {
        open.extend(dependencies[step].iter().filter(|on| found.insert(**on)));
    }
    found
}

proptest! {
    #[test]
    fn a_graph_without_a_circle_is_ordered((dependencies, order) in dags()) {
        let template = template(&yaml(&dependencies, &order));
        let sorted = template.topological_order();
        prop_assert_eq!(sorted.len(), dependencies.len());
        let position = |name: &str| sorted.iter().position(|other| *other == name).unwrap();
        for step in &template.steps {
            for on in &step.dependencies {
                prop_assert!(position(on) < position(&step.name), "{} before {}", step.name, on);
            }
        }
        for (index, _) in dependencies.iter().enumerate() {
            let wanted: BTreeSet<String> = reachable(&dependencies, index).iter().map(|on| format!("s{on}")).collect();
            let name = format!("s{index}");
            let found: BTreeSet<String> = template.ancestors_of(&name).into_iter().map(str::to_owned).collect();
            prop_assert_eq!(found, wanted);
        }
    }

    #[test]
    fn a_circle_is_told_by_a_path_that_is_one(
        (mut dependencies, order) in dags(),
        choice in any::<proptest::sample::Index>(),
    ) {
        // An edge back from an ancestor, or, where nobody waits for anybody, a new pair.
        let pairs: Vec<(usize, usize)> = (0..dependencies.len())
            .flat_map(|step| reachable(&dependencies, step).into_iter().map(move |on| (on, step)))
            .collect();
        prop_assume!(!pairs.is_empty());
        let (ancestor, step) = pairs[choice.index(pairs.len())];
        dependencies[ancestor].insert(step);

        let mistakes = parse(&yaml(&dependencies, &order), None).unwrap_err();
        prop_assert_eq!(mistakes.len(), 1, "{:?}", &mistakes);
        let message = &mistakes[0].message;
        let told = message.strip_prefix("steps wait for each other in a circle: ").unwrap();
        let path: Vec<usize> =
            told.split(" (").next().unwrap().split(" -> ").map(|name| name[1..].parse().unwrap()).collect();
        prop_assert!(path.len() >= 3 && path.first() == path.last(), "{}", message);
        prop_assert_eq!(path.iter().collect::<BTreeSet<_>>().len(), path.len() - 1, "no step twice: {}", message);
        for pair in path.windows(2) {
            prop_assert!(dependencies[pair[0]].contains(&pair[1]), "{} does not wait for {}", pair[0], pair[1]);
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "(name|steps|:|-|\\[|\\]|\\{|\\}|\n|  |&a|\\*a|<<|,|\"|'|#|!|a|1|\t|é){0,40}") {
        let _ = parse(&text, Some("test"));
    }
}
