//! Tasks of the five workflows, and the answers they must have.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tasker_worker_rust::api::TaskRequest;
use tasker_worker_rust::client::Client;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::Answer;
use crate::report::Report;

const SIX_TO_THE_64: &str = "63340286662973277706162286946811886609896461828096";

/// The namespaces of the five workflows.
pub(crate) const NAMESPACES: [&str; 5] =
    ["linear_workflow", "diamond_workflow", "tree_workflow", "mixed_dag_workflow", "order_fulfillment"];

/// What is submitted, and what must come of it.
#[derive(Clone)]
pub(crate) struct Wanted {
    request: TaskRequest,
    status: &'static str,
    /// A step, a field of its output and that field's value.
    answer: (&'static str, &'static str, Value),
}

impl Wanted {
    fn new(template: (&str, &str), context: Value, answer: (&'static str, &'static str, Value)) -> Self {
        let mut request = TaskRequest::new(template.0, template.1, context);
        // So that a submission whose answer was lost can be made again.
        request.idempotency_key = Some(Uuid::new_v4().to_string());
        Self { request, status: "complete", answer }
    }

    /// One of the five workflows; now and then an order that fails and is rolled back, and `patient` ones whose
    /// payment is tried again after half a minute.
    pub(crate) fn any(random: &mut StdRng, patient: bool) -> Self {
        match random.random_range(0..100) {
            0..20 => {
                let number = random.random_range(-500_i64..500) * 2;
                let answer = ("linear_step_4", "final_result", json!((number * 2 + 10) * 3));
                Self::new(
                    ("linear_workflow", "mathematical_sequence"),
                    json!({ "even_number": number }),
                    answer,
                )
            }
            20..40 => Self::diamond(random.random_range(-1_000..1_000)),
            40..60 => Self::power(("tree_workflow", "hierarchical_tree"), "tree_final_convergence"),
            60..80 => Self::power(("mixed_dag_workflow", "complex_dag"), "dag_finalize"),
            80..94 => Self::order("tok_visa", "complete", ("ship_order", "shipping_cost", json!(10.24))),
            94..99 => Self::order("tok_declined", "error", ("release_inventory", "released", json!(true))),
            _ if patient => Self::retried_order(),
            _ => Self::diamond(10),
        }
    }

    pub(crate) fn diamond(number: i64) -> Self {
        let answer = ("diamond_end", "final_result", json!(number * 8 + 100));
        Self::new(("diamond_workflow", "parallel_processing"), json!({ "base_value": number }), answer)
    }

    /// An order whose payment fails, is tried again after half a minute, and fails for good.
    pub(crate) fn retried_order() -> Self {
        Self::order("tok_unavailable", "error", ("release_inventory", "released", json!(true)))
    }

    fn power(template: (&str, &str), step: &'static str) -> Self {
        Self::new(template, json!({ "even_number": 6 }), (step, "final_result", json!(SIX_TO_THE_64)))
    }

    fn order(token: &str, status: &'static str, answer: (&'static str, &'static str, Value)) -> Self {
        let mut context: Value = serde_json::from_str(include_str!("../../config/samples/order.json"))
            .expect("the sample is JSON");
        context["payment"]["token"] = token.into();
        Self { status, ..Self::new(("order_fulfillment", "business_workflow"), context, answer) }
    }
}

/// Tasks on their way in, and those that were accepted.
pub(crate) struct Tasks {
    client: Client,
    submitting: JoinSet<(Uuid, Wanted)>,
    accepted: Vec<(Uuid, Wanted)>,
}

impl Tasks {
    pub(crate) fn new(api_url: &str) -> Answer<Self> {
        Ok(Self { client: Client::new(api_url)?, submitting: JoinSet::new(), accepted: Vec::new() })
    }

    /// Submits, again and again until the orchestrator has accepted.
    pub(crate) fn submit(&mut self, wanted: Wanted) {
        let client = self.client.clone();
        self.submitting.spawn(async move {
            loop {
                if let Ok(submitted) = client.submit(&wanted.request).await {
                    return (submitted.task_uuid(), wanted);
                }
                sleep(Duration::from_millis(100)).await;
            }
        });
    }

    /// Waits until every task has been accepted.
    pub(crate) async fn accepted(&mut self) -> Answer {
        while let Some(accepted) = self.submitting.join_next().await {
            self.accepted.push(accepted?);
        }
        Ok(())
    }

    /// Waits until every task has ended, and compares its answer with what it must be.
    pub(crate) async fn check(mut self, limit: Duration, report: &mut Report) -> Answer {
        let deadline = Instant::now() + limit;
        let total = self.submitting.len() + self.accepted.len();
        if let Ok(accepted) = tokio::time::timeout_at(deadline, self.accepted()).await {
            accepted?;
        }
        let (mut lost, mut wrong) = (self.submitting.len(), 0);
        for (task_uuid, wanted) in &self.accepted {
            match self.answer(*task_uuid, wanted, deadline).await {
                Ok(None) => {}
                Ok(Some(problem)) => {
                    wrong += 1;
                    report.problem(format!("task {task_uuid} has {problem}"));
                }
                Err(problem) => {
                    lost += 1;
                    report.problem(format!("task {task_uuid} is not finished: {problem}"));
                }
            }
        }
        report.figure("tasks", total, "");
        report.expect("tasks lost or never accepted", i64::try_from(lost)?, 0);
        report.expect("tasks with a wrong answer", wrong, 0);
        Ok(())
    }

    /// What is wrong with a task's end, if anything.
    ///
    /// # Errors
    /// When it does not end in time.
    async fn answer(
        &self,
        task_uuid: Uuid,
        wanted: &Wanted,
        deadline: Instant,
    ) -> Result<Option<String>, String> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let problem = match self.client.wait(task_uuid, left).await {
                Ok(task) if task.is_finished() => match self.client.step(task_uuid, wanted.answer.0).await {
                    Ok(step) => {
                        let output: Value =
                            step.output().and_then(|output| output.parse().ok()).unwrap_or_default();
                        let (name, field, expected) = &wanted.answer;
                        let right = task.status == wanted.status && output[field] == *expected;
                        let found = || format!("status {} and {name} {}", task.status, output[field]);
                        return Ok((!right).then(found));
                    }
                    Err(error) if task.status != wanted.status => {
                        return Ok(Some(format!("status {} ({error})", task.status)));
                    }
                    Err(error) => error.to_string(),
                },
                Ok(task) => format!("its status is {}", task.status),
                Err(error) => error.to_string(),
            };
            if left.is_zero() {
                return Err(problem);
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}
