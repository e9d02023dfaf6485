-- What is to be sent goes out in this order: the highest priority first, the oldest of them first.
ALTER TABLE outbox ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
CREATE INDEX outbox_by_priority ON outbox (priority DESC, outbox_id);

-- The result of each attempt and each decision, without its data, stands with the change it made; a step's own column
-- had only the last one.
ALTER TABLE transitions ADD COLUMN result TEXT;
UPDATE transitions SET result = (SELECT result FROM steps WHERE steps.step_uuid = transitions.step_uuid)
WHERE transition_id IN (
    SELECT MAX(transition_id) FROM transitions
    WHERE step_uuid IS NOT NULL AND to_state IN ('complete', 'error', 'cancelled', 'resolved_manually')
    GROUP BY step_uuid
);
ALTER TABLE steps DROP COLUMN result;
