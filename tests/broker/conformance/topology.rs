//! Declaring, verifying, counting.

use std::sync::Arc;

use tasker_worker_rust::broker::topology::{ExchangeKind, Names};
use tasker_worker_rust::broker::{Broker, BrokerError};

use crate::support::*;

pub(crate) async fn declaring_twice_changes_nothing(broker: Arc<dyn Broker>, names: Names) {
    declare(&*broker, &names).await;
    publish(&*broker, message(names.steps(), "orders", "kept")).await;
    let again = topology(&names, &short_ladder());
    within("declaring", broker.declare(&again)).await.expect("everything is as declared");
    holds_exactly(&*broker, &names.step_queue("orders"), &["kept"]).await;
}

pub(crate) async fn a_queue_with_other_arguments_is_refused_by_name(broker: Arc<dyn Broker>, names: Names) {
    declare(&*broker, &names).await;
    let mut other = topology(&names, &short_ladder());
    let name = names.delay_queue(ms(50));
    queue_named(&mut other, &name).message_ttl = Some(ms(51));
    let refused = within("an answer", broker.declare(&other)).await;
    assert!(matches!(&refused, Err(BrokerError::Refused(why)) if why.contains(&name)), "{refused:?}");

    // And nobody else is harmed by it.
    publish(&*broker, message(names.steps(), "orders", "kept")).await;
    holds_exactly(&*broker, &names.step_queue("orders"), &["kept"]).await;
}

pub(crate) async fn an_exchange_with_other_arguments_is_refused_by_name(
    broker: Arc<dyn Broker>,
    names: Names,
) {
    declare(&*broker, &names).await;
    let mut other = topology(&names, &short_ladder());
    let exchange = other.exchanges.iter_mut().find(|e| e.name == names.results()).expect("it is there");
    exchange.kind = ExchangeKind::Fanout;
    let refused = within("an answer", broker.declare(&other)).await;
    assert!(
        matches!(&refused, Err(BrokerError::Refused(why)) if why.contains(&names.results())),
        "{refused:?}"
    );
}

pub(crate) async fn verify_names_what_is_missing_and_creates_nothing(broker: Arc<dyn Broker>, names: Names) {
    let wanted = topology(&names, &short_ladder());
    for _ in 0..2 {
        let missing = within("an answer", broker.verify(&wanted)).await.expect("the broker answers");
        assert_eq!(missing.len(), wanted.queues.len() + wanted.exchanges.len(), "{missing:?}");
        for name in wanted.queues.iter().map(|q| &q.name).chain(wanted.exchanges.iter().map(|e| &e.name)) {
            assert!(missing.iter().any(|entity| entity.contains(name)), "{name} in {missing:?}");
        }
    }
    let mut partial = wanted.clone();
    let left_out = partial.queues.pop().expect("there are queues").name;
    partial.bindings.retain(|binding| binding.queue != left_out);
    broker.declare(&partial).await.expect("nothing is there yet");
    let missing = within("an answer", broker.verify(&wanted)).await.expect("the broker answers");
    assert!(missing.len() == 1 && missing[0].contains(&left_out), "{missing:?}");

    broker.declare(&wanted).await.expect("the rest fits");
    assert_eq!(within("an answer", broker.verify(&wanted)).await, Ok(Vec::new()));
}

pub(crate) async fn depth_counts_what_waits(broker: Arc<dyn Broker>, names: Names) {
    declare(&*broker, &names).await;
    let queue = names.step_queue("orders");
    assert_eq!(broker.depth(&names.step_queue("nobody")).await, Ok(None));
    depth_becomes(&*broker, &queue, 0).await;
    for n in 0..5 {
        publish(&*broker, message(names.steps(), "orders", &n.to_string())).await;
    }
    depth_becomes(&*broker, &queue, 5).await;
    let mut subscription = consume(&*broker, &queue, 2);
    let held = next(&mut subscription).await;
    depth_becomes(&*broker, &queue, 3).await;
    drop(held);
    drop(subscription);
    depth_becomes(&*broker, &queue, 5).await;
}
