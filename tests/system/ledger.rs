//! A step that finished is not run again: its requests join it, or get its answer once more.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::json;
use tasker_worker_rust::broker::memory::MemoryBroker;
use tasker_worker_rust::broker::rabbit::RabbitBroker;
use tasker_worker_rust::broker::topology::step_key;
use tasker_worker_rust::broker::{Broker, Message, Properties};
use tasker_worker_rust::message::{StepExecutionRequest, StepExecutionResult, header};
use tasker_worker_rust::ops::metrics::METRICS;
use tasker_worker_rust::{Config, Error, Namespace, RunningWorker, RustWorker, Step, StepError, StepResult};
use tokio::sync::{Semaphore, mpsc};
use uuid::Uuid;

use crate::on_both_brokers;
use crate::proxy::Proxy;
use crate::support::{Desk, Kind, Report, eventually, settings, within};

on_both_brokers! {
    a_step_cut_off_from_its_request_runs_on_and_answers_the_redelivery
    a_duplicate_of_a_running_step_is_settled_with_it_and_a_later_one_gets_the_same_answer
    retries_failures_and_dead_letters_are_repeated_word_for_word
    a_replay_from_the_dead_letters_is_run
    a_finished_step_whose_result_could_not_be_published_is_not_run_again
    a_killed_worker_answers_from_its_file_when_it_is_back
}

/// A desk with a namespace of its own, and a way between worker and broker that can fail.
pub(crate) struct Lab {
    pub(crate) desk: Desk,
    line: Line,
    pub(crate) namespace: String,
    runs: Runs,
}

enum Line {
    Embedded(Arc<MemoryBroker>),
    RabbitMq(Proxy),
}

/// How often the handler was called, for which attempt.
type Runs = Arc<Mutex<HashMap<(Uuid, u32), usize>>>;

impl Lab {
    pub(crate) async fn open(kind: Kind) -> Self {
        let namespace = format!("ledger-{}", Uuid::new_v4().simple());
        let (line, desk) = match kind {
            Kind::Embedded => {
                let broker = MemoryBroker::new();
                let desk = Desk::on(broker.clone(), settings(kind), kind, &[&namespace]).await;
                (Line::Embedded(broker), desk)
            }
            Kind::RabbitMq => {
                (Line::RabbitMq(Proxy::open()), Desk::open_with(settings(kind), kind, &[&namespace]).await)
            }
        };
        Self { desk, line, namespace, runs: Runs::default() }
    }

    /// Connections for one worker.
    pub(crate) fn connect(&self) -> Arc<dyn Broker> {
        match &self.line {
            Line::Embedded(broker) => broker.connect(),
            Line::RabbitMq(proxy) => {
                let mut config = self.desk.config.broker.clone();
                config.urls = vec![proxy.url().into()];
                Arc::new(RabbitBroker::connect(&config, "worker").unwrap())
            }
        }
    }

    async fn cut(&self) {
        match &self.line {
            Line::Embedded(broker) => broker.disconnect(),
            Line::RabbitMq(proxy) => proxy.cut().await,
        }
    }

    /// Nothing that the worker publishes is confirmed from now on.
    fn stall(&self) {
        match &self.line {
            Line::Embedded(broker) => broker.set_blocked(Some("a test")),
            Line::RabbitMq(proxy) => proxy.stall(),
        }
    }

    /// The end of [`stall`](Self::stall), and of what was under way.
    async fn cut_and_flow(&self) {
        self.cut().await;
        if let Line::Embedded(broker) = &self.line {
            broker.set_blocked(None);
        }
    }

    /// Ends a worker as a crash does: nothing of it reaches the broker any more.
    pub(crate) async fn kill(&self, worker: RunningWorker, broker: Arc<dyn Broker>) {
        self.cut().await;
        drop(worker);
        within(broker.close()).await;
        if let Line::Embedded(broker) = &self.line {
            broker.set_blocked(None);
        }
    }

    pub(crate) async fn worker(&self, config: Config, handler: Namespace) -> RunningWorker {
        self.start(self.connect(), config, handler).await
    }

    pub(crate) async fn start(&self, on: Arc<dyn Broker>, config: Config, steps: Namespace) -> RunningWorker {
        // A worker that was killed in this process takes a moment to let go of its file.
        let worker = eventually("the worker starts", async || {
            let worker = RustWorker::new(config.clone()).namespace(steps.clone()).broker(on.clone());
            worker.start().await.ok()
        })
        .await;
        within(worker.ready()).await;
        worker
    }

    /// The steps of these tests, counted.
    fn steps(&self) -> Namespace {
        let runs = self.runs.clone();
        let count = move |step: &Step| {
            *runs.lock().unwrap().entry((step.step_uuid(), step.attempt())).or_default() += 1;
        };
        let (count_flaky, count_hopeless) = (count.clone(), count.clone());
        Namespace::new(self.namespace.as_str())
            .step("answer", move |step: Step| {
                count(&step);
                async move { StepResult::Ok(step.context) }
            })
            .step("flaky", move |step: Step| {
                count_flaky(&step);
                async move { if step.attempt() == 1 { Err(StepError::retryable("not yet")) } else { Ok("done") } }
            })
            .step("hopeless", move |step: Step| {
                count_hopeless(&step);
                async { StepResult::<()>::Err(StepError::permanent("never").code("NEVER")) }
            })
    }

    /// A step that tells when it has started, and ends when it is let.
    fn slow_step(&self) -> (Namespace, mpsc::UnboundedReceiver<()>, Arc<Semaphore>) {
        let (started, has_started) = mpsc::unbounded_channel();
        let finish = Arc::new(Semaphore::new(0));
        let (runs, may_finish) = (self.runs.clone(), finish.clone());
        let handler = move |step: Step| {
            let (runs, started, finish) = (runs.clone(), started.clone(), may_finish.clone());
            async move {
                *runs.lock().unwrap().entry((step.step_uuid(), step.attempt())).or_default() += 1;
                started.send(())?;
                finish.acquire().await?.forget();
                StepResult::Ok(step.context)
            }
        };
        (Namespace::new(self.namespace.as_str()).step("slow", handler), has_started, finish)
    }

    pub(crate) fn request(&self, step_name: &str, context: serde_json::Value) -> StepExecutionRequest {
        let mut request = self.desk.request(step_name, context);
        request.namespace.clone_from(&self.namespace);
        request
    }

    async fn ask(&self, step_name: &str) -> StepExecutionRequest {
        let request = self.request(step_name, json!({ "a": 1 }));
        self.desk.send(&request).await;
        request
    }

    pub(crate) async fn result(&mut self) -> (StepExecutionResult, String) {
        match self.desk.next().await {
            Report::Result(result, properties) => (result, properties.message_id.unwrap()),
            other => panic!("expected a result, got {other:?}"),
        }
    }

    /// How often a request that came again ended like this.
    pub(crate) fn came_again(&self, outcome: &str) -> u64 {
        METRICS.redeliveries.with_label_values(&[self.namespace.as_str(), outcome]).get()
    }

    /// Sends the request again until it is answered from the ledger. An answer may have arrived here before its
    /// worker knows that it is confirmed: until then, a duplicate joins it.
    async fn send_until_replayed(&self, request: &StepExecutionRequest) {
        let before = self.came_again("replayed");
        while self.came_again("replayed") == before {
            let sent = self.came_again("joined") + before + 1;
            self.desk.send(request).await;
            eventually("the request comes again", async || {
                (self.came_again("joined") + self.came_again("replayed") == sent).then_some(())
            })
            .await;
        }
    }

    async fn until_joined(&self, times: u64) {
        eventually("a delivery joins", async || (self.came_again("joined") == times).then_some(())).await;
    }

    fn runs_of(&self, request: &StepExecutionRequest) -> usize {
        *self.runs.lock().unwrap().get(&(request.step_uuid, request.attempt)).unwrap_or(&0)
    }

    /// Everything was run once, nothing is left in the queue, and nothing was done twice on a channel.
    async fn all_ran_once(self, steps: usize) {
        let runs = self.runs.lock().unwrap().clone();
        assert_eq!(runs.len(), steps);
        assert!(runs.values().all(|times| *times == 1), "{runs:?}");
        self.nothing_is_left().await;
    }

    pub(crate) async fn nothing_is_left(self) {
        let queue = self.desk.names.step_queue(&self.namespace);
        assert_eq!(self.desk.broker.depth(&queue).await, Ok(Some(0)));
        let channel_errors = METRICS.reconnects.with_label_values(&["precondition_failed"]).get();
        assert_eq!(channel_errors, 0, "a delivery was settled twice");
        self.desk.close().await;
    }
}

async fn a_step_cut_off_from_its_request_runs_on_and_answers_the_redelivery(kind: Kind) {
    let mut lab = Lab::open(kind).await;
    let (handler, mut started, finish) = lab.slow_step();
    let mut config = lab.desk.config.clone();
    // The redelivery joins although no step could be started.
    config.worker.max_concurrent_steps = 1;
    let worker = lab.worker(config, handler).await;
    let request = lab.ask("slow").await;
    within(started.recv()).await;
    for cuts in 1..=3 {
        lab.cut().await;
        lab.until_joined(cuts).await;
    }
    finish.add_permits(1);
    let (result, id) = lab.result().await;
    assert_eq!((result.step_uuid, result.success), (request.step_uuid, true));
    assert_eq!(id, request.message_id("result"));
    worker.shutdown().await;
    lab.all_ran_once(1).await;
}

async fn a_duplicate_of_a_running_step_is_settled_with_it_and_a_later_one_gets_the_same_answer(kind: Kind) {
    let mut lab = Lab::open(kind).await;
    let (handler, mut started, finish) = lab.slow_step();
    let worker = lab.worker(lab.desk.config.clone(), handler).await;
    let request = lab.ask("slow").await;
    within(started.recv()).await;
    lab.desk.send(&request).await;
    lab.until_joined(1).await;
    finish.add_permits(1);
    let first = lab.result().await;

    lab.send_until_replayed(&request).await;
    let again = lab.result().await;
    assert_eq!(again, first, "the same answer, to the millisecond");
    assert_eq!(lab.came_again("replayed"), 1);
    worker.shutdown().await;
    lab.all_ran_once(1).await;
}

async fn retries_failures_and_dead_letters_are_repeated_word_for_word(kind: Kind) {
    let mut lab = Lab::open(kind).await;
    let worker = lab.worker(lab.desk.config.clone(), lab.steps()).await;
    let request = lab.ask("hopeless").await;
    let first = (lab.desk.next().await, lab.desk.next().await);
    assert!(matches!(first, (Report::Result(..), Report::DeadLetter(..))), "{first:?}");
    lab.send_until_replayed(&request).await;
    assert_eq!((lab.desk.next().await, lab.desk.next().await), first);

    // Each of the two retries comes back, and only one is run.
    let request = lab.ask("flaky").await;
    let retry = lab.desk.next().await;
    assert!(matches!(retry, Report::Retry(..)), "{retry:?}");
    let result = lab.desk.next().await;
    assert!(matches!(&result, Report::Result(result, _) if result.attempt == 2), "{result:?}");
    lab.send_until_replayed(&request).await;
    assert_eq!((lab.desk.next().await, lab.desk.next().await), (retry, result));
    worker.shutdown().await;
    lab.all_ran_once(3).await;
}

async fn a_replay_from_the_dead_letters_is_run(kind: Kind) {
    let mut lab = Lab::open(kind).await;
    let worker = lab.worker(lab.desk.config.clone(), lab.steps()).await;
    let request = lab.ask("hopeless").await;
    for runs in 1..=2 {
        assert!(matches!(lab.desk.next().await, Report::Result(..)));
        assert!(matches!(lab.desk.next().await, Report::DeadLetter(..)));
        assert_eq!(lab.runs_of(&request), runs);
        if runs == 1 {
            let mut properties = Properties::default();
            properties.headers.set(header::REPLAYS, 1_u32);
            let routing_key = step_key(&lab.namespace, "hopeless");
            let body = request.encode().into();
            let message = Message { exchange: lab.desk.names.steps(), routing_key, body, properties };
            within(lab.desk.broker.publisher().publish(message)).await.unwrap();
        }
    }
    worker.shutdown().await;
    lab.nothing_is_left().await;
}

async fn a_finished_step_whose_result_could_not_be_published_is_not_run_again(kind: Kind) {
    let mut lab = Lab::open(kind).await;
    let (handler, mut started, finish) = lab.slow_step();
    let worker = lab.worker(lab.desk.config.clone(), handler).await;
    let request = lab.ask("slow").await;
    within(started.recv()).await;
    lab.stall();
    finish.add_permits(1);
    // The answer is made once nothing of it runs any more.
    let in_flight = METRICS.in_flight.with_label_values(&[lab.namespace.as_str()]);
    eventually("the handler ends", async || (in_flight.get() == 0).then_some(())).await;
    lab.cut_and_flow().await;
    let (result, id) = lab.result().await;
    assert_eq!((result.step_uuid, id), (request.step_uuid, request.message_id("result")));
    eventually("the redelivery is noticed", async || {
        (lab.came_again("joined") + lab.came_again("replayed") > 0).then_some(())
    })
    .await;
    worker.shutdown().await;
    assert_eq!(lab.came_again("run"), 0);
    lab.all_ran_once(1).await;
}

/// Half of the cuts come before the result is confirmed. A confirmed one is acked at once, so the other half loses the
/// ack: the request comes again.
#[tokio::test(start_paused = true)]
async fn two_hundred_cuts_between_result_and_ack_run_no_step_twice() {
    let mut lab = Lab::open(Kind::Embedded).await;
    let Line::Embedded(broker) = &lab.line else { unreachable!() };
    let broker = broker.clone();
    let runs = lab.runs.clone();
    let confirms = broker.clone();
    let handler = move |step: Step| {
        *runs.lock().unwrap().entry((step.step_uuid(), step.attempt())).or_default() += 1;
        confirms.lose_confirms(usize::from(step.context["lose"] == true));
        async move { StepResult::Ok(step.context) }
    };
    let worker = lab
        .worker(lab.desk.config.clone(), Namespace::new(lab.namespace.as_str()).step("cut", handler))
        .await;
    let stale = METRICS.stale_settlements.get();
    let cutting = tokio::spawn(async move {
        for round in 0..200 {
            let request = lab.request("cut", json!({ "round": round, "lose": round % 2 == 0 }));
            lab.desk.send(&request).await;
            let first = lab.result().await;
            assert_eq!(first.1, request.message_id("result"));
            if round % 2 == 0 {
                broker.disconnect();
            } else {
                lab.desk.send(&request).await;
            }
            assert_eq!(lab.result().await, first);
        }
        lab
    });
    let lab = cutting.await.unwrap();
    worker.shutdown().await;
    assert_eq!((lab.came_again("joined"), lab.came_again("replayed")), (100, 100));
    assert_eq!(lab.came_again("run"), 0);
    assert!(METRICS.stale_settlements.get() - stale >= 100);
    lab.all_ran_once(200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_cuts_of_a_busy_rabbitmq_connection_run_no_step_twice() {
    const STEPS: usize = 20;
    let mut lab = Lab::open(Kind::RabbitMq).await;
    let worker = lab.worker(lab.desk.config.clone(), lab.steps()).await;
    let stale = METRICS.stale_settlements.get();
    for _ in 0..40 {
        let mut missing = Vec::new();
        for _ in 0..STEPS {
            missing.push(lab.ask("answer").await.message_id("result"));
        }
        for heard in 1.. {
            let (_, id) = lab.result().await;
            missing.retain(|missing| *missing != id);
            if heard == STEPS / 4 {
                lab.cut().await;
            }
            if missing.is_empty() && heard > STEPS / 4 {
                break;
            }
        }
    }
    within(worker.ready()).await;
    // What the last cut put back stands before this one in the queue.
    let last = lab.ask("answer").await.message_id("result");
    while lab.result().await.1 != last {}
    worker.shutdown().await;
    assert!(lab.came_again("replayed") > 0, "no cut came between a result and its ack");
    assert!(METRICS.stale_settlements.get() > stale);
    lab.all_ran_once(40 * STEPS + 1).await;
}

#[tokio::test]
async fn the_oldest_answers_are_forgotten_beyond_the_limits() {
    type Limit = fn(&mut Config);
    let limits: [Limit; 2] =
        [|config| config.worker.ledger.max_entries = 2, |config| config.worker.ledger.max_bytes = 10_000];
    for limit in limits {
        let mut lab = Lab::open(Kind::Embedded).await;
        let mut config = lab.desk.config.clone();
        limit(&mut config);
        let worker = lab.worker(config, lab.steps()).await;
        let mut requests = Vec::new();
        for _ in 0..3 {
            // Two of these results fit 10,000 bytes, and three do not.
            let request = lab.request("answer", json!("x".repeat(2_000)));
            lab.desk.send(&request).await;
            lab.result().await;
            requests.push(request);
        }
        for (request, runs) in [(&requests[2], 1), (&requests[1], 1), (&requests[0], 2)] {
            lab.desk.send(request).await;
            lab.result().await;
            assert_eq!(lab.runs_of(request), runs);
        }
        worker.shutdown().await;
        lab.nothing_is_left().await;
    }
}

async fn a_killed_worker_answers_from_its_file_when_it_is_back(kind: Kind) {
    let mut lab = Lab::open(kind).await;
    let folder = tempfile::tempdir().unwrap();
    let (config, path) = with_file(&lab.desk.config, folder.path());
    let (handler, mut started, finish) = lab.slow_step();

    // One step whose result is known, and one that could tell nobody.
    let broker = lab.connect();
    let worker = lab.start(broker.clone(), config.clone(), handler.clone()).await;
    let known = lab.ask("slow").await;
    finish.add_permits(1);
    let first = lab.result().await;
    within(started.recv()).await;
    let unknown = lab.ask("slow").await;
    within(started.recv()).await;
    lab.stall();
    let before = size(&path);
    finish.add_permits(1);
    eventually("the answer is written", async || (size(&path) > before).then_some(())).await;
    lab.kill(worker, broker).await;

    let worker = lab.worker(config, handler).await;
    let (result, id) = lab.result().await;
    assert_eq!((result.step_uuid, id), (unknown.step_uuid, unknown.message_id("result")));
    lab.desk.send(&known).await;
    assert_eq!(lab.result().await, first);
    worker.shutdown().await;
    lab.all_ran_once(2).await;
}

#[tokio::test]
async fn a_torn_record_is_cut_off_and_the_others_stay() {
    let mut lab = Lab::open(Kind::Embedded).await;
    let folder = tempfile::tempdir().unwrap();
    let (config, path) = with_file(&lab.desk.config, folder.path());
    let worker = lab.worker(config.clone(), lab.steps()).await;
    let first_line = size(&path);
    let request = lab.ask("answer").await;
    let first = lab.result().await;
    worker.shutdown().await;

    let whole = std::fs::read(&path).unwrap();
    let record = &whole[first_line..];
    for torn in [5, 12, 40, record.len() - 1] {
        std::fs::write(&path, [&whole, &record[..torn]].concat()).unwrap();
        let worker = lab.worker(config.clone(), lab.steps()).await;
        assert_eq!(size(&path), whole.len());
        lab.desk.send(&request).await;
        assert_eq!(lab.result().await, first);
        worker.shutdown().await;
    }
    // Even the first line may have been cut off.
    std::fs::write(&path, &whole[..first_line - 3]).unwrap();
    let worker = lab.worker(config, lab.steps()).await;
    assert_eq!(size(&path), first_line);
    worker.shutdown().await;
    lab.all_ran_once(1).await;
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_refused_at_start() {
    let mut lab = Lab::open(Kind::Embedded).await;
    let folder = tempfile::tempdir().unwrap();
    let (config, path) = with_file(&lab.desk.config, folder.path());
    let worker = lab.worker(config.clone(), lab.steps()).await;
    let first_line = size(&path);
    lab.ask("answer").await;
    lab.result().await;
    let refused = async |config: &Config| {
        let worker = RustWorker::new(config.clone()).namespace(lab.steps()).broker(lab.connect());
        let Err(Error::Config(mistakes)) = worker.start().await else { panic!("the file is no good") };
        assert_eq!(mistakes.len(), 1);
        assert!(mistakes[0].starts_with("worker.ledger.path: "), "{mistakes:?}");
        mistakes[0].clone()
    };
    let in_use = refused(&config).await;
    assert!(in_use.ends_with("another worker uses it; give each worker a file of its own"), "{in_use}");
    worker.shutdown().await;

    let whole = std::fs::read(&path).unwrap();
    for damaged in [first_line, first_line + 6, first_line + 100, whole.len() - 1] {
        let mut content = whole.clone();
        content[damaged] ^= 1;
        std::fs::write(&path, &content).unwrap();
        let problem = refused(&config).await;
        assert!(problem.contains(&format!("the record at byte {first_line} is damaged; move")), "{problem}");
        assert_eq!(std::fs::read(&path).unwrap(), content, "nothing was changed");
    }
    std::fs::write(&path, "[worker]\n").unwrap();
    assert!(refused(&config).await.ends_with("it is no ledger; name another file"));
    let (missing, path) = with_file(&config, &folder.path().join("missing"));
    assert!(refused(&missing).await.contains(&format!("{} cannot be used: No such file", path.display())));
    lab.all_ran_once(1).await;
}

#[tokio::test]
async fn the_file_stays_within_twice_the_limits() {
    let mut lab = Lab::open(Kind::Embedded).await;
    let folder = tempfile::tempdir().unwrap();
    let (mut config, path) = with_file(&lab.desk.config, folder.path());
    config.worker.ledger.max_entries = 3;
    let worker = lab.worker(config.clone(), lab.steps()).await;
    let first_line = size(&path);
    let mut requests = Vec::new();
    let mut record = 0;
    for _ in 0..30 {
        requests.push(lab.ask("answer").await);
        lab.result().await;
        if requests.len() == 1 {
            record = size(&path) - first_line;
        }
        // Records differ by a few digits.
        assert!(size(&path) <= first_line + 6 * (record + 20), "{} bytes", size(&path));
    }
    worker.shutdown().await;
    let worker = lab.worker(config, lab.steps()).await;
    for (index, runs) in [(29, 1), (28, 1), (27, 1), (26, 2)] {
        lab.desk.send(&requests[index]).await;
        lab.result().await;
        assert_eq!(lab.runs_of(&requests[index]), runs, "step {index}");
    }
    worker.shutdown().await;
    lab.nothing_is_left().await;
}

#[tokio::test]
async fn a_file_that_cannot_be_written_harms_no_step_and_is_whole_again_once_it_can() {
    let mut lab = Lab::open(Kind::Embedded).await;
    let folder = tempfile::tempdir().unwrap();
    let (mut config, path) = with_file(&lab.desk.config, folder.path());
    config.worker.ledger.max_entries = 3;
    let worker = lab.worker(config.clone(), lab.steps()).await;
    std::fs::remove_dir_all(folder.path()).unwrap();
    let mut request = lab.ask("answer").await;
    lab.result().await;
    for _ in 0..30 {
        request = lab.ask("answer").await;
        lab.result().await;
    }
    lab.desk.send(&request).await;
    lab.result().await;

    std::fs::create_dir(folder.path()).unwrap();
    let mut asked = 31;
    while !path.exists() {
        request = lab.ask("answer").await;
        lab.result().await;
        asked += 1;
        // Further apart than the file is left alone, all in all, and not a thousand at once.
        tokio::task::yield_now().await;
    }
    worker.shutdown().await;
    // The next process knows what the last one kept.
    let worker = lab.worker(config, lab.steps()).await;
    lab.desk.send(&request).await;
    lab.result().await;
    worker.shutdown().await;
    lab.all_ran_once(asked).await;
}

fn with_file(config: &Config, folder: &Path) -> (Config, PathBuf) {
    let mut config = config.clone();
    let path = folder.join("ledger");
    config.worker.ledger.path = Some(path.clone());
    (config, path)
}

fn size(path: &Path) -> usize {
    usize::try_from(std::fs::metadata(path).unwrap().len()).unwrap()
}
