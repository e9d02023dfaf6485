//! What was measured, and how it is shown.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// Where a figure has to end up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    fn met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(goal) => value >= goal,
            Self::AtMost(goal) => value <= goal,
        }
    }

    /// Whether `value` is worse than half as good as wanted.
    fn missed_by_half(self, value: f64) -> bool {
        match self {
            Self::AtLeast(goal) => value < goal / 2.0,
            Self::AtMost(goal) => value > goal * 2.0,
        }
    }
}

/// The median of several values, the smallest and the largest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let half = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[half] } else { (sorted[half - 1] + sorted[half]) / 2.0 };
        Some(Self { median, min, max })
    }
}

/// The value below which `share` of them lie.
pub(super) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(index.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// Where and when something was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Origin {
    pub(super) version: String,
    pub(super) broker: String,
    pub(super) machine: String,
    /// When the bench was started, to the minute.
    pub(super) started: String,
    /// Fewer and smaller rounds.
    pub(super) quick: bool,
}

/// One figure: ours, and the bare twin's where there is one, from the same rounds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Figure {
    pub(super) workload: Cow<'static, str>,
    pub(super) case: String,
    /// Where on a line of growth it stands.
    pub(super) at: Option<f64>,
    pub(super) unit: Cow<'static, str>,
    pub(super) ours: Spread,
    pub(super) bare: Option<Spread>,
    /// Ours / bare, within each round.
    pub(super) ratio: Option<Spread>,
    /// Of the ratio where there is one, else of ours.
    pub(super) goal: Option<Goal>,
    pub(super) runs: usize,
    /// Runs that other processes disturbed, but for which there was no better one.
    pub(super) disturbed: usize,
    /// Known once the bench is over.
    pub(super) origin: Option<Origin>,
}

impl Figure {
    /// A figure from the rounds' values; `None` where nothing could be measured.
    pub(super) fn new(
        workload: &'static str,
        case: impl Into<String>,
        unit: &'static str,
        rounds: &[(f64, Option<f64>)],
        goal: Option<Goal>,
    ) -> Option<Self> {
        let rounds: Vec<_> = rounds.iter().filter(|(ours, _)| ours.is_finite()).collect();
        let ours: Vec<f64> = rounds.iter().map(|round| round.0).collect();
        let bare: Vec<f64> = rounds.iter().filter_map(|round| round.1).collect();
        let ratios: Vec<f64> = rounds.iter().filter_map(|round| Some(round.0 / round.1?)).collect();
        Some(Self {
            workload: workload.into(),
            case: case.into(),
            at: None,
            unit: unit.into(),
            ours: Spread::of(&ours)?,
            bare: Spread::of(&bare),
            ratio: Spread::of(&ratios),
            goal,
            runs: rounds.len(),
            disturbed: 0,
            origin: None,
        })
    }

    /// Whether both are figures of the same thing.
    pub(super) fn replaces(&self, other: &Self) -> bool {
        (&self.workload, &self.case, self.at, &self.unit)
            == (&other.workload, &other.case, other.at, &other.unit)
    }

    fn judged(&self) -> f64 {
        self.ratio.unwrap_or(self.ours).median
    }

    pub(super) fn missed_by_half(&self) -> bool {
        self.ratio.is_some() && self.goal.is_some_and(|goal| goal.missed_by_half(self.judged()))
    }

    /// The figure as a row of a table.
    pub(super) fn cells(&self) -> [String; 8] {
        let spread = |spread: Option<Spread>| {
            let text = |s: Spread| format!("{} ({}–{})", short(s.median), short(s.min), short(s.max));
            spread.map_or(String::new(), text)
        };
        let goal = self.goal.map_or(String::new(), |goal| {
            let (sign, value) = match goal {
                Goal::AtLeast(value) => ("≥", value),
                Goal::AtMost(value) => ("≤", value),
            };
            let unit = if self.ratio.is_some() { "" } else { &self.unit };
            let met = if goal.met(self.judged()) { "met" } else { "missed" };
            format!("{sign} {} {unit}: {met}", short(value)).replace(" :", ":")
        });
        let runs = if self.disturbed == 0 {
            self.runs.to_string()
        } else {
            format!("{} ({} disturbed)", self.runs, self.disturbed)
        };
        [
            self.workload.to_string(),
            self.at.map_or_else(|| self.case.clone(), |at| format!("{}: {at}", self.case)),
            self.unit.to_string(),
            spread(Some(self.ours)),
            spread(self.bare),
            spread(self.ratio),
            goal,
            runs,
        ]
    }
}

/// The columns of [`Figure::cells`].
pub(super) const COLUMNS: [&str; 8] = ["", "case", "unit", "ours", "bare twin", "ratio", "goal", "runs"];

/// A number with three digits that mean something.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 10_000.0 => format!("{:.1}k", value / 1_000.0),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn far_off(goal: Goal, ratio: f64) -> bool {
        Figure::new("W1", "", "steps/s", &[(ratio, Some(1.0))], Some(goal)).unwrap().missed_by_half()
    }

    #[test]
    fn a_ratio_may_miss_its_goal_but_not_by_half() {
        let (throughput, cost) = (Goal::AtLeast(0.9), Goal::AtMost(1.3));
        assert!(!far_off(throughput, 0.5) && far_off(throughput, 0.4));
        assert!(!far_off(cost, 2.5) && far_off(cost, 2.7));
        let alone = Figure::new("W7", "", "ms", &[(900.0, None)], Some(Goal::AtMost(300.0))).unwrap();
        assert!(!alone.missed_by_half(), "machines differ: only what is beside the twin counts");
    }
}
