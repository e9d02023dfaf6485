//! What happens in one run, drawn from its seed: tasks, processes, and the faults that meet them.

use std::collections::BTreeMap;
use std::fmt;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::workflow::{Context, WORKFLOWS};

/// Faults happen in this time; almost every task is then still under way.
const FAULTS_MS: u64 = 3_000;

#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    pub(crate) seed: u64,
    pub(crate) tasks: Vec<Task>,
    pub(crate) workers: usize,
    pub(crate) concurrency: u16,
    /// How long every message and every confirmation is on its way.
    pub(crate) latency_ms: u64,
    /// In most runs longer than any run: then nothing but the broker's promise brings a message to its reader.
    /// Where it is short, the broker may lose messages too.
    pub(crate) overdue_after_seconds: u64,
    pub(crate) outages: Vec<(u64, Outage)>,
    pub(crate) slips: BTreeMap<Moment, Slip>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Task {
    pub(crate) workflow: usize,
    pub(crate) context: Context,
    pub(crate) at_ms: u64,
    pub(crate) cancelled_at_ms: Option<u64>,
}

/// A process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    Orchestrator,
    Worker(usize),
}

/// What happens at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outage {
    Cut,
    Down { for_ms: u64 },
    Blocked { for_ms: u64 },
    ConfirmsLost { count: usize },
    QueueFull { queue: usize, for_ms: u64 },
    Crash { who: Who, down_ms: u64 },
    Stop { who: Who, down_ms: u64 },
}

/// The n-th time, counted from 0, that any process does this.
pub(crate) type Moment = (Act, usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Act {
    Publish,
    Receive,
    Settle,
}

/// What happens at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slip {
    Delay {
        ms: u64,
    },
    CrashBefore {
        down_ms: u64,
    },
    CrashAfter {
        down_ms: u64,
    },
    CutBefore,
    CutAfter,
    /// Published, and once more later.
    Twice {
        after_ms: u64,
    },
    /// Not published.
    Refused,
    /// Published, but the publisher hears of a lost connection.
    ConfirmLost,
    /// Not published, but confirmed.
    MessageLost,
    /// Never reaches the broker, which then loses the connection.
    AckLost {
        until_ms: u64,
    },
}

impl Schedule {
    pub(crate) fn draw(seed: u64) -> Self {
        let random = &mut StdRng::seed_from_u64(seed);
        let workers = random.random_range(1..=3);
        let healing = random.random_bool(0.25);
        // Mostly few: small runs find the most in the same time, large ones what needs a crowd.
        let count = random.random_range(1..=6).min(random.random_range(1..=6));
        let tasks: Vec<Task> = (0..count).map(|_| Task::draw(random)).collect();
        let steps: usize = tasks.iter().map(|task| WORKFLOWS[task.workflow].steps.len()).sum();
        let mut schedule = Self {
            seed,
            tasks,
            workers,
            concurrency: random.random_range(1..=4),
            latency_ms: if random.random_bool(0.5) { 0 } else { random.random_range(1..=20) },
            overdue_after_seconds: if healing { random.random_range(1..=10) } else { 1_000_000 },
            outages: Vec::new(),
            slips: BTreeMap::new(),
        };
        // Some runs without any fault: they have to be exact.
        if random.random_bool(0.1) {
            schedule.overdue_after_seconds = 1_000_000;
            return schedule;
        }
        for _ in 0..random.random_range(0..5) {
            schedule.outages.push((random.random_range(0..FAULTS_MS), Outage::draw(random, workers)));
        }
        schedule.outages.sort_by_key(|(at, _)| *at);
        for _ in 0..random.random_range(0..7) {
            let act = [Act::Publish, Act::Receive, Act::Settle][random.random_range(0..3)];
            let slip = Slip::draw(random, act, healing);
            schedule.slips.insert((act, random.random_range(0..steps * 2)), slip);
        }
        schedule
    }

    pub(crate) fn heals(&self) -> bool {
        self.overdue_after_seconds < 1_000
    }

    pub(crate) fn has_no_faults(&self) -> bool {
        self.outages.is_empty() && self.slips.is_empty()
    }

    /// Whether the orchestrator may hear of a later attempt first: a report is late, or was refused while
    /// the delay queue took its copy, or is lost.
    pub(crate) fn reorders(&self) -> bool {
        let late = |slip: &Slip| matches!(slip, Slip::Delay { .. } | Slip::Refused | Slip::MessageLost);
        self.heals()
            || self.slips.values().any(late)
            || self.outages.iter().any(|(_, outage)| matches!(outage, Outage::QueueFull { .. }))
    }
}

impl Task {
    fn draw(random: &mut StdRng) -> Self {
        let at_ms = if random.random_bool(0.5) { 0 } else { random.random_range(0..2_000) };
        Self {
            workflow: random.random_range(0..WORKFLOWS.len()),
            context: Context { seed: u64::from(random.random::<u32>()) },
            at_ms,
            cancelled_at_ms: random.random_bool(0.08).then(|| at_ms + random.random_range(0..1_500)),
        }
    }
}

impl Outage {
    fn draw(random: &mut StdRng, workers: usize) -> Self {
        let for_ms = random.random_range(1..1_500);
        let who = match random.random_range(0..=workers) {
            0 => Who::Orchestrator,
            number => Who::Worker(number - 1),
        };
        match random.random_range(0..9) {
            0 | 1 => Self::Cut,
            2 => Self::Down { for_ms },
            3 => Self::Blocked { for_ms },
            4 => Self::ConfirmsLost { count: random.random_range(1..5) },
            5 => Self::QueueFull { queue: random.random_range(0..3), for_ms },
            6 => Self::Stop { who, down_ms: for_ms },
            _ => Self::Crash { who, down_ms: for_ms },
        }
    }
}

impl Slip {
    fn draw(random: &mut StdRng, act: Act, healing: bool) -> Self {
        let ms = random.random_range(1..1_000);
        match (act, random.random_range(0..5), random.random_range(0..6)) {
            (_, 0, _) => Self::CrashBefore { down_ms: ms },
            (_, 1, _) => Self::CrashAfter { down_ms: ms },
            (Act::Publish, _, 0) if healing => Self::MessageLost,
            (Act::Publish, _, 0 | 1) => Self::Twice { after_ms: ms },
            (Act::Publish, _, 2) => Self::Refused,
            (Act::Publish, _, 3) => Self::ConfirmLost,
            (Act::Settle, _, 0..=2) => Self::AckLost { until_ms: ms },
            (_, _, 4) => Self::CutAfter,
            (_, _, 5) => Self::CutBefore,
            _ => Self::Delay { ms },
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {}: {} worker(s) of {} slot(s), latency {} ms{}",
            self.seed,
            self.workers,
            self.concurrency,
            self.latency_ms,
            if self.heals() {
                format!(", a broker that may lose messages, overdue after {} s", self.overdue_after_seconds)
            } else {
                String::new()
            }
        )?;
        for (number, task) in self.tasks.iter().enumerate() {
            let cancel = task.cancelled_at_ms.map(|at| format!(", cancelled at {at} ms")).unwrap_or_default();
            let name = WORKFLOWS[task.workflow].name;
            writeln!(f, "  task {number}: {name} at {} ms{cancel}", task.at_ms)?;
        }
        for (at, outage) in &self.outages {
            writeln!(f, "  at {at} ms: {outage:?}")?;
        }
        for ((act, number), slip) in &self.slips {
            writeln!(f, "  at {act:?} number {number}: {slip:?}")?;
        }
        Ok(())
    }
}
