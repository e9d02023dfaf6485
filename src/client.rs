//! The HTTP client for the orchestrator API.
