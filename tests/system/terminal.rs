//! What the program looks like: on a terminal, on one that can do little, and in a pipe.

use std::process::{Command, Stdio};

use tasker_worker_rust::config::variable;

use crate::support::coverage;

const PROGRAM: &str = env!("CARGO_BIN_EXE_tasker-worker-rust");

/// What is shown on a terminal of 80 columns, escape sequences included.
pub(crate) fn on_a_terminal(arguments: &str, environment: &[(&str, &str)]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let mut script = Command::new("script");
    script.args(["-qec", &format!("stty cols 80 rows 50; exec {PROGRAM} {arguments}"), "/dev/null"]);
    script.current_dir(directory.path()).env_clear().envs(coverage()).stdin(Stdio::null());
    script.env("PATH", variable("PATH").unwrap()).env("TERM", "xterm-256color").env("SHELL", "/bin/bash");
    let output = script.envs(environment.iter().copied()).output().expect("util-linux has `script`");
    String::from_utf8(output.stdout).unwrap()
}

fn in_a_pipe(arguments: &[&str]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let mut program = Command::new(PROGRAM);
    program
        .args(arguments)
        .current_dir(directory.path())
        .env_clear()
        .envs(coverage())
        .env("TERM", "xterm-256color");
    let output = program.output().unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

/// The lines wider than a terminal of 80 columns.
pub(crate) fn too_wide(text: &str) -> Vec<&str> {
    text.lines().map(str::trim_end).filter(|line| line.chars().count() > 80).collect()
}

/// An orchestrator that cannot listen: it logs, and ends with an error.
const ENDS: &str = "orchestrator";
const CANNOT_LISTEN: (&str, &str) = ("TASKER__ORCHESTRATOR__LISTEN_ADDRESS", "192.0.2.1:1");
const TEMPLATES: (&str, &str) =
    ("TASKER__ORCHESTRATOR__TEMPLATE_DIRECTORY", concat!(env!("CARGO_MANIFEST_DIR"), "/config/workflows"));

#[test]
fn nothing_but_text_goes_into_a_pipe() {
    for arguments in [&["demo"][..], &["--help"], &["submit", "--help"], &["sumbit"], &["handlers"], &["man"]]
    {
        let text = in_a_pipe(arguments);
        assert!(!text.is_empty() && !text.contains('\x1b'), "{arguments:?}: {text:?}");
    }
}

#[test]
fn the_demos_table_fits_80_columns_and_tells_every_answer() {
    let table = in_a_pipe(&["demo"]);
    assert_eq!(too_wide(&table), [""; 0]);
    assert!(table.contains("6334028666297327770616"), "the start of a long answer is shown:\n{table}");
}

#[test]
fn help_and_mistakes_fit_80_columns_of_a_terminal() {
    for arguments in
        ["--help", "-h", "submit --help", "dead-letters replay --help", "completions --help", "sumbit"]
    {
        let text = on_a_terminal(arguments, &[("NO_COLOR", "1")]);
        assert!(text.lines().count() > 3, "{arguments}: {text}");
        assert_eq!(too_wide(&text), [""; 0], "{arguments}");
    }
}

#[test]
fn a_terminal_has_colours_unless_they_are_not_wanted() {
    for arguments in [ENDS, "sumbit"] {
        let coloured = on_a_terminal(arguments, &[CANNOT_LISTEN, TEMPLATES]);
        assert!(coloured.contains("\x1b["), "{arguments}: {coloured:?}");
        for unwanted in [("NO_COLOR", "1"), ("TERM", "dumb")] {
            let plain = on_a_terminal(arguments, &[CANNOT_LISTEN, TEMPLATES, unwanted]);
            assert!(
                plain.contains("error: ") && !plain.contains('\x1b'),
                "{arguments}, {unwanted:?}: {plain:?}"
            );
        }
    }
}

#[test]
fn a_terminal_that_cannot_move_its_cursor_gets_no_progress_bars() {
    let moving = on_a_terminal("demo", &[]);
    assert!(moving.contains('\x1b'), "{moving:?}");
    let dumb = on_a_terminal("demo", &[("TERM", "dumb")]);
    assert!(!dumb.contains('\x1b') && dumb.contains("WORKFLOW"), "{dumb:?}");
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let help = in_a_pipe(&["--help"]);
    let commands = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let commands = commands.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let commands: Vec<&str> = commands.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(commands.len() > 15, "{commands:?}");
    let directory = tempfile::tempdir().unwrap();
    in_a_pipe(&["man", directory.path().to_str().unwrap()]);
    for command in commands.into_iter().filter(|command| *command != "help") {
        for shell in ["bash", "zsh", "fish"] {
            assert!(in_a_pipe(&["completions", shell]).contains(command), "{shell} does not know {command}");
        }
        assert!(
            in_a_pipe(&["man"]).contains(&command.replace('-', "\\-")),
            "the page does not know {command}"
        );
        let page = directory.path().join(format!("tasker-worker-rust-{command}.1"));
        assert!(std::fs::read_to_string(&page).unwrap().contains(".SH SYNOPSIS"), "{page:?}");
    }
    let complete = "source <($PROGRAM completions bash); COMP_WORDS=(tasker-worker-rust dead-letters re); COMP_CWORD=2
        function=$(complete -p tasker-worker-rust | grep -o '_[a-z_-]*rust '); $function tasker-worker-rust re dead-letters; echo ${COMPREPLY[@]}";
    let completed = Command::new("bash").args(["-c", complete]).env("PROGRAM", PROGRAM).output().unwrap();
    assert_eq!(String::from_utf8(completed.stdout).unwrap().trim(), "replay");
}
