use std::time::Duration;

use serde_json::{Value, json};
use tasker_worker_rust::Step;
use tasker_worker_rust::workflows::order_fulfillment::Inventory;

use super::{Shop, order_with, rust_order, validated};
use crate::{call, code, step};

#[tokio::test]
async fn reserving_needs_a_validated_order_of_products_the_warehouse_keeps() {
    let shop = Shop::new(Inventory::finite());
    assert_eq!(code(call(&shop.reserve, step(json!({}), &[])).await), "MISSING_DEPENDENCY_RESULTS");

    let order = validated(rust_order()).await;
    let with = |pointer: &str, value: Value| {
        let mut order = order.clone();
        *order.pointer_mut(pointer).unwrap() = value;
        [("validate_order", order)]
    };
    let empty = with("/validated_items", json!([]));
    assert_eq!(code(call(&shop.reserve, step(json!({}), &empty)).await), "NO_VALIDATED_ITEMS");
    let unknown = with("/validated_items/1/sku", json!("GIZMO-9"));
    assert_eq!(code(call(&shop.reserve, step(json!({}), &unknown)).await), "PRODUCT_NOT_IN_INVENTORY");
    assert_eq!(shop.inventory.available("WIDGET-001"), 100);
}

#[tokio::test]
async fn a_step_that_runs_twice_reserves_once() {
    let shop = Shop::new(Inventory::finite());
    let order = [("validate_order", validated(rust_order()).await)];
    let reserve: Step = step(json!({}), &order);
    let first = call(&shop.reserve, reserve.clone()).await.unwrap();
    let again = call(&shop.reserve, reserve.with_attempt(2)).await.unwrap();
    assert_eq!(first, again);
    assert_eq!((shop.inventory.available("WIDGET-001"), shop.inventory.available("GADGET-002")), (98, 199));

    let other = call(&shop.reserve, step(json!({}), &order)).await.unwrap();
    assert_ne!(first["reservation_id"], other["reservation_id"]);
    assert_eq!(shop.inventory.available("WIDGET-001"), 96);
}

#[tokio::test]
async fn short_stock_is_worth_a_retry_which_succeeds_once_another_order_is_released() {
    let shop = Shop::new(Inventory::finite());
    let all = [("validate_order", validated(order_with("/items/0/quantity", json!(100))).await)];
    let reserved = call(&shop.reserve, step(json!({}), &all)).await.unwrap();

    let waiting: Step = step(json!({}), &[("validate_order", validated(rust_order()).await)]);
    let error = call(&shop.reserve, waiting.clone()).await.unwrap_err();
    assert_eq!((error.error_code(), error.is_retryable()), (Some("INSUFFICIENT_STOCK"), true));
    assert_eq!(error, error.clone().retry_after(Duration::from_secs(60)));
    assert_eq!(shop.inventory.available("GADGET-002"), 199, "an order is reserved as a whole or not at all");

    let release: Step = step(json!({}), &[("reserve_inventory", reserved)]);
    call(&shop.release, release).await.unwrap();
    call(&shop.reserve, waiting.with_attempt(2)).await.unwrap();
    assert_eq!(shop.inventory.available("WIDGET-001"), 98);
}

#[tokio::test]
async fn lines_of_the_same_product_are_taken_from_the_same_shelf() {
    let shop = Shop::new(Inventory::finite());
    let items = json!(vec![json!({ "sku": "WIDGET-002", "quantity": 30, "price": 1 }); 2]);
    let order = [("validate_order", validated(order_with("/items", items)).await)];
    assert_eq!(code(call(&shop.reserve, step(json!({}), &order)).await), "INSUFFICIENT_STOCK");
    assert_eq!(shop.inventory.available("WIDGET-002"), 50);
}

#[tokio::test]
async fn a_supplier_fills_the_shelves_for_any_number_of_orders_but_not_for_one_too_large() {
    let shop = Shop::new(Inventory::with_supplier());
    let order = [("validate_order", validated(rust_order()).await)];
    for _ in 0..500 {
        call(&shop.reserve, step(json!({}), &order)).await.unwrap();
    }
    let large = [("validate_order", validated(order_with("/items/0/quantity", json!(101))).await)];
    assert_eq!(code(call(&shop.reserve, step(json!({}), &large)).await), "INSUFFICIENT_STOCK");
}

#[tokio::test]
async fn releasing_twice_gives_the_stock_back_once() {
    let shop = Shop::new(Inventory::finite());
    let order = [("validate_order", validated(rust_order()).await)];
    let reserved = call(&shop.reserve, step(json!({}), &order)).await.unwrap();
    let kept = call(&shop.reserve, step(json!({}), &order)).await.unwrap();
    assert_ne!(reserved, kept);

    let expected =
        json!({ "released": true, "reservation_id": reserved["reservation_id"], "items_released": 2 });
    let release: Step = step(json!({}), &[("reserve_inventory", reserved)]);
    assert_eq!(call(&shop.release, release.clone()).await.unwrap(), expected);
    assert_eq!(call(&shop.release, release.clone().with_attempt(2)).await.unwrap(), expected);
    assert_eq!((shop.inventory.available("WIDGET-001"), shop.inventory.available("GADGET-002")), (98, 199));

    let elsewhere = Shop::new(Inventory::finite());
    assert_eq!(call(&elsewhere.release, release).await.unwrap(), expected, "reserved by another process");
    assert_eq!(elsewhere.inventory.available("WIDGET-001"), 100);
    assert_eq!(code(call(&shop.release, step(json!({}), &[])).await), "MISSING_DEPENDENCY");
}
