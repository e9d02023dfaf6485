//! A `cargo` that a test calls.

use std::process::Command;

/// Keeps from it what `cargo test` tells a test about its package. Build scripts of dependencies go by these variables:
/// where they differ from one call to the next, those dependencies and all that need them are built anew.
#[expect(clippy::disallowed_methods, reason = "only their names are read")]
pub(crate) fn forget_the_package(cargo: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    cargo
}
