//! tmp
use super::*;
/// tmp
#[derive(Debug)]
pub struct RabbitBroker;
impl RabbitBroker {
    /// tmp
    pub fn connect(_: &crate::config::BrokerConfig, _: &str) -> Result<Arc<dyn Broker>, BrokerError> {
        Err(BrokerError::Closed)
    }
}
