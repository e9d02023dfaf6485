//! The two signals to stop.

use std::process::Command;
use std::time::Duration;

use tasker_worker_rust::ops::shutdown;
use tokio::time::timeout;

fn send(signal: &str) {
    let status = Command::new("sh").args(["-c", &format!("kill -{signal} {}", std::process::id())]).status();
    assert!(status.expect("sh runs").success());
}

#[tokio::test]
async fn the_first_signal_asks_to_finish_and_the_second_to_stop_at_once() {
    let signals = shutdown::signals().unwrap();
    assert!(!signals.graceful.is_cancelled());

    send("TERM");
    timeout(Duration::from_secs(10), signals.graceful.cancelled()).await.expect("SIGTERM is heard");
    assert!(!signals.immediate.is_cancelled());

    send("INT");
    timeout(Duration::from_secs(10), signals.immediate.cancelled()).await.expect("SIGINT is heard");
}
