//! What the documents point at is there: files, names, links, make targets, commands.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every document, with its path.
fn documents() -> Vec<(PathBuf, String)> {
    let mut paths: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "helm/tasker-worker-rust/README.md"]
        .map(|name| root().join(name))
        .into();
    let docs = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    paths.extend(docs.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    assert!(paths.len() > 8, "the documents were not found");
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// The texts in backticks outside of fenced blocks.
fn quoted(document: &str) -> impl Iterator<Item = &str> {
    let prose = document.split("\n```").step_by(2);
    prose.flat_map(|part| part.split('`').skip(1).step_by(2))
}

#[test]
fn every_file_a_document_names_is_there() {
    let folders =
        ["src", "tests", "docs", "config", "helm", "scripts", "examples", "benches", "migrations", "deploy"];
    let mut looked_at = 0;
    for (path, text) in documents() {
        for name in quoted(&text) {
            let in_the_tree = name.split_once('/').is_some_and(|(first, _)| folders.contains(&first));
            let is_a_path = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b));
            if in_the_tree && is_a_path {
                looked_at += 1;
                assert!(root().join(name).exists(), "{}: there is no {name}", path.display());
            }
        }
    }
    assert!(looked_at > 50, "only {looked_at} files were found in the documents");
}

#[test]
fn every_link_to_a_file_leads_somewhere() {
    for (path, text) in documents() {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let local = target.strip_prefix("https://docs.rs/crate/tasker-worker-rust/latest/source/");
            let (target, from) = match local {
                Some(target) => (target, root()),
                // What rustdoc links, and anchors on the page.
                None if target.contains("::") || target.starts_with("http") || target.starts_with('#') => {
                    continue;
                }
                None if !target.contains('.') => continue,
                None => (target, path.parent().unwrap()),
            };
            let file = target.split('#').next().unwrap();
            assert!(from.join(file).exists(), "{} links to {target}, which is not there", path.display());
        }
    }
}

/// All words of the sources, to find names in.
fn words(directory: &Path, found: &mut BTreeSet<String>) {
    for path in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            words(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(path).unwrap();
            let is_part = |c: char| c.is_alphanumeric() || c == '_';
            found.extend(text.split(|c| !is_part(c)).map(str::to_owned));
        }
    }
}

#[test]
fn every_name_the_architecture_tells_of_is_in_the_sources() {
    let mut known = BTreeSet::new();
    words(&root().join("src"), &mut known);
    let text = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let names =
        quoted(&text).filter(|name| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_:".contains(&b)));
    let parts: Vec<&str> = names.flat_map(|name| name.split("::")).collect();
    let missing: Vec<_> = parts.iter().filter(|name| !known.contains(**name) && !name.is_empty()).collect();
    assert!(missing.is_empty(), "docs/architecture.md speaks of {missing:?}");
    assert!(parts.len() > 40, "only {} names were found", parts.len());
}

/// The commands of a document: behind the prompt of a block, and in backticks.
fn commands(document: &str) -> Vec<String> {
    let prompted = document.lines().filter_map(|line| line.strip_prefix("$ "));
    prompted.chain(quoted(document)).map(|line| line.split(" #").next().unwrap().trim().to_owned()).collect()
}

#[test]
fn every_make_target_and_example_a_document_names_exists() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let mut found = 0;
    for (path, text) in documents() {
        for command in commands(&text) {
            for part in command.split("&&").map(str::trim) {
                if let Some(target) = part.strip_prefix("make ") {
                    let target = target.split(' ').next().unwrap();
                    found += 1;
                    assert!(makefile.contains(&format!("\n{target}:")), "{}: make {target}", path.display());
                }
                if let Some(example) = part.strip_prefix("cargo run --example ") {
                    assert!(
                        root().join(format!("examples/{example}.rs")).exists(),
                        "{}: {part}",
                        path.display()
                    );
                }
            }
        }
    }
    assert!(found > 20, "only {found} targets were found in the documents");
}

/// Asks the program for help with the command, which it refuses when it does not know a part of it.
#[test]
fn every_command_line_a_document_shows_is_understood() {
    let mut seen = BTreeSet::new();
    for (path, text) in documents() {
        for command in commands(&text) {
            let Some(at) = command.find("tasker-worker-rust ").or_else(|| command.find("tasker ")) else {
                continue;
            };
            let shown = command[at..].split_once(' ').unwrap().1;
            // What is behind a pipe, a semicolon or a closing bracket is the shell's.
            let shown = shown.split([';', '|', ')', '>', '&']).next().unwrap();
            let before = &command[..at];
            let ours =
                ["", "target/debug/", "task=$("].contains(&before) || before.ends_with("exec orchestrator ");
            let first = shown.split(' ').next().unwrap();
            if !ours || first.is_empty() || first.contains(['/', '.']) || !seen.insert(shown.to_owned()) {
                continue;
            }
            let script = format!("{} {} --help", env!("CARGO_BIN_EXE_tasker-worker-rust"), plain(shown));
            let run = Command::new("bash").args(["-c", &script]).output().unwrap();
            let said = String::from_utf8_lossy(&run.stderr);
            assert!(run.status.success(), "{}: {command}\n{said}", path.display());
        }
    }
    assert!(seen.len() > 25, "only {} commands were found: {seen:?}", seen.len());
}

/// Without the words that stand for others: `[URL]`, `$task`, `STEP_UUID`.
fn plain(shown: &str) -> String {
    let shown = shown.replace(['[', ']'], "").replace("..", "");
    let is_placeholder = |word: &&str| word.starts_with('$') || word.contains("UUID");
    let words = shown
        .split(' ')
        .map(|word| if is_placeholder(&word) { "01234567-89ab-cdef-0123-456789abcdef" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn the_package_has_what_its_readme_links_to_and_nothing_else_than_sources_and_documents() {
    let list = Command::new(env!("CARGO"))
        .args(["package", "--list", "--allow-dirty", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(list.status.success(), "{}", String::from_utf8_lossy(&list.stderr));
    let list = String::from_utf8(list.stdout).unwrap();
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let linked = readme.split("/latest/source/").skip(1).filter_map(|rest| rest.split([')', '#']).next());
    for file in linked.chain([
        "src/lib.rs",
        "src/cli/new/Cargo.toml.in",
        "migrations/0001_tasks.sql",
        "benches/twin.rs",
    ]) {
        assert!(list.lines().any(|line| line == file), "{file} is not in the package");
    }
    for line in list.lines() {
        let known = ["rs", "in", "md", "toml", "yaml", "sql", "json", "svg", "txt", "lock"];
        let extension = line.rsplit_once('.').map_or("", |(_, extension)| extension);
        let other = ["LICENSE", "src/cli/new/Dockerfile", ".cargo_vcs_info.json", "Cargo.toml.orig"];
        assert!(known.contains(&extension) || other.contains(&line), "{line} is in the package");
    }
}
