//! Every example runs, and prints what it is meant to show.

use std::path::Path;
use std::process::Command;

use crate::cargo::forget_the_package;

/// The output of an example that ended well.
fn output(example: &str) -> String {
    // Where this test was built, which need not be cargo's usual place.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let run = forget_the_package(&mut Command::new(env!("CARGO")))
        .args(["run", "--quiet", "--offline", "--example", example])
        .arg("--target-dir")
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{example} ended with {}:\n{stdout}\n{stderr}", run.status);
    stdout.into_owned()
}

#[test]
fn quickstart_greets() {
    assert_eq!(output("quickstart"), "completed: \"Hello Ada\"\n");
}

#[test]
fn typed_handlers_shows_every_way_a_step_can_end() {
    let lines = [
        r#"quote: completed on attempt 1: {"cents":750}"#,
        r#"charge: completed on attempt 1: {"paid_cents":750,"key_is_the_steps":true}"#,
        "charge: failed on attempt 1: CARD_DECLINED the card was declined",
        r#"charge: completed on attempt 2: {"paid_cents":750,"key_is_the_steps":true}"#,
        r#"charge: failed on attempt 1: MISSING_DEPENDENCY step "charge" needs the result of "quote", which is not among its ancestors (it has none)"#,
        r#"charge: failed on attempt 1: INVALID_CONTEXT the task's context does not fit the handler of step "charge": invalid type: string "three", expected u32 at line 1 column 19"#,
    ];
    assert_eq!(output("typed_handlers"), lines.join("\n") + "\n");
}

#[test]
fn shared_state_sells_no_book_twice() {
    let lines = [
        r#"reserve: "one book reserved""#,
        r#"reserve: "one book reserved""#,
        "reserve: failed: no book left",
        "count: 5",
    ];
    assert_eq!(output("shared_state"), lines.join("\n") + "\n");
}

#[test]
fn test_a_handler_passes_its_own_tests() {
    assert_eq!(output("test_a_handler"), "5 tests passed\n");
}

#[test]
fn every_example_is_run_here() {
    let here = include_str!("examples.rs");
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples")).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy();
        assert!(here.contains(&format!("output({name:?})")), "no test runs the example {name}");
    }
}
