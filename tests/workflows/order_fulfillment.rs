use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use tasker_worker_rust::workflows::order_fulfillment::{
    GatewayRefusal, Inventory, Money, OrderContext, PaymentGateway, ProcessPayment, RefundPayment,
    ReleaseInventory, ReserveInventory, ShippingContext, namespace, ship_order, validate_order,
};
use tasker_worker_rust::{Step, StepResult};

use crate::{call, code, step, steps_of};

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
    call(&validate_order, step(context, &[])).await.unwrap()
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
        let reserved = step(context.clone(), &[order.clone()]);
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
            "shipment_id tracking_number shipping_status estimated_delivery shipping_cost carrier service_type \
             label_url processed_at",
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

#[tokio::test]
async fn an_order_that_cannot_be_right_is_refused_with_its_code() {
    let widget = |quantity: Value, price: Value| json!([{ "sku": "WIDGET-001", "quantity": quantity, "price": price }]);
    let cases = [
        (order_with("/customer", json!(null)), "MISSING_CUSTOMER_INFO"),
        (order_with("/customer/id", json!(null)), "MISSING_CUSTOMER_ID"),
        (order_with("/customer/id", json!("")), "MISSING_CUSTOMER_ID"),
        (order_with("/customer/email", json!(null)), "MISSING_CUSTOMER_EMAIL"),
        (order_with("/customer/email", json!(" ")), "MISSING_CUSTOMER_EMAIL"),
        (order_with("/items", json!(null)), "MISSING_ORDER_ITEMS"),
        (order_with("/items", json!("WIDGET-001")), "INVALID_ORDER_ITEMS"),
        (order_with("/items", json!([])), "EMPTY_ORDER_ITEMS"),
        (order_with("/items", json!(vec![rust_order()["items"][0].clone(); 51])), "MAX_ITEMS_EXCEEDED"),
        (order_with("/payment", json!({ "amount": 10_000.01 })), "MAX_VALUE_EXCEEDED"),
        (order_with("/payment", json!({ "amount": "0.00" })), "MIN_VALUE_NOT_MET"),
        (order_with("/items/1/sku", json!(null)), "INVALID_ORDER_ITEM"),
        (order_with("/items/1/quantity", json!(null)), "INVALID_ORDER_ITEM"),
        (order_with("/items/1/price", json!(null)), "INVALID_ORDER_ITEM"),
        (order_with("/items/1/price", json!("a lot")), "INVALID_ORDER_ITEM"),
        (order_with("/items/1/quantity", json!(0)), "INVALID_QUANTITY"),
        (order_with("/items/1/quantity", json!(-1)), "INVALID_QUANTITY"),
        (order_with("/items/1/quantity", json!(1u64 << 32)), "INVALID_QUANTITY"),
        (order_with("/items/1/price", json!(-0.01)), "INVALID_PRICE"),
        (order_with("/items/1/sku", json!("GIZMO-9")), "PRODUCT_NOT_FOUND"),
        (order_with("/items", widget(json!(1), json!("50000.01"))), "ORDER_TOTAL_TOO_HIGH"),
        (
            order_with("/items", widget(json!(4_000_000_000u32), json!("92233720368547758.07"))),
            "ORDER_TOTAL_TOO_HIGH",
        ),
    ];
    for (context, expected) in cases {
        let error = call(&validate_order, step(context.clone(), &[])).await.expect_err(expected);
        assert_eq!((error.error_code(), error.is_retryable()), (Some(expected), false), "{context}");
    }
}

#[tokio::test]
async fn the_limits_themselves_are_allowed() {
    let items = json!(vec![json!({ "product_id": "103", "quantity": 1, "price": 1_000 }); 50]);
    let mut order = order_with("/items", items);
    order["payment"]["amount"] = json!(10_000);
    assert_eq!(validated(order).await["order_total"], 50_000.0);
    let mut order = order_with("/items/0/price", json!(0));
    order["payment"]["amount"] = json!("0.01");
    assert_eq!(validated(order).await["order_total"], 149.99);
}

#[tokio::test]
async fn a_refused_item_is_named_by_its_index() {
    let context = order_with("/items/1/quantity", json!(0));
    let error = call(&validate_order, step(context, &[])).await.unwrap_err();
    assert_eq!(error.message(), "order item 1 has quantity 0; at least 1 is needed");
}

#[test]
fn an_amount_of_the_wrong_type_does_not_fit_the_handler() {
    for wrong in [json!("a lot"), json!(0.001), json!([])] {
        let context = order_with("/payment", json!({ "amount": wrong }));
        assert!(serde_json::from_value::<OrderContext>(context).is_err(), "{wrong}");
    }
}

proptest! {
    #[test]
    fn the_order_total_is_the_sum_of_its_lines_to_the_cent(
        lines in prop::collection::vec((0..200_000i64, 1..5u32, any::<bool>()), 1..=50),
    ) {
        let items: Vec<_> = lines
            .iter()
            .map(|(cents, quantity, as_text)| {
                let price = if *as_text { json!(Money::from_cents(*cents).to_string()) } else { json!(*cents as f64 / 100.0) };
                json!({ "product_id": 102, "quantity": quantity, "price": price })
            })
            .collect();
        let context = order_with("/items", json!(items));
        let cents: i64 = lines.iter().map(|(cents, quantity, _)| cents * i64::from(*quantity)).sum();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let result = runtime.block_on(validate_order(step(context, &[])));
        if cents > 50_000_00 {
            prop_assert_eq!(code(result), "ORDER_TOTAL_TOO_HIGH");
        } else {
            let text = serde_json::to_string(&result.unwrap()).unwrap();
            let total = format!("\"order_total\":{}.{:02},", cents / 100, cents % 100);
            prop_assert!(text.contains(&total), "{total} is not in {text}");
        }
    }
}

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

#[tokio::test]
async fn paying_needs_both_earlier_results_and_the_payment_details() {
    let shop = Shop::new(Inventory::finite());
    let order = ("validate_order", validated(rust_order()).await);
    let reserved = ("reserve_inventory", json!({}));
    let both = [order.clone(), reserved.clone()];
    for (context, earlier, expected) in [
        (rust_order(), &[reserved][..], "MISSING_VALIDATION_RESULTS"),
        (rust_order(), &[order][..], "MISSING_RESERVATION_RESULTS"),
        (order_with("/payment", json!(null)), &both[..], "MISSING_PAYMENT_INFO"),
        (order_with("/payment/method", json!(null)), &both[..], "MISSING_PAYMENT_METHOD"),
        (order_with("/payment/token", json!("")), &both[..], "MISSING_PAYMENT_TOKEN"),
    ] {
        let error = call(&shop.pay, step(context, earlier)).await.unwrap_err();
        assert_eq!((error.error_code(), error.is_retryable()), (Some(expected), false));
    }
    assert_eq!(shop.gateway.balance(), Money::ZERO);
}

#[tokio::test]
async fn every_refusal_of_the_gateway_has_its_code_and_its_delay() {
    let shop = Shop::new(Inventory::finite());
    let earlier = [("validate_order", validated(rust_order()).await), ("reserve_inventory", json!({}))];
    for (token, expected, retry_after, gateway_code) in [
        ("tok_declined", "PAYMENT_DECLINED", None, "card_declined"),
        ("tok_insufficient_funds", "PAYMENT_DECLINED", None, "insufficient_funds"),
        ("tok_invalid_card", "PAYMENT_DECLINED", None, "invalid_card"),
        ("tok_auth_failed", "PAYMENT_AUTH_FAILED", None, "authentication_failed"),
        ("tok_invalid_token", "PAYMENT_AUTH_FAILED", None, "invalid_token"),
        ("tok_rate_limited", "PAYMENT_RATE_LIMITED", Some(60), "rate_limited"),
        ("tok_unavailable", "PAYMENT_UNAVAILABLE", Some(30), "unavailable"),
    ] {
        let context = order_with("/payment/token", json!(token));
        let error = call(&shop.pay, step(context, &earlier)).await.unwrap_err();
        assert_eq!((error.error_code(), error.is_retryable()), (Some(expected), retry_after.is_some()));
        let mut same = error.clone().details(json!({ "gateway_code": gateway_code }));
        if let Some(seconds) = retry_after {
            same = same.retry_after(Duration::from_secs(seconds));
        }
        assert_eq!(error, same, "{token}");
    }
    assert_eq!(shop.gateway.balance(), Money::ZERO, "a refused charge takes no money");
}

#[tokio::test(start_paused = true)]
async fn a_step_that_runs_twice_even_at_the_same_time_charges_once() {
    let gateway = Arc::new(PaymentGateway::with_latency(Duration::from_millis(20)));
    let handler = ProcessPayment::new(gateway.clone());
    let earlier = [("validate_order", validated(rust_order()).await), ("reserve_inventory", json!({}))];
    let pay = step(rust_order(), &earlier);
    let (first, at_the_same_time) = tokio::join!(call(&handler, pay.clone()), call(&handler, pay.clone()));
    let first = first.unwrap();
    assert_eq!(first, at_the_same_time.unwrap());
    assert_eq!(first, call(&handler, pay.with_attempt(2)).await.unwrap());
    assert_eq!(gateway.balance(), Money::from_cents(209_97));

    let other = call(&handler, step(rust_order(), &earlier)).await.unwrap();
    assert_ne!(first["payment_id"], other["payment_id"]);
    assert_eq!(gateway.balance(), Money::from_cents(2 * 209_97));
}

#[tokio::test]
async fn a_step_has_the_same_payment_id_in_every_process() {
    let earlier = [("validate_order", validated(rust_order()).await), ("reserve_inventory", json!({}))];
    let pay = step(rust_order(), &earlier);
    let here = call(&Shop::new(Inventory::finite()).pay, pay.clone()).await.unwrap();
    let there = call(&Shop::new(Inventory::finite()).pay, pay.with_attempt(2)).await.unwrap();
    for id in ["payment_id", "transaction_id"] {
        assert_eq!(here[id], there[id]);
    }
}

#[tokio::test]
async fn refunding_twice_gives_the_money_back_once() {
    let shop = Shop::new(Inventory::finite());
    let [_, _, paid, _] = shop.fulfil(&rust_order()).await.unwrap();
    let payment_id = paid.1["payment_id"].clone();
    let refund: Step = step(json!({}), &[paid]);
    let first = call(&shop.refund, refund.clone()).await.unwrap();
    assert_eq!(first, call(&shop.refund, refund.with_attempt(2)).await.unwrap());
    assert_eq!(
        (&first["refunded"], &first["payment_id"], &first["amount_refunded"]),
        (&json!(true), &payment_id, &json!(209.97))
    );
    assert!(first["refund_id"].as_str().is_some_and(|id| id.starts_with("REF-")));
    assert_eq!(shop.gateway.balance(), Money::ZERO);
    assert_eq!(code(call(&shop.refund, step(json!({}), &[])).await), "MISSING_DEPENDENCY");
}

#[tokio::test(start_paused = true)]
async fn a_slow_gateway_reports_its_time_and_load() {
    for (latency_ms, load) in [(200, "normal"), (201, "high")] {
        let gateway = PaymentGateway::with_latency(Duration::from_millis(latency_ms));
        let charge =
            gateway.charge("TXN-1", "credit_card", "tok_visa", Money::from_cents(100)).await.unwrap();
        let charge = serde_json::to_value(charge).unwrap();
        assert_eq!(
            (&charge["processing_time_ms"], &charge["load_indicator"]),
            (&json!(latency_ms), &json!(load))
        );
        let refused = gateway.charge("TXN-2", "credit_card", "tok_declined", Money::from_cents(100)).await;
        assert_eq!(refused.unwrap_err(), GatewayRefusal::CardDeclined);
    }
}

#[tokio::test]
async fn shipping_needs_all_earlier_results_and_an_address() {
    let results = [
        ("validate_order", validated(rust_order()).await),
        ("reserve_inventory", json!({})),
        ("process_payment", json!({})),
    ];
    for (lacking, expected) in [
        (0, "MISSING_VALIDATION_RESULTS"),
        (1, "MISSING_RESERVATION_RESULTS"),
        (2, "MISSING_PAYMENT_RESULTS"),
    ] {
        let mut earlier = results.to_vec();
        earlier.remove(lacking);
        assert_eq!(code(ship(step(rust_order(), &earlier))), expected);
    }
    for (pointer, value, expected) in [
        ("/shipping", json!(null), "MISSING_SHIPPING_INFO"),
        ("/shipping/address", json!(null), "MISSING_SHIPPING_ADDRESS"),
        ("/shipping/address", json!(" "), "MISSING_SHIPPING_ADDRESS"),
        ("/shipping/address", json!({}), "MISSING_SHIPPING_ADDRESS"),
    ] {
        let error = ship(step(order_with(pointer, value), &results)).unwrap_err();
        assert_eq!((error.error_code(), error.is_retryable()), (Some(expected), false));
    }
}

#[tokio::test]
async fn the_shipping_method_chooses_carrier_price_and_the_same_parcel_on_every_run() {
    let results = [
        ("validate_order", validated(rust_order()).await),
        ("reserve_inventory", json!({})),
        ("process_payment", json!({})),
    ];
    for (method, service, cost, tracking) in [
        (json!("express"), "FedEx Express", 16.25, "1Z"),
        (json!("overnight"), "FedEx Overnight", 26.25, "1Z"),
        (json!("standard"), "UPS Ground", 10.24, "UPS"),
        (json!(null), "UPS Ground", 10.24, "UPS"),
    ] {
        let parcel = step(order_with("/shipping/method", method), &results);
        let shipped = ship(parcel.clone()).unwrap();
        assert_eq!((&shipped["service_type"], &shipped["shipping_cost"]), (&json!(service), &json!(cost)));
        assert!(shipped["tracking_number"].as_str().unwrap().starts_with(tracking));
        let again = ship(parcel.with_attempt(2)).unwrap();
        for id in ["shipment_id", "tracking_number", "label_url"] {
            assert_eq!(shipped[id], again[id]);
        }
        let delivery: jiff::civil::Date = shipped["estimated_delivery"].as_str().unwrap().parse().unwrap();
        assert!(delivery > jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date());
    }
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
