//! Which versions of a template there are, and which is the latest.

use crate::catalog::Catalog;

/// A template's versions, the latest last.
pub(super) fn versions(catalog: &Catalog, namespace: &str, name: &str) -> Vec<String> {
    let templates = catalog.all().into_iter();
    let mut versions: Vec<String> = templates
        .filter(|template| template.namespace == namespace && template.name == name)
        .map(|template| template.version.clone())
        .collect();
    // By number: 1.10.0 is later than 1.9.0.
    let numbers = |version: &str| version.split('.').map(|n| n.parse().unwrap_or(0)).collect::<Vec<u64>>();
    versions.sort_by_key(|version| (numbers(version), version.clone()));
    versions
}
