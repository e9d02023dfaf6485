//! How long a task may take, as its template says it.

use std::time::Duration;

use tasker_worker_rust::template::{Lifecycle, parse};

fn lifecycle(lines: &str) -> Result<Option<Lifecycle>, String> {
    let text = format!(
        "name: order\nnamespace_name: shop\nversion: 1.0.0\nlifecycle:\n{lines}\nsteps:\n  - name: pay\n    \
         handler: {{callable: pay}}\n"
    );
    let parsed = parse(&text, None).map_err(|mistakes| mistakes[0].message.clone())?;
    assert!(parsed.warnings.is_empty(), "{:?}", parsed.warnings);
    Ok(parsed.template.lifecycle)
}

#[test]
fn every_limit_and_what_follows_is_read() {
    let minutes = |minutes: u64| Some(Duration::from_secs(minutes * 60));
    let read = lifecycle(
        "  max_duration_minutes: 43200\n  max_waiting_for_dependencies_minutes: 60\n  \
         max_waiting_for_retry_minutes: 30\n  max_steps_in_process_minutes: '15'\n  staleness_action: error\n  \
         auto_dlq_on_timeout: true\n  auto_fail_on_timeout: null",
    );
    let wanted = Lifecycle {
        max_duration: minutes(43_200),
        max_waiting_for_dependencies: minutes(60),
        max_waiting_for_retry: minutes(30),
        max_steps_in_process: minutes(15),
        records: true,
        fails: true,
    };
    assert_eq!(read, Ok(Some(wanted)));
    for (lines, follows) in [
        ("  max_duration_minutes: 1", (true, true)),
        ("  staleness_action: dlq", (true, true)),
        ("  staleness_action: error", (false, true)),
        ("  staleness_action: none", (false, false)),
        ("  auto_fail_on_timeout: false", (true, false)),
        ("  staleness_action: none\n  auto_dlq_on_timeout: yes", (true, false)),
    ] {
        let read = lifecycle(lines).expect(lines).expect("it is there");
        assert_eq!((read.records, read.fails), follows, "{lines}");
    }
}

#[test]
fn limits_that_make_no_sense_are_mistakes() {
    for (lines, says) in [
        ("  max_duration_minutes: 0", "max_duration_minutes is 0; expected a whole number from 1 to 43200"),
        ("  max_duration_minutes: 43201", "is 43201; expected a whole number from 1 to 43200"),
        ("  staleness_action: retry", "\"retry\" is unknown; there are: dlq, error, none"),
        ("  max_duration_minute: 5", "did you mean \"max_duration_minutes\"?"),
    ] {
        let text = lifecycle(lines).expect_err(lines);
        assert!(text.contains(says), "{text}");
    }
}
