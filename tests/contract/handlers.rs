//! The ways of writing a handler, and what wrong wiring says.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tasker_worker_rust::{Config, HandlerRegistry, Namespace, RustWorker, Step, StepHandler, StepResult};

async fn untyped(step: Step) -> StepResult<Value> {
    Ok(json!({ "seen": step.context }))
}

#[derive(Serialize, Deserialize)]
struct Order {
    quantity: u64,
}

#[derive(Debug, PartialEq, Serialize)]
struct Reservation {
    reserved: u64,
}

async fn typed(step: Step<Order>) -> StepResult<Reservation> {
    Ok(Reservation { reserved: step.context.quantity })
}

/// Shared by all calls of its handler, and by the test that looks at it.
#[derive(Clone, Default)]
struct Warehouse {
    reserved: Arc<AtomicU64>,
}

impl StepHandler<Order, Reservation> for Warehouse {
    async fn call(&self, step: Step<Order>) -> StepResult<Reservation> {
        let before = self.reserved.fetch_add(step.context.quantity, Ordering::Relaxed);
        Ok(Reservation { reserved: before + step.context.quantity })
    }
}

fn blocking(step: Step<Order>) -> StepResult<u64> {
    Ok((1..=step.context.quantity).product())
}

fn names<'a>(registry: &'a HandlerRegistry, namespace: &str) -> Vec<&'a str> {
    registry.steps(namespace)
}

#[tokio::test]
async fn handlers_are_functions_or_structs_and_are_called_like_any_other() {
    assert_eq!(untyped(Step::for_test(json!(1))).await.unwrap(), json!({ "seen": 1 }));
    assert_eq!(typed(Step::for_test(Order { quantity: 2 })).await.unwrap(), Reservation { reserved: 2 });
    assert_eq!(
        StepHandler::call(&typed, Step::for_test(Order { quantity: 3 })).await.unwrap(),
        Reservation { reserved: 3 }
    );
    assert_eq!(blocking(Step::for_test(Order { quantity: 4 })).unwrap(), 24);

    let warehouse = Warehouse::default();
    for expected in [5, 10] {
        let answer = warehouse.call(Step::for_test(Order { quantity: 5 })).await.unwrap();
        assert_eq!(answer, Reservation { reserved: expected });
    }
    assert_eq!(warehouse.reserved.load(Ordering::Relaxed), 10);
}

#[test]
fn every_kind_of_handler_can_be_registered() {
    let mut registry = HandlerRegistry::new();
    registry.add(
        Namespace::new("orders")
            .step("untyped", untyped)
            .step("typed", typed)
            .step("struct", Warehouse::default())
            .step("closure", |step: Step<String>| async move { Ok(step.context.len()) })
            .blocking_step("blocking", blocking)
            .blocking_step("blocking_closure", |step: Step<u8>| Ok(step.context)),
    );
    assert_eq!(
        names(&registry, "orders"),
        ["blocking", "blocking_closure", "closure", "struct", "typed", "untyped"]
    );
}

#[test]
fn a_handler_is_found_by_its_step_or_else_by_its_templates_callable() {
    let mut registry = HandlerRegistry::new();
    registry.add(Namespace::new("orders").step("pay", typed).step("Orders::PayHandler", typed));
    registry.add(Namespace::new("empty"));
    assert_eq!(registry.namespaces(), ["empty", "orders"]);
    for (namespace, step_name, callable, expected) in [
        ("orders", "pay", "", true),
        ("orders", "pay", "anything", true),
        ("orders", "pay_later", "Orders::PayHandler", true),
        ("orders", "pay_later", "pay", true),
        ("orders", "pay_later", "", false),
        ("orders", "pay_later", "Orders::Unknown", false),
        ("empty", "pay", "pay", false),
        ("unknown", "pay", "pay", false),
    ] {
        assert_eq!(
            registry.contains(namespace, step_name, callable),
            expected,
            "{namespace}/{step_name} ({callable})"
        );
    }
}

#[test]
fn an_unknown_namespace_has_no_steps() {
    assert!(HandlerRegistry::new().namespaces().is_empty());
    assert!(names(&HandlerRegistry::new(), "orders").is_empty());
}

#[test]
fn namespaces_of_the_same_name_are_joined() {
    let worker = RustWorker::new(Config::default())
        .namespace(Namespace::new("orders").step("pay", typed))
        .namespace(Namespace::new("orders").step("ship", typed))
        .namespace(Namespace::new("billing").step("pay", typed));
    assert_eq!(worker.registry().namespaces(), ["billing", "orders"]);
    assert_eq!(names(worker.registry(), "orders"), ["pay", "ship"]);
}

#[test]
fn registering_a_step_twice_panics_at_the_callers_line_and_names_the_first() {
    let first = line!() + 1;
    let orders = Namespace::new("orders").step("pay", typed);
    let second = line!() + 1;
    let panic = panic_of(|| drop(orders.step("pay", untyped)));
    assert_eq!(panic.place, (file!().to_owned(), second));
    assert_eq!(
        without_columns(&panic.text),
        format!(
            "step \"pay\" of namespace \"orders\" already has a handler, registered at {}:{first}; \
             give one of the two another name",
            file!()
        )
    );

    let third = line!() + 1;
    let panic = panic_of(|| drop(Namespace::new("orders").step("pay", typed).blocking_step("pay", blocking)));
    assert_eq!(panic.place, (file!().to_owned(), third));
}

#[test]
fn registering_a_step_in_two_namespaces_of_one_name_panics_where_the_second_is_added() {
    let worker = RustWorker::new(Config::default()).namespace(Namespace::new("orders").step("pay", typed));
    let again = Namespace::new("orders").step("pay", typed);
    let second = line!() + 1;
    let panic = panic_of(|| drop(worker.namespace(again)));
    assert_eq!(panic.place, (file!().to_owned(), second));
    assert!(panic.text.starts_with("step \"pay\" of namespace \"orders\" already has"), "{}", panic.text);

    let mut registry = HandlerRegistry::new();
    registry.add(Namespace::new("orders").step("pay", typed));
    let again = Namespace::new("orders").step("pay", typed);
    let second = line!() + 1;
    let panic = panic_of(|| registry.add(again));
    assert_eq!(panic.place, (file!().to_owned(), second));
}

#[test]
fn a_namespace_that_cannot_be_a_queue_panics_at_the_callers_line() {
    for name in ["", "order fulfillment", "orders.eu", "órders", &"n".repeat(65)] {
        let here = line!() + 1;
        let panic = panic_of(|| drop(Namespace::new(name)));
        assert_eq!(panic.place, (file!().to_owned(), here));
        assert_eq!(panic.text, format!("namespace {name:?} is not 1 to 64 characters of A-Z a-z 0-9 _ -"));
    }
    assert_eq!(Namespace::new("n".repeat(64)).name().len(), 64);
}

#[test]
fn a_step_without_a_name_panics_at_the_callers_line() {
    let here = line!() + 1;
    let panic = panic_of(|| drop(Namespace::new("orders").step("", typed)));
    assert_eq!(panic.place, (file!().to_owned(), here));
    assert_eq!(
        panic.text,
        "a step of namespace \"orders\" has an empty name; give it the name its template has"
    );
}

struct Panic {
    text: String,
    /// File and line.
    place: (String, u32),
}

thread_local! {
    static CAUGHT: RefCell<Option<Panic>> = const { RefCell::new(None) };
    static CATCHING: RefCell<bool> = const { RefCell::new(false) };
}

/// What `action` panics with, and where. Panics of other threads are reported as ever.
fn panic_of(action: impl FnOnce()) -> Panic {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
            if !CATCHING.with_borrow(|catching| *catching) {
                return usual(info);
            }
            let place = info.location().unwrap();
            let text = info.payload_as_str().unwrap_or_default().to_owned();
            CAUGHT.set(Some(Panic { text, place: (place.file().to_owned(), place.line()) }));
        }));
    });
    CATCHING.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(action));
    CATCHING.set(false);
    assert!(outcome.is_err(), "nothing panicked");
    CAUGHT.take().unwrap()
}

/// `file:line:column;` as `file:line;`.
fn without_columns(text: &str) -> String {
    let (place, advice) = text.split_once(';').unwrap();
    format!("{};{advice}", place.rsplit_once(':').unwrap().0)
}
