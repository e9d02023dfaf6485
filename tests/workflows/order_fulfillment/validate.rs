use proptest::prelude::*;
use serde_json::json;
use tasker_worker_rust::workflows::order_fulfillment::{Money, OrderContext, validate_order};

use super::{order_with, rust_order, validated};
use crate::{call, code, step};

#[tokio::test]
async fn an_order_that_cannot_be_right_is_refused_with_its_code() {
    let widget = |quantity: u32, price: &str| {
        let items = json!([{ "sku": "WIDGET-001", "quantity": quantity, "price": price }]);
        order_with("/items", items)
    };
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
        (widget(1, "50000.01"), "ORDER_TOTAL_TOO_HIGH"),
        (widget(4_000_000_000, "92233720368547758.07"), "ORDER_TOTAL_TOO_HIGH"),
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
                let text = Money::from_cents(*cents).to_string();
                let price = if *as_text { json!(text) } else { json!(*cents as f64 / 100.0) };
                json!({ "product_id": 102, "quantity": quantity, "price": price })
            })
            .collect();
        let context = order_with("/items", json!(items));
        let cents: i64 = lines.iter().map(|(cents, quantity, _)| cents * i64::from(*quantity)).sum();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let result = runtime.block_on(validate_order(step(context, &[])));
        if cents > 5_000_000 {
            prop_assert_eq!(code(result), "ORDER_TOTAL_TOO_HIGH");
        } else {
            let text = serde_json::to_string(&result.unwrap()).unwrap();
            let total = format!("\"order_total\":{}.{:02},", cents / 100, cents % 100);
            prop_assert!(text.contains(&total), "{total} is not in {text}");
        }
    }
}
