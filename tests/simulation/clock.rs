//! Simulated time. It stands still while the store works: SQLite runs on threads of its own, and a runtime that
//! waits for them looks idle, so tokio would move its paused clock on to the next timer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use tasker_worker_rust::orchestrator::store::Store;
use tokio::runtime::{Builder, Runtime, RuntimeMetrics};

use crate::locked;

/// No statement takes this long; better a jump in time than a test that hangs.
const LONGEST_STATEMENT: Duration = Duration::from_secs(5);

/// Keeps time from passing.
#[derive(Default)]
pub(crate) struct Gate {
    store: Mutex<Option<Store>>,
    held: AtomicUsize,
    runtime: OnceLock<RuntimeMetrics>,
}

/// Time stands still while this exists.
pub(crate) struct Held<'a>(&'a Gate);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Gate {
    /// A single-threaded runtime with a paused clock, which moves on only when there is nothing left to do.
    pub(crate) fn runtime() -> (Runtime, Arc<Self>) {
        let gate = Arc::new(Self::default());
        let before_park = Arc::clone(&gate);
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .on_thread_park(move || before_park.wait())
            .build()
            .expect("a runtime starts");
        gate.runtime.set(runtime.handle().metrics()).expect("set once");
        (runtime, gate)
    }

    /// The store whose work takes no time.
    pub(crate) fn watch(&self, store: &Store) {
        *locked(&self.store) = Some(store.clone());
    }

    /// While a store is being opened.
    pub(crate) fn hold(&self) -> Held<'_> {
        self.held.fetch_add(1, Ordering::Relaxed);
        Held(self)
    }

    fn is_closed(&self) -> bool {
        self.held.load(Ordering::Relaxed) > 0
            || locked(&self.store).as_ref().is_some_and(|store| store.in_use() > 0)
    }

    /// Waits for what the store's threads wake.
    fn wait(&self) {
        if !self.is_closed() {
            return;
        }
        let runtime = self.runtime.get().expect("set before anything runs");
        let patience = Instant::now();
        while runtime.global_queue_depth() == 0 && patience.elapsed() < LONGEST_STATEMENT {
            std::thread::yield_now();
        }
        // Something to do, so that this park does not count as idle.
        drop(tokio::spawn(async {}));
    }
}
