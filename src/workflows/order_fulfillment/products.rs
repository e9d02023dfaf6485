use super::Id;

/// Something we sell.
#[derive(Debug)]
pub(super) struct Product {
    pub(super) product_id: i64,
    pub(super) sku: &'static str,
    pub(super) name: &'static str,
    pub(super) category: &'static str,
    /// How many a full shelf holds.
    pub(super) stock: u32,
    pub(super) location: &'static str,
}

pub(super) const PRODUCTS: [Product; 3] = [
    Product {
        product_id: 101,
        sku: "WIDGET-001",
        name: "Premium Widget A",
        category: "widgets",
        stock: 100,
        location: "WH-EAST-A1",
    },
    Product {
        product_id: 102,
        sku: "WIDGET-002",
        name: "Deluxe Widget B",
        category: "widgets",
        stock: 50,
        location: "WH-WEST-B2",
    },
    Product {
        product_id: 103,
        sku: "GADGET-002",
        name: "Standard Gadget C",
        category: "gadgets",
        stock: 200,
        location: "WH-CENTRAL-C3",
    },
];

/// The product with this number or SKU.
pub(super) fn find(id: &Id) -> Option<&'static Product> {
    PRODUCTS.iter().find(|product| match id {
        Id::Number(number) => product.product_id == *number,
        Id::Text(text) => product.sku == text || product.product_id.to_string() == *text,
    })
}
