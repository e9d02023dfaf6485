//! The two signals to stop.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::error::Error;

/// What a program is asked to do: the first SIGTERM or SIGINT asks it to finish, the second to stop at once.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    /// Cancelled by the first signal: take no new work, finish what runs.
    pub graceful: CancellationToken,
    /// Cancelled by the second: leave everything as it is.
    pub immediate: CancellationToken,
}

/// Listens for SIGTERM and SIGINT from now on, for the rest of the process's life: afterwards neither ends
/// the process by itself.
///
/// # Errors
/// When the system refuses the listener.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn signals() -> Result<Signals, Error> {
    let listen =
        |kind| signal(kind).map_err(|source| Error::System { what: "signals cannot be received", source });
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let signals = Signals::default();
    let heard = signals.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        };
        let signal = next().await;
        info!(signal, "Stopping; running work may finish, a second signal stops at once");
        heard.graceful.cancel();
        let signal = next().await;
        warn!(signal, "Stopping at once");
        heard.immediate.cancel();
    });
    Ok(signals)
}
