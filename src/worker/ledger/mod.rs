//! What is running here and what has finished here, so that a request that comes again is not run again.
//!
//! It knows nothing of channels: a request that comes again after a reconnect finds it as it was.

mod file;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{error, info};
use uuid::Uuid;

use crate::broker::{Acker, Message};
use crate::config::LedgerConfig;
use crate::error::Error;
use file::LedgerFile;

/// Taken for what a message is beside its body: names, headers, their places in memory.
const ENVELOPE_BYTES: usize = 1_024;

/// After the file could not be written, how long it is left alone.
const REWRITE_PAUSE: Duration = Duration::from_secs(1);

/// What makes two requests the same one. Those of one attempt stand side by side, in the order of their parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Key {
    pub(super) step_uuid: Uuid,
    /// A replay from the dead letters counts its attempts anew.
    pub(super) replays: u32,
    pub(super) attempt: u32,
    #[serde(default)]
    pub(super) part: u32,
}

/// What is said about one attempt, in this order: the same messages however often they are said.
pub(super) type Answer = Arc<[Arc<Message>]>;

/// The steps that run, and the answers of those that finished last.
pub(super) struct Ledger {
    limits: LedgerConfig,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// The deliveries of each running step's request. One at least, the newest last.
    running: BTreeMap<Key, Vec<Acker>>,
    answers: BTreeMap<Key, Answer>,
    oldest_first: VecDeque<Key>,
    bytes: usize,
    file: Option<LedgerFile>,
    /// When the file could not be written last, until it can be.
    broken: Option<Instant>,
}

/// What a delivery is to the ledger.
pub(super) enum Entered {
    /// Its step runs already, and will settle it too.
    Joined,
    /// Its step has finished before: the answer is to be given again.
    Finished(Running, Answer),
    /// Its step has gone on from the checkpoint that was the answer: there is nothing left to say.
    Overtaken(Running),
    /// Not known.
    New(Running),
}

impl Ledger {
    /// An empty ledger, or what the configured file holds of one.
    ///
    /// # Errors
    /// When the file cannot be used: it is damaged, not ours, in use, or cannot be written.
    pub(super) fn open(limits: LedgerConfig) -> Result<Self, Error> {
        let ledger = Self { limits, inner: Mutex::default() };
        let Some(path) = &ledger.limits.path else { return Ok(ledger) };
        let unusable = |problem: std::io::Error| {
            Error::Config(vec![format!("worker.ledger.path: {} cannot be used: {problem}", path.display())])
        };
        let (file, answers) = LedgerFile::open(path).map_err(unusable)?;
        {
            let mut inner = ledger.lock();
            for (key, answer) in answers {
                inner.keep(&ledger.limits, key, answer);
            }
            inner.file = Some(file);
            inner.compact(&ledger.limits).map_err(unusable)?;
            info!(path = %path.display(), answers = inner.answers.len(), "Read the answers of finished steps");
        }
        Ok(ledger)
    }

    /// Registers a delivery. While its step runs, later deliveries of the same request join it.
    pub(super) fn enter(self: &Arc<Self>, key: Key, delivery: Acker) -> Entered {
        let mut inner = self.lock();
        if let Some(deliveries) = inner.running.get_mut(&key) {
            // What a lost connection made stale cannot be settled any more.
            deliveries.retain(Acker::is_usable);
            deliveries.push(delivery);
            return Entered::Joined;
        }
        let overtaken = inner.knows_later_part(key);
        inner.running.insert(key, vec![delivery]);
        let running = Running { ledger: self.clone(), key, left: false };
        if overtaken {
            return Entered::Overtaken(running);
        }
        match inner.answers.get(&key) {
            Some(answer) => Entered::Finished(running, answer.clone()),
            None => Entered::New(running),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while holding it, and its maps are valid at every line.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Whether a later part of the same attempt was here. It was asked for in answer to this one, so that the broker has it.
    fn knows_later_part(&self, key: Key) -> bool {
        let later = (Bound::Excluded(key), Bound::Included(Key { part: u32::MAX, ..key }));
        self.running.range(later).next().is_some() || self.answers.range(later).next().is_some()
    }

    /// Keeps an answer, and forgets the oldest ones beyond the limits. Tells whether it is kept.
    fn keep(&mut self, limits: &LedgerConfig, key: Key, answer: Answer) -> bool {
        let size = size(&answer);
        if limits.max_entries == 0 || size > limits.max_bytes {
            return false;
        }
        if let Some(earlier) = self.answers.insert(key, answer) {
            self.bytes -= self::size(&earlier);
            self.oldest_first.retain(|other| *other != key);
        }
        self.oldest_first.push_back(key);
        self.bytes += size;
        while self.answers.len() > limits.max_entries || self.bytes > limits.max_bytes {
            let Some(answer) = self.oldest_first.pop_front().and_then(|oldest| self.answers.remove(&oldest))
            else {
                break;
            };
            self.bytes -= self::size(&answer);
        }
        true
    }

    /// Brings an answer to the file. After a failure the file is left alone for a while, then written anew from
    /// memory: its end may be torn.
    fn write(&mut self, limits: &LedgerConfig, key: Key, answer: &Answer) {
        let Some(file) = &mut self.file else { return };
        let written = match self.broken {
            Some(since) if since.elapsed() < REWRITE_PAUSE => return,
            Some(_) => self.rewrite(),
            None => file.append(key, answer).and_then(|()| self.compact(limits)),
        };
        match written {
            Ok(()) if self.broken.take().is_some() => info!("The ledger's file can be written again"),
            Ok(()) => {}
            Err(problem) => {
                if self.broken.replace(Instant::now()).is_none() {
                    error!(
                        %problem,
                        "The ledger's file cannot be written; until it can, finished steps are known to this process \
                         only"
                    );
                }
            }
        }
    }

    /// Writes the file anew once most of it is forgotten.
    fn compact(&mut self, limits: &LedgerConfig) -> std::io::Result<()> {
        if self.file.as_ref().is_some_and(|file| file.is_too_large(limits)) {
            return self.rewrite();
        }
        Ok(())
    }

    fn rewrite(&mut self) -> std::io::Result<()> {
        let Self { file, answers, oldest_first, .. } = self;
        let Some(file) = file else { return Ok(()) };
        file.rewrite(oldest_first.iter().filter_map(|key| Some((*key, answers.get(key)?))))
    }
}

fn size(answer: &[Arc<Message>]) -> usize {
    answer.iter().map(|message| message.body.len() + ENVELOPE_BYTES).sum()
}

/// A request while it is worked on. Dropped, it gives its deliveries back to the broker.
pub(super) struct Running {
    ledger: Arc<Ledger>,
    key: Key,
    /// Ended: what runs under its key from then on is another's.
    left: bool,
}

impl Running {
    /// Keeps the answer for deliveries that come after this one is settled.
    pub(super) fn finished(&self, answer: Vec<Message>) -> Answer {
        let answer: Answer = answer.into_iter().map(Arc::new).collect();
        let limits = &self.ledger.limits;
        let mut inner = self.ledger.lock();
        if inner.keep(limits, self.key, answer.clone()) {
            inner.write(limits, self.key, &answer);
        }
        answer
    }

    /// Whether the request is still ours: no other worker has been given it.
    pub(super) fn is_held(&self) -> bool {
        let inner = self.ledger.lock();
        inner.running.get(&self.key).is_some_and(|deliveries| deliveries.iter().any(Acker::is_usable))
    }

    /// Ends it. All its deliveries are now the caller's to settle.
    pub(super) fn leave(mut self) -> Vec<Acker> {
        self.left = true;
        self.take()
    }

    fn take(&self) -> Vec<Acker> {
        self.ledger.lock().running.remove(&self.key).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.left {
            // Without the lock: unsettled deliveries settle themselves.
            drop(self.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::broker::{Disposition, Settle, StaleDelivery};

    #[derive(Default)]
    struct Channel {
        acked: AtomicUsize,
        given_back: AtomicUsize,
    }

    impl Settle for Channel {
        fn settle(&self, _tag: u64, disposition: Disposition) -> Result<(), StaleDelivery> {
            let count = if disposition == Disposition::Ack { &self.acked } else { &self.given_back };
            count.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }

        fn is_open(&self) -> bool {
            true
        }
    }

    #[test]
    fn a_delivery_that_comes_while_its_step_ends_belongs_to_whoever_answers_it() {
        const EACH: usize = 100_000;
        let ledger = Arc::new(Ledger::open(LedgerConfig { path: None, ..LedgerConfig::default() }).unwrap());
        let channel = Arc::new(Channel::default());
        let key = Key { step_uuid: Uuid::new_v4(), replays: 0, attempt: 1, part: 0 };
        let deliver = || {
            for tag in 0..EACH as u64 {
                if let Entered::New(running) = ledger.enter(key, Acker::new(tag, channel.clone())) {
                    running
                        .leave()
                        .into_iter()
                        .for_each(|delivery| delivery.settle(Disposition::Ack).unwrap());
                }
            }
        };
        std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(deliver))));
        assert_eq!(channel.given_back.load(Ordering::Relaxed), 0);
        assert_eq!(channel.acked.load(Ordering::Relaxed), 4 * EACH);
    }
}
