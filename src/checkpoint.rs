//! How far a step has come that goes on later: what its handler reports, and is given back.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::message::Json;

/// How far a step has come. A handler that has done part of its work ends with
/// [`StepError::checkpoint`](crate::StepError::checkpoint), and is called again to go on from there, by any worker and after
/// whatever else waits. That spends no attempt; an attempt that fails goes back to the last checkpoint, not to the beginning.
///
/// ```
/// use tasker_worker_rust::{Batch, Checkpoint, Step, StepError, StepResult};
///
/// async fn import(step: Step) -> StepResult<u64> {
///     let Batch { start, end, .. } = step.batch::<u64>()?;
///     let mut done = step.checkpoint()?.unwrap_or(Checkpoint { cursor: start, ..Checkpoint::default() });
///     let until = end.min(done.cursor + 500);
///     done.accumulated_results += (done.cursor..until).sum::<u64>();
///     done.items_processed += until - done.cursor;
///     done.cursor = until;
///     if until < end {
///         return Err(StepError::checkpoint(done));
///     }
///     Ok(done.accumulated_results)
/// }
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// # let batch = || Batch { id: "001".to_owned(), start: 0.into(), end: 600.into(), size: 600 };
/// let reached = Checkpoint { cursor: 500, items_processed: 500, accumulated_results: 124_750 };
/// let step = Step::for_test(serde_json::Value::Null).with_batch(batch());
/// assert_eq!(import(step.clone()).await, Err(StepError::checkpoint(reached.clone())));
/// assert_eq!(import(step.with_checkpoint(reached)).await, Ok(179_700));
/// # });
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[schemars(rename = "Checkpoint", bound = "C: JsonSchema, A: JsonSchema + Default + Serialize")]
pub struct Checkpoint<C = Json, A = Json> {
    /// Where to go on. What it is, is the handler's business: a number, a key, a date.
    #[schema(value_type = serde_json::Value)]
    pub cursor: C,
    /// How many items are done, for people.
    #[serde(default)]
    pub items_processed: u64,
    /// What came of them so far, where the handler keeps it here; else `()`.
    #[serde(default)]
    #[schema(value_type = serde_json::Value)]
    pub accumulated_results: A,
}

impl<C: Serialize, A: Serialize> Checkpoint<C, A> {
    /// As it travels.
    pub(crate) fn encode(&self) -> Result<Checkpoint, serde_json::Error> {
        Ok(Checkpoint {
            cursor: Json::encode(&self.cursor)?,
            items_processed: self.items_processed,
            accumulated_results: Json::encode(&self.accumulated_results)?,
        })
    }
}
