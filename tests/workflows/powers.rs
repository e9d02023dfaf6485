//! The tree and the mixed DAG: two ways to the 64th power.

use num_bigint::BigUint;
use serde_json::{Value, json};
use tasker_worker_rust::StepResult;
use tasker_worker_rust::workflows::exact::{Context, Exact};
use tasker_worker_rust::workflows::mixed_dag::{
    dag_analyze, dag_finalize, dag_init, dag_process, dag_transform, dag_validate,
};
use tasker_worker_rust::workflows::tree::{
    tree_branch, tree_final_convergence, tree_left_leaf, tree_right_leaf, tree_root,
};
use tasker_worker_rust::workflows::{mixed_dag, tree};

use crate::{call, code, step, steps_of};

const SIX_TO_THE_64TH: &str = "63340286662973277706162286946811886609896461828096";

async fn run_tree(context: Value) -> StepResult<Value> {
    let root = [("tree_root", call(&tree_root, step(context.clone(), &[])).await?)];
    let branches = [
        ("tree_branch_left", call(&tree_branch, step(json!({}), &root)).await?),
        ("tree_branch_right", call(&tree_branch, step(json!({}), &root)).await?),
    ];
    let leaves = [
        ("tree_leaf_d", call(&tree_left_leaf, step(json!({}), &branches)).await?),
        ("tree_leaf_e", call(&tree_left_leaf, step(json!({}), &branches)).await?),
        ("tree_leaf_f", call(&tree_right_leaf, step(json!({}), &branches)).await?),
        ("tree_leaf_g", call(&tree_right_leaf, step(json!({}), &branches)).await?),
    ];
    call(&tree_final_convergence, step(context, &leaves)).await
}

async fn run_mixed_dag(context: Value) -> StepResult<Value> {
    let init = [("dag_init", call(&dag_init, step(context.clone(), &[])).await?)];
    let sides = [
        ("dag_process_left", call(&dag_process, step(json!({}), &init)).await?),
        ("dag_process_right", call(&dag_process, step(json!({}), &init)).await?),
    ];
    let last = [
        ("dag_validate", call(&dag_validate, step(json!({}), &sides)).await?),
        ("dag_transform", call(&dag_transform, step(json!({}), &sides)).await?),
        ("dag_analyze", call(&dag_analyze, step(json!({}), &sides)).await?),
    ];
    call(&dag_finalize, step(context, &last)).await
}

#[tokio::test]
async fn two_four_and_six_have_their_known_64th_powers() {
    for (number, power) in [
        (2, "18446744073709551616"),
        (4, "340282366920938463463374607431768211456"),
        (6, SIX_TO_THE_64TH),
        (-6, SIX_TO_THE_64TH),
    ] {
        let expected = json!({
            "final_result": power,
            "verification": {
                "original_number": number,
                "expected_result": power,
                "actual_result": power,
                "matches": true,
            },
        });
        let context = json!({ "even_number": number });
        assert_eq!(run_tree(context.clone()).await.unwrap(), expected);
        assert_eq!(run_mixed_dag(context).await.unwrap(), expected);
    }
    let zero = run_tree(json!({ "even_number": 0 })).await.unwrap();
    assert_eq!(zero["final_result"], 0);
}

#[tokio::test]
async fn tree_and_mixed_dag_agree_with_the_64th_power_of_every_even_number_up_to_100() {
    for number in (2..=100u32).step_by(2) {
        let power = (0..64).fold(BigUint::from(1u32), |product, _| product * number).to_string();
        for result in [
            run_tree(json!({ "even_number": number })).await.unwrap(),
            run_mixed_dag(json!({ "even_number": number })).await.unwrap(),
        ] {
            assert_eq!(result["final_result"], json!(power), "{number}");
            assert_eq!(result["verification"]["matches"], true, "{number}");
        }
    }
}

#[tokio::test]
async fn the_steps_in_between_return_the_bare_power() {
    let number = |exponent: u32| json!(6u64.pow(exponent));
    let root = call(&tree_root, step(json!({ "even_number": 6 }), &[])).await.unwrap();
    assert_eq!(root, number(2));
    let branch = call(&tree_branch, step(json!({}), &[("tree_root", root)])).await.unwrap();
    assert_eq!(branch, number(4));
    let leaf = call(&tree_right_leaf, step(json!({}), &[("tree_branch_right", branch)])).await.unwrap();
    assert_eq!(leaf, number(8));
    let sides = [("dag_process_left", number(4)), ("dag_process_right", number(4))];
    assert_eq!(call(&dag_validate, step(json!({}), &sides)).await.unwrap(), number(16));
    assert_eq!(call(&dag_transform, step(json!({}), &sides)).await.unwrap(), number(8));
    assert_eq!(call(&dag_analyze, step(json!({}), &sides)).await.unwrap(), number(8));
}

#[tokio::test]
async fn left_and_right_are_told_apart() {
    let sides = [("tree_branch_left", json!(3)), ("tree_branch_right", json!(5))];
    assert_eq!(call(&tree_left_leaf, step(json!({}), &sides)).await.unwrap(), 9);
    assert_eq!(call(&tree_right_leaf, step(json!({}), &sides)).await.unwrap(), 25);
    let sides = [("dag_process_left", json!(3)), ("dag_process_right", json!(5))];
    assert_eq!(call(&dag_validate, step(json!({}), &sides)).await.unwrap(), 225);
    assert_eq!(call(&dag_transform, step(json!({}), &sides)).await.unwrap(), 9);
    assert_eq!(call(&dag_analyze, step(json!({}), &sides)).await.unwrap(), 25);
}

#[tokio::test]
async fn the_verification_tells_when_a_step_went_wrong() {
    let context = json!({ "even_number": 2 });
    let last = [("dag_validate", json!(65536)), ("dag_transform", json!(256)), ("dag_analyze", json!(255))];
    let result = call(&dag_finalize, step(context, &last)).await.unwrap();
    assert_eq!(result["verification"]["matches"], false);
    assert_eq!(result["verification"]["expected_result"], "18446744073709551616");
    assert_eq!(result["verification"]["actual_result"], result["final_result"]);
}

#[tokio::test]
async fn a_number_that_is_missing_odd_or_too_long_is_a_permanent_error() {
    for (context, expected) in [
        (json!({}), "MISSING_CONTEXT_FIELD"),
        (json!({ "even_number": null }), "MISSING_CONTEXT_FIELD"),
        (json!({ "even_number": 7 }), "VALIDATION_ERROR"),
        (json!({ "even_number": -7 }), "VALIDATION_ERROR"),
        (json!({ "even_number": "4".repeat(1_001) }), "VALIDATION_ERROR"),
    ] {
        let tree = call(&tree_root, step(context.clone(), &[])).await.unwrap_err();
        let dag = call(&dag_init, step(context, &[])).await.unwrap_err();
        assert!(!tree.is_retryable() && !dag.is_retryable());
        assert_eq!((code::<()>(Err(tree)).as_str(), code::<()>(Err(dag)).as_str()), (expected, expected));
    }
}

#[tokio::test]
async fn a_number_of_a_thousand_digits_is_carried_through() {
    let number = "8".repeat(1_000);
    let result = run_tree(json!({ "even_number": number })).await.unwrap();
    let power = number.parse::<BigUint>().unwrap().pow(64).to_string();
    assert_eq!(result["final_result"], json!(power));
    assert_eq!(run_mixed_dag(json!({ "even_number": number })).await.unwrap(), result);
}

#[tokio::test]
async fn a_missing_leaf_is_a_permanent_error() {
    let leaves = [("tree_leaf_d", json!(1)), ("tree_leaf_e", json!(1)), ("tree_leaf_f", json!(1))];
    let error = call(&tree_final_convergence, step(json!({ "even_number": 2 }), &leaves)).await.unwrap_err();
    assert_eq!((error.error_code(), error.is_retryable()), (Some("MISSING_DEPENDENCY"), false));
    assert!(error.message().contains("tree_leaf_g"), "{error}");
}

#[test]
fn integers_are_json_numbers_up_to_2_to_the_53rd_and_strings_beyond() {
    for (json, canonical) in [
        ("9007199254740992", "9007199254740992"),
        ("-9007199254740992", "-9007199254740992"),
        ("9007199254740993", "\"9007199254740993\""),
        ("-9007199254740993", "\"-9007199254740993\""),
        ("18446744073709551615", "\"18446744073709551615\""),
        ("\"18446744073709551616\"", "\"18446744073709551616\""),
        ("\"6\"", "6"),
        ("\"-006\"", "-6"),
    ] {
        let number: Exact = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&number).unwrap(), canonical, "{json}");
    }
}

#[test]
fn what_is_no_exact_integer_does_not_fit_the_handler() {
    let too_long = format!("\"{}\"", "1".repeat(65_001));
    for wrong in
        ["6.5", "1e30", "18446744073709551616", "\"\"", "\"-\"", "\"six\"", "\"1_000\"", "\"+6\"", &too_long]
    {
        let read = serde_json::from_str::<Context>(&format!("{{\"even_number\":{wrong}}}"));
        assert!(read.is_err(), "{wrong}");
    }
}

#[test]
fn the_namespaces_have_eight_and_seven_steps() {
    assert_eq!(
        steps_of(tree::namespace()),
        [
            "tree_branch_left",
            "tree_branch_right",
            "tree_final_convergence",
            "tree_leaf_d",
            "tree_leaf_e",
            "tree_leaf_f",
            "tree_leaf_g",
            "tree_root",
        ]
    );
    assert_eq!(
        steps_of(mixed_dag::namespace()),
        [
            "dag_analyze",
            "dag_finalize",
            "dag_init",
            "dag_process_left",
            "dag_process_right",
            "dag_transform",
            "dag_validate",
        ]
    );
}
