//! User code: the handler trait, and the registry that finds the handler of a step.
//!
//! Handlers are written with their own types. Here, and only here, those types are erased.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::message::{ErrorType, Json, StepExecutionRequest, is_namespace};
use crate::outcome::{StepError, StepResult};
use crate::step::Step;

/// Runs one kind of step.
///
/// Every `async fn(Step<In>) -> StepResult<Out>` is a handler. Implement the trait for a struct when
/// handlers share state:
///
/// ```
/// use tasker_worker_rust::{Namespace, Step, StepHandler, StepResult};
///
/// struct Warehouse { stock: u64 }
///
/// impl StepHandler<u64, bool> for Warehouse {
///     async fn call(&self, step: Step<u64>) -> StepResult<bool> {
///         Ok(step.context <= self.stock)
///     }
/// }
///
/// Namespace::new("orders").step("in_stock", Warehouse { stock: 3 });
/// ```
pub trait StepHandler<In, Out>: Send + Sync + 'static {
    /// Runs the step. May be called many times at once, and more than once for the same step.
    fn call(&self, step: Step<In>) -> impl Future<Output = StepResult<Out>> + Send;
}

impl<F, Fut, In, Out> StepHandler<In, Out> for F
where
    F: Fn(Step<In>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = StepResult<Out>> + Send,
{
    fn call(&self, step: Step<In>) -> impl Future<Output = StepResult<Out>> + Send {
        self(step)
    }
}

/// A namespace's handlers. One namespace is one queue.
#[derive(Debug, Clone)]
pub struct Namespace {
    name: String,
    handlers: HashMap<String, ErasedHandler>,
}

impl Namespace {
    /// An empty namespace.
    ///
    /// # Panics
    /// At the caller's line, when `name` is not 1 to 64 characters of `A-Z a-z 0-9 _ -`.
    #[track_caller]
    pub fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        assert!(is_namespace(&name), "namespace {name:?} is not 1 to 64 characters of A-Z a-z 0-9 _ -");
        Self { name, handlers: HashMap::new() }
    }

    /// Registers the handler of a step.
    ///
    /// # Panics
    /// At the caller's line, when the step has a handler already, or no name.
    #[track_caller]
    #[must_use]
    pub fn step<In, Out, H>(mut self, step_name: impl Into<String>, handler: H) -> Self
    where
        In: DeserializeOwned + Send + 'static,
        Out: Serialize + Send + 'static,
        H: StepHandler<In, Out>,
    {
        let typed = TypedHandler { handler, types: PhantomData::<fn(In) -> Out> };
        self.insert(
            step_name.into(),
            ErasedHandler { run: Run::Async(Arc::new(typed)), registered: Location::caller() },
        );
        self
    }

    /// Registers a handler that blocks its thread: it runs on a thread pool of its own, so that it
    /// cannot hold up other steps. Look at [`Step::is_cancelled`] in long loops.
    ///
    /// # Panics
    /// At the caller's line, when the step has a handler already, or no name.
    #[track_caller]
    #[must_use]
    pub fn blocking_step<In, Out, F>(mut self, step_name: impl Into<String>, handler: F) -> Self
    where
        In: DeserializeOwned + Send + 'static,
        Out: Serialize + Send + 'static,
        F: Fn(Step<In>) -> StepResult<Out> + Send + Sync + 'static,
    {
        let run: BlockingFn = Arc::new(move |call| encode(handler(call.typed()?)?));
        self.insert(
            step_name.into(),
            ErasedHandler { run: Run::Blocking(run), registered: Location::caller() },
        );
        self
    }

    #[track_caller]
    fn insert(&mut self, step_name: String, handler: ErasedHandler) {
        assert!(
            !step_name.is_empty(),
            "a step of namespace {:?} has an empty name; give it the name its template has",
            self.name
        );
        if let Some(earlier) = self.handlers.get(&step_name) {
            panic!(
                "step {step_name:?} of namespace {:?} already has a handler, registered at {}; \
                 give one of the two another name",
                self.name, earlier.registered
            );
        }
        self.handlers.insert(step_name, handler);
    }

    /// The namespace's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// All handlers of a worker: namespace and step to handler.
#[derive(Debug, Clone, Default)]
pub struct HandlerRegistry {
    namespaces: HashMap<String, Namespace>,
}

impl HandlerRegistry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a namespace; its steps join those already registered under the same name.
    ///
    /// # Panics
    /// At the caller's line, when one of its steps has a handler already.
    #[track_caller]
    pub fn add(&mut self, namespace: Namespace) {
        match self.namespaces.get_mut(&namespace.name) {
            None => {
                self.namespaces.insert(namespace.name.clone(), namespace);
            }
            Some(present) => {
                for (step_name, handler) in namespace.handlers {
                    present.insert(step_name, handler);
                }
            }
        }
    }

    /// The registered namespaces, sorted.
    pub fn namespaces(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.namespaces.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// The steps registered in a namespace, sorted.
    pub fn steps(&self, namespace: &str) -> Vec<&str> {
        let handlers = self.namespaces.get(namespace).map(|n| n.handlers.keys());
        let mut names: Vec<_> = handlers.into_iter().flatten().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Whether a handler answers to the step's name or, failing that, to its template's callable.
    pub fn contains(&self, namespace: &str, step_name: &str, callable: &str) -> bool {
        self.find(namespace, step_name, callable).is_some()
    }

    pub(crate) fn find(&self, namespace: &str, step_name: &str, callable: &str) -> Option<&ErasedHandler> {
        let handlers = &self.namespaces.get(namespace)?.handlers;
        handlers.get(step_name).or_else(|| handlers.get(callable))
    }
}

/// One call of a handler, before its context has been read.
pub(crate) struct Call {
    pub(crate) request: Arc<StepExecutionRequest>,
    pub(crate) cancelled: CancellationToken,
    pub(crate) deadline: Option<Instant>,
}

impl Call {
    fn typed<In: DeserializeOwned>(self) -> StepResult<Step<In>> {
        let context = self.request.task_data.parse().map_err(|error| {
            StepError::validation(format_args!(
                "the task's context does not fit the handler of step {:?}: {error}",
                self.request.step_name
            ))
            .code("INVALID_CONTEXT")
        })?;
        Ok(Step::new(context, self.request, self.cancelled, self.deadline))
    }
}

pub(crate) type HandlerFuture = Pin<Box<dyn Future<Output = StepResult<Json>> + Send>>;
pub(crate) type BlockingFn = Arc<dyn Fn(Call) -> StepResult<Json> + Send + Sync>;

/// A handler without its types.
#[derive(Clone)]
pub(crate) struct ErasedHandler {
    pub(crate) run: Run,
    registered: &'static Location<'static>,
}

#[derive(Clone)]
pub(crate) enum Run {
    Async(Arc<dyn AsyncHandler>),
    Blocking(BlockingFn),
}

impl fmt::Debug for ErasedHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "handler registered at {}", self.registered)
    }
}

pub(crate) trait AsyncHandler: Send + Sync {
    fn call(self: Arc<Self>, call: Call) -> HandlerFuture;
}

struct TypedHandler<H, In, Out> {
    handler: H,
    types: PhantomData<fn(In) -> Out>,
}

impl<H, In, Out> AsyncHandler for TypedHandler<H, In, Out>
where
    In: DeserializeOwned + Send + 'static,
    Out: Serialize + Send + 'static,
    H: StepHandler<In, Out>,
{
    fn call(self: Arc<Self>, call: Call) -> HandlerFuture {
        Box::pin(async move { encode(self.handler.call(call.typed()?).await?) })
    }
}

fn encode<Out: Serialize>(value: Out) -> StepResult<Json> {
    Json::encode(&value).map_err(|error| {
        StepError::new(ErrorType::ResultRefused, false, format_args!("the result has no JSON form: {error}"))
    })
}
