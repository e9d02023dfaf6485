//! An order from validation to the parcel: `validate_order` → `reserve_inventory` → `process_payment` →
//! `ship_order`, and what undoes it when a later step fails for good: `refund_payment`, `release_inventory`.
//!
//! Warehouse and payment gateway are simulators inside the process. Like the real ones they are asked with
//! [`Step::idempotency_key`], so that a step that runs twice reserves and charges once. Every
//! process has its own, and what they remember ends with it; the ids they give follow from the key alone and
//! are the same everywhere.
//!
//! The payment token chooses what the gateway answers, see [`PaymentGateway::charge`].
//!
//! The context comes in two spellings: `customer`, `items`, `payment`, `shipping`, or `customer_info`,
//! `order_items`, `payment_info`, `shipping_info`. An item names its product by `sku` or `product_id`.

mod ledger;
mod money;
mod payment;
mod products;
mod reserve;
mod ship;
mod validate;

use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use self::money::{Money, NotMoney};
pub use self::payment::{
    Charge, GatewayRefusal, Payment, PaymentContext, PaymentGateway, ProcessPayment, Refund, RefundPayment,
};
pub use self::reserve::{Inventory, Release, ReleaseInventory, Reservation, ReserveInventory};
pub use self::ship::{Shipment, ShippingContext, ship_order};
pub use self::validate::{OrderContext, ValidatedOrder, validate_order};
use crate::{Namespace, Step, StepError, StepResult};

/// The namespace `order_fulfillment`, with a gateway of its own, and a warehouse whose supplier keeps it
/// stocked.
pub fn namespace() -> Namespace {
    namespace_with(Arc::new(Inventory::with_supplier()), Arc::new(PaymentGateway::default()))
}

/// The namespace `order_fulfillment`, with this warehouse and this gateway.
pub fn namespace_with(inventory: Arc<Inventory>, gateway: Arc<PaymentGateway>) -> Namespace {
    Namespace::new("order_fulfillment")
        .step("validate_order", validate_order)
        .step("reserve_inventory", ReserveInventory::new(inventory.clone()))
        .step("release_inventory", ReleaseInventory::new(inventory))
        .step("process_payment", ProcessPayment::new(gateway.clone()))
        .step("refund_payment", RefundPayment::new(gateway))
        .blocking_step("ship_order", ship_order)
}

/// An id as callers write them: a number or text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Id {
    Number(i64),
    Text(String),
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// Drops text that says nothing, so that `""` counts as missing.
fn present(text: Option<&String>) -> Option<&str> {
    text.map(|text| text.trim()).filter(|text| !text.is_empty())
}

/// Something the step cannot do without, in this workflow's own words and code.
fn missing(what: &str, code: &str) -> StepError {
    StepError::permanent(format_args!("{what} is missing")).code(code)
}

/// What an earlier step returned; without it, a permanent error with `code`.
fn earlier<T: DeserializeOwned, C>(step: &Step<C>, name: &str, code: &str) -> StepResult<T> {
    step.find_result_of(name)?.ok_or_else(|| missing(&format!("the result of step {name:?}"), code))
}

/// The id of what this step brings about: the same however often the step runs.
fn own_id<C>(prefix: &str, step: &Step<C>) -> String {
    format!("{prefix}-{}", step.idempotency_key().replace('-', "").to_uppercase())
}
