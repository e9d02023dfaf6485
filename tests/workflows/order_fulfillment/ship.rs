use serde_json::json;

use super::{order_with, rust_order, ship, validated};
use crate::{code, step};

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
