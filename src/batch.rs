//! What the handler of a batchable step returns, and what the instances of its batch worker are given.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One part of a batchable step's work, from `start` up to but not including `end`. What the two are is agreed
/// between the two handlers: numbers, keys, dates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Batch")]
pub struct Batch<C = Value> {
    /// Tells the batches of one step apart: `001`, `002`, …
    #[serde(rename = "batch_id")]
    pub id: String,
    /// Where it begins.
    #[serde(rename = "start_cursor")]
    pub start: C,
    /// Where it ends.
    #[serde(rename = "end_cursor")]
    pub end: C,
    /// How many items it has.
    #[serde(rename = "batch_size", default)]
    pub size: u64,
}

/// How a batchable step divides its work: one instance of the batch worker is created for each part.
///
/// ```
/// use serde::Deserialize;
/// use tasker_worker_rust::{Batch, Batches, Step, StepResult};
///
/// #[derive(Deserialize)]
/// struct Import { rows: u64 }
///
/// async fn analyse(step: Step<Import>) -> StepResult<Batches> {
///     let batch_size = step.batch_config().batch_size; // from the template
///     Ok(Batches::split(step.context.rows, batch_size.into()))
/// }
///
/// async fn import(step: Step<Import>) -> StepResult<u64> {
///     let Batch { start, end, .. } = step.batch::<u64>()?;
///     Ok((start..end).sum())
/// }
///
/// let batches = Batches::split(2_500, 1_000);
/// assert_eq!(batches.batches().len(), 3);
/// # let last = r#"{"batch_id":"003","start_cursor":2000,"end_cursor":2500,"batch_size":500}"#;
/// # assert!(serde_json::to_string(&batches).unwrap().contains(last));
/// ```
///
/// A handler that has more to tell returns a struct of its own with a field of this type and
/// `#[serde(flatten)]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Batches {
    batch_processing_outcome: Division,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Division {
    NoBatches,
    CreateBatches {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        worker_template_name: Option<String>,
        worker_count: usize,
        cursor_configs: Vec<Batch>,
        #[serde(default)]
        total_items: u64,
    },
}

impl Batches {
    /// Where they stand in a result.
    pub(crate) const FIELD: &str = "batch_processing_outcome";

    /// Items 0 to `total_items`, `batch_size` of them in each batch but the last; without items no batch.
    pub fn split(total_items: u64, batch_size: u64) -> Self {
        let size = batch_size.max(1);
        let start = |batch: u64| batch * size;
        let ranges = (0..total_items.div_ceil(size)).map(|batch| {
            let end = start(batch).saturating_add(size).min(total_items);
            (start(batch), end, end - start(batch))
        });
        Self::ranges(ranges)
    }

    /// A batch for each `(start, end, size)`.
    pub fn ranges<C: Into<Value>>(ranges: impl IntoIterator<Item = (C, C, u64)>) -> Self {
        let batches = ranges.into_iter().enumerate().map(|(index, (start, end, size))| Batch {
            id: format!("{:03}", index + 1),
            start: start.into(),
            end: end.into(),
            size,
        });
        let cursor_configs: Vec<Batch> = batches.collect();
        if cursor_configs.is_empty() {
            return Self::none();
        }
        Self {
            batch_processing_outcome: Division::CreateBatches {
                worker_template_name: None,
                worker_count: cursor_configs.len(),
                total_items: cursor_configs.iter().map(|batch| batch.size).sum(),
                cursor_configs,
            },
        }
    }

    /// Nothing to do: no instance is created, and what waits for the batch worker goes on.
    pub fn none() -> Self {
        Self { batch_processing_outcome: Division::NoBatches }
    }

    /// Names the batch worker, where the template does not (`worker_template`).
    #[must_use]
    pub fn by(mut self, worker: impl Into<String>) -> Self {
        if let Division::CreateBatches { worker_template_name, .. } = &mut self.batch_processing_outcome {
            *worker_template_name = Some(worker.into());
        }
        self
    }

    /// The batches, in order.
    pub fn batches(&self) -> &[Batch] {
        match &self.batch_processing_outcome {
            Division::NoBatches => &[],
            Division::CreateBatches { cursor_configs, .. } => cursor_configs,
        }
    }

    /// The batch worker, where one is named.
    pub fn worker(&self) -> Option<&str> {
        match &self.batch_processing_outcome {
            Division::NoBatches => None,
            Division::CreateBatches { worker_template_name, .. } => worker_template_name.as_deref(),
        }
    }

    /// How many instances it says there are.
    pub(crate) fn worker_count(&self) -> usize {
        match &self.batch_processing_outcome {
            Division::NoBatches => 0,
            Division::CreateBatches { worker_count, .. } => *worker_count,
        }
    }
}
