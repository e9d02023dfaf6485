-- Tasks somebody has to look at: they went stale, or nobody answered for a step of theirs.
CREATE TABLE dlq_entries (
    dlq_entry_uuid       TEXT PRIMARY KEY,
    task_uuid            TEXT NOT NULL REFERENCES tasks (task_uuid),
    original_state       TEXT NOT NULL,            -- the task's state when it was found
    dlq_reason           TEXT NOT NULL,            -- staleness_timeout, worker_unavailable, max_retries_exceeded, dependency_cycle_detected or manual_dlq
    dlq_timestamp        BIGINT NOT NULL,
    resolution_status    TEXT NOT NULL DEFAULT 'pending',  -- pending, manually_resolved, permanently_failed or cancelled
    resolution_timestamp BIGINT,
    resolution_notes     TEXT,
    resolved_by          TEXT,
    task_snapshot        TEXT NOT NULL,            -- the task and its steps at that time
    metadata             TEXT,                     -- which limit was passed, and by how much
    created_at           BIGINT NOT NULL,
    updated_at           BIGINT NOT NULL
);
CREATE INDEX dlq_entries_by_status ON dlq_entries (resolution_status, dlq_timestamp);
CREATE INDEX dlq_entries_by_task ON dlq_entries (task_uuid, dlq_timestamp);
-- While one is being looked into, there is no second.
CREATE UNIQUE INDEX dlq_entries_pending ON dlq_entries (task_uuid) WHERE resolution_status = 'pending';

-- When the task stays in its state for longer than its template allows.
ALTER TABLE tasks ADD COLUMN stale_at BIGINT;
CREATE INDEX tasks_by_stale ON tasks (stale_at) WHERE stale_at IS NOT NULL;

-- How often the request of the current attempt was sent again because its answer was overdue.
ALTER TABLE steps ADD COLUMN sent_again INTEGER NOT NULL DEFAULT 0;
