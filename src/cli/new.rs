//! `new`: a crate to begin with.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use tasker_worker_rust::Error;

use super::{Answer, Output, output};

/// The files, with the name the crate has in them.
const FILES: [(&str, &str); 9] = [
    ("Cargo.toml", include_str!("new/Cargo.toml.in")),
    ("src/main.rs", include_str!("new/main.rs.in")),
    ("src/greet.rs", include_str!("new/greet.rs.in")),
    ("config/workflows/welcome.yaml", include_str!("new/workflow.yaml")),
    ("Dockerfile", include_str!("new/Dockerfile")),
    ("values.yaml", include_str!("new/values.yaml")),
    ("README.md", include_str!("new/README.md")),
    (".gitignore", "/target\n*.sqlite*\n"),
    (".dockerignore", "*\n!Cargo.*\n!config\n!src\n"),
];

#[derive(Debug, clap::Args)]
pub(super) struct New {
    /// Where to: a directory that does not exist yet or is empty. Its name is the crate's.
    directory: PathBuf,
    /// Take the library from this directory instead of the registry.
    #[arg(long, value_name = "DIR")]
    library: Option<PathBuf>,
}

impl New {
    pub(super) fn run(&self, output: Output) -> Result<Answer, Error> {
        let name = self.name()?;
        let library = match &self.library {
            None => format!("{:?}", env!("CARGO_PKG_VERSION")),
            Some(path) => {
                let path =
                    path.canonicalize().map_err(|source| Error::File { path: path.clone(), source })?;
                format!("{{ path = {:?} }}", path.display())
            }
        };
        for (file, text) in FILES {
            let text = text.replace("LIBRARY", &library);
            let text = text.replace("my-worker", name).replace("my_worker", &name.replace('-', "_"));
            let path = self.directory.join(file);
            let parent = path.parent().unwrap_or(Path::new("."));
            let written = fs::create_dir_all(parent).and_then(|()| fs::write(&path, text));
            written.map_err(|source| Error::Write { path, source })?;
        }
        let directory = self.directory.display();
        match output {
            Output::Json => output::json(
                &json!({ "directory": directory.to_string(), "files": FILES.map(|(file, _)| file) }),
            ),
            Output::Text => {
                println!("{directory} is ready. What comes next:");
                println!("  cd {directory}");
                println!("  cargo test");
                println!("  less README.md");
            }
        }
        Ok(Answer::Yes)
    }

    /// The crate's name, which with underscores is also the namespace's.
    fn name(&self) -> Result<&str, Error> {
        let mistake = |text: String| Err(Error::Config(vec![text]));
        let name = self.directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let fits = name.starts_with(|first: char| first.is_ascii_lowercase())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_')
            && name.len() <= 64;
        if !fits {
            return mistake(format!(
                "{name:?} is no name for a crate and a namespace: take a-z, 0-9, - and _, a letter first, 64 at most"
            ));
        }
        let occupied = fs::read_dir(&self.directory).is_ok_and(|mut entries| entries.next().is_some());
        if occupied || self.directory.is_file() {
            return mistake(format!("{} exists already; give a new directory", self.directory.display()));
        }
        Ok(name)
    }
}
