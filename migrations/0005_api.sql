-- When the caller asked for the task, as far as it said so.
ALTER TABLE tasks ADD COLUMN requested_at BIGINT;

-- For lists of one initiator's or one system's tasks, newest first.
CREATE INDEX tasks_by_initiator ON tasks (initiator, created_at);
CREATE INDEX tasks_by_source ON tasks (source_system, created_at);
