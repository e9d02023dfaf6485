//! Pausing namespaces: every worker stops taking their requests, which wait in their queues.
//!
//! A pause is a message in a queue of its own on the broker, so that it outlives workers, orchestrator and
//! whoever ordered it; a worker that starts looks there. Running workers are told through the control exchange.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;
use uuid::Uuid;

use crate::broker::topology::{Names, QueueKind, Topology};
use crate::broker::{
    Broker, BrokerError, ConsumerState, Disposition, Message, Properties, PublishError, Source,
};
use crate::message::{ControlMessage, encode};

/// Whether a namespace is paused.
///
/// # Errors
/// When the broker does not say.
pub async fn is_paused(broker: &dyn Broker, names: &Names, namespace: &str) -> Result<bool, BrokerError> {
    Ok(broker.depth(&names.paused_queue(namespace)).await?.is_some_and(|messages| messages > 0))
}

/// Pauses a namespace for every worker, those to come included. With `hand_back`, requests that were taken but
/// not begun go back to their queue. Steps that run are finished either way.
///
/// # Errors
/// When it is not certain that the pause holds.
pub async fn pause(
    broker: &dyn Broker,
    names: &Names,
    kind: QueueKind,
    namespace: &str,
    hand_back: bool,
) -> Result<(), BrokerError> {
    broker.declare(&Topology::of_pause(names, kind, namespace)).await?;
    let order = ControlMessage::PauseNamespace { namespace: namespace.to_owned(), hand_back };
    // Also where one is there already: a count is a moment old, and may tell of one just taken away.
    publish(broker, String::new(), names.paused_queue(namespace), &order).await.map_err(failed)?;
    tell(broker, names, &order).await
}

/// Ends the pause of a namespace.
///
/// # Errors
/// When it is not certain that the pause has ended.
pub async fn resume(
    broker: &dyn Broker,
    names: &Names,
    kind: QueueKind,
    namespace: &str,
) -> Result<(), BrokerError> {
    broker.declare(&Topology::of_pause(names, kind, namespace)).await?;
    let queue = names.paused_queue(namespace);
    let mut pauses = broker.subscribe(Source::Queue(queue.clone()), PAUSES);
    let mut state = pauses.state();
    loop {
        // Whoever may consume has had the queue's own answer. A count alone is 0, too, where it does not answer.
        let consuming = state.wait_for(|state| *state == ConsumerState::Consuming);
        match timeout(CONSUMING, consuming).await.map(|state| state.is_ok()) {
            Ok(true) => {}
            Ok(false) => return Err(BrokerError::Closed),
            Err(_) => return Err(silent(&queue, &state.borrow())),
        }
        match timeout(TAKING, pauses.recv()).await {
            // One that was cut off comes again.
            Ok(Some(pause)) => drop(pause.acker.settle(Disposition::Ack)),
            Ok(None) => return Err(BrokerError::Closed),
            Err(_) => {
                let throughout = state.has_changed().is_ok_and(|changed| !changed);
                if throughout && !is_paused(broker, names, namespace).await? {
                    break;
                }
            }
        }
    }
    tell(broker, names, &ControlMessage::ResumeNamespace { namespace: namespace.to_owned() }).await
}

/// How long a queue may take to answer.
const CONSUMING: Duration = Duration::from_secs(30);

/// How long the broker may take to hand out a pause. Longer than its count of them is old.
const TAKING: Duration = Duration::from_secs(1);

/// Pauses taken away at a time: nobody gives the order more often.
const PAUSES: u16 = 100;

async fn tell(broker: &dyn Broker, names: &Names, order: &ControlMessage) -> Result<(), BrokerError> {
    match publish(broker, names.control(), String::new(), order).await {
        // No worker is there to be told.
        Ok(()) | Err(PublishError::Unroutable { .. }) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

async fn publish(
    broker: &dyn Broker,
    exchange: String,
    routing_key: String,
    order: &ControlMessage,
) -> Result<(), PublishError> {
    let properties = Properties {
        message_id: Some(Uuid::new_v4().to_string()),
        kind: Some(order.kind().to_owned()),
        ..Properties::default()
    };
    let message = Message { exchange, routing_key, body: Bytes::from(encode(order)), properties };
    broker.publisher().publish(message).await
}

fn silent(queue: &str, state: &ConsumerState) -> BrokerError {
    let reason = state.reason().unwrap_or("it does not answer");
    BrokerError::Refused(format!("the pause may go on, give the order again; queue {queue}: {reason}"))
}

fn failed(error: PublishError) -> BrokerError {
    BrokerError::Refused(format!("the order was not sent for certain; give it again: {error}"))
}
