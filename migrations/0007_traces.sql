-- Where the task stands in its caller's trace: traceparent, a space, tracestate.
ALTER TABLE tasks ADD COLUMN trace TEXT;

-- Stages of the last attempt, for which worker and orchestrator measured the others: when the broker confirmed its
-- request, when its answer arrived.
ALTER TABLE steps ADD COLUMN sent_at BIGINT;
ALTER TABLE steps ADD COLUMN received_at BIGINT;
