//! The worker: consume, dispatch, execute, settle.
