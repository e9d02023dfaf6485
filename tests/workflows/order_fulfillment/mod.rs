mod payment;
mod reserve;
mod ship;
mod validate;

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};
use tasker_worker_rust::workflows::order_fulfillment::{
    Inventory, PaymentGateway, ProcessPayment, RefundPayment, ReleaseInventory, ReserveInventory,
    ShippingContext, namespace, ship_order, validate_order,
};
use tasker_worker_rust::{Step, StepResult};

use crate::{call, step, steps_of};

fn rust_order() -> Value {
    json!({
        "customer": { "id": "CUST-1", "name": "Ada", "email": "ada@example.com" },
        "items": [
            { "sku": "WIDGET-001", "quantity": 2, "price": 29.99 },
            { "sku": "GADGET-002", "quantity": 1, "price": "149.99" },
        ],
        "payment": { "method": "credit_card", "token": "tok_visa" },
        "shipping": { "method": "standard", "address": { "street": "1 Main St", "city": "Springfield" } },
    })
}

fn ruby_order() -> Value {
    json!({
        "customer_info": { "id": 12345, "email": "ada@example.com", "tier": "premium" },
        "order_items": [
            { "product_id": 101, "quantity": 2, "price": 29.99 },
            { "product_id": 102, "quantity": 1, "price": 149.99 },
        ],
        "payment_info": { "method": "credit_card", "token": "tok_visa", "amount": 209.97 },
        "shipping_info": { "method": "express", "address": "1 Main St, Springfield" },
    })
}

/// The sample order with one value replaced; `null` stands for a missing one.
fn order_with(pointer: &str, value: Value) -> Value {
    let mut order = rust_order();
    *order.pointer_mut(pointer).expect("the sample order has the field") = value;
    order
}

async fn validated(context: Value) -> Value {
    call(&validate_order, step(context, &[])).await.expect("the sample is valid")
}

fn ship(step: Step<ShippingContext>) -> StepResult<Value> {
    Ok(serde_json::from_str(&serde_json::to_string(&ship_order(step)?)?)?)
}

/// One warehouse, one gateway, and the handlers that use them.
struct Shop {
    inventory: Arc<Inventory>,
    gateway: Arc<PaymentGateway>,
    reserve: ReserveInventory,
    release: ReleaseInventory,
    pay: ProcessPayment,
    refund: RefundPayment,
}

impl Shop {
    fn new(inventory: Inventory) -> Self {
        let (inventory, gateway) = (Arc::new(inventory), Arc::new(PaymentGateway::default()));
        Self {
            reserve: ReserveInventory::new(inventory.clone()),
            release: ReleaseInventory::new(inventory.clone()),
            pay: ProcessPayment::new(gateway.clone()),
            refund: RefundPayment::new(gateway.clone()),
            inventory,
            gateway,
        }
    }

    /// The results of all four steps, by step name.
    async fn fulfil(&self, context: &Value) -> StepResult<[(&'static str, Value); 4]> {
        let order = ("validate_order", call(&validate_order, step(context.clone(), &[])).await?);
        let reserved = step(context.clone(), std::slice::from_ref(&order));
        let reserved = ("reserve_inventory", call(&self.reserve, reserved).await?);
        let paid = step(context.clone(), &[order.clone(), reserved.clone()]);
        let paid = ("process_payment", call(&self.pay, paid).await?);
        let earlier = [order.clone(), reserved.clone(), paid.clone()];
        let shipped = ("ship_order", ship(step(context.clone(), &earlier))?);
        Ok([order, reserved, paid, shipped])
    }
}

fn fields(value: &Value) -> BTreeSet<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[tokio::test]
async fn the_ruby_sample_comes_to_209_97_with_a_fee_of_6_09_and_16_25_for_shipping() {
    let [(_, order), (_, reserved), (_, paid), (_, shipped)] =
        Shop::new(Inventory::finite()).fulfil(&ruby_order()).await.unwrap();
    assert_eq!(order["customer_id"], 12345);
    assert_eq!(order["order_total"], 209.97);
    assert_eq!(order["validated_items"][0]["line_total"], 59.98);
    assert_eq!(order["validated_items"][1]["product_name"], "Deluxe Widget B");
    assert_eq!(order["validated_items"][1]["available_stock"], 50);
    assert_eq!(reserved["items_reserved"], 2);
    assert_eq!(reserved["total_reserved_value"], 209.97);
    assert_eq!(reserved["reservation_details"][1]["stock_location"], "WH-WEST-B2");
    assert_eq!(paid["amount_charged"], 209.97);
    assert_eq!(paid["gateway_response"]["gateway_fee"], 6.09);
    assert_eq!(paid["gateway_response"]["currency"], "USD");
    assert_eq!(shipped["shipping_cost"], 16.25);
    assert_eq!((&shipped["carrier"], &shipped["service_type"]), (&json!("FedEx"), &json!("FedEx Express")));
    assert!(shipped["tracking_number"].as_str().unwrap().starts_with("1Z"));
}

#[tokio::test]
async fn the_rust_sample_comes_to_209_97_with_10_24_for_shipping() {
    let [(_, order), (_, reserved), (_, paid), (_, shipped)] =
        Shop::new(Inventory::finite()).fulfil(&rust_order()).await.unwrap();
    assert_eq!(order["customer_id"], "CUST-1");
    assert_eq!(order["order_total"], 209.97);
    assert_eq!(order["validated_items"][1]["product_id"], 103);
    assert_eq!(order["validated_items"][1]["sku"], "GADGET-002");
    assert_eq!(reserved["reservation_details"][0]["stock_location"], "WH-EAST-A1");
    assert_eq!(paid["payment_method_used"], "credit_card");
    assert_eq!(shipped["shipping_cost"], 10.24);
    assert_eq!((&shipped["carrier"], &shipped["service_type"]), (&json!("UPS"), &json!("UPS Ground")));
    let (shipment, label) =
        (shipped["shipment_id"].as_str().unwrap(), shipped["label_url"].as_str().unwrap());
    assert_eq!(label, format!("https://labels.ups.com/{shipment}.pdf"));
}

#[tokio::test]
async fn every_step_returns_the_documented_fields() {
    let results = Shop::new(Inventory::finite()).fulfil(&rust_order()).await.unwrap();
    let [(_, order), (_, reserved), (_, paid), (_, shipped)] = &results;
    for (value, expected) in [
        (order, "customer_validated customer_id validated_items order_total validation_status validated_at"),
        (
            &order["validated_items"][0],
            "product_id sku product_name quantity unit_price line_total available_stock category",
        ),
        (
            reserved,
            "reservation_id items_reserved reservation_status total_reserved_value expires_at reserved_at \
             reservation_details",
        ),
        (
            &reserved["reservation_details"][0],
            "product_id sku product_name quantity_requested quantity_reserved unit_price line_total \
             stock_location reservation_reference",
        ),
        (
            paid,
            "payment_processed payment_id transaction_id amount_charged payment_method_used gateway_response \
             processed_at payment_status",
        ),
        (
            &paid["gateway_response"],
            "status transaction_id amount currency payment_method_type reference gateway_fee processed_at \
             processing_time_ms load_indicator",
        ),
        (
            shipped,
            "shipment_id tracking_number shipping_status estimated_delivery shipping_cost carrier \
             service_type label_url processed_at",
        ),
    ] {
        assert_eq!(fields(value), expected.split(' ').collect());
    }
    for (value, expected) in [
        (&order["validation_status"], "complete"),
        (&reserved["reservation_status"], "confirmed"),
        (&paid["payment_status"], "completed"),
        (&paid["gateway_response"]["status"], "succeeded"),
        (&shipped["shipping_status"], "label_created"),
    ] {
        assert_eq!(value, expected);
    }
    let time = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let valid_for = time(&reserved["expires_at"]).duration_since(time(&reserved["reserved_at"]));
    assert_eq!(valid_for, jiff::SignedDuration::from_mins(15));
}

#[test]
fn the_namespace_has_the_four_steps_and_what_undoes_them() {
    assert_eq!(
        steps_of(namespace()),
        [
            "process_payment",
            "refund_payment",
            "release_inventory",
            "reserve_inventory",
            "ship_order",
            "validate_order",
        ]
    );
}
