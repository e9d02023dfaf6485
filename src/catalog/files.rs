//! What the files of a directory say now, given what they said before.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Key, key};
use crate::config;
use crate::template::{self, Mistake, Template};

/// The files, by path.
pub(super) type Files = BTreeMap<PathBuf, File>;

/// What is known about one file.
#[derive(Debug, Clone, Default)]
pub(super) struct File {
    /// The text at the last look; none once the file is gone or unreadable.
    text: Option<String>,
    /// The template this text holds, where it is a good one.
    parsed: Option<Arc<Template>>,
    deleted: bool,
    /// What is wrong with the text, or that there is none.
    mistakes: Vec<String>,
    /// The file whose template this one's may not replace.
    conflict: Option<String>,
    pub(super) warnings: Vec<String>,
    /// The last good template, which stays in use whatever happened to the file since.
    pub(super) in_use: Option<Arc<Template>>,
}

impl File {
    /// Everything that keeps the file from being used as it is.
    pub(super) fn problems(&self) -> impl Iterator<Item = &String> {
        self.mistakes.iter().chain(&self.conflict)
    }

    fn read(path: &Path, text: Result<String, String>, before: &Self, environment: Option<&str>) -> Self {
        let place = |mistake: &Mistake| mistake.at(path.display());
        let in_use = before.in_use.clone();
        match text {
            Err(problem) => Self { mistakes: vec![problem], in_use, ..Self::default() },
            Ok(text) if before.text.as_ref() == Some(&text) => Self { conflict: None, ..before.clone() },
            Ok(text) => match template::parse_with(&text, environment, &config::variable) {
                Ok(parsed) => {
                    let unset: Vec<String> = parsed.unset.iter().map(place).collect();
                    for problem in &unset {
                        tracing::warn!(%problem, "A template names a variable that is not set");
                    }
                    Self {
                        text: Some(text),
                        parsed: Some(Arc::new(parsed.template)),
                        warnings: unset.into_iter().chain(parsed.warnings.iter().map(place)).collect(),
                        in_use,
                        ..Self::default()
                    }
                }
                Err(mistakes) => Self {
                    text: Some(text),
                    mistakes: mistakes.iter().map(place).collect(),
                    in_use,
                    ..Self::default()
                },
            },
        }
    }

    fn deleted(path: &Path, before: &Self) -> Self {
        let in_use = before.in_use.clone();
        let mistakes = in_use.iter().map(|template| {
            let Template { namespace, name, version, .. } = &**template;
            let path = path.display();
            format!(
                "{path}: was deleted; its template {namespace}/{name} {version} stays in use until a restart"
            )
        });
        Self { deleted: true, mistakes: mistakes.collect(), in_use, ..Self::default() }
    }
}

/// The files after another look at the directory.
pub(super) fn updated(
    before: &Files,
    texts: BTreeMap<PathBuf, Result<String, String>>,
    environment: Option<&str>,
) -> Files {
    let unknown = File::default();
    let deleted = before.iter().filter(|(path, _)| !texts.contains_key(*path));
    let deleted: Vec<_> = deleted.map(|(path, file)| (path.clone(), File::deleted(path, file))).collect();
    let mut files: Files = texts
        .into_iter()
        .map(|(path, text)| {
            let file = File::read(&path, text, before.get(&path).unwrap_or(&unknown), environment);
            (path, file)
        })
        .chain(deleted)
        .collect();

    let owners = owners(&files);
    for (path, file) in &mut files {
        if let Some(parsed) = &file.parsed {
            let owner = &owners[&key(parsed)];
            if owner == path {
                file.in_use = Some(Arc::clone(parsed));
            } else {
                let Template { namespace, name, version, .. } = &**parsed;
                file.conflict = Some(format!(
                    "{}: holds {namespace}/{name} {version}, as does {}; give one of them another version",
                    path.display(),
                    owner.display()
                ));
            }
        }
        // A renamed file leaves nothing behind, nor does one whose template moved to another.
        if file.in_use.as_ref().is_some_and(|kept| owners.get(&key(kept)).is_some_and(|owner| owner != path))
        {
            file.in_use = None;
        }
    }
    files.retain(|_, file| !file.deleted || file.in_use.is_some());
    files
}

/// Which file each template is taken from: the one it came from before, else the first by its path.
fn owners(files: &Files) -> BTreeMap<Key, PathBuf> {
    let mut owners: BTreeMap<Key, (bool, PathBuf)> = BTreeMap::new();
    for (path, file) in files {
        let Some(parsed) = &file.parsed else { continue };
        let key = key(parsed);
        let held_before = file.in_use.as_ref().is_some_and(|kept| super::key(kept) == key);
        match owners.get(&key) {
            Some((true, _)) => {}
            Some((false, _)) if !held_before => {}
            _ => {
                owners.insert(key, (held_before, path.clone()));
            }
        }
    }
    owners.into_iter().map(|(key, (_, path))| (key, path)).collect()
}

/// The texts of all YAML files below `directory`, and why one has none.
pub(super) fn read_directory(directory: &Path) -> Result<BTreeMap<PathBuf, Result<String, String>>, String> {
    let mut texts = BTreeMap::new();
    if directory.is_file() {
        let path = directory.to_owned();
        let text = fs::read_to_string(directory);
        let text = text.map_err(|error| format!("{}: cannot be read: {error}", path.display()));
        return Ok(BTreeMap::from([(path, text)]));
    }
    let mut visited = BTreeSet::new();
    visit(directory, &mut visited, &mut texts).map_err(|error| {
        let directory = directory.display();
        format!(
            "the template directory {directory} cannot be read: {error}; create it, or set template_directory"
        )
    })?;
    Ok(texts)
}

fn visit(
    directory: &Path,
    visited: &mut BTreeSet<PathBuf>,
    texts: &mut BTreeMap<PathBuf, Result<String, String>>,
) -> io::Result<()> {
    // Links may lead back up.
    if !visited.insert(directory.canonicalize()?) {
        return Ok(());
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // Hidden are editors' copies, and the directories behind a ConfigMap's links, which would show
        // every file twice.
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let path = entry.path();
        let is_yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        let seen = if path.is_dir() {
            visit(&path, visited, texts)
        } else if is_yaml {
            fs::read_to_string(&path).map(|text| {
                texts.insert(path.clone(), Ok(text));
            })
        } else {
            Ok(())
        };
        match seen {
            // Deleted since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(&path).is_err() => {
            }
            Err(error) => {
                let problem = format!("{}: cannot be read: {error}", path.display());
                texts.insert(path, Err(problem));
            }
            Ok(()) => {}
        }
    }
    Ok(())
}
