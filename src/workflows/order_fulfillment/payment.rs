use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::ledger::Ledger;
use super::validate::ValidatedOrder;
use super::{Money, earlier, missing, own_id, present};
use crate::{Step, StepError, StepHandler, StepResult};

/// How many charges, and how many refunds, the gateway remembers.
const REMEMBERED: usize = 10_000;
/// 2.9 %.
const FEE_PER_MILLE: u32 = 29;

/// Charges the order's total.
#[derive(Debug)]
pub struct ProcessPayment {
    gateway: Arc<PaymentGateway>,
}

impl ProcessPayment {
    /// Charges through this gateway.
    pub fn new(gateway: Arc<PaymentGateway>) -> Self {
        Self { gateway }
    }
}

/// The part of the context that `process_payment` looks at.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PaymentContext {
    #[serde(alias = "payment_info")]
    payment: Option<PaymentInfo>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct PaymentInfo {
    method: Option<String>,
    token: Option<String>,
}

/// What `process_payment` returns.
#[derive(Debug, Serialize, Deserialize)]
pub struct Payment {
    payment_processed: bool,
    payment_id: String,
    transaction_id: String,
    amount_charged: Money,
    payment_method_used: String,
    gateway_response: Charge,
    processed_at: Timestamp,
    payment_status: String,
}

/// # Errors
/// Permanent: `MISSING_VALIDATION_RESULTS`, `MISSING_RESERVATION_RESULTS`, `MISSING_PAYMENT_INFO`,
/// `MISSING_PAYMENT_METHOD`, `MISSING_PAYMENT_TOKEN`, `PAYMENT_DECLINED`, `PAYMENT_AUTH_FAILED`. Retryable:
/// `PAYMENT_RATE_LIMITED` after 60 s, `PAYMENT_UNAVAILABLE` after 30 s.
impl StepHandler<PaymentContext, Payment> for ProcessPayment {
    async fn call(&self, step: Step<PaymentContext>) -> StepResult<Payment> {
        let order: ValidatedOrder = earlier(&step, "validate_order", "MISSING_VALIDATION_RESULTS")?;
        earlier::<IgnoredAny, _>(&step, "reserve_inventory", "MISSING_RESERVATION_RESULTS")?;
        let payment = step.context.payment.as_ref();
        let payment = payment.ok_or_else(|| missing("the payment", "MISSING_PAYMENT_INFO"))?;
        let method = present(payment.method.as_ref())
            .ok_or_else(|| missing("the payment's method", "MISSING_PAYMENT_METHOD"))?;
        let token = present(payment.token.as_ref())
            .ok_or_else(|| missing("the payment's token", "MISSING_PAYMENT_TOKEN"))?;

        let transaction_id = own_id("TXN", &step);
        let charge = self.gateway.charge(&transaction_id, method, token, order.order_total).await;
        let charge = charge.map_err(refused)?;
        Ok(Payment {
            payment_processed: true,
            payment_id: own_id("PAY", &step),
            transaction_id,
            amount_charged: charge.amount,
            payment_method_used: method.to_owned(),
            processed_at: charge.processed_at,
            gateway_response: charge,
            payment_status: "completed".to_owned(),
        })
    }
}

/// What a refusal means for the step: whether to try again, when, and which code tells the caller.
fn refused(refusal: GatewayRefusal) -> StepError {
    use GatewayRefusal::*;
    let error = match refusal {
        CardDeclined | InsufficientFunds | InvalidCard => {
            StepError::permanent(refusal).code("PAYMENT_DECLINED")
        }
        AuthenticationFailed | InvalidToken => StepError::permanent(refusal).code("PAYMENT_AUTH_FAILED"),
        RateLimited => {
            StepError::retryable(refusal).code("PAYMENT_RATE_LIMITED").retry_after(Duration::from_secs(60))
        }
        Unavailable => {
            StepError::retryable(refusal).code("PAYMENT_UNAVAILABLE").retry_after(Duration::from_secs(30))
        }
    };
    error.details(json!({ "gateway_code": refusal }))
}

/// Undoes `process_payment`: gives the money back.
#[derive(Debug)]
pub struct RefundPayment {
    gateway: Arc<PaymentGateway>,
}

impl RefundPayment {
    /// Refunds through this gateway.
    pub fn new(gateway: Arc<PaymentGateway>) -> Self {
        Self { gateway }
    }
}

/// What `refund_payment` returns.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Refund {
    refunded: bool,
    payment_id: String,
    refund_id: String,
    amount_refunded: Money,
}

/// # Errors
/// Permanent: without a readable result of `process_payment`.
impl StepHandler<serde_json::Value, Refund> for RefundPayment {
    async fn call(&self, step: Step) -> StepResult<Refund> {
        let payment: Payment = step.result_of("process_payment")?;
        Ok(self.gateway.refund(Refund {
            refunded: true,
            payment_id: payment.payment_id,
            refund_id: own_id("REF", &step),
            amount_refunded: payment.amount_charged,
        }))
    }
}

/// The simulated payment gateway. It remembers its latest 10,000 charges and refunds.
#[derive(Debug)]
pub struct PaymentGateway {
    latency: Duration,
    books: Mutex<Books>,
}

#[derive(Debug)]
struct Books {
    charges: Ledger<Charge>,
    refunds: Ledger<Refund>,
    balance_cents: i64,
}

/// What the gateway answers to a charge.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Charge {
    status: String,
    transaction_id: String,
    amount: Money,
    currency: String,
    payment_method_type: String,
    reference: String,
    gateway_fee: Money,
    processed_at: Timestamp,
    processing_time_ms: u64,
    load_indicator: String,
}

/// Why the gateway took no money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum GatewayRefusal {
    /// `card_declined`
    #[error("the card was declined")]
    CardDeclined,
    /// `insufficient_funds`
    #[error("the account does not cover the amount")]
    InsufficientFunds,
    /// `invalid_card`
    #[error("the card is not valid")]
    InvalidCard,
    /// `authentication_failed`
    #[error("the card holder was not authenticated")]
    AuthenticationFailed,
    /// `invalid_token`
    #[error("the payment token is not valid")]
    InvalidToken,
    /// `rate_limited`
    #[error("the payment gateway takes no more requests for now")]
    RateLimited,
    /// `unavailable`
    #[error("the payment gateway is unavailable")]
    Unavailable,
}

impl Default for PaymentGateway {
    fn default() -> Self {
        Self::with_latency(Duration::ZERO)
    }
}

impl PaymentGateway {
    /// A gateway that takes this long for a charge.
    pub fn with_latency(latency: Duration) -> Self {
        let books =
            Books { charges: Ledger::new(REMEMBERED), refunds: Ledger::new(REMEMBERED), balance_cents: 0 };
        Self { latency, books: Mutex::new(books) }
    }

    /// Charges `amount`, once for each `transaction_id`: asked again, it answers with the first charge.
    ///
    /// The token chooses the answer: `tok_declined`, `tok_insufficient_funds`, `tok_invalid_card`,
    /// `tok_auth_failed`, `tok_invalid_token`, `tok_rate_limited` and `tok_unavailable` are refused with the
    /// refusal of that name, every other token is charged.
    ///
    /// # Errors
    /// The refusal. Nothing was charged.
    pub async fn charge(
        &self,
        transaction_id: &str,
        method: &str,
        token: &str,
        amount: Money,
    ) -> Result<Charge, GatewayRefusal> {
        let started = Instant::now();
        if !self.latency.is_zero() {
            sleep(self.latency).await;
        }
        match token {
            "tok_declined" => return Err(GatewayRefusal::CardDeclined),
            "tok_insufficient_funds" => return Err(GatewayRefusal::InsufficientFunds),
            "tok_invalid_card" => return Err(GatewayRefusal::InvalidCard),
            "tok_auth_failed" => return Err(GatewayRefusal::AuthenticationFailed),
            "tok_invalid_token" => return Err(GatewayRefusal::InvalidToken),
            "tok_rate_limited" => return Err(GatewayRefusal::RateLimited),
            "tok_unavailable" => return Err(GatewayRefusal::Unavailable),
            _ => {}
        }
        let mut books = self.lock();
        if let Some(charge) = books.charges.get(transaction_id) {
            return Ok(charge.clone());
        }
        let processing_time_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let charge = Charge {
            status: "succeeded".to_owned(),
            transaction_id: transaction_id.to_owned(),
            amount,
            currency: "USD".to_owned(),
            payment_method_type: method.to_owned(),
            reference: transaction_id.replacen("TXN", "GW", 1),
            gateway_fee: amount.per_mille(FEE_PER_MILLE),
            processed_at: Timestamp::now(),
            processing_time_ms,
            load_indicator: if processing_time_ms > 200 { "high" } else { "normal" }.to_owned(),
        };
        books.balance_cents = books.balance_cents.saturating_add(amount.cents());
        books.charges.insert(transaction_id, charge.clone());
        Ok(charge)
    }

    /// Gives the money of one payment back, once: asked again, it answers with the first refund.
    fn refund(&self, refund: Refund) -> Refund {
        let mut books = self.lock();
        if let Some(earlier) = books.refunds.get(&refund.payment_id) {
            return earlier.clone();
        }
        books.balance_cents = books.balance_cents.saturating_sub(refund.amount_refunded.cents());
        books.refunds.insert(&refund.payment_id, refund.clone());
        refund
    }

    /// What was charged here, less what was refunded here.
    pub fn balance(&self) -> Money {
        Money::from_cents(self.lock().balance_cents)
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
