//! Single steps: throughput, latency, concurrency, start and stop.

use std::time::Instant;

use tasker_worker_rust::config::QueueKind;

use super::Answer;
use super::figure::{Figure, Goal, percentile};
use super::job::{Done, Habit, Job, Who};
use super::rounds::{Bench, Rounds, Run};

/// The size of a request, in bytes.
const REQUEST: usize = 1_024;

/// W1: steps that wait in the queue, done as fast as it goes.
pub(super) async fn throughput(bench: &Bench) -> Answer<Vec<Figure>> {
    let mut figures = Vec::new();
    let kinds = [(QueueKind::Quorum, "quorum"), (QueueKind::Classic, "classic")];
    let namespaces: &[usize] = bench.scaled(&[1, 4, 50], &[1]);
    for ((kind, kind_name), namespaces) in
        kinds.into_iter().take(bench.scaled(2, 1)).flat_map(|kind| namespaces.iter().map(move |n| (kind, *n)))
    {
        for prefetch in bench.scaled([100, 250].as_slice(), &[100]) {
            let case = format!("{kind_name}, {namespaces} namespaces, prefetch {prefetch}");
            if !bench.wants(&case) {
                continue;
            }
            let steps = if namespaces == 1 { bench.scaled(50_000, 10_000) } else { 20_000 };
            let waiting = Backlog { kind, namespaces, prefetch: *prefetch, steps };
            let rounds = backlog(bench, &case, bench.rounds, waiting, None).await?;
            let goal = if *prefetch >= 250 { 0.95 } else { 0.90 };
            figures.extend(cost("W1", &case, steps, &rounds, Some(Goal::AtLeast(goal))));
        }
    }
    Ok(figures)
}

/// Steps that wait.
#[derive(Clone, Copy)]
pub(super) struct Backlog {
    pub(super) kind: QueueKind,
    pub(super) namespaces: usize,
    pub(super) prefetch: u16,
    pub(super) steps: u64,
}

/// Rounds of steps that wait in the queue; the twin has `habit` beside itself, or stands beside ours.
pub(super) async fn backlog(
    bench: &Bench,
    case: &str,
    rounds: usize,
    Backlog { kind, namespaces, prefetch, steps }: Backlog,
    habit: Option<Habit>,
) -> Answer<Rounds<Done>> {
    let mut site = bench.site(kind, namespaces).await?;
    site.caller.pause().await?;
    let rounds = bench
        .rounds(&format!("throughput, {case}"), rounds, true, async |who| {
            let job = Job { who, prefetch, steps, ..site.job.clone() };
            let job = match (who, habit) {
                (Who::Ours, Some(habit)) => Job { who: Who::Bare, habit, ..job },
                _ => job,
            };
            site.caller.fill(&job.namespaces(), steps, REQUEST).await?;
            let run = bench.watch(&[], async { site.start(&job)?.done().await }).await?;
            site.caller.purge().await?;
            Ok(run)
        })
        .await?;
    site.close().await?;
    Ok(rounds)
}

/// The figures of steps done as fast as it goes.
fn cost(
    workload: &'static str,
    case: &str,
    steps: u64,
    rounds: &Rounds<Done>,
    goal: Option<Goal>,
) -> Vec<Figure> {
    let thousands = steps as f64 / 1_000.0;
    let figure = |what: &str, unit, goal, number: &dyn Fn(&Run<Done>) -> f64| {
        let case = if what.is_empty() { case.to_owned() } else { format!("{case}: {what}") };
        let mut figure = Figure::new(workload, case, unit, &rounds.numbers(number), goal)?;
        figure.disturbed = rounds.disturbed;
        Some(figure)
    };
    [
        figure("", "steps/s", goal, &|run| steps as f64 / run.value.seconds),
        figure("processor", "s per 1,000 steps", goal.map(|_| Goal::AtMost(1.3)), &|run| {
            run.value.cpu / thousands
        }),
        figure("broker's processor", "s per 1,000 steps", None, &|run| run.broker / thousands),
        figure("peak memory", "MB", None, &|run| run.value.memory),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// W8: the bare twin with one habit of others, beside itself.
pub(super) async fn habits(bench: &Bench) -> Answer<Vec<Figure>> {
    const STEPS: u64 = 20_000;
    let mut figures = Vec::new();
    for (habit, what) in
        [(Habit::AckForEach, "one ack for each step"), (Habit::TaskForEach, "one task for each step")]
    {
        for (kind, name, namespaces) in [
            (QueueKind::Quorum, "quorum", 1),
            (QueueKind::Quorum, "quorum", 50),
            (QueueKind::Classic, "classic", 1),
        ] {
            let case = format!("twin with {what}, {name}, {namespaces} namespaces");
            if !bench.wants(&case) {
                continue;
            }
            let waiting = Backlog { kind, namespaces, prefetch: 250, steps: STEPS };
            let rounds = backlog(bench, &case, bench.rounds, waiting, Some(habit)).await?;
            figures.extend(cost("W8", &case, STEPS, &rounds, None));
        }
    }
    Ok(figures)
}

/// W2: requests at a steady pace, from publishing each to receiving its result.
pub(super) async fn latency(bench: &Bench) -> Answer<Vec<Figure>> {
    let mut figures = Vec::new();
    let paces: &[u32] = bench.scaled(&[200, 1_000], &[200]);
    for pace in paces {
        let count = u64::from(pace * bench.scaled(5, 2));
        let case = format!("{pace} steps/s");
        if !bench.wants(&case) {
            continue;
        }
        let rounds =
            paced(bench, &format!("W2 {case}"), *pace, count, REQUEST, bench.rounds.max(bench.scaled(7, 1)))
                .await?;
        for (name, share, goal) in [("p50", 0.5, Some(1.15)), ("p95", 0.95, None), ("p99", 0.99, Some(1.5))] {
            let numbers = rounds.numbers(|run| percentile(&run.value, share));
            let figure = Figure::new("W2", format!("{case}: {name}"), "ms", &numbers, goal.map(Goal::AtMost));
            figures.extend(figure.map(|figure| Figure { disturbed: rounds.disturbed, ..figure }));
        }
    }
    Ok(figures)
}

/// Rounds of latencies at one pace.
pub(super) async fn paced(
    bench: &Bench,
    what: &str,
    pace: u32,
    count: u64,
    bytes: usize,
    rounds: usize,
) -> Answer<Rounds<Vec<f64>>> {
    let mut site = bench.site(bench.config.broker.queue_kind, 1).await?;
    let namespace = site.job.namespaces().remove(0);
    let measured = bench
        .rounds(what, rounds, true, async |who| {
            let worker = site.start(&Job { who, ..site.job.clone() })?;
            // The first ones pay for connections and code that was never run.
            site.caller.paced(&namespace, pace, 50, bytes).await?;
            let run = bench.watch(&[worker.pid()], site.caller.paced(&namespace, pace, count, bytes)).await?;
            worker.terminate().await?;
            Ok(run)
        })
        .await?;
    site.close().await?;
    Ok(measured)
}

/// W3: many steps that sleep, at once.
pub(super) async fn concurrency(bench: &Bench) -> Answer<Vec<Figure>> {
    const STEPS: u64 = 10_000;
    const SLEEP_MS: u64 = 100;
    let mut figures = Vec::new();
    for (prefetch, memory) in [(100, Some(30.0)), (1_000, Some(60.0)), (5_000, None)] {
        let case = format!("10,000 steps of 100 ms, {prefetch} at once");
        if !bench.wants(&case) {
            continue;
        }
        let ideal = (STEPS / u64::from(prefetch)) as f64 * SLEEP_MS as f64 / 1e3;
        let mut site = bench.site(bench.config.broker.queue_kind, 1).await?;
        site.caller.pause().await?;
        let rounds = bench
            .rounds(&format!("W3 {case}"), bench.rounds, true, async |who| {
                let job = Job { who, prefetch, steps: STEPS, sleep_ms: SLEEP_MS, ..site.job.clone() };
                site.caller.fill(&job.namespaces(), STEPS, REQUEST).await?;
                let run = bench.watch(&[], async { site.start(&job)?.done().await }).await?;
                site.caller.purge().await?;
                Ok(run)
            })
            .await?;
        site.close().await?;
        let wall = rounds.numbers(|run| run.value.seconds / ideal);
        let ours: Vec<_> = wall.iter().map(|(ours, _)| (*ours, None)).collect();
        let memories = rounds.numbers(|run| run.value.memory);
        let memories: Vec<_> = memories.into_iter().map(|(ours, _)| (ours, None)).collect();
        figures.extend(Figure::new("W3", format!("{case}: time"), "x ideal", &ours, Some(Goal::AtMost(1.2))));
        figures.extend(Figure::new("W3", format!("{case}: time beside the twin"), "x ideal", &wall, None));
        figures.extend(Figure::new(
            "W3",
            format!("{case}: peak memory"),
            "MB",
            &memories,
            memory.map(Goal::AtMost),
        ));
    }
    Ok(figures)
}

/// W7: from the start of the process to the first result, and from SIGTERM to its end.
pub(super) async fn life(bench: &Bench) -> Answer<Vec<Figure>> {
    const SLEEP_MS: u64 = 100;
    let mut site = bench.site(bench.config.broker.queue_kind, 1).await?;
    let namespace = site.job.namespaces().remove(0);
    let starts = bench
        .rounds("W7 start", bench.rounds, true, async |who| {
            let job = Job { who, ..site.job.clone() };
            let begin = Instant::now();
            let worker = site.start(&job)?;
            let run = bench
                .watch(&[worker.pid()], async {
                    site.caller.chain(&namespace, 1, REQUEST).await?;
                    Ok(begin.elapsed().as_secs_f64() * 1e3)
                })
                .await?;
            worker.terminate().await?;
            Ok(run)
        })
        .await?;
    let stops = bench
        .rounds("W7 stop", bench.rounds, false, async |who: Who| {
            let worker = site.start(&Job { who, sleep_ms: SLEEP_MS, ..site.job.clone() })?;
            site.caller.chain(&namespace, 1, REQUEST).await?;
            site.caller.fill(std::slice::from_ref(&namespace), 100, REQUEST).await?;
            let run = bench.watch(&[], worker.terminate()).await?;
            // What was handed back, and what the worker answered.
            site.caller.purge().await?;
            Ok(run)
        })
        .await?;
    let ours: Vec<_> = starts.numbers(|run| run.value).into_iter().map(|(ours, _)| (ours, None)).collect();
    let mut figures = Vec::new();
    let case = "process start to first result";
    figures.extend(Figure::new("W7", case, "ms", &ours, Some(Goal::AtMost(300.0))));
    figures.extend(Figure::new(
        "W7",
        format!("{case}, beside the twin"),
        "ms",
        &starts.numbers(|run| run.value),
        None,
    ));
    let case = "SIGTERM to exit, 100 steps of 100 ms in flight";
    figures.extend(Figure::new(
        "W7",
        case,
        "ms",
        &stops.numbers(|run| run.value),
        Some(Goal::AtMost(1_100.0)),
    ));
    site.close().await?;
    Ok(figures)
}
