//! What the system knows about this process.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// How long a figure is good for. Reading takes tens of microseconds, which is too much once per step.
const FRESH_MS: u64 = 100;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);
static RESIDENT_KB: AtomicU64 = AtomicU64::new(0);
/// When the figure was read, in milliseconds since `START`; 0 for never.
static READ_AT_MS: AtomicU64 = AtomicU64::new(0);

/// The memory this process occupies, in units of 1024 bytes; at most 100 ms old, so cheap enough to ask
/// after every step. `None` where the system has no `/proc`.
pub fn resident_memory_kb() -> Option<u64> {
    let now = START.elapsed().as_millis() as u64 + 1;
    let read_at = READ_AT_MS.load(Ordering::Relaxed);
    let stale = read_at == 0 || now.saturating_sub(read_at) >= FRESH_MS;
    // Whoever moves the time reads; the others take the last figure and do not wait.
    if stale && READ_AT_MS.compare_exchange(read_at, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        RESIDENT_KB.store(read().unwrap_or(0), Ordering::Relaxed);
    }
    match RESIDENT_KB.load(Ordering::Relaxed) {
        0 => read(),
        resident => Some(resident),
    }
}

fn read() -> Option<u64> {
    resident(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// `VmRSS:      5124 kB`
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_found_among_the_other_lines() {
        assert_eq!(resident("Name:\tx\nVmHWM:\t    9000 kB\nVmRSS:\t    5124 kB\nThreads:\t1\n"), Some(5124));
        assert_eq!(resident("Name:\tx\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_occupies_more_than_a_megabyte() {
        let resident = resident_memory_kb().unwrap();
        assert!(resident > 1_024, "{resident} kB");
    }
}
