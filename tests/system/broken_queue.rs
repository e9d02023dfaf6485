//! A quorum queue of which RabbitMQ has the name and no longer the data, as a broker that is killed right after
//! declaring it can leave behind. Subscribing to it costs the connection, and it takes no messages.

use serde_json::json;
use tasker_worker_rust::broker::ConsumerState;

use crate::node::Node;
use crate::support::{DEADLINE, Kind, eventually, settings};
use crate::system::System;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_lost_its_data_stops_no_other_namespace_and_is_mended_by_deleting_it() {
    let node = Node::start(tempfile::tempdir().unwrap(), &[]);
    let mut config = settings(Kind::Embedded);
    config.broker.urls = vec![node.url("guest", "guest").as_str().into()];
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
