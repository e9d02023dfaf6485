//! A quorum queue of which RabbitMQ has the name and no longer the data, as a broker that is killed right after
//! declaring it can leave behind. Subscribing to it costs the connection, and it takes no messages.

use futures_util::{StreamExt, stream};
use serde_json::json;
use tasker_worker_rust::Config;
use tasker_worker_rust::broker::ConsumerState;
use uuid::Uuid;

use crate::node::Node;
use crate::support::{DEADLINE, Kind, eventually, settings};
use crate::system::System;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_lost_its_data_stops_no_other_namespace_and_is_mended_by_deleting_it() {
    let node = Node::start(tempfile::tempdir().unwrap(), &[]);
    let mut config = settings_for(&node);
    // A request that is sent while the queue is deleted and not declared yet is nobody's: it is asked for again.
    config.orchestrator.overdue_after_seconds = 1;
    let system = System::on(config).await;
    let queue = system.config.names().step_queue("linear_workflow");
    let member = format!("{{list_to_atom(\"%2F_{queue}\"), node()}}");
    node.ctl(&["eval", &format!("ra:force_delete_server(quorum_queues, {member}).")]);
    node.ctl(&["close_all_connections", "the test wants them to be opened again"]);

    let stuck = system.submit("linear_workflow", "mathematical_sequence", json!({"even_number": 6})).await;
    for number in [10, 12, 14] {
        let context = json!({"base_value": number});
        let done = system.run("diamond_workflow", "parallel_processing", context).await;
        assert_eq!(done.status, "complete");
    }
    eventually("the reason is told", async || match system.consumer("linear_workflow") {
        ConsumerState::Connecting(why) => why.contains("delete it").then_some(()),
        _ => None,
    })
    .await;
    assert_eq!(system.consumer("diamond_workflow"), ConsumerState::Consuming);
    assert!(!system.client.task(stuck).await.unwrap().is_finished());

    node.ctl(&["delete_queue", &queue]);
    system.declare().await;
    // Both sides try again every few seconds only: until somebody has looked at it, the queue stays as it is.
    let mended = system.client.wait(stuck, DEADLINE).await.unwrap();
    assert_eq!(mended.status, "complete");
    system.close().await;
}

/// As one without a leader, or without a majority: RabbitMQ takes messages for it, and says nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_does_not_answer_stops_no_other_namespace_and_goes_on_by_itself() {
    let node = Node::start(tempfile::tempdir().unwrap(), &[]);
    let mut config = settings_for(&node);
    config.broker.publish_timeout_ms = 2_000;
    config.broker.connect_timeout_ms = 1_000;
    let system = System::on(config).await;
    let queue = system.config.names().step_queue("linear_workflow");
    let server = format!("{{list_to_atom(\"%2F_{queue}\"), node()}}");
    node.ctl(&["eval", &format!("sys:suspend({server}).")]);
    node.ctl(&["close_all_connections", "the test wants them to be opened again"]);

    // More than RabbitMQ reads of a connection whose channel does not get on.
    let context = |number: u32| json!({"even_number": 6, "number": number});
    let submitting = (0..500).map(|n| system.submit("linear_workflow", "mathematical_sequence", context(n)));
    let stuck: Vec<Uuid> = stream::iter(submitting).buffer_unordered(16).collect().await;
    for number in [10, 12, 14] {
        let context = json!({"base_value": number});
        let done = system.run("diamond_workflow", "parallel_processing", context).await;
        assert_eq!(done.status, "complete");
    }
    assert!(!system.client.task(stuck[0]).await.unwrap().is_finished());

    node.ctl(&["eval", &format!("sys:resume({server}).")]);
    for task in stuck {
        assert_eq!(system.finished(task).await.status, "complete");
    }
    system.close().await;
}

fn settings_for(node: &Node) -> Config {
    let mut config = settings(Kind::Embedded);
    config.broker.urls = vec![node.url("guest", "guest").as_str().into()];
    config
}
