//! tmp
use tokio_util::sync::CancellationToken;
/// tmp
#[derive(Debug)]
pub struct Signals {
    /// g
    pub graceful: CancellationToken,
    /// i
    pub immediate: CancellationToken,
}
/// tmp
pub fn signals() -> Signals {
    Signals { graceful: CancellationToken::new(), immediate: CancellationToken::new() }
}
