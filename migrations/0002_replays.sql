-- How often a step was replayed from the dead letters; its attempts are counted anew each time.
ALTER TABLE steps ADD COLUMN replays INTEGER NOT NULL DEFAULT 0;
