//! Workers and orchestrator as a whole, on a broker, a store and a clock that do what a seed says: processes
//! die between any two acts, connections break, messages come late or twice. Whatever happens, every task comes
//! to its right end, and every step is applied once.
//!
//! `SIMULATION_SEEDS=10000 cargo test --test simulation` runs more seeds than the usual ones;
//! `SIMULATION_SEED=7 cargo test --test simulation replay -- --nocapture` shows one of them, act by act.

mod check;
mod clock;
mod schedule;
mod wire;
mod workflow;
mod world;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::clock::Gate;
use crate::schedule::Schedule;
use crate::wire::Flaw;
use crate::world::World;

/// Seeds run where nobody asks for more.
const SEEDS: u64 = 250;

/// Seeds that fail are told of up to this number.
const FAILURES: usize = 3;

fn number(variable: &str) -> Option<u64> {
    #[expect(clippy::disallowed_methods, reason = "which seeds are run is no setting of the product")]
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}, and should be a number")))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while holding it")
}

/// One run: its diary, and what is wrong at its end.
fn simulate(seed: u64, flaw: Flaw, verbose: bool) -> (String, Result<(), String>) {
    let (runtime, gate) = Gate::runtime();
    // In memory, where there is such a place: nothing here has to survive a power cut.
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let directory = tempfile::Builder::new().prefix("simulation").tempdir_in(place).expect("a directory");
    let store = directory.path().join("store");
    let run = async move {
        let world = World::new(Schedule::draw(seed), flaw, store, gate, verbose);
        let outcome = world.run().await;
        (world.diary(), outcome)
    };
    // In a task of its own, so that the clock sees what wakes it.
    runtime.block_on(runtime.spawn(run)).expect("the simulation itself does not panic")
}

/// Runs seeds on all cores until enough have failed: the failed ones, each with all there is to know.
fn simulate_all(seeds: u64, flaw: Flaw, enough: usize) -> BTreeMap<u64, String> {
    let (next, failed) = (AtomicU64::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, |cores| cores.get()) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds || locked(&failed).len() >= enough {
                        return;
                    }
                    if let (diary, Err(problems)) = simulate(seed, flaw, false) {
                        let report = format!(
                            "{}{diary}\n{problems}\nagain: SIMULATION_SEED={seed} cargo test --test simulation \
                             replay -- --nocapture\n",
                            Schedule::draw(seed)
                        );
                        locked(&failed).insert(seed, report);
                    }
                }
            });
        }
    });
    failed.into_inner().expect("no thread panics")
}

#[test]
fn whatever_fails_every_task_ends_right_and_every_step_is_applied_once() {
    let failed = simulate_all(number("SIMULATION_SEEDS").unwrap_or(SEEDS), Flaw::None, FAILURES);
    assert!(failed.is_empty(), "\n{}", failed.into_values().collect::<Vec<_>>().join("\n"));
}

#[test]
fn replay() {
    let seed = number("SIMULATION_SEED").unwrap_or(1);
    println!("{}", Schedule::draw(seed));
    let (diary, outcome) = simulate(seed, Flaw::None, true);
    println!("{diary}");
    if let Err(problems) = outcome {
        panic!("seed {seed}:\n{problems}");
    }
}

/// What the simulation says of a system with this mistake in it.
fn seen(flaw: Flaw) -> String {
    simulate_all(200, flaw, 1).into_values().next().unwrap_or_default()
}

#[test]
fn an_ack_before_the_confirmed_answer_loses_steps_and_the_simulation_sees_it() {
    let report = seen(Flaw::AcksEarly);
    assert!(report.contains("it never came to rest"), "{report}");
}

#[test]
fn a_broker_that_throws_away_what_it_confirmed_is_seen() {
    let report = seen(Flaw::Drops { one_in: 50 });
    assert!(report.contains("it never came to rest"), "{report}");
}
