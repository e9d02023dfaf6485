use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Id, Money, missing, present, products};
use crate::{Step, StepError, StepResult};

const MAX_ITEMS: usize = 50;
const MAX_ORDER_TOTAL: Money = Money::from_cents(50_000 * 100);
const MAX_PAYMENT: Money = Money::from_cents(10_000 * 100);
const MIN_PAYMENT: Money = Money::from_cents(1);

/// The part of the context that `validate_order` looks at.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OrderContext {
    #[serde(alias = "customer_info")]
    customer: Option<Customer>,
    /// Any JSON, so that a mistake in one item is answered with that item's index.
    #[serde(alias = "order_items")]
    items: Option<Value>,
    #[serde(alias = "payment_info")]
    payment: Option<AnnouncedPayment>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Customer {
    id: Option<Id>,
    email: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct AnnouncedPayment {
    amount: Option<Money>,
}

#[derive(Debug, Deserialize)]
struct OrderItem {
    product_id: Option<Id>,
    sku: Option<Id>,
    quantity: Option<i64>,
    price: Option<Money>,
}

/// What `validate_order` returns.
#[derive(Debug, Serialize, Deserialize)]
pub struct ValidatedOrder {
    customer_validated: bool,
    customer_id: Id,
    #[serde(default)]
    pub(super) validated_items: Vec<ValidatedItem>,
    pub(super) order_total: Money,
    validation_status: String,
    validated_at: Timestamp,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ValidatedItem {
    pub(super) product_id: i64,
    pub(super) sku: String,
    pub(super) product_name: String,
    pub(super) quantity: u32,
    pub(super) unit_price: Money,
    pub(super) line_total: Money,
    available_stock: u32,
    category: String,
}

/// Checks customer, items and amounts, and adds up the order.
///
/// # Errors
/// Permanent, each with its code: `MISSING_CUSTOMER_INFO`, `MISSING_CUSTOMER_ID`, `MISSING_CUSTOMER_EMAIL`,
/// `MISSING_ORDER_ITEMS`, `INVALID_ORDER_ITEMS`, `EMPTY_ORDER_ITEMS`, `MAX_ITEMS_EXCEEDED` (50),
/// `MAX_VALUE_EXCEEDED` and `MIN_VALUE_NOT_MET` (a given payment amount above 10,000.00 or below 0.01),
/// `INVALID_ORDER_ITEM`, `INVALID_QUANTITY`, `INVALID_PRICE`, `PRODUCT_NOT_FOUND` (all four with details
/// `item_index`), `ORDER_TOTAL_TOO_HIGH` (50,000.00).
pub async fn validate_order(step: Step<OrderContext>) -> StepResult<ValidatedOrder> {
    let order = &step.context;
    let customer_id = check_customer(order.customer.as_ref())?;
    let items = check_items(order.items.as_ref())?;
    check_payment(order.payment.as_ref())?;

    let validated_items = items
        .iter()
        .enumerate()
        .map(|(index, item)| {
            validate_item(item).map_err(|(code, problem)| {
                StepError::permanent(format_args!("order item {index} {problem}"))
                    .code(code)
                    .details(json!({ "item_index": index }))
            })
        })
        .collect::<StepResult<Vec<_>>>()?;
    let order_total = validated_items
        .iter()
        .try_fold(Money::ZERO, |total, item| total.plus(item.line_total))
        .filter(|total| *total <= MAX_ORDER_TOTAL)
        .ok_or_else(|| {
            StepError::permanent(format_args!("the order comes to more than {MAX_ORDER_TOTAL}"))
                .code("ORDER_TOTAL_TOO_HIGH")
        })?;

    Ok(ValidatedOrder {
        customer_validated: true,
        customer_id,
        validated_items,
        order_total,
        validation_status: "complete".to_owned(),
        validated_at: Timestamp::now(),
    })
}

fn check_customer(customer: Option<&Customer>) -> StepResult<Id> {
    let customer = customer.ok_or_else(|| missing("the customer", "MISSING_CUSTOMER_INFO"))?;
    let id = customer.id.clone().filter(|id| *id != Id::Text(String::new()));
    let id = id.ok_or_else(|| missing("the customer's id", "MISSING_CUSTOMER_ID"))?;
    present(customer.email.as_ref())
        .ok_or_else(|| missing("the customer's email", "MISSING_CUSTOMER_EMAIL"))?;
    Ok(id)
}

fn check_items(items: Option<&Value>) -> StepResult<&[Value]> {
    let items = items.ok_or_else(|| missing("the list of order items", "MISSING_ORDER_ITEMS"))?;
    let items = items.as_array().ok_or_else(|| {
        StepError::permanent("the order items are not a list; send a list of {sku, quantity, price}")
            .code("INVALID_ORDER_ITEMS")
    })?;
    match items.len() {
        0 => Err(StepError::permanent("the order has no items").code("EMPTY_ORDER_ITEMS")),
        1..=MAX_ITEMS => Ok(items),
        count => {
            Err(StepError::validation(format_args!("the order has {count} items; {MAX_ITEMS} are allowed"))
                .code("MAX_ITEMS_EXCEEDED"))
        }
    }
}

fn check_payment(payment: Option<&AnnouncedPayment>) -> StepResult<()> {
    let refused = |amount: Money, limit: &str, code: &str| {
        Err(StepError::validation(format_args!("the payment amount {amount} is {limit}")).code(code))
    };
    match payment.and_then(|payment| payment.amount) {
        Some(amount) if amount > MAX_PAYMENT => refused(amount, "above 10000.00", "MAX_VALUE_EXCEEDED"),
        Some(amount) if amount < MIN_PAYMENT => refused(amount, "below 0.01", "MIN_VALUE_NOT_MET"),
        _ => Ok(()),
    }
}

/// The item with its product, or a code and what is wrong with it.
fn validate_item(item: &Value) -> Result<ValidatedItem, (&'static str, String)> {
    let item = OrderItem::deserialize(item)
        .map_err(|error| ("INVALID_ORDER_ITEM", format!("cannot be read: {error}")))?;
    let lacks = |field: &str| ("INVALID_ORDER_ITEM", format!("has no {field}"));
    let id = item.sku.or(item.product_id).ok_or_else(|| lacks("sku or product_id"))?;
    let quantity = item.quantity.ok_or_else(|| lacks("quantity"))?;
    let unit_price = item.price.ok_or_else(|| lacks("price"))?;

    let quantity = u32::try_from(quantity)
        .ok()
        .filter(|quantity| *quantity > 0)
        .ok_or_else(|| ("INVALID_QUANTITY", format!("has quantity {quantity}; at least 1 is needed")))?;
    if unit_price < Money::ZERO {
        return Err(("INVALID_PRICE", format!("has price {unit_price}, which is below 0")));
    }
    let product = products::find(&id)
        .ok_or_else(|| ("PRODUCT_NOT_FOUND", format!("is of product {id}, which we do not sell")))?;
    let line_total = unit_price
        .times(quantity)
        .ok_or_else(|| ("ORDER_TOTAL_TOO_HIGH", format!("comes to more than {MAX_ORDER_TOTAL}")))?;

    Ok(ValidatedItem {
        product_id: product.product_id,
        sku: product.sku.to_owned(),
        product_name: product.name.to_owned(),
        quantity,
        unit_price,
        line_total,
        available_stock: product.stock,
        category: product.category.to_owned(),
    })
}
