use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::validate::ValidatedOrder;
use super::{Money, earlier, missing, own_id};
use crate::{Step, StepResult};

/// The first pound is in the base price.
const HALF_POUNDS_INCLUDED: i64 = 2;
/// 2.50 a pound.
const CENTS_PER_HALF_POUND: i64 = 125;

/// The part of the context that `ship_order` looks at.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShippingContext {
    #[serde(alias = "shipping_info")]
    shipping: Option<ShippingInfo>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct ShippingInfo {
    method: Option<String>,
    /// One line of text, or an object with the parts.
    address: Option<Value>,
}

/// What `ship_order` returns.
#[derive(Debug, Serialize, Deserialize)]
pub struct Shipment {
    shipment_id: String,
    tracking_number: String,
    shipping_status: String,
    estimated_delivery: Date,
    shipping_cost: Money,
    carrier: String,
    service_type: String,
    label_url: String,
    processed_at: Timestamp,
}

struct Service {
    carrier: &'static str,
    name: &'static str,
    tracking_prefix: &'static str,
    base_cents: i64,
    business_days: usize,
}

fn service(method: Option<&str>) -> Service {
    let (carrier, name, tracking_prefix, base_cents, business_days) = match method {
        Some("express") => ("FedEx", "FedEx Express", "1Z", 1_500, 2),
        Some("overnight") => ("FedEx", "FedEx Overnight", "1Z", 2_500, 1),
        _ => ("UPS", "UPS Ground", "UPS", 899, 5),
    };
    Service { carrier, name, tracking_prefix, base_cents, business_days }
}

/// Orders the parcel's transport from a carrier, by `shipping.method`: `express`, `overnight`, or standard.
///
/// Carriers' label libraries tend to block their thread, so this one is registered with
/// [`Namespace::blocking_step`](crate::Namespace::blocking_step).
///
/// # Errors
/// Permanent: `MISSING_VALIDATION_RESULTS`, `MISSING_RESERVATION_RESULTS`, `MISSING_PAYMENT_RESULTS`,
/// `MISSING_SHIPPING_INFO`, `MISSING_SHIPPING_ADDRESS`.
pub fn ship_order(step: Step<ShippingContext>) -> StepResult<Shipment> {
    let order: ValidatedOrder = earlier(&step, "validate_order", "MISSING_VALIDATION_RESULTS")?;
    earlier::<IgnoredAny, _>(&step, "reserve_inventory", "MISSING_RESERVATION_RESULTS")?;
    earlier::<IgnoredAny, _>(&step, "process_payment", "MISSING_PAYMENT_RESULTS")?;
    let shipping = step.context.shipping.as_ref();
    let shipping = shipping.ok_or_else(|| missing("the shipping", "MISSING_SHIPPING_INFO"))?;
    if shipping.address.as_ref().is_none_or(is_blank) {
        return Err(missing("the shipping address", "MISSING_SHIPPING_ADDRESS"));
    }

    let service = service(shipping.method.as_deref());
    let shipment_id = own_id("SHIP", &step);
    let parcel_number = &shipment_id[shipment_id.len() - 16..];
    let pieces = order.validated_items.iter().map(|item| i64::from(item.quantity)).sum();
    let now = Timestamp::now();
    Ok(Shipment {
        tracking_number: format!("{}{parcel_number}", service.tracking_prefix),
        shipping_status: "label_created".to_owned(),
        estimated_delivery: business_days_after(now.to_zoned(TimeZone::UTC).date(), service.business_days),
        shipping_cost: cost(&service, pieces),
        carrier: service.carrier.to_owned(),
        service_type: service.name.to_owned(),
        label_url: format!("https://labels.{}.com/{shipment_id}.pdf", service.carrier.to_lowercase()),
        processed_at: now,
        shipment_id,
    })
}

fn is_blank(address: &Value) -> bool {
    match address {
        Value::String(line) => line.trim().is_empty(),
        Value::Object(parts) => parts.is_empty(),
        _ => true,
    }
}

/// A piece weighs half a pound.
fn cost(service: &Service, pieces: i64) -> Money {
    let paid_half_pounds = (pieces - HALF_POUNDS_INCLUDED).max(0);
    Money::from_cents(service.base_cents + paid_half_pounds * CENTS_PER_HALF_POUND)
}

fn business_days_after(date: Date, days: usize) -> Date {
    date.series(1.day())
        .skip(1)
        .filter(|day| !matches!(day.weekday(), Weekday::Saturday | Weekday::Sunday))
        .nth(days - 1)
        .expect("the calendar goes on for days after today")
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    #[test]
    fn delivery_counts_business_days_only() {
        let friday = date(2025, 11, 21);
        assert_eq!(business_days_after(friday, 1), date(2025, 11, 24));
        assert_eq!(business_days_after(friday, 2), date(2025, 11, 25));
        assert_eq!(business_days_after(friday, 5), date(2025, 11, 28));
        let sunday = date(2025, 11, 23);
        assert_eq!(business_days_after(sunday, 1), date(2025, 11, 24));
    }

    #[test]
    fn shipping_costs_the_base_up_to_a_pound_and_then_by_weight() {
        for (method, pieces, cents) in [
            ("standard", 1, 899),
            ("standard", 2, 899),
            ("standard", 3, 1_024),
            ("express", 3, 1_625),
            ("overnight", 12, 3_750),
        ] {
            assert_eq!(cost(&service(Some(method)), pieces).cents(), cents, "{pieces} by {method}");
        }
    }
}
