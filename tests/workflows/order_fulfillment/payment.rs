use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tasker_worker_rust::Step;
use tasker_worker_rust::workflows::order_fulfillment::{
    GatewayRefusal, Inventory, Money, PaymentGateway, ProcessPayment,
};

use super::{Shop, order_with, rust_order, validated};
use crate::{call, code, step};

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
    assert_eq!(gateway.balance(), Money::from_cents(20_997));

    let other = call(&handler, step(rust_order(), &earlier)).await.unwrap();
    assert_ne!(first["payment_id"], other["payment_id"]);
    assert_eq!(gateway.balance(), Money::from_cents(2 * 20_997));
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
