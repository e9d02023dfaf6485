//! The spellings of a request that are accepted, and how they become the one that is used.

use super::*;

/// Its schema is today's spelling.
#[derive(Deserialize, JsonSchema)]
pub(super) struct Request {
    #[serde(default = "current_version")]
    #[schemars(range(max = PROTOCOL_VERSION))]
    protocol_version: u32,
    task_uuid: Uuid,
    step_uuid: Uuid,
    #[schemars(regex(pattern = "^[A-Za-z0-9_-]{1,64}$"))]
    namespace: String,
    #[serde(default)]
    task_name: String,
    #[serde(default)]
    task_version: String,
    #[schemars(length(min = 1))]
    step_name: String,
    handler: Option<HandlerSpec>,
    #[schemars(skip)]
    handler_class: Option<String>,
    #[schemars(skip)]
    handler_config: Option<Json>,
    #[schemars(range(min = 1))]
    attempt: Option<u32>,
    #[serde(default)]
    part: u32,
    checkpoint: Option<Checkpoint>,
    max_attempts: Option<u32>,
    timeout_ms: Option<u64>,
    retry: Option<RetryPolicy>,
    #[serde(default = "Json::empty_object", alias = "task_context")]
    task_data: Json,
    #[serde(default, alias = "previous_results", deserialize_with = "outputs")]
    #[schemars(with = "Option<Vec<StepOutput>>")]
    sequence_data: Vec<StepOutput>,
    #[schemars(length(max = CORRELATION_ID_BYTES))]
    correlation_id: Option<String>,
    created_at: Option<Timestamp>,
    previous_error: Option<StepExecutionError>,
    previous_attempt_at: Option<Timestamp>,
    not_before: Option<Timestamp>,
    batch_config: Option<BatchConfig>,
    batch: Option<Batch>,
    #[schemars(skip)]
    metadata: Option<Metadata>,
}

#[derive(Default, Deserialize)]
struct Metadata {
    attempt: Option<u32>,
    max_attempts: Option<u32>,
    timeout_ms: Option<u64>,
    created_at: Option<Timestamp>,
}

impl TryFrom<Request> for StepExecutionRequest {
    type Error = String;

    fn try_from(wire: Request) -> Result<Self, String> {
        if wire.protocol_version > PROTOCOL_VERSION {
            return Err(format!(
                "protocol_version {} is not understood; this worker speaks up to {PROTOCOL_VERSION}",
                wire.protocol_version
            ));
        }
        if !is_namespace(&wire.namespace) {
            return Err(format!(
                "namespace {:?} is not 1 to 64 characters of A-Z a-z 0-9 _ -",
                wire.namespace
            ));
        }
        if wire.step_name.is_empty() {
            return Err("step_name is empty".to_owned());
        }
        let older = wire.metadata.unwrap_or_default();
        let attempt = wire.attempt.or(older.attempt).unwrap_or(1);
        if attempt == 0 {
            return Err("attempt is 0; attempts are counted from 1".to_owned());
        }
        let correlation_id = wire.correlation_id.unwrap_or_else(|| wire.task_uuid.to_string());
        if correlation_id.len() > CORRELATION_ID_BYTES {
            return Err(format!(
                "correlation_id has {} bytes; {CORRELATION_ID_BYTES} are allowed",
                correlation_id.len()
            ));
        }
        let handler = wire.handler.unwrap_or_else(|| HandlerSpec {
            callable: wire.handler_class.unwrap_or_default(),
            initialization: wire.handler_config.unwrap_or_else(Json::empty_object),
        });
        Ok(Self {
            protocol_version: wire.protocol_version,
            task_uuid: wire.task_uuid,
            step_uuid: wire.step_uuid,
            namespace: wire.namespace,
            task_name: wire.task_name,
            task_version: wire.task_version,
            step_name: wire.step_name,
            handler,
            attempt,
            part: wire.part,
            checkpoint: wire.checkpoint,
            max_attempts: wire.max_attempts.or(older.max_attempts).unwrap_or(3),
            timeout_ms: wire.timeout_ms.or(older.timeout_ms),
            retry: wire.retry.unwrap_or_default(),
            task_data: wire.task_data,
            sequence_data: wire.sequence_data,
            correlation_id,
            created_at: wire.created_at.or(older.created_at),
            previous_error: wire.previous_error,
            previous_attempt_at: wire.previous_attempt_at,
            not_before: wire.not_before,
            batch_config: wire.batch_config,
            batch: wire.batch,
        })
    }
}

/// A whole result standing where only its value is wanted, as the map form of earlier results has it.
#[derive(Deserialize)]
struct WholeResult {
    #[serde(rename = "success")]
    _success: bool,
    #[serde(alias = "data")]
    result: Json,
}

fn outputs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<StepOutput>, D::Error> {
    struct Outputs;

    impl<'de> de::Visitor<'de> for Outputs {
        type Value = Vec<StepOutput>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of {step_name, result}, or a map of step name to result")
        }

        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut outputs = Vec::with_capacity(list.size_hint().unwrap_or(0));
            while let Some(output) = list.next_element()? {
                outputs.push(output);
            }
            Ok(outputs)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut outputs = Vec::new();
            while let Some((step_name, value)) = map.next_entry::<String, Json>()? {
                // Objects only: a struct would be read from a list as well.
                let is_object = value.get().starts_with('{');
                let result = match value.parse::<WholeResult>() {
                    Ok(whole) if is_object => whole.result,
                    _ => value,
                };
                outputs.push(StepOutput { step_name, result });
            }
            Ok(outputs)
        }
    }

    deserializer.deserialize_any(Outputs)
}
