//! A directory of templates, and what becomes of it when its files change.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tasker_worker_rust::catalog::Catalog;
use tempfile::TempDir;

use super::{template, with_steps};

fn workflows() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/workflows")
}

fn text(name: &str, version: &str) -> String {
    with_steps("  - name: a").replace("name: n\n", &format!("name: {name}\n")).replace("1.0.0", version)
}

/// A directory with one file, and its catalogue.
fn one_file() -> (TempDir, PathBuf, Catalog) {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("orders.yaml");
    fs::write(&file, text("orders", "1.0.0")).unwrap();
    let catalog = Catalog::load(directory.path(), None).unwrap();
    (directory, file, catalog)
}

fn versions(catalog: &Catalog) -> Vec<String> {
    catalog.all().iter().map(|template| format!("{} {}", template.name, template.version)).collect()
}

/// Waits until the catalogue is as `wanted` says, looking again after each of its changes.
async fn eventually(catalog: &Catalog, wanted: impl Fn(&Catalog) -> bool) {
    let mut changes = catalog.changes();
    let waiting = async {
        while !wanted(catalog) {
            changes.changed().await.unwrap();
        }
    };
    let timely = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    assert!(timely.is_ok(), "still {:?} with {:?}", versions(catalog), catalog.problems());
}

#[test]
fn the_workflows_load_with_their_steps() {
    let catalog = Catalog::load(&workflows(), None).unwrap();
    let loaded: Vec<(String, String, usize)> = catalog
        .all()
        .iter()
        .map(|template| (template.namespace.clone(), template.name.clone(), template.steps.len()))
        .collect();
    let expected = [
        ("approval_workflow", "purchase_approval", 6),
        ("batch_workflow", "sum_of_squares", 3),
        ("diamond_workflow", "parallel_processing", 4),
        ("linear_workflow", "mathematical_sequence", 4),
        ("mixed_dag_workflow", "complex_dag", 7),
        ("order_fulfillment", "business_workflow", 6),
        ("tree_workflow", "hierarchical_tree", 8),
    ];
    assert_eq!(
        loaded,
        expected.map(|(namespace, name, steps)| (namespace.to_owned(), name.to_owned(), steps))
    );
    let warnings = catalog.warnings();
    assert!(
        warnings.len() == 1 && warnings[0].contains("task_handler_class has no effect"),
        "the design document's own example names a task handler: {warnings:?}"
    );
    assert!(catalog.all().iter().all(|template| template.input_schema.is_some()));
    assert!(catalog.all().iter().flat_map(|template| &template.steps).all(|step| step.timeout.is_some()));

    let order = catalog.get("order_fulfillment", "business_workflow", "1.0.0").unwrap();
    let limits: Vec<(u32, u64, u64)> = order
        .steps
        .iter()
        .map(|step| (step.max_attempts, step.timeout.unwrap().as_secs(), step.retry.base_ms))
        .collect();
    assert_eq!(limits[..4], [(3, 45, 1_000), (3, 60, 1_000), (2, 90, 2_000), (3, 60, 1_000)]);
}

#[test]
fn templates_are_found_by_namespace_name_and_version() {
    let catalog = Catalog::from_templates(vec![
        template(&text("orders", "1.10.0")),
        template(&text("orders", "1.9.0")),
    ]);
    assert_eq!(catalog.get("ns", "orders", "1.9.0").unwrap().version, "1.9.0");
    assert!(catalog.get("ns", "orders", "2.0.0").is_none());
    assert_eq!(versions(&catalog), ["orders 1.9.0", "orders 1.10.0"]);
    assert_eq!(catalog.namespaces().into_iter().collect::<Vec<_>>(), ["ns"]);
}

#[test]
#[should_panic(expected = "there are two templates ns/orders 1.0.0; give them different versions")]
fn one_template_twice_is_a_mistake_of_the_program() {
    Catalog::from_templates(vec![template(&text("orders", "1.0.0")), template(&text("orders", "1.0.0"))]);
}

#[test]
fn every_mistake_of_every_file_is_told_with_file_and_line() {
    let directory = TempDir::new().unwrap();
    let root = directory.path();
    fs::create_dir_all(root.join("deep/er")).unwrap();
    fs::write(root.join("a.yaml"), text("orders", "1.0")).unwrap();
    fs::write(root.join("deep/b.yml"), text("orders", "1.0.0")).unwrap();
    fs::write(root.join("deep/er/c.yaml"), text("orders", "1.0.0")).unwrap();
    fs::write(root.join("d.yaml"), [0xff, 0xfe]).unwrap();
    fs::write(root.join("notes.txt"), "not a template").unwrap();
    fs::write(root.join(".hidden.yaml"), "not: a template").unwrap();
    let error = Catalog::load(root, None).unwrap_err().to_string();
    let shown = root.display();
    assert_eq!(
        error,
        format!(
            "the task templates have 3 mistakes:\n  \
             - {shown}/a.yaml:3: version \"1.0\" is not of the form x.y.z, such as 1.0.0\n  \
             - {shown}/d.yaml: cannot be read: stream did not contain valid UTF-8\n  \
             - {shown}/deep/er/c.yaml: holds ns/orders 1.0.0, as does {shown}/deep/b.yml; give one of them another version"
        )
    );
}

#[test]
fn a_directory_that_is_not_there_is_told() {
    let error = Catalog::load(Path::new("/nowhere/workflows"), None).unwrap_err().to_string();
    assert!(
        error.contains("the template directory /nowhere/workflows cannot be read: No such file or directory")
            && error.contains("create it, or set template_directory"),
        "{error}"
    );
}

#[test]
fn the_environment_reaches_every_file() {
    let directory = TempDir::new().unwrap();
    let overridden =
        with_steps("  - name: a\nenvironments: {test: {steps: [{name: a, timeout_seconds: 7}]}}");
    fs::write(directory.path().join("a.yaml"), overridden).unwrap();
    let timeout = |environment| {
        let catalog = Catalog::load(directory.path(), environment).unwrap();
        catalog.all()[0].steps[0].timeout
    };
    assert_eq!((timeout(None), timeout(Some("test"))), (None, Some(Duration::from_secs(7))));
}

#[test]
fn a_broken_file_leaves_the_last_good_template_and_is_a_problem_until_it_is_repaired() {
    let (_directory, file, catalog) = one_file();
    fs::write(&file, "name: [").unwrap();
    catalog.reload();
    assert_eq!(versions(&catalog), ["orders 1.0.0"]);
    let problems = catalog.problems();
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].starts_with(&format!("{}:1: this is not valid YAML", file.display())),
        "{problems:?}"
    );

    let seen = *catalog.changes().borrow();
    catalog.reload();
    assert_eq!(*catalog.changes().borrow(), seen, "nothing changed, so nothing is announced");

    fs::write(&file, text("orders", "1.1.0")).unwrap();
    catalog.reload();
    assert_eq!((versions(&catalog), catalog.problems()), (vec!["orders 1.1.0".to_owned()], vec![]));
}

#[test]
fn a_deleted_file_leaves_its_template_and_a_renamed_one_no_problem() {
    let (directory, file, catalog) = one_file();
    let text = fs::read_to_string(&file).unwrap();
    fs::remove_file(&file).unwrap();
    catalog.reload();
    assert_eq!(versions(&catalog), ["orders 1.0.0"]);
    assert_eq!(
        catalog.problems(),
        [format!(
            "{}: was deleted; its template ns/orders 1.0.0 stays in use until a restart",
            file.display()
        )]
    );

    fs::write(directory.path().join("renamed.yaml"), text).unwrap();
    catalog.reload();
    assert_eq!((versions(&catalog), catalog.problems()), (vec!["orders 1.0.0".to_owned()], vec![]));
}

#[test]
fn a_second_file_cannot_take_over_a_template_while_the_first_one_holds_it() {
    let (directory, file, catalog) = one_file();
    let before = catalog.get("ns", "orders", "1.0.0").unwrap();
    // First by its name, and yet second.
    let intruder = directory.path().join("a.yaml");
    fs::write(&intruder, text("orders", "1.0.0") + "\n  - name: b\n").unwrap();
    catalog.reload();
    assert_eq!(catalog.get("ns", "orders", "1.0.0").unwrap(), before);
    assert_eq!(
        catalog.problems(),
        [format!(
            "{}: holds ns/orders 1.0.0, as does {}; give one of them another version",
            intruder.display(),
            file.display()
        )]
    );
    fs::remove_file(&file).unwrap();
    catalog.reload();
    assert_eq!(catalog.get("ns", "orders", "1.0.0").unwrap().steps.len(), 2);
    assert_eq!(catalog.problems(), [""; 0]);
}

#[test]
fn a_directory_that_vanishes_is_a_problem_and_nothing_more() {
    let (directory, _file, catalog) = one_file();
    let path = directory.path().to_owned();
    drop(directory);
    catalog.reload();
    assert_eq!(versions(&catalog), ["orders 1.0.0"]);
    let problems = catalog.problems();
    assert!(problems.len() == 1 && problems[0].contains(&path.display().to_string()), "{problems:?}");
}

#[tokio::test]
async fn watched_files_are_read_again_when_they_change() {
    let (directory, file, catalog) = one_file();
    let _watching = catalog.watch().unwrap();

    fs::write(&file, text("orders", "1.1.0")).unwrap();
    eventually(&catalog, |catalog| versions(catalog) == ["orders 1.1.0"]).await;

    let below = directory.path().join("more");
    fs::create_dir(&below).unwrap();
    fs::write(below.join("refunds.yml"), text("refunds", "1.0.0")).unwrap();
    eventually(&catalog, |catalog| versions(catalog) == ["orders 1.1.0", "refunds 1.0.0"]).await;

    // As editors save: a new file moved over the old one.
    let draft = directory.path().join(".orders.yaml.swp");
    fs::write(&draft, text("orders", "1.2.0")).unwrap();
    fs::rename(&draft, &file).unwrap();
    eventually(&catalog, |catalog| versions(catalog) == ["orders 1.2.0", "refunds 1.0.0"]).await;

    fs::write(&file, "steps: {").unwrap();
    eventually(&catalog, |catalog| catalog.problems().len() == 1).await;
    assert_eq!(versions(&catalog), ["orders 1.2.0", "refunds 1.0.0"]);
}

#[cfg(unix)]
#[tokio::test]
async fn a_config_maps_swapped_link_counts_as_a_change() {
    use std::os::unix::fs::symlink;

    let directory = TempDir::new().unwrap();
    let root = directory.path();
    let revision = |name: &str, version: &str| {
        fs::create_dir(root.join(name)).unwrap();
        fs::write(root.join(name).join("orders.yaml"), text("orders", version)).unwrap();
    };
    revision("..first", "1.0.0");
    symlink("..first", root.join("..data")).unwrap();
    symlink("..data/orders.yaml", root.join("orders.yaml")).unwrap();
    let catalog = Catalog::load(root, None).unwrap();
    assert_eq!(versions(&catalog), ["orders 1.0.0"], "the files behind the links are not counted again");

    let _watching = catalog.watch().unwrap();
    revision("..second", "2.0.0");
    symlink("..second", root.join("..data_tmp")).unwrap();
    fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    eventually(&catalog, |catalog| versions(catalog) == ["orders 2.0.0"]).await;
    assert_eq!(catalog.problems(), [""; 0]);
}

#[cfg(unix)]
#[test]
fn links_that_lead_in_circles_are_followed_once() {
    let (directory, _file, _catalog) = one_file();
    std::os::unix::fs::symlink(directory.path(), directory.path().join("again")).unwrap();
    assert_eq!(versions(&Catalog::load(directory.path(), None).unwrap()), ["orders 1.0.0"]);
}
