//! The time of day.

use jiff::{SignedDuration, Timestamp};

/// The time of day on tokio's clock, which is the system's unless a test has paused it. Then delays in
/// messages and in the store pass together with those of timers.
pub(crate) fn now() -> Timestamp {
    let before = std::time::Instant::now();
    let tokio = tokio::time::Instant::now().into_std();
    // This thread may have been kept waiting in between: that is no difference of the two.
    let after = std::time::Instant::now();
    let ahead = SignedDuration::try_from(tokio.saturating_duration_since(after)).unwrap_or_default();
    let behind = SignedDuration::try_from(before.saturating_duration_since(tokio)).unwrap_or_default();
    Timestamp::now() + ahead - behind
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn it_is_not_ahead_of_the_systems_however_busy_the_machine_is() {
        let look = || {
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_millis(300) {
                let time = now();
                assert!(time <= Timestamp::now(), "{time}");
            }
        };
        std::thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(look))));
    }

    #[tokio::test(start_paused = true)]
    async fn paused_time_passes_in_the_time_of_day_too() {
        let before = now();
        tokio::time::advance(Duration::from_secs(3_600)).await;
        let passed = now().duration_since(before);
        assert!((passed - SignedDuration::from_hours(1)).abs() < SignedDuration::from_secs(5), "{passed}");
    }
}
