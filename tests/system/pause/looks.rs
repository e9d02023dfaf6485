//! What a worker learns by looking, where the broker does not show everything.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::json;
use tasker_worker_rust::broker::topology::Topology;
use tasker_worker_rust::broker::{
    BoxFuture, Broker, BrokerError, BrokerStatus, ConsumerState, Publisher, Source, Subscription,
};
use tasker_worker_rust::pause::{is_paused, resume};
use tasker_worker_rust::{Namespace, RunningWorker, RustWorker};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{Gate, end, order, shown, shows, waiting};
use crate::support::{Desk, Kind, NAMESPACE, eventually, settings, within};

/// A broker with so much to do that some looks at a queue show what was, and some consumers hear nothing.
#[derive(Debug)]
struct Busy {
    broker: Arc<dyn Broker>,
    looks: AtomicU32,
    /// The looks that show `paused`, however it is.
    wrong: Range<u32>,
    paused: bool,
    /// How long it takes to show that.
    takes: Duration,
    silent: fn(&Source) -> bool,
}

impl Busy {
    fn new(desk: &Desk) -> Self {
        let looks = AtomicU32::new(0);
        Self {
            broker: desk.broker.clone(),
            looks,
            wrong: 0..0,
            paused: false,
            takes: Duration::ZERO,
            silent: |_| false,
        }
    }

    fn shows(self, paused: bool, wrong: Range<u32>) -> Arc<Self> {
        Arc::new(Self { wrong, paused, ..self })
    }

    async fn worker(self: &Arc<Self>, desk: &Desk, namespaces: &[Namespace]) -> RunningWorker {
        let worker = RustWorker::new(desk.config.clone()).broker(self.clone());
        let worker = namespaces.iter().cloned().fold(worker, RustWorker::namespace);
        worker.start().await.expect("the settings are right")
    }

    async fn looked_at(&self, times: u32) {
        let looked = async || (self.looks.load(Ordering::Relaxed) >= times).then_some(());
        eventually("the worker looks", looked).await;
    }
}

impl Broker for Busy {
    fn publisher(&self) -> Publisher {
        self.broker.publisher()
    }

    fn subscribe(&self, source: Source, prefetch: u16) -> Subscription {
        if (self.silent)(&source) {
            let (sender, deliveries) = mpsc::unbounded_channel();
            let (shown, state) = watch::channel(ConsumerState::Connecting("starting".to_owned()));
            tokio::spawn(async move { (shown.closed().await, sender) });
            return Subscription::new(deliveries, state, CancellationToken::new());
        }
        self.broker.subscribe(source, prefetch)
    }

    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.broker.declare(topology)
    }

    fn verify<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<Vec<String>, BrokerError>> {
        self.broker.verify(topology)
    }

    fn depth<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<Option<u64>, BrokerError>> {
        if queue.contains("paused") && self.wrong.contains(&self.looks.fetch_add(1, Ordering::Relaxed)) {
            return Box::pin(async {
                sleep(self.takes).await;
                Ok(Some(u64::from(self.paused)))
            });
        }
        self.broker.depth(queue)
    }

    fn status(&self) -> watch::Receiver<BrokerStatus> {
        self.broker.status()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.broker.close()
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_a_worker_neither_heard_nor_saw_when_it_started_is_found_a_little_later() {
    let desk = Desk::open(Kind::Embedded).await;
    order(&desk, NAMESPACE, false).await;
    let broker = Busy::new(&desk).shows(false, 0..2);
    let (gate, _) = Gate::new();
    let worker = broker.worker(&desk, &[gate.namespace(NAMESPACE)]).await;
    shows(&worker, NAMESPACE, "paused").await;
    assert_eq!(broker.looks.load(Ordering::Relaxed), 3);
    worker.shutdown().await;
    desk.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_is_found_whenever_the_broker_shows_it() {
    let desk = Desk::open(Kind::Embedded).await;
    order(&desk, NAMESPACE, false).await;
    let broker = Busy::new(&desk).shows(false, 0..5);
    let (gate, _) = Gate::new();
    let worker = broker.worker(&desk, &[gate.namespace(NAMESPACE)]).await;
    broker.looked_at(5).await;
    shows(&worker, NAMESPACE, "paused").await;
    assert_eq!(broker.looks.load(Ordering::Relaxed), 6);
    worker.shutdown().await;
    desk.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_order_for_one_namespace_keeps_no_pause_of_another_from_being_found() {
    let desk = Desk::open_with(settings(Kind::Embedded), Kind::Embedded, &[NAMESPACE, "reports"]).await;
    order(&desk, "reports", false).await;
    let broker = Busy::new(&desk).shows(false, 0..2);
    let (gate, _) = Gate::new();
    let worker = broker.worker(&desk, &[gate.namespace(NAMESPACE), gate.namespace("reports")]).await;
    within(worker.ready()).await;
    let started = Instant::now();
    order(&desk, NAMESPACE, false).await;
    shows(&worker, NAMESPACE, "paused").await;
    shows(&worker, "reports", "paused").await;
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    worker.shutdown().await;
    desk.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_a_busy_broker_does_not_show_for_a_while_goes_on() {
    let desk = Desk::open(Kind::Embedded).await;
    order(&desk, NAMESPACE, false).await;
    desk.ask("wait", json!({})).await;
    let broker = Busy::new(&desk).shows(false, 1..3);
    let (gate, mut has_begun) = Gate::new();
    let worker = broker.worker(&desk, &[gate.namespace(NAMESPACE)]).await;
    broker.looked_at(4).await;
    shows(&worker, NAMESPACE, "paused").await;
    waiting(&desk, NAMESPACE, 1).await;
    assert!(has_begun.try_recv().is_err(), "nothing begins while it is paused");
    worker.shutdown().await;
    desk.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_end_that_a_worker_did_not_hear_of_is_found_at_last() {
    let desk = Desk::open(Kind::Embedded).await;
    order(&desk, NAMESPACE, false).await;
    // The first look shows the pause; then it is taken away in silence.
    let broker = Busy::new(&desk).shows(false, 1..u32::MAX);
    let (gate, _) = Gate::new();
    let worker = broker.worker(&desk, &[gate.namespace(NAMESPACE)]).await;
    shows(&worker, NAMESPACE, "paused").await;
    shows(&worker, NAMESPACE, "consuming").await;
    assert_eq!(broker.looks.load(Ordering::Relaxed), 4);
    worker.shutdown().await;
    desk.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_look_shows_just_after_an_order_was_heard_does_not_count() {
    let desk = Desk::open(Kind::Embedded).await;
    // A look after half a second, and one after five, both from before the end.
    let broker = Busy::new(&desk).shows(true, 1..3);
    let (gate, _) = Gate::new();
    let worker = broker.worker(&desk, &[gate.namespace(NAMESPACE)]).await;
    within(worker.ready()).await;
    order(&desk, NAMESPACE, false).await;
    shows(&worker, NAMESPACE, "paused").await;
    end(&desk, NAMESPACE).await;
    shows(&worker, NAMESPACE, "consuming").await;
    broker.looked_at(4).await;
    assert_eq!(shown(&worker, NAMESPACE), "consuming");
    worker.shutdown().await;
    desk.close().await;
}

#[tokio::test(start_paused = true)]
async fn no_step_begins_before_orders_about_it_can_be_heard_but_for_a_broker_that_tells_of_none() {
    let mut desk = Desk::open(Kind::Embedded).await;
    desk.ask("wait", json!({})).await;
    let deaf: fn(&Source) -> bool = |source| matches!(source, Source::Broadcast(_));
    let broker = Arc::new(Busy { silent: deaf, ..Busy::new(&desk) });
    let (gate, mut has_begun) = Gate::new();
    let started = Instant::now();
    let worker = broker.worker(&desk, &[gate.namespace(NAMESPACE)]).await;
    within(has_begun.recv()).await.expect("it works all the same");
    let waited = started.elapsed();
    assert!(waited >= Duration::from_secs(5) && waited < Duration::from_secs(6), "{waited:?}");
    gate.may_end.add_permits(1);
    assert!(desk.next_result().await.success);
    worker.shutdown().await;
    desk.close().await;
}

#[tokio::test(start_paused = true)]
async fn orders_count_while_a_look_takes_long_and_what_it_shows_at_last_does_not() {
    let desk = Desk::open(Kind::Embedded).await;
    let broker = Busy { takes: Duration::from_secs(20), ..Busy::new(&desk) }.shows(true, 1..2);
    let (gate, _) = Gate::new();
    let worker = broker.worker(&desk, &[gate.namespace(NAMESPACE)]).await;
    broker.looked_at(2).await;
    let asked = Instant::now();
    order(&desk, NAMESPACE, false).await;
    shows(&worker, NAMESPACE, "paused").await;
    end(&desk, NAMESPACE).await;
    shows(&worker, NAMESPACE, "consuming").await;
    assert!(asked.elapsed() < broker.takes, "{:?}", asked.elapsed());
    broker.looked_at(3).await;
    assert_eq!(shown(&worker, NAMESPACE), "consuming");
    worker.shutdown().await;
    desk.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_is_not_said_to_have_ended_while_its_queue_does_not_answer() {
    let desk = Desk::open(Kind::Embedded).await;
    order(&desk, NAMESPACE, false).await;
    let broker = Busy { silent: |source| matches!(source, Source::Queue(_)), ..Busy::new(&desk) }
        .shows(false, 0..u32::MAX);
    let refused = resume(&*broker, &desk.names, desk.config.broker.queue_kind, NAMESPACE).await;
    let refused = refused.expect_err("nobody can know").to_string();
    assert!(refused.contains("give the order again") && refused.contains("starting"), "{refused}");
    assert_eq!(is_paused(&*desk.broker, &desk.names, NAMESPACE).await, Ok(true));
    desk.close().await;
}
