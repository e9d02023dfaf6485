//! Where a broker is, and who we are to it.

use std::fmt;
use std::path::{Path, PathBuf};

use lapin::auth::AuthProvider;
use lapin::types::{LongString, ShortString};
use lapin::uri::{AMQPScheme, AMQPUri, SASLMechanism};

use crate::broker::BrokerError;
use crate::config::BrokerConfig;

/// One checked address. Neither `Debug` nor any of the public parts shows the password.
#[derive(Clone)]
pub(super) struct Address {
    /// With the password, for the client alone.
    pub(super) uri: AMQPUri,
    /// Host and port.
    pub(super) place: String,
    pub(super) user: String,
    pub(super) vhost: String,
}

impl Address {
    /// # Errors
    /// What is wrong with the `index`th of the addresses in the settings, without its password.
    pub(super) fn parse(index: usize, text: &str, config: &BrokerConfig) -> Result<Self, BrokerError> {
        let wrong = |problem: &str| {
            BrokerError::Invalid(format!(
                "broker.urls[{index}] is not an AMQP address ({problem}); expected \
                 amqp://user:password@host:5672/vhost, or amqps:// for TLS"
            ))
        };
        let mut uri: AMQPUri = text.parse().map_err(|problem: String| {
            // The parser quotes an address that has no host, its password included.
            wrong(if problem.contains(text) { "it has no host" } else { &problem })
        })?;
        if text
            .split_once("://")
            .is_some_and(|(_, rest)| rest.rsplit('@').next().unwrap_or(rest).starts_with('['))
        {
            // The client would connect to localhost instead.
            return Err(wrong("an IPv6 address in brackets is not supported; use a host name"));
        }
        if uri.authority.host.is_empty() {
            return Err(wrong("it has no host"));
        }
        uri.query.heartbeat.get_or_insert(config.heartbeat_seconds);
        if config.tls.external_login {
            if uri.scheme != AMQPScheme::AMQPS {
                return Err(wrong("broker.tls.external_login is set, which works with amqps:// only"));
            }
            uri.query.auth_mechanism = Some(SASLMechanism::External);
        }
        let user = match uri.query.auth_mechanism {
            Some(SASLMechanism::External) => "of our certificate".to_owned(),
            _ => uri.authority.userinfo.username.clone(),
        };
        Ok(Self {
            place: format!("{}:{}", uri.authority.host, uri.authority.port),
            user,
            vhost: uri.vhost.clone(),
            uri,
        })
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.uri.scheme == AMQPScheme::AMQPS
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address")
            .field("place", &self.place)
            .field("user", &self.user)
            .field("vhost", &self.vhost)
            .finish_non_exhaustive()
    }
}

/// Logs in with a password from a file, which is read at every connect: whoever changes the password
/// need not restart anything.
pub(super) struct PasswordFile {
    pub(super) user: String,
    pub(super) path: PathBuf,
}

impl AuthProvider for PasswordFile {
    fn mechanism(&self) -> ShortString {
        "PLAIN".into()
    }

    fn auth_starter(&self) -> Result<LongString, String> {
        let password = read_password(&self.path).map_err(|error| error.to_string())?;
        Ok(format!("\0{}\0{password}", self.user).into())
    }
}

/// # Errors
/// When the file cannot be read.
pub(super) fn read_password(path: &Path) -> Result<String, BrokerError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
        Err(error) => Err(BrokerError::Invalid(format!(
            "broker.password_file: cannot read {}: {error}; expected a file that holds the password",
            path.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_address_is_named_without_its_password() {
        for (text, problem) in [
            ("http://worker:hunter2@rabbit/", "Invalid AMQP scheme: http"),
            ("worker:hunter2@rabbit", "it has no host"),
            ("rabbit", "relative URL without a base"),
            ("amqp://worker:hunter2@rabbit:port/", "invalid port number"),
            ("amqp://worker:hunter2@[::1]:5672/", "IPv6"),
            ("amqp://worker:hunter2@rabbit/%2f?heartbeat=often", "invalid digit"),
        ] {
            let error = Address::parse(2, text, &BrokerConfig::default()).unwrap_err().to_string();
            assert!(error.contains("broker.urls[2]") && error.contains(problem), "{text}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn an_address_keeps_its_own_heartbeat_and_hides_its_password() {
        let address = Address::parse(
            0,
            "amqp://worker:hun%2Fter2@rabbit:5673/orders?heartbeat=3",
            &BrokerConfig::default(),
        )
        .unwrap();
        assert_eq!(address.uri.query.heartbeat, Some(3));
        let shown = format!("{address:?}");
        assert!(
            shown.contains("rabbit:5673") && shown.contains("worker") && shown.contains("orders"),
            "{shown}"
        );
        assert!(!shown.contains("ter2"), "{shown}");
        let config = BrokerConfig { heartbeat_seconds: 7, ..BrokerConfig::default() };
        let plain = Address::parse(0, "amqp://rabbit", &config).unwrap();
        assert_eq!(plain.uri.query.heartbeat, Some(7));
        assert_eq!(
            (plain.place.as_str(), plain.user.as_str(), plain.vhost.as_str()),
            ("rabbit:5672", "guest", "/")
        );
    }
}
