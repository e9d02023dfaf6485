//! Whatever happens in whatever order, no message of the embedded broker vanishes, and none is acked twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::test_runner::Config;
use tasker_worker_rust::broker::memory::MemoryBroker;
use tasker_worker_rust::broker::topology::{Names, retry_key, step_key};
use tasker_worker_rust::broker::{Broker, Delivery, Disposition, Subscription};

use crate::support::*;

const CONSUMERS: usize = 3;
const DELIVERY_LIMIT: u32 = 3;

#[derive(Debug, Clone)]
enum Act {
    Publish,
    PublishRetry,
    PublishLosingTheConfirm,
    Receive { consumer: usize },
    Settle { held: usize, disposition: Disposition },
    DropHeld { held: usize },
    Cancel { consumer: usize },
    Replace { consumer: usize, prefetch: u16 },
    Disconnect,
    Down,
    Up,
    Wait { milliseconds: u64 },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let disposition = prop_oneof![
        4 => Just(Disposition::Ack),
        2 => Just(Disposition::Release),
        2 => Just(Disposition::Retry),
        1 => Just(Disposition::Reject),
    ];
    let act = prop_oneof![
        8 => Just(Act::Publish),
        3 => Just(Act::PublishRetry),
        1 => Just(Act::PublishLosingTheConfirm),
        12 => (0..CONSUMERS).prop_map(|consumer| Act::Receive { consumer }),
        8 => (any::<usize>(), disposition).prop_map(|(held, disposition)| Act::Settle { held, disposition }),
        1 => any::<usize>().prop_map(|held| Act::DropHeld { held }),
        1 => (0..CONSUMERS).prop_map(|consumer| Act::Cancel { consumer }),
        2 => (0..CONSUMERS, 1..5u16).prop_map(|(consumer, prefetch)| Act::Replace { consumer, prefetch }),
        1 => Just(Act::Disconnect),
        1 => Just(Act::Down),
        2 => Just(Act::Up),
        2 => (1..100u64).prop_map(|milliseconds| Act::Wait { milliseconds }),
    ];
    prop::collection::vec(act, 1..120)
}

struct World {
    broker: Arc<MemoryBroker>,
    names: Names,
    consumers: Vec<Subscription>,
    held: Vec<Delivery>,
    confirmed: BTreeSet<String>,
    uncertain: BTreeSet<String>,
    acked: BTreeMap<String, usize>,
    published: usize,
}

impl World {
    async fn new() -> Self {
        let (broker, names) = (MemoryBroker::new(), Names::default());
        let mut topology = topology(&names, &short_ladder());
        queue_named(&mut topology, &names.step_queue("orders")).delivery_limit = Some(DELIVERY_LIMIT);
        broker.declare(&topology).await.expect("nothing is there yet");
        let consumers = (0..CONSUMERS).map(|_| consume(&*broker, names.step_queue("orders"), 2)).collect();
        Self {
            broker,
            names,
            consumers,
            held: Vec::new(),
            confirmed: BTreeSet::new(),
            uncertain: BTreeSet::new(),
            acked: BTreeMap::new(),
            published: 0,
        }
    }

    async fn act(&mut self, act: Act) {
        match act {
            Act::Publish => self.publish(self.names.steps(), step_key("orders", "pay")).await,
            Act::PublishRetry => self.publish(self.names.retries(), retry_key("orders", ms(50))).await,
            Act::PublishLosingTheConfirm => {
                self.broker.lose_confirms(1);
                self.publish(self.names.steps(), step_key("orders", "pay")).await;
                self.broker.lose_confirms(0);
            }
            Act::Receive { consumer } => {
                // Time is paused: this takes none.
                if let Ok(Some(delivery)) = tokio::time::timeout(ms(1), self.consumers[consumer].recv()).await
                {
                    self.held.push(delivery);
                }
            }
            Act::Settle { held, disposition } => {
                if let Some(delivery) = self.take_held(held) {
                    let body = text(&delivery);
                    let settled = delivery.acker.settle(disposition);
                    if disposition == Disposition::Ack && settled.is_ok() {
                        *self.acked.entry(body).or_default() += 1;
                    }
                }
            }
            Act::DropHeld { held } => drop(self.take_held(held)),
            Act::Cancel { consumer } => self.consumers[consumer].cancel(),
            Act::Replace { consumer, prefetch } => {
                let queue = self.names.step_queue("orders");
                self.consumers[consumer] = consume(&*self.broker, queue, prefetch);
            }
            Act::Disconnect => self.broker.disconnect(),
            Act::Down => self.broker.set_down(Some("a test")),
            Act::Up => self.broker.set_down(None),
            Act::Wait { milliseconds } => tokio::time::sleep(ms(milliseconds)).await,
        }
    }

    fn take_held(&mut self, index: usize) -> Option<Delivery> {
        (!self.held.is_empty()).then(|| self.held.swap_remove(index % self.held.len()))
    }

    async fn publish(&mut self, exchange: String, key: String) {
        self.published += 1;
        let body = format!("message {}", self.published);
        match self.broker.publisher().publish(message(exchange, key, &body)).await {
            Ok(()) => self.confirmed.insert(body),
            Err(_) => self.uncertain.insert(body),
        };
    }

    /// Ends all consumers, waits for all retries, and counts what is left.
    async fn check(mut self) {
        self.broker.set_down(None);
        self.held.clear();
        self.consumers.clear();
        for delay in short_ladder().rungs() {
            depth_becomes(&*self.broker, &self.names.delay_queue(*delay), 0).await;
        }
        let mut copies = self.acked.clone();
        for queue in [self.names.step_queue("orders"), self.names.dead_letter_queue("orders")] {
            for body in drain(&*self.broker, &queue).await {
                *copies.entry(body).or_default() += 1;
            }
        }
        for (body, count) in &copies {
            assert_eq!(*count, 1, "{body} is there {count} times");
            assert!(self.confirmed.contains(body) || self.uncertain.contains(body), "{body} was never sent");
        }
        for body in &self.confirmed {
            assert!(copies.contains_key(body), "{body} was confirmed, and is gone");
        }
    }
}

/// Everything in a queue, acked.
async fn drain(broker: &dyn Broker, queue: &str) -> Vec<String> {
    publish(broker, message_to(queue, "the end")).await;
    let mut subscription = consume(broker, queue, 100);
    let mut bodies = Vec::new();
    loop {
        match next_body(&mut subscription).await {
            body if body == "the end" => return bodies,
            body => bodies.push(body),
        }
    }
}

proptest! {
    #![proptest_config(Config { failure_persistence: None, ..Config::default() })]

    #[test]
    fn every_confirmed_message_is_acked_once_or_still_there(acts in acts()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime starts").block_on(async {
            let mut world = World::new().await;
            for act in acts {
                world.act(act).await;
            }
            world.check().await;
        });
    }
}

/// The same from many threads: nothing deadlocks, and nothing is lost or acked twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_while_connections_break_under_load() {
    const PUBLISHERS: usize = 4;
    const MESSAGES: usize = 1_000;
    let (broker, names) = (MemoryBroker::new(), Names::default());
    declare(&*broker, &names).await;
    let acked = Arc::new(Mutex::new(BTreeMap::<String, usize>::new()));
    let quiet = Arc::new(AtomicBool::new(false));

    let publishers = (0..PUBLISHERS).map(|publisher| {
        let (broker, names) = (Arc::clone(&broker), names.clone());
        tokio::spawn(async move {
            let sent = (0..MESSAGES).map(|n| {
                let sent = message(names.steps(), "orders", &format!("{publisher}:{n}"));
                let publisher = broker.publisher();
                // Its own task's order does not matter; that it is answered does.
                async move { (n, publisher.publish(sent).await.is_ok()) }
            });
            let answers = join_all(sent).await;
            answers
                .into_iter()
                .filter(|(_, ok)| *ok)
                .map(|(n, _)| format!("{publisher}:{n}"))
                .collect::<Vec<_>>()
        })
    });
    let publishers: Vec<_> = publishers.collect();
    let consumers: Vec<_> = (0..3)
        .map(|consumer| {
            let (connection, names) = (broker.connect(), names.clone());
            let (acked, quiet) = (Arc::clone(&acked), Arc::clone(&quiet));
            tokio::spawn(async move {
                let mut requests = consume(&*connection, names.step_queue("orders"), 20);
                for n in 0usize.. {
                    let Ok(Some(delivery)) = tokio::time::timeout(ms(50), requests.recv()).await else {
                        if quiet.load(Ordering::Relaxed) {
                            return;
                        }
                        continue;
                    };
                    match (n + consumer) % 11 {
                        0 => drop(delivery),
                        1 => _ = delivery.acker.settle(Disposition::Release),
                        2 => requests = consume(&*connection, names.step_queue("orders"), 20),
                        _ => {
                            let body = text(&delivery);
                            let mut acked = acked.lock().expect("no test thread panics");
                            if delivery.acker.settle(Disposition::Ack).is_ok() {
                                *acked.entry(body).or_default() += 1;
                            }
                        }
                    }
                }
            })
        })
        .collect();

    let mut confirmed = Vec::new();
    let all_published = join_all(publishers);
    tokio::pin!(all_published);
    let mut cuts = tokio::time::interval(ms(2));
    let answers = within("all publishers", async {
        loop {
            tokio::select! {
                answers = &mut all_published => break answers,
                _ = cuts.tick() => broker.disconnect(),
            }
        }
    })
    .await;
    for answer in answers {
        confirmed.extend(answer.expect("no publisher panics"));
    }
    quiet.store(true, Ordering::Relaxed);
    for consumer in within("all consumers", join_all(consumers)).await {
        consumer.expect("no consumer panics");
    }

    let mut copies = acked.lock().expect("no test thread panics").clone();
    for queue in [names.step_queue("orders"), names.dead_letter_queue("orders")] {
        for body in drain(&*broker, &queue).await {
            *copies.entry(body).or_default() += 1;
        }
    }
    assert!(copies.values().all(|count| *count == 1), "acked or kept twice: {copies:?}");
    for body in confirmed {
        assert!(copies.contains_key(&body), "{body} was confirmed, and is gone");
    }
}
