//! The five example workflows, written as a user would write them.
