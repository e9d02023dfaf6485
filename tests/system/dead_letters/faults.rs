//! What a replay does when the broker fails it.

use std::time::Duration;

use tasker_worker_rust::broker::memory::MemoryBroker;
use tasker_worker_rust::broker::topology::{QueueKind, Topology, dead_key};
use tasker_worker_rust::broker::{Message, PublishError};
use tasker_worker_rust::retry::Ladder;

use super::*;

/// A broker with one parked request.
async fn with_a_letter() -> (Arc<MemoryBroker>, Arc<dyn Broker>, Names) {
    let (memory, names) = (MemoryBroker::new(), Names::default());
    let ladder = Ladder::new(Duration::from_millis(50), 2.0, 1);
    let topology = Topology::new(&names, &ladder, QueueKind::Quorum, [NAMESPACE]);
    memory.declare(&topology).await.unwrap();
    let ids = json!({"task_uuid": Uuid::new_v4(), "step_uuid": Uuid::new_v4()});
    let mut body = json!({"namespace": NAMESPACE, "step_name": "pay", "attempt": 2});
    body.as_object_mut().unwrap().extend(ids.as_object().unwrap().clone());
    let message = Message {
        exchange: names.dead_letters(),
        routing_key: dead_key(NAMESPACE, "test"),
        body: body.to_string().into(),
        properties: Default::default(),
    };
    memory.publisher().publish(message).await.unwrap();
    (memory.clone(), memory, names)
}

#[tokio::test]
async fn a_letter_whose_replay_is_not_confirmed_stays() {
    let (memory, broker, names) = with_a_letter().await;
    let steps = names.step_queue(NAMESPACE);
    memory.limit_queue(&steps, Some(0)).unwrap();
    let mut letter = taken(&broker, &names).await.remove(0);
    let refused = within(letter.replay(&broker.publisher(), &names)).await;
    assert_eq!(refused, Err(ReplayError::Publish(PublishError::Refused)));
    letter.release();
    parked(&broker, &names, 1).await;

    memory.limit_queue(&steps, None).unwrap();
    memory.lose_confirms(1);
    for expected in [None, Some(Replayed::Done)] {
        let mut letter = taken(&broker, &names).await.remove(0);
        assert_eq!(within(letter.replay(&broker.publisher(), &names)).await.ok(), expected);
        letter.release();
    }
    // The first one was published all the same: both are the same request.
    let mut requests = broker.subscribe(Source::Queue(steps), 2);
    let mut ids = Vec::new();
    for _ in 0..2 {
        let request = within(requests.recv()).await.unwrap();
        ids.push((request.properties.message_id.clone(), request.properties.headers.replays()));
        request.acker.settle(Disposition::Ack).unwrap();
    }
    assert_eq!(ids[0], ids[1]);
    parked(&broker, &names, 0).await;
}

#[tokio::test]
async fn a_letter_that_is_no_longer_held_is_not_replayed() {
    let (memory, broker, names) = with_a_letter().await;
    let mut letter = taken(&broker, &names).await.remove(0);
    memory.disconnect();
    assert_eq!(within(letter.replay(&broker.publisher(), &names)).await, Err(ReplayError::Lost));
    parked(&broker, &names, 1).await;
    assert_eq!(broker.depth(&names.step_queue(NAMESPACE)).await, Ok(Some(0)));
}
