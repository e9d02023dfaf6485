//! How long a step may hold its delivery, and whether the broker lets it.
//!
//! A broker takes back what is not acked within its consumer timeout, and hands it to somebody else while
//! the first still works on it. So the longest a step may take has to stay below that: its own timeout, the
//! wait for a slot before it, and the confirmation of its answer after it.

use std::sync::Arc;
use std::time::Duration;

use super::Template;

/// What bounds the time a step may hold its delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// After how long the broker takes a delivery back; zero for never.
    pub limit: Duration,
    /// How long a step may run whose template gives no timeout.
    pub default_timeout: Duration,
    /// How long the broker may take to confirm an answer.
    pub confirm: Duration,
    /// How many namespaces share one worker's slots. For each but its own, a delivery may have to wait until
    /// every slot was used once.
    pub namespaces: usize,
}

impl Lease {
    /// A sentence for every step of `templates` that may take too long. The templates are those of the
    /// namespaces that share a worker: the longest of all their steps is what the others wait for.
    pub fn exceeded(&self, templates: &[Arc<Template>]) -> Vec<String> {
        let steps = || {
            templates.iter().flat_map(|template| {
                template
                    .steps
                    .iter()
                    .map(move |step| (template, step, step.timeout.unwrap_or(self.default_timeout)))
            })
        };
        let longest = steps().map(|(.., timeout)| timeout).max().unwrap_or_default();
        let others = u32::try_from(self.namespaces.saturating_sub(1)).unwrap_or(u32::MAX);
        let waiting = longest.saturating_add(self.confirm).saturating_mul(others);
        let too_long = |timeout: Duration| {
            let held = timeout.saturating_add(waiting).saturating_add(self.confirm);
            (!self.limit.is_zero() && held >= self.limit).then_some(held)
        };
        let sentence = |(template, step, timeout): (&Arc<Template>, &super::StepTemplate, Duration)| {
            let held = too_long(timeout)?;
            let waits = if waiting.is_zero() {
                String::new()
            } else {
                format!(" + waiting {} for {others} other namespaces' steps", shown(waiting))
            };
            let fewer = if waiting.is_zero() { "" } else { ", serve fewer namespaces with one worker" };
            Some(format!(
                "step {}/{}/{} may hold its delivery for {} (timeout {}{waits} + confirm {}), the broker takes \
                 it back after {}; lower timeout_seconds{fewer}, or raise the broker's consumer_timeout and \
                 broker.consumer_timeout_seconds",
                template.namespace,
                template.name,
                step.name,
                shown(held),
                shown(timeout),
                shown(self.confirm),
                shown(self.limit),
            ))
        };
        steps().filter_map(sentence).collect()
    }
}

/// Such as `25 min 10 s`, or `0.2 s`.
fn shown(duration: Duration) -> String {
    let (minutes, seconds) = (duration.as_secs() / 60, duration.as_secs_f64() % 60.0);
    match (minutes, seconds) {
        (0, seconds) => format!("{seconds} s"),
        (minutes, 0.0) => format!("{minutes} min"),
        (minutes, seconds) => format!("{minutes} min {seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(namespaces: usize) -> Lease {
        let [limit, default_timeout, confirm] = [1_800, 300, 10].map(Duration::from_secs);
        Lease { limit, default_timeout, confirm, namespaces }
    }

    fn template(timeout: &str) -> Arc<Template> {
        let text = format!(
            "namespace: shop\nname: big\nversion: 1.0.0\nsteps:\n  - name: slow\n    handler: {{callable: slow}}\n{timeout}"
        );
        Arc::new(super::super::parse(&text, None).unwrap().template)
    }

    #[test]
    fn a_step_that_may_outlast_the_brokers_patience_is_told_with_the_sum() {
        assert_eq!(
            lease(1).exceeded(&[template("    timeout_seconds: 1790\n")]),
            [
                "step shop/big/slow may hold its delivery for 30 min (timeout 29 min 50 s + confirm 10 s), the \
                 broker takes it back after 30 min; lower timeout_seconds, or raise the broker's \
                 consumer_timeout and broker.consumer_timeout_seconds"
            ]
        );
        assert_eq!(lease(1).exceeded(&[template("    timeout_seconds: 1789\n")]), [""; 0]);
    }

    #[test]
    fn every_other_namespace_may_use_all_slots_before() {
        assert_eq!(
            lease(3).exceeded(&[template("    timeout_seconds: 600\n"), template("")]),
            [
                "step shop/big/slow may hold its delivery for 30 min 30 s (timeout 10 min + waiting 20 min 20 s \
                 for 2 other namespaces' steps + confirm 10 s), the broker takes it back after 30 min; lower \
                 timeout_seconds, serve fewer namespaces with one worker, or raise the broker's \
                 consumer_timeout and broker.consumer_timeout_seconds"
            ]
        );
        assert_eq!(lease(5).exceeded(&[template("")]), [""; 0], "the defaults fit");
    }

    #[test]
    fn a_broker_without_a_limit_takes_nothing_back() {
        let lease = Lease { limit: Duration::ZERO, ..lease(9) };
        assert_eq!(lease.exceeded(&[template("    timeout_seconds: 2592000\n")]), [""; 0]);
    }
}
