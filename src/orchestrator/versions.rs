//! Which versions of a template there are.

use crate::catalog::Catalog;

/// A template's versions, the latest last: the order the catalogue keeps.
pub(super) fn versions(catalog: &Catalog, namespace: &str, name: &str) -> Vec<String> {
    let templates = catalog.all().into_iter();
    let of_name = templates.filter(|template| template.namespace == namespace && template.name == name);
    of_name.map(|template| template.version.clone()).collect()
}
