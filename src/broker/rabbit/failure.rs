//! What went wrong, in words, and what that means for the next try.

use std::fmt;
use std::io;
use std::time::Duration;

use lapin::ErrorKind;

use super::address::Address;
use super::reconnect::Trouble;
use super::tls;
use crate::broker::BrokerError;

/// AMQP reply codes that say "not like this" rather than "not now".
const REFUSALS: [u16; 4] = [403, 404, 406, 530];

/// The broker took a channel's deliveries back because one was held for too long.
pub(super) const LEASE_EXCEEDED: &str = "lease_exceeded";

/// The broker failed at what it was asked, and closed the connection for it.
pub(super) const INTERNAL_ERROR: &str = "internal_error";

/// Why a connection or a channel could not be opened, or ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// For people.
    pub(super) text: String,
    /// For the metric: one of a few words.
    pub(super) cause: &'static str,
    /// How soon it is worth trying again.
    pub(super) trouble: Trouble,
    /// Whether the whole connection is gone, and not only a channel of it.
    pub(super) connection_lost: bool,
}

impl Failure {
    /// One that passes, of a channel.
    pub(super) fn outage(text: impl Into<String>, cause: &'static str) -> Self {
        Self { text: text.into(), cause, trouble: Trouble::Outage, connection_lost: false }
    }

    /// One that lasts until somebody changes a setting or a file.
    pub(super) fn refusal(text: impl Into<String>, cause: &'static str) -> Self {
        Self { trouble: Trouble::Refusal, ..Self::outage(text, cause) }
    }

    /// The same, of the whole connection.
    pub(super) fn of_connection(self) -> Self {
        Self { connection_lost: true, ..self }
    }

    /// The broker did not answer.
    pub(super) fn timeout(what: &str, after: Duration) -> Self {
        Self::outage(format!("{what}: no answer within {after:?}"), "timeout")
    }

    /// The broker ended a consumer, as it does when its queue is deleted or moves, or when a delivery was
    /// held for longer than the broker allows.
    pub(super) fn cancelled() -> Self {
        Self::outage(
            "the broker cancelled the consumer (its queue was deleted or moved, or a delivery was held for longer \
             than the broker's consumer timeout)",
            "consumer_cancelled",
        )
    }

    /// Why `address` could not be connected to.
    pub(super) fn connecting(address: &Address, error: &lapin::Error) -> Self {
        let Address { place, user, vhost, .. } = address;
        let failure = Self::from(error).of_connection();
        let text = match (failure.trouble, failure.cause) {
            (Trouble::Refusal, "not_allowed") => format!("{place} refused vhost {vhost:?}: {}", failure.text),
            (Trouble::Refusal, "password_file") => failure.text,
            (Trouble::Refusal, "tls") => format!("{place}: {}", failure.text),
            (Trouble::Refusal, _) => format!("{place} refused user {user:?}: {}", failure.text),
            (Trouble::Outage, _) => format!("cannot reach {place}: {}", failure.text),
        };
        Self { text, ..failure }
    }

    /// The same, as the error of a broker operation.
    pub(super) fn into_error(self, address: &str) -> BrokerError {
        match self.trouble {
            Trouble::Refusal => BrokerError::Refused(self.text),
            Trouble::Outage => {
                let reason =
                    self.text.strip_prefix(&format!("cannot reach {address}: ")).unwrap_or(&self.text);
                BrokerError::Unreachable { address: address.to_owned(), reason: reason.to_owned() }
            }
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<&lapin::Error> for Failure {
    fn from(error: &lapin::Error) -> Self {
        let (text, cause, connection_lost) = match error.kind() {
            ErrorKind::IOError(error) => match tls::explain(error) {
                Some(text) => (text, "tls", true),
                None => (io_text(error), "connection_lost", true),
            },
            ErrorKind::MissingHeartbeatError => {
                ("the broker has been silent for two heartbeats".to_owned(), "no_heartbeat", true)
            }
            ErrorKind::InvalidConnectionState(_) | ErrorKind::RuntimeShutdownError(_) => {
                ("the connection is closed".to_owned(), "connection_lost", true)
            }
            ErrorKind::InvalidChannelState(..) | ErrorKind::InvalidChannel(_) => {
                ("the channel is closed".to_owned(), "channel_closed", false)
            }
            ErrorKind::ProtocolError(protocol) => {
                (protocol.get_message().to_string(), code_name(protocol.get_id()), error.is_amqp_hard_error())
            }
            ErrorKind::AuthProviderError(text) => (text.clone(), "password_file", true),
            _ => (error.to_string(), "protocol", true),
        };
        let cause = if text.contains("delivery acknowledgement on channel") { LEASE_EXCEEDED } else { cause };
        let refused = match error.kind() {
            // A queue whose node is still starting is not found either, but will be.
            ErrorKind::ProtocolError(protocol) => {
                REFUSALS.contains(&protocol.get_id())
                    && cause != LEASE_EXCEEDED
                    && !text.contains("down or inaccessible")
            }
            ErrorKind::AuthProviderError(_) => true,
            _ => cause == "tls",
        };
        let trouble = if refused { Trouble::Refusal } else { Trouble::Outage };
        Self { text, cause, trouble, connection_lost }
    }
}

impl From<lapin::Error> for Failure {
    fn from(error: lapin::Error) -> Self {
        Self::from(&error)
    }
}

fn io_text(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::TimedOut
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable => error.kind().to_string(),
        _ => error.to_string(),
    }
}

fn code_name(code: u16) -> &'static str {
    match code {
        320 => "connection_forced",
        403 => "access_refused",
        404 => "not_found",
        405 => "resource_locked",
        406 => "precondition_failed",
        530 => "not_allowed",
        541 => INTERNAL_ERROR,
        _ => "protocol",
    }
}

#[cfg(test)]
mod tests {
    use lapin::protocol::AMQPError;

    use super::*;
    use crate::config::BrokerConfig;

    fn protocol(code: u16, text: &str) -> lapin::Error {
        ErrorKind::ProtocolError(AMQPError::from_id(code, text.into()).unwrap()).into()
    }

    #[test]
    fn what_somebody_must_change_is_told_from_what_passes() {
        for (error, trouble, connection_lost) in [
            (protocol(403, "ACCESS_REFUSED"), Trouble::Refusal, false),
            (protocol(404, "NOT_FOUND - no queue 'a' in vhost '/'"), Trouble::Refusal, false),
            (
                protocol(404, "NOT_FOUND - queue 'a' in vhost '/' process is down or inaccessible"),
                Trouble::Outage,
                false,
            ),
            (
                protocol(406, "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out."),
                Trouble::Outage,
                false,
            ),
            (protocol(406, "PRECONDITION_FAILED - inequivalent arg"), Trouble::Refusal, false),
            (protocol(530, "NOT_ALLOWED - vhost x not found"), Trouble::Refusal, true),
            (protocol(320, "CONNECTION_FORCED - broker forced connection closure"), Trouble::Outage, true),
            (io::Error::from(io::ErrorKind::ConnectionReset).into(), Trouble::Outage, true),
            (ErrorKind::MissingHeartbeatError.into(), Trouble::Outage, true),
        ] {
            let failure = Failure::from(&error);
            assert_eq!((failure.trouble, failure.connection_lost), (trouble, connection_lost), "{error}");
        }
    }

    #[test]
    fn a_failed_connect_says_whom_and_why() {
        let address =
            Address::parse(0, "amqp://worker:hunter2@127.0.0.1:5672/orders", &BrokerConfig::default())
                .unwrap();
        let text = |error: &lapin::Error| Failure::connecting(&address, error).text;
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused).into();
        assert_eq!(text(&refused), "cannot reach 127.0.0.1:5672: connection refused");
        assert_eq!(
            text(&protocol(403, "ACCESS_REFUSED - Login was refused")),
            "127.0.0.1:5672 refused user \"worker\": ACCESS_REFUSED - Login was refused"
        );
        assert_eq!(
            text(&protocol(530, "NOT_ALLOWED - vhost orders not found")),
            "127.0.0.1:5672 refused vhost \"orders\": NOT_ALLOWED - vhost orders not found"
        );
    }
}
