-- Times are milliseconds since 1970, identifiers are UUID texts, documents are JSON texts.

CREATE TABLE templates (
    template_id TEXT PRIMARY KEY,          -- hash of the definition: a task keeps the one it started with
    namespace   TEXT NOT NULL,
    name        TEXT NOT NULL,
    version     TEXT NOT NULL,
    definition  TEXT NOT NULL,
    created_at  BIGINT NOT NULL
);

CREATE TABLE tasks (
    task_uuid             TEXT PRIMARY KEY,
    template_id           TEXT NOT NULL REFERENCES templates (template_id),
    namespace             TEXT NOT NULL,
    name                  TEXT NOT NULL,
    version               TEXT NOT NULL,
    state                 TEXT NOT NULL,
    identity              TEXT NOT NULL UNIQUE,   -- what makes two submissions the same task
    context               TEXT NOT NULL,
    initiator             TEXT NOT NULL,
    source_system         TEXT NOT NULL,
    reason                TEXT NOT NULL,
    priority              INTEGER,
    options               TEXT,                   -- kept for the record
    tags                  TEXT NOT NULL,
    correlation_id        TEXT NOT NULL,
    parent_correlation_id TEXT,
    created_at            BIGINT NOT NULL,
    updated_at            BIGINT NOT NULL,
    completed_at          BIGINT
);
CREATE INDEX tasks_by_state ON tasks (state, created_at);
CREATE INDEX tasks_by_namespace ON tasks (namespace, created_at);
CREATE INDEX tasks_by_age ON tasks (created_at);

CREATE TABLE steps (
    step_uuid         TEXT PRIMARY KEY,
    task_uuid         TEXT NOT NULL REFERENCES tasks (task_uuid),
    position          INTEGER NOT NULL,           -- order within the template
    name              TEXT NOT NULL,
    state             TEXT NOT NULL,
    attempts          INTEGER NOT NULL,           -- executions begun, as far as we were told
    max_attempts      INTEGER NOT NULL,
    output            TEXT,                       -- what the handler returned
    result            TEXT,                       -- the last StepExecutionResult without its data
    error             TEXT,                       -- the last StepExecutionError
    enqueued_at       BIGINT,
    due_at            BIGINT,                     -- when an answer is overdue and the request is sent again
    next_retry_at     BIGINT,
    last_attempted_at BIGINT,
    last_failure_at   BIGINT,
    created_at        BIGINT NOT NULL,
    updated_at        BIGINT NOT NULL,
    completed_at      BIGINT,
    UNIQUE (task_uuid, name)
);
CREATE INDEX steps_by_due ON steps (due_at) WHERE due_at IS NOT NULL;

CREATE TABLE transitions (
    transition_id INTEGER PRIMARY KEY AUTOINCREMENT,
    task_uuid     TEXT NOT NULL,
    step_uuid     TEXT,                           -- absent for a transition of the task
    from_state    TEXT,
    to_state      TEXT NOT NULL,
    attempt       INTEGER,
    reason        TEXT,
    worker_id     TEXT,
    duration_ms   BIGINT,
    at            BIGINT NOT NULL
);
CREATE INDEX transitions_by_task ON transitions (task_uuid, transition_id);
CREATE INDEX transitions_by_step ON transitions (step_uuid, transition_id) WHERE step_uuid IS NOT NULL;

-- Written in the transaction that decided to send; removed once the broker has confirmed.
CREATE TABLE outbox (
    outbox_id   INTEGER PRIMARY KEY AUTOINCREMENT,
    exchange    TEXT NOT NULL,
    routing_key TEXT NOT NULL,
    properties  TEXT NOT NULL,
    body        TEXT NOT NULL,
    created_at  BIGINT NOT NULL
);
