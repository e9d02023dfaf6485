//! Loads the template files of a directory, and again when they change.
