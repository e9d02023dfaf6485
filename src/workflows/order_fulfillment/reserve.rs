use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::ledger::Ledger;
use super::products::PRODUCTS;
use super::validate::{ValidatedItem, ValidatedOrder};
use super::{Money, earlier, own_id};
use crate::{Step, StepError, StepHandler, StepResult};

/// How many reservations the warehouse remembers.
const REMEMBERED: usize = 10_000;
const RESERVATION_VALID_FOR: Duration = Duration::from_secs(15 * 60);

/// Reserves the order's items in the warehouse.
#[derive(Debug)]
pub struct ReserveInventory {
    inventory: Arc<Inventory>,
}

impl ReserveInventory {
    /// Reserves in this warehouse.
    pub fn new(inventory: Arc<Inventory>) -> Self {
        Self { inventory }
    }
}

/// What `reserve_inventory` returns.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reservation {
    reservation_id: String,
    items_reserved: usize,
    reservation_status: String,
    total_reserved_value: Money,
    reserved_at: Timestamp,
    expires_at: Timestamp,
    reservation_details: Vec<ReservedItem>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct ReservedItem {
    product_id: i64,
    sku: String,
    product_name: String,
    quantity_requested: u32,
    quantity_reserved: u32,
    unit_price: Money,
    line_total: Money,
    stock_location: String,
    reservation_reference: String,
}

/// # Errors
/// Retryable after 60 s: `INSUFFICIENT_STOCK`. Permanent: `MISSING_DEPENDENCY_RESULTS`,
/// `NO_VALIDATED_ITEMS`, `PRODUCT_NOT_IN_INVENTORY`.
impl StepHandler<serde_json::Value, Reservation> for ReserveInventory {
    async fn call(&self, step: Step) -> StepResult<Reservation> {
        let order: ValidatedOrder = earlier(&step, "validate_order", "MISSING_DEPENDENCY_RESULTS")?;
        if order.validated_items.is_empty() {
            let error =
                StepError::permanent("the validated order has no items, so there is nothing to reserve");
            return Err(error.code("NO_VALIDATED_ITEMS"));
        }
        let reservation = new_reservation(own_id("RES", &step), &order)?;
        self.inventory.reserve(reservation)
    }
}

fn new_reservation(reservation_id: String, order: &ValidatedOrder) -> StepResult<Reservation> {
    let reserve = |item: &ValidatedItem| {
        let product = PRODUCTS.iter().find(|product| product.sku == item.sku).ok_or_else(|| {
            StepError::permanent(format_args!("the warehouse does not keep product {}", item.sku))
                .code("PRODUCT_NOT_IN_INVENTORY")
        })?;
        Ok(ReservedItem {
            product_id: item.product_id,
            sku: item.sku.clone(),
            product_name: item.product_name.clone(),
            quantity_requested: item.quantity,
            quantity_reserved: item.quantity,
            unit_price: item.unit_price,
            line_total: item.line_total,
            stock_location: product.location.to_owned(),
            reservation_reference: format!("{reservation_id}-{}", item.product_id),
        })
    };
    let reservation_details = order.validated_items.iter().map(reserve).collect::<StepResult<Vec<_>>>()?;
    let reserved_at = Timestamp::now();
    Ok(Reservation {
        items_reserved: reservation_details.len(),
        reservation_status: "confirmed".to_owned(),
        total_reserved_value: order.order_total,
        reserved_at,
        expires_at: reserved_at + RESERVATION_VALID_FOR,
        reservation_details,
        reservation_id,
    })
}

/// Undoes `reserve_inventory`: gives the stock back.
#[derive(Debug)]
pub struct ReleaseInventory {
    inventory: Arc<Inventory>,
}

impl ReleaseInventory {
    /// Releases in this warehouse.
    pub fn new(inventory: Arc<Inventory>) -> Self {
        Self { inventory }
    }
}

/// What `release_inventory` returns.
#[derive(Debug, Serialize, Deserialize)]
pub struct Release {
    released: bool,
    reservation_id: String,
    items_released: usize,
}

/// # Errors
/// Permanent: without a readable result of `reserve_inventory`.
impl StepHandler<serde_json::Value, Release> for ReleaseInventory {
    async fn call(&self, step: Step) -> StepResult<Release> {
        let reservation: Reservation = step.result_of("reserve_inventory")?;
        self.inventory.release(&reservation.reservation_id);
        Ok(Release {
            released: true,
            reservation_id: reservation.reservation_id,
            items_released: reservation.items_reserved,
        })
    }
}

/// The simulated warehouse. It starts with full shelves and remembers its latest 10,000 reservations; it
/// leaves acting on `expires_at` to real ones.
#[derive(Debug)]
pub struct Inventory {
    supplier: bool,
    stock: Mutex<Stock>,
}

#[derive(Debug)]
struct Stock {
    shelves: HashMap<&'static str, u32>,
    reservations: Ledger<Held>,
}

#[derive(Debug)]
struct Held {
    reservation: Reservation,
    released: bool,
}

impl Inventory {
    /// A warehouse that has what it has: 100, 50 and 200 pieces of its three products.
    pub fn finite() -> Self {
        Self::stocked(false)
    }

    /// A warehouse whose supplier fills a shelf again at the moment it holds too little for an order. Only an
    /// order for more than a full shelf finds too little, however many orders there are.
    pub fn with_supplier() -> Self {
        Self::stocked(true)
    }

    fn stocked(supplier: bool) -> Self {
        let shelves = PRODUCTS.iter().map(|product| (product.sku, product.stock)).collect();
        Self { supplier, stock: Mutex::new(Stock { shelves, reservations: Ledger::new(REMEMBERED) }) }
    }

    /// How many pieces of a product are on its shelf, and not reserved.
    pub fn available(&self, sku: &str) -> u32 {
        self.lock().shelves.get(sku).copied().unwrap_or(0)
    }

    /// Takes all of the reservation's items from their shelves, or none. The id is the key: asked again, it
    /// answers with the reservation made the first time.
    fn reserve(&self, reservation: Reservation) -> StepResult<Reservation> {
        let mut stock = self.lock();
        if let Some(held) = stock.reservations.get(&reservation.reservation_id) {
            return Ok(held.reservation.clone());
        }
        let mut shelves = stock.shelves.clone();
        for item in &reservation.reservation_details {
            self.take(&mut shelves, item)?;
        }
        stock.shelves = shelves;
        let held = Held { reservation: reservation.clone(), released: false };
        stock.reservations.insert(&reservation.reservation_id, held);
        Ok(reservation)
    }

    fn take(&self, shelves: &mut HashMap<&'static str, u32>, item: &ReservedItem) -> StepResult<()> {
        let product = PRODUCTS.iter().find(|product| product.sku == item.sku);
        let full = product.map_or(0, |product| product.stock);
        let available = shelves.get(item.sku.as_str()).copied().unwrap_or(0);
        let wanted = item.quantity_requested;
        let filled = if self.supplier && available < wanted { available.max(full) } else { available };
        let left = filled.checked_sub(wanted).ok_or_else(|| {
            StepError::retryable(format_args!("{wanted} of {} are wanted, {available} available", item.sku))
                .code("INSUFFICIENT_STOCK")
                .retry_after(Duration::from_secs(60))
        })?;
        if let Some(shelf) = shelves.get_mut(item.sku.as_str()) {
            *shelf = left;
        }
        Ok(())
    }

    /// Puts a reservation's items back, once. One that is not known here holds nothing here.
    fn release(&self, reservation_id: &str) {
        let stock = &mut *self.lock();
        let Some(held) = stock.reservations.get_mut(reservation_id).filter(|held| !held.released) else {
            return;
        };
        held.released = true;
        for item in &held.reservation.reservation_details {
            if let Some(shelf) = stock.shelves.get_mut(item.sku.as_str()) {
                *shelf = shelf.saturating_add(item.quantity_reserved);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
