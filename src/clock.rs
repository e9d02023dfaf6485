//! The time of day.

use jiff::{SignedDuration, Timestamp};

/// The time of day on tokio's clock, which is the system's unless a test has paused it. Then delays in
/// messages and in the store pass together with those of timers.
pub(crate) fn now() -> Timestamp {
    let system = std::time::Instant::now();
    let tokio = tokio::time::Instant::now().into_std();
    let ahead = SignedDuration::try_from(tokio.saturating_duration_since(system)).unwrap_or_default();
    let behind = SignedDuration::try_from(system.saturating_duration_since(tokio)).unwrap_or_default();
    Timestamp::now() + ahead - behind
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn paused_time_passes_in_the_time_of_day_too() {
        let before = now();
        tokio::time::advance(Duration::from_secs(3_600)).await;
        let passed = now().duration_since(before);
        assert!((passed - SignedDuration::from_hours(1)).abs() < SignedDuration::from_secs(5), "{passed}");
    }
}
