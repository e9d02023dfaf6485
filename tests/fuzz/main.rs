//! What nobody meant to send: mutated messages, templates and settings, and a worker that gets a great many.
//!
//! `FUZZ_CASES` mutated inputs go to each decoder and `FUZZ_MESSAGES` to a running worker; `FUZZ_SEED` is what
//! they are made of, so that a failure can be had again. `make fuzz` runs a million of each.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod decoding;
mod extremes;
mod messages;
mod mutate;
mod soak;

use std::str::FromStr;

/// A number from the environment.
fn setting<T: FromStr>(name: &str, default: T) -> T {
    #[expect(clippy::disallowed_methods, reason = "how long the tests run is no setting of the product")]
    let value = std::env::var(name);
    match value {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}; expected a number")),
        Err(_) => default,
    }
}

/// The texts of all files of `directory` whose name ends like this, in order.
fn corpus(directory: &str, extension: &str) -> Vec<Vec<u8>> {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut files: Vec<_> = directory.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|found| found == extension));
    files.sort();
    assert!(!files.is_empty(), "{} has no {extension} file", directory.display());
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}
