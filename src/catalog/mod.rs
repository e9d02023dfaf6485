//! The templates in use: loaded from a directory's files, and again when they change.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, mpsc};
use std::time::Duration;

use notify::{EventKind, RecursiveMode, Watcher};
use tokio::sync::watch;

use crate::error::Error;
use crate::ops::metrics::METRICS;
use crate::template::Template;

mod files;

use files::{Files, read_directory, updated};

/// Changes come in bursts: a file is read when nothing has happened for this long.
const QUIET: Duration = Duration::from_millis(200);
/// A burst that does not end is read all the same.
const LONGEST_BURST: Duration = Duration::from_secs(2);
/// Some file systems report no changes, and a directory put in place of a watched one is not watched.
const LOOK_ANYWAY: Duration = Duration::from_secs(30);

/// The templates in use, by namespace, name and version. Clones share one state.
#[derive(Debug, Clone)]
pub struct Catalog {
    shared: Arc<Shared>,
}

/// Keeps the files watched; dropping it ends the watching.
#[derive(Debug)]
#[must_use = "the files are watched only while this is kept"]
pub struct WatchGuard {
    _watcher: Option<notify::RecommendedWatcher>,
}

#[derive(Debug)]
struct Shared {
    /// The directory and the environment; none where the templates were given.
    source: Option<(PathBuf, Option<String>)>,
    /// Locked while the directory is read, so that two reloads do not overtake each other.
    files: Mutex<Files>,
    /// Those that came from no file.
    added: Mutex<BTreeMap<Key, Arc<Template>>>,
    current: RwLock<Arc<Current>>,
    changes: watch::Sender<u64>,
}

/// What the readers of a catalogue see, replaced as a whole.
#[derive(Debug, Default)]
struct Current {
    templates: BTreeMap<Key, Arc<Template>>,
    problems: Vec<String>,
    warnings: Vec<String>,
}

/// Namespace, name, version.
type Key = (String, String, String);

fn key(template: &Template) -> Key {
    (template.namespace.clone(), template.name.clone(), template.version.clone())
}

impl Current {
    /// A file's template wins over one that was added.
    fn of(files: &Files, added: &BTreeMap<Key, Arc<Template>>) -> Self {
        let in_use = files.values().filter_map(|file| file.in_use.as_ref());
        let mut templates = added.clone();
        let mut warnings: Vec<String> = files.values().flat_map(|file| file.warnings.clone()).collect();
        for template in in_use {
            let replaced = templates.insert(key(template), Arc::clone(template));
            if replaced.is_some_and(|replaced| replaced != *template) {
                let Template { namespace, name, version, .. } = &**template;
                warnings.push(format!(
                    "{namespace}/{name} {version} was registered with other content; the file's is used"
                ));
            }
        }
        let problems = files.values().flat_map(|file| file.problems().cloned()).collect();
        Self { templates, problems, warnings }
    }
}

impl Catalog {
    /// Loads every `*.yaml` and `*.yml` file below `directory`, hidden files and directories left out, or the one
    /// file it names. `environment` selects the templates' overrides, see [`template::parse`](crate::template::parse);
    /// `${VAR}` is replaced from this process's environment.
    ///
    /// # Errors
    /// [`Error::Templates`] with every mistake of every file as `file:line: what`, two files for one template,
    /// or a directory that cannot be read.
    pub fn load(directory: &Path, environment: Option<&str>) -> Result<Self, Error> {
        let texts = read_directory(directory).map_err(|problem| Error::Templates(vec![problem]))?;
        let files = updated(&Files::new(), texts, environment);
        let current = Current::of(&files, &BTreeMap::new());
        if !current.problems.is_empty() {
            return Err(Error::Templates(current.problems));
        }
        METRICS.broken_templates.set(0);
        for warning in &current.warnings {
            tracing::debug!(%warning, "A template says something that has no effect");
        }
        Ok(Self::new(Some((directory.to_owned(), environment.map(str::to_owned))), files, current))
    }

    /// A catalogue of these templates, for tests and for programs that bring their own.
    ///
    /// # Panics
    /// When two templates have the same namespace, name and version.
    #[track_caller]
    pub fn from_templates(templates: Vec<Template>) -> Self {
        let mut current = Current::default();
        for template in templates {
            let earlier = current.templates.insert(key(&template), Arc::new(template));
            if let Some(Template { namespace, name, version, .. }) = earlier.as_deref() {
                panic!("there are two templates {namespace}/{name} {version}; give them different versions");
            }
        }
        let added = current.templates.clone();
        let catalog = Self::new(None, Files::new(), current);
        *held(&catalog.shared.added) = added;
        catalog
    }

    fn new(source: Option<(PathBuf, Option<String>)>, files: Files, current: Current) -> Self {
        let shared = Shared {
            source,
            files: Mutex::new(files),
            added: Mutex::default(),
            current: RwLock::new(Arc::new(current)),
            changes: watch::Sender::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Adds a template that comes from no file. A file of the same namespace, name and version wins.
    pub fn add(&self, template: Arc<Template>) {
        let files = held(&self.shared.files);
        held(&self.shared.added).insert(key(&template), template);
        self.shared.show(&files, None);
    }

    /// The template of this namespace, name and version.
    pub fn get(&self, namespace: &str, name: &str, version: &str) -> Option<Arc<Template>> {
        let key = (namespace.to_owned(), name.to_owned(), version.to_owned());
        self.current().templates.get(&key).cloned()
    }

    /// All templates, by namespace, name and version.
    pub fn all(&self) -> Vec<Arc<Template>> {
        let mut all: Vec<_> = self.current().templates.values().cloned().collect();
        // As versions 1.10.0 comes after 1.9.0, as texts before it.
        all.sort_by_cached_key(|template| {
            let version = template.version.split('.').map(|part| part.parse().unwrap_or(u64::MAX));
            (template.namespace.clone(), template.name.clone(), version.collect::<Vec<_>>())
        });
        all
    }

    /// The namespaces that have a template.
    pub fn namespaces(&self) -> BTreeSet<String> {
        self.current().templates.keys().map(|(namespace, ..)| namespace.clone()).collect()
    }

    /// What is wrong with the files at the last look; the last good templates stay in use meanwhile.
    pub fn problems(&self) -> Vec<String> {
        self.current().problems.clone()
    }

    /// What the files say without effect, as `file:line: what`.
    pub fn warnings(&self) -> Vec<String> {
        self.current().warnings.clone()
    }

    /// Counts the changes of templates and problems since the start.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Reads changed files again: a good change replaces a template, a broken or deleted file leaves its last
    /// good one in use and becomes one of the [`problems`](Self::problems). Reads files, so it blocks.
    pub fn reload(&self) {
        self.shared.reload();
    }

    /// Reloads on every change below the directory, 200 ms after the last of a burst, and every 30 s for file
    /// systems that report none. Replaced links count as changes, as when Kubernetes updates a ConfigMap.
    /// Does nothing for a catalogue that was not loaded from a directory.
    ///
    /// # Errors
    /// When the system does not let the directory be watched.
    pub fn watch(&self) -> Result<WatchGuard, Error> {
        let Some((directory, _)) = &self.shared.source else { return Ok(WatchGuard { _watcher: None }) };
        let failed = |error: notify::Error| {
            Error::Templates(vec![format!(
                "{} cannot be watched: {error}; set auto_reload = false to do without",
                directory.display()
            )])
        };
        let (sender, events) = mpsc::channel();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the files is an event too, and must not lead to reading them again.
            if !event.is_ok_and(|event| matches!(event.kind, EventKind::Access(_))) {
                // Nobody listens any more when the guard is being dropped.
                let _ = sender.send(());
            }
        })
        .map_err(failed)?;
        watcher.watch(directory, RecursiveMode::Recursive).map_err(failed)?;
        let shared = Arc::clone(&self.shared);
        std::thread::Builder::new()
            .name("templates".to_owned())
            .spawn(move || shared.follow(&events))
            .map_err(|error| failed(notify::Error::io(error)))?;
        // What changed between the loading and now.
        self.reload();
        Ok(WatchGuard { _watcher: Some(watcher) })
    }

    fn current(&self) -> Arc<Current> {
        self.shared.current()
    }
}

impl Shared {
    /// Until the watcher, which holds the sender, is dropped.
    fn follow(&self, events: &mpsc::Receiver<()>) {
        loop {
            match events.recv_timeout(LOOK_ANYWAY) {
                Ok(()) => {
                    let started = std::time::Instant::now();
                    while started.elapsed() < LONGEST_BURST && events.recv_timeout(QUIET).is_ok() {}
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            self.reload();
        }
    }

    fn reload(&self) {
        let Some((directory, environment)) = &self.source else { return };
        let mut files = held(&self.files);
        let texts = read_directory(directory);
        let unreadable = texts.as_ref().err().cloned();
        if let Ok(texts) = texts {
            *files = updated(&files, texts, environment.as_deref());
        }
        let broken = files.values().filter(|file| file.problems().next().is_some()).count();
        METRICS.broken_templates.set((broken + unreadable.iter().len()) as i64);
        self.show(&files, unreadable);
    }

    /// Lets everybody see what is there now.
    fn show(&self, files: &Files, unreadable: Option<String>) {
        let mut next = Current::of(files, &held(&self.added));
        next.problems.extend(unreadable);
        let before = self.current();
        for problem in next.problems.iter().filter(|problem| !before.problems.contains(problem)) {
            tracing::error!(%problem, "A template file cannot be used; the last good templates stay in use");
        }
        if next.templates == before.templates && next.problems == before.problems {
            return;
        }
        if before.templates != next.templates {
            tracing::info!(templates = next.templates.len(), "The templates were loaded again");
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        self.changes.send_modify(|count| *count += 1);
    }

    fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
