-- How far a step has come that goes on part by part, and how many parts of it are done.
ALTER TABLE steps ADD COLUMN part INTEGER NOT NULL DEFAULT 0;
ALTER TABLE steps ADD COLUMN checkpoint TEXT;
