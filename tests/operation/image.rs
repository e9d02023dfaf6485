//! The container image is built from what `.dockerignore` lets through.

use std::collections::BTreeSet;
use std::path::Path;

fn sources(directory: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).expect("the folder can be read") {
        let path = entry.expect("the folder can be read").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(std::fs::read_to_string(path).expect("sources are text"));
        }
    }
}

#[test]
fn every_file_that_the_sources_name_outside_of_their_folder_is_there_when_the_image_is_built() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ignored = std::fs::read_to_string(root.join(".dockerignore")).unwrap();
    let there: BTreeSet<&str> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let mut texts = Vec::new();
    sources(&root.join("src"), &mut texts);
    let literals = texts.iter().flat_map(|text| text.split('"').skip(1).step_by(2));
    let named: BTreeSet<&str> = literals
        .filter(|literal| literal.starts_with("../") || literal.starts_with("./"))
        .filter_map(|path| path.split('/').find(|part| !part.starts_with('.')))
        .filter(|part| root.join(part).exists())
        .collect();
    assert!(
        named.is_superset(&BTreeSet::from(["README.md", "benches", "config", "migrations"])),
        "{named:?}"
    );
    let missing: Vec<_> = named.difference(&there).collect();
    assert!(missing.is_empty(), "put these into .dockerignore, with a `!` before each: {missing:?}");
}
