//! When a failed step runs again: the template's policy, and the broker's ladder of delay queues.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How failures of one step are retried, from its template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RetryPolicy {
    /// `false`: the first failure is final.
    pub retryable: bool,
    /// How the delay grows.
    pub backoff: Backoff,
    /// The first delay, in milliseconds.
    pub base_ms: u64,
    /// The longest delay, in milliseconds.
    pub max_ms: u64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { retryable: true, backoff: Backoff::Exponential, base_ms: 1_000, max_ms: 30_000 }
    }
}

/// How the delay grows from attempt to attempt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Backoff {
    /// No delay but the ladder's shortest.
    None,
    /// base, 2 base, 3 base, …
    Linear,
    /// base, 2 base, 4 base, …
    #[default]
    Exponential,
    /// base, base, 2 base, 3 base, 5 base, …
    Fibonacci,
}

impl RetryPolicy {
    /// The wanted delay after `attempt` (1-based) failed, before jitter.
    pub fn delay_after(&self, attempt: u32) -> Duration {
        let factor = match self.backoff {
            Backoff::None => 0,
            Backoff::Linear => u64::from(attempt),
            Backoff::Exponential => 1u64.checked_shl(attempt.saturating_sub(1)).unwrap_or(u64::MAX),
            Backoff::Fibonacci => fibonacci(attempt),
        };
        Duration::from_millis(self.base_ms.saturating_mul(factor).min(self.max_ms))
    }
}

fn fibonacci(n: u32) -> u64 {
    // F(93) is the last that fits; by then any cap has long been reached.
    let (mut current, mut next) = (0u64, 1u64);
    for _ in 0..n.min(93) {
        (current, next) = (next, current.saturating_add(next));
    }
    current
}

/// The delays the broker can hold a message for: one queue each, shared by all namespaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ladder {
    rungs: Vec<Duration>,
}

impl Ladder {
    /// `count` rungs from `first`, each `ratio` times the one before, in whole milliseconds.
    ///
    /// # Panics
    /// Without a rung, or when the rungs do not grow; configuration is checked before.
    pub fn new(first: Duration, ratio: f64, count: u32) -> Self {
        let rungs: Vec<_> = (0..count)
            .map(|k| Duration::from_millis((first.as_millis() as f64 * ratio.powi(k as i32)).round() as u64))
            .collect();
        assert!(
            !rungs.is_empty() && rungs.is_sorted_by(|a, b| a < b),
            "a ladder needs growing rungs, not {rungs:?}"
        );
        Self { rungs }
    }

    /// The rungs, shortest first.
    pub fn rungs(&self) -> &[Duration] {
        &self.rungs
    }

    /// A rung near `delay`, by chance: half to one and a half times as long, then the lower or the upper
    /// neighbouring rung, so that the mean stays `delay`. Steps that failed together do not come back together.
    ///
    /// `chance` are two independent draws, uniform in 0..1.
    pub fn near(&self, delay: Duration, chance: [f64; 2]) -> Duration {
        let delay = delay.mul_f64(0.5 + chance[0]);
        let upper = self.at_least(delay);
        let Some(lower) = self.rungs.iter().copied().rfind(|rung| *rung < delay) else { return upper };
        // Above the longest rung, both neighbours are that one.
        let weight = (delay - lower).as_secs_f64() / (upper - lower).as_secs_f64();
        if chance[1] < weight { upper } else { lower }
    }

    /// The shortest rung not below `delay`, or the longest there is.
    pub fn at_least(&self, delay: Duration) -> Duration {
        let longest = self.rungs[self.rungs.len() - 1];
        self.rungs.iter().copied().find(|rung| *rung >= delay).unwrap_or(longest)
    }
}

impl Default for Ladder {
    /// 14 rungs, 500 ms to 68 minutes.
    fn default() -> Self {
        Self::new(Duration::from_millis(500), 2.0, 14)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn delays(backoff: Backoff, attempts: u32) -> Vec<u128> {
        let policy = RetryPolicy { backoff, base_ms: 100, max_ms: 1_000, ..RetryPolicy::default() };
        (1..=attempts).map(|attempt| policy.delay_after(attempt).as_millis()).collect()
    }

    #[test]
    fn each_kind_of_backoff_grows_as_named_up_to_the_cap() {
        assert_eq!(delays(Backoff::None, 3), [0, 0, 0]);
        assert_eq!(delays(Backoff::Linear, 4), [100, 200, 300, 400]);
        assert_eq!(delays(Backoff::Exponential, 5), [100, 200, 400, 800, 1_000]);
        assert_eq!(delays(Backoff::Fibonacci, 8), [100, 100, 200, 300, 500, 800, 1_000, 1_000]);
    }

    #[test]
    fn huge_attempt_numbers_stay_at_the_cap() {
        for backoff in [Backoff::Linear, Backoff::Exponential, Backoff::Fibonacci] {
            let policy = RetryPolicy { backoff, ..RetryPolicy::default() };
            assert_eq!(policy.delay_after(u32::MAX), Duration::from_secs(30));
        }
    }

    #[test]
    fn the_default_ladder_runs_from_half_a_second_to_68_minutes() {
        let ladder = Ladder::default();
        assert_eq!(ladder.rungs().len(), 14);
        assert_eq!(ladder.rungs()[13], Duration::from_millis(500 << 13));
    }

    #[test]
    fn jitter_keeps_the_mean_and_spreads_even_a_delay_that_is_a_rung() {
        let ladder = Ladder::default();
        let grid = |i: u32| (f64::from(i) + 0.5) / 100.0;
        for millis in [1_000, 1_500, 3_000, 4_000, 5_555, 70_000] {
            let wanted = Duration::from_millis(millis);
            let draws: Vec<_> =
                (0..10_000).map(|i| ladder.near(wanted, [grid(i / 100), grid(i % 100)])).collect();
            let mean = draws.iter().map(Duration::as_secs_f64).sum::<f64>() / 10_000.0;
            assert!((mean / wanted.as_secs_f64() - 1.0).abs() < 0.02, "{wanted:?}: {mean}");
            assert!(draws.iter().all(|d| *d <= wanted * 3 && wanted <= *d * 4));
            let mut counts = BTreeMap::<_, u32>::new();
            draws.iter().for_each(|rung| *counts.entry(rung).or_default() += 1);
            assert!(
                counts.values().all(|count| *count < 9_000),
                "{wanted:?} is nearly always the same: {counts:?}"
            );
        }
    }

    #[test]
    fn halfway_between_two_rungs_half_of_the_draws_take_either() {
        let halfway = |draw| Ladder::default().near(Duration::from_millis(1_500), [0.5, draw]);
        assert_eq!(
            [0.0, 0.499, 0.5, 0.999].map(halfway),
            [2_000, 2_000, 1_000, 1_000].map(Duration::from_millis)
        );
    }

    #[test]
    fn a_delay_outside_the_ladder_takes_its_nearest_end() {
        let ladder = Ladder::default();
        for draw in [0.0, 0.999] {
            assert_eq!(
                ladder.near(Duration::from_secs(1_000_000), [0.5, draw]),
                Duration::from_millis(500 << 13)
            );
        }
        assert_eq!(ladder.near(Duration::ZERO, [0.5, 0.5]), Duration::from_millis(500));
        assert_eq!(ladder.at_least(Duration::from_secs(1_000_000)), Duration::from_millis(500 << 13));
        assert_eq!(ladder.at_least(Duration::from_millis(501)), Duration::from_secs(1));
    }
}
