//! No input makes a decoder panic, hang, or say something that is no sentence.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use tasker_worker_rust::Config;
use tasker_worker_rust::config::Program;
use tasker_worker_rust::message::{ControlMessage, StepExecutionRequest, StepExecutionResult};
use tasker_worker_rust::template::{Template, graph, parse};

use crate::mutate::Mutator;
use crate::{corpus, setting};

/// Far above what any input of a few kilobytes takes, in a slow build on a busy machine.
const TIME: Duration = Duration::from_secs(10);

/// Gives mutated inputs to `decode`, on a thread with the stack that the product's threads have.
#[expect(clippy::print_stdout, reason = "the rate, for who runs it with --nocapture")]
fn survives(corpus: Vec<Vec<u8>>, decode: impl Fn(&[u8]) + Send + 'static) {
    let (cases, seed) = (setting("FUZZ_CASES", 1_000_u64), setting("FUZZ_SEED", 1_u64));
    let (begun, beginnings) = mpsc::sync_channel(1);
    let inputs = corpus.clone();
    let decoding = std::thread::Builder::new().stack_size(2 << 20).spawn(move || {
        let mutator = Mutator::new(&inputs);
        for case in seed..seed + cases {
            begun.send(case).unwrap();
            decode(&mutator.input(case));
        }
    });
    let (mut last, started) = (seed, Instant::now());
    let show = |case| {
        let input = Mutator::new(&corpus).input(case);
        format!("FUZZ_SEED={case} FUZZ_CASES=1: {:?}", String::from_utf8_lossy(&input))
    };
    loop {
        match beginnings.recv_timeout(TIME) {
            Ok(case) => last = case,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("not decoded within {TIME:?}: {}", show(last)),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    assert!(decoding.unwrap().join().is_ok(), "failed at {}", show(last));
    println!("{cases} inputs, {:.0}/s", cases as f64 / started.elapsed().as_secs_f64());
}

/// One line for a person: short, and without a byte that would break a log or a terminal.
fn assert_sentence(text: &str) {
    assert!(!text.trim().is_empty(), "an error without words");
    assert!(text.len() <= 2_000, "an error of {} bytes: {text}", text.len());
    assert!(!text.chars().any(char::is_control), "an error of several lines: {text:?}");
}

#[test]
fn messages_decode_or_say_why_not() {
    survives(corpus("tests/contract/golden", "json"), |input| {
        match StepExecutionRequest::decode(input) {
            Ok(request) => assert_eq!(StepExecutionRequest::decode(&request.encode()).unwrap(), request),
            Err(error) => assert_sentence(&error.to_string()),
        }
        match StepExecutionResult::decode(input) {
            Ok(result) => assert_eq!(StepExecutionResult::decode(&result.encode()).unwrap(), result),
            Err(error) => assert_sentence(&error.to_string()),
        }
        match ControlMessage::decode(input) {
            Ok(control) => {
                let again = serde_json::to_vec(&control).unwrap();
                assert_eq!(ControlMessage::decode(&again).unwrap(), control);
            }
            Err(error) => assert_sentence(&error.to_string()),
        }
    });
}

#[test]
fn templates_parse_or_name_their_mistakes() {
    let mut templates = corpus("config/workflows", "yaml");
    templates.extend(corpus("tests/template/corpus", "yaml"));
    survives(templates, |input| {
        let text = String::from_utf8_lossy(input);
        match parse(&text, Some("production")) {
            Ok(parsed) => {
                let template = parsed.template;
                assert_eq!(serde_json::from_str::<Template>(&template.to_json()).unwrap(), template);
                assert_eq!(template.topological_order().len(), template.steps.len());
                assert!(
                    !graph::graph_ascii(&template).is_empty() && !graph::graph_mermaid(&template).is_empty()
                );
                parsed.warnings.iter().for_each(|warning| assert_sentence(&warning.message));
            }
            Err(mistakes) => {
                assert!(!mistakes.is_empty(), "refused without a mistake");
                mistakes.iter().for_each(|mistake| assert_sentence(&mistake.message));
            }
        }
    });
}

#[test]
fn settings_load_or_name_their_mistakes() {
    let directory = tempfile::tempdir().unwrap();
    survives(corpus("config", "toml"), move |input| {
        let file = directory.path().join("settings.toml");
        std::fs::write(&file, input).unwrap();
        for program in [Program::Worker, Program::Orchestrator] {
            match Config::load_with(Some(&file), program, []) {
                Ok(config) => {
                    config.check(program).unwrap();
                    let again: Config =
                        serde_json::from_value(serde_json::to_value(&config).unwrap()).unwrap();
                    assert_eq!(again.worker, config.worker);
                    config.ladder();
                }
                Err(tasker_worker_rust::Error::Config(mistakes)) => {
                    assert!(!mistakes.is_empty(), "refused without a mistake");
                    mistakes.iter().for_each(|mistake| assert_sentence(mistake));
                }
                Err(other) => panic!("not a mistake in the settings: {other}"),
            }
        }
    });
}
