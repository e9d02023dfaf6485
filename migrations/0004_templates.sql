-- Templates that workers registered: one definition for each namespace, name and version.
ALTER TABLE templates ADD COLUMN registered_at BIGINT;
CREATE UNIQUE INDEX templates_registered ON templates (namespace, name, version) WHERE registered_at IS NOT NULL;
