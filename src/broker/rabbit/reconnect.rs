//! How long to wait before the next try.

use std::iter;
use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff;

/// The first pause after something that worked broke.
const FIRST: Duration = Duration::from_millis(200);

/// The longest pause while the broker cannot be reached. With its jitter it stays below two seconds, which
/// is how soon work resumes once the broker is back.
const LONGEST: Duration = Duration::from_secs(1);

/// The pause while the broker refuses us: that lasts until somebody changes something, and every try
/// leaves a line in the broker's log.
const REFUSED: Duration = Duration::from_secs(10);

/// What the pause is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It goes away by itself.
    Outage,
    /// It is a matter of settings or permissions.
    Refusal,
}

/// Tries of one thing: the pauses between them, and what was last said about them.
pub(super) struct Tries {
    outages: Box<dyn Iterator<Item = Duration> + Send>,
    refusals: Box<dyn Iterator<Item = Duration> + Send>,
    said: Option<String>,
}

impl Tries {
    pub(super) fn new() -> Self {
        let pauses = |trouble| Box::new(pauses(trouble));
        Self { outages: pauses(Trouble::Outage), refusals: pauses(Trouble::Refusal), said: None }
    }

    /// The next trouble is news, and its first pause short.
    pub(super) fn worked(&mut self) {
        *self = Self::new();
    }

    /// Whether something else was said last.
    pub(super) fn is_news(&mut self, text: &str) -> bool {
        let news = self.said.as_deref() != Some(text);
        self.said = Some(text.to_owned());
        news
    }

    pub(super) fn pause(&mut self, trouble: Trouble) -> Duration {
        let pauses = match trouble {
            Trouble::Outage => &mut self.outages,
            Trouble::Refusal => &mut self.refusals,
        };
        pauses.next().unwrap_or_default()
    }
}

/// Ever longer pauses, each spread by half so that workers which failed together do not return together.
fn pauses(trouble: Trouble) -> impl Iterator<Item = Duration> + Send + use<> {
    let (initial_interval, max_interval) = match trouble {
        Trouble::Outage => (FIRST, LONGEST),
        Trouble::Refusal => (REFUSED, REFUSED),
    };
    let mut backoff = ExponentialBackoff {
        initial_interval,
        max_interval,
        max_elapsed_time: None,
        ..ExponentialBackoff::default()
    };
    backoff.reset();
    iter::from_fn(move || backoff.next_backoff())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_never_end() {
        let pauses: Vec<Duration> = pauses(Trouble::Outage).take(1_000).collect();
        assert_eq!(pauses.len(), 1_000);
        assert!(pauses[0] >= FIRST / 2 && pauses[0] <= FIRST * 3 / 2, "{:?}", pauses[0]);
        assert!(pauses.iter().all(|pause| *pause <= LONGEST * 3 / 2));
        assert!(pauses[10..].iter().all(|pause| *pause >= LONGEST / 2));
        assert!(pauses[10..].iter().collect::<std::collections::HashSet<_>>().len() > 100, "no jitter");
    }

    #[test]
    fn a_refusal_is_not_tried_again_soon() {
        assert!(super::pauses(Trouble::Refusal).take(10).all(|pause| pause >= REFUSED / 2));
    }
}
