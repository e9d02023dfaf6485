//! The commands about dead letters.

use std::net::TcpListener;

use serde_json::Value;
use tasker_worker_rust::broker::topology::{Topology, dead_key};
use tasker_worker_rust::broker::{Disposition, Headers, Message, Properties, Source};
use tasker_worker_rust::message::{StepExecutionRequest, header};

use super::{Program, stderr, stdout};
use crate::support::{Kind, connect, delete, settings, within};
use crate::terminal::{on_a_terminal, too_wide};

#[test]
fn dead_letters_are_listed_explained_replayed_and_discarded_on_rabbitmq() {
    let config = settings(Kind::RabbitMq);
    let namespaces = ["linear_workflow"];
    let topology = Topology::new(&config.names(), &config.ladder(), config.broker.queue_kind, namespaces);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let step_uuid = uuid::Uuid::new_v4();
    let request = format!(
        r#"{{"task_uuid":"{}","step_uuid":"{step_uuid}","namespace":"linear_workflow",
            "step_name":"linear_step_1","attempt":3,"task_data":{{"even_number":123456789012345678901234567890}}}}"#,
        uuid::Uuid::new_v4()
    );
    runtime.block_on(async {
        let broker = connect(Kind::RabbitMq, &config).await;
        broker.declare(&topology).await.unwrap();
        let mut headers = Headers::default();
        headers.set(header::REASON, "retries_exhausted");
        headers.set(header::ERROR, "the gateway is busy");
        headers.set(header::ERROR_CODE, "GATEWAY_BUSY");
        headers.set(header::LAST_AT, "2026-01-01T00:00:00Z");
        for (message_id, body, headers) in
            [("letter-1", request.as_str(), headers), ("letter-2", "{no request", Headers::default())]
        {
            let properties =
                Properties { message_id: Some(message_id.into()), headers, ..Properties::default() };
            let message = Message {
                exchange: config.names().dead_letters(),
                routing_key: dead_key("linear_workflow", "test"),
                body: body.to_owned().into(),
                properties,
            };
            broker.publisher().publish(message).await.unwrap();
        }
        broker.close().await;
    });
    let program = Program::new().broker(&config);
    let run = |arguments: &[&str]| {
        let namespace = ["--namespace", "linear_workflow"];
        program.run(&[&["dead-letters"], arguments, &namespace, &["--output", "json"]].concat())
    };
    let answer = |arguments: &[&str], code: i32| -> Value {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}{}", stdout(&output), stderr(&output));
        serde_json::from_slice(&output.stdout).expect("the output is JSON and nothing else")
    };

    for _ in 0..2 {
        let listed = answer(&["list"], 0);
        assert_eq!(listed["letters"][0]["message_id"], "letter-1", "{listed}");
        assert_eq!(listed["letters"][1]["message_id"], "letter-2", "{listed}");
        let group = serde_json::json!({
            "namespace": "linear_workflow", "step": "linear_step_1", "reason": "retries_exhausted",
            "code": "GATEWAY_BUSY", "count": 1,
        });
        assert!(listed["summary"].as_array().unwrap().contains(&group), "{listed}");
    }
    assert_eq!(answer(&["list", "--older-than", "1d"], 0)["letters"].as_array().unwrap().len(), 1);
    assert_eq!(answer(&["list", "--newer-than", "1d"], 0)["letters"].as_array().unwrap().len(), 0);

    let namespace = ["--namespace", "linear_workflow"];
    let listed = program.run(&[&["dead-letters", "list", "--limit", "1"][..], &namespace].concat());
    let text = stdout(&listed);
    for expected in ["GATEWAY_BUSY", "2026-01-01T00:00:00Z", "letter-1", "1 of 2 are listed"] {
        assert!(text.contains(expected), "{expected} is missing in:\n{text}");
    }
    let variables: Vec<(&str, &str)> =
        program.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let narrow = on_a_terminal("dead-letters list --namespace linear_workflow", &variables);
    assert_eq!(too_wide(&narrow), [""; 0]);
    for expected in ["letter-1", "retries_exhausted", "no room for task", "--output json"] {
        assert!(narrow.contains(expected), "{expected} is missing in:\n{narrow}");
    }
    let shown = program.run(&[&["dead-letters", "show", &step_uuid.to_string()][..], &namespace].concat());
    let text = stdout(&shown);
    for expected in
        ["the gateway is busy", "\"even_number\": 123456789012345678901234567890", "tasker-last-at"]
    {
        assert!(text.contains(expected), "{expected} is missing in:\n{text}");
    }
    assert!(answer(&["show", "letter-2"], 0)[0]["error"]["message"].to_string().contains("not a request"));
    assert_eq!(run(&["show", "letter-9"]).status.code(), Some(1));

    // Nothing says which, nobody can be asked, and no orchestrator can be.
    assert_eq!(program.run(&["dead-letters", "replay"]).status.code(), Some(64));
    assert_eq!(run(&["discard", "letter-2"]).status.code(), Some(64));
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let unasked = run(&["replay", "letter-1", "--api-url", &format!("http://127.0.0.1:{port}")]);
    assert_eq!(unasked.status.code(), Some(69));
    assert!(stderr(&unasked).contains("--unchecked"), "{}", stderr(&unasked));

    let dry = answer(&["replay", "--unchecked", "--dry-run"], 1);
    assert_eq!(dry["counts"], serde_json::json!({"would be replayed": 1, "skipped": 1}), "{dry}");
    assert!(dry["letters"][1]["why"].as_str().unwrap().contains("only discarded"), "{dry}");
    let replayed = answer(&["replay", &step_uuid.to_string(), "--unchecked", "--rate", "100"], 0);
    assert_eq!(replayed["counts"], serde_json::json!({"replayed": 1}), "{replayed}");
    assert_eq!(answer(&["discard", "--dry-run"], 0)["counts"], serde_json::json!({"would be discarded": 1}));
    assert_eq!(answer(&["discard", "letter-2", "--yes"], 0)["counts"], serde_json::json!({"discarded": 1}));
    assert_eq!(answer(&["list"], 0)["letters"].as_array().unwrap().len(), 0);

    runtime.block_on(async {
        let broker = connect(Kind::RabbitMq, &config).await;
        let mut queue = broker.subscribe(Source::Queue(config.names().step_queue("linear_workflow")), 1);
        let delivery = within(queue.recv()).await.unwrap();
        let request = StepExecutionRequest::decode(&delivery.body).unwrap();
        assert_eq!((request.step_uuid, request.attempt), (step_uuid, 1));
        assert_eq!(request.task_data.get(), r#"{"even_number":123456789012345678901234567890}"#);
        let headers = &delivery.properties.headers;
        assert_eq!((headers.replays(), headers.text(header::REPLAYED_FROM)), (1, Some("letter-1")));
        delivery.acker.settle(Disposition::Ack).unwrap();
        broker.close().await;
        delete(&topology).await;
    });
}
