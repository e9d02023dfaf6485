//! Whole workflows, end to end: HTTP API, orchestrator, store, broker, worker, and back.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tasker_worker_rust::api::{TaskRequest, TaskResponse};
use tasker_worker_rust::{StepResult, workflows};

use crate::on_both_brokers;
use crate::support::Kind;
use crate::system::System;

on_both_brokers! {
    linear_answers_66_for_6
    diamond_runs_its_branches_in_parallel_and_answers_180_for_10
    tree_answers_exactly
    mixed_dag_answers_exactly
    an_order_is_fulfilled_to_the_cent
    a_declined_payment_releases_the_reservation
    one_hundred_linear_tasks_reach_the_targeted_rate
    a_missing_number_takes_the_default_and_a_wrong_type_fails_for_good
    a_task_runs_to_its_end_over_an_orchestrator_restart
    a_cancelled_task_stops
}

const SIX_TO_THE_64: &str = "63340286662973277706162286946811886609896461828096";
