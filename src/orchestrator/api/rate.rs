//! How much is answered: each caller has its own share, so that one that asks too much takes nothing from the others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// More callers than this are looked through for those that may be forgotten.
const CALLERS: usize = 4_096;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Caller {
    /// Somebody with this key, known by its digest.
    Key([u8; 32]),
    /// Somebody with a token, by its `sub`.
    Token(String),
    /// Somebody at this address, where it is known.
    Address(Option<IpAddr>),
}

/// A second's worth of requests at once, and as many a second from then on, for every caller.
pub(super) struct Rate {
    per_second: f64,
    /// What is left to each, and when that was counted.
    left: Mutex<HashMap<Caller, (f64, Instant)>>,
}

impl Rate {
    pub(super) fn new(per_second: u32) -> Self {
        Self { per_second: f64::from(per_second), left: Mutex::default() }
    }

    pub(super) fn admits(&self, caller: Caller, now: Instant) -> bool {
        let mut callers = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        if callers.len() > CALLERS {
            // After a second everything is left to them again, as to newcomers.
            callers
                .retain(|_, (_, counted)| now.saturating_duration_since(*counted) < Duration::from_secs(1));
        }
        let (left, counted) = callers.entry(caller).or_insert((self.per_second, now));
        let earned = now.saturating_duration_since(*counted).as_secs_f64() * self.per_second;
        *left = (*left + earned).min(self.per_second);
        *counted = now.max(*counted);
        let admits = *left >= 1.0;
        *left -= if admits { 1.0 } else { 0.0 };
        admits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_admits_a_seconds_worth_at_once_and_then_what_time_brings() {
        let rate = Rate::new(3);
        let start = Instant::now();
        let admits = |millis| rate.admits(Caller::Address(None), start + Duration::from_millis(millis));
        assert_eq!([0, 0, 0, 0, 400, 400, 10_000].map(admits), [true, true, true, false, true, false, true]);
    }

    #[test]
    fn callers_are_forgotten_once_that_changes_nothing() {
        let rate = Rate::new(1);
        let start = Instant::now();
        let caller = |number: usize| Caller::Token(number.to_string());
        let callers = || rate.left.lock().unwrap().len();
        for number in 0..=CALLERS {
            assert!(rate.admits(caller(number), start));
        }
        let later = start + Duration::from_millis(999);
        assert!(!rate.admits(caller(0), later) && callers() == CALLERS + 1);
        assert!(rate.admits(caller(1), start + Duration::from_secs(1)));
        assert_eq!(callers(), 2, "the one that asked a moment ago, and the one that asks");
        assert!(!rate.admits(caller(1), start + Duration::from_secs(1)));
    }
}
