//! TLS to the broker: whom we trust, who we are, and what to do about a handshake that failed.

use std::io;
use std::path::Path;

use lapin::tcp::{RustlsConnector, RustlsConnectorConfig};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, Error};

use crate::config::TlsConfig;

/// What is needed for handshakes, from the files as they are now.
///
/// # Errors
/// Which file is of no use, and why.
pub(super) fn connector(settings: &TlsConfig) -> Result<RustlsConnector, String> {
    let trusted = match &settings.ca_file {
        None => RustlsConnectorConfig::new_with_webpki_root_certs(),
        Some(path) => RustlsConnectorConfig::default()
            .with_parsable_certificates(certificates("broker.tls.ca_file", path)?),
    };
    match (&settings.certificate_file, &settings.key_file) {
        (Some(certificate_file), Some(key_file)) => {
            let chain = certificates("broker.tls.certificate_file", certificate_file)?;
            let key = PrivateKeyDer::from_pem_file(key_file)
                .map_err(|error| unusable("broker.tls.key_file", key_file, &error, "a private key"))?;
            trusted.connector_with_single_cert(chain, key).map_err(|error| {
                format!("broker.tls.certificate_file and broker.tls.key_file do not belong together: {error}")
            })
        }
        _ => trusted.connector_with_no_client_auth().map_err(|error| format!("broker.tls.ca_file: {error}")),
    }
}

fn certificates(setting: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let wrong = |error: &dyn std::fmt::Display| unusable(setting, path, error, "certificates");
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = certificates.map_err(|error| wrong(&error))?;
    if certificates.is_empty() { Err(wrong(&"it holds none")) } else { Ok(certificates) }
}

fn unusable(setting: &str, path: &Path, error: &dyn std::fmt::Display, expected: &str) -> String {
    format!("{setting}: cannot use {}: {error}; expected a PEM file with {expected}", path.display())
}

/// Why the two sides did not come to terms, where `error` says that they did not.
pub(super) fn explain(error: &io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    let way_out = match error {
        Error::InvalidCertificate(problem) => match problem {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the broker's certificate has expired: renew it"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the broker's certificate is not valid yet: compare the clocks of both machines"
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "the broker's certificate is signed by an authority that is not trusted here: put the certificate of \
                 that authority into broker.tls.ca_file"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the broker's certificate is for another name: use that name in the address, or say it in \
                 broker.tls.server_name"
            }
            _ => "the broker's certificate is refused: replace it",
        },
        Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired => {
                "the broker wants a certificate of ours: set broker.tls.certificate_file and broker.tls.key_file"
            }
            AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::UnknownCA => {
                "the broker refuses our certificate: renew broker.tls.certificate_file, or have its authority trusted \
                 by the broker"
            }
            _ => "the broker refuses the handshake: its log has the reason",
        },
        Error::InvalidMessage(_) => "no TLS is spoken there: use the broker's TLS port (5671), or amqp://",
        _ => "no TLS connection",
    };
    Some(format!("{way_out} ({error})"))
}
