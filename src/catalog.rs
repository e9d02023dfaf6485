//! The templates at hand.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::watch;

use crate::template::Template;

/// The templates at hand. Clones share them.
#[derive(Debug, Clone)]
pub struct Catalog {
    templates: Arc<BTreeMap<(String, String, String), Arc<Template>>>,
    changes: watch::Receiver<u64>,
    _changed: Arc<watch::Sender<u64>>,
}

impl Catalog {
    /// A catalog of these.
    pub fn from_templates(templates: Vec<Template>) -> Self {
        let (changed, changes) = watch::channel(0);
        let templates = templates
            .into_iter()
            .map(|t| ((t.namespace.clone(), t.name.clone(), t.version.clone()), Arc::new(t)))
            .collect();
        Self { templates: Arc::new(templates), changes, _changed: Arc::new(changed) }
    }

    /// One template.
    pub fn get(&self, namespace: &str, name: &str, version: &str) -> Option<Arc<Template>> {
        self.templates.get(&(namespace.to_owned(), name.to_owned(), version.to_owned())).cloned()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Template>> {
        self.templates.values().cloned().collect()
    }

    /// Their namespaces.
    pub fn namespaces(&self) -> BTreeSet<String> {
        self.templates.keys().map(|(namespace, ..)| namespace.clone()).collect()
    }

    /// Counts the changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }
}
