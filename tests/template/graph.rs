//! Questions about a template's graph, and its pictures.

use tasker_worker_rust::template::Template;
use tasker_worker_rust::template::graph::{graph_ascii, graph_dot, graph_mermaid, graph_svg};

use super::{template, with_steps};

fn order() -> Template {
    template(include_str!("../../config/workflows/order_fulfillment_handler.yaml"))
}

#[test]
fn ancestors_are_everything_a_step_can_see_earliest_first() {
    let tree = template(include_str!("../../config/workflows/tree_workflow_handler.yaml"));
    assert_eq!(tree.ancestors_of("tree_leaf_f"), ["tree_root", "tree_branch_right"]);
    assert_eq!(tree.ancestors_of("tree_final_convergence").len(), 7);
    assert_eq!(tree.ancestors_of("tree_root"), [""; 0]);
    assert_eq!(tree.ancestors_of("nobody"), [""; 0]);
}

#[test]
fn a_compensation_sees_what_it_undoes_and_what_that_saw() {
    assert_eq!(order().ancestors_of("release_inventory"), ["validate_order", "reserve_inventory"]);
}

#[test]
fn dependents_are_the_steps_that_wait_directly() {
    let order = order();
    assert_eq!(order.dependents("reserve_inventory"), ["process_payment", "ship_order"]);
    assert_eq!(order.dependents("ship_order"), [""; 0]);
}

#[test]
fn compensations_come_last_and_undo_backwards() {
    let order = order();
    assert_eq!(
        order.topological_order(),
        [
            "validate_order",
            "reserve_inventory",
            "process_payment",
            "ship_order",
            "refund_payment",
            "release_inventory"
        ]
    );
    assert_eq!(order.compensation_of("process_payment").unwrap().name, "refund_payment");
    assert!(order.compensation_of("ship_order").is_none());
}

#[test]
fn the_text_picture_shows_levels_and_what_undoes_what() {
    let expected = "\
order_fulfillment/business_workflow 1.0.0

  1  validate_order
  2  reserve_inventory  <-- validate_order
  3  process_payment    <-- validate_order, reserve_inventory
  4  ship_order         <-- validate_order, reserve_inventory, process_payment

when the task fails
     refund_payment     ~~> undoes process_payment
     release_inventory  ~~> undoes reserve_inventory
";
    assert_eq!(graph_ascii(&order()), expected);
}

#[test]
fn steps_of_one_level_share_its_number() {
    let diamond = template(include_str!("../../config/workflows/diamond_workflow_handler.yaml"));
    let expected = "\
diamond_workflow/parallel_processing 1.0.0

  1  diamond_start
  2  diamond_branch_b  <-- diamond_start
     diamond_branch_c  <-- diamond_start
  3  diamond_end       <-- diamond_branch_b, diamond_branch_c
";
    assert_eq!(graph_ascii(&diamond), expected);
}

#[test]
fn mermaid_and_dot_quote_names_and_mark_compensations() {
    let template = template(&with_steps(
        "  - name: say \"hi\"\n  - {name: b, dependencies: ['say \"hi\"']}\n  - {name: undo, compensates: b}",
    ));
    assert_eq!(
        graph_mermaid(&template),
        "flowchart TD\n    s0[\"say &quot;hi&quot;\"]\n    s1[\"b\"]\n    s2[\"undo\"]\n    s0 --> s1\n    s2 -. undoes .-> s1\n"
    );
    let expected = r#"digraph "n" {
    node [shape=box];
    "say \"hi\"";
    "b";
    "undo";
    "say \"hi\"" -> "b";
    "undo" -> "b" [style=dashed, label="undoes", constraint=false];
}
"#;
    assert_eq!(graph_dot(&template), expected);
}

#[test]
fn the_picture_for_browsers_has_every_box_and_every_line_in_its_place() {
    let steps = "  - {name: a}\n  - {name: 'b<b&\"', dependencies: [a]}\n  - {name: ccc, dependencies: [a]}\n  - {name: undo, compensates: ccc}";
    assert_eq!(graph_svg(&template(&with_steps(steps))), include_str!("graph.svg"));
}
