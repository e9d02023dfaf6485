//! All there is to do about messages, in one task.
//!
//! A task for each queue, and one for publishing, would wake each other with every message, and most of a worker's
//! processor time goes into waking threads.

use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::broker::BoxFuture;

type Part = BoxFuture<'static, ()>;

/// How long the runtime's end waits for what is being polled.
const LAST_POLL: Duration = Duration::from_secs(1);

/// Where parts of the work are handed in.
#[derive(Debug)]
pub(super) struct Together(mpsc::UnboundedSender<Part>);

impl Together {
    /// In this runtime, on a thread of its own, with this stack, where that has several: a worker thread that is woken wakes
    /// another one to look for more.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(runtime: Handle, stack_bytes: usize) -> io::Result<Self> {
        let (together, parts) = mpsc::unbounded_channel();
        if runtime.runtime_flavor() == RuntimeFlavor::CurrentThread {
            runtime.spawn(run(parts));
            return Ok(Self(together));
        }
        let over = CancellationToken::new();
        let (ended, end) = std::sync::mpsc::channel::<()>();
        let of_runtime = Ending { over: over.clone(), end };
        // Dropped with the runtime, it ends the thread; the thread ends it.
        runtime.spawn(async move { of_runtime.over.cancelled().await });
        let on_thread = move || {
            let _over = over.clone().drop_guard();
            let _ended = ended;
            let _in_runtime = runtime.enter();
            drive(over.run_until_cancelled(run(parts)));
        };
        thread::Builder::new().name("messages".to_owned()).stack_size(stack_bytes).spawn(on_thread)?;
        Ok(Self(together))
    }

    /// Runs `part` beside the others.
    pub(super) fn add(&self, part: Part) {
        // Where nobody takes it, its runtime is gone.
        let _ = self.0.send(part);
    }
}

/// The end of the runtime: its timers go last, and a part that is still polled then would panic.
struct Ending {
    over: CancellationToken,
    end: std::sync::mpsc::Receiver<()>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.over.cancel();
        // Nobody sends: it is over with the thread. One that a handler holds is not waited for.
        let _ = self.end.recv_timeout(LAST_POLL);
    }
}

/// Until no more parts can come, and all have ended. One that panics ends alone, as a task would.
async fn run(mut parts: mpsc::UnboundedReceiver<Part>) {
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            part = parts.recv() => match part {
                Some(part) => running.push(AssertUnwindSafe(part).catch_unwind()),
                None => break,
            },
            Some(_) = running.next(), if !running.is_empty() => {}
        }
    }
    while running.next().await.is_some() {}
}

/// Runs a future on this thread.
///
/// Not by the runtime's `block_on`: what waits for something by the runtime's means within the future, as `try_recv` does for
/// a message that is just being sent, would take the wake-up that was meant for all of it.
fn drive<T>(future: impl Future<Output = T>) -> T {
    let called = Arc::new(Called { thread: thread::current(), called: AtomicBool::new(false) });
    let waker = Waker::from(called.clone());
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(answer) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return answer;
        }
        // What has parked this thread in between may have taken its token, but not this.
        while !called.called.swap(false, Ordering::Acquire) {
            thread::park();
        }
    }
}

struct Called {
    thread: Thread,
    called: AtomicBool,
}

impl Wake for Called {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.called.swap(true, Ordering::Release) {
            self.thread.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::runtime;
    use tokio::sync::oneshot;

    use super::*;

    const STACK: usize = 8 * 1024 * 1024;

    /// Hears of its part's end, however that ends.
    fn part(work: impl Future<Output = ()> + Send + 'static) -> (Part, oneshot::Receiver<()>) {
        let (ended, end) = oneshot::channel::<()>();
        let part = async move {
            let _ended = ended;
            work.await;
        };
        (Box::pin(part), end)
    }

    async fn panics_alone() {
        let together = Together::start(Handle::current(), STACK).unwrap();
        let (waiting, mut waiting_end) = part(std::future::pending());
        let (panicking, panicking_end) = part(async { panic!("on purpose") });
        together.add(waiting);
        together.add(panicking);
        panicking_end.await.unwrap_err();
        let (next, next_end) = part(async {});
        together.add(next);
        next_end.await.unwrap_err();
        assert_eq!(waiting_end.try_recv(), Err(oneshot::error::TryRecvError::Empty));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_part_that_panics_ends_alone() {
        panics_alone().await;
    }

    #[tokio::test]
    async fn a_part_that_panics_ends_alone_on_a_single_thread() {
        panics_alone().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_runs_has_the_stack_it_was_given() {
        fn deep(levels: usize) -> usize {
            let page = std::hint::black_box([0_u8; 4_096]);
            if levels == 0 { usize::from(page[0]) } else { 1 + deep(levels - 1) }
        }
        let together = Together::start(Handle::current(), STACK).unwrap();
        let (answer, answered) = oneshot::channel();
        // A quarter of it, twice or thrice that in a debug build: more than a thread has by itself.
        const LEVELS: usize = STACK / 4 / 4_096;
        together.add(Box::pin(async move { answer.send(deep(LEVELS)).unwrap() }));
        assert_eq!(answered.await, Ok(LEVELS));
    }

    #[test]
    fn whatever_parks_the_thread_within_a_part_takes_no_wake_up() {
        let (done, end) = std::sync::mpsc::channel();
        let mut polls = 0;
        let parking = poll_fn(move |context| {
            polls += 1;
            if polls == 3 {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            thread::park();
            Poll::Pending
        });
        thread::spawn(move || {
            drive(parking);
            done.send(()).unwrap();
        });
        end.recv_timeout(Duration::from_secs(30)).expect("it is polled again");
    }

    #[test]
    fn what_runs_ends_with_its_runtime() {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let together = Together::start(runtime.handle().clone(), STACK).unwrap();
        let (begun, begin) = oneshot::channel();
        let (waiting, end) = part(async move {
            begun.send(()).unwrap();
            std::future::pending().await
        });
        together.add(waiting);
        begin.blocking_recv().unwrap();
        runtime.shutdown_timeout(Duration::from_secs(10));
        end.blocking_recv().unwrap_err();
    }

    /// Says so when it is dropped by a panic.
    struct Watched(Arc<AtomicBool>);

    impl Drop for Watched {
        fn drop(&mut self) {
            self.0.fetch_or(thread::panicking(), Ordering::Relaxed);
        }
    }

    #[test]
    fn what_sleeps_while_its_runtime_ends_does_not_panic() {
        let panicked = Arc::new(AtomicBool::new(false));
        for _ in 0..200 {
            let runtime =
                runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let together = Together::start(runtime.handle().clone(), STACK).unwrap();
            let (mut ends, mut begins) = (Vec::new(), Vec::new());
            for _ in 0..20 {
                let watched = Watched(panicked.clone());
                let (begun, begin) = oneshot::channel();
                let (sleeping, end) = part(async move {
                    let _watched = watched;
                    begun.send(()).unwrap();
                    loop {
                        tokio::time::sleep(Duration::from_micros(10)).await;
                    }
                });
                together.add(sleeping);
                ends.push(end);
                begins.push(begin);
            }
            begins.into_iter().for_each(|begin| begin.blocking_recv().unwrap());
            drop(runtime);
            ends.into_iter().for_each(|end| drop(end.blocking_recv()));
        }
        assert!(!panicked.load(Ordering::Relaxed));
    }
}
