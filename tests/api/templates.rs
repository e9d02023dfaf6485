//! What tasks can be made from.

use serde_json::json;

use crate::server::Server;

#[tokio::test]
async fn templates_are_listed_with_their_namespaces() {
    let server = Server::start().await;
    let list = server.get("/v1/templates").await.json();
    assert_eq!(list["total_count"], 5);
    let namespaces = json!([
        {"name": "reports", "description": null, "template_count": 1},
        {"name": "shop", "description": null, "template_count": 4},
    ]);
    assert_eq!(list["namespaces"], namespaces);
    let wide = json!({
        "namespace": "shop", "name": "wide", "version": "1.0.0", "description": "the wide", "step_count": 3,
    });
    assert!(list["templates"].as_array().unwrap().contains(&wide), "{list}");

    let list = server.get("/v1/templates?namespace=reports").await.json();
    assert_eq!(list["total_count"], 1);
    assert_eq!(list["namespaces"].as_array().unwrap().len(), 1);
    assert_eq!(list["templates"][0]["name"], "daily");
    assert_eq!(server.get("/v1/templates?namespace=none").await.json()["total_count"], 0);
}

#[tokio::test]
async fn a_template_shows_its_steps_and_schema() {
    let server = Server::start().await;
    let template = server.get("/v1/templates/shop/order/1.10.0").await.json();
    assert_eq!(template["configuration"], json!({"input_schema": {"type": "object"}}));
    assert_eq!(template["version"], "1.10.0");
    let steps = template["steps"].as_array().unwrap();
    let reserve = json!({
        "name": "reserve", "description": null, "default_retryable": true, "default_max_attempts": 3,
        "handler": "shop::reserve", "dependencies": ["validate"],
    });
    assert_eq!(steps[1], reserve);
    assert_eq!(steps[3]["compensates"], "reserve");
    let without_schema = server.get("/v1/templates/shop/wide/1.0.0").await.json();
    assert_eq!(without_schema["configuration"], json!({}));
}

#[tokio::test]
async fn an_unknown_template_is_not_found() {
    let server = Server::start().await;
    let message = server.get("/v1/templates/shop/order/9.9.9").await.refusal(404, "NOT_FOUND");
    assert!(message.contains("it has 1.2.0, 1.9.0, 1.10.0"), "{message}");
    server.get("/v1/templates/nowhere/order/1.0.0").await.refusal(404, "NOT_FOUND");
}
