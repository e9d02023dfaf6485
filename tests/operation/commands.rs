//! Every command that docs/operations.md shows is run by a test or by `make smoke`; here stands by which.

use std::path::Path;

/// What a command begins with, where it is run, and the words that show it there.
const RUN_BY: &[(&str, &str, &str)] = &[
    ("make up", "Makefile", "scripts/compose up -d rabbitmq orchestrator worker"),
    ("make smoke", "Makefile", "scripts/smoke"),
    ("make down", "Makefile", "scripts/compose --profile observability down"),
    ("scripts/compose exec orchestrator tasker-worker-rust submit", "scripts/smoke", "tasker submit"),
    (
        "scripts/compose exec orchestrator tasker-worker-rust dead-letters list",
        "scripts/smoke",
        "dead-letters list",
    ),
    (
        "scripts/compose exec -T orchestrator tasker-worker-rust store backup -",
        "scripts/smoke",
        "tasker store backup -",
    ),
    ("scripts/compose --profile observability up -d", "docker-compose.yml", "profiles: [observability]"),
    ("scripts/compose stop orchestrator", "scripts/smoke", "scripts/compose stop orchestrator"),
    (
        "scripts/compose run --rm -T orchestrator store restore -",
        "scripts/smoke",
        "orchestrator store restore -",
    ),
    ("scripts/compose up -d orchestrator", "scripts/smoke", "scripts/compose up -d orchestrator"),
    ("tasker-worker-rust store backup", "tests/system/backup.rs", "\"store\", \"backup\", \"copy.sqlite\""),
    ("tasker-worker-rust store check", "tests/system/backup.rs", "\"store\", \"check\""),
    ("tasker-worker-rust store restore", "tests/system/backup.rs", "\"store\", \"restore\""),
    ("tasker-worker-rust status TASK_UUID --timing", "tests/system/timing.rs", "\"--timing\""),
    ("mkdir passwords && for user in", "tests/system/rights.rs", "for user in USERS"),
    ("tasker-worker-rust topology export", "tests/system/rights.rs", "\"export\""),
    ("rabbitmqctl import_definitions", "tests/system/rights.rs", "\"import_definitions\""),
    ("tasker dead-letters list", "tests/system/program/dead_letters.rs", "\"list\""),
    ("tasker dead-letters show", "tests/system/program/dead_letters.rs", "\"show\""),
    ("tasker dead-letters replay", "tests/system/program/dead_letters.rs", "\"replay\""),
    ("tasker dead-letters discard", "tests/system/program/dead_letters.rs", "\"discard\""),
];

/// These want a cluster, which no test has. `make chart` checks what the chart makes of the same values.
const OF_A_CLUSTER: &[&str] = &["kubectl ", "helm "];

fn text(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn every_command_of_the_operations_guide_is_run_somewhere() {
    let guide = text("docs/operations.md");
    let commands: Vec<&str> = guide.lines().filter_map(|line| line.strip_prefix("$ ")).collect();
    assert!(commands.len() > 10, "the commands were not found");
    let known = |command: &&str| {
        RUN_BY.iter().any(|(start, ..)| command.starts_with(start))
            || OF_A_CLUSTER.iter().any(|start| command.starts_with(start))
    };
    let unknown: Vec<&&str> = commands.iter().filter(|command| !known(command)).collect();
    assert!(unknown.is_empty(), "say above who runs these: {unknown:#?}");
    for (start, place, words) in RUN_BY {
        assert!(
            commands.iter().any(|command| command.starts_with(start)),
            "{start} is not in the guide any more"
        );
        assert!(text(place).contains(words), "{place} does not run {start}: {words:?} is not in it");
    }
}
